"""All SQL of call control; takes and returns many where there are many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from services.call_control.domain import ACTIVE, HELD, State, day_of
from services.chassis import db

_ACTIVE = [state.value for state in sorted(ACTIVE)]
_HELD = [state.value for state in sorted(HELD)]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as it stands; numbers are E.164, None for a refused one."""

    call_id: UUID
    visitor_id: UUID
    state: State
    traceparent: str
    reason: str | None = None
    callback_number: str | None = None
    destination_number: str | None = None
    reserved_ms: int | None = None
    connected_at: datetime | None = None
    ended_at: datetime | None = None
    talk_ms: int | None = None
    overrun_ms: int | None = None
    holder: str | None = None
    holder_epoch: int | None = None

    @property
    def day(self) -> date:
        """UTC day of the call's id."""
        return day_of(self.call_id)


@dataclass(frozen=True, kw_only=True)
class LegFacts:
    """One leg's share of the CDR."""

    leg: str
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
class End:
    """How a call ended."""

    call_id: UUID
    reason: str
    ended_by: str | None
    ended_at: datetime
    talk_ms: int
    overrun_ms: int


_CALLS = """
SELECT c.* FROM call c
JOIN unnest($1::date[], $2::uuid[]) AS given(call_day, call_id) USING (call_day, call_id)
ORDER BY c.call_day, c.call_id FOR UPDATE OF c
"""
_WITH_ACTIVE_CALL = """
SELECT DISTINCT visitor_id FROM call WHERE visitor_id = ANY($1::uuid[]) AND state = ANY($2::text[])
"""
_ADD_CALLS = """
INSERT INTO call (call_day, call_id, visitor_id, state, reason, callback_number, destination_number,
                  traceparent, requested_at)
SELECT * FROM unnest($1::date[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[],
                     $7::text[], $8::text[], $9::timestamptz[])
"""
_ADD_ADDRESSES = """
INSERT INTO call_address (address_day, call_id, address)
SELECT day, call_id, address::inet
FROM unnest($1::date[], $2::uuid[], $3::text[]) AS given(day, call_id, address)
"""
_GRANT = """
UPDATE call c SET state = 'reserved', reserved_ms = given.reserved_ms,
                  lease_until = given.lease_until
FROM unnest($1::date[], $2::uuid[], $3::bigint[], $4::timestamptz[])
    AS given(call_day, call_id, reserved_ms, lease_until)
WHERE (c.call_day, c.call_id) = (given.call_day, given.call_id)
"""
_REFUSE = """
UPDATE call c SET state = 'refused', reason = given.reason,
                  callback_number = NULL, destination_number = NULL
FROM unnest($1::date[], $2::uuid[], $3::text[]) AS given(call_day, call_id, reason)
WHERE (c.call_day, c.call_id) = (given.call_day, given.call_id)
"""
_ORDER = """
INSERT INTO call_order (call_day, call_id, name, ordered_at)
SELECT day, call_id, $3, $4 FROM unnest($1::date[], $2::uuid[]) AS given(day, call_id)
ON CONFLICT DO NOTHING
"""
_OPEN_ORDERS = """
SELECT o.call_day, o.call_id, o.name
FROM call_order o JOIN call c USING (call_day, call_id)
WHERE o.done_at IS NULL
  AND ((o.name = 'dial' AND c.holder IS NULL) OR (o.name = 'hang_up' AND
       (c.holder = $1 OR c.state NOT IN ('dialling', 'talking', 'ending'))))
ORDER BY o.ordered_at, o.call_id LIMIT $2 FOR UPDATE OF o SKIP LOCKED
"""
_ORDERS_DONE = """
UPDATE call_order o SET done_at = $4
FROM unnest($1::date[], $2::uuid[], $3::text[]) AS given(call_day, call_id, name)
WHERE (o.call_day, o.call_id, o.name) = (given.call_day, given.call_id, given.name)
"""
_HOLD = """
UPDATE call SET state = CASE WHEN state = 'reserved' THEN 'dialling' ELSE state END,
                holder = $3, holder_epoch = $4
WHERE (call_day, call_id) = ($1, $2)
"""
_ORPHANS = """
SELECT c.* FROM call c LEFT JOIN holder h USING (holder)
WHERE c.state = ANY($1::text[])
  AND ((c.holder = $2 AND c.holder_epoch < $3)
       OR (c.holder <> $2 AND (h.renewed_at IS NULL OR h.renewed_at < $4)))
ORDER BY c.call_day, c.call_id LIMIT $5 FOR UPDATE OF c SKIP LOCKED
"""
_LEG_EVENT = """
INSERT INTO call_leg AS l (call_day, call_id, leg, dialled_at, ringing_at, answered_at, dialog)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (call_day, call_id, leg) DO UPDATE SET
    dialled_at = coalesce(l.dialled_at, excluded.dialled_at),
    ringing_at = coalesce(l.ringing_at, excluded.ringing_at),
    answered_at = coalesce(l.answered_at, excluded.answered_at),
    dialog = coalesce(excluded.dialog, l.dialog)
"""
_LEG_END = """
INSERT INTO call_leg AS l (call_day, call_id, leg, dialled_at, ringing_at, answered_at, ended_at,
                           duration_ms, sip_status, bye_status, q850_cause, answered_late, is_down)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (call_day, call_id, leg) DO UPDATE SET
    dialled_at = coalesce(l.dialled_at, excluded.dialled_at),
    ringing_at = coalesce(l.ringing_at, excluded.ringing_at),
    answered_at = coalesce(l.answered_at, excluded.answered_at),
    ended_at = excluded.ended_at,
    duration_ms = excluded.duration_ms,
    sip_status = coalesce(excluded.sip_status, l.sip_status), bye_status = excluded.bye_status,
    q850_cause = excluded.q850_cause, answered_late = excluded.answered_late,
    is_down = excluded.is_down, dialog = NULL
"""
_CONNECT = """
UPDATE call SET state = 'talking', connected_at = $3 WHERE (call_day, call_id) = ($1, $2)
"""
_ENDING = """
UPDATE call SET state = 'ending', reason = $3, ended_by = $4, talk_ms = $5, overrun_ms = $6
WHERE (call_day, call_id) = ($1, $2)
"""
_END = """
UPDATE call SET state = 'ended', reason = $3, ended_by = $4, ended_at = $5, talk_ms = $6,
                overrun_ms = $7
WHERE (call_day, call_id) = ($1, $2)
"""
_TAKE_EPOCH = """
INSERT INTO holder AS h (holder, epoch, renewed_at) VALUES ($1, 1, $2)
ON CONFLICT (holder) DO UPDATE SET epoch = h.epoch + 1, renewed_at = excluded.renewed_at
RETURNING epoch
"""
_RENEW = "UPDATE holder SET renewed_at = $3 WHERE holder = $1 AND epoch = $2"

INVARIANTS: dict[str, str] = {
    # C1: a failure means that a leg was dialled without a reservation.
    "c1_no_leg_without_reservation": """
        SELECT count(*) FROM call c JOIN call_leg l USING (call_day, call_id)
        WHERE c.reserved_ms IS NULL""",
    # C2: a failure means talk of more than a second past what was reserved; see the overrun metric.
    "c2_talk_within_reservation": """
        SELECT count(*) FROM call WHERE state = 'ended' AND reason <> 'orphaned'
            AND talk_ms > reserved_ms + 1000""",
    # C3: a failure means a call that nobody holds and nobody ended.
    "c3_every_call_ends": """
        SELECT count(*) FROM call
        WHERE state NOT IN ('refused', 'ended') AND lease_until < now()""",
    # C3: a failure means a leg that may still be up although its call has ended: alarm the carrier.
    "c3_legs_of_ended_calls_are_down": """
        SELECT count(*) FROM call c JOIN call_leg l USING (call_day, call_id)
        WHERE c.state = 'ended' AND l.answered_at IS NOT NULL AND NOT l.is_down
            AND c.ended_at > now() - interval '1 hour'""",
    # C4: a failure means a talk without both legs answered: one leg would be charged for two.
    "c4_talk_has_both_legs": """
        SELECT count(*) FROM cdr WHERE talk_ms > 0
            AND (a_answered_at IS NULL OR b_answered_at IS NULL)""",
    # C5: a failure means that a refused call was dialled.
    "c5_refused_is_never_dialled": """
        SELECT count(*) FROM call c JOIN call_leg l USING (call_day, call_id)
        WHERE c.state = 'refused'""",
}


class Store:
    """Call control's tables on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._db = connection

    async def calls(self, ids: Iterable[UUID]) -> dict[UUID, Call]:
        """Return calls by id, locked in key order."""
        ordered = sorted(set(ids))
        rows = await self._db.fetch(_CALLS, [day_of(i) for i in ordered], ordered)
        return {row["call_id"]: _call(row) for row in rows}

    async def visitors_with_active_call(self, visitors: Iterable[UUID]) -> set[UUID]:
        """Return those of the visitors who have a call that has not ended."""
        rows = await self._db.fetch(_WITH_ACTIVE_CALL, sorted(set(visitors)), _ACTIVE)
        return {row["visitor_id"] for row in rows}

    async def add_calls(
        self, calls: Sequence[tuple[Call, datetime]], addresses: Mapping[UUID, str]
    ) -> None:
        """Write new calls with the instant of their request, and the addresses by call."""
        await self._db.execute(
            _ADD_CALLS, [c.day for c, _ in calls], [c.call_id for c, _ in calls],
            [c.visitor_id for c, _ in calls], [c.state.value for c, _ in calls],
            [c.reason for c, _ in calls], [c.callback_number for c, _ in calls],
            [c.destination_number for c, _ in calls], [c.traceparent for c, _ in calls],
            [at for _, at in calls],
        )  # fmt: skip
        ids = list(addresses)
        await self._db.execute(
            _ADD_ADDRESSES, [day_of(i) for i in ids], ids, [addresses[i] for i in ids]
        )

    async def grant(self, granted: Sequence[tuple[UUID, int, datetime]]) -> None:
        """Note reservations: (call, reserved milliseconds, lease)."""
        await self._db.execute(
            _GRANT, [day_of(i) for i, _, _ in granted], [i for i, _, _ in granted],
            [ms for _, ms, _ in granted], [until for _, _, until in granted],
        )  # fmt: skip

    async def refuse(self, refused: Sequence[tuple[UUID, str]]) -> None:
        """Refuse calls and forget their numbers."""
        await self._db.execute(
            _REFUSE, [day_of(i) for i, _ in refused], [i for i, _ in refused],
            [reason for _, reason in refused],
        )  # fmt: skip

    async def order(self, name: str, ids: Sequence[UUID], at: datetime) -> None:
        """Give the holder an order about calls; a repeated one is the same one."""
        await self._db.execute(_ORDER, [day_of(i) for i in ids], list(ids), name, at)

    async def open_orders(self, holder: str, limit: int) -> list[tuple[UUID, str]]:
        """Return (call, order) that this process may carry out; skips what others hold."""
        rows = await self._db.fetch(_OPEN_ORDERS, holder, limit)
        return [(row["call_id"], row["name"]) for row in rows]

    async def orders_done(self, orders: Sequence[tuple[UUID, str]], at: datetime) -> None:
        """Note that orders were carried out."""
        await self._db.execute(
            _ORDERS_DONE, [day_of(i) for i, _ in orders], [i for i, _ in orders],
            [name for _, name in orders], at,
        )  # fmt: skip

    async def hold(self, call: Call, holder: str, epoch: int) -> None:
        """Make this process the call's holder; a reserved call is now being dialled."""
        await self._db.execute(_HOLD, call.day, call.call_id, holder, epoch)

    async def orphans(
        self, holder: str, epoch: int, dead_since: datetime, limit: int
    ) -> list[Call]:
        """Return held calls of this process's earlier lives and of processes long silent."""
        rows = await self._db.fetch(_ORPHANS, _HELD, holder, epoch, dead_since, limit)
        return [_call(row) for row in rows]

    async def dialogs(self, call: Call) -> tuple[Mapping[str, Any], ...]:
        """Return the stored dialog states of a call's legs that were answered."""
        rows = await self._db.fetch(
            "SELECT dialog FROM call_leg WHERE (call_day, call_id) = ($1, $2) "
            "AND dialog IS NOT NULL ORDER BY leg",
            call.day,
            call.call_id,
        )
        return tuple(row["dialog"] for row in rows)

    async def leg_event(
        self,
        call_id: UUID,
        leg: str,
        *,
        dialled_at: datetime | None = None,
        ringing_at: datetime | None = None,
        answered_at: datetime | None = None,
        dialog: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what happened to a leg; the first instant of each kind stays."""
        await self._db.execute(
            _LEG_EVENT, day_of(call_id), call_id, leg, dialled_at, ringing_at, answered_at,
            None if dialog is None else dict(dialog),
        )  # fmt: skip

    async def leg_ended(self, call_id: UUID, facts: LegFacts) -> None:
        """Write a leg's share of the CDR and forget its dialog."""
        await self._db.execute(
            _LEG_END, day_of(call_id), call_id, facts.leg, facts.dialled_at, facts.ringing_at,
            facts.answered_at, facts.ended_at, facts.duration_ms, facts.sip_status,
            facts.bye_status, facts.q850_cause, facts.answered_late, facts.is_down,
        )  # fmt: skip

    async def connect(self, call_id: UUID, at: datetime) -> None:
        """Both legs are connected since `at`."""
        await self._db.execute(_CONNECT, day_of(call_id), call_id, at)

    async def ending(self, end: End) -> None:
        """The people's talk is over; the legs are coming down."""
        await self._db.execute(
            _ENDING, day_of(end.call_id), end.call_id, end.reason, end.ended_by, end.talk_ms,
            end.overrun_ms,
        )  # fmt: skip

    async def end(self, end: End) -> None:
        """The call is over; the database refuses a second end (C3)."""
        await self._db.execute(
            _END, day_of(end.call_id), end.call_id, end.reason, end.ended_by, end.ended_at,
            end.talk_ms, end.overrun_ms,
        )  # fmt: skip

    async def take_epoch(self, holder: str, now: datetime) -> int:
        """Begin a new life of this holder; calls of an earlier one are orphans."""
        return int(await self._db.fetchval(_TAKE_EPOCH, holder, now))

    async def renew(self, holder: str, epoch: int, now: datetime) -> bool:
        """Say that this process lives; False where a twin has taken its name."""
        return bool(await self._db.execute(_RENEW, holder, epoch, now) == "UPDATE 1")


def _call(row: Any) -> Call:
    return Call(
        call_id=row["call_id"],
        visitor_id=row["visitor_id"],
        state=State(row["state"]),
        traceparent=row["traceparent"],
        reason=row["reason"],
        callback_number=row["callback_number"],
        destination_number=row["destination_number"],
        reserved_ms=row["reserved_ms"],
        connected_at=row["connected_at"],
        ended_at=row["ended_at"],
        talk_ms=row["talk_ms"],
        overrun_ms=row["overrun_ms"],
        holder=row["holder"],
        holder_epoch=row["holder_epoch"],
    )
