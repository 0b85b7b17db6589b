"""All SQL of the ledger; takes and returns many. The chassis owns the transaction."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from services.ad_ledger.domain import (
    ACCOUNTS_OF,
    Kind,
    Lot,
    LotKey,
    Posting,
    Recorded,
    Reservation,
    ReservationState,
    Share,
    Tariff,
    TariffRule,
    ViewState,
    Watch,
    day_of,
    lot_expiry,
    platform_deltas,
)
from services.chassis import db, errors
from services.chassis.invariants import over_all_days
from services.privacy.invariants import (
    D1_NO_DAY_PARTITION_TOO_OLD,
    D1_NO_YEAR_PARTITION_TOO_OLD,
    D2_INVARIANTS,
)

_TARIFFS = """
SELECT t.version, t.valid_from, t.daily_cap_ms, t.tolerance_ms,
       r.kind, r.credit_permille, r.credit_flat_ms
FROM tariff t JOIN tariff_rule r USING (version)
ORDER BY t.valid_from
"""
_SEEN = """
SELECT v.view_day, v.ticket_id, v.kind
FROM ad_view v
JOIN unnest($1::date[], $2::uuid[]) AS given(view_day, ticket_id) USING (view_day, ticket_id)
"""
_WATCHES = """
SELECT watch_day, visitor_id, watched_until, credited_ms FROM visitor_watch
WHERE visitor_id = ANY($1::uuid[]) AND watch_day >= $2
ORDER BY visitor_id, watch_day FOR UPDATE
"""
_LOTS_BY_KEY = """
SELECT l.* FROM lot l
JOIN unnest($1::date[], $2::uuid[]) AS given(lot_day, ticket_id) USING (lot_day, ticket_id)
ORDER BY l.lot_day, l.ticket_id FOR UPDATE OF l
"""
_LOTS_OF_VISITORS = """
SELECT * FROM lot WHERE visitor_id = ANY($1::uuid[]) AND available_ms > 0
ORDER BY lot_day, ticket_id FOR UPDATE
"""
# All that a batch of views writes, in one round trip. `view` has a row per recorded event, `ticket`
# one per ticket and `watch` one per visitor and day; an event names its ticket by its place in the
# ticket's arrays ($1-$3). What an event earns is the same row seen as a posting (L6), so a grant is
# spelled out here once more: `domain.grant` and `domain.post` say the same, and a test holds both
# together. Tickets and watches come in key order, so that two processes do not deadlock.
_SAVE_VIEWS = """
WITH view AS MATERIALIZED (
    SELECT ($1::date[])[v.ticket] AS day, ($2::uuid[])[v.ticket] AS ticket_id,
           ($3::uuid[])[v.ticket] AS visitor_id, v.*
    FROM unnest($7::text::int[], $8::text::text[], $9::timestamptz[], $10::text::int[],
                $11::text::int[], $12::text[], $13::text::bool[])
        AS v(ticket, kind, at, position_ms, credit_ms, tariff_version, is_capped)
), ticket AS MATERIALIZED (
    SELECT * FROM unnest($1::date[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[],
                         $6::bigint[])
        AS t(day, ticket_id, visitor_id, expires_at, address, credit_ms)
), saved_views AS (
    INSERT INTO ad_view (view_day, ticket_id, kind, visitor_id, viewed_at, position_ms, credit_ms,
                         tariff_version, is_capped)
    SELECT day, ticket_id, kind, visitor_id, at, position_ms, credit_ms, tariff_version, is_capped
    FROM view
    ON CONFLICT DO NOTHING
    RETURNING 1
), saved_addresses AS (
    INSERT INTO ad_view_address (address_day, ticket_id, address)
    SELECT day, ticket_id, address::inet FROM ticket
    ON CONFLICT DO NOTHING
), saved_watches AS (
    INSERT INTO visitor_watch (watch_day, visitor_id, watched_until, credited_ms)
    SELECT * FROM unnest($14::date[], $15::uuid[], $16::timestamptz[], $17::bigint[])
    ON CONFLICT (watch_day, visitor_id) DO UPDATE
    SET watched_until = excluded.watched_until, credited_ms = excluded.credited_ms
), saved_lots AS (
    INSERT INTO lot AS l (lot_day, ticket_id, visitor_id, expires_at, granted_ms, available_ms,
                          reserved_ms, spent_ms, expired_ms, clawed_back_ms)
    SELECT day, ticket_id, visitor_id, expires_at, credit_ms, credit_ms, 0, 0, 0, 0
    FROM ticket WHERE credit_ms > 0
    ON CONFLICT (lot_day, ticket_id) DO UPDATE SET
        granted_ms = l.granted_ms + excluded.granted_ms,
        available_ms = l.available_ms + excluded.available_ms
), saved_postings AS (
    INSERT INTO posting (lot_day, ticket_id, visitor_id, operation, debit_account, credit_account,
                         amount_ms, posted_at, kind, tariff_version)
    SELECT day, ticket_id, visitor_id, 'grant', 'issued', 'available', credit_ms, at, kind,
           tariff_version
    FROM view WHERE credit_ms > 0
), saved_platform AS (
    INSERT INTO platform_account AS p (account_day, account, balance_ms)
    SELECT day, 'issued', -sum(credit_ms) FROM ticket WHERE credit_ms > 0
    GROUP BY day ORDER BY day
    ON CONFLICT (account_day, account) DO UPDATE SET balance_ms = p.balance_ms + excluded.balance_ms
)
SELECT count(*) FROM saved_views
"""
_SAVE_LOTS = """
INSERT INTO lot (lot_day, ticket_id, visitor_id, expires_at, granted_ms, available_ms, reserved_ms,
                 spent_ms, expired_ms, clawed_back_ms)
SELECT * FROM unnest($1::date[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::bigint[],
                     $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[])
ON CONFLICT (lot_day, ticket_id) DO UPDATE SET
    granted_ms = excluded.granted_ms, available_ms = excluded.available_ms,
    reserved_ms = excluded.reserved_ms, spent_ms = excluded.spent_ms,
    expired_ms = excluded.expired_ms, clawed_back_ms = excluded.clawed_back_ms
"""
_SAVE_POSTINGS = """
INSERT INTO posting (lot_day, ticket_id, visitor_id, operation, debit_account, credit_account,
                     amount_ms, posted_at, reservation_id, kind, tariff_version)
SELECT * FROM unnest($1::date[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[],
                     $7::bigint[], $8::timestamptz[], $9::uuid[], $10::text[], $11::text[])
"""
_SAVE_PLATFORM = """
INSERT INTO platform_account AS p (account_day, account, balance_ms)
SELECT * FROM unnest($1::date[], $2::text[], $3::bigint[])
ON CONFLICT (account_day, account) DO UPDATE SET balance_ms = p.balance_ms + excluded.balance_ms
"""
_BALANCES = """
SELECT given.visitor_id, coalesce(sum(l.available_ms), 0)::bigint AS available_ms,
       coalesce(sum(l.reserved_ms), 0)::bigint AS reserved_ms
FROM unnest($1::uuid[]) AS given(visitor_id) LEFT JOIN lot l USING (visitor_id)
GROUP BY given.visitor_id
"""
_RESERVATIONS = """
SELECT r.* FROM reservation r
JOIN unnest($1::date[], $2::uuid[]) AS given(reservation_day, reservation_id)
    USING (reservation_day, reservation_id)
ORDER BY r.reservation_day, r.reservation_id FOR UPDATE OF r
"""
_SHARES = """
SELECT s.reservation_id, s.lot_day, s.ticket_id, s.reserved_ms
FROM reservation_share s
JOIN unnest($1::date[], $2::uuid[]) AS given(reservation_day, reservation_id)
    USING (reservation_day, reservation_id)
ORDER BY s.reservation_id, s.lot_day, s.ticket_id
"""
_ADD_RESERVATIONS = """
INSERT INTO reservation (reservation_day, reservation_id, visitor_id, state, wanted_ms, reserved_ms,
                         lease_until, requested_at)
SELECT * FROM unnest($1::date[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[],
                     $7::timestamptz[], $8::timestamptz[])
"""
_ADD_SHARES = """
INSERT INTO reservation_share (reservation_day, reservation_id, lot_day, ticket_id, reserved_ms)
SELECT * FROM unnest($1::date[], $2::uuid[], $3::date[], $4::uuid[], $5::bigint[])
"""
_END_RESERVATIONS = """
UPDATE reservation r SET state = given.state, spent_ms = given.spent_ms, ended_at = given.ended_at,
                         connected_at = given.connected_at
FROM unnest($1::date[], $2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[], $6::timestamptz[])
    AS given(reservation_day, reservation_id, state, spent_ms, ended_at, connected_at)
WHERE (r.reservation_day, r.reservation_id) = (given.reservation_day, given.reservation_id)
"""
_CONNECTED = """
UPDATE reservation r SET connected_at = given.connected_at
FROM unnest($1::date[], $2::uuid[], $3::timestamptz[])
    AS given(reservation_day, reservation_id, connected_at)
WHERE (r.reservation_day, r.reservation_id) = (given.reservation_day, given.reservation_id)
  AND r.state = 'held'
"""
_EXPIRED_LOTS = """
SELECT * FROM lot WHERE available_ms > 0 AND expires_at <= $1
ORDER BY lot_day, ticket_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_OPEN_LOTS_BEFORE = """
SELECT * FROM lot WHERE lot_day < $1 AND available_ms > 0 ORDER BY lot_day, ticket_id FOR UPDATE
"""
_LAPSED = """
SELECT reservation_day, reservation_id FROM reservation
WHERE state = 'held' AND lease_until <= $1
ORDER BY reservation_day, reservation_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_HELD_ON_LOTS_BEFORE = """
SELECT DISTINCT r.reservation_day, r.reservation_id
FROM reservation r JOIN reservation_share s USING (reservation_day, reservation_id)
WHERE r.state = 'held' AND (s.lot_day < $1 OR r.reservation_day < $1)
ORDER BY r.reservation_day, r.reservation_id
"""

_WITH_HELD_RESERVATION = """
SELECT DISTINCT visitor_id FROM reservation
WHERE visitor_id = ANY($1::uuid[]) AND state = 'held'
"""

# Cheap whatever is kept: asked over all rows, each round.
EVERY_ROUND: dict[str, str] = {
    **D2_INVARIANTS,
    # D1: a failure means that a day outlived its rule; did its order arrive?
    "d1_no_day_partition_too_old": D1_NO_DAY_PARTITION_TOO_OLD,
    # D1: a failure means that a year outlived its rule; did its order arrive?
    "d1_no_year_partition_too_old": D1_NO_YEAR_PARTITION_TOO_OLD,
    # D1: a failure means that an order to let addresses go at once was not carried out.
    "d1_no_address_without_threat": """
        SELECT CASE WHEN privacy_threat_is_none() THEN
            (SELECT count(*) FROM ad_view_address
             WHERE privacy_made_at(ticket_id) < now() - interval '3 hours')
        ELSE 0 END""",
    # L5: a failure means a lease that nobody ended; is the expiry task running?
    "l5_no_reservation_outlives_its_lease": """
        SELECT count(*) FROM reservation
        WHERE state = 'held' AND lease_until < now() - interval '60 seconds'""",
}
# Asked of a window of days, from $1 to $2 (services/chassis/invariants.py).
DAY_INVARIANTS: dict[str, str] = {
    # L1: a failure means that credit appeared or vanished; stop granting and compare postings.
    # Every movement stays within its lot's day, so each day sums to zero by itself.
    "l1_sum_of_all_accounts_is_zero": """
        SELECT count(*) FROM (
            SELECT day FROM (
                SELECT account_day AS day, balance_ms FROM platform_account
                WHERE account_day BETWEEN $1 AND $2
                UNION ALL
                SELECT lot_day, available_ms + reserved_ms FROM lot
                WHERE lot_day BETWEEN $1 AND $2) a
            GROUP BY day HAVING sum(balance_ms) <> 0) unbalanced""",
    # L1: a failure means that a lot's columns are not the sum of its postings.
    "l1_lots_are_their_postings": """
        SELECT count(*) FROM (
            SELECT lot_day, ticket_id,
                sum(amount_ms) FILTER (WHERE debit_account = 'issued') AS granted,
                sum(CASE WHEN credit_account = 'available' THEN amount_ms
                         WHEN debit_account = 'available' THEN -amount_ms ELSE 0 END) AS available,
                sum(CASE WHEN credit_account = 'reserved' THEN amount_ms
                         WHEN debit_account = 'reserved' THEN -amount_ms ELSE 0 END) AS reserved
            FROM posting WHERE lot_day BETWEEN $1 AND $2 GROUP BY lot_day, ticket_id) p
        FULL JOIN (SELECT * FROM lot WHERE lot_day BETWEEN $1 AND $2) l USING (lot_day, ticket_id)
        WHERE (p.granted, p.available, p.reserved)
              IS DISTINCT FROM (l.granted_ms, l.available_ms, l.reserved_ms)""",
    # L2: the table's CHECK makes this impossible; it is asked all the same. No lot below zero, so
    # no sum of a visitor's lots.
    "l2_no_visitor_below_zero": """
        SELECT count(*) FROM lot
        WHERE lot_day BETWEEN $1 AND $2 AND least(available_ms, reserved_ms) < 0""",
    # L3: a failure means that an event was credited twice.
    "l3_each_event_credits_once": """
        SELECT count(*) FROM (SELECT 1 FROM posting
            WHERE operation = 'grant' AND lot_day BETWEEN $1 AND $2
            GROUP BY lot_day, ticket_id, kind HAVING count(*) > 1) p""",
    # L4: the table's CHECK makes this impossible; it is asked all the same.
    "l4_granted_is_the_sum_of_its_parts": """
        SELECT count(*) FROM lot WHERE lot_day BETWEEN $1 AND $2 AND granted_ms
            <> available_ms + reserved_ms + spent_ms + expired_ms + clawed_back_ms""",
    # L5: a failure means a reservation whose shares did not end as it did, or ended twice.
    "l5_reservations_end_once": """
        SELECT count(*) FROM reservation r
        JOIN (SELECT s.reservation_day, s.reservation_id,
                     sum(p.amount_ms) FILTER (WHERE p.operation = 'reserve') AS reserved,
                     coalesce(sum(p.amount_ms) FILTER (WHERE p.operation = 'spend'), 0) AS spent,
                     coalesce(sum(p.amount_ms)
                              FILTER (WHERE p.operation = 'release'), 0) AS released,
                     bool_and(p.posting_id IS NOT NULL) AS is_complete
              FROM reservation_share s LEFT JOIN posting p
                ON (p.lot_day, p.ticket_id, p.reservation_id)
                 = (s.lot_day, s.ticket_id, s.reservation_id)
              WHERE s.reservation_day BETWEEN $1 AND $2
              GROUP BY s.reservation_day, s.reservation_id) x
            USING (reservation_day, reservation_id)
        WHERE x.is_complete AND (x.reserved <> r.reserved_ms OR x.spent <> r.spent_ms
            OR x.spent + x.released <> CASE WHEN r.state = 'held' THEN 0 ELSE r.reserved_ms END)""",
    # L6: a failure means credit whose ad event cannot be shown.
    "l6_credit_traces_to_its_ad_event": """
        SELECT count(*) FROM (SELECT * FROM posting WHERE lot_day BETWEEN $1 AND $2) p
        LEFT JOIN (SELECT * FROM ad_view WHERE view_day BETWEEN $1 AND $2) v
            ON (v.view_day, v.ticket_id, v.kind) = (p.lot_day, p.ticket_id, p.kind)
        WHERE p.operation = 'grant' AND (v.ticket_id IS NULL OR v.credit_ms <> p.amount_ms
            OR v.tariff_version <> p.tariff_version)""",
}
INVARIANTS: dict[str, str] = EVERY_ROUND | over_all_days(DAY_INVARIANTS)


STATISTICS_VISITORS_MIN = 10
"""Fewer visitors of a network could be picked out; the database refuses fewer, too."""

_COUNT_NETWORKS = """
WITH day AS (
    INSERT INTO ad_statistics_day (view_day)
    SELECT DISTINCT address_day FROM ad_view_address WHERE address_day < $1
    ON CONFLICT DO NOTHING RETURNING view_day
), view AS (
    SELECT view_day, v.visitor_id, v.ticket_id, v.kind = 'complete' AS is_completed,
        network(set_masklen(a.address, CASE
            WHEN family(a.address) = 4 THEN 24
            -- 6to4: the IPv4 address of its host follows these 16 bits
            WHEN a.address << '2002::/16' THEN 40
            ELSE 48 END)) AS network
    FROM day JOIN ad_view v USING (view_day)
    JOIN ad_view_address a ON (a.address_day, a.ticket_id) = (v.view_day, v.ticket_id)
), many AS (
    SELECT view_day, network FROM view
    GROUP BY view_day, network HAVING count(DISTINCT visitor_id) >= $2
)
INSERT INTO ad_statistics (view_day, network, n_visitors, n_views, n_completed)
SELECT view_day, many.network, count(DISTINCT visitor_id), count(DISTINCT ticket_id),
    count(*) FILTER (WHERE is_completed)
FROM view LEFT JOIN many USING (view_day, network)
GROUP BY view_day, many.network HAVING count(DISTINCT visitor_id) >= $2
RETURNING 1
"""


class Store:
    """The ledger's tables on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._db = connection

    async def visitors_of_address(self, address: str) -> list[UUID]:
        """Return who watched an ad from an address."""
        rows = await self._db.fetch(
            """
            SELECT DISTINCT v.visitor_id FROM ad_view_address a
            JOIN ad_view v ON v.view_day = a.address_day AND v.ticket_id = a.ticket_id
            WHERE a.address = $1::text::inet
            """,
            address,
        )
        return [row["visitor_id"] for row in rows]

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
            SELECT view_day::text, network::text, n_visitors, n_views, n_completed
            FROM ad_statistics WHERE view_day >= $1 ORDER BY view_day, network
            """,
            since,
        )
        return [dict(row) for row in rows]

    # ------------------------------------------------------------------ tariffs, views

    async def tariffs(self) -> tuple[Tariff, ...]:
        """Return all tariffs, oldest first."""
        heads: dict[str, Any] = {}
        rules: dict[str, dict[Kind, TariffRule]] = {}
        for row in await self._db.fetch(_TARIFFS):
            heads[row["version"]] = row
            rules.setdefault(row["version"], {})[Kind(row["kind"])] = TariffRule(
                credit_permille=row["credit_permille"], credit_flat_ms=row["credit_flat_ms"]
            )
        return tuple(
            Tariff(
                version=version,
                valid_from=row["valid_from"],
                daily_cap_ms=row["daily_cap_ms"],
                tolerance_ms=row["tolerance_ms"],
                rules=rules[version],
            )
            for version, row in heads.items()
        )

    async def load_views(self, keys: set[LotKey], visitors: set[UUID]) -> ViewState:
        """Return what a batch of ad events is judged by; rows are locked in key order."""
        ordered = _in_order(keys)
        days, tickets = [k.day for k in ordered], [k.ticket_id for k in ordered]
        seen: dict[LotKey, set[Kind]] = {key: set() for key in ordered}
        watches: dict[UUID, Watch] = {}
        # the day before as well: an ad of before midnight uses up time after it
        oldest = min(days, default=date.max) - timedelta(days=1)
        for row in await self._db.fetch(_WATCHES, list(visitors), oldest):
            watch = watches.setdefault(
                row["visitor_id"], Watch(watched_until=row["watched_until"], credited_ms={})
            )
            watch.watched_until = max(watch.watched_until, row["watched_until"])
            watch.credited_ms[row["watch_day"]] = row["credited_ms"]
        for row in await self._db.fetch(_SEEN, days, tickets):
            seen[LotKey(row["view_day"], row["ticket_id"])].add(Kind(row["kind"]))
        return ViewState(seen=seen, watches=watches)

    async def save_views(
        self, recorded: Sequence[Recorded], addresses: Sequence[str], state: ViewState
    ) -> dict[UUID, int]:
        """Write recorded events with all that follows from them.

        Args:
            recorded: at least one, in the order of the fold.
            addresses: of each event; a ticket's first is kept, apart from the views.
            state: as the fold has left it; the watches of the events' visitors are written.

        Returns:
            What each visitor earned, milliseconds.

        Raises:
            errors.Transient: another process wrote one of them meanwhile; load and decide anew.
        """
        by_key = {r.event.ticket.key: r.event.ticket for r in recorded}
        tickets = [by_key[key] for key in _in_order(by_key)]
        index_of = {ticket.key: n for n, ticket in enumerate(tickets)}
        indexes = [index_of[r.event.ticket.key] for r in recorded]
        first_address: dict[int, str] = {}
        ticket_ms = [0] * len(tickets)
        for n, r, address in zip(indexes, recorded, addresses, strict=True):
            ticket_ms[n] += r.credit_ms
            first_address.setdefault(n, address)
        watched = sorted({(t.visitor_id, t.key.day) for t in tickets}, key=_visitor_then_day)
        watches = [state.watches[visitor] for visitor, _ in watched]
        n_saved = await self._db.fetchval(
            _SAVE_VIEWS,
            [t.key.day for t in tickets], [t.ticket_id for t in tickets],
            [t.visitor_id for t in tickets], [lot_expiry(t.key.day) for t in tickets],
            [first_address[n] for n in range(len(tickets))], ticket_ms,
            _literal([n + 1 for n in indexes]), _literal([r.event.kind for r in recorded]),
            [r.event.at for r in recorded], _literal([r.event.position_ms for r in recorded]),
            _literal([r.credit_ms for r in recorded]), [r.tariff_version for r in recorded],
            _literal([r.capped for r in recorded]),
            [day for _, day in watched], [visitor for visitor, _ in watched],
            [w.watched_until for w in watches],
            [w.credited_ms[day] for w, (_, day) in zip(watches, watched, strict=True)],
        )  # fmt: skip
        if n_saved != len(recorded):
            raise errors.Transient("an ad event was written by someone else meanwhile")
        earned_ms: dict[UUID, int] = {}
        for ticket, amount_ms in zip(tickets, ticket_ms, strict=True):
            earned_ms[ticket.visitor_id] = earned_ms.get(ticket.visitor_id, 0) + amount_ms
        return earned_ms

    # ------------------------------------------------------------------ lots and postings

    async def lots_of(self, visitors: set[UUID]) -> dict[UUID, dict[LotKey, Lot]]:
        """Return the lots with something available, by visitor; locked in key order."""
        found: dict[UUID, dict[LotKey, Lot]] = {visitor: {} for visitor in visitors}
        for row in await self._db.fetch(_LOTS_OF_VISITORS, sorted(visitors)):
            lot = _lot(row)
            found[lot.visitor_id][lot.key] = lot
        return found

    async def lots(self, keys: Iterable[LotKey]) -> dict[LotKey, Lot]:
        """Return lots by key; locked in key order."""
        ordered = sorted(set(keys))
        rows = await self._db.fetch(
            _LOTS_BY_KEY, [k.day for k in ordered], [k.ticket_id for k in ordered]
        )
        return {lot.key: lot for lot in map(_lot, rows)}

    async def save_credit(self, lots: Iterable[Lot], postings: Sequence[Posting]) -> None:
        """Write lots as they are after their postings, the postings, and the platform's side."""
        if not postings:
            return
        changed = sorted({p.lot for p in postings})
        by_key = {lot.key: lot for lot in lots}
        rows = [by_key[key] for key in changed]
        await self._db.execute(
            _SAVE_LOTS, [r.key.day for r in rows], [r.key.ticket_id for r in rows],
            [r.visitor_id for r in rows], [r.expires_at for r in rows],
            [r.granted_ms for r in rows], [r.available_ms for r in rows],
            [r.reserved_ms for r in rows], [r.spent_ms for r in rows],
            [r.expired_ms for r in rows], [r.clawed_back_ms for r in rows],
        )  # fmt: skip
        await self._db.execute(
            _SAVE_POSTINGS, [p.lot.day for p in postings], [p.lot.ticket_id for p in postings],
            [p.visitor_id for p in postings], [p.operation.value for p in postings],
            [ACCOUNTS_OF[p.operation][0].value for p in postings],
            [ACCOUNTS_OF[p.operation][1].value for p in postings],
            [p.amount_ms for p in postings], [p.at for p in postings],
            [p.reservation_id for p in postings],
            [None if p.kind is None else p.kind.value for p in postings],
            [p.tariff_version for p in postings],
        )  # fmt: skip
        deltas = sorted(platform_deltas(postings).items())
        await self._db.execute(
            _SAVE_PLATFORM, [day for (day, _), _ in deltas],
            [account.value for (_, account), _ in deltas], [amount for _, amount in deltas],
        )  # fmt: skip

    async def balances(self, visitors: Iterable[UUID]) -> dict[UUID, tuple[int, int]]:
        """Return (available, reserved) milliseconds by visitor; zeros for an unknown one."""
        rows = await self._db.fetch(_BALANCES, sorted(set(visitors)))
        return {r["visitor_id"]: (r["available_ms"], r["reserved_ms"]) for r in rows}

    # ------------------------------------------------------------------ reservations

    async def reservations(self, ids: Iterable[UUID]) -> dict[UUID, Reservation]:
        """Return reservations with their shares, oldest lots first; locked in key order."""
        ordered = sorted(set(ids))
        days = [day_of(reservation_id) for reservation_id in ordered]
        rows = await self._db.fetch(_RESERVATIONS, days, ordered)
        shares: dict[UUID, list[Share]] = {}
        for row in await self._db.fetch(_SHARES, days, ordered):
            key = LotKey(row["lot_day"], row["ticket_id"])
            shares.setdefault(row["reservation_id"], []).append(
                Share(lot=key, reserved_ms=row["reserved_ms"])
            )
        return {
            row["reservation_id"]: _reservation(row, shares.get(row["reservation_id"], []))
            for row in rows
        }

    async def add_reservations(self, reservations: Sequence[Reservation]) -> None:
        """Write new reservations and their shares."""
        await self._db.execute(
            _ADD_RESERVATIONS, [r.day for r in reservations],
            [r.reservation_id for r in reservations], [r.visitor_id for r in reservations],
            [r.state.value for r in reservations], [r.wanted_ms for r in reservations],
            [r.reserved_ms for r in reservations], [r.lease_until for r in reservations],
            [r.requested_at for r in reservations],
        )  # fmt: skip
        shares = [(r, share) for r in reservations for share in r.shares]
        await self._db.execute(
            _ADD_SHARES, [r.day for r, _ in shares], [r.reservation_id for r, _ in shares],
            [s.lot.day for _, s in shares], [s.lot.ticket_id for _, s in shares],
            [s.reserved_ms for _, s in shares],
        )  # fmt: skip

    async def end_reservations(self, reservations: Sequence[Reservation]) -> None:
        """Write how reservations ended; the database refuses one that had ended before (L5)."""
        await self._db.execute(
            _END_RESERVATIONS, [r.day for r in reservations],
            [r.reservation_id for r in reservations], [r.state.value for r in reservations],
            [r.spent_ms for r in reservations], [r.ended_at for r in reservations],
            [r.connected_at for r in reservations],
        )  # fmt: skip

    async def mark_connected(self, connected: Sequence[tuple[UUID, datetime]]) -> None:
        """Note since when both legs of held reservations are connected."""
        await self._db.execute(
            _CONNECTED, [day_of(r) for r, _ in connected], [r for r, _ in connected],
            [at for _, at in connected],
        )  # fmt: skip

    # ------------------------------------------------------------------ what time ends

    async def expired_lots(self, now: datetime, limit: int) -> list[Lot]:
        """Return lots past their life with something available; skips what others hold."""
        return [_lot(row) for row in await self._db.fetch(_EXPIRED_LOTS, now, limit)]

    async def open_lots_before(self, day: date) -> list[Lot]:
        """Return lots of days before `day` with something available."""
        return [_lot(row) for row in await self._db.fetch(_OPEN_LOTS_BEFORE, day)]

    async def lapsed_reservations(self, now: datetime, limit: int) -> list[UUID]:
        """Return ids of held reservations past their lease."""
        return [row["reservation_id"] for row in await self._db.fetch(_LAPSED, now, limit)]

    async def visitors_with_held_reservation(self, visitors: Iterable[UUID]) -> set[UUID]:
        """Return those of the visitors who have a reservation that has not ended."""
        rows = await self._db.fetch(_WITH_HELD_RESERVATION, sorted(set(visitors)))
        return {row["visitor_id"] for row in rows}

    async def held_reservations_before(self, day: date) -> list[UUID]:
        """Return ids of held reservations of, or with shares of, days before `day`."""
        rows = await self._db.fetch(_HELD_ON_LOTS_BEFORE, day)
        return [row["reservation_id"] for row in rows]


def _in_order(keys: Iterable[LotKey]) -> list[LotKey]:
    # by the id's number: PostgreSQL's own order of uuids, and quicker than comparing the objects
    return sorted(keys, key=lambda key: (key.day, key.ticket_id.int))


def _literal(values: Sequence[int] | Sequence[Kind]) -> str:
    # an array as PostgreSQL writes it, for numbers and our own words, which need no quotes:
    # asyncpg asks three abstract classes about each element of a list, for what costs more than all
    # the rest of sending it
    return "{" + ",".join(map(str, values)) + "}"


def _visitor_then_day(key: tuple[UUID, date]) -> tuple[int, date]:
    return key[0].int, key[1]


def _lot(row: Any) -> Lot:
    return Lot(
        key=LotKey(row["lot_day"], row["ticket_id"]),
        visitor_id=row["visitor_id"],
        expires_at=row["expires_at"],
        granted_ms=row["granted_ms"],
        available_ms=row["available_ms"],
        reserved_ms=row["reserved_ms"],
        spent_ms=row["spent_ms"],
        expired_ms=row["expired_ms"],
        clawed_back_ms=row["clawed_back_ms"],
    )


def _reservation(row: Any, shares: list[Share]) -> Reservation:
    return Reservation(
        reservation_id=row["reservation_id"],
        visitor_id=row["visitor_id"],
        state=ReservationState(row["state"]),
        wanted_ms=row["wanted_ms"],
        reserved_ms=row["reserved_ms"],
        spent_ms=row["spent_ms"],
        lease_until=row["lease_until"],
        requested_at=row["requested_at"],
        connected_at=row["connected_at"],
        ended_at=row["ended_at"],
        shares=tuple(shares),
    )
