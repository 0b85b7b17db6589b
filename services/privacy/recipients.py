"""The recipient register (R-E1): who may get what, for what, and on which ground; dated data.

`recipients.json` is shipped with the code. A change of it is a new version; what a verdict names
(`Register.version`) holds the file's digest too, so that nobody changes one without the other.
Dates are days in Germany. A day `valid_until` is the first on which an entry is no longer valid.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from schemas.consent import Purpose as ConsentPurpose
from services.privacy.calendar import berlin_date
from services.privacy.dated import Dated as _Dated
from services.privacy.dated import Entry as _Entry
from services.privacy.declare import LegalBasis, Purpose

FILE = Path(__file__).with_name("recipients.json")


class RecipientsError(ValueError):
    """The register's data are wrong; the text says in one sentence where and why."""


class RecipientKind(StrEnum):
    """What a recipient is to us."""

    AD_PARTNER = "ad_partner"
    TAG_LOADER = "tag_loader"
    AD_EXCHANGE = "ad_exchange"
    NETWORK_OPERATOR = "network_operator"
    PROCESSOR = "processor"
    AUTHORITY = "authority"


Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
"""ISO 3166-1 alpha-2."""
FieldPath = Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")]
"""Dotted path of a value in a payload, as the gate reads it."""


class Adequacy(_Dated):
    """A decision that a country's law protects enough (Angemessenheitsbeschluss)."""

    country: Country
    decision: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    certified_only: bool
    """Only recipients on the country's list have it."""


class ClauseDecision(_Dated):
    """A decision with standard contractual clauses (Standardvertragsklauseln), while in force."""

    decision: Annotated[str, Field(min_length=1)]


class Clauses(_Dated):
    """Standard clauses that a recipient has signed; valid from that day."""

    decision: Annotated[str, Field(min_length=1)]


class Certificate(_Dated):
    """A recipient's place on the list that an adequacy decision asks for."""

    decision: Annotated[str, Field(min_length=1)]


def _is_sorted(fields: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(fields)) < len(fields):
        raise ValueError("names a field twice")
    return tuple(sorted(fields))


class Permission(_Dated):
    """What a recipient may get for one purpose.

    Attributes:
        consent: which purpose of the consent catalogue must be in force; set exactly where the
            legal basis is consent.
        is_contract_with_person: a third country needs no other safeguard, because the transfer is
            what the person asked for, a call to that country (Art. 49(1)(b) GDPR).
    """

    purpose: Purpose
    basis: LegalBasis
    consent: ConsentPurpose | None
    is_contract_with_person: bool
    fields: Annotated[tuple[FieldPath, ...], Field(min_length=1), AfterValidator(_is_sorted)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.basis is LegalBasis.CONSENT) != (self.consent is not None):
            raise ValueError("names a purpose of consent exactly where its basis is consent")
        if self.consent is ConsentPurpose.NECESSARY:
            raise ValueError("rests on a consent that nobody can refuse")
        if self.is_contract_with_person and self.basis is not LegalBasis.CONTRACT:
            raise ValueError("is a contract with the person whose basis is no contract")
        return self

    @cached_property
    def field_set(self) -> frozenset[str]:
        """The fields, for cutting."""
        return frozenset(self.fields)


class Recipient(_Dated):
    """One recipient for a time; another entry of the same id may follow it.

    Attributes:
        country: None where it is another one each time (a network): the question says it then.
        contract_on: of the contract on processing (Auftragsverarbeitung, R-C5); processors only.
        certified: its places on lists of adequacy decisions, each with its time.
        ground: where it is known from.
    """

    recipient_id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,63}$")]
    name: Annotated[str, Field(min_length=1)]
    kind: RecipientKind
    country: Country | None
    contract_on: date | None
    clauses: tuple[Clauses, ...]
    certified: tuple[Certificate, ...]
    permissions: Annotated[tuple[Permission, ...], Field(min_length=1)]
    is_controller_confirmed: bool
    ground: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.contract_on is not None and self.kind is not RecipientKind.PROCESSOR:
            raise ValueError("has a contract on processing and is no processor")
        for purpose in {permission.purpose for permission in self.permissions}:
            _refuse_overlap(p for p in self.permissions if p.purpose is purpose)
        return self

    def permission(self, purpose: Purpose, day: date) -> Permission | None:
        """Return what it may get for a purpose on a day."""
        found = (p for p in self.permissions if p.purpose is purpose and p.covers(day))
        return next(found, None)


def _refuse_overlap(entries: Iterable[_Dated]) -> None:
    ordered = sorted(entries, key=lambda entry: entry.valid_from)
    for earlier, later in pairwise(ordered):
        if earlier.valid_until is None or earlier.valid_until > later.valid_from:
            raise ValueError("has two entries for the same day")


class Register(_Entry):
    """All recipients with what the law says of their countries."""

    version: Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}(\+[0-9a-f]{12})?$")]
    eea: frozenset[Country]
    adequacy: tuple[Adequacy, ...]
    clause_decisions: tuple[ClauseDecision, ...]
    recipients: tuple[Recipient, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for entries in self.by_id.values():
            _refuse_overlap(entries)
        clauses = {entry.decision for entry in self.clause_decisions}
        lists = {entry.decision for entry in self.adequacy if entry.certified_only}
        for recipient in self.recipients:
            if not {entry.decision for entry in recipient.clauses} <= clauses:
                raise ValueError(f"{recipient.recipient_id} has clauses of an unknown decision")
            if not {entry.decision for entry in recipient.certified} <= lists:
                raise ValueError(f"{recipient.recipient_id} is on a list of an unknown decision")
        return self

    @cached_property
    def by_id(self) -> Mapping[str, tuple[Recipient, ...]]:
        """Id -> its entries, of whatever time."""
        found: dict[str, tuple[Recipient, ...]] = {}
        for recipient in self.recipients:
            known = found.get(recipient.recipient_id, ())
            found[recipient.recipient_id] = (*known, recipient)
        return found

    @staticmethod
    def day_of(instant: datetime) -> date:
        """Return the day by which an instant (aware) is judged."""
        return berlin_date(instant)

    def recipient(self, recipient_id: str, day: date) -> Recipient | None:
        """Return who that was on a day."""
        return next((r for r in self.by_id.get(recipient_id, ()) if r.covers(day)), None)

    def is_adequate(self, recipient: Recipient, country: str, day: date) -> bool:
        """Whether an adequacy decision covered a recipient in a country on a day."""
        listed = {entry.decision for entry in recipient.certified if entry.covers(day)}
        return any(
            not entry.certified_only or entry.decision in listed
            for entry in self.adequacy
            if entry.country == country and entry.covers(day)
        )

    def has_clauses(self, recipient: Recipient, day: date) -> bool:
        """Whether standard clauses were signed, and their decision in force, on a day."""
        in_force = {entry.decision for entry in self.clause_decisions if entry.covers(day)}
        return any(entry.covers(day) and entry.decision in in_force for entry in recipient.clauses)


def load(path: Path = FILE) -> Register:
    """Read the register; its version gets the first digits of the file's SHA-256.

    Raises:
        RecipientsError: in one sentence.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipientsError(f"the recipient register cannot be read: {error.strerror}") from error
    return parse(content)


def parse(content: bytes) -> Register:
    """Read the register from its JSON; see `load`."""
    try:
        found = Register.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        why = first["msg"].removeprefix("Value error, ")
        raise RecipientsError(f"the recipient register is wrong at {place}: {why}") from None
    digest = hashlib.sha256(content).hexdigest()[:12]
    return found.model_copy(update={"version": f"{found.version}+{digest}"})
