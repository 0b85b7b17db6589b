"""The seam between call control and whatever carries telephone calls (architecture C1-C5).

Both sides exchange messages only: frozen, made of plain fields, with `to_dict` and `from_dict`, so
that the back end, today a thread, can become a process of its own. Nothing here knows SIP.

Numbers come in as what the transfer gate cleared, and in no other way (R-E2, K3): `dial` takes it,
and makes the `Dial` that the call is made of; `send` takes no `Dial`.

A call goes `Dial` -> trying(A) -> ringing(A)? -> answered(A) -> trying(B) -> ringing(B)? ->
answered(B) -> talk_started -> ending -> ended. It may jump to ending from anywhere, and every
accepted `Dial` is followed by exactly one `Ended` (C3) unless the process dies.

Persist before acknowledge: a leg's dialog state is handed out with `Answered`, and the far end gets
its acknowledgement only after the controller has said `Persisted`. So a kill at any instant leaves
legs that give up by themselves (never acknowledged: after 32 s; never answered: after the ring
limit) or legs whose state is stored, which `TearDown` takes down after the restart.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeAlias, get_type_hints
from uuid import UUID

from services.privacy.gate import Cleared

Plain: TypeAlias = Any
"""What JSON can carry: str, int, bool, None, and lists and dictionaries of these."""

DialogState: TypeAlias = Mapping[str, Plain]
"""What a new process needs to end a leg. Opaque, JSON-able; holds both numbers: personal data."""

E164 = re.compile(r"\+[1-9][0-9]{5,14}")


class Leg(StrEnum):
    """The two legs of a call: A is the visitor's own telephone, B the destination."""

    A = "a"
    B = "b"


class EndedBy(StrEnum):
    """Who ended the call."""

    A = "a"
    B = "b"
    PLATFORM = "platform"


class EndReason(StrEnum):
    """Why a call ended; `leg` of the event says which leg the reason is about, if one is."""

    HUNG_UP = "hung_up"
    """A person hung up (`ended_by` says on which leg)."""
    TALK_LIMIT = "talk_limit"
    """The reserved talk time was used up (C2)."""
    REQUESTED = "requested"
    """`HangUp` by order of the visitor."""
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    """Rang until the ring limit, or the far end said so."""
    DECLINED = "declined"
    """The person refused the call."""
    NOT_REACHABLE = "not_reachable"
    """The network knows no such number, or cannot reach it."""
    TRUNK_SILENT = "trunk_silent"
    """No answer at all from the trunk."""
    TRUNK_REFUSED = "trunk_refused"
    """The trunk refused us: credentials, capacity, an error of its own."""
    MEDIA_FAILED = "media_failed"
    """The two ends could not agree on how to carry speech."""
    LEG_LOST = "leg_lost"
    """The far end forgot the leg in mid-call (a refresh failed)."""
    NOT_PERSISTED = "not_persisted"
    """The controller did not confirm in time that a leg's state is durable."""
    BUSY_HERE_CAPACITY = "busy_here_capacity"
    """Refused before dialling: as many calls as this process may hold."""
    SHUTDOWN = "shutdown"
    """The process is stopping."""
    ORPHANED = "orphaned"
    """Torn down after a restart: the process that held the call had died."""
    FAILED = "failed"
    """A bug on our side; both legs were taken down."""


class EventKind(StrEnum):
    """Kinds of events, one class each."""

    TRYING = "trying"
    RINGING = "ringing"
    ANSWERED = "answered"
    TALK_STARTED = "talk_started"
    ENDING = "ending"
    ENDED = "ended"
    TORN_DOWN = "torn_down"


def _to_plain(value: object) -> Plain:
    match value:
        case datetime():
            return value.isoformat()
        case UUID() | StrEnum():
            return str(value)
        case _Message():
            return value.to_dict()
        case tuple() | list():
            return [_to_plain(item) for item in value]
        case Mapping():
            return {str(key): _to_plain(item) for key, item in value.items()}
        case _:
            return value


def _from_plain(kind: object, value: Plain) -> object:
    """Read one field back; `kind` is its declared type."""
    if value is None:
        return None
    for candidate in (kind, *getattr(kind, "__args__", ())):
        if candidate is datetime:
            return datetime.fromisoformat(value)
        if not isinstance(candidate, type):
            continue
        if issubclass(candidate, _Message):
            if isinstance(value, list):
                return tuple(candidate.from_dict(item) for item in value)
            return candidate.from_dict(value)
        if issubclass(candidate, UUID | StrEnum):
            return candidate(value)
    return tuple(value) if isinstance(value, list) else value


@cache
def _types_of(message: type) -> Mapping[str, object]:
    return MappingProxyType(get_type_hints(message))


@dataclass(frozen=True, kw_only=True)
class _Message:
    """Base of all messages: to plain data and back."""

    def to_dict(self) -> dict[str, Plain]:
        """Return the message as plain data for JSON or msgpack, with its class under `type`."""
        body = {f.name: _to_plain(getattr(self, f.name)) for f in fields(self)}
        return {"type": type(self).__name__} | body

    @classmethod
    def from_dict(cls, data: Mapping[str, Plain]) -> Self:
        """Read a message of this class back from what `to_dict` made.

        Raises:
            KeyError, ValueError: not a message of this class.
        """
        if data["type"] != cls.__name__:
            raise ValueError(f"not a {cls.__name__}")
        # mypy takes the instances' __hash__ for the class's
        kinds = _types_of(cls)  # type: ignore[arg-type]
        init = [f.name for f in fields(cls) if f.init]
        return cls(**{name: _from_plain(kinds[name], data[name]) for name in init})


# --- commands: controller -> back end


@dataclass(frozen=True, kw_only=True)
class Dial(_Message):
    """Call A, then B, and connect them for at most `talk_limit_ms` of talk.

    A second `Dial` with the id of a call that this back end holds is ignored.

    Raises:
        ValueError: a number is not E.164 (such text must never reach a SIP header), or a limit is
            not positive.
    """

    call_id: UUID
    number_a: str
    number_b: str
    talk_limit_ms: int
    ring_a_timeout_ms: int
    ring_b_timeout_ms: int

    def __post_init__(self) -> None:
        if not (E164.fullmatch(self.number_a) and E164.fullmatch(self.number_b)):
            raise ValueError("numbers must be E.164: + and 6 to 15 digits")
        if min(self.talk_limit_ms, self.ring_a_timeout_ms, self.ring_b_timeout_ms) <= 0:
            raise ValueError("limits must be positive")


@dataclass(frozen=True, kw_only=True)
class HangUp(_Message):
    """End a call in any phase. Ignored where the call is not (or no longer) held here."""

    call_id: UUID
    reason: EndReason = EndReason.REQUESTED


@dataclass(frozen=True, kw_only=True)
class Extend(_Message):
    """Set the call's total talk limit (not an increment), counted from the start of the talk.

    Absolute, so that it may be repeated. A limit already passed ends the call at once.
    """

    call_id: UUID
    talk_limit_ms: int


@dataclass(frozen=True, kw_only=True)
class TearDown(_Message):
    """End the legs of a call whose process died, from their stored dialog states.

    Answered by one `TornDown`. On a call that this back end holds itself it acts as `HangUp`.
    """

    call_id: UUID
    dialogs: tuple[DialogState, ...]
    reason: EndReason = EndReason.ORPHANED


@dataclass(frozen=True, kw_only=True)
class Persisted(_Message):
    """Confirm that the dialog state of a leg is durable: its acknowledgement may go out."""

    call_id: UUID
    leg: Leg


Command: TypeAlias = HangUp | Extend | TearDown | Persisted
"""What `send` takes: about calls that were dialled. None of them holds a number."""

RECIPIENT = "network-operators"
"""Whom numbers are told, in the recipient register."""
NUMBER_A, NUMBER_B = "callback_number", "destination_number"
"""What the numbers are called before the gate."""


@dataclass(frozen=True, kw_only=True)
class DialLimits:
    """How long each part of a call may last, in ms."""

    talk_limit_ms: int
    ring_a_timeout_ms: int
    ring_b_timeout_ms: int


async def dial_of(call_id: UUID, numbers: Cleared, limits: DialLimits, now: datetime) -> Dial:
    """Take the numbers, for a back end that dials at once: the one way to a `Dial` (R-E2).

    Raises:
        StaleError: cleared too long ago, or not permitted any more.
        ValueError: cleared for others or taken before, or no two numbers in E.164.
    """
    found = json.loads(await numbers.take(RECIPIENT, now))
    if found.keys() != {NUMBER_A, NUMBER_B}:
        raise ValueError("a call needs both numbers: one of them alone reaches nobody")
    return Dial(
        call_id=call_id,
        number_a=found[NUMBER_A],
        number_b=found[NUMBER_B],
        talk_limit_ms=limits.talk_limit_ms,
        ring_a_timeout_ms=limits.ring_a_timeout_ms,
        ring_b_timeout_ms=limits.ring_b_timeout_ms,
    )


# --- events: back end -> controller


@dataclass(frozen=True, kw_only=True)
class LegResult(_Message):
    """One leg's share of a call detail record.

    Attributes:
        duration_ms: from answer to end, 0 if never answered; what a carrier bills.
        sip_status: final answer to our call (200, 486, ...); None if none came.
        bye_status: far end's answer to our BYE (408 = silent); None if we sent none.
        q850_cause: cause the far end gave for hanging up or refusing, if it did.
        answered_late: the answer crossed our CANCEL; taken down at once, but billed by the carrier.
        is_down: False where the leg was answered and the far end has not confirmed its end: an
            alarm is due. A leg never answered ends by itself.
    """

    leg: Leg
    dialled_at: datetime | None = None
    ringing_at: datetime | None = None
    answered_at: datetime | None = None
    ended_at: datetime | None = None
    duration_ms: int = 0
    sip_status: int | None = None
    bye_status: int | None = None
    q850_cause: int | None = None
    answered_late: bool = False
    is_down: bool = False


@dataclass(frozen=True, kw_only=True)
class _Event(_Message):
    """What every event says.

    Attributes:
        at: wall clock, of the packet that caused the event (not of its handling).
        mono_ms: the same instant on CLOCK_MONOTONIC_RAW, for differences; never compare it with
            `time.monotonic()`, which runs at another speed, nor across a restart of the machine.
    """

    call_id: UUID
    at: datetime
    mono_ms: int


@dataclass(frozen=True, kw_only=True)
class Trying(_Event):
    """A leg is being dialled."""

    leg: Leg
    kind: EventKind = field(default=EventKind.TRYING, init=False)


@dataclass(frozen=True, kw_only=True)
class Ringing(_Event):
    """A leg rings; at most once per leg."""

    leg: Leg
    sip_status: int
    kind: EventKind = field(default=EventKind.RINGING, init=False)


@dataclass(frozen=True, kw_only=True)
class Answered(_Event):
    """A leg answered. Make `dialog` durable, then send `Persisted`, within the back end's limit."""

    leg: Leg
    dialog: DialogState
    kind: EventKind = field(default=EventKind.ANSWERED, init=False)


@dataclass(frozen=True, kw_only=True)
class TalkStarted(_Event):
    """Both legs are connected and acknowledged. `at` is B's answer: charged talk counts from it."""

    talk_limit_ms: int
    leg: Leg | None = None
    kind: EventKind = field(default=EventKind.TALK_STARTED, init=False)


@dataclass(frozen=True, kw_only=True)
class Ending(_Event):
    """The call is over for the people; the legs are coming down. `Ended` repeats all of it.

    For the page only: `Ended` is what settles (up to 33 s later, if a far end is silent).
    """

    reason: EndReason
    ended_by: EndedBy
    leg: Leg | None
    talk_ms: int
    overrun_ms: int
    kind: EventKind = field(default=EventKind.ENDING, init=False)


@dataclass(frozen=True, kw_only=True)
class Ended(_Event):
    """The call is over: the facts of its call detail record. `at` is the end of the talk.

    Attributes:
        talk_ms: from B's answer to the first BYE, sent or received; 0 if the legs never met.
        overrun_ms: talk beyond the limit then in force (C2).
        legs: results of the legs that were dialled (none where refused for capacity).
    """

    reason: EndReason
    ended_by: EndedBy
    leg: Leg | None
    talk_ms: int
    overrun_ms: int
    talk_started_at: datetime | None
    legs: tuple[LegResult, ...]
    kind: EventKind = field(default=EventKind.ENDED, init=False)


@dataclass(frozen=True, kw_only=True)
class TornDown(_Event):
    """Answer to `TearDown`: every leg's BYE was answered or given up on."""

    reason: EndReason
    legs: tuple[LegResult, ...]
    leg: Leg | None = None
    kind: EventKind = field(default=EventKind.TORN_DOWN, init=False)


Event: TypeAlias = Trying | Ringing | Answered | TalkStarted | Ending | Ended | TornDown

_COMMANDS: Mapping[str, type[Command | Dial]] = MappingProxyType(
    {kind.__name__: kind for kind in (Dial, HangUp, Extend, TearDown, Persisted)}
)
_EVENTS: Mapping[str, type[Event]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (Trying, Ringing, Answered, TalkStarted, Ending, Ended, TornDown)
    }
)


def command_from_dict(data: Mapping[str, Plain]) -> Command | Dial:
    """Read any command back from what its `to_dict` made.

    Raises:
        KeyError: no such command.
    """
    return _COMMANDS[data["type"]].from_dict(data)


def event_from_dict(data: Mapping[str, Plain]) -> Event:
    """Read any event back from what its `to_dict` made.

    Raises:
        KeyError: no such event.
    """
    return _EVENTS[data["type"]].from_dict(data)


class BackendFailedError(Exception):
    """The back end carries calls no more: exit; the next process tears down what it held."""


class CallBackend(Protocol):
    """Carries calls. One consumer of `events`; `send` may be called from any thread."""

    async def start(self) -> None:
        """Take the back end into service.

        Raises:
            OSError: its address is taken.
        """

    async def stop(self, drain_s: float) -> None:
        """Refuse new calls, let calls end by themselves for `drain_s` seconds, end the rest.

        Events flow on until it returns (keep consuming: the legs' states still want `Persisted`);
        then `events` ends.
        """

    async def dial(self, call_id: UUID, numbers: Cleared, limits: DialLimits) -> None:
        """Take the numbers and dial them; what comes of it comes as events.

        Raises:
            ValueError: see `dial_of`; nothing was dialled, and no event follows.
        """

    def send(self, command: Command) -> None:
        """Hand over a command; never blocks. Its outcome comes as events.

        Raises:
            TypeError: it would dial.
        """

    def events(self) -> AsyncIterator[Event]:
        """Yield events in order until the back end stops.

        Raises:
            BackendFailedError: the back end died; all its calls are in the state last persisted.
        """
