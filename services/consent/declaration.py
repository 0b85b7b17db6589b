"""What deployment needs to know of this service."""

from services.chassis.declaration import Declaration

DECLARATION = Declaration(name="consent", database=True, http=True)
