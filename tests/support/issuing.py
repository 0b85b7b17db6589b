"""Who signs the receipts of a test."""

from services.consent.receipts import Controller, Issuer
from services.privacy import recipients
from services.privacy.chain import SigningKeys

CONTROLLER = Controller(
    iri="https://callpartner.de/",
    name="callpartner.de",
    contact="mailto:privacy@callpartner.example",
    page="https://callpartner.de/",
)


def issuer(keys: SigningKeys) -> Issuer:
    """Return an issuer with the register that is shipped."""
    return Issuer(controller=CONTROLLER, register=recipients.load(), keys=keys)
