"""What a service knows of retention orders, and the database owner's functions that carry them out.

Beside its own tables: `retention_done`, what was done about each order; `retention_later`, which
ones wait. The functions are those of `privacy_0003` and later; they spare what is protected.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from schemas.retention import (
    DataKind,
    RetentionAction,
    RetentionOrderV1,
    RetentionReceiptV1,
    TableCount,
)
from services.chassis import db
from services.chassis.clock import sleep
from services.privacy.declare import PartitionOf, Table

DROP_LOCK_WAIT_MAX_MS = 200
"""How long a drop may stand in the queue for a table; less than until a deadlock is looked for."""
DROP_TRY_FOR = timedelta(milliseconds=200)
"""How long a drop looks for a moment when nobody has its tables, the first time."""
DROP_AGAIN_TRY_FOR = timedelta(seconds=1)
"""The same each time after that; then it stands in the queue once."""
ORDERS_LOCK = 7_411_003
"""Beside the chassis' relay lock."""
_LOOK_EVERY_S = 0.05
Counts = tuple[TableCount, ...]


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was done about an order."""

    order_id: UUID
    kind: DataKind
    action: RetentionAction
    counts: Counts
    done_at: datetime

    def receipt(self, service: str) -> RetentionReceiptV1:
        """Return the receipt that the service gives, the same each time."""
        return RetentionReceiptV1(
            order_id=self.order_id,
            service=service,
            kind=self.kind,
            counts=self.counts,
            done_at=self.done_at,
        )


@dataclass(frozen=True, kw_only=True)
class Protection:
    """A hold or restriction without the visitors it names: they may become more."""

    is_restriction: bool
    kinds: frozenset[str]
    from_day: date | None
    before_day: date
    names_visitors: bool
    is_over: bool = False

    @classmethod
    def of(cls, order: RetentionOrderV1) -> "Protection":
        """Return what an order would place."""
        return cls(
            is_restriction=order.action is RetentionAction.RESTRICT,
            kinds=frozenset(kind.value for kind in order.kinds),
            from_day=order.from_day,
            before_day=order.before_day,
            names_visitors=bool(order.visitor_ids),
        )


class OrderStore:
    """The executor's SQL, in the transaction of a connection."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the connection."""
        self._connection = connection

    async def done(self, order_id: UUID) -> Done | None:
        """Return what was done about an order; None where nothing was."""
        row = await self._connection.fetchrow(
            "SELECT kind, action, counts, done_at FROM retention_done WHERE order_id = $1", order_id
        )
        if row is None:
            return None
        return Done(
            order_id=order_id,
            kind=DataKind(row["kind"]),
            action=RetentionAction(row["action"]),
            counts=tuple(TableCount(**count) for count in row["counts"]),
            done_at=row["done_at"],
        )

    async def save(self, found: Sequence[Done], before_day: date) -> None:
        """Keep what was done, so that orders that come again are answered."""
        await self._connection.executemany(
            """
            INSERT INTO retention_done (order_id, kind, action, before_day, counts, done_at)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            [
                (
                    *(done.order_id, done.kind.value, done.action.value, before_day),
                    *([count.model_dump() for count in done.counts], done.done_at),
                )
                for done in found
            ],
        )

    async def known(self, order_ids: Sequence[UUID]) -> set[UUID]:
        """Return which orders are done, or wait."""
        rows = await self._connection.fetch(
            """
            SELECT order_id FROM retention_done WHERE order_id = ANY($1)
            UNION SELECT order_id FROM retention_later WHERE order_id = ANY($1)
            """,
            order_ids,
        )
        return {row["order_id"] for row in rows}

    # ------------------------------------------------------------------ drop, take

    async def drop(self, names: Sequence[str], order: RetentionOrderV1, *, again: bool) -> Counts:
        """Drop the days and years of tables that are due; what is held is moved aside first (D2).

        Args:
            again: whether the order gave way before; then it stands in a table's queue once.

        Raises:
            asyncpg.LockNotAvailableError: somebody had a table all the time.
        """
        usual = await self._connection.fetchval("SELECT current_setting('lock_timeout')")
        await self._limit_lock_waits(f"{DROP_LOCK_WAIT_MAX_MS}ms")
        rows = await self._connection.fetch(
            """
            SELECT source AS table, n_partitions, n_rows, n_held, n_restricted
            FROM privacy_drop($1, $2, $3, $4, $5)
            """,
            list(names),
            order.before_day,
            order.order_id,
            DROP_AGAIN_TRY_FOR if again else DROP_TRY_FOR,
            again,
            timeout=db.LONG_COMMAND_TIMEOUT_S,
        )
        await self._limit_lock_waits(usual)
        return tuple(TableCount(**row) for row in rows)

    async def _limit_lock_waits(self, limit: str) -> None:
        await self._connection.execute("SELECT set_config('lock_timeout', $1, true)", limit)

    async def restore_days(self, tables: Sequence[Table], today: date) -> None:
        """Make the partitions of the days that are being written to, where they went."""
        days = [db.DayTable(t.name) for t in tables if t.partition_of is PartitionOf.DAY]
        await db.ensure_days(self._connection, days, today)

    async def take(self, names: Sequence[str], order: RetentionOrderV1) -> Counts:
        """Erase an order's visitors, or set them aside under its restriction."""
        rows = await self._connection.fetch(
            """
            SELECT source AS table, 0 AS n_partitions, n_rows, n_held, n_restricted
            FROM privacy_take($1, $2, $3, $4, $5)
            """,
            list(names),
            list(order.visitor_ids),
            order.before_day,
            order.order_id,
            order.protection_id,
        )
        return tuple(TableCount(**row) for row in rows)

    async def erase(
        self,
        names: Sequence[str],
        order_of: Mapping[UUID, UUID],
        order_ids: Sequence[UUID],
        before_day: date,
    ) -> dict[UUID, Counts]:
        """Erase visitors, each by its order; return what each order counts."""
        rows = await self._connection.fetch(
            """
            SELECT order_id, source, sum(n_rows)::bigint AS n_rows,
                   sum(n_held)::bigint AS n_held, sum(n_restricted)::bigint AS n_restricted
            FROM privacy_erase($1, $2, $3, $4) WITH ORDINALITY AS f
            GROUP BY order_id, source ORDER BY min(ordinality)
            """,
            list(names),
            list(order_of),
            list(order_of.values()),
            before_day,
        )
        nothing = {
            row["source"]: TableCount(table=row["source"], n_partitions=0, n_rows=0) for row in rows
        }
        found = {order_id: dict(nothing) for order_id in order_ids}
        for order_id, source, n_rows, n_held, n_restricted in rows:
            found[order_id][source] = TableCount(
                table=source,
                n_partitions=0,
                n_rows=n_rows,
                n_held=n_held,
                n_restricted=n_restricted,
            )
        return {order_id: tuple(counts.values()) for order_id, counts in found.items()}

    # ------------------------------------------------------------------ protections

    async def protection(self, protection_id: UUID | None) -> Protection | None:
        """Return a hold or restriction; None where nobody placed it."""
        row = await self._connection.fetchrow(
            "SELECT * FROM privacy_protection WHERE protection_id = $1", protection_id
        )
        if row is None:
            return None
        return Protection(
            is_restriction=row["is_restriction"],
            kinds=frozenset(row["kinds"]),
            from_day=row["from_day"],
            before_day=row["before_day"],
            names_visitors=row["names_visitors"],
            is_over=row["released_at"] is not None,
        )

    async def is_over(self, protection_id: UUID | None) -> bool:
        """Return whether a hold or restriction was placed and has ended."""
        known = await self.protection(protection_id)
        return known is not None and known.is_over

    async def place(self, order: RetentionOrderV1, now: datetime) -> None:
        """Place a hold of everybody's rows; its copies of what others keep come with `protect`."""
        await self._connection.execute(
            "SELECT privacy_place($1, $2, $3, $4, $5)",
            order.protection_id,
            sorted(kind.value for kind in order.kinds),
            order.from_day,
            order.before_day,
            now,
        )

    async def protect(self, order: RetentionOrderV1, now: datetime) -> None:
        """Place a hold or restriction, or add visitors to it."""
        await self._connection.execute(
            "SELECT privacy_protect($1, $2, $3, $4, $5, $6, $7, $8)",
            order.protection_id,
            order.action is RetentionAction.RESTRICT,
            sorted(kind.value for kind in order.kinds),
            order.from_day,
            order.before_day,
            list(order.visitor_ids),
            order.order_id,
            now,
            # of everybody: not within a poll
            timeout=None if order.visitor_ids else db.LONG_COMMAND_TIMEOUT_S,
        )

    async def held(self, order: RetentionOrderV1) -> Counts:
        """Return how many rows a hold keeps, by table."""
        rows = await self._connection.fetch(
            "SELECT source, n_rows FROM privacy_count($1)",
            order.protection_id,
            timeout=db.LONG_COMMAND_TIMEOUT_S,
        )
        return tuple(
            TableCount(table=row["source"], n_partitions=0, n_rows=0, n_held=row["n_rows"])
            for row in rows
        )

    async def release(self, order: RetentionOrderV1, now: datetime) -> Counts:
        """End a hold or restriction; erase what fell due meanwhile, and return what."""
        spared = "n_held" if order.action is RetentionAction.RELEASE else "n_restricted"
        rows = await self._connection.fetch(
            "SELECT source, n_rows, n_spared FROM privacy_release($1, $2, $3, $4)",
            order.protection_id,
            order.action is RetentionAction.UNRESTRICT,
            order.before_day,
            now,
            timeout=db.LONG_COMMAND_TIMEOUT_S,
        )
        return tuple(
            TableCount.model_validate(
                {
                    "table": row["source"],
                    "n_partitions": 0,
                    "n_rows": row["n_rows"],
                    spared: row["n_spared"],
                }
            )
            for row in rows
        )

    # ------------------------------------------------------------------ orders that wait

    async def is_waiting(self, order_id: UUID) -> bool:
        """Return whether an order waits."""
        found = await self._connection.fetchval(
            "SELECT true FROM retention_later WHERE order_id = $1", order_id
        )
        return bool(found)

    async def wait(
        self, order: RetentionOrderV1, now: datetime, *, is_unseen: bool = False
    ) -> None:
        """Keep an order; the visitors whom it names in a partition that goes with it."""
        if order.visitor_ids:
            await self._connection.execute(
                "SELECT privacy_wait($1, $2)", order.order_id, list(order.visitor_ids)
            )
        await self._connection.execute(
            """
            INSERT INTO retention_later (order_id, content, received_at, is_unseen)
            VALUES ($1, $2, $3, $4)
            """,
            order.order_id,
            order.model_dump(mode="json", exclude={"visitor_ids"}),
            now,
            is_unseen,
        )

    async def saw(self, order: RetentionOrderV1) -> None:
        """Let a noted order wait like others."""
        await self._connection.execute(
            "UPDATE retention_later SET is_unseen = false WHERE order_id = $1", order.order_id
        )

    async def is_alone_within(self, within_s: float) -> bool:
        """As `be_alone`, but wait only so long; return whether it is so."""
        for _ in range(round(within_s / _LOOK_EVERY_S)):
            if await self._connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", ORDERS_LOCK):
                return True
            await sleep(_LOOK_EVERY_S)
        return False

    async def be_alone(self) -> None:
        """Let nobody else carry out orders of this service until the end of the transaction.

        A protection that is placed while a drop has looked for protections would come too late.
        """
        await self._connection.execute("SELECT pg_advisory_xact_lock($1)", ORDERS_LOCK)

    async def n_unseen(self) -> int:
        """Return how many noted orders nobody has looked at."""
        return int(
            await self._connection.fetchval("SELECT count(*) FROM retention_later WHERE is_unseen")
        )

    async def waiting(
        self, after: UUID, limit: int, *, only_unseen: bool = False
    ) -> list[RetentionOrderV1]:
        """Return orders that wait, by their ids (by age, that is), those after one."""
        rows = await self._connection.fetch(
            """
            SELECT l.content, ARRAY(SELECT v.visitor_id::text FROM privacy_visitor v
                                    WHERE v.list_id = l.order_id) AS visitor_ids
            FROM retention_later l WHERE l.order_id > $1 AND (l.is_unseen OR NOT $3)
            ORDER BY l.order_id LIMIT $2
            """,
            after,
            limit,
            only_unseen,
        )
        return [
            RetentionOrderV1.model_validate_json(
                json.dumps({**row["content"], "visitor_ids": row["visitor_ids"]})
            )
            for row in rows
        ]

    async def stop_waiting(self, order: RetentionOrderV1) -> None:
        """Let an order wait no longer; the visitors whom it names go with it."""
        await self._connection.execute(
            "DELETE FROM retention_later WHERE order_id = $1", order.order_id
        )
        await self._connection.execute("SELECT privacy_wait_end($1)", order.order_id)
