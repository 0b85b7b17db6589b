"""Writing to Kafka: one idempotent producer, acks=all; and the gateway's reading tail.

Facts this rests on (hot-path.md 3, reproduced): after KafkaTimeoutError keep the producer and send
again, or duplicates come; one refused record stops an idempotent producer on that partition until
a new one is built; request_timeout_ms is how long a request to a killed broker can hang.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors

from schemas import envelope
from schemas.topics import BY_NAME, MESSAGE_BYTES_MAX, Topic
from schemas.wire import WireModel
from services.chassis import errors, logs, trace
from services.chassis.kafka import FETCH_WAIT_MAX_MS, KafkaLogin
from services.chassis.outbox import OutboxRow, fits
from services.chassis.received import Received, decode

_REBUILD_ON = (
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.UnknownProducerId,
    kafka_errors.InvalidProducerEpoch,
)
_REBUILDS_MAX = 5
REQUEST_TIMEOUT_MS = 10_000
STOP_TIMEOUT_S = 5.0


class KafkaSink:
    """The process's producer; sends rows by registry name, with the stack's prefix before it."""

    def __init__(self, login: KafkaLogin, *, prefix: str, client_id: str) -> None:
        """Take the login; nothing is opened yet."""
        self._login = login
        self._prefix = prefix
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None
        self._build_lock = asyncio.Lock()

    async def start(self) -> None:
        """Connect; raises Kafka's own errors while the broker is away."""
        async with self._build_lock:
            if self._producer is None:
                self._producer = await self._build()

    async def stop(self) -> None:
        """Flush and close; bounded, because a producer without brokers would wait for ever."""
        if self._producer is not None:
            await self._discard(self._producer)

    async def send_rows(self, rows: Sequence[OutboxRow]) -> None:
        """Send rows in order per key and return when all are acknowledged.

        Raises:
            KafkaError: after the rebuilds are used up, or when the broker refuses a record.
        """
        left = list(rows)
        for _ in range(_REBUILDS_MAX):
            left = await self._try(left)
            if not left:
                return
        raise errors.Transient("kafka did not take all records")

    async def _try(self, rows: list[OutboxRow]) -> list[OutboxRow]:
        """Send all and return what was not acknowledged; builds the producer anew where needed."""
        await self.start()
        producer = self._producer
        assert producer is not None
        futures: list[Any] = []
        causes: list[BaseException] = []
        for row in rows:
            try:
                futures.append(
                    await producer.send(
                        self._prefix + row.topic,
                        key=row.key,
                        value=row.payload,
                        headers=row.headers,
                    )
                )
            except kafka_errors.KafkaError as error:
                # Not taken; the earlier ones are still being retried by this same producer.
                causes.append(error)
                break
        results = await asyncio.gather(*futures, return_exceptions=True)
        unsent = [row for row, result in zip(rows, results, strict=False) if _failed(result)]
        unsent.extend(rows[len(futures) :])
        causes.extend(result for result in results if isinstance(result, BaseException))
        if any(isinstance(cause, _REBUILD_ON) for cause in causes):
            logs.get().warning("producer rebuilt", n=len(unsent))
            await self._discard(producer)
        for cause in causes:
            if not isinstance(cause, _REBUILD_ON) and not errors.is_transient(cause):
                raise cause
        return unsent

    async def _build(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **self._login.options(),
            client_id=self._client_id,
            enable_idempotence=True,
            acks="all",
            linger_ms=2,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_request_size=MESSAGE_BYTES_MAX * 4,
            metadata_max_age_ms=30_000,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        async with self._build_lock:
            is_current = self._producer is producer
            if not is_current:
                return  # another sender has seen to it: the new one is innocent
            self._producer = None
        try:
            await asyncio.wait_for(producer.stop(), STOP_TIMEOUT_S)
        except (TimeoutError, kafka_errors.KafkaError):
            logs.get().warning("producer did not stop in time")


def _failed(result: object) -> bool:
    return isinstance(result, BaseException)


class Producer:
    """Sends events straight to Kafka, for the process that has no database: the gateway."""

    def __init__(self, sink: KafkaSink, *, service: str, timeout_s: float) -> None:
        """Take the way to Kafka, who sends, and how long a caller waits at most."""
        self._sink = sink
        self._service = service
        self._timeout_s = timeout_s

    async def send(
        self,
        topic: Topic,
        event: WireModel,
        *,
        event_id: UUID,
        time: datetime,
        traceparent: str | None = None,
    ) -> None:
        """Send one event; see `send_many`."""
        await self.send_many([(topic, event, event_id)], time=time, traceparent=traceparent)

    async def send_many(
        self,
        events: Sequence[tuple[Topic, WireModel, UUID]],
        *,
        time: datetime,
        traceparent: str | None = None,
    ) -> None:
        """Return when all replicas in sync have every event.

        Raises:
            errors.Transient: not acknowledged in time. The events may still arrive later: whoever
                tells the client so must say 'try again', and natural keys absorb the double.
        """
        rows = [
            self._row(topic, event, event_id, time, traceparent)
            for topic, event, event_id in events
        ]
        sending = asyncio.ensure_future(self._sink.send_rows(rows))
        try:
            await asyncio.wait_for(asyncio.shield(sending), self._timeout_s)
        except TimeoutError:
            sending.add_done_callback(_swallow)
            raise errors.Transient("kafka did not acknowledge in time") from None
        except kafka_errors.KafkaError as error:
            raise errors.Transient("kafka is away") from error

    def _row(
        self,
        topic: Topic,
        event: WireModel,
        event_id: UUID,
        time: datetime,
        traceparent: str | None,
    ) -> OutboxRow:
        assert isinstance(event, topic.model)
        assert self._service in topic.producers, f"{self._service} may not write {topic.name}"
        key = topic.key_of(event)
        payload = event.model_dump_json(exclude_none=True).encode()
        head = envelope.for_event(
            topic,
            event_id=event_id,
            source=self._service,
            time=time,
            key=key,
            traceparent=trace.child(traceparent),
        )
        row = OutboxRow(topic.name, key.encode(), [*head.headers()], payload)
        assert fits(row), f"event for {topic.name} is too large"
        return row


def _swallow(done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logs.get().warning("late send failed", **logs.describe(error))


OnRecord = Callable[[Received[Any]], Awaitable[None]]


class Tail:
    """Reads all partitions of some topics from now on, without a group: the push side's ear.

    Keeps nothing and commits nothing; what it misses while it is away, the page reads by GET.
    """

    def __init__(
        self, login: KafkaLogin, *, prefix: str, topics: Sequence[Topic], on_record: OnRecord
    ) -> None:
        """Take the login, the topics and who is told of each good record."""
        self._login = login
        self._prefix = prefix
        self._topics = tuple(topics)
        self._on_record = on_record
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Read for ever; a lost broker is waited for with back-off."""
        failures = 0
        while True:
            try:
                await self._read()
            except (kafka_errors.KafkaError, OSError) as error:
                failures += 1
                logs.get().warning("tail waits", attempt=failures, **logs.describe(error))
                await asyncio.sleep(min(5.0, 0.1 * 2 ** min(failures, 10)))
            finally:
                self.ready.clear()

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._login.options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            fetch_max_wait_ms=FETCH_WAIT_MAX_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=30_000,
        )
        try:
            await consumer.start()
            assigned = [
                TopicPartition(self._prefix + topic.name, part)
                for topic in self._topics
                for part in range(topic.partitions)
            ]
            consumer.assign(assigned)
            await consumer.seek_to_end(*assigned)
            self.ready.set()
            async for record in consumer:
                name = record.topic.removeprefix(self._prefix)
                try:
                    received = decode(BY_NAME[name], record)
                except errors.Poison as poison:
                    logs.get().warning("tail skips a record", topic=name, reason=poison.reason)
                    continue
                await self._on_record(received)
        finally:
            await consumer.stop()
