"""What Kafka holds when all is over: the third witness, beside the databases and the visitors.

A service's tables say what it believes; its topics say what it told the others. A zombie that ends
a call a second time leaves its own table alone (the epoch sees to that), but the word is out.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas import topics
from schemas.topics import Topic
from services.chassis.kafka import KafkaLogin
from services.chassis.received import Received, decode

READ_WITHIN_S = 60.0
_QUIET_MS = 500


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the services told.

    Attributes:
        starts, ends: `call-start` and `call-end`, doubles included.
        balances: the last (available, reserved) that a visitor's page was told, in milliseconds.
        n_dead: dead letters of all topics.
    """

    starts: Sequence[Received[Any]]
    ends: Sequence[Received[Any]]
    balances: dict[UUID, tuple[int, int]]
    n_dead: int


async def hear(login: KafkaLogin, prefix: str) -> Account:
    """Read the topics from their beginning to their present end.

    Raises:
        TimeoutError: Kafka did not hand everything out within `READ_WITHIN_S`.
    """
    told = (topics.CALL_START, topics.CALL_END, topics.CREDIT)
    by_topic = {topic: await _read(login, prefix, topic) for topic in told}
    balances: dict[UUID, tuple[int, int]] = {}
    # a visitor has one partition: a later offset is a later word
    for one in sorted(by_topic[topics.CREDIT], key=lambda one: one.offset):
        balances[one.event.visitor_id] = (one.event.available_ms, one.event.reserved_ms)
    return Account(
        starts=by_topic[topics.CALL_START],
        ends=by_topic[topics.CALL_END],
        balances=balances,
        n_dead=await _n_dead(login, prefix),
    )


async def _read(login: KafkaLogin, prefix: str, topic: Topic) -> list[Received[Any]]:
    consumer = AIOKafkaConsumer(**login.options(), group_id=None, enable_auto_commit=False)
    await consumer.start()
    try:
        parts = [TopicPartition(prefix + topic.name, n) for n in range(topic.partitions)]
        consumer.assign(parts)
        await consumer.seek_to_beginning(*parts)
        ends = await consumer.end_offsets(parts)
        found = []
        async with asyncio.timeout(READ_WITHIN_S):
            while [tp for tp in parts if await consumer.position(tp) < ends[tp]]:
                for records in (await consumer.getmany(timeout_ms=_QUIET_MS)).values():
                    found += [decode(topic, record) for record in records]
        return found
    finally:
        await consumer.stop()


async def _n_dead(login: KafkaLogin, prefix: str) -> int:
    consumer = AIOKafkaConsumer(**login.options(), group_id=None)
    await consumer.start()
    try:
        letters = [topic for topic in topics.ALL_TOPICS if topic.name.endswith("-dlq")]
        parts = [TopicPartition(prefix + t.name, n) for t in letters for n in range(t.partitions)]
        firsts, ends = await consumer.beginning_offsets(parts), await consumer.end_offsets(parts)
        return sum(ends[tp] - firsts[tp] for tp in parts)
    finally:
        await consumer.stop()
