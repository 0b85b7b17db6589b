"""Erasing a person as staff do it, with real processes, and a backup from before it (R-G3, R-D9).

Goal: number -> visitors -> order -> every service; what is older and comes later has no effect; a
database that was restored is erased again before it serves anything, and loses nothing else.
Method: the services as processes, their commands by pipes, the ledger's database set aside by
PostgreSQL itself (`CREATE DATABASE ... TEMPLATE`) and put back.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas import topics
from schemas.retention import RetentionOrderV1
from tests.support.caller import Caller, a_caller
from tests.support.eventually import eventually
from tests.support.identities import shown
from tests.support.running import metric, ready
from tests.support.stack import World

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
SERVICES = ("ad_ledger", "call_control", "consent", "retention")
NUMBER = "+493023125001"
"""The callers' number, as `CALLBACK` of the support module becomes it."""
STAFF = ("--by", "staff-12", "--case", "AUSK-2026-17")
LEDGER_TABLES = ("lot", "posting", "ad_view", "visitor_watch")


async def run(world: World, service: str, *arguments: str, said: str = "", **more: str) -> Any:
    """Run a service's command as a person would: (status, what it printed)."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"services.{service}", *shown(*arguments)),
        env={**world.environments[service], **more},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(said.encode()), 90)
    return process.returncode, out.decode()


async def owned(world: World, service: str, sql: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(world.owner_url(service))
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()


async def n_rows(caller: Caller) -> int:
    """Return how many rows the ledger has of a visitor."""
    found = [
        await owned(
            caller.world,
            "ad_ledger",
            f"SELECT count(*) FROM {table} WHERE visitor_id = $1",
            caller.visitor_id,
        )
        for table in LEDGER_TABLES
    ]
    return sum(rows[0][0] for rows in found)


@pytest.fixture
async def backup(world: World) -> AsyncIterator[str]:
    """Name the ledger's database; what was set aside of it goes, also where the test fails."""
    name = world.databases["ad_ledger"].name
    yield name
    async with administrator(world) as connection:
        await connection.execute(f"DROP DATABASE IF EXISTS {name}_backup")


@asynccontextmanager
async def administrator(world: World) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(world.infrastructure.postgres_admin_dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def stop(world: World, service: str) -> None:
    for process in world.processes:
        if service in str(process.args) and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 30)


async def back_up(world: World, name: str) -> None:
    async with administrator(world) as connection:
        await connection.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}")


async def restore(world: World, name: str) -> None:
    async with administrator(world) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        await connection.execute(f"DROP DATABASE {name}")
        await connection.execute(f"ALTER DATABASE {name}_backup RENAME TO {name}")


async def orders_on_the_topic(world: World) -> list[RetentionOrderV1]:
    consumer = AIOKafkaConsumer(
        **world.kafka.options(), group_id=None, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        tp = TopicPartition(world.topic(topics.RETENTION_ORDER), 0)
        consumer.assign([tp])
        ends = await consumer.end_offsets([tp])
        found: list[RetentionOrderV1] = []
        while await consumer.position(tp) < ends[tp]:
            records = (await consumer.getmany(timeout_ms=500)).get(tp, [])
            found += [RetentionOrderV1.model_validate_json(record.value) for record in records]
        return found
    finally:
        await consumer.stop()


async def test_a_person_is_erased_by_number_and_stays_erased(
    world: World, tmp_path: Path, backup: str
) -> None:
    """R-G3, R-D9, D2, D3."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for service in SERVICES:
        world.start(service, **{f"{service.upper()}_ORDER_WATCH_INTERVAL_S": "0.5"})
    await ready(world, *SERVICES)
    async with a_caller(world) as gone, a_caller(world) as stays:
        await gone.earn(15_000)
        await gone.has_balance(15_000)
        await stop(world, "ad_ledger")
        await back_up(world, backup)
        world.start("ad_ledger")
        await ready(world, "ad_ledger")
        # after the backup: only the topics know of it
        await gone.earn(20_000)
        await stays.earn(15_000)
        await stays.has_balance(15_000)
        call_id = await gone.call()
        await eventually(lambda: gone.row(call_id), within_s=20)

        ids = await found_by_number(world, gone, keys)
        code, out = await run(
            world, "retention", "erase", *STAFF, "--wait", "--timeout-s", "60", said=ids
        )
        assert code == 0, out
        assert str(gone.visitor_id) not in out
        assert await n_rows(gone) == 0
        assert await gone.row(call_id) is None
        assert await n_rows(stays) > 0

        # an event from before it, that comes after it
        before = await metric(world, "ad_ledger", REFUSED) or 0
        await earn_late(gone)
        await eventually(lambda: more_than(world, before), within_s=20)
        assert await n_rows(gone) == 0

        assert await names_stand_by(world)
        await restored_it_is_erased_again(world, gone, stays)


async def found_by_number(world: World, gone: Caller, keys: Path) -> str:
    """Find the visitor by number; return what the command printed."""
    how = ("find", "number", *STAFF, "--reason", "person_request")
    folder = {"CALL_CONTROL_HASH_KEYS_FOLDER": str(keys)}
    # with a slip of the hand nothing happens
    code, out = await run(world, "call_control", *how, said="030 23125001\n", **folder)
    assert code == 2
    assert "23125001" not in out
    code, ids = await run(world, "call_control", *how, said=f"{NUMBER}\n", **folder)
    assert (code, ids.split()) == (0, [str(gone.visitor_id)])
    log = await owned(world, "call_control", "SELECT step, n_rows, staff_id FROM access_log")
    assert [tuple(row) for row in log] == [("begun", None, "staff-12"), ("answered", 1, "staff-12")]
    return str(ids)


async def restored_it_is_erased_again(world: World, gone: Caller, stays: Caller) -> None:
    """Put the backup in place of the ledger's database."""
    await stop(world, "ad_ledger")
    await restore(world, world.databases["ad_ledger"].name)
    assert await n_rows(gone) > 0, "the backup has the person"
    assert await n_rows(stays) == 0, "and not what came after it"
    world.start("ad_ledger")
    await ready(world, "ad_ledger")
    assert await n_rows(gone) == 0, "erased before it is ready"
    await stays.has_balance(15_000)
    assert await n_rows(gone) == 0, "what is read again has no effect"


REFUSED = 'ad_ledger_events_total{outcome="refused_erased",topic="ad-view"}'


async def more_than(world: World, before: float) -> bool:
    return (await metric(world, "ad_ledger", REFUSED) or 0) > before


async def earn_late(caller: Caller) -> None:
    """Send the events of an ad as if they had been on their way for five minutes."""
    producer = caller.producer
    send_many = producer.send_many

    async def late(events: Any, *, time: datetime, traceparent: str) -> None:
        await send_many(events, time=time - timedelta(minutes=5), traceparent=traceparent)

    producer.send_many = late  # type: ignore[method-assign, assignment]
    try:
        await caller.earn(15_000)
    finally:
        producer.send_many = send_many  # type: ignore[method-assign]


async def names_stand_by(world: World) -> bool:
    """Whether the order keeps its names for days though all have answered: backups need them."""
    last = {order.order_id: order for order in await orders_on_the_topic(world)}
    (erasure,) = [order for order in last.values() if order.action.value == "erase"]
    return bool(erasure.visitor_ids) and not erasure.names_gone
