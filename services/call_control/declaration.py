"""What deployment needs to know of this service."""

from services.chassis.declaration import Declaration

DECLARATION = Declaration(name="call_control", database=True, http=True)
