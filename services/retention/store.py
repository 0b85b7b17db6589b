"""All SQL of this service."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

import asyncpg

from services.chassis import db
from services.retention import protection_store, record_store
from services.retention.domain import Count, Order, Receipt, Standing, Sweep
from services.retention.evidence import Evidence, Item
from services.retention.protection_store import ProtectionStore
from services.retention.record_store import RecordStore

_EVIDENCE_LOCK = 7_411_101

INVARIANTS = {
    **protection_store.INVARIANTS,
    **record_store.INVARIANTS,
    # orders whose completion is written, but somebody expected has not answered
    "d3_complete_only_with_all_receipts": """
        SELECT count(*) FROM retention_completion c JOIN retention_order o USING (order_id)
        WHERE EXISTS (
            SELECT FROM unnest(o.expected) AS wanted (name)
            WHERE NOT EXISTS (SELECT FROM retention_receipt r
                              WHERE r.order_id = o.order_id AND r.service = wanted.name)
        )
    """,
    "d3_complete_with_all_receipts": """
        SELECT count(*) FROM retention_order o
        WHERE NOT EXISTS (SELECT FROM retention_completion c WHERE c.order_id = o.order_id)
          AND NOT EXISTS (
            SELECT FROM unnest(o.expected) AS wanted (name)
            WHERE NOT EXISTS (SELECT FROM retention_receipt r
                              WHERE r.order_id = o.order_id AND r.service = wanted.name)
          )
    """,
    "d3_no_order_overdue": """
        SELECT count(*) FROM retention_order o
        WHERE o.overdue_at < now()
          AND NOT EXISTS (SELECT FROM retention_completion c WHERE c.order_id = o.order_id)
    """,
    "receipts_fit_their_orders": """
        SELECT count(*) FROM retention_receipt r JOIN retention_order o USING (order_id)
        WHERE r.kind <> o.kind OR r.service <> ALL (o.expected)
    """,
    # by the clock of now: a measurement that has stopped turns into a violation too
    "d1_no_topic_older_than_its_rule": """
        SELECT count(*) FROM retention_topic_age WHERE now() - oldest_at > age_max
    """,
}


@dataclass(frozen=True, kw_only=True)
class Age:
    """How old the oldest record of a partition is; `oldest_at` is None where it is empty."""

    topic: str
    partition: int
    oldest_at: datetime | None
    age_max: timedelta


class Store:
    """Retention's rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection
        self.protections = ProtectionStore(connection)
        self.evidence = Evidence(connection)
        self.records = RecordStore(connection)

    async def lock(self) -> None:
        """Let one transaction at a time write evidence: sweeps and last receipts meet here.

        An advisory lock, because rows that may never be updated cannot be locked either.
        """
        await self._connection.execute("SELECT pg_advisory_xact_lock($1)", _EVIDENCE_LOCK)

    async def prepare_outbox(self) -> None:
        """Make the outbox's partition of this hour, for a command beside a stopped service."""
        await self._connection.execute("SELECT chassis_outbox_maintain()")

    # ------------------------------------------------------------------ sweeps

    async def save_sweep(
        self, *, sweep_id: UUID, as_of: datetime, swept_at: datetime, schedule_version: str
    ) -> None:
        """Record that a sweep was made."""
        await self._connection.execute(
            """
            INSERT INTO retention_sweep (sweep_id, as_of, swept_at, schedule_version)
            VALUES ($1, $2, $3, $4)
            """,
            sweep_id,
            as_of,
            swept_at,
            schedule_version,
        )

    async def last_attempt(self, kind: str, before_day: date) -> Order | None:
        """Return the latest order of a cut, if one was ever issued."""
        row = await self._connection.fetchrow(
            """
            SELECT * FROM retention_order
            WHERE kind = $1 AND before_day = $2 AND action = 'drop'
            ORDER BY attempt DESC LIMIT 1
            """,
            kind,
            before_day,
        )
        return None if row is None else _order(row)

    async def save_order(self, order: Order) -> None:
        """Record an order; the same cut and attempt a second time is refused by the database."""
        await self._connection.execute(
            """
            INSERT INTO retention_order (order_id, kind, requirement, before_day, attempt, as_of,
                                         issued_at, overdue_at, expected, action)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            """,
            order.order_id,
            order.kind,
            order.requirement,
            order.before_day,
            order.attempt,
            order.as_of,
            order.issued_at,
            order.overdue_at,
            list(order.expected),
            order.action,
        )
        await self.evidence.chain([Item("order", order.order_id)], order.issued_at)

    async def link(self, sweep_id: UUID, order_id: UUID, *, is_new: bool) -> None:
        """Record that a sweep made an order, or found it made."""
        await self._connection.execute(
            "INSERT INTO retention_sweep_order (sweep_id, order_id, is_new) VALUES ($1, $2, $3)",
            sweep_id,
            order_id,
            is_new,
        )

    async def sweep(self, sweep_id: UUID) -> Sweep | None:
        """Return a sweep with its orders, by kind."""
        row = await self._connection.fetchrow(
            "SELECT * FROM retention_sweep WHERE sweep_id = $1", sweep_id
        )
        if row is None:
            return None
        ids = await self._connection.fetch(
            """
            SELECT order_id FROM retention_sweep_order JOIN retention_order USING (order_id)
            WHERE sweep_id = $1 ORDER BY kind
            """,
            sweep_id,
        )
        standings = await self.standings([row["order_id"] for row in ids])
        return Sweep(
            sweep_id=sweep_id,
            as_of=row["as_of"],
            swept_at=row["swept_at"],
            schedule_version=row["schedule_version"],
            orders=tuple(standings[row["order_id"]] for row in ids),
        )

    # ------------------------------------------------------------------ orders and receipts

    async def standings(self, order_ids: Collection[UUID]) -> dict[UUID, Standing]:
        """Return orders as they stand, by id; unknown ids are left out."""
        ids = list(order_ids)
        orders = await self._connection.fetch(
            """
            SELECT o.*, c.completed_at
            FROM retention_order o LEFT JOIN retention_completion c USING (order_id)
            WHERE o.order_id = ANY($1)
            """,
            ids,
        )
        receipts: dict[UUID, list[Receipt]] = {}
        for row in await self._connection.fetch(
            "SELECT * FROM retention_receipt WHERE order_id = ANY($1) ORDER BY service", ids
        ):
            receipts.setdefault(row["order_id"], []).append(_receipt(row))
        return {
            row["order_id"]: Standing(
                order=_order(row),
                receipts=tuple(receipts.get(row["order_id"], ())),
                completed_at=row["completed_at"],
            )
            for row in orders
        }

    async def open_orders(self) -> list[Standing]:
        """Return the orders that are not complete; few, since each is overdue soon."""
        rows = await self._connection.fetch(
            """
            SELECT order_id FROM retention_order o
            WHERE NOT EXISTS (SELECT FROM retention_completion c WHERE c.order_id = o.order_id)
            """
        )
        return list((await self.standings([row["order_id"] for row in rows])).values())

    async def last_orders(self, kind: str, until: datetime, limit: int) -> list[UUID]:
        """Return the latest orders of a kind that were issued before an instant."""
        rows = await self._connection.fetch(
            """
            SELECT order_id FROM retention_order WHERE kind = $1 AND issued_at < $2
            ORDER BY issued_at DESC, order_id DESC LIMIT $3
            """,
            kind,
            until,
            limit,
        )
        return [row["order_id"] for row in rows]

    async def last_sweep(self, until: datetime) -> tuple[UUID, datetime, datetime, str] | None:
        """Return the latest sweep before an instant: id, as of, made at, version."""
        row = await self._connection.fetchrow(
            """
            SELECT sweep_id, as_of, swept_at, schedule_version FROM retention_sweep
            WHERE swept_at < $1 ORDER BY swept_at DESC, sweep_id DESC LIMIT 1
            """,
            until,
        )
        return None if row is None else tuple(row)

    async def version_of_order(self, order_id: UUID) -> str | None:
        """Return the schedule's version of the sweep that issued an order."""
        found: str | None = await self._connection.fetchval(
            """
            SELECT schedule_version FROM retention_sweep JOIN retention_sweep_order USING (sweep_id)
            WHERE order_id = $1 AND is_new
            """,
            order_id,
        )
        return found

    async def orders_of_protection(self, protection_id: UUID) -> list[UUID]:
        """Return the orders about a hold or restriction, oldest first."""
        rows = await self._connection.fetch(
            """
            SELECT order_id FROM retention_person_order WHERE protection_id = $1 ORDER BY order_id
            """,
            protection_id,
        )
        return [row["order_id"] for row in rows]

    async def steps_of_protection(self, protection_id: UUID) -> list[tuple[str, str, datetime]]:
        """Return what was done about a hold or restriction, by whom of the staff, and when."""
        rows = await self._connection.fetch(
            """
            SELECT step, staff_id, done_at FROM retention_protection_step
            WHERE protection_id = $1 ORDER BY done_at, step
            """,
            protection_id,
        )
        return [(row["step"], row["staff_id"], row["done_at"]) for row in rows]

    async def save_receipts(self, receipts: Sequence[Receipt], received_at: datetime) -> None:
        """Append receipts that are new."""
        await self._connection.executemany(
            """
            INSERT INTO retention_receipt (order_id, service, kind, counts, done_at, received_at)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            [
                (
                    receipt.order_id,
                    receipt.service,
                    receipt.kind,
                    [asdict(count) for count in receipt.counts],
                    receipt.done_at,
                    received_at,
                )
                for receipt in receipts
            ],
        )
        items = [Item("receipt", receipt.order_id, receipt.service) for receipt in receipts]
        await self.evidence.chain(items, received_at)

    async def save_completions(self, order_ids: Sequence[UUID], completed_at: datetime) -> None:
        """Record that all expected answers are there."""
        await self._connection.executemany(
            "INSERT INTO retention_completion (order_id, completed_at) VALUES ($1, $2)",
            [(order_id, completed_at) for order_id in order_ids],
        )

    # ------------------------------------------------------------------ topics

    async def save_ages(self, ages: Sequence[Age], measured_at: datetime) -> None:
        """Keep the last measurement of each partition."""
        await self._connection.executemany(
            """
            INSERT INTO retention_topic_age (topic, part, oldest_at, age_max, measured_at)
            VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (topic, part) DO UPDATE SET oldest_at = excluded.oldest_at,
                age_max = excluded.age_max, measured_at = excluded.measured_at
            """,
            [(age.topic, age.partition, age.oldest_at, age.age_max, measured_at) for age in ages],
        )


def _order(row: asyncpg.Record) -> Order:
    return Order(
        order_id=row["order_id"],
        kind=row["kind"],
        requirement=row["requirement"],
        before_day=row["before_day"],
        attempt=row["attempt"],
        as_of=row["as_of"],
        issued_at=row["issued_at"],
        overdue_at=row["overdue_at"],
        expected=tuple(row["expected"]),
        action=row["action"],
    )


def _receipt(row: asyncpg.Record) -> Receipt:
    return Receipt(
        order_id=row["order_id"],
        service=row["service"],
        kind=row["kind"],
        counts=tuple(Count(**count) for count in row["counts"]),
        done_at=row["done_at"],
    )
