"""Somebody who sends records again: late, shuffled, any topic that a service reads.

What a producer that never heard the acknowledgement, a mirror or a replay would do. The doubles are
whole: same key, headers, value. They always come after the original.
"""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from schemas import topics
from services.chassis.kafka import KafkaLogin

DOUBLED = (
    topics.AD_VIEW,
    topics.CONSENT,
    topics.CALL_REQUEST,
    topics.CREDIT_REQUEST,
    topics.CREDIT_DECISION,
    topics.CALL_START,
    topics.CALL_END,
)
KEPT_MAX = 2000
DELAY_S_MAX = 8.0
_TICK_S = 0.5


@dataclass(kw_only=True)
class Adversary:
    """Doubles a share of all records.

    Attributes:
        share: of the records that are sent again.
        n_doubled: how many doubles Kafka has taken.
    """

    login: KafkaLogin
    prefix: str
    seed: int
    share: float = 0.3
    n_doubled: int = 0
    _kept: list[tuple[float, Any]] = field(default_factory=list)
    _own: set[tuple[str, int, int]] = field(default_factory=set)
    """Topic, partition, offset of each double until it is read: a double is not doubled again."""

    async def run(self) -> None:
        """Read and double until cancelled; a broken connection is made again."""
        chance = random.Random(self.seed)
        while True:
            with contextlib.suppress(KafkaError, OSError):
                await self._double(chance)
            await asyncio.sleep(1.0)

    async def _double(self, chance: random.Random) -> None:
        options = self.login.options()
        consumer = AIOKafkaConsumer(**options, group_id=None, request_timeout_ms=10_000)
        producer = AIOKafkaProducer(**options, acks="all", request_timeout_ms=10_000)
        try:
            await consumer.start()
            await producer.start()
            consumer.assign(
                [
                    TopicPartition(self.prefix + topic.name, part)
                    for topic in DOUBLED
                    for part in range(topic.partitions)
                ]
            )
            await consumer.seek_to_end()
            while True:
                await self._read(consumer, chance)
                await self._send(producer, chance)
        finally:
            await asyncio.gather(consumer.stop(), producer.stop(), return_exceptions=True)

    async def _read(self, consumer: AIOKafkaConsumer, chance: random.Random) -> None:
        now_s = asyncio.get_running_loop().time()
        for records in (await consumer.getmany(timeout_ms=int(_TICK_S * 1000))).values():
            for record in records:
                place = (record.topic, record.partition, record.offset)
                if place in self._own:
                    self._own.remove(place)
                elif chance.random() < self.share and len(self._kept) < KEPT_MAX:
                    self._kept.append((now_s + chance.uniform(0.0, DELAY_S_MAX), record))

    async def _send(self, producer: AIOKafkaProducer, chance: random.Random) -> None:
        now_s = asyncio.get_running_loop().time()
        due = [record for at_s, record in self._kept if at_s <= now_s]
        self._kept = [(at_s, record) for at_s, record in self._kept if at_s > now_s]
        chance.shuffle(due)
        for record in due:
            sent = await producer.send_and_wait(
                record.topic,
                record.value,
                record.key,
                partition=record.partition,
                headers=[*record.headers],
            )
            self._own.add((sent.topic, sent.partition, sent.offset))
            self.n_doubled += 1
