"""The register of holders: systems outside that keep records, and the keys that show it (R-C5).

A JSON file outside the code: which kinds a system keeps, since when, by which written contract
(Art. 28 GDPR) where it is a processor's, and its public keys. All of them write to Kafka as one
user, so that Kafka's rights do not say who told of a record, or answered; a signature does, and
goes on doing so where it is shown to somebody else (ADR 0036).
"""

from collections.abc import Mapping
from datetime import date, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self
from uuid import UUID

from pydantic import Field, model_validator

from schemas.record import RecordV1
from schemas.retention import HOLDER_PATTERN, RECORD_KINDS, DataKind, RetentionReceiptV1
from services.chassis.declaration import SERVICES
from services.privacy import receipts
from services.privacy.calendar import berlin_date
from services.privacy.chain import VerifyKeys, canonical
from services.privacy.dated import Dated, Entry, read_register
from services.privacy.staff import key_id_of


class Refusal(StrEnum):
    """Why what a holder says is not taken. Closed."""

    HOLDER_UNKNOWN = "holder_unknown"
    """The register has none of that name."""
    HOLDER_GONE = "holder_gone"
    """It keeps nothing for us yet, or any more."""
    KIND_NOT_KEPT = "kind_not_kept"
    """The register does not say that it keeps such data."""
    NOT_SIGNED = "not_signed"
    KEY_UNKNOWN = "key_unknown"
    """Not one of its keys: another's, or nobody's."""
    KEY_NOT_VALID = "key_not_valid"
    """Its key, and not valid today."""
    SIGNATURE_FORGED = "signature_forged"


class HolderKey(Dated):
    """A public Ed25519 key and the days (Berlin) on which it is valid."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Holder(Entry):
    """One system outside.

    Attributes:
        since: first day on which it keeps records for us.
        until: first day on which it tells of none any more; what it keeps it must still answer for.
        contract_on: date of the written contract with whoever runs it; None = we run it ourselves.
    """

    name: Annotated[str, Field(pattern=HOLDER_PATTERN)]
    since: date
    until: date | None = None
    contract_on: date | None
    kinds: Annotated[frozenset[DataKind], Field(min_length=1)]
    keys: Annotated[tuple[HolderKey, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.name in SERVICES:
            raise ValueError("a service of ours is no system outside")
        if not self.kinds <= RECORD_KINDS:
            raise ValueError("kinds that are not kept as records")
        if self.until is not None and self.until <= self.since:
            raise ValueError("ends before it begins")
        if self.contract_on is not None and self.contract_on > self.since:
            raise ValueError("keeps records before there is a contract")
        return self

    def key(self, key_id: str) -> HolderKey | None:
        """Return one of its keys."""
        return next((one for one in self.keys if key_id_of(one.public_key) == key_id), None)


class HolderRegister(Entry):
    """Every system, also those that have ended: they may still have to answer."""

    holders: tuple[Holder, ...]

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        names = [one.name for one in self.holders]
        if len(set(names)) < len(names):
            raise ValueError("a name stands twice")
        keys = [key.public_key for one in self.holders for key in one.keys]
        if len(set(keys)) < len(keys):
            raise ValueError("a public key stands twice: one system would be two")
        return self

    @cached_property
    def by_name(self) -> Mapping[str, Holder]:
        """Return all by name."""
        return {one.name: one for one in self.holders}


def load(path: Path | None) -> HolderRegister:
    """Read a register; without a path there is no system outside, and nothing is taken of any.

    Raises:
        RegisterError: it cannot be read, or is wrong.
    """
    if path is None:
        return HolderRegister(holders=())
    return read_register(path, HolderRegister, "holders")


def record_message(event: RecordV1, event_id: UUID) -> bytes:
    """Return what a holder signs of a record; with the event's id, so that nobody tells it again.

    What is null is left out: a field that comes later is no part of what was signed before.
    """
    said = event.model_dump(mode="json", exclude={"key_id", "signature"}, exclude_none=True)
    return b"record\0" + canonical(said | {"event_id": str(event_id)})


def judge_record(
    register: HolderRegister, event: RecordV1, event_id: UUID, now: datetime
) -> Refusal | None:
    """Say why what was told of a record is not taken, or that it is."""
    holder, day = register.by_name.get(event.holder), berlin_date(now)
    if holder is None:
        return Refusal.HOLDER_UNKNOWN
    if day < holder.since or (holder.until is not None and day >= holder.until):
        return Refusal.HOLDER_GONE
    if event.kind not in holder.kinds:
        return Refusal.KIND_NOT_KEPT
    text = record_message(event, event_id)
    return _judge_signature(holder, event.key_id, event.signature, text, day)


def judge_receipt(
    register: HolderRegister, receipt: RetentionReceiptV1, now: datetime
) -> Refusal | None:
    """Say why a system's answer is not taken, or that it is; one that has ended may answer."""
    holder = register.by_name.get(receipt.service)
    if holder is None:
        return Refusal.HOLDER_UNKNOWN
    text = receipts.message(receipt)
    return _judge_signature(holder, receipt.key_id, receipt.signature, text, berlin_date(now))


def _judge_signature(
    holder: Holder, key_id: str | None, signature: str | None, text: bytes, day: date
) -> Refusal | None:
    if key_id is None or signature is None:
        return Refusal.NOT_SIGNED
    key = holder.key(key_id)
    if key is None:
        return Refusal.KEY_UNKNOWN
    if not key.covers(day):
        return Refusal.KEY_NOT_VALID
    is_theirs = VerifyKeys({key_id: key.public_key}).is_valid(
        key_id, bytes.fromhex(signature), text
    )
    return None if is_theirs else Refusal.SIGNATURE_FORGED
