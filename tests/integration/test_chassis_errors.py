"""Weather, bugs, stalls and stops: what ends the process, what does not, and that nothing is lost.

Method: the counting service in this loop; PostgreSQL's sessions are killed under it, handlers are
made to fail, the reader is made to stall.
"""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from aiokafka import TopicPartition

from deploy.provision import Infrastructure
from schemas import topics
from services.chassis import errors
from services.chassis.consume import Consumer
from tests.support.counting import (
    Counting,
    event,
    make_counting,
    row_of,
    rows_of,
    with_header,
)
from tests.support.eventually import eventually
from tests.support.stack import finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


async def test_sessions_killed_in_mid_flow_cost_nothing(counting):
    """Pool and relay: both come back by themselves; every event leaves, every effect is once."""
    rows = rows_of(200)
    async with counting.running() as run:
        for start in range(0, 200, 50):
            await counting.send(*rows[start : start + 50])
            assert await counting.end_sessions() > 0
        await counting.has_seen(200)
        sent = await counting.records(topics.CONSENT_STATE, 200, distinct=True)
        assert (
            run.sample("retries_total", place="poll") + run.sample("retries_total", place="relay")
            > 0
        )
        assert await run.stop() == 0
    await counting.exactly_once(rows)
    # a relay that lost its session may repeat what it had not noted: the same ce_id again
    assert len({dict(record.headers)["ce_id"] for record in sent}) == 200


async def test_weather_inside_a_handler_is_waited_out(counting):
    """Style 3.5 (3): retry in place, with back-off; the record's effect is once."""
    rows = rows_of(10)
    tries: list[int] = []

    async def fail_twice(_, batch):
        tries.append(len(batch))
        if len(tries) < 3:
            raise errors.Transient("somebody is away")

    await counting.send(*rows)
    async with counting.running(before_save=fail_twice) as run:
        await counting.has_seen(10)
        assert run.sample("retries_total", place="poll") == 2
    await counting.exactly_once(rows)


async def test_a_used_up_budget_ends_the_process_and_skips_nothing(counting):
    """Style 3.5 (3) to (4): give up with status 1, the next start goes on at the same record."""
    rows = rows_of(5)

    async def always(_, __):
        raise errors.Transient("somebody is away")

    await counting.send(*rows)
    async with counting.running(before_save=always, retry_budget_s=1) as run:
        assert await run.exit_code() == 1
        assert "gave up after 1 s" in str(run.service._failure)
    assert await counting.n_seen() == 0
    async with counting.running():
        await counting.has_seen(5)
    await counting.exactly_once(rows)


async def test_a_bug_ends_the_process_and_no_later_poll_passes_it(counting):
    """F3: FastStream swallows the exception and polls on; the chassis must not let it."""
    before, bug, after = rows_of(3), row_of(event("bug")), rows_of(30)
    async with counting.running(batch_records_max=1) as run:
        await counting.send(*before, partition=0)
        await counting.has_seen(3)
        # many further polls wait in the same partition and in another one
        await counting.send(bug, *after[:15], partition=0)
        await counting.send(*after[15:], partition=1)
        started = asyncio.get_running_loop().time()
        assert await run.exit_code() == 1
        assert isinstance(run.service._failure, AssertionError)
        # a dead process must not linger: the supervisor waits for it
        assert asyncio.get_running_loop().time() - started < 8
    part_0 = "SELECT count(*) FROM seen WHERE part = 0"
    assert await counting.value(part_0) == 3
    offset = "SELECT next_offset FROM consumer_offset WHERE topic = 'consent' AND part = 0"
    assert await counting.value(offset) == 3


async def test_after_a_failed_poll_the_reader_halts_by_itself(counting):
    """F3 again, with the process slow to end: it is the halt that protects, not a quick stop."""
    noted: list[BaseException] = []
    async with counting.running(batch_records_max=1) as run:
        run.service._consumer._fail = noted.append
        await counting.send(row_of(event("bug")), *rows_of(5), partition=0)

        async def has_failed() -> bool:
            return bool(noted)

        await eventually(has_failed, within_s=20)
        await counting.send(*rows_of(5), partition=1)
        await asyncio.sleep(1)  # many polls' time
        assert await counting.n_seen() == 0
        run.service.fail(noted[0])
        assert await run.exit_code() == 1


async def test_a_stop_sends_what_the_outbox_holds(counting):
    """The drain: events of the last polls leave before the end, though the broker is slow."""

    def slow_broker(service):
        send_rows = service.sink.send_rows

        async def send_late(rows):
            await service._stop.wait()
            await asyncio.sleep(1)
            await send_rows(rows)

        service.sink.send_rows = send_late

    async with counting.running(arrange=slow_broker) as run:
        await counting.send(*rows_of(10))
        await counting.has_seen(10)
        assert await counting.read(topics.CONSENT_STATE) == []
        assert await run.stop() == 0
    assert len(await counting.read(topics.CONSENT_STATE)) == 10


async def test_the_start_after_a_bug_processes_what_failed(counting):
    """Crash-only: the supervisor's next start reads the same record again."""
    rows = rows_of(4)
    broken = True

    async def fail(_, __):
        assert not broken, "a bug"

    await counting.send(*rows)
    async with counting.running(before_save=fail) as run:
        assert await run.exit_code() == 1
    assert await counting.n_seen() == 0
    broken = False
    async with counting.running(before_save=fail) as run:
        await counting.has_seen(4)
        assert await run.stop() == 0
    await counting.exactly_once(rows)


async def test_an_error_in_a_task_ends_the_process(counting):
    """Whatever runs beside the consumer: its end is the process's end."""

    released = asyncio.Event()

    async def fail() -> None:
        await released.wait()
        raise KeyError("a bug")

    async with counting.running(arrange=lambda s: s.task("broken", fail)) as run:
        released.set()
        assert await run.exit_code() == 1


async def test_a_consumer_that_stalls_ends_the_process(counting):
    """aiokafka #1154, #625: records wait, no poll comes, no error either."""
    rows = rows_of(5)
    async with counting.running(stall_timeout_s=2) as run:
        run.consumer.pause(*run.consumer.assignment())
        await counting.send(*rows)
        assert await run.exit_code() == 1
        assert "records wait" in str(run.service._failure)
        assert run.sample("consumer_lag_records", topic="consent", partition="0") >= 0
    async with counting.running():
        await counting.has_seen(5)
    await counting.exactly_once(rows)


async def test_an_idle_consumer_is_no_stalled_one(counting):
    """Silence longer than the limit, then one record: nothing is wrong with that."""
    async with counting.running(stall_timeout_s=1) as run:
        await asyncio.sleep(2.5)
        await counting.send(*rows_of(1))
        await counting.has_seen(1)
        await asyncio.sleep(0.5)
        assert await run.stop() == 0


async def test_a_listener_that_fails_ends_the_process(counting, monkeypatch):
    """aiokafka swallows what the listener raises and would read on from Kafka's offset."""
    await counting.send(*rows_of(5))

    async def refuse(*_):
        raise RuntimeError("no offsets")

    monkeypatch.setattr(Consumer, "_read_offsets", refuse)
    async with counting.running(wait=False) as run:
        assert await run.exit_code() == 1
    assert await counting.n_seen() == 0


async def test_not_ready_before_partitions_are_assigned(counting, monkeypatch):
    """Readiness waits for the assignment; liveness does not."""
    released = asyncio.Event()
    seek_to_database = Consumer._seek_to_database

    async def late(self, partitions):
        await released.wait()
        await seek_to_database(self, partitions)

    monkeypatch.setattr(Consumer, "_seek_to_database", late)
    async with counting.running(wait=False) as run:

        async def is_started() -> bool:
            return run.service._ready

        await eventually(is_started, within_s=20)
        assert run.service._ready_problem() == "no partitions assigned yet"
        assert run.service._live_problem() is None
        released.set()

        async def is_ready() -> bool:
            return run.service._ready_problem() is None

        await eventually(is_ready, within_s=20)
        run.service.stop()
        assert run.service._ready_problem() is not None


async def test_a_stop_in_mid_load_finishes_the_poll_and_leaves_the_rest_on_kafka(counting):
    """What was taken is finished; what was not is done by the next start; nothing twice."""
    rows = rows_of(400)
    in_poll = asyncio.Event()

    async def slowly(_, __):
        in_poll.set()
        await asyncio.sleep(0.3)

    await counting.send(*rows)
    async with counting.running(before_save=slowly, batch_records_max=20) as run:
        await asyncio.wait_for(in_poll.wait(), 20)
        started = asyncio.get_running_loop().time()
        assert await run.stop() == 0
        assert asyncio.get_running_loop().time() - started < 5
    n_first = await counting.n_seen()
    assert 0 < n_first < 400
    # what was done has left, too: the outbox is drained before the end
    assert len(await counting.read(topics.CONSENT_STATE)) == n_first
    async with counting.running():
        await counting.has_seen(400)
    await counting.exactly_once(rows)


async def test_a_stop_ends_a_start_that_still_waits_for_kafka(counting):
    """SIGTERM must not wait for the start's whole budget (60 s)."""
    async with counting.running(wait=False, kafka_bootstrap="127.0.0.1:9") as run:
        await asyncio.sleep(1)
        assert not run.task.done()
        started = asyncio.get_running_loop().time()
        assert await run.stop() == 0
        assert asyncio.get_running_loop().time() - started < 5


async def test_a_trace_goes_from_record_through_outbox_to_the_next_record(counting):
    """W3C: the same trace, a new span, also where the record had none or a broken one."""
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    rows = [
        with_header(row_of(event()), "traceparent", given.encode()),
        with_header(row_of(event()), "traceparent", b"nonsense"),
    ]
    await counting.send(*rows)
    async with counting.running():
        records = await counting.records(topics.CONSENT_STATE, 2)
    by_key = {record.key: dict(record.headers)["traceparent"].decode() for record in records}
    version, trace_id, span_id, flags = by_key[rows[0].key].split("-")
    assert (version, trace_id, flags) == ("00", "0af7651916cd43dd8448eb211c80319c", "01")
    assert span_id != "b7ad6b7169203331"
    assert by_key[rows[1].key].split("-")[1] != trace_id
    assert len(by_key[rows[1].key]) == len(given)


async def test_a_held_lock_of_a_frozen_process_is_given_up(counting):
    """A process frozen inside its transaction must not keep the fence from its successor."""
    async with counting.running(transaction_idle_max_s=0.5) as run:

        async def freeze() -> None:
            async with run.service.transaction() as ctx:
                await ctx.connection.execute("SELECT * FROM consumer_offset FOR UPDATE")
                await asyncio.sleep(1.5)
                await ctx.connection.execute("SELECT 1")

        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as raised:
            await freeze()
        assert errors.is_transient(raised.value)
        assert run.service._failure is None


async def test_lag_is_told_while_a_poll_waits(counting):
    """Lag in records and seconds grows although no poll comes to an end."""
    released = asyncio.Event()

    async def wait_for_release(_, batch):
        if any(received.event.wording_version == "hold" for received in batch):
            await released.wait()

    tp = TopicPartition(counting.world.topic(topics.CONSENT), 0)
    async with counting.running(before_save=wait_for_release, stall_timeout_s=3) as run:
        await counting.send(*rows_of(2), partition=0)
        await counting.has_seen(2)
        await counting.send(row_of(event("hold")), *rows_of(4), partition=tp.partition)

        async def is_behind() -> bool:
            labels = {"topic": "consent", "partition": "0"}
            n = run.sample("consumer_lag_records", **labels)
            return n >= 5 and run.sample("consumer_lag_seconds", **labels) > 0.5

        await eventually(is_behind, within_s=10)
        released.set()
        await counting.has_seen(7)

        async def has_caught_up() -> bool:
            labels = {"topic": "consent", "partition": "0"}
            return run.sample("consumer_lag_records", **labels) == 0

        await eventually(has_caught_up, within_s=10)
