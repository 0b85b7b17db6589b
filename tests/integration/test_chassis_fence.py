"""The offset fence: a record has its effect once, however often Kafka delivers it.

Goal: redelivery, two processes and a database behind or before Kafka change nothing
(architecture.md "The path of a message"; hot-path.md 1j). Method: the counting service, whose
table has no key.
"""

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka import TopicPartition

from deploy.provision import Infrastructure
from schemas import topics
from services.chassis import consume
from tests.support.counting import Counting, event, make_counting, row_of, rows_of
from tests.support.eventually import eventually
from tests.support.stack import finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


def partitions(counting: Counting) -> list[TopicPartition]:
    name = counting.world.topic(topics.CONSENT)
    return [TopicPartition(name, n) for n in range(topics.CONSENT.partitions)]


async def test_a_seek_back_does_nothing_twice(counting):
    """Redelivery inside one process: refused, counted, and the reader goes on where it was."""
    rows = rows_of(60)
    async with counting.running() as run:
        await counting.send(*rows[:50])
        await counting.has_seen(50)
        for tp in partitions(counting):
            run.consumer.seek(tp, 0)

        async def is_refused() -> bool:
            return run.sample("fenced_records_total", topic="consent") >= 50

        await eventually(is_refused, within_s=20)
        await counting.send(*rows[50:])
        await counting.has_seen(60)
    await counting.exactly_once(rows)


async def test_offsets_reset_in_kafka_change_nothing(counting):
    """The truth about offsets is in the database: Kafka's are for lag tools only."""
    rows = rows_of(40)
    await counting.send(*rows[:30])
    async with counting.running() as run:
        await counting.has_seen(30)
        run.service._consumer._uncommitted.clear()
        await run.consumer.commit(dict.fromkeys(partitions(counting), 0))
        assert await run.stop() == 0
    async with counting.running():
        await counting.send(*rows[30:])
        await counting.has_seen(40)
    await counting.exactly_once(rows)


async def test_a_database_behind_kafka_gets_everything_again(counting):
    """A database restored from a backup: aiokafka fetches from Kafka's offset before the seek.

    The fence alone would take those records and pass the ones between for good.
    """
    rows = rows_of(300)
    await counting.send(*rows[:200])
    async with counting.running() as run:
        await counting.has_seen(200)
        assert await run.stop() == 0  # tells Kafka the offsets
    await counting.fetch("DELETE FROM seen")
    await counting.fetch("DELETE FROM paid")
    await counting.fetch("UPDATE consumer_offset SET next_offset = 0")
    await counting.send(*rows[200:])

    async with counting.running():
        await counting.has_seen(300)
    await counting.exactly_once(rows)


async def test_records_fetched_before_the_seek_wait_for_it(counting, monkeypatch):
    """The same with the race forced: the database answers the listener late."""
    rows = rows_of(100)
    await counting.send(*rows[:60])
    async with counting.running() as run:
        await counting.has_seen(60)
        assert await run.stop() == 0
    await counting.fetch("DELETE FROM seen")
    await counting.fetch("DELETE FROM paid")
    await counting.fetch("UPDATE consumer_offset SET next_offset = 0")
    await counting.send(*rows[60:])
    polled: list[int] = []
    read_offsets, on_poll = consume.Consumer._read_offsets, consume.Consumer._on_poll

    async def read_late(self, tps):
        # until records from Kafka's offset have been handed over, or three seconds
        for _ in range(150):
            if polled:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        return await read_offsets(self, tps)

    async def note(self, records):
        polled.extend(record.offset for record in records)
        await on_poll(self, records)

    monkeypatch.setattr(consume.Consumer, "_read_offsets", read_late)
    monkeypatch.setattr(consume.Consumer, "_on_poll", note)
    async with counting.running():
        await counting.has_seen(100)
    assert polled[0] > 0, "the race did not happen: nothing was fetched before the seek"
    await counting.exactly_once(rows)


async def test_a_gap_is_read_a_second_time_before_it_is_believed(counting):
    """Nothing may be passed over, not even by a stray seek forward."""
    rows = rows_of(30)
    async with counting.running() as run:
        await counting.send(*rows[:10], partition=0)
        await counting.has_seen(10)
        tp = partitions(counting)[0]
        run.consumer.pause(tp)
        await counting.send(*rows[10:], partition=0)
        run.consumer.seek(tp, 20)  # ten records ahead of where the database is
        run.consumer.resume(tp)
        await counting.has_seen(30)
    await counting.exactly_once(rows)


async def test_two_processes_share_a_topic_and_do_nothing_twice(counting):
    """Joining and leaving in mid-load: partitions move, each record has its effect once."""
    rows = rows_of(600)
    async with counting.running(instance="0") as first:
        await counting.send(*rows[:200])
        await counting.has_seen(20)
        async with counting.running(instance="1") as second:
            await counting.send(*rows[200:400])
            await counting.has_seen(400)
            assert len(first.consumer.assignment()) > 0
            assert len(second.consumer.assignment()) > 0
            assert not first.consumer.assignment() & second.consumer.assignment()
            assert await second.stop() == 0
        await counting.send(*rows[400:])
        await counting.has_seen(600)
    await counting.exactly_once(rows)
    instances = await counting.fetch("SELECT DISTINCT instance FROM seen")
    assert {row[0] for row in instances} == {"0", "1"}


async def test_a_process_without_partitions_is_ready_to_stand_by(counting):
    """A second instance of a service on topics of one partition must not fail its roll-out."""

    def only_orders(service):
        on_orders = service._routes[topics.RETENTION_ORDER]
        service.consume({topics.RETENTION_ORDER: on_orders})

    async with (
        counting.running(instance="0", arrange=only_orders) as one,
        counting.running(instance="1", arrange=only_orders) as two,
    ):
        assert sorted(len(run.consumer.assignment()) for run in (one, two)) == [0, 1]
        assert [run.service._ready_problem() for run in (one, two)] == [None, None]


async def test_a_poll_over_partitions_leaves_out_only_the_refused_one(counting):
    """F1 (faststream < 0.7.8 rewound one partition only): the others have their effect.

    Somebody has done partition 0 up to its fourth record; the poll spans all partitions.
    """
    rows = {n: rows_of(6) for n in range(topics.CONSENT.partitions)}
    done = rows[0][:4]
    spans: list[set[int]] = []

    async def note(_, batch):
        spans.append({received.partition for received in batch})

    async with counting.running(before_save=note) as run:
        run.consumer.pause(*partitions(counting))
        for number, batch in rows.items():
            await counting.send(*batch, partition=number)
        moved = "UPDATE consumer_offset SET next_offset = 4 WHERE topic = 'consent' AND part = 0"
        await counting.fetch(moved)
        run.consumer.resume(*partitions(counting))
        await counting.has_seen(6 * 6 - 4)
        assert run.sample("fenced_records_total", topic="consent") >= 4
    assert max(len(span) for span in spans) > 1, "no poll spanned partitions"
    await counting.exactly_once([row for n in rows for row in rows[n] if row not in done])


async def test_a_topic_made_anew_is_refused_with_what_to_do(counting):
    """An offset beyond the topic's end: the fence would refuse everything for ever."""
    await counting.fetch("INSERT INTO consumer_offset VALUES ('consent', 3, 1000)")
    async with counting.running(wait=False) as run:
        assert await run.exit_code() == 1
        assert "made anew" in str(run.service._failure)


async def test_a_producer_that_sends_twice_is_absorbed_by_the_natural_key(counting):
    """The second layer: the same event at new offsets passes the fence and pays once."""
    rows = rows_of(20)
    async with counting.running() as run:
        await counting.send(*rows, *rows)
        await counting.has_seen(40)
        assert run.sample("events_total", topic="consent", outcome="paid") == 20
    assert await counting.value("SELECT count(*) FROM paid") == 20


async def test_order_within_a_key_is_the_order_of_the_topic(counting):
    """Style 3.4 (6): never parallel inside a partition, also over several polls."""
    visitor = event().visitor_id
    rows = [row_of(event(visitor_id=visitor)) for _ in range(300)]
    await counting.send(*rows)
    async with counting.running(batch_records_max=50):
        await counting.has_seen(300)
    found = await counting.fetch("SELECT event_id FROM seen ORDER BY ctid")
    assert [str(r[0]).encode() for r in found] == [dict(row.headers)["ce_id"] for row in rows]
