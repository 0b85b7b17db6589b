"""The ad-view path beside a plain COPY of the same rows and beside a naive consumer.

Goal: how much of what PostgreSQL can take does the path reach, and what do batches bring?

Method: in each round, interleaved so that all meet the same machine,
- `path`: events already on Kafka -> the ledger's real process (tickets checked, order, speed, caps,
  lots, postings, outbox) -> credit durable -> relayed -> read back from Kafka's `credit` topic;
  timed from the first committed poll to the last, and to the last event read back;
- `copy`: the same ad_view rows by binary COPY into a table with the same primary key, committed
  every 1,000 rows;
- `naive`: the same handler for one event at a time, one transaction and one Kafka commit each;
- `latency`: 1,000 events a second, whole views of new visitors; milliseconds from the producer's
  instant to the visitor's `credit` event as another reader gets it.

`python -m benchmarks.ad_view [--events 30000] [--naive-events 1500] [--rounds 3]` writes
`var/bench/ad_view.json`.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client import CollectorRegistry

from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from services.ad_ledger.classification import TABLES
from services.ad_ledger.handlers import Handlers
from services.ad_ledger.metrics import LedgerMetrics
from services.ad_ledger.store import Store
from services.chassis import db
from services.chassis.context import Context
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox
from services.chassis.produce import KafkaSink, Producer
from services.chassis.received import decode
from services.privacy.declare import by_day
from tests.support.bench import new_visitor_id
from tests.support.machine import machine
from tests.support.stack import World, make_world, new_prefix

AD_MS = 16_000
VIEW = ("page_hit", "start", "first_quartile", "midpoint", "third_quartile", "complete")
BATCH = 1000
LATENCY_RATE = 1000
LATENCY_VISITORS = 1000
KEY_JSON = json.dumps({"k1": "11" * 32})
IDS = TimeOrderedIds()
Row = tuple[Any, ...]


def make_events(n_events: int, now: datetime) -> list[AdViewV1]:
    """Return whole views of as many visitors as it takes, six events each."""
    keys = view_ticket.KeyRing.from_json(KEY_JSON)
    events = []
    for _ in range(n_events // len(VIEW)):
        visitor_id, issued_at = new_visitor_id(), now - timedelta(seconds=20)
        ticket = view_ticket.ViewTicket(
            ticket_id=IDS.new(), visitor_id=visitor_id, ad_id="bench", duration_ms=AD_MS,
            issued_at=issued_at, expires_at=now + timedelta(hours=1),
        )  # fmt: skip
        text = view_ticket.issue(keys, ticket)
        events += [
            AdViewV1(
                visitor_id=visitor_id, ticket=text, kind=AdEventKind(kind), position_ms=AD_MS,
                address="192.0.2.1",
            )
            for kind in VIEW
        ]  # fmt: skip
    return events


async def fill(world: World, events: Sequence[AdViewV1], now: datetime) -> None:
    """Put the events on Kafka."""
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="bench")
    await sink.start()
    producer = Producer(sink, service="gateway", timeout_s=60)
    for start in range(0, len(events), 5000):
        chunk = events[start : start + 5000]
        await producer.send_many([(topics.AD_VIEW, e, IDS.new()) for e in chunk], time=now)
    await sink.stop()


async def n_on(world: World, topic: topics.Topic) -> int:
    """Return how many records a topic holds."""
    consumer = AIOKafkaConsumer(**world.kafka.options(), enable_auto_commit=False)
    await consumer.start()
    try:
        parts = [TopicPartition(world.topic(topic), n) for n in range(topic.partitions)]
        return sum((await consumer.end_offsets(parts)).values())
    finally:
        await consumer.stop()


async def time_path(world: World, events: Sequence[AdViewV1], now: datetime) -> tuple[float, float]:
    """Return events a second until durable, and until read back."""
    await fill(world, events, now)
    process = world.start("ad_ledger", AD_LEDGER_VIEW_TICKET_KEYS=KEY_JSON)
    connection = await asyncpg.connect(world.owner_url("ad_ledger"))
    n_done, n_first, first_at, last_at = 0, 0, 0.0, 0.0
    try:
        while n_done < len(events):
            await asyncio.sleep(0.01)
            assert process.poll() is None, "the ledger's process ended"
            n_done = await connection.fetchval(
                "SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offset "
                "WHERE topic = 'ad-view'"
            )
            last_at = time.perf_counter()
            if n_done and not n_first:
                n_first, first_at = n_done, last_at
        n_told = await connection.fetchval("SELECT count(*) FROM outbox WHERE topic = 'credit'")
        while await n_on(world, topics.CREDIT) < n_told:
            await asyncio.sleep(0.01)
        back_at = time.perf_counter()
        granted = await connection.fetchval("SELECT sum(granted_ms) FROM lot")
        assert granted == len(events) // len(VIEW) * AD_MS, "every view earned its whole credit"
    finally:
        await connection.close()
        process.terminate()
        await asyncio.to_thread(process.wait)
    n_timed = len(events) - n_first
    return n_timed / (last_at - first_at), n_timed / (back_at - first_at)


def rows_of(events: Sequence[AdViewV1], now: datetime) -> list[Row]:
    """Return the ad_view rows that the path would write."""
    keys = view_ticket.KeyRing.from_json(KEY_JSON)
    rows: list[Row] = []
    for event in events:
        ticket = view_ticket.read(keys, event.ticket)
        credit_ms = 0 if event.kind.value in VIEW[:2] else AD_MS // 4
        rows.append(
            (
                now.date(), ticket.ticket_id, event.kind.value, event.visitor_id, now,
                event.position_ms, credit_ms, "2026-1", False,
            )
        )  # fmt: skip
    return rows


async def time_copy(world: World, events: Sequence[AdViewV1], now: datetime) -> float:
    """Return rows a second by binary COPY, one commit for a thousand."""
    rows = rows_of(events, now)
    connection = await asyncpg.connect(world.owner_url("ad_ledger"))
    try:
        await connection.execute("DROP TABLE IF EXISTS copied")
        await connection.execute("CREATE TABLE copied (LIKE ad_view INCLUDING ALL)")
        started = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            await connection.copy_records_to_table("copied", records=rows[start : start + BATCH])
        return len(rows) / (time.perf_counter() - started)
    finally:
        await connection.close()


async def time_naive(world: World, events: Sequence[AdViewV1], now: datetime) -> float:
    """Return events a second of a consumer that takes, writes and commits one at a time."""
    await fill(world, events, now)
    handlers = Handlers(view_ticket.KeyRing.from_json(KEY_JSON), LedgerMetrics(CollectorRegistry()))
    connection = await db.connect(world.owner_url("ad_ledger"))
    await connection.execute("SELECT chassis_outbox_maintain()")
    await db.ensure_days(connection, [db.DayTable(name) for name in by_day(TABLES)], now.date())
    consumer = AIOKafkaConsumer(
        world.topic(topics.AD_VIEW), **world.kafka.options(),
        group_id=f"{world.kafka_prefix}naive", auto_offset_reset="earliest",
        enable_auto_commit=False,
    )  # fmt: skip
    await consumer.start()
    try:
        first = await consumer.getone()
        started = time.perf_counter()
        for n in range(len(events)):
            record = first if n == 0 else await consumer.getone()
            received = decode(topics.AD_VIEW, record)
            async with connection.transaction():
                ctx = Context(
                    store=Store(connection), outbox=Outbox("ad_ledger", IDS, now), now=now,
                    ids=IDS, connection=connection, service="ad_ledger",
                )  # fmt: skip
                await handlers.on_ad_views(ctx, [received])
                await ctx.outbox.flush(connection)
            await consumer.commit()
        return len(events) / (time.perf_counter() - started)
    finally:
        await consumer.stop()
        await connection.close()


async def time_latency(world: World) -> tuple[float, float]:
    """Return (p50, p99) milliseconds of the whole path at a modest rate."""
    process = world.start("ad_ledger", AD_LEDGER_VIEW_TICKET_KEYS=KEY_JSON)
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="bench-latency")
    producer = Producer(sink, service="gateway", timeout_s=60)
    reader = AIOKafkaConsumer(world.topic(topics.CREDIT), **world.kafka.options())
    sent_at: dict[bytes, float] = {}
    waited_ms: list[float] = []

    async def play(n_visitors: int) -> None:
        for _ in range(n_visitors):
            now = datetime.now(UTC)
            events = make_events(len(VIEW), now)
            sent_at[str(events[0].visitor_id).encode()] = time.perf_counter()
            batch = [(topics.AD_VIEW, event, IDS.new()) for event in events]
            sending.append(asyncio.create_task(producer.send_many(batch, time=now)))
            await asyncio.sleep(len(VIEW) / LATENCY_RATE)

    sending: list[asyncio.Task[None]] = []
    await asyncio.gather(sink.start(), reader.start())
    try:
        await play(1)
        await asyncio.wait_for(reader.getone(), 60)  # the process has started
        assert process.poll() is None, "the ledger's process ended"
        sent_at.clear()
        playing = asyncio.create_task(play(LATENCY_VISITORS))
        while len(waited_ms) < LATENCY_VISITORS:
            record = await asyncio.wait_for(reader.getone(), 60)
            begun = sent_at.pop(record.key, None)
            if begun is not None:
                waited_ms.append((time.perf_counter() - begun) * 1000)
        await asyncio.gather(playing, *sending)
    finally:
        await asyncio.gather(reader.stop(), sink.stop())
        process.terminate()
        await asyncio.to_thread(process.wait)
    cuts = statistics.quantiles(waited_ms, n=100)
    return cuts[49], cuts[98]


async def one_round(n_events: int, n_naive: int) -> dict[str, float]:
    """Run all three once, each in a world of its own."""
    figures: dict[str, float] = {}
    now = datetime.now(UTC)
    events = make_events(n_events, now)
    world = await make_world(new_prefix(), ["ad_ledger"])
    try:
        figures["copy"] = await time_copy(world, events, now)
        figures["path"], figures["path_read_back"] = await time_path(world, events, now)
    finally:
        await world.close()
    world = await make_world(new_prefix(), ["ad_ledger"])
    try:
        figures["naive"] = await time_naive(world, make_events(n_naive, now), now)
        figures["latency_p50"], figures["latency_p99"] = await time_latency(world)
    finally:
        await world.close()
    return figures


def unit_of(name: str) -> str:
    """Return the unit of a figure."""
    return "ms" if name.startswith("latency") else "events/s"


def summary(name: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a figure as the report holds it."""
    return {
        "name": name, "unit": unit, "n": len(values), "median": statistics.median(values),
        "min": min(values), "max": max(values),
    }  # fmt: skip


async def run(n_events: int, n_naive: int, n_rounds: int) -> dict[str, Any]:
    """Run the rounds and return the report."""
    rounds = []
    for number in range(n_rounds):
        rounds.append(await one_round(n_events, n_naive))
        print(f"round {number + 1}:", {k: round(v) for k, v in rounds[-1].items()}, flush=True)
    names = list(rounds[0])
    ratios = {
        "ad_view_credit_per_copy": [r["path"] / r["copy"] for r in rounds],
        "ad_view_credit_per_naive": [r["path"] / r["naive"] for r in rounds],
    }
    return {
        "name": "ad_view",
        "machine": machine(),
        "figures": [summary(n, unit_of(n), [r[n] for r in rounds]) for n in names],
        "ratios": [
            {k: v for k, v in summary(n, "", values).items() if k != "unit"}
            for n, values in ratios.items()
        ],
    }


def main() -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--naive-events", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    report = asyncio.run(run(options.events, options.naive_events, options.rounds))
    for figure in report["figures"]:
        print(f"{figure['name']:>16} {figure['median']:>10,.0f} {figure['unit']} "
              f"[{figure['min']:,.0f}-{figure['max']:,.0f}]")  # fmt: skip
    for ratio in report["ratios"]:
        print(f"{ratio['name']:>26} {ratio['median']:.3f} [{ratio['min']:.3f}-{ratio['max']:.3f}]")
    path = Path("var/bench/ad_view.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
