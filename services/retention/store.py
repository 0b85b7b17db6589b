"""All SQL of this service."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

import asyncpg

from services.chassis import db
from services.privacy.staff import Signer
from services.retention import protection_store, record_store
from services.retention.domain import Count, Order, Receipt, Standing, Sweep, Waiver
from services.retention.evidence import Evidence, Item
from services.retention.protection_store import ProtectionStore
from services.retention.record_store import RecordStore

_EVIDENCE_LOCK = 7_411_101

INVARIANTS = {
    **protection_store.INVARIANTS,
    **record_store.INVARIANTS,
    # orders whose completion is written, but somebody expected has neither answered nor been waived
    "d3_complete_only_with_all_receipts": """
        SELECT count(*) FROM retention_completion c JOIN retention_order o USING (order_id)
        WHERE EXISTS (
            SELECT FROM unnest(o.expected) AS wanted (name)
            WHERE NOT EXISTS (SELECT FROM retention_receipt r
                              WHERE r.order_id = o.order_id AND r.service = wanted.name)
              AND NOT EXISTS (SELECT FROM retention_waiver w
                              JOIN retention_waiver_confirmation USING (waiver_id)
                              WHERE w.order_id = o.order_id AND w.holder = wanted.name)
        )
    """,
    "d3_complete_with_all_receipts": """
        SELECT count(*) FROM retention_order o
        WHERE NOT EXISTS (SELECT FROM retention_completion c WHERE c.order_id = o.order_id)
          AND NOT EXISTS (
            SELECT FROM unnest(o.expected) AS wanted (name)
            WHERE NOT EXISTS (SELECT FROM retention_receipt r
                              WHERE r.order_id = o.order_id AND r.service = wanted.name)
              AND NOT EXISTS (SELECT FROM retention_waiver w
                              JOIN retention_waiver_confirmation USING (waiver_id)
                              WHERE w.order_id = o.order_id AND w.holder = wanted.name)
          )
    """,
    "d3_two_persons_waive": """
        SELECT count(*) FROM retention_waiver a JOIN retention_waiver_confirmation b
            USING (waiver_id, staff_id)
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


@dataclass(frozen=True, kw_only=True)
class ProposedWaiver:
    """What one person has said about an answer that will not come."""

    waiver_id: UUID
    reason: str
    staff_id: str


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
            WHERE kind = $1 AND before_day = $2 AND action IN ('drop', 'anonymise')
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
        waived: dict[UUID, list[Waiver]] = {}
        for row in await self._connection.fetch(
            """
            SELECT w.order_id, w.holder, w.reason, w.staff_id AS proposed_by,
                   c.staff_id AS confirmed_by, c.confirmed_at
            FROM retention_waiver w JOIN retention_waiver_confirmation c USING (waiver_id)
            WHERE w.order_id = ANY($1) ORDER BY w.holder
            """,
            ids,
        ):
            found = dict(row)
            waived.setdefault(found.pop("order_id"), []).append(Waiver(**found))
        return {
            row["order_id"]: Standing(
                order=_order(row),
                receipts=tuple(receipts.get(row["order_id"], ())),
                completed_at=row["completed_at"],
                waived=tuple(waived.get(row["order_id"], ())),
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

    async def person_orders_of_kind(self, kind: str, until: datetime) -> dict[str, int]:
        """Return how many orders about persons touched a kind before an instant, by action."""
        rows = await self._connection.fetch(
            """
            SELECT o.action, count(*) AS n
            FROM retention_person_order p JOIN retention_order o USING (order_id)
            WHERE $1 = ANY(p.kinds) AND o.issued_at < $2 GROUP BY o.action ORDER BY o.action
            """,
            kind,
            until,
        )
        return {row["action"]: row["n"] for row in rows}

    async def person_order(self, order_id: UUID) -> dict[str, object] | None:
        """Return what an order about persons is, without them; who confirmed a hold or its end."""
        row = await self._connection.fetchrow(
            """
            SELECT p.kinds, p.from_day, p.n_visitors, p.case_number, p.protection_id,
                   coalesce(s.staff_id, p.staff_id) AS ordered_by,
                   CASE WHEN s.staff_id IS NOT NULL THEN p.staff_id END AS confirmed_by,
                   p.schedule_version,
                   (SELECT gone_at FROM retention_names_gone g WHERE g.order_id = p.order_id)
                       AS names_gone_at
            FROM retention_person_order p JOIN retention_order o USING (order_id)
            LEFT JOIN retention_protection_step s ON s.protection_id = p.protection_id
                AND (o.action, s.step) IN (('hold', 'proposed'), ('release', 'release_proposed'))
            WHERE p.order_id = $1
            """,
            order_id,
        )
        return None if row is None else dict(row)

    async def sent_again_at(self, order_id: UUID) -> list[datetime]:
        """Return when an order was sent once more."""
        rows = await self._connection.fetch(
            "SELECT sent_at FROM retention_reissue WHERE order_id = $1 ORDER BY 1", order_id
        )
        return [row["sent_at"] for row in rows]

    async def open_waivers(self, order_id: UUID) -> list[dict[str, object]]:
        """Return waivers that were proposed and that nobody has confirmed."""
        rows = await self._connection.fetch(
            """
            SELECT holder, reason, staff_id AS proposed_by, proposed_at FROM retention_waiver w
            WHERE order_id = $1 AND NOT EXISTS (SELECT FROM retention_waiver_confirmation c
                                                WHERE c.waiver_id = w.waiver_id)
            ORDER BY proposed_at
            """,
            order_id,
        )
        return [dict(row) for row in rows]

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

    # ------------------------------------------------------------------ waivers

    async def propose_waiver(
        self, order_id: UUID, proposed: ProposedWaiver, holder: str, now: datetime, sign: Signer
    ) -> None:
        """Record that somebody wants to wait no longer for an answer."""
        content = {
            "waiver_id": proposed.waiver_id,
            "order_id": order_id,
            "holder": holder,
            "reason": proposed.reason,
            "staff_id": proposed.staff_id,
            "proposed_at": now,
        }
        await self._connection.execute(
            """
            INSERT INTO retention_waiver (waiver_id, order_id, holder, reason, staff_id,
                                          proposed_at, key_id, signature)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            *content.values(),
            *sign(proposed.staff_id, "waiver", content),
        )
        await self.evidence.chain([Item("waiver", proposed.waiver_id)], now)

    async def proposed_waiver(
        self, order_id: UUID, holder: str, proposed_after: datetime
    ) -> ProposedWaiver | None:
        """Return the last proposal about an answer that is not waived, if it is not too old."""
        row = await self._connection.fetchrow(
            """
            SELECT waiver_id, reason, staff_id FROM retention_waiver
            WHERE order_id = $1 AND holder = $2 AND proposed_at >= $3
            ORDER BY proposed_at DESC, waiver_id DESC LIMIT 1
            """,
            order_id,
            holder,
            proposed_after,
        )
        return None if row is None else ProposedWaiver(**row)

    async def confirm_waiver(
        self, waiver_id: UUID, staff_id: str, now: datetime, sign: Signer
    ) -> None:
        """Let a waiver count; the database refuses the same person, and an answer that is there."""
        content = {"waiver_id": waiver_id, "staff_id": staff_id, "confirmed_at": now}
        await self._connection.execute(
            """
            INSERT INTO retention_waiver_confirmation (waiver_id, staff_id, confirmed_at, key_id,
                                                       signature)
            VALUES ($1, $2, $3, $4, $5)
            """,
            *content.values(),
            *sign(staff_id, "waiver_confirmation", content),
        )
        await self.evidence.chain([Item("waiver_confirmation", waiver_id)], now)

    async def count_waived(self) -> int:
        """Return how many answers are waived, of all orders whose evidence is there."""
        found: int = await self._connection.fetchval(
            "SELECT count(*) FROM retention_waiver_confirmation"
        )
        return found

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
