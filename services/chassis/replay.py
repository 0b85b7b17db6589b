"""Reads topics from their beginning and for ever, and knows until when it has read all there was.

For what a process keeps in memory of a compacted topic. It has no group and commits nothing: each
process reads all of it, and again from nothing when it starts.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors

from schemas.topics import BY_NAME, Topic
from services.chassis import errors, logs
from services.chassis.clock import Clock
from services.chassis.kafka import FETCH_WAIT_MAX_MS, KafkaLogin
from services.chassis.received import Received, decode

REQUEST_TIMEOUT_MS = 5_000
_POLL_MS = 100
_CHECK_EVERY_S = 0.5
_BACK_OFF_MAX_S = 5.0
_RECORDS_MAX = 2_000

OnRecord = Callable[[Received[Any]], None]
OnDeleted = Callable[[bytes], None]


class Replay:
    """One reader of all partitions of some topics.

    Attributes:
        read_until: whatever was on the topics at this instant of our clock has been read; None
            before the first time. It stands still while the brokers are away.
    """

    def __init__(
        self,
        login: KafkaLogin,
        *,
        prefix: str,
        topics: Sequence[Topic],
        clock: Clock,
        on_record: OnRecord,
        on_deleted: OnDeleted,
        on_unreadable: OnDeleted,
    ) -> None:
        """Take the login, the topics and who is told.

        Args:
            on_record: of each good record, in the order of its partition; it must not take long.
            on_deleted: of the key of each record without value: what was known of it is void.
            on_unreadable: of the key of each record that cannot be understood.
        """
        self._login = login
        self._prefix = prefix
        self._clock = clock
        self._on_record = on_record
        self._on_deleted = on_deleted
        self._on_unreadable = on_unreadable
        self._parts = [
            TopicPartition(prefix + topic.name, part)
            for topic in topics
            for part in range(topic.partitions)
        ]
        self._next_offsets: dict[TopicPartition, int] = {}
        self.read_until: datetime | None = None

    async def run(self) -> None:
        """Read for ever; a lost broker is waited for with back-off."""
        failures = 0
        while True:
            before = self.read_until
            try:
                await self._read()
            except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
                failures = 1 if self.read_until != before else failures + 1
                logs.get().warning("replay waits", attempt=failures, **logs.describe(error))
                await asyncio.sleep(min(_BACK_OFF_MAX_S, 0.1 * 2 ** min(failures, 10)))

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._login.options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MAX_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            metadata_max_age_ms=30_000,
        )
        try:
            await consumer.start()
            consumer.assign(self._parts)
            await self._seek(consumer)
            await self._follow(consumer)
        finally:
            await consumer.stop()

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        new = [part for part in self._parts if part not in self._next_offsets]
        if new:
            await consumer.seek_to_beginning(*new)
        for part, offset in self._next_offsets.items():
            consumer.seek(part, offset)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        wanted: tuple[datetime, Mapping[TopicPartition, int]] | None = None
        check_at_s = 0.0
        while True:
            if wanted is None and self._clock.monotonic() >= check_at_s:
                asked_at = self._clock.now()
                wanted = asked_at, await consumer.end_offsets(self._parts)
                check_at_s = self._clock.monotonic() + _CHECK_EVERY_S
            for records in (
                await consumer.getmany(timeout_ms=_POLL_MS, max_records=_RECORDS_MAX)
            ).values():
                for record in records:
                    self._take(record)
            for part in self._parts:
                self._next_offsets[part] = await consumer.position(part)
            if wanted is not None and self._has_reached(wanted[1]):
                self.read_until, wanted = wanted[0], None

    def _has_reached(self, ends: Mapping[TopicPartition, int]) -> bool:
        return all(self._next_offsets[part] >= end for part, end in ends.items())

    def _take(self, record: Any) -> None:
        if record.value is None:
            if record.key is not None:
                self._on_deleted(record.key)
            return
        topic = BY_NAME[record.topic.removeprefix(self._prefix)]
        try:
            received = decode(topic, record)
        except errors.Poison as poison:
            # what it says may be the opposite of what was known: that is known no more
            logs.get().warning("replay skips a record", topic=topic.name, reason=poison.reason)
            if record.key is not None:
                self._on_unreadable(record.key)
            return
        self._on_record(received)
