"""All SQL of call control; takes and returns many where there are many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from services.call_control.backend import LegResult
from services.call_control.domain import State, day_of
from services.chassis import db
from services.privacy.invariants import (
    D1_NO_DAY_PARTITION_TOO_OLD,
    D1_NO_YEAR_PARTITION_TOO_OLD,
    D2_INVARIANTS,
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as it stands; numbers are E.164, None for a refused one."""

    call_id: UUID
    visitor_id: UUID
    state: State
    traceparent: str
    requested_at: datetime
    reason: str | None = None
    callback_number: str | None = None
    destination_number: str | None = None
    reserved_ms: int | None = None
    connected_at: datetime | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None
    talk_ms: int | None = None
    overrun_ms: int | None = None
    holder: str | None = None
    holder_epoch: int | None = None

    @property
    def day(self) -> date:
        """UTC day of the call's id."""
        return day_of(self.call_id)


@dataclass(frozen=True, kw_only=True)
class LegProgress:
    """How far a dialled leg has come; `leg` is `a` (callback) or `b` (destination)."""

    leg: str
    is_ringing: bool
    is_answered: bool


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
SELECT DISTINCT visitor_id FROM call
WHERE visitor_id = ANY($1::uuid[]) AND state NOT IN ('refused', 'ended')
"""
_HUNG_UP_BEFORE_KNOWN = """
SELECT o.call_id FROM call_order o
JOIN unnest($1::date[], $2::uuid[]) AS given(call_day, call_id) USING (call_day, call_id)
WHERE o.name = 'hang_up'
"""
_EARLY_HANG_UP = """
INSERT INTO call_order (call_day, call_id, name, ordered_at, done_at)
SELECT day, call_id, 'hang_up', $3, $3 FROM unnest($1::date[], $2::uuid[]) AS given(day, call_id)
ON CONFLICT DO NOTHING
"""
_UNANSWERED = """
SELECT * FROM call WHERE state = 'requested' AND requested_at < $1
ORDER BY call_day, call_id LIMIT $2 FOR UPDATE SKIP LOCKED
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
# A sub-query, no outer join: a row that a peer took meanwhile is judged anew by its new holder.
_ORPHANS = """
SELECT c.* FROM call c
WHERE c.state IN ('dialling', 'talking', 'ending')
  AND ((c.holder = $1 AND (c.holder_epoch < $2 OR c.call_id <> ALL($3::uuid[])))
       OR (c.holder <> $1 AND NOT EXISTS (
           SELECT FROM holder h WHERE h.holder = c.holder AND h.renewed_at >= $4)))
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
# What nobody ever held was never dialled: its numbers are not needed (R-C1).
_END = """
UPDATE call SET state = 'ended', reason = $3, ended_by = $4, ended_at = $5, talk_ms = $6,
                overrun_ms = $7,
                callback_number = CASE WHEN holder IS NOT NULL THEN callback_number END,
                destination_number = CASE WHEN holder IS NOT NULL THEN destination_number END
WHERE (call_day, call_id) = ($1, $2)
"""
_TAKE_EPOCH = """
INSERT INTO holder AS h (holder, epoch, renewed_at) VALUES ($1, 1, $2)
ON CONFLICT (holder) DO UPDATE SET epoch = h.epoch + 1, renewed_at = excluded.renewed_at
RETURNING epoch
"""
_RENEW = """
UPDATE holder SET renewed_at = $3 WHERE holder = $1 AND epoch = $2 AND renewed_at >= $4
"""

INVARIANTS: dict[str, str] = {
    **D2_INVARIANTS,
    # D1: a failure means that a day outlived its rule; did its order arrive?
    "d1_no_day_partition_too_old": D1_NO_DAY_PARTITION_TOO_OLD,
    # D1: a failure means that a year outlived its rule; did its order arrive?
    "d1_no_year_partition_too_old": D1_NO_YEAR_PARTITION_TOO_OLD,
    # D1: a failure means that an order to let addresses go at once was not carried out.
    "d1_no_address_without_threat": """
        SELECT CASE WHEN privacy_threat_is_none() THEN
            (SELECT count(*) FROM call_address
             WHERE privacy_made_at(call_id) < now() - interval '3 hours')
        ELSE 0 END""",
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
        WHERE state NOT IN ('refused', 'ended')
            AND coalesce(lease_until, requested_at + interval '15 minutes') < now()""",
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


STATISTICS_VISITORS_MIN = 10
"""Fewer visitors of a network could be picked out; the database refuses fewer, too."""

_COUNT_NETWORKS = """
WITH day AS (
    INSERT INTO call_statistics_day (call_day)
    SELECT DISTINCT address_day FROM call_address WHERE address_day < $1
    ON CONFLICT DO NOTHING RETURNING call_day
), asked AS (
    SELECT call_day, c.visitor_id, c.connected_at IS NOT NULL AS is_connected,
        network(set_masklen(a.address, CASE
            WHEN family(a.address) = 4 THEN 24
            -- 6to4: the IPv4 address of its host follows these 16 bits
            WHEN a.address << '2002::/16' THEN 40
            ELSE 48 END)) AS network
    FROM day JOIN call c USING (call_day)
    JOIN call_address a ON (a.address_day, a.call_id) = (c.call_day, c.call_id)
), many AS (
    SELECT call_day, network FROM asked
    GROUP BY call_day, network HAVING count(DISTINCT visitor_id) >= $2
)
INSERT INTO call_statistics (call_day, network, n_visitors, n_calls, n_connected)
SELECT call_day, many.network, count(DISTINCT visitor_id), count(*),
    count(*) FILTER (WHERE is_connected)
FROM asked LEFT JOIN many USING (call_day, network)
GROUP BY call_day, many.network HAVING count(DISTINCT visitor_id) >= $2
RETURNING 1
"""


class Store:
    """Call control's tables on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._db = connection

    # ------------------------------------------------------------------ statistics

    async def count_networks_before(self, before_day: date) -> int:
        """Count days by network, once each, while their addresses and visitors still stand (R-C2).

        No address leaves its table but truncated, and no network that few visitors came from is
        named: those stand together, and not at all where they are few themselves. Returns how many
        figures there are now that were not before.
        """
        made = await self._db.fetch(
            _COUNT_NETWORKS,
            before_day,
            STATISTICS_VISITORS_MIN,
            timeout=db.LONG_COMMAND_TIMEOUT_S,
        )
        return len(made)

    async def statistics(self, since: date) -> list[dict[str, Any]]:
        """Return the counted days from one on, oldest first; network None = all others."""
        rows = await self._db.fetch(
            """
            SELECT call_day::text, network::text, n_visitors, n_calls, n_connected
            FROM call_statistics WHERE call_day >= $1 ORDER BY call_day, network
            """,
            since,
        )
        return [dict(row) for row in rows]

    # ------------------------------------------------------------------ calls

    async def calls(self, ids: Iterable[UUID]) -> dict[UUID, Call]:
        """Return calls by id, locked in key order."""
        ordered = sorted(set(ids))
        rows = await self._db.fetch(_CALLS, [day_of(i) for i in ordered], ordered)
        return {row["call_id"]: _call(row) for row in rows}

    async def visitors_of_number(self, number: str) -> list[UUID]:
        """Return who asked to be called back at a number (E.164)."""
        rows = await self._db.fetch(
            "SELECT DISTINCT visitor_id FROM call WHERE callback_number = $1", number
        )
        return [row["visitor_id"] for row in rows]

    async def visitors_of_address(self, address: str) -> list[UUID]:
        """Return who asked for a call from an address."""
        rows = await self._db.fetch(
            """
            SELECT DISTINCT c.visitor_id FROM call_address a
            JOIN call c ON c.call_day = a.address_day AND c.call_id = a.call_id
            WHERE a.address = $1::text::inet
            """,
            address,
        )
        return [row["visitor_id"] for row in rows]

    async def read_call(self, call_id: UUID) -> Call | None:
        """Return one call for reading only: nobody waits for a reader."""
        row = await self._db.fetchrow(
            "SELECT * FROM call WHERE (call_day, call_id) = ($1, $2)", day_of(call_id), call_id
        )
        return None if row is None else _call(row)

    async def progress(self, call_id: UUID) -> list[LegProgress]:
        """Return how far the legs of a call have come: leg A before B, only those dialled."""
        rows = await self._db.fetch(
            """
            SELECT leg, ringing_at IS NOT NULL AS is_ringing, answered_at IS NOT NULL AS is_answered
            FROM call_leg WHERE (call_day, call_id) = ($1, $2) ORDER BY leg
            """,
            day_of(call_id),
            call_id,
        )
        return [LegProgress(**row) for row in rows]

    async def visitors_with_active_call(self, visitors: Iterable[UUID]) -> set[UUID]:
        """Return those of the visitors who have a call that has not ended."""
        rows = await self._db.fetch(_WITH_ACTIVE_CALL, sorted(set(visitors)))
        return {row["visitor_id"] for row in rows}

    async def hung_up_before_known(self, ids: Iterable[UUID]) -> set[UUID]:
        """Return those of the calls whose hang-up came before their request."""
        found = list(ids)
        rows = await self._db.fetch(_HUNG_UP_BEFORE_KNOWN, [day_of(i) for i in found], found)
        return {row["call_id"] for row in rows}

    async def note_early_hang_up(self, ids: Sequence[UUID], at: datetime) -> None:
        """Keep hang-ups of calls that are not known yet; as done, so that nobody polls them."""
        await self._db.execute(_EARLY_HANG_UP, [day_of(i) for i in ids], list(ids), at)

    async def unanswered(self, requested_before: datetime, limit: int) -> list[Call]:
        """Return calls that still wait for the ledger's answer; skips what others hold."""
        return [_call(row) for row in await self._db.fetch(_UNANSWERED, requested_before, limit)]

    async def add_calls(self, calls: Sequence[Call], addresses: Mapping[UUID, str]) -> None:
        """Write new calls, and the addresses by call."""
        await self._db.execute(
            _ADD_CALLS, [c.day for c in calls], [c.call_id for c in calls],
            [c.visitor_id for c in calls], [c.state.value for c in calls],
            [c.reason for c in calls], [c.callback_number for c in calls],
            [c.destination_number for c in calls], [c.traceparent for c in calls],
            [c.requested_at for c in calls],
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
        self, holder: str, epoch: int, held: Iterable[UUID], dead_since: datetime, limit: int
    ) -> list[Call]:
        """Return calls that no living process carries.

        They are this process's by the table but not among the `held`, or of an earlier life of
        it, or of a process silent since `dead_since`.
        """
        rows = await self._db.fetch(_ORPHANS, holder, epoch, list(held), dead_since, limit)
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

    async def leg_ended(self, call_id: UUID, facts: LegResult) -> None:
        """Write a leg's share of the CDR and forget its dialog."""
        await self._db.execute(
            _LEG_END, day_of(call_id), call_id, facts.leg.value, facts.dialled_at, facts.ringing_at,
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

    async def renew(
        self, holder: str, epoch: int, now: datetime, not_silent_since: datetime
    ) -> bool:
        """Say that this process lives; False where a twin has its name, or it was silent since."""
        status = await self._db.execute(_RENEW, holder, epoch, now, not_silent_since)
        return bool(status == "UPDATE 1")


def _call(row: Any) -> Call:
    return Call(
        call_id=row["call_id"],
        visitor_id=row["visitor_id"],
        state=State(row["state"]),
        traceparent=row["traceparent"],
        requested_at=row["requested_at"],
        reason=row["reason"],
        callback_number=row["callback_number"],
        destination_number=row["destination_number"],
        reserved_ms=row["reserved_ms"],
        connected_at=row["connected_at"],
        ended_at=row["ended_at"],
        ended_by=row["ended_by"],
        talk_ms=row["talk_ms"],
        overrun_ms=row["overrun_ms"],
        holder=row["holder"],
        holder_epoch=row["holder_epoch"],
    )
