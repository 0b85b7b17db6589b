"""Dead-letter topics and their sources on Kafka: read to the end as of now, send one record."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from deploy.dead_letters.letter import DeadLetterError, Letter, Record
from schemas.topics import ALL_TOPICS, Topic
from services.chassis.clock import sleep
from services.chassis.errors import Transient
from services.chassis.kafka import KafkaLogin
from services.chassis.outbox import OutboxRow
from services.chassis.produce import REQUEST_TIMEOUT_MS, KafkaSink

ANSWER_TIMEOUT_S = 30.0
_POLL_MS = 500


class Box:
    """One stack's dead letters; `opened` makes it."""

    def __init__(self, consumer: AIOKafkaConsumer, sink: KafkaSink, prefix: str) -> None:
        """Take the open ways to Kafka."""
        self._consumer = consumer
        self._sink = sink
        self._prefix = prefix

    async def letters(self, topic: Topic | None = None) -> AsyncIterator[Letter]:
        """Read the letters that are there now, of one dead-letter topic or of all."""
        tps = {
            TopicPartition(self._prefix + dead.name, partition): dead
            for dead in await self._topics()
            if topic is None or dead.name == topic.name
            for partition in range(dead.partitions)
        }
        async for record in self._read(tps):
            yield Letter(record)

    async def letter(self, topic: Topic, partition: int, offset: int) -> Letter | None:
        """Return one letter; None when there is none (any more)."""
        record = await self._one(topic, partition, offset)
        return None if record is None else Letter(record)

    async def original(self, letter: Letter) -> Record | None:
        """Return the record at a letter's origin, while it is there."""
        if letter.origin is None:
            return None
        return await self._one(letter.source, *letter.origin)

    async def send(self, row: OutboxRow) -> None:
        """Send a record and return when all replicas in sync have it (idempotent, acks=all).

        Raises:
            DeadLetterError: not acknowledged in time; it may still arrive, which is harmless.
            KafkaError: the broker refuses this record.
        """
        try:
            await asyncio.wait_for(self._sink.send_rows([row]), ANSWER_TIMEOUT_S)
        except (TimeoutError, Transient) as error:
            raise DeadLetterError(
                "Kafka did not acknowledge in time: the letter stays open, replay it again; a"
                " double is absorbed by the event's natural key."
            ) from error

    async def _topics(self) -> list[Topic]:
        there = await self._consumer.topics()
        found = [t for t in ALL_TOPICS if t.is_dead_letter and self._prefix + t.name in there]
        if not found:
            raise DeadLetterError(
                "There is no dead-letter topic here: is it the right stack"
                + (f" and prefix ({self._prefix})?" if self._prefix else "?")
            )
        return found

    async def _one(self, topic: Topic, partition: int, offset: int) -> Record | None:
        full_name = self._prefix + topic.name
        if full_name not in await self._consumer.topics() or partition >= topic.partitions:
            return None
        tp = TopicPartition(full_name, partition)
        start, end = (await self._bounds([tp])).get(tp, (0, 0))
        if not start <= offset < end:
            return None
        self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        while await self._consumer.position(tp) <= offset:
            for raw in await self._poll(tp):
                return _record(topic, raw) if raw.offset == offset else None
        return None

    async def _read(self, topics: dict[TopicPartition, Topic]) -> AsyncIterator[Record]:
        """Read partitions from their beginnings to their ends as of now."""
        bounds = await self._bounds(topics)
        self._consumer.assign(list(bounds))
        for tp, (start, _) in bounds.items():
            self._consumer.seek(tp, start)
        for tp, (_, end) in bounds.items():
            # records deleted meanwhile leave the position behind the end without a record
            while await self._consumer.position(tp) < end:
                for raw in await self._poll(tp):
                    if raw.offset < end:
                        yield _record(topics[tp], raw)

    async def _bounds(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """Return first offset and end of each partition that holds anything."""
        starts = await self._consumer.beginning_offsets(list(tps))
        ends = await self._consumer.end_offsets(list(tps))
        return {tp: (starts[tp], end) for tp, end in ends.items() if starts[tp] < end}

    async def _poll(self, tp: TopicPartition) -> list[Any]:
        """Return the next records of a partition; none where the rest was deleted meanwhile."""
        before = await self._consumer.position(tp)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while True:
                    polled = await self._consumer.getmany(tp, timeout_ms=_POLL_MS)
                    if polled or await self._consumer.position(tp) > before:
                        return list(polled.get(tp, []))
        except TimeoutError:
            raise DeadLetterError("Kafka stopped answering while the letters were read.") from None


@asynccontextmanager
async def opened(login: KafkaLogin, prefix: str) -> AsyncIterator[Box]:
    """Open a box.

    Raises:
        DeadLetterError: Kafka does not answer, or does not let us.
    """
    consumer = AIOKafkaConsumer(
        **login.options(),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    sink = KafkaSink(login, prefix=prefix, client_id=f"{prefix}dead-letters")
    try:
        await consumer.start()
        # aiokafka's task without a group, cancelled before its first step, would cancel our stop()
        await sleep(0)
        yield Box(consumer, sink, prefix)
    except KafkaError as error:
        raise DeadLetterError(
            f"Kafka at {login.bootstrap} does not do as asked: {type(error).__name__}."
        ) from error
    finally:
        await consumer.stop()
        await sink.stop()


def _record(topic: Topic, raw: Any) -> Record:
    return Record(
        topic=topic,
        partition=raw.partition,
        offset=raw.offset,
        written_at=datetime.fromtimestamp(raw.timestamp / 1000, UTC),
        key=raw.key,
        headers=[(str(name), value) for name, value in raw.headers],
        value=raw.value,
    )
