"""Carries out retention orders in any service: drop what is due, answer with counts (D1, D3, D4).

One transaction holds the drop, its record and the receipt, so that there is no receipt without its
deed and no deed without its receipt. An order that comes again gets the receipt of the first time.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from schemas import topics
from schemas.retention import DataKind, RetentionOrderV1, RetentionReceiptV1, TableCount
from services.chassis import db
from services.chassis.context import Context
from services.chassis.errors import Poison
from services.chassis.received import Received
from services.privacy.declare import DAY_DROP_SQL, Table

AHEAD_MAX = timedelta(minutes=5)
"""How far an order's instant may lie in the future on a stack that is no simulation."""


BeforeDrop = Callable[[Context[Any], Table, RetentionOrderV1], Awaitable[None]]
OrderHandler = Callable[[Context[Any], Sequence[Received[RetentionOrderV1]]], Awaitable[None]]


async def _settle_nothing(_: Context[Any], __: Table, ___: RetentionOrderV1) -> None:
    """Stand in where a service has nothing to settle before a drop."""


def on_retention_orders(
    tables: Sequence[Table],
    *,
    simulation: bool,
    before_drop: BeforeDrop = _settle_nothing,
) -> OrderHandler:
    """Return the service's handler of `retention-order`.

    Args:
        tables: all its tables of personal data; an order of a kind that none of them has is
            answered too, with no counts (D3).
        simulation: whether orders may be as of an instant in the future.
        before_drop: called per table, in the same transaction, before rows go: the service
            settles what must outlive them, and may enqueue events.
    """

    async def handle(ctx: Context[Any], orders: Sequence[Received[RetentionOrderV1]]) -> None:
        store = _Store(ctx.connection)
        for received in orders:
            order = received.event
            if not simulation and order.as_of > ctx.now + AHEAD_MAX:
                raise Poison("order_from_the_future")
            receipt = await store.receipt_of(order.order_id, ctx.service)
            outcome = "repeated" if receipt else "carried_out"
            if receipt is None:
                receipt = await _carry_out(ctx, store, order, tables, before_drop)
            elif receipt.kind is not order.kind:
                raise Poison("order_differs")
            ctx.outbox.add(topics.RETENTION_RECEIPT, receipt, cause=received)
            ctx.count(topics.RETENTION_ORDER, outcome)

    return handle


async def _carry_out(
    ctx: Context[Any],
    store: "_Store",
    order: RetentionOrderV1,
    tables: Sequence[Table],
    before_drop: BeforeDrop,
) -> RetentionReceiptV1:
    counts = []
    for table in tables:
        if table.kind is order.kind:
            await before_drop(ctx, table, order)
            counts.append(await store.drop(table, order))
            if order.before_day > ctx.now.date() - timedelta(days=db.DAYS_BEHIND):
                # only in a simulation: the days that are being written to went as well
                await store.restore_days(table, ctx.now.date())
    receipt = RetentionReceiptV1(
        order_id=order.order_id,
        service=ctx.service,
        kind=order.kind,
        counts=tuple(counts),
        done_at=ctx.now,
    )
    await store.save(order, receipt)
    return receipt


class _Store:
    """The executor's SQL."""

    def __init__(self, connection: db.Connection) -> None:
        self._connection = connection

    async def receipt_of(self, order_id: UUID, service: str) -> RetentionReceiptV1 | None:
        row = await self._connection.fetchrow(
            "SELECT kind, counts, done_at FROM retention_done WHERE order_id = $1", order_id
        )
        if row is None:
            return None
        return RetentionReceiptV1(
            order_id=order_id,
            service=service,
            kind=DataKind(row["kind"]),
            counts=tuple(TableCount(**count) for count in row["counts"]),
            done_at=row["done_at"],
        )

    async def drop(self, table: Table, order: RetentionOrderV1) -> TableCount:
        rows = await self._connection.fetch(table.drop_sql, table.name, order.before_day)
        return TableCount(
            table=table.name, n_partitions=len(rows), n_rows=sum(row["n_rows"] for row in rows)
        )

    async def restore_days(self, table: Table, today: date) -> None:
        if table.drop_sql == DAY_DROP_SQL:
            await db.ensure_days(self._connection, [db.DayTable(table.name)], today)

    async def save(self, order: RetentionOrderV1, receipt: RetentionReceiptV1) -> None:
        await self._connection.execute(
            """
            INSERT INTO retention_done (order_id, kind, before_day, counts, done_at)
            VALUES ($1, $2, $3, $4, $5)
            """,
            order.order_id,
            order.kind.value,
            order.before_day,
            [count.model_dump() for count in receipt.counts],
            receipt.done_at,
        )
