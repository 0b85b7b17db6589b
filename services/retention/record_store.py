"""All SQL about records that other systems keep."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import asyncpg

from services.chassis import db

INVARIANTS = {
    # D1: a record's day has come, and no order for it was issued within a sweep's hour and a day
    "d1_no_record_due_without_order": """
        SELECT count(*) FROM retention_record_due d
        CROSS JOIN LATERAL (VALUES ('block', d.block_at), ('delete', d.delete_at))
            AS w (deed, due_at)
        WHERE greatest(w.due_at, d.computed_at) < now() - interval '25 hours'
          AND w.due_at < now()
          AND NOT EXISTS (SELECT FROM retention_record_order o
                          WHERE o.record_id = d.record_id AND o.deed IN (w.deed, 'delete'))
    """,
    # a record of which something was told, but when it is due was never computed
    "d1_every_record_is_watched": """
        SELECT count(*) FROM retention_record r
        WHERE NOT EXISTS (SELECT FROM retention_record_due d WHERE d.record_id = r.record_id)
          AND NOT EXISTS (SELECT FROM retention_record_order o JOIN retention_completion c
                          USING (order_id) WHERE o.record_id = r.record_id AND o.deed = 'delete')
    """,
}


@dataclass(frozen=True, kw_only=True)
class RecordRow:
    """A record as the database has it."""

    record_id: UUID
    kind: str
    document_class: str | None
    holder: str


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """Something that was told of a record."""

    event_id: UUID
    record_id: UUID
    happened: str
    happened_on: date


@dataclass(frozen=True, kw_only=True)
class DueRow:
    """When a record is to be blocked and deleted, and by which rule that was computed."""

    record_id: UUID
    block_at: datetime | None
    delete_at: datetime | None
    rule_from: date
    schedule_version: str


class RecordStore:
    """Rows about records, on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection

    async def known(self, record_ids: Collection[UUID]) -> dict[UUID, RecordRow]:
        """Return known records by id."""
        rows = await self._connection.fetch(
            """
            SELECT record_id, kind, document_class, holder FROM retention_record
            WHERE record_id = ANY($1)
            """,
            list(record_ids),
        )
        return {row["record_id"]: RecordRow(**row) for row in rows}

    async def events(self, record_ids: Collection[UUID]) -> dict[UUID, list[EventRow]]:
        """Return what was told of records, by record, in the order of its telling."""
        rows = await self._connection.fetch(
            """
            SELECT event_id, record_id, happened, happened_on FROM retention_record_event
            WHERE record_id = ANY($1) ORDER BY record_id, told
            """,
            list(record_ids),
        )
        found: dict[UUID, list[EventRow]] = {}
        for row in rows:
            found.setdefault(row["record_id"], []).append(EventRow(**row))
        return found

    async def save(self, records: Sequence[RecordRow], told_at: datetime) -> None:
        """Append records that are new."""
        await self._connection.executemany(
            """
            INSERT INTO retention_record (record_id, kind, document_class, holder, first_told_at)
            VALUES ($1, $2, $3, $4, $5)
            """,
            [(r.record_id, r.kind, r.document_class, r.holder, told_at) for r in records],
        )

    async def save_events(self, events: Sequence[EventRow], told_at: datetime) -> int:
        """Append what was told, in this order, each event once; return how many were new."""
        rows = await self._connection.fetch(
            """
            INSERT INTO retention_record_event
                (event_id, record_id, happened, happened_on, told_at)
            SELECT event_id, record_id, happened, happened_on, $5
            FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::date[]) WITH ORDINALITY
                AS given (event_id, record_id, happened, happened_on, nth)
            ORDER BY nth
            ON CONFLICT (event_id) DO NOTHING RETURNING event_id
            """,
            [event.event_id for event in events],
            [event.record_id for event in events],
            [event.happened for event in events],
            [event.happened_on for event in events],
            told_at,
        )
        return len(rows)

    async def save_dues(self, dues: Sequence[DueRow], computed_at: datetime) -> None:
        """Write when records are due, in place of what was computed before."""
        await self._connection.executemany(
            """
            INSERT INTO retention_record_due
                (record_id, block_at, delete_at, rule_from, schedule_version, computed_at)
            VALUES ($1, $2, $3, $4, $5, $6)
            ON CONFLICT (record_id) DO UPDATE SET block_at = excluded.block_at,
                delete_at = excluded.delete_at, rule_from = excluded.rule_from,
                schedule_version = excluded.schedule_version, computed_at = excluded.computed_at
            """,
            [
                (d.record_id, d.block_at, d.delete_at, d.rule_from, d.schedule_version, computed_at)
                for d in dues
            ],
        )

    async def stale(
        self, rules_from: Mapping[str, date], schedule_version: str, limit: int
    ) -> list[UUID]:
        """Return records that were computed by another rule than the one in force.

        Args:
            rules_from: by kind, since when its rule is in force.
        """
        rows = await self._connection.fetch(
            """
            SELECT d.record_id FROM retention_record_due d JOIN retention_record r USING (record_id)
            JOIN unnest($1::text[], $2::date[]) AS rule (kind, rule_from) ON rule.kind = r.kind
            WHERE d.schedule_version <> $3 OR d.rule_from <> rule.rule_from
            LIMIT $4
            """,
            list(rules_from),
            list(rules_from.values()),
            schedule_version,
            limit,
        )
        return [row["record_id"] for row in rows]

    async def forget_deleted(self) -> None:
        """Watch no longer what its holder has deleted; what was told and ordered stays."""
        await self._connection.execute(
            """
            DELETE FROM retention_record_due d
            WHERE EXISTS (SELECT FROM retention_record_order o JOIN retention_completion c
                          USING (order_id) WHERE o.record_id = d.record_id AND o.deed = 'delete')
            """
        )

    async def drop(self, before: date) -> int:
        """Drop deleted records of before a day whose orders have gone; return how many.

        No more than the rule allows by the database's clock.
        """
        found: int = await self._connection.fetchval(
            "SELECT retention_record_drop(least($1, retention_evidence_before(now())))", before
        )
        return found

    async def unordered(self, as_of: datetime, repeat_before: datetime) -> list[UUID]:
        """Return records with a deed due at an instant that nobody was ordered to do, or answered.

        Args:
            repeat_before: an order of before, still without its answer, no longer counts.
        """
        rows = await self._connection.fetch(
            """
            SELECT DISTINCT d.record_id FROM retention_record_due d
            CROSS JOIN LATERAL (VALUES ('block', d.block_at), ('delete', d.delete_at))
                AS w (deed, due_at)
            WHERE (d.block_at <= $1 OR d.delete_at <= $1) AND w.due_at <= $1
              AND NOT EXISTS (
                SELECT FROM retention_record_order ro JOIN retention_order o USING (order_id)
                WHERE ro.record_id = d.record_id AND ro.deed IN (w.deed, 'delete')
                  AND (o.issued_at >= $2 OR EXISTS (SELECT FROM retention_completion c
                                                    WHERE c.order_id = o.order_id)))
            ORDER BY d.record_id
            """,
            as_of,
            repeat_before,
        )
        return [row["record_id"] for row in rows]

    async def next_attempt(self, kind: str, before_day: date) -> int:
        """Return a number that no order of a kind and day has yet."""
        found: int = await self._connection.fetchval(
            """
            SELECT coalesce(max(attempt) + 1, 0) FROM retention_order
            WHERE kind = $1 AND before_day = $2
            """,
            kind,
            before_day,
        )
        return found

    async def save_order(self, order_id: UUID, record_ids: Collection[UUID], deed: str) -> None:
        """Record which records an order is about."""
        await self._connection.execute(
            """
            INSERT INTO retention_record_order (order_id, record_id, deed)
            SELECT $1, record_id, $3 FROM unnest($2::uuid[]) AS record_id
            """,
            order_id,
            list(record_ids),
            deed,
        )

    # ------------------------------------------------------------------ explain

    async def orders_of(self, record_id: UUID) -> list[tuple[UUID, str]]:
        """Return the orders about a record with their deeds, oldest first."""
        rows: list[asyncpg.Record] = await self._connection.fetch(
            """
            SELECT order_id, deed FROM retention_record_order WHERE record_id = $1
            ORDER BY order_id
            """,
            record_id,
        )
        return [(row["order_id"], row["deed"]) for row in rows]

    async def count_of_order(self, order_id: UUID) -> dict[str, int]:
        """Return how many records an order names, by deed; empty for one about rows."""
        rows = await self._connection.fetch(
            """
            SELECT deed, count(*) AS n FROM retention_record_order WHERE order_id = $1
            GROUP BY deed ORDER BY deed
            """,
            order_id,
        )
        return {row["deed"]: row["n"] for row in rows}
