"""Processes killed and frozen at the worst moments (hot-path.md 1j).

Goal: whatever dies wherever, each record has its effect once and each event leaves at least once.
Method: the counting service as real processes; its table has no key, so doubles would show.
"""

import asyncio
import os
import random
import signal
from collections import Counter

import pytest

from schemas import topics
from services.chassis.health import STANDING_BY
from tests.support.counting import SERVICE, Counting, event, row_of, rows_of
from tests.support.eventually import eventually
from tests.support.running import get, ready

pytestmark = [pytest.mark.fault, pytest.mark.integration, pytest.mark.timeout(150)]


async def ended(process) -> int:
    return await asyncio.to_thread(process.wait, 60)


async def all_events_left(counting: Counting, n: int) -> Counter[bytes]:
    """Check that each effect's event is on its topic; return how often, by ce_id."""
    while True:
        records = await counting.records(topics.CONSENT_STATE, n, within_s=30)
        times = Counter(dict(record.headers)["ce_id"] for record in records)
        if len(times) >= n:
            return times


async def test_killed_between_the_commits_of_database_and_kafka(counting):
    """The offset is in the effect's transaction: Kafka's commit may be lost at each poll."""
    rows = rows_of(60)
    await counting.send(*rows, partition=0)
    for n in range(2):
        dying = counting.start(
            COUNTING_FAULT="die_before_kafka_commit", CONSENT_BATCH_RECORDS_MAX="20"
        )
        assert await ended(dying) == -signal.SIGKILL
        assert await counting.n_seen() == 20 * (n + 1)
    counting.start()
    await counting.has_seen(60)
    await all_events_left(counting, 60)
    await counting.exactly_once(rows)


async def test_killed_again_and_again_under_load(counting):
    """SIGKILL at random moments, seeded; then the counts are exact."""
    chance = random.Random(20261122)
    rows = rows_of(4000)
    await counting.send(*rows[:2000])
    for n in range(4):
        process = counting.start(CONSENT_BATCH_RECORDS_MAX="40")
        await counting.has_seen(150 * (n + 1))
        await asyncio.sleep(chance.uniform(0, 0.3))
        process.kill()
        await ended(process)
    await counting.send(*rows[2000:])
    counting.start()
    await counting.has_seen(4000, within_s=60)
    await all_events_left(counting, 4000)
    await counting.exactly_once(rows)
    assert await counting.value("SELECT count(*) FROM paid") == 4000


async def test_relay_killed_between_produce_and_cursor(counting):
    """Duplicates only, with the same ce_id, and only of that round; nothing is missing."""
    rows = rows_of(30)
    await counting.send(*rows)
    dying = counting.start(COUNTING_FAULT="die_after_produce")
    assert await ended(dying) == -signal.SIGKILL
    n_done = len(await counting.read(topics.CONSENT_STATE))
    assert n_done > 0
    assert await counting.value("SELECT id FROM outbox_cursor") == 0
    counting.start()
    await counting.has_seen(30)
    records = await counting.records(topics.CONSENT_STATE, 30 + n_done)
    times = Counter(dict(record.headers)["ce_id"] for record in records)
    assert len(times) == 30
    assert sum(times.values()) == 30 + n_done
    assert max(times.values()) == 2
    await counting.exactly_once(rows)


async def test_a_zombie_that_wakes_up_inside_its_transaction_does_nothing(counting, tmp_path):
    """SIGSTOP in mid-transaction, another process takes over, SIGCONT: nothing twice.

    The frozen one keeps locks on its offset rows: the server must end its transaction.
    """
    hold = tmp_path / "hold"
    hold.touch()
    rows = [*rows_of(5), row_of(event("hold")), *rows_of(5)]
    zombie = counting.start(COUNTING_HOLD=str(hold), CONSENT_TRANSACTION_IDLE_MAX_S="3")
    await ready(counting.world, SERVICE)
    await counting.send(*rows, partition=0)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    for _ in range(200):
        if await counting.value(f"{waiting} AND datname = current_database()"):
            break
        await asyncio.sleep(0.05)
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        hold.unlink()
        port = counting.world.ports["consent"]
        counting.start(CONSENT_INSTANCE="1", CONSENT_ADMIN_PORT=str(port))
        await counting.has_seen(11, within_s=40)
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    more = rows_of(50)
    await counting.send(*more)
    await counting.has_seen(61)
    await asyncio.sleep(2)
    await counting.exactly_once([*rows, *more])
    instances = await counting.fetch(
        "SELECT instance FROM seen WHERE part = 0 AND record_offset < 11"
    )
    assert {row[0] for row in instances} == {"1"}


async def test_a_zombie_that_wakes_up_between_polls_does_nothing(counting):
    """SIGSTOP > session timeout under load, another process takes over, SIGCONT."""
    rows = rows_of(900)
    zombie = counting.start(CONSENT_BATCH_RECORDS_MAX="20")
    await ready(counting.world, SERVICE)
    await counting.send(*rows[:300])
    await counting.has_seen(50)
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        port = counting.world.ports["consent"]
        counting.start(CONSENT_INSTANCE="1", CONSENT_ADMIN_PORT=str(port))
        await counting.send(*rows[300:600])
        # the frozen one may hold a transaction for its whole limit (20 s)
        await counting.has_seen(600, within_s=60)
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    await counting.send(*rows[600:])
    await counting.has_seen(900)
    await asyncio.sleep(2)
    await counting.exactly_once(rows)


async def test_a_standby_waits_takes_over_and_is_not_moved_by_a_lost_session(counting):
    """Two processes of one instance: one reads; the other only when the first one is dead."""
    first = counting.start()
    await ready(counting.world, SERVICE)
    port = counting.world.ports["consent"]
    second = counting.start(CONSENT_ADMIN_PORT=str(port))
    await eventually(lambda: says(port, STANDING_BY), within_s=30)
    before = rows_of(20)
    await counting.send(*before)
    await counting.has_seen(20)

    # the server ends all sessions, as a restart does: the place stays where it was
    assert await counting.end_sessions() > 0
    between = rows_of(20)
    await counting.send(*between)
    await counting.has_seen(40)
    await asyncio.sleep(3)
    assert first.poll() is None
    assert await says(port, STANDING_BY)

    first.kill()
    await eventually(lambda: says(port, "ok"), within_s=10)
    after = rows_of(20)
    await counting.send(*after)
    await counting.has_seen(60)
    await counting.exactly_once([*before, *between, *after])
    assert second.poll() is None


async def says(port: int, text: str) -> bool:
    answer = await get(f"http://127.0.0.1:{port}/readyz")
    return answer is not None and answer.text == text
