"""PostgreSQL: the pool, migrations from plain SQL, and day partitions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import asyncpg
from pogo_core.util import migrate as pogo_migrate
from pogo_core.util import sql as pogo_sql

from services.chassis import errors
from services.chassis.secret import Secret

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"
"""A connection, straight or out of the pool."""

COMMAND_TIMEOUT_S = 30.0
LONG_COMMAND_TIMEOUT_S = 3600.0
"""Of a statement that meets whole days: cut off, it would begin anew for ever, and nothing go."""
DAYS_BEHIND = 3
"""Days back for which partitions stand ready: a topic's oldest event (72 h) still finds its day."""
DAYS_AHEAD = 2
_MIGRATION_LOCK = 7_411_001


@dataclass(frozen=True)
class DayTable:
    """A table partitioned by UTC days (`<x>_day date`)."""

    name: str


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
    )


async def connect(
    url: str,
    *,
    command_timeout_s: float | None = COMMAND_TIMEOUT_S,
    idle_max_s: float = 0,
    waits_for_disk: bool = True,
) -> asyncpg.Connection[Any]:
    """Open one connection outside the pool; the caller closes it.

    Args:
        command_timeout_s: of each statement; None = no limit.
        idle_max_s: the server ends the session after so long without a statement; 0 = never.
        waits_for_disk: whether a commit does; without, a crash of the server may take it back.
    """
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        url,
        timeout=10,
        command_timeout=command_timeout_s,
        server_settings={
            "timezone": "UTC",
            "idle_session_timeout": f"{idle_max_s * 1000:.0f}",
            "synchronous_commit": "on" if waits_for_disk else "off",
        },
    )
    await _prepare(connection)
    return connection


async def create_pool(
    url: Secret, *, size_max: int, name: str, transaction_idle_max_s: float
) -> asyncpg.Pool[Any]:
    """Open the pool.

    Args:
        url: its password is read anew for each connection, so that it can be rotated.
        transaction_idle_max_s: the server ends a transaction that waits so long for its process: a
            frozen one would keep its locks from whoever took its partitions over.

    Raises:
        Transient errors of asyncpg while the server is away.
    """
    pool: asyncpg.Pool[Any] = await asyncpg.create_pool(
        url.read(),
        password=lambda: unquote(urlsplit(url.read()).password or ""),
        min_size=2,
        max_size=size_max,
        timeout=10,
        command_timeout=COMMAND_TIMEOUT_S,
        init=_prepare,
        server_settings={
            "application_name": name,
            "timezone": "UTC",
            "lock_timeout": "10s",
            "idle_in_transaction_session_timeout": f"{transaction_idle_max_s * 1000:.0f}",
        },
    )
    return pool


@asynccontextmanager
async def transaction(pool: asyncpg.Pool[Any]) -> AsyncIterator[Connection]:
    """One transaction on a connection of the pool (read committed)."""
    async with pool.acquire() as connection, connection.transaction():
        yield connection


async def migrate(url: str, folders: Sequence[Path]) -> None:
    """Apply what is missing, folder by folder, under an advisory lock; runs as the owner's role."""
    connection = await connect(url, command_timeout_s=None)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        for folder in folders:
            await pogo_migrate.apply(connection, folder, schema_name="public")
    finally:
        await connection.close()


async def check_migrated(connection: Connection, folders: Sequence[Path]) -> None:
    """Refuse a database that is behind.

    Raises:
        errors.Fatal: naming the first missing migration and the command that applies it.
    """
    try:
        applied = await pogo_sql.get_applied_migrations(
            connection,  # type: ignore[arg-type]  # pogo annotates plain connections only
            schema_name="public",
        )
    except asyncpg.UndefinedTableError:
        applied = set()
    wanted = sorted(path.stem for folder in folders for path in folder.glob("*.sql"))
    missing = [name for name in wanted if name not in applied]
    if missing:
        raise errors.Fatal(
            f"the database is behind ({missing[0]} and {len(missing) - 1} more are missing): "
            f"run `python -m services.{folders[-1].parent.name} migrate`"
        )


async def ensure_days(connection: Connection, tables: Sequence[DayTable], today: date) -> None:
    """Make the day partitions around today where they are missing."""
    days = [today + timedelta(days=n) for n in range(-DAYS_BEHIND, DAYS_AHEAD + 1)]
    for table in tables:
        for day in days:
            await connection.execute("SELECT chassis_day_add($1, $2)", table.name, day)
