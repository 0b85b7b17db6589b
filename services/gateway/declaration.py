"""What deploy needs to know of the gateway."""

from services.chassis.declaration import Declaration

DECLARATION = Declaration(name="gateway", database=False, http=True)
