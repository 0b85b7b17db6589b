"""What is in force for everybody: the recipient register and the consent catalogue, whole.

No personal data. The last record of a name is what holds; it is told again each day.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import WireModel

DOCUMENT_CHARS_MAX = 40_000


class RegisterName(StrEnum):
    """Which register."""

    RECIPIENTS = "recipients"
    """Who may get what, for what, on which ground (R-E1)."""
    CATALOGUE = "catalogue"
    """What consent covers (R-F1)."""


class RegisterV1(WireModel):
    """One register's version in force. Natural key: name and digest."""

    name: RegisterName
    version: Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]
    document: Annotated[
        str,
        Field(
            min_length=2,
            max_length=DOCUMENT_CHARS_MAX,
            description="The register's JSON text, byte for byte what the digest is of.",
        ),
    ]
    sha256: Annotated[
        str,
        Field(
            pattern=r"^[0-9a-f]{64}$", description="SHA-256 (hex) of the document's UTF-8 bytes."
        ),
    ]
