"""The ledger's rules: what an ad event earns, what a call may reserve, what it is charged.

Pure: instants come in, postings come out. Every change of credit is a `Posting` from one account
to another; a lot's columns are nothing but the sum of its postings (L1, L4).

    issued ──grant──> available ──reserve──> reserved ──spend──> spent
                        │  ^                    │
                        │  └──────release───────┘
                        ├──expire──> expired
                        └──claw back──> clawed back
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple
from uuid import UUID

LOT_LIFE_DAYS = 6
"""From the start of the lot's UTC day: credit ends before its day's partition must go (R-D5)."""
RATE_FULL_PERMILLE = 1000
RESERVE_MIN_MS = 1000
"""Less than a second is no call."""
UUID7_TIMESTAMP_SHIFT = 80
LAST_MILLISECOND = 253_402_300_799_999
"""Of the year 9999; an id may claim a later one."""


class Kind(StrEnum):
    """What a visitor did with an ad (R-A2)."""

    PAGE_HIT = "page_hit"
    START = "start"
    FIRST_QUARTILE = "first_quartile"
    MIDPOINT = "midpoint"
    THIRD_QUARTILE = "third_quartile"
    COMPLETE = "complete"
    CLICK = "click"
    CONVERSION = "conversion"


PREDECESSOR: Mapping[Kind, Kind] = {
    Kind.FIRST_QUARTILE: Kind.START,
    Kind.MIDPOINT: Kind.FIRST_QUARTILE,
    Kind.THIRD_QUARTILE: Kind.MIDPOINT,
    Kind.COMPLETE: Kind.THIRD_QUARTILE,
    Kind.CLICK: Kind.START,
    Kind.CONVERSION: Kind.START,
}
"""What must have happened before in the same view."""

QUARTERS: Mapping[Kind, int] = {
    Kind.FIRST_QUARTILE: 1,
    Kind.MIDPOINT: 2,
    Kind.THIRD_QUARTILE: 3,
    Kind.COMPLETE: 4,
}
"""How many quarters of the video have been watched."""
_NOTHING_SEEN: frozenset[Kind] = frozenset()


class Account(StrEnum):
    """Accounts: two of the visitor, the others the platform's, per day."""

    ISSUED = "issued"
    AVAILABLE = "available"
    RESERVED = "reserved"
    SPENT = "spent"
    EXPIRED = "expired"
    CLAWED_BACK = "clawed_back"


class Operation(StrEnum):
    """Why credit moved."""

    GRANT = "grant"
    RESERVE = "reserve"
    RELEASE = "release"
    SPEND = "spend"
    EXPIRE = "expire"
    CLAW_BACK = "claw_back"


ACCOUNTS_OF: Mapping[Operation, tuple[Account, Account]] = {
    Operation.GRANT: (Account.ISSUED, Account.AVAILABLE),
    Operation.RESERVE: (Account.AVAILABLE, Account.RESERVED),
    Operation.RELEASE: (Account.RESERVED, Account.AVAILABLE),
    Operation.SPEND: (Account.RESERVED, Account.SPENT),
    Operation.EXPIRE: (Account.AVAILABLE, Account.EXPIRED),
    Operation.CLAW_BACK: (Account.AVAILABLE, Account.CLAWED_BACK),
}
"""(debited, credited) account of each operation."""


class RefusalReason(StrEnum):
    """Why an ad event earns nothing and is not recorded, or a reservation is not made."""

    TICKET_MALFORMED = "ticket_malformed"
    TICKET_SIGNATURE_INVALID = "ticket_signature_invalid"
    TICKET_OF_OTHER_VISITOR = "ticket_of_other_visitor"
    TICKET_EXPIRED = "ticket_expired"
    TICKET_NOT_YET_ISSUED = "ticket_not_yet_issued"
    OUT_OF_ORDER = "out_of_order"
    TOO_FAST = "too_fast"
    PARALLEL_VIEW = "parallel_view"
    POSITION_MISMATCH = "position_mismatch"
    NO_TARIFF = "no_tariff"
    NO_CREDIT = "no_credit"


class LotKey(NamedTuple):
    """A lot is what one view ticket earned; its day is the ticket's (UTC)."""

    day: date
    ticket_id: UUID


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A verified view ticket's claims."""

    ticket_id: UUID
    visitor_id: UUID
    duration_ms: int
    issued_at: datetime
    expires_at: datetime

    @cached_property
    def key(self) -> LotKey:
        """Key of the lot that the ticket may fill."""
        return LotKey(self.issued_at.astimezone(UTC).date(), self.ticket_id)


class AdEvent(NamedTuple):
    """One step of a view; `at` is the gateway's instant, `position_ms` the browser's claim."""

    visitor_id: UUID
    ticket: Ticket
    kind: Kind
    position_ms: int
    at: datetime


@dataclass(frozen=True, kw_only=True)
class TariffRule:
    """What one kind of event earns: a share of the ad's length and a flat amount."""

    credit_permille: int
    credit_flat_ms: int


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """Rules in force from an instant on (R-A3).

    Attributes:
        daily_cap_ms: the most that a visitor earns in one UTC day of tickets.
        tolerance_ms: how much earlier than the video allows an event may arrive.
    """

    version: str
    valid_from: datetime
    daily_cap_ms: int
    tolerance_ms: int
    rules: Mapping[Kind, TariffRule]

    @cached_property
    def tolerance(self) -> timedelta:
        """The tolerance as a length of time."""
        return timedelta(milliseconds=self.tolerance_ms)


@dataclass(frozen=True, kw_only=True)
class Lot:
    """Credit earned with one ticket, whole milliseconds of talk (L4)."""

    key: LotKey
    visitor_id: UUID
    expires_at: datetime
    granted_ms: int = 0
    available_ms: int = 0
    reserved_ms: int = 0
    spent_ms: int = 0
    expired_ms: int = 0
    clawed_back_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class Posting:
    """One movement between two accounts of one lot's day; balanced by construction (L1)."""

    lot: LotKey
    visitor_id: UUID
    operation: Operation
    amount_ms: int
    at: datetime
    reservation_id: UUID | None = None
    kind: Kind | None = None
    tariff_version: str | None = None

    def __post_init__(self) -> None:
        assert self.amount_ms > 0, "a posting moves something"


class Recorded(NamedTuple):
    """The event counts as consumption.

    Attributes:
        credit_ms: may be 0 (by tariff, or capped).
        watched_until: how far the visitor's watching time is used with this event.
    """

    event: AdEvent
    credit_ms: int
    tariff_version: str
    capped: bool
    watched_until: datetime


class Duplicate(NamedTuple):
    """The natural key (ticket, kind) was there already (L3)."""

    event: AdEvent


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The business says no."""

    reason: RefusalReason


@dataclass(kw_only=True)
class Watch:
    """How far a visitor's own time has been used for watching, and what each day has earned.

    `watched_until` moves by the length watched and may never pass the clock: whoever plays two
    ads at once earns for one (no more than the speed of the video).
    """

    watched_until: datetime
    credited_ms: dict[date, int]


@dataclass(kw_only=True)
class ViewState:
    """All that a batch of ad events is judged by; owned and moved on by the fold over a batch.

    Lots are not part of it: a grant only adds to its lot, so nobody has to read one.

    Attributes:
        seen: kinds recorded so far, by ticket.
        watches: by visitor.
    """

    seen: dict[LotKey, set[Kind]]
    watches: dict[UUID, Watch]

    def watch(self, ticket: Ticket) -> Watch:
        """Return the visitor's watch; one who never watched has used no time."""
        watch = self.watches.get(ticket.visitor_id)
        return watch or Watch(watched_until=ticket.issued_at, credited_ms={})


# --------------------------------------------------------------------------- ad events


def tariff_at(tariffs: Sequence[Tariff], at: datetime) -> Tariff | None:
    """Return the tariff in force at an instant."""
    found: Tariff | None = None
    for tariff in tariffs:
        if tariff.valid_from <= at and (found is None or tariff.valid_from > found.valid_from):
            found = tariff
    return found


def decide_view(
    state: ViewState, event: AdEvent, tariffs: Sequence[Tariff]
) -> Recorded | Duplicate | Refused:
    """Judge one ad event: duplicate, refused, or recorded with what it earns (R-A2, R-A3, L3)."""
    ticket = event.ticket
    seen = state.seen.get(ticket.key, _NOTHING_SEEN)
    if event.kind in seen:
        return Duplicate(event)
    tariff = tariff_at(tariffs, event.at)
    if tariff is None:
        return Refused(reason=RefusalReason.NO_TARIFF)
    reason = _refusal(event, seen, tariff)
    if reason is not None:
        return Refused(reason=reason)
    watch = state.watch(ticket)
    watched_until = watch.watched_until
    if event.kind in QUARTERS:
        watched_until = _watched_after(watch, event)
        reason = _speed_refusal(event, watched_until, tariff)
        if reason is not None:
            return Refused(reason=reason)
    earned = earned_ms(tariff, event.kind, ticket.duration_ms)
    left = max(0, tariff.daily_cap_ms - watch.credited_ms.get(ticket.key.day, 0))
    return Recorded(event, min(earned, left), tariff.version, earned > left, watched_until)


def earned_ms(tariff: Tariff, kind: Kind, duration_ms: int) -> int:
    """Return what an event of a kind earns, whole milliseconds, rounded down."""
    rule = tariff.rules.get(kind)
    if rule is None:
        return 0
    return duration_ms * rule.credit_permille // 1000 + rule.credit_flat_ms


def apply_view(state: ViewState, decision: Recorded) -> None:
    """Move the state past a recorded event."""
    event, ticket = decision.event, decision.event.ticket
    watch = state.watches[ticket.visitor_id] = state.watch(ticket)
    watch.watched_until = decision.watched_until
    day = ticket.key.day
    watch.credited_ms[day] = watch.credited_ms.get(day, 0) + decision.credit_ms
    state.seen.setdefault(ticket.key, set()).add(event.kind)


def grant(decision: Recorded) -> Posting | None:
    """Return the posting of what an event earns; None where that is nothing (L6)."""
    if decision.credit_ms == 0:
        return None
    return Posting(
        lot=decision.event.ticket.key,
        visitor_id=decision.event.visitor_id,
        operation=Operation.GRANT,
        amount_ms=decision.credit_ms,
        at=decision.event.at,
        kind=decision.event.kind,
        tariff_version=decision.tariff_version,
    )


def new_lot(key: LotKey, visitor_id: UUID) -> Lot:
    """Return an empty lot."""
    return Lot(key=key, visitor_id=visitor_id, expires_at=lot_expiry(key.day))


def lot_expiry(day: date) -> datetime:
    """Return when a lot of a day ends; its life is counted from the start of the day."""
    return datetime.combine(day, time(), UTC) + timedelta(days=LOT_LIFE_DAYS)


def _refusal(event: AdEvent, seen: AbstractSet[Kind], tariff: Tariff) -> RefusalReason | None:
    ticket = event.ticket
    if ticket.visitor_id != event.visitor_id:
        return RefusalReason.TICKET_OF_OTHER_VISITOR
    if event.at > ticket.expires_at:
        return RefusalReason.TICKET_EXPIRED
    if event.at < ticket.issued_at - tariff.tolerance:
        return RefusalReason.TICKET_NOT_YET_ISSUED
    before = PREDECESSOR.get(event.kind)
    if before is not None and before not in seen:
        return RefusalReason.OUT_OF_ORDER
    return None


def _speed_refusal(event: AdEvent, watched_until: datetime, tariff: Tariff) -> RefusalReason | None:
    position_ms = _position_ms(event.ticket, QUARTERS[event.kind])
    clock = event.at + tariff.tolerance
    if clock < event.ticket.issued_at + timedelta(milliseconds=position_ms):
        return RefusalReason.TOO_FAST
    if event.position_ms + tariff.tolerance_ms < position_ms:
        return RefusalReason.POSITION_MISMATCH
    if watched_until > clock:
        return RefusalReason.PARALLEL_VIEW
    return None


def _position_ms(ticket: Ticket, quarters: int) -> int:
    return ticket.duration_ms * quarters // 4


def _watched_after(watch: Watch, event: AdEvent) -> datetime:
    """Return how far the visitor's watching time is used once this event counts.

    An event in order comes right after its predecessor, so it stands for one quarter of the video.
    """
    ticket, quarters = event.ticket, QUARTERS[event.kind]
    length_ms = _position_ms(ticket, quarters) - _position_ms(ticket, quarters - 1)
    return max(watch.watched_until, ticket.issued_at) + timedelta(milliseconds=length_ms)


# --------------------------------------------------------------------------- accounts


_COLUMN: Mapping[Account, str] = {
    Account.AVAILABLE: "available_ms",
    Account.RESERVED: "reserved_ms",
    Account.SPENT: "spent_ms",
    Account.EXPIRED: "expired_ms",
    Account.CLAWED_BACK: "clawed_back_ms",
}


def post(lot: Lot, posting: Posting) -> Lot:
    """Return the lot after a posting; asserts that no account goes below zero (L2)."""
    debit, credit = ACCOUNTS_OF[posting.operation]
    amounts = {name: getattr(lot, name) for name in _COLUMN.values()}
    granted_ms = lot.granted_ms
    if debit is Account.ISSUED:
        granted_ms += posting.amount_ms
    else:
        amounts[_COLUMN[debit]] -= posting.amount_ms
    amounts[_COLUMN[credit]] += posting.amount_ms
    assert min(amounts.values()) >= 0, "no account goes below zero (L2)"
    assert sum(amounts.values()) == granted_ms, "granted = sum of the parts (L4)"
    return replace(lot, granted_ms=granted_ms, **amounts)


def platform_deltas(postings: Iterable[Posting]) -> dict[tuple[date, Account], int]:
    """Return what postings change on the platform's accounts of each day; issued counts down."""
    deltas: dict[tuple[date, Account], int] = {}
    for posting in postings:
        debit, credit = ACCOUNTS_OF[posting.operation]
        for account, sign in ((debit, -1), (credit, 1)):
            if account not in (Account.AVAILABLE, Account.RESERVED):
                key = (posting.lot.day, account)
                deltas[key] = deltas.get(key, 0) + sign * posting.amount_ms
    return deltas


# --------------------------------------------------------------------------- reservations


class ReservationState(StrEnum):
    """A reservation is held, then ends exactly once (L5)."""

    HELD = "held"
    SETTLED = "settled"
    VOID = "void"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one lot gives to one reservation."""

    lot: LotKey
    reserved_ms: int


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Talk time set aside for one call; its id is the call's, its day the id's (UTC)."""

    reservation_id: UUID
    visitor_id: UUID
    state: ReservationState
    wanted_ms: int
    reserved_ms: int
    lease_until: datetime
    requested_at: datetime
    spent_ms: int = 0
    connected_at: datetime | None = None
    ended_at: datetime | None = None
    shares: tuple[Share, ...] = ()

    @property
    def day(self) -> date:
        """UTC day of the id's own timestamp: the same in every service."""
        return day_of(self.reservation_id)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A decision about credit: the reservation as it is now, and the postings that made it so."""

    reservation: Reservation
    postings: tuple[Posting, ...]


def day_of(server_id: UUID) -> date:
    """Return the UTC day in which a UUIDv7 was made; for a made-up id a day that no table has."""
    milliseconds = min(server_id.int >> UUID7_TIMESTAMP_SHIFT, LAST_MILLISECOND)
    return datetime.fromtimestamp(milliseconds // 1000, UTC).date()


@dataclass(frozen=True, kw_only=True)
class ReserveRequest:
    """A call asks for talk time; `at` is the request's instant."""

    reservation_id: UUID
    visitor_id: UUID
    wanted_ms: int
    lease_ms: int
    at: datetime


def reserve(lots: Iterable[Lot], request: ReserveRequest, now: datetime) -> Moved | Refused:
    """Set aside what is available, up to what is wanted, oldest expiry first (C1, L2)."""
    usable = sorted(
        (lot for lot in lots if lot.available_ms > 0 and lot.expires_at > now),
        key=lambda lot: (lot.expires_at, lot.key),
    )
    shares: list[Share] = []
    left = request.wanted_ms
    for lot in usable:
        if left == 0:
            break
        part = min(left, lot.available_ms)
        shares.append(Share(lot=lot.key, reserved_ms=part))
        left -= part
    reserved_ms = request.wanted_ms - left
    if reserved_ms < RESERVE_MIN_MS:
        return Refused(reason=RefusalReason.NO_CREDIT)
    reservation = Reservation(
        reservation_id=request.reservation_id,
        visitor_id=request.visitor_id,
        state=ReservationState.HELD,
        wanted_ms=request.wanted_ms,
        reserved_ms=reserved_ms,
        # the lease runs from the decision: a late request must not be born expired
        lease_until=now + timedelta(milliseconds=request.lease_ms),
        requested_at=request.at,
        shares=tuple(shares),
    )
    return Moved(
        reservation=reservation,
        postings=tuple(
            _move(reservation, share.lot, Operation.RESERVE, share.reserved_ms, now)
            for share in shares
        ),
    )


def settle(reservation: Reservation, used_ms: int, now: datetime) -> Moved:
    """End a held reservation: charge what was used, at most what was reserved, return the rest.

    Args:
        used_ms: talk in milliseconds at the legs' full rate; 0 returns everything.
    """
    assert reservation.state is ReservationState.HELD, "a reservation ends exactly once (L5)"
    assert used_ms >= 0
    left = charged = min(used_ms, reservation.reserved_ms)
    postings: list[Posting] = []
    for share in reservation.shares:
        spent = min(left, share.reserved_ms)
        left -= spent
        if spent:
            postings.append(_move(reservation, share.lot, Operation.SPEND, spent, now))
        if share.reserved_ms > spent:
            rest = share.reserved_ms - spent
            postings.append(_move(reservation, share.lot, Operation.RELEASE, rest, now))
    assert left == 0, "the shares are all of the reservation"
    ended = replace(reservation, state=ReservationState.SETTLED, spent_ms=charged, ended_at=now)
    return Moved(reservation=ended, postings=tuple(postings))


def void(reservation: Reservation, now: datetime) -> Moved:
    """End a held reservation unused: everything goes back."""
    moved = settle(reservation, 0, now)
    return replace(moved, reservation=replace(moved.reservation, state=ReservationState.VOID))


def expire(lot: Lot, now: datetime) -> Posting:
    """Take what is available of a lot past its life."""
    return Posting(
        lot=lot.key,
        visitor_id=lot.visitor_id,
        operation=Operation.EXPIRE,
        amount_ms=lot.available_ms,
        at=now,
    )


def charge_ms(talk_ms: int, rate_permille: int = RATE_FULL_PERMILLE) -> int:
    """Return what talk costs: both legs at 500 permille make one second a second (C4)."""
    return talk_ms * rate_permille // RATE_FULL_PERMILLE


def _move(
    reservation: Reservation, lot: LotKey, operation: Operation, amount_ms: int, at: datetime
) -> Posting:
    return Posting(
        lot=lot,
        visitor_id=reservation.visitor_id,
        operation=operation,
        amount_ms=amount_ms,
        at=at,
        reservation_id=reservation.reservation_id,
    )
