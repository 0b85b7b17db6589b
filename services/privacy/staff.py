"""The register of staff: who may do what with persons' data, and by which key they show it (R-C5).

A JSON file outside the code: staff ids (never names), public keys, roles, and the dates of the duty
of confidence (Verpflichtung auf Vertraulichkeit). Dates are days in Germany; a day `valid_until` or
`until` is the first on which it holds no longer. What two persons decide is signed by each with
their own key, so that one person is never two (R-D3, R-C4; ADR 0035).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, model_validator

from services.privacy.access_log import Reason
from services.privacy.calendar import berlin_date
from services.privacy.chain import canonical
from services.privacy.dated import Dated, Entry, RegisterError, read_register

BY_SCHEDULE = "schedule"
"""Stands for the author of what a service does by itself: nobody, and nobody's signature."""
_KEY_BYTES = 32
_KEY_ID_DIGITS = 16


class StaffError(ValueError):
    """The register or a key is wrong; the text says in one sentence where and why."""


class Duty(StrEnum):
    """What somebody is there for: the roles of the register. Closed; each opens its commands only.

    Nobody needs all of them, and who has several still is one person.
    """

    PERSON_REQUESTS = "person_requests"
    """A person's rights: find for them, erase, restrict, what was agreed to, withdrawals."""
    HOLDS = "holds"
    """Legal holds and reviews, and looking for a claim's sake (R-D3)."""
    AUTHORITIES = "authorities"
    """What authorities are told (R-C4)."""
    LEGAL_DUTY = "legal_duty"
    """Reading what is blocked (R-D6); the database asks for a login of its own besides."""
    EVIDENCE = "evidence"
    """Waiting no longer for an answer (D3), and taking over old proofs (Art. 7(1) GDPR)."""
    FAULTS = "faults"
    """Looking because something broke or somebody attacks."""


DUTY_OF: Mapping[Reason, Duty] = {
    Reason.PERSON_REQUEST: Duty.PERSON_REQUESTS,
    Reason.AUTHORITY_REQUEST: Duty.AUTHORITIES,
    Reason.LEGAL_CLAIM: Duty.HOLDS,
    Reason.SECURITY_INCIDENT: Duty.FAULTS,
    Reason.FAULT: Duty.FAULTS,
    Reason.ACCOUNTABILITY: Duty.EVIDENCE,
}
"""Whose business a reason to look is."""


class Refusal(StrEnum):
    """Why somebody is not taken for who they say they are, or may not do it. Closed."""

    IDENTITY_UNKNOWN = "identity_unknown"
    """The register has no such staff id."""
    IDENTITY_UNPROVEN = "identity_unproven"
    """There is no key, or it is another's."""
    NOT_BOUND = "not_bound"
    """Not yet bound to confidence."""
    LEFT = "left"
    KEY_EXPIRED = "key_expired"
    """Theirs, and not valid today."""
    ROLE_MISSING = "role_missing"


# ---------------------------------------------------------------------- the register


class StaffKey(Dated):
    """A public Ed25519 key and the days on which it is valid."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Colleague(Entry):
    """One person of the staff.

    Attributes:
        bound_since: first day of the duty of confidence.
        until: first day on which they are no longer with us; None = not known to leave.
    """

    staff_id: Annotated[str, Field(pattern=r"^staff-[1-9][0-9]{0,5}$")]
    bound_since: date
    until: date | None = None
    roles: frozenset[Duty]
    keys: Annotated[tuple[StaffKey, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.until is not None and self.until <= self.bound_since:
            raise ValueError("leaves before they are bound")
        return self

    def is_with_us(self, day: date) -> bool:
        """Whether they are bound, and not gone."""
        return self.bound_since <= day and (self.until is None or day < self.until)

    def key(self, key_id: str) -> StaffKey | None:
        """Return one of their keys."""
        return next((one for one in self.keys if key_id_of(one.public_key) == key_id), None)


class StaffRegister(Entry):
    """Everybody, those who have left too: what they signed is verified by it."""

    staff: Annotated[tuple[Colleague, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        ids = [one.staff_id for one in self.staff]
        if len(set(ids)) < len(ids):
            raise ValueError("a staff id stands twice")
        keys = [key.public_key for one in self.staff for key in one.keys]
        if len(set(keys)) < len(keys):
            raise ValueError("a public key stands twice: one person would be two")
        return self

    @cached_property
    def by_id(self) -> Mapping[str, Colleague]:
        """Return everybody by staff id."""
        return {one.staff_id: one for one in self.staff}

    @cached_property
    def owner_of(self) -> Mapping[str, Colleague]:
        """Return whose a key is, by key id."""
        return {key_id_of(key.public_key): one for one in self.staff for key in one.keys}


def load(path: Path) -> StaffRegister:
    """Read a register.

    Raises:
        StaffError: it cannot be read, or is wrong; what it says is not repeated.
    """
    try:
        return read_register(path, StaffRegister, "staff")
    except RegisterError as error:
        raise StaffError(str(error)) from None


# ---------------------------------------------------------------------- who somebody is


def key_id_of(public_key: str) -> str:
    """Return a public key's id: it follows from the key, so that nobody chooses another's."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:_KEY_ID_DIGITS]


def judge(
    register: StaffRegister, public_key: str, staff_id: str, duty: Duty, now: datetime
) -> Refusal | None:
    """Say why somebody with a key may not act as a staff id today, or that they may.

    Args:
        public_key: of the private one that they hold.
    """
    day = berlin_date(now)
    found = register.by_id.get(staff_id)
    if found is None:
        return Refusal.IDENTITY_UNKNOWN
    key = found.key(key_id_of(public_key))
    if key is None:
        return Refusal.IDENTITY_UNPROVEN
    if day < found.bound_since:
        return Refusal.NOT_BOUND
    if not found.is_with_us(day):
        return Refusal.LEFT
    if not key.covers(day):
        return Refusal.KEY_EXPIRED
    return None if duty in found.roles else Refusal.ROLE_MISSING


# ---------------------------------------------------------------------- what they sign


class Signed(NamedTuple):
    """Key id and signature (64 bytes); both None of what nobody signs."""

    key_id: str | None
    signature: bytes | None


Signer = Callable[[str, str, Mapping[str, Any]], Signed]
"""Signs a row: (whose act, what kind of row, its content) -> signature."""


class PrivateKey:
    """What a person of the staff holds."""

    def __init__(self, seed: str) -> None:
        """Read 64 hex digits.

        Raises:
            StaffError: they are none.
        """
        try:
            raw = bytes.fromhex(seed)
        except ValueError:
            raw = b""
        if len(raw) != _KEY_BYTES:
            raise StaffError("a key file holds 64 hex digits")
        self._key = Ed25519PrivateKey.from_private_bytes(raw)

    @property
    def public_key(self) -> str:
        """Return the public part, as the register has it."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, what: str, content: Mapping[str, Any]) -> Signed:
        """Sign one row of a kind."""
        return Signed(key_id_of(self.public_key), self._key.sign(_message(what, content)))


@dataclass(frozen=True)
class Identity:
    """Somebody who has shown who they are."""

    staff_id: str
    key: PrivateKey

    def sign(self, staff_id: str, what: str, content: Mapping[str, Any]) -> Signed:
        """Sign an act of theirs; it is a `Signer`.

        Raises:
            StaffError: it is another's.
        """
        if staff_id != self.staff_id:
            raise StaffError("nobody signs for another")
        return self.key.sign(what, content)


def sign_nothing(staff_id: str, _what: str, _content: Mapping[str, Any]) -> Signed:
    """Leave unsigned what a service does by itself; it is a `Signer`.

    Raises:
        StaffError: it is a person's act, which they sign.
    """
    if staff_id != BY_SCHEDULE:
        raise StaffError("a person's act is signed by that person")
    return Signed(None, None)


def is_signed(public_key: str, signature: bytes, what: str, content: Mapping[str, Any]) -> bool:
    """Whether a signature of a row is by a key."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    try:
        key.verify(signature, _message(what, content))
    except InvalidSignature:
        return False
    return True


def _message(what: str, content: Mapping[str, Any]) -> bytes:
    return b"staff act\0" + what.encode() + b"\0" + canonical(content)
