"""What other systems tell of records that they keep and we must say the end of (R-D5b to R-D8).

No personal data at all: an opaque id, a word for what happened, a date.
"""

from datetime import date
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.retention import (
    HOLDER_PATTERN,
    KEY_ID_PATTERN,
    RECORD_KINDS,
    SIGNATURE_PATTERN,
    DataKind,
    DocumentClass,
)
from schemas.wire import ServerId, WireModel


class Happening(StrEnum):
    """What happened to a record, or to what it is about."""

    CONTRACT_ENDED = "contract_ended"
    DOCUMENT_MADE = "document_made"
    INVOICE_SENT = "invoice_sent"
    PURPOSE_FULFILLED = "purpose_fulfilled"
    REJECTION_ANNOUNCED = "rejection_announced"
    BLOCK_LIFTED = "block_lifted"
    OBJECTION_OPENED = "objection_opened"
    OBJECTION_CLOSED = "objection_closed"
    PROCEEDING_OPENED = "proceeding_opened"
    PROCEEDING_CLOSED = "proceeding_closed"
    TAX_ASSESSMENT_OPENED = "tax_assessment_opened"
    TAX_ASSESSMENT_CLOSED = "tax_assessment_closed"
    HOLD_PLACED = "hold_placed"
    HOLD_RELEASED = "hold_released"


_HOLD = frozenset({Happening.HOLD_PLACED, Happening.HOLD_RELEASED})
FITTING: dict[DataKind, frozenset[Happening]] = {
    DataKind.CONTRACT: _HOLD
    | {
        Happening.CONTRACT_ENDED,
        Happening.DOCUMENT_MADE,
        Happening.TAX_ASSESSMENT_OPENED,
        Happening.TAX_ASSESSMENT_CLOSED,
    },
    DataKind.PAID_TRAFFIC: _HOLD
    | {Happening.INVOICE_SENT, Happening.OBJECTION_OPENED, Happening.OBJECTION_CLOSED},
    DataKind.CONTACT: _HOLD | {Happening.PURPOSE_FULFILLED},
    DataKind.APPLICATION: _HOLD
    | {
        Happening.REJECTION_ANNOUNCED,
        Happening.PROCEEDING_OPENED,
        Happening.PROCEEDING_CLOSED,
    },
    DataKind.BLOCK_LIST: frozenset({Happening.BLOCK_LIFTED}),
}
"""What can happen to records of each kind."""
assert FITTING.keys() == RECORD_KINDS


class RecordV1(WireModel):
    """One thing that happened to one record. Natural key: the event's own id.

    Signed by the holder (Ed25519): `signature` in hex, over all other fields but `key_id`, and the
    event's id (services/retention/README.md, with an example). Unsigned, nothing is taken.

    Attributes:
        record_id: issued by the holder, opaque: in no other place but at the holder.
        document_class: exactly for records of contracts; decides how long they stay blocked.
        holder: the system that keeps the record, and will get the order to block or delete it.
        happened_on: date in Berlin; of what ends on a date that is known ahead, that date. Told
            again with another date, the later word counts.
    """

    record_id: ServerId
    kind: DataKind
    holder: Annotated[str, Field(pattern=HOLDER_PATTERN)]
    happened: Happening
    happened_on: date
    document_class: DocumentClass | None = None
    key_id: Annotated[str, Field(pattern=KEY_ID_PATTERN)] | None = None
    signature: Annotated[str, Field(pattern=SIGNATURE_PATTERN)] | None = None

    @model_validator(mode="after")
    def _facts_fit_the_kind(self) -> Self:
        if self.kind not in RECORD_KINDS:
            raise ValueError(f"{self.kind} is not kept as records")
        if self.happened not in FITTING[self.kind]:
            raise ValueError(f"{self.happened} does not happen to {self.kind}")
        if (self.document_class is not None) != (self.kind is DataKind.CONTRACT):
            raise ValueError("document_class belongs to contract, and to no other")
        return self
