"""A real service of the chassis that only counts what it is given; with faults to order.

It runs on consent's declaration, topics and database, with tables of its own: `seen` has no key, so
that every double effect shows; `paid` has the natural key. It runs in the test's loop (`running`)
or as a process (`python -m tests.support.counting`).
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry
from typing_extensions import override

from deploy.local.layout import ROOT
from schemas import topics
from schemas.consent import (
    ConsentChoice,
    ConsentDecision,
    ConsentMethod,
    ConsentStateV1,
    ConsentV1,
    Purpose,
)
from schemas.topics import Topic
from schemas.wire import WireModel
from services.chassis import consume, db
from services.chassis.clock import SystemClock, sleep
from services.chassis.context import Context
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox, OutboxRow, Sink
from services.chassis.received import Received
from services.chassis.service import Service, main
from services.consent.declaration import DECLARATION
from services.consent.settings import Settings
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.stack import World, finish, make_world, new_prefix

SERVICE = DECLARATION.name
READ = (topics.CONSENT, topics.RETENTION_ORDER)
TOPICS = (*READ, topics.CONSENT_STATE, *(topic.dead_letter for topic in READ))
ORDINARY = "2026-11.1"
IDS = TimeOrderedIds()
_TABLES = """
CREATE TABLE seen (
    topic text NOT NULL, part int NOT NULL, record_offset bigint NOT NULL, event_id uuid NOT NULL,
    word text NOT NULL CONSTRAINT seen_word_ck CHECK (word <> 'constraint'),
    n int NOT NULL, instance text NOT NULL, visitor text NOT NULL
);
CREATE TABLE paid (decision_id uuid CONSTRAINT paid_pk PRIMARY KEY);
"""

BeforeSave = Callable[[Context["Store"], Sequence[Received[ConsentV1]]], Awaitable[None]]


class Store:
    """The two tables on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        self._connection = connection

    async def save(self, batch: Sequence[Received[Any]], instance: str) -> None:
        """Note each record; the event's word may break a rule of the database."""
        await self._connection.executemany(
            "INSERT INTO seen VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            [
                (
                    *(r.topic, r.partition, r.offset, r.id),
                    *(word_of(r), 2**40 if word_of(r) == "overflow" else 1),
                    *(instance, str(getattr(r.event, "visitor_id", ""))),
                )
                for r in batch
            ],
        )

    async def pay(self, decision_ids: Sequence[UUID]) -> int:
        """Return how many were new."""
        rows = await self._connection.fetch(
            "INSERT INTO paid SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING 1",
            list(decision_ids),
        )
        return len(rows)


def word_of(received: Received[Any]) -> str:
    """Return what an event orders the service to do; `ORDINARY` = count it."""
    return str(getattr(received.event, "wording_version", ORDINARY))


async def nothing(_: Context[Store], __: Sequence[Received[ConsentV1]]) -> None:
    """Do nothing before the rows are written."""


def build(settings: Settings | None = None, before_save: BeforeSave = nothing) -> Service[Store]:
    """Return the service, not yet started."""
    settings = settings or Settings.load()
    service = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=CollectorRegistry(),
        store=Store,
        invariants={"words_are_allowed": "SELECT count(*) FROM seen WHERE word = 'odd'"},
    )

    async def on_consents(ctx: Context[Store], batch: Sequence[Received[ConsentV1]]) -> None:
        for received in batch:
            if word_of(received) == "poison":
                raise Poison("word_poison")
            # what a careless bug would say: it must not get into the log
            assert word_of(received) != "bug", f"bug about {received.event.visitor_id}"
        await ctx.store.save(batch, settings.instance)
        await before_save(ctx, batch)
        n_new = await ctx.store.pay([received.event.decision_id for received in batch])
        ctx.count(topics.CONSENT, "seen", len(batch))
        ctx.count(topics.CONSENT, "paid", n_new)
        for received in batch:
            state = ConsentStateV1(visitor_id=received.event.visitor_id, purposes=())
            ctx.outbox.add(topics.CONSENT_STATE, state, cause=received)

    async def on_orders(ctx: Context[Store], batch: Sequence[Received[Any]]) -> None:
        await ctx.store.save(batch, settings.instance)
        ctx.count(topics.RETENTION_ORDER, "seen", len(batch))

    service.consume({topics.CONSENT: on_consents, topics.RETENTION_ORDER: on_orders})
    return service


def event(word: str = ORDINARY, visitor_id: UUID | None = None) -> ConsentV1:
    """Return a new event with an order to the service in it."""
    return ConsentV1(
        decision_id=IDS.new(),
        visitor_id=visitor_id or new_visitor_id(),
        choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.GIVEN),),
        catalogue_version="2026-11.1",
        wording_version=word,
        language="de",
        method=ConsentMethod.BANNER,
    )


def row_of(body: WireModel, topic: Topic = topics.CONSENT, producer: str = "gateway") -> OutboxRow:
    """Return the record that a producer would send."""
    outbox = Outbox(producer, IDS, SystemClock().now())
    outbox.add(topic, body)
    return outbox.rows[0]


def rows_of(n: int) -> list[OutboxRow]:
    """Return records of ordinary events of different visitors."""
    return [row_of(event()) for _ in range(n)]


def with_header(row: OutboxRow, name: str, value: bytes | None) -> OutboxRow:
    """Return a record with one header replaced or added."""
    return replace(row, headers=[*((k, v) for k, v in row.headers if k != name), (name, value)])


@dataclass(kw_only=True)
class Running:
    """A service inside the test's loop."""

    service: Service[Store]
    task: "asyncio.Task[int]"

    async def exit_code(self, within_s: float = 20) -> int:
        """Wait for the end."""
        return await asyncio.wait_for(asyncio.shield(self.task), within_s)

    async def stop(self) -> int:
        """Ask it to stop, as SIGTERM does, and return the exit status."""
        self.service.stop()
        return await self.exit_code()

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value; 0 while it is not there."""
        return self.service.registry.get_sample_value(f"{SERVICE}_{name}", labels) or 0.0

    @property
    def consumer(self) -> Any:
        """aiokafka's consumer, for faults."""
        assert self.service._consumer is not None
        return self.service._consumer._subscriber.consumer


@dataclass(kw_only=True)
class Counting:
    """A world for the counting service."""

    world: World

    def settings(self, **overrides: object) -> Settings:
        """Return its settings for a run inside the test's loop."""
        quick = {"admin_port": "0", "batch_wait_ms": "20", "session_timeout_ms": "6000"}
        given = {name: str(value) for name, value in overrides.items()}
        return Settings.model_validate(self.world.settings(SERVICE) | quick | given, strict=False)

    @contextlib.asynccontextmanager
    async def running(
        self,
        *,
        before_save: BeforeSave = nothing,
        arrange: Callable[[Service[Store]], None] = lambda _: None,
        wait: bool = True,
        **overrides: object,
    ) -> AsyncIterator[Running]:
        """Run it inside the test's loop until the block ends."""
        service = build(self.settings(**overrides), before_save)
        arrange(service)
        found = Running(service=service, task=asyncio.create_task(service.run()))
        try:

            async def is_ready_or_ended() -> bool:
                return found.task.done() or service._ready_problem() is None

            if wait:
                await eventually(is_ready_or_ended, within_s=30)
            yield found
        finally:
            service.stop()
            await asyncio.wait({found.task}, timeout=30)
            found.task.cancel()
            await asyncio.gather(found.task, return_exceptions=True)

    def start(self, **overrides: str) -> "subprocess.Popen[bytes]":
        """Run it as a process; ended with the world at the latest."""
        quick = {"CONSENT_BATCH_WAIT_MS": "20", "CONSENT_SESSION_TIMEOUT_MS": "6000"}
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(ROOT / "deploy/local/launch.py")),
                    *(str(os.getpid()), "9", "-"),
                    *(sys.executable, "-m", "tests.support.counting"),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.world.environments[SERVICE], **quick, **overrides},
            )
        self.world.processes.append(process)
        return process

    async def end_sessions(self) -> int:
        """End all sessions of the service's role, as a fail-over does; return how many."""
        connection = await asyncpg.connect(self.world.infrastructure.postgres_admin_dsn)
        try:
            rows = await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1",
                self.world.databases[SERVICE].name,
            )
        finally:
            await connection.close()
        return len(rows)

    @property
    def log_path(self) -> Path:
        """Where its processes write."""
        folder = ROOT / "var" / "test-logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.world.prefix}-counting.log"

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """Run one statement as the owner."""
        connection = await asyncpg.connect(self.world.owner_url(SERVICE))
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    async def value(self, sql: str, *arguments: object) -> Any:
        """Return the one value of one statement."""
        return (await self.fetch(sql, *arguments))[0][0]

    async def n_seen(self) -> int:
        """Return how many effects there are, doubles counted twice."""
        return int(await self.value("SELECT count(*) FROM seen"))

    async def has_seen(self, n: int, within_s: float = 30) -> None:
        """Wait until there are at least so many effects."""

        async def are_seen() -> bool:
            return await self.n_seen() >= n

        await eventually(are_seen, within_s=within_s)

    async def exactly_once(self, rows: Sequence[OutboxRow]) -> None:
        """Check that each of the records had its effect once, and nothing else had one."""
        found = await self.fetch("SELECT event_id FROM seen")
        wanted = [dict(row.headers)["ce_id"] or b"" for row in rows]
        assert sorted(str(row["event_id"]) for row in found) == sorted(w.decode() for w in wanted)

    async def send(self, *rows: OutboxRow, partition: int | None = None) -> None:
        """Send records as they are, in order."""
        producer = AIOKafkaProducer(**self.world.kafka.options(), enable_idempotence=True)
        await producer.start()
        try:
            futures = [
                await producer.send(
                    self.world.kafka_prefix + row.topic,
                    key=row.key,
                    value=row.payload,
                    headers=row.headers,
                    partition=partition,
                )
                for row in rows
            ]
            await asyncio.gather(*futures)
        finally:
            await producer.stop()

    async def read(self, topic: Topic) -> list[Any]:
        """Return all records of a topic."""
        consumer = AIOKafkaConsumer(
            **self.world.kafka.options(),
            group_id=None,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            tps = [TopicPartition(self.world.topic(topic), n) for n in range(topic.partitions)]
            consumer.assign(tps)
            left = sum((await consumer.end_offsets(tps)).values())
            left -= sum((await consumer.beginning_offsets(tps)).values())
            records: list[Any] = []
            async with asyncio.timeout(20):
                while len(records) < left:
                    found = await consumer.getmany(timeout_ms=200)
                    records.extend(record for part in found.values() for record in part)
        finally:
            await consumer.stop()
        return records

    async def records(
        self, topic: Topic, n: int, within_s: float = 20, *, distinct: bool = False
    ) -> list[Any]:
        """Wait until a topic holds at least so many records and return all that it holds.

        Args:
            distinct: so many events, where a relay may have repeated some.
        """
        found: list[Any] = []

        async def are_there() -> bool:
            found[:] = await self.read(topic)
            ids = [dict(record.headers).get("ce_id") for record in found]
            return len(set(ids) if distinct else ids) >= n

        await eventually(are_there, within_s=within_s)
        return found


def make_counting() -> Counting:
    """Make a world with the counting service's tables; `finish(counting.world.close())`."""

    async def make() -> Counting:
        counting = Counting(world=await make_world(new_prefix(), (SERVICE,), topics=TOPICS))
        connection = await asyncpg.connect(counting.world.owner_url(SERVICE))
        try:
            await connection.execute(_TABLES)
        finally:
            await connection.close()
        return counting

    return finish(make())


# ---------------------------------------------------------------------- as a process, with faults


class _DyingSink:
    """Dies between the broker's acknowledgement and the move of the cursor."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    async def send_rows(self, rows: list[OutboxRow]) -> None:
        await self._sink.send_rows(rows)
        os.kill(os.getpid(), signal.SIGKILL)


class _DyingConsumer(consume.Consumer):
    """Dies between the commit in the database and the one in Kafka."""

    @override
    async def _commit_now_and_then(self) -> None:
        if self._uncommitted:
            os.kill(os.getpid(), signal.SIGKILL)


async def _hold(_: Context[Store], batch: Sequence[Received[ConsentV1]]) -> None:
    """Keep the transaction open while the file is there."""
    path = Path(os.environ["COUNTING_HOLD"])
    while any(word_of(received) == "hold" for received in batch) and path.exists():  # noqa: ASYNC240
        await sleep(0.02)


def _build_with_faults() -> Service[Store]:
    service = build(before_save=_hold if "COUNTING_HOLD" in os.environ else nothing)
    match os.environ.get("COUNTING_FAULT"):
        case "die_before_kafka_commit":
            sys.modules["services.chassis.service"].Consumer = _DyingConsumer  # type: ignore[attr-defined]
        case "die_after_produce":
            service.sink.send_rows = _DyingSink(_Kept(service)).send_rows  # type: ignore[method-assign,assignment]
        case _:
            pass
    return service


class _Kept:
    """The sink's own method, kept aside while another stands in its place."""

    def __init__(self, service: Service[Store]) -> None:
        self._send_rows = service.sink.send_rows

    async def send_rows(self, rows: list[OutboxRow]) -> None:
        await self._send_rows(rows)


if __name__ == "__main__":
    sys.exit(main(DECLARATION, _build_with_faults, Settings))
