"""A service's handlers on its real database without its process: one transaction at a time."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from schemas.topics import Topic
from schemas.wire import WireModel
from services.chassis import db
from services.chassis.clock import SystemClock
from services.chassis.context import Context
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox
from services.chassis.received import Received
from tests.support.stack import World

S = TypeVar("S")
M = TypeVar("M", bound=WireModel)
IDS = TimeOrderedIds()


def new_visitor_id() -> UUID:
    """Return a random pseudonym, as the gateway makes it."""
    return UUID(bytes=secrets.token_bytes(16), version=4)


@dataclass(kw_only=True)
class Bench(Generic[S]):
    """A service's database under its runtime role, and contexts as the chassis makes them.

    Attributes:
        now: the instant of the next transaction; a test may move it.
        url: of the runtime role.
        connection: the one that everything runs on.
    """

    service: str
    store: Callable[[db.Connection], S]
    connection: "asyncpg.Connection[Any]"
    url: str
    now: datetime

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Context[S]]:
        """Open a context; commits at the end, outbox included."""
        async with self.connection.transaction():
            ctx = Context(
                store=self.store(self.connection),
                outbox=Outbox(self.service, IDS, self.now),
                now=self.now,
                ids=IDS,
                connection=self.connection,
                service=self.service,
            )
            yield ctx
            await ctx.outbox.flush(self.connection)

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """Run one statement as the service's role."""
        return list(await self.connection.fetch(sql, *arguments))

    def enqueued(self, ctx: Context[S], topic: Topic, model: type[M]) -> list[M]:
        """Return the events of a topic that a context is about to write."""
        return [
            model.model_validate_json(row.payload or b"")
            for row in ctx.outbox.rows
            if row.topic == topic.name
        ]


@contextlib.asynccontextmanager
async def open_bench(
    world: World,
    service: str,
    store: Callable[[db.Connection], S],
    *,
    days_of: Sequence[str] = (),
    now: datetime | None = None,
) -> AsyncIterator[Bench[S]]:
    """Open a bench with the day partitions that the service would keep.

    Args:
        days_of: day tables.
        now: where to begin; today at noon otherwise, far from any change of day.
    """
    noon = SystemClock().now().replace(hour=12, minute=0, second=0, microsecond=0)
    url = world.database_url(service)
    connection = await db.connect(url)
    try:
        bench = Bench(service=service, store=store, connection=connection, url=url, now=now or noon)
        tables = [db.DayTable(name) for name in days_of]
        await db.ensure_days(connection, tables, bench.now.date())
        yield bench
    finally:
        await connection.close()


def received(topic: Topic, event: M, at: datetime) -> Received[M]:
    """Return a record as a handler gets it, with `at` as its event's instant."""
    return Received(
        event=event,
        id=IDS.new(),
        time=at,
        source="/services/test",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        topic=topic.name,
        partition=0,
        offset=0,
    )
