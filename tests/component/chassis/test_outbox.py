"""The outbox on real PostgreSQL: what the relay reads, when, and which partitions stay.

Goal: no committed row is ever passed over, however transactions interleave (hot-path.md 1i).
Method: the relay with a sink that only collects; two connections whose transactions overlap.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from types import SimpleNamespace

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from deploy.provision import Infrastructure
from schemas import topics
from services.chassis import db, errors
from services.chassis.clock import SystemClock
from services.chassis.metrics import ChassisMetrics
from services.chassis.outbox import RELAY_ROWS_MAX, UNSENT, OutboxRow, Relay, is_too_old
from services.chassis.secret import Secret
from tests.support.eventually import eventually
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = pytest.mark.timeout(60)
SERVICE = "consent"
INSERT = "INSERT INTO outbox (topic, headers, payload) VALUES ('consent-state', '[]', $1)"


@pytest.fixture
def world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), (SERVICE,), topics=()))
    yield made
    finish(made.close())


class Collector:
    """A sink that keeps what it gets; it can be away, or die after it took the rows."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.away = asyncio.Event()
        self.away.set()
        self.n_deaths = 0

    async def send_rows(self, rows: list[OutboxRow]) -> None:
        await self.away.wait()
        self.sent.extend((row.payload or b"").decode() for row in rows)
        if self.n_deaths:
            self.n_deaths -= 1
            raise errors.Transient("died between the broker's answer and the cursor")


@contextlib.asynccontextmanager
async def relaying(world: World, sink: Collector) -> AsyncIterator[tuple[Relay, ChassisMetrics]]:
    metrics = ChassisMetrics(SERVICE, CollectorRegistry())
    relay = Relay(Secret(world.database_url(SERVICE)), sink, metrics, SystemClock())
    task = asyncio.create_task(relay.run())
    try:
        yield relay, metrics
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await relay.close()


@contextlib.asynccontextmanager
async def connected(world: World, *, owner: bool = False) -> AsyncIterator["asyncpg.Connection"]:
    url = world.owner_url(SERVICE) if owner else world.database_url(SERVICE)
    connection = await db.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def sent(sink: Collector, *expected: str) -> None:
    async def is_sent() -> bool:
        return len(sink.sent) >= len(expected)

    await eventually(is_sent, within_s=10)
    assert sink.sent == [*expected]


async def some_rounds() -> None:
    await asyncio.sleep(0.6)  # the relay looks every 0.2 s by itself: what must NOT come would have


async def test_an_older_transaction_that_commits_late_is_not_skipped(world):
    """Shape 1: A takes id 1, B takes id 2 and commits first. Nothing goes before A has ended."""
    sink = Collector()
    async with relaying(world, sink), connected(world) as a, connected(world) as b:
        transaction = a.transaction()
        await transaction.start()
        await a.execute(INSERT, b"A")
        await b.execute(INSERT, b"B")
        await some_rounds()
        assert sink.sent == []
        await transaction.commit()
        await sent(sink, "A", "B")


async def test_a_younger_transaction_with_a_lower_id_is_not_skipped(world):
    """Shape 2: B holds the older xid but the higher id and commits while A is open."""
    sink = Collector()
    async with relaying(world, sink), connected(world) as a, connected(world) as b:
        of_b, of_a = b.transaction(), a.transaction()
        await of_b.start()
        older = await b.fetchval("SELECT pg_current_xact_id()::text::bigint")
        await of_a.start()
        await a.execute(INSERT, b"A")
        younger = await a.fetchval("SELECT pg_current_xact_id()::text::bigint")
        assert older < younger
        await b.execute(INSERT, b"B")
        await of_b.commit()
        await sent(sink, "B")
        await of_a.commit()
        await sent(sink, "B", "A")


async def test_only_transactions_of_this_database_hold_the_fence(world):
    """Another service on the same server erases for a minute: a withdrawal does not wait for it."""
    sink = Collector()
    elsewhere = await asyncpg.connect(world.infrastructure.postgres_admin_dsn)
    try:
        async with relaying(world, sink), connected(world) as a, connected(world, owner=True) as b:
            await elsewhere.execute("BEGIN; SELECT pg_current_xact_id()")
            await a.execute(INSERT, b"1")
            await sent(sink, "1")
            # of this database, whoever it is: the owner writes outbox rows too
            await b.execute("BEGIN; SELECT pg_current_xact_id()")
            await a.execute(INSERT, b"2")
            await some_rounds()
            assert sink.sent == ["1"]
            await b.execute("COMMIT")
            await sent(sink, "1", "2")
    finally:
        await elsewhere.close()


async def test_a_round_reads_nothing_that_was_sent(world):
    """An hour's outbox has millions of rows: a round costs what it sends, not what was sent."""
    sink = Collector()
    n_rows = 5000
    async with connected(world, owner=True) as owner, relaying(world, sink):
        await owner.execute(
            "INSERT INTO outbox (topic, headers, payload)"
            " SELECT 'consent-state', '[]', n::text::bytea FROM generate_series(1, $1) n",
            n_rows,
        )
        await sent(sink, *(str(n) for n in range(1, n_rows + 1)))
        await some_rounds()
        # fresh statistics of the one table, none of the other: the plan that read it all
        await owner.execute("ANALYZE outbox")
        answer = await owner.fetchval(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + UNSENT.replace("$1", str(RELAY_ROWS_MAX))
        )
    assert f'"Rows Removed by Join Filter": {n_rows}' not in answer
    pages = json.loads(answer)[0]["Plan"]["Shared Hit Blocks"]
    assert pages < n_rows / 100


async def test_an_aborted_transaction_leaves_nothing(world):
    """Events leave with their effect or not at all."""
    sink = Collector()
    async with relaying(world, sink), connected(world) as a:
        transaction = a.transaction()
        await transaction.start()
        await a.execute(INSERT, b"never")
        await transaction.rollback()
        await a.execute(INSERT, b"then")
        await sent(sink, "then")


async def test_a_relay_that_dies_after_sending_repeats_only_that_round(world):
    """Duplicates, never a loss: the cursor moves after the broker's answer."""
    sink = Collector()
    sink.n_deaths = 1
    async with connected(world) as a:
        await a.execute(INSERT, b"1")
        await a.execute(INSERT, b"2")
        async with relaying(world, sink) as (_, metrics):
            await sent(sink, "1", "2", "1", "2")
            await a.execute(INSERT, b"3")
            await sent(sink, "1", "2", "1", "2", "3")
            assert metrics.retries.labels("relay")._value.get() == 1


async def test_only_one_process_relays_and_the_next_takes_over(world):
    """The advisory lock: two instances of a service do not send everything twice."""
    first, second = Collector(), Collector()
    async with connected(world) as a:
        async with relaying(world, first) as (relay, _):
            await a.execute(INSERT, b"1")
            await sent(first, "1")
            async with relaying(world, second):
                await a.execute(INSERT, b"2")
                await sent(first, "1", "2")
                await some_rounds()
                assert second.sent == []
        async with relaying(world, second):
            await a.execute(INSERT, b"3")
            await sent(second, "3")
    assert relay._connection is None


async def test_age_grows_while_the_broker_is_away(world):
    """The gauge is asked at each scrape: a round that waits must not hide what waits."""
    sink = Collector()
    sink.away.clear()
    async with connected(world) as a, relaying(world, sink) as (_, metrics):
        await a.execute(INSERT, b"1")

        async def is_old() -> bool:
            return next(iter(metrics.outbox_age.collect())).samples[0].value > 0.5

        await eventually(is_old, within_s=10)
        sink.away.set()
        await sent(sink, "1")

        async def is_zero() -> bool:
            return next(iter(metrics.outbox_age.collect())).samples[0].value == 0

        await eventually(is_zero, within_s=10)


@pytest.mark.parametrize(
    ("headers", "is_sent"),
    [
        ('[["ce_time", "{now}"]]', True),
        ('[["ce_time", "{young}"]]', True),
        ('[["ce_time", "{old}"]]', False),
        ('[["ce_time", "{now}"], ["ce_origintime", "{young}"]]', True),
        ('[["ce_time", "{now}"], ["ce_origintime", "{old}"]]', False),
        ('[["ce_time", "9999-01-01T00:00:00+00:00"]]', True),
        ('[["ce_time", "yesterday"]]', True),
        ('[["ce_time", null]]', True),
        ("[]", True),
    ],
)
async def test_a_copy_that_would_outlive_its_rule_is_left_out(world, headers, is_sent):
    """R-D5, D1: by the event that it stems from; what says none is as old as its row. Counted."""
    sink, now = Collector(), SystemClock().now()
    limit = timedelta(milliseconds=topics.CONSENT.dead_letter.origin_age_max_ms or 0)
    ages = {"now": timedelta(), "young": limit - timedelta(minutes=1), "old": limit + timedelta(1)}
    for name, age in ages.items():
        headers = headers.replace(f"{{{name}}}", (now - age).isoformat())
    async with connected(world) as a, relaying(world, sink) as (_, metrics):
        into = "INSERT INTO outbox (topic, headers, payload) VALUES ($1, $2, $3)"
        await a.execute(into, "consent-dlq", headers.encode(), b"1")
        # a state's last word is never left out, and nothing stops behind what was
        await a.execute(into, "consent-state", headers.encode(), b"2")
        await sent(sink, *(["1", "2"] if is_sent else ["2"]))
        (family,) = metrics.outbox_too_old.collect()
        counted = {s.labels["topic"]: s.value for s in family.samples if s.name.endswith("_total")}
        assert counted == ({} if is_sent else {"consent-dlq": 1.0})


async def test_a_copy_that_waited_too_long_here_is_left_out(world):
    """R-D5: an outage of Kafka is no ground to keep, either."""
    sink = Collector()
    limit = timedelta(milliseconds=topics.CONSENT.dead_letter.origin_age_max_ms or 0)
    async with connected(world, owner=True) as owner, connected(world) as a:
        await a.execute(INSERT.replace("consent-state", "consent-dlq"), b"1")
        written_at = await owner.fetchval("SELECT created_at FROM outbox")
    row = OutboxRow("consent-dlq", None, [], b"1")
    for waited, is_old in ((limit, False), (limit + timedelta(seconds=1), True)):
        assert is_too_old(row, created_at=written_at, now=written_at + waited) is is_old
    assert sink.sent == []


async def test_what_a_round_cannot_see_has_an_age_too(world):
    """D1: behind a transaction that does not end, and in a database that nobody can read."""
    sink = Collector()
    async with (
        connected(world) as stays,
        connected(world) as a,
        connected(world) as b,
        relaying(world, sink) as (relay, metrics),
    ):

        def age_s() -> float:
            return float(next(iter(metrics.outbox_age.collect())).samples[0].value)

        await stays.execute("BEGIN")
        await stays.fetchval("SELECT pg_current_xact_id()")
        await a.execute(INSERT, b"1")
        await some_rounds()
        assert sink.sent == []
        await relay.look(b)
        assert age_s() == 0, "young: it may be on its way"
        clock = SystemClock()
        relay._clock = SimpleNamespace(now=lambda: clock.now() + timedelta(seconds=90))
        await relay.look(b)
        assert 90 <= age_s() < 120
        await stays.execute("COMMIT")
        await sent(sink, "1")

        async def is_young_again() -> bool:
            # the cursor moves after the sending
            await relay.look(b)
            return age_s() == 0

        await eventually(is_young_again, within_s=10)
        relay._clock = SimpleNamespace(now=lambda: clock.now() + timedelta(hours=3))
        assert age_s() > 2 * 3600, "nobody has looked for hours"


async def test_a_cursor_from_another_server_is_refused(world):
    """A dump restored elsewhere: transaction ids begin anew, every new row would look sent."""
    metrics = ChassisMetrics(SERVICE, CollectorRegistry())
    relay = Relay(Secret(world.database_url(SERVICE)), Collector(), metrics, SystemClock())
    async with connected(world) as a:
        await a.execute("UPDATE outbox_cursor SET txid = '900000000000'")
    with pytest.raises(errors.Fatal, match="came from another server"):
        await asyncio.wait_for(relay.run(), 10)
    await relay.close()


async def partitions(connection: "asyncpg.Connection") -> list[str]:
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
        " WHERE inhparent = 'outbox'::regclass ORDER BY 1"
    )
    return [row[0] for row in rows]


async def test_hours_are_made_ahead_and_dropped_only_when_sent(world):
    """Hourly partitions: three ahead; an old one stays while a row in it is unsent."""
    now = SystemClock().now().replace(minute=0, second=0, microsecond=0)
    hour = timedelta(hours=1)
    old, young = now - 5 * hour, now - 2 * hour
    async with connected(world, owner=True) as owner, connected(world) as a:
        ahead = [f"{now + n * hour:outbox_y%Ym%md%dh%H}" for n in range(4)]
        assert set(ahead) <= set(await partitions(owner))
        for start in (old, young):
            await owner.fetchval(
                "SELECT chassis_range_add('outbox', $1, $2, $3)",
                f"{start:outbox_y%Ym%md%dh%H}",
                start.isoformat(),
                (start + hour).isoformat(),
            )
        await a.execute(
            "INSERT INTO outbox (topic, headers, payload, created_at)"
            " VALUES ('consent-state', '[]', 'old', $1)",
            old + timedelta(minutes=1),
        )
        name = f"{old:outbox_y%Ym%md%dh%H}"
        # the session's time zone must not move the hours
        await a.execute("SET timezone = 'Asia/Kolkata'")
        assert await a.fetchval("SELECT chassis_outbox_maintain()") <= 1
        assert name in await partitions(owner), "an unsent row was dropped"
        sink = Collector()
        async with relaying(world, sink):
            await sent(sink, "old")

            async def is_dropped() -> bool:
                await a.fetchval("SELECT chassis_outbox_maintain()")
                return name not in await partitions(owner)

            await eventually(is_dropped, within_s=10)
            await a.execute(INSERT, b"new")
            await sent(sink, "old", "new")
        assert set(ahead) <= set(await partitions(owner))
        # the runtime role may not make or drop tables by itself
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await a.execute(f"DROP TABLE {ahead[0]}")


async def test_an_hour_that_somebody_reads_stays_and_nobody_waits_for_it(world):
    """A backup reads the old hour: its drop waits for the next time, the relay for nothing."""
    sink = Collector()
    now = SystemClock().now().replace(minute=0, second=0, microsecond=0)
    start = now - timedelta(hours=5)
    name = f"{start:outbox_y%Ym%md%dh%H}"
    async with (
        connected(world, owner=True) as backup,
        connected(world) as a,
        relaying(world, sink),
    ):
        await backup.fetchval(
            "SELECT chassis_range_add('outbox', $1, $2, $3)",
            name,
            f"{start:%Y-%m-%d %H:00:00+00}",
            f"{start + timedelta(hours=1):%Y-%m-%d %H:00:00+00}",
        )
        await backup.execute(f"BEGIN; SELECT FROM {name}")
        maintained = asyncio.create_task(a.fetchval("SELECT chassis_outbox_maintain()"))
        async with connected(world) as b:
            await b.execute(INSERT, b"1")
            await sent(sink, "1")
        assert await maintained == 0
        await backup.execute("COMMIT")
        assert name in await partitions(backup)
        assert await a.fetchval("SELECT chassis_outbox_maintain()") == 1
        assert name not in await partitions(backup)


async def test_two_sessions_with_the_same_poll_do_it_once(world):
    """The fence at SQL level: the second waits for the first and then owns nothing."""
    from services.chassis.consume import _FENCE, _SEED  # noqa: PLC0415 - the statements themselves

    poll = (["consent", "consent"], [0, 1], [0, 0], [5, 7])
    async with connected(world) as a, connected(world) as b:
        await a.execute(_SEED, ["consent", "consent"], [0, 1])
        transaction = a.transaction()
        await transaction.start()
        assert len(await a.fetch(_FENCE, *poll)) == 2
        second = asyncio.create_task(b.fetch(_FENCE, *poll))
        await asyncio.sleep(0.3)
        assert not second.done()
        await transaction.commit()
        assert await second == []
        # overlapping, not equal: still refused; what follows on is taken
        assert await b.fetch(_FENCE, ["consent"], [0], [3], [9]) == []
        assert len(await b.fetch(_FENCE, ["consent"], [0], [5], [9])) == 1
