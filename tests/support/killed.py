"""Processes of a service that are killed with -9 exactly at a place.

Locks and triggers of the test, in PostgreSQL, stop a process there; there it dies.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from schemas.topics import Topic
from tests.support.eventually import eventually
from tests.support.stack import World

DEED = "SELECT pg_advisory_xact_lock(1)"
COMMIT = "SELECT pg_advisory_xact_lock(2)"
CURSOR = "LOCK TABLE outbox_cursor IN SHARE MODE"
RELAY = "SELECT pg_advisory_xact_lock(7411002)"
"""The place of the one relay of a service (`chassis.outbox`)."""
_STOP = """
CREATE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    -- a drop waits for no lock for long
    SET LOCAL lock_timeout = 0;
    PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::bigint);
    RETURN NULL;
END $$;
"""
# in the middle of a kind's tables: the partitions of those before it are gone by then
_DROP_STOPS = r"""
CREATE FUNCTION stop_drop() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_event_trigger_dropped_objects()
               WHERE object_type = 'table' AND object_name LIKE 'visitor\_watch\_%') THEN
        SET LOCAL lock_timeout = 0;
        PERFORM pg_advisory_xact_lock_shared(1);
    END IF;
END $$;
CREATE EVENT TRIGGER deed ON sql_drop EXECUTE FUNCTION stop_drop();
"""


def fence(topic: Topic) -> str:
    """Return the place before a poll of a topic has done anything.

    A transaction that has an id holds back the outbox' xmin fence: of all places only this one has
    one, and nothing is to leave there.
    """
    return f"SELECT FROM consumer_offset WHERE topic = '{topic.name}' FOR UPDATE"


@dataclass(kw_only=True)
class Killed:
    """One service of a world, started and killed at places.

    Attributes:
        looking: the test's own connection, as the owner.
        spared: server processes of the test under the service's role.
    """

    world: World
    service: str
    looking: "asyncpg.Connection[Any]"
    spared: set[int] = field(default_factory=set)
    settings: dict[str, str] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def closed(self, place: str) -> AsyncIterator[int]:
        """Let nobody pass a place; return the number of the server process that blocks it."""
        gate = await asyncpg.connect(self.world.owner_url(self.service))
        try:
            await gate.execute(f"BEGIN; {place}")
            yield gate.get_server_pid()
        finally:
            await gate.close()

    async def waits(self, gate: int) -> None:
        """Wait until the service stands at the place."""

        async def is_blocked() -> bool:
            return bool(
                await self.looking.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
                    " AND usename = $2",
                    gate,
                    self.world.databases[self.service].name,
                )
            )

        await eventually(is_blocked, within_s=60)

    async def die(self, *, at_once: bool = True) -> None:
        """Kill it with -9; `at_once`: what it left open in the database ends before it goes on.

        A server that waits for a lock does not see that its client is dead.
        """
        process = self.world.processes[-1]
        assert process.poll() is None, "it has ended by itself"
        process.kill()
        await asyncio.to_thread(process.wait, 30)
        if at_once:
            await self.end_sessions()

    async def end_sessions(self) -> None:
        """End what the dead one left open, and wait until it is rolled back."""
        admin = await asyncpg.connect(self.world.infrastructure.postgres_admin_dsn)
        query = "SELECT pid FROM pg_stat_activity WHERE usename = $1 AND pid <> ALL($2)"
        of = self.world.databases[self.service].name, list(self.spared)

        async def are_gone() -> bool:
            return not await admin.fetch(query, *of)

        try:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = $1 AND pid <> ALL($2)",
                *of,
            )
            await eventually(are_gone, within_s=20)
        finally:
            await admin.close()

    def start(self) -> None:
        """Start it anew."""
        self.world.start(self.service, **self.settings)

    async def dies_at(self, place: str) -> None:
        """Start it, and kill it at a place; nothing of what it had begun is committed."""
        async with self.closed(place) as gate:
            self.start()
            await self.waits(gate)
            await self.die()

    async def dies_as_it_commits(self) -> None:
        """Start it, and kill it when the server has its COMMIT: the transaction counts."""
        async with self.closed(COMMIT) as gate:
            self.start()
            await self.waits(gate)
            await self.die(at_once=False)


@contextlib.asynccontextmanager
async def opened(world: World, service: str, stops: str, **settings: str) -> AsyncIterator[Killed]:
    """Open a service to be killed; `stops` are triggers that call `stop_here`."""
    looking = await asyncpg.connect(world.owner_url(service))
    name = world.databases[service].name
    admin = await asyncpg.connect(world.infrastructure.postgres_admin_dsn, database=name)
    try:
        await looking.execute(_STOP + stops)
        await admin.execute(_DROP_STOPS)
        yield Killed(world=world, service=service, looking=looking, settings=settings)
    finally:
        await admin.close()
        await looking.close()
