"""Rules of calls: which numbers are dialled, and what a call may become next.

Pure. The number policy is a first, strict one: German geographic and mobile numbers and nothing
else (C5); every refusal has a word, 110 and 112 the advice to dial them directly.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

import phonenumbers

UUID7_TIMESTAMP_SHIFT = 80
LAST_MILLISECOND = 253_402_300_799_999
"""Of the year 9999; an id may claim a later one."""
COUNTRY_CODE = "49"
COUNTRY = "DE"
"""Where every number that may be dialled is (C5); ISO 3166-1."""
_TYPED = re.compile(r"\+?[0-9 ()/.\-]+")
_NATIONAL_DIGITS_MAX = 13
"""E.164 has 15 digits, country code included; the library takes longer ones for assigned."""
_MOBILE = re.compile(r"(15[0-9]{9}|16[023][0-9]{7,8}|17[0-9]{8,9})")
_EMERGENCY = frozenset({"110", "112"})


class NumberReason(StrEnum):
    """Why a number is not dialled."""

    MALFORMED = "number_malformed"
    EMERGENCY = "number_emergency_dial_directly"
    FOREIGN = "number_foreign"
    WITHOUT_AREA_CODE = "number_without_area_code"
    SHORT_CODE = "number_short_code"
    PREMIUM = "number_premium"
    SHARED_COST = "number_shared_cost"
    TOLL_FREE = "number_toll_free"
    SERVICE = "number_service"
    CALL_BY_CALL = "number_call_by_call"
    NOT_ASSIGNED = "number_not_assigned"


class RefusalReason(StrEnum):
    """Why a call is refused besides its numbers and its credit."""

    NUMBERS_EQUAL = "numbers_equal"
    CALL_IN_PROGRESS = "call_in_progress"
    REQUESTED = "requested"
    """The visitor hung up before anything was done."""
    REQUEST_TOO_OLD = "request_too_old"
    """Nobody waits for it any more: a service was away; a telephone must not ring hours later."""


_PREFIXES: tuple[tuple[str, NumberReason], ...] = (
    # longest first where they overlap; national significant numbers, without the leading 0
    ("116", NumberReason.SHORT_CODE),  # harmonised services of social value
    ("115", NumberReason.SHORT_CODE),  # public administration
    ("118", NumberReason.PREMIUM),  # directory enquiries
    ("137", NumberReason.PREMIUM),  # mass traffic
    ("138", NumberReason.PREMIUM),
    ("180", NumberReason.SHARED_COST),
    ("181", NumberReason.SERVICE),  # international virtual private networks
    ("700", NumberReason.SERVICE),  # personal numbers
    ("800", NumberReason.TOLL_FREE),
    ("900", NumberReason.PREMIUM),
    ("12", NumberReason.SERVICE),  # innovative services
    ("18", NumberReason.SERVICE),  # virtual private networks
    ("19", NumberReason.SERVICE),  # online services, and 19222
    ("31", NumberReason.SERVICE),  # test numbers
    ("32", NumberReason.SERVICE),  # national subscriber numbers, no place
    ("10", NumberReason.CALL_BY_CALL),
)
"""German ranges that are never dialled (numbering plan of the Bundesnetzagentur)."""


@dataclass(frozen=True)
class Accepted:
    """A number that may be dialled, in E.164."""

    e164: str


@dataclass(frozen=True)
class RefusedNumber:
    """A number that is not dialled, and why."""

    reason: NumberReason


def check_number(typed: str) -> Accepted | RefusedNumber:
    """Judge a number as a visitor typed it (C5).

    Own prefix data come first, because the library takes 032 for a fixed line; it then says
    whether area code and length exist.
    """
    text = typed.strip().replace("(0)", "")
    if not text.isascii() or not _TYPED.fullmatch(text):
        return RefusedNumber(NumberReason.MALFORMED)
    digits = re.sub(r"[^0-9]", "", text)
    national = _national(text, digits)
    if isinstance(national, NumberReason):
        return RefusedNumber(national)
    if national in _EMERGENCY:
        return RefusedNumber(NumberReason.EMERGENCY)
    for prefix, reason in _PREFIXES:
        if national.startswith(prefix):
            return RefusedNumber(reason)
    if not _is_assigned(national):
        return RefusedNumber(NumberReason.NOT_ASSIGNED)
    return Accepted(f"+{COUNTRY_CODE}{national}")


def _national(text: str, digits: str) -> str | NumberReason:
    """Return the national significant number, or why there is none."""
    if digits in _EMERGENCY:
        return NumberReason.EMERGENCY
    if text.startswith("+") or digits.startswith("00"):
        international = digits if text.startswith("+") else digits[2:]
        if not international.startswith(COUNTRY_CODE):
            return NumberReason.FOREIGN
        return international[len(COUNTRY_CODE) :]
    if not digits.startswith("0"):
        is_short = digits.startswith(("11", "19"))
        return NumberReason.SHORT_CODE if is_short else NumberReason.WITHOUT_AREA_CODE
    return digits[1:]


def _is_assigned(national: str) -> bool:
    if len(national) > _NATIONAL_DIGITS_MAX:
        return False
    if national.startswith("1"):
        return _MOBILE.fullmatch(national) is not None
    number = phonenumbers.PhoneNumber(country_code=49, national_number=int(national or 0))
    if str(number.national_number) != national:
        return False  # a second leading zero
    kind = phonenumbers.number_type(number)
    return kind == phonenumbers.PhoneNumberType.FIXED_LINE


# --------------------------------------------------------------------------- calls


class State(StrEnum):
    """Where a call stands; the order is that of a good call."""

    REQUESTED = "requested"
    REFUSED = "refused"
    RESERVED = "reserved"
    DIALLING = "dialling"
    TALKING = "talking"
    ENDING = "ending"
    ENDED = "ended"


HELD = frozenset({State.DIALLING, State.TALKING, State.ENDING})
"""States in which a process holds the call's legs."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A visitor asks for a call; numbers as typed."""

    call_id: UUID
    visitor_id: UUID
    callback_number: str
    destination_number: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class AcceptedRequest:
    """Both numbers may be dialled; credit is asked for next (C1)."""

    callback_number: str
    destination_number: str


@dataclass(frozen=True, kw_only=True)
class RefusedRequest:
    """The call will not be made; `reason` says why."""

    reason: NumberReason | RefusalReason


RequestDecision: TypeAlias = AcceptedRequest | RefusedRequest


def is_too_old(requested_at: datetime, now: datetime, age_max: timedelta) -> bool:
    """Whether a request has waited so long that its call must not be dialled any more."""
    return now - requested_at > age_max


def decide_request(
    request: Request, *, has_active_call: bool, is_old: bool = False
) -> RequestDecision:
    """Judge a call request: numbers first, then its age, then one call at a time per visitor."""
    callback = check_number(request.callback_number)
    destination = check_number(request.destination_number)
    for checked in (callback, destination):
        # an emergency goes before every other reason: that person needs the advice
        if isinstance(checked, RefusedNumber) and checked.reason is NumberReason.EMERGENCY:
            return RefusedRequest(reason=checked.reason)
    if isinstance(callback, RefusedNumber):
        return RefusedRequest(reason=callback.reason)
    if isinstance(destination, RefusedNumber):
        return RefusedRequest(reason=destination.reason)
    if callback == destination:
        return RefusedRequest(reason=RefusalReason.NUMBERS_EQUAL)
    if is_old or has_active_call:
        reason = RefusalReason.REQUEST_TOO_OLD if is_old else RefusalReason.CALL_IN_PROGRESS
        return RefusedRequest(reason=reason)
    return AcceptedRequest(callback_number=callback.e164, destination_number=destination.e164)


@dataclass(frozen=True, kw_only=True)
class Talk:
    """How long a call talked, and how far past its limit (C2), whole milliseconds."""

    talk_ms: int
    overrun_ms: int


def talk_between(connected_at: datetime | None, ended_at: datetime, reserved_ms: int) -> Talk:
    """Return the talk of a call that nobody measured: its process died (C3)."""
    if connected_at is None:
        return Talk(talk_ms=0, overrun_ms=0)
    talk_ms = max(0, round((ended_at - connected_at).total_seconds() * 1000))
    return Talk(talk_ms=talk_ms, overrun_ms=max(0, talk_ms - reserved_ms))


def lease_ms(*, ring_a_s: int, ring_b_s: int, talk_max_ms: int, outage_margin_s: int) -> int:
    """Return the life of a reservation: ring limits, the talk, and the longest outage."""
    return (ring_a_s + ring_b_s + outage_margin_s) * 1000 + talk_max_ms


def day_of(server_id: UUID) -> date:
    """Return the UTC day in which a UUIDv7 was made; for a made-up id a day that no table has."""
    return made_at(server_id).date()


def made_at(server_id: UUID) -> datetime:
    """Return the instant of a UUIDv7, whole seconds; the end of the year 9999 for a later claim."""
    milliseconds = min(server_id.int >> UUID7_TIMESTAMP_SHIFT, LAST_MILLISECOND)
    return datetime.fromtimestamp(milliseconds // 1000, UTC)
