"""Event `transfer`: what was sent to a recipient outside, or was not, and why (R-E2, K3)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, Reason, ServerId, VisitorId, WireModel

FIELDS_MAX = 64
RecipientId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,63}$")]
"""In the recipient register."""


class TransferVerdict(StrEnum):
    """What the gate said."""

    PERMITTED = "permitted"
    REFUSED = "refused"


class TransferV1(WireModel):
    """One answer of the gate, written before anything was sent. Natural key: `transfer_id`.

    `fields` are names, never values: of what was sent, or of what somebody wanted to send. A permit
    has `basis` and `country_ground`, a refusal has `reason`.
    """

    transfer_id: ServerId
    recipient: RecipientId
    purpose: Reason
    fields: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(min_length=1, max_length=FIELDS_MAX),
    ]
    verdict: TransferVerdict
    register_version: Annotated[str, Field(pattern=r"^[0-9a-z.+\-]{1,48}$")]
    happened_at: Instant
    asked_at: Instant
    reason: Reason | None = None
    basis: Annotated[str | None, Field(pattern=r"^Art\. 6\(1\)\([a-f]\)$")] = None
    country_ground: Reason | None = None
    consent: Reason | None = None
    """The purpose of the consent catalogue that was in force, where the basis is consent."""
    country: Annotated[str | None, Field(pattern=r"^[A-Z]{2}$")] = None
    """Where it went, for recipients that are elsewhere each time."""
    visitor_id: VisitorId | None = None
