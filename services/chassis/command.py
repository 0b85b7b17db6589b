"""A transaction for a command that runs beside its service, or without it."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from services.chassis import db
from services.chassis.clock import Clock, SystemClock
from services.chassis.context import Context
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox
from services.chassis.secret import Secret

S = TypeVar("S")


@contextlib.asynccontextmanager
async def transaction(
    url: Secret, service: str, store: Callable[[db.Connection], S], clock: Clock | None = None
) -> AsyncIterator[Context[S]]:
    """Open a transaction as a handler has it, on a connection of its own.

    What it enqueued goes with the commit, and leaves with the service's relay.
    """
    connection = await db.connect(url.read())
    try:
        async with connection.transaction():
            now, ids = (clock or SystemClock()).now(), TimeOrderedIds()
            ctx = Context(
                store=store(connection),
                outbox=Outbox(service, ids, now),
                now=now,
                ids=ids,
                connection=connection,
                service=service,
            )
            yield ctx
            await ctx.outbox.flush(connection)
    finally:
        await connection.close()
