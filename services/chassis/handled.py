"""Until when a service has handled a topic: all of its processes, and what came of it has left.

Asked of the broker (where does the topic end?) and of the database (how far did anybody get? what
did the relay send?), so that it holds whichever process handled a record and whichever relays.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

from schemas.topics import Topic
from services.chassis import db
from services.chassis.clock import Clock, sleep
from services.chassis.consume import Consumer
from services.chassis.context import Context

_LOOK_EVERY_S = 0.05
_BEHIND = """
SELECT EXISTS (
    SELECT FROM unnest($2::int[], $3::bigint[]) AS wanted (part, ends_at)
    LEFT JOIN consumer_offset o ON o.topic = $1 AND o.part = wanted.part
    WHERE coalesce(o.next_offset, 0) < wanted.ends_at
)
"""
_NEWEST = "SELECT txid::text AS txid, id FROM outbox ORDER BY outbox.txid DESC, id DESC LIMIT 1"
_SENT = "SELECT (txid, id) >= ($1::text::xid8, $2::bigint) FROM outbox_cursor"

Transaction = Callable[[], AbstractAsyncContextManager[Context[Any]]]


async def handled_until(
    topic: Topic, consumer: Consumer, transaction: Transaction, clock: Clock
) -> datetime | None:
    """Return an instant by our clock: what the broker had of a topic by then has been handled.

    And what came of it is acknowledged by all replicas. It waits for both, for as long as it takes;
    the instant is that of the question.

    Returns:
        None while nobody can tell where the topic ends.
    """
    asked_at = clock.now()
    ends = await consumer.ends(topic)
    if ends is None:
        return None
    while True:
        async with transaction() as ctx:
            is_behind = await _is_behind(ctx.connection, topic, ends)
            newest = None if is_behind else await ctx.connection.fetchrow(_NEWEST)
        if not is_behind:
            break
        await sleep(_LOOK_EVERY_S)
    while newest is not None:
        async with transaction() as ctx:
            if await ctx.connection.fetchval(_SENT, newest["txid"], newest["id"]):
                break
        await sleep(_LOOK_EVERY_S)
    return asked_at


async def _is_behind(connection: db.Connection, topic: Topic, ends: Mapping[int, int]) -> bool:
    found = await connection.fetchval(_BEHIND, topic.name, list(ends), list(ends.values()))
    return bool(found)
