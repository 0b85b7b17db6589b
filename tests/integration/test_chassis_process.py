"""The service as a process: start, refusals, orderly stop, what it prints.

Goal: nobody needs to read code to run it, and nothing personal gets out (R-C5, D1).
Method: real processes; their output and exit status.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace

import asyncpg
import pytest

from deploy.local.layout import ROOT
from deploy.provision import Infrastructure
from schemas import topics
from tests.support.bench import new_visitor_id
from tests.support.counting import (
    SERVICE,
    Counting,
    event,
    make_counting,
    row_of,
    rows_of,
    with_header,
)
from tests.support.eventually import eventually
from tests.support.running import get, ready
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
NUMBER = "4930123456789"


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


@pytest.fixture
def unmigrated(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), (SERVICE,), topics=(), migrated=False))
    yield made
    finish(made.close())


async def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run `python -m services.consent` to its end; return its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.consent", *arguments),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode()


def environment(world: World, **changes: str | None) -> dict[str, str]:
    """Return the service's environment with some settings changed or left out."""
    changed = {**world.environments[SERVICE], **changes}
    return {name: value for name, value in changed.items() if value is not None}


async def test_sigterm_in_mid_load_ends_with_status_0_in_time(counting):
    """Graceful: within `stop_timeout_s`, and nothing is lost or done twice."""
    rows = rows_of(3000)
    process = counting.start(CONSENT_BATCH_RECORDS_MAX="20", CONSENT_STOP_TIMEOUT_S="5")
    await ready(counting.world, SERVICE)
    await counting.send(*rows)
    await counting.has_seen(100)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, 5 + 3) == 0
    assert await counting.n_seen() < 3000, "the stop came too late to prove anything"
    counting.start()
    await counting.has_seen(3000, within_s=60)
    await counting.exactly_once(rows)


async def test_nothing_personal_in_logs_or_metrics(counting):
    """R-C5, D1: a number and a visitor go through poison, constraint and bug; neither shows."""
    visitor = new_visitor_id()
    personal = event(visitor_id=visitor)
    body = row_of(personal)
    assert body.payload is not None
    rows = [
        replace(body, payload=body.payload + NUMBER.encode()),
        replace(body, payload=body.payload.replace(b'"de"', f'"{NUMBER}"'.encode())),
        replace(body, key=NUMBER.encode()),
        with_header(body, "ce_time", NUMBER.encode()),
        with_header(body, "ce_type", NUMBER.encode()),
        row_of(event("constraint", visitor_id=visitor)),
        row_of(event("overflow", visitor_id=visitor)),
        row_of(event("poison", visitor_id=visitor)),
    ]
    process = counting.start(CONSENT_LOG_LEVEL="DEBUG")
    await ready(counting.world, SERVICE)
    await counting.send(*rows, body, partition=0)
    await counting.has_seen(1)
    await counting.records(topics.CONSENT.dead_letter, len(rows))
    response = await get(f"http://127.0.0.1:{counting.world.ports['consent_admin']}/metrics")
    assert response is not None
    await counting.send(row_of(event("bug", visitor_id=visitor)), partition=0)
    assert await asyncio.to_thread(process.wait, 30) == 1
    log = counting.log_path.read_text()
    assert "AssertionError" in log
    assert "dead letter" in log
    assert "poll replayed one by one" in log
    for text in (log, response.text):
        for secret in (NUMBER, str(visitor), visitor.hex):
            assert secret not in text


async def test_settings_are_printed_and_secrets_are_stars(counting):
    """The one line that says how it was started, without what nobody may read."""
    process = counting.start()
    await ready(counting.world, SERVICE)
    process.terminate()
    await asyncio.to_thread(process.wait, 20)
    log = counting.log_path.read_text()
    assert '"database_url": "**********"' in log
    assert counting.world.kafka.bootstrap in log
    password = counting.world.database_url(SERVICE).split("@")[0].rpartition(":")[2]
    assert password not in log


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        pytest.param(
            {"CONSENT_KAFKA_BOOTSTRAP": None},
            (),
            "consent: settings: CONSENT_KAFKA_BOOTSTRAP: Field required",
            id="missing",
        ),
        pytest.param(
            {"CONSENT_DATABASE_URL": None},
            (),
            "consent: set CONSENT_DATABASE_URL",
            id="no database",
        ),
        pytest.param(
            {"CONSENT_BATCH_WAIT_MS": "secret-text"},
            (),
            "consent: settings: CONSENT_BATCH_WAIT_MS: "
            "Input should be a valid integer, unable to parse string as an integer",
            id="wrong",
        ),
        pytest.param(
            {},
            ("migrate",),
            "consent: set CONSENT_MIGRATE_DATABASE_URL to the owner's database URL",
            id="no owner",
        ),
    ],
)
async def test_a_missing_setting_is_named_in_one_sentence(unmigrated, changes, arguments, says):
    """By its name in the environment, without a value and without a traceback."""
    status, out = await run(environment(unmigrated, **changes), *arguments)
    assert (status, out.strip()) == (1, says)


async def test_a_database_that_is_behind_is_refused_with_the_command_that_mends_it(unmigrated):
    """Never on half a schema: neither on none, nor with one migration missing."""
    status, out = await run(environment(unmigrated))
    assert status == 1
    assert "chassis_0001_path" in out, out
    assert "run `python -m services.consent migrate`" in out
    owner = unmigrated.owner_url(SERVICE)
    migrating = environment(unmigrated, CONSENT_MIGRATE_DATABASE_URL=owner)
    assert (await run(migrating, "migrate"))[0] == 0
    connection = await asyncpg.connect(owner)
    try:
        await connection.execute("DELETE FROM _pogo_migration WHERE migration_id LIKE 'consent%'")
    finally:
        await connection.close()
    status, out = await run(environment(unmigrated))
    assert status == 1
    assert "consent_0001_record" in out, out


async def test_migrate_is_safe_twice_at_once_and_again(unmigrated):
    """An advisory lock: two deployments at the same moment apply each migration once."""
    owner = unmigrated.owner_url(SERVICE)
    migrating = environment(unmigrated, CONSENT_MIGRATE_DATABASE_URL=owner)
    connection = await asyncpg.connect(owner)
    try:
        # as if a third one were in the middle of it: both must wait
        await connection.execute("SELECT pg_advisory_lock(7411001)")
        both = asyncio.gather(*(run(migrating, "migrate") for _ in range(2)))

        async def both_wait() -> bool:
            waiting = """
                SELECT count(*) FROM pg_locks
                WHERE locktype = 'advisory' AND NOT granted AND database =
                    (SELECT oid FROM pg_database WHERE datname = current_database())
            """
            return both.done() or await connection.fetchval(waiting) == 2

        await eventually(both_wait, within_s=30)
        assert not both.done()
        assert await connection.fetchval("SELECT to_regclass('consumer_offset')") is None
    finally:
        await connection.close()
    results = await both
    assert [status for status, _ in results] == [0, 0], results
    assert (await run(migrating, "migrate"))[0] == 0
    connection = await asyncpg.connect(owner)
    try:
        rows = await connection.fetch("SELECT migration_id FROM _pogo_migration")
    finally:
        await connection.close()
    names = [row[0] for row in rows]
    assert len(names) == len(set(names)) >= 3
    assert os.environ.get("CONSENT_MIGRATE_DATABASE_URL") is None
