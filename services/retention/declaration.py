"""What deployment needs to know of this service."""

from services.chassis.declaration import Declaration

DECLARATION = Declaration(name="retention", database=True, http=True, watches_topics=True)
