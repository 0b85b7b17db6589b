"""Topics: how old their oldest record is, and, in a simulation, emptying them.

Kafka's clock cannot be moved, so a simulation lowers `retention.ms` instead: even a silent topic is
then empty in seconds, its active segment included (hot-path.md 4a).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from schemas.topics import ALL_TOPICS, Topic
from services.chassis.clock import Clock, sleep
from services.chassis.errors import Fatal, Transient
from services.chassis.kafka import KafkaLogin
from services.retention.store import Age

PERSONAL = tuple(topic for topic in ALL_TOPICS if topic.personal)
"""Dead letters included: they carry what their topic carries."""
EMPTYING_RETENTION_MS = 1_000
_REQUEST_TIMEOUT_MS = 10_000
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Emptied:
    """How many partitions of a topic held how many records."""

    n_partitions: int
    n_records: int


async def measure_ages(login: KafkaLogin, prefix: str, topics: Sequence[Topic]) -> list[Age]:
    """Return the age of the oldest record of each partition, from the broker's own timestamps.

    Raises:
        KafkaError: the broker is away.
    """
    by_name = {prefix + topic.name: topic for topic in topics}
    consumer = _consumer(login)
    await consumer.start()
    try:
        spans = await _spans(consumer, prefix, topics)
        first = await _first_timestamps(consumer, [tp for tp, (lo, hi) in spans.items() if lo < hi])
    finally:
        await consumer.stop()
    return [
        Age(
            topic=by_name[tp.topic].name,
            partition=tp.partition,
            oldest_at=first.get(tp),
            age_max=timedelta(milliseconds=by_name[tp.topic].age_max_ms),
        )
        for tp in sorted(spans)
    ]


async def empty(
    login: KafkaLogin, prefix: str, topics: Sequence[Topic], *, timeout_s: float, clock: Clock
) -> dict[str, Emptied]:
    """Let Kafka delete all that the topics hold, wait for it, and restore their settings.

    Only for a simulation, whose "now" lies beyond every record's limit.

    Returns:
        By the topic's name, what it held.

    Raises:
        Transient: not empty in time; the settings are restored all the same.
        Fatal: the broker refuses the settings.
    """
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    consumer = _consumer(login)
    await admin.start()
    try:
        await consumer.start()
        held = await _spans(consumer, prefix, topics)
        lowered = {"retention.ms": str(EMPTYING_RETENTION_MS)}
        try:
            await _set(admin, {prefix + t.name: {**t.configs(), **lowered} for t in topics})
            deadline = clock.monotonic() + timeout_s
            while any(lo < hi for lo, hi in (await _spans(consumer, prefix, topics)).values()):
                if clock.monotonic() > deadline:
                    raise Transient("topics did not become empty in time")
                await sleep(_POLL_S)
        finally:
            await _set(admin, {prefix + topic.name: topic.configs() for topic in topics})
    finally:
        await consumer.stop()
        await admin.close()
    return {topic.name: _emptied(held, prefix + topic.name) for topic in topics}


def _emptied(held: Mapping[TopicPartition, tuple[int, int]], name: str) -> Emptied:
    sizes = [hi - lo for tp, (lo, hi) in held.items() if tp.topic == name and lo < hi]
    return Emptied(n_partitions=len(sizes), n_records=sum(sizes))


def _consumer(login: KafkaLogin) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        **login.options(),
        group_id=None,
        enable_auto_commit=False,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )


async def _spans(
    consumer: AIOKafkaConsumer, prefix: str, topics: Sequence[Topic]
) -> dict[TopicPartition, tuple[int, int]]:
    """Return first offset and end of each partition of the topics."""
    tps = [
        TopicPartition(prefix + topic.name, partition)
        for topic in topics
        for partition in range(topic.partitions)
    ]
    begins = await consumer.beginning_offsets(tps)
    ends = await consumer.end_offsets(tps)
    return {tp: (begins[tp], ends[tp]) for tp in tps}


async def _first_timestamps(
    consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition]
) -> dict[TopicPartition, datetime]:
    """Return the broker's instant of each partition's first record.

    Asked for by time, so that the right to describe a topic is enough and no record is read.
    """
    if not tps:
        return {}
    found = await consumer.offsets_for_times(dict.fromkeys(tps, 0))
    return {
        tp: datetime.fromtimestamp(first.timestamp / 1000, UTC)
        for tp, first in found.items()
        if first is not None
    }


async def _set(admin: AIOKafkaAdminClient, configs: Mapping[str, dict[str, str]]) -> None:
    # AlterConfigs replaces the whole set, hence always all of the registry's settings
    responses = await admin.alter_configs(
        [
            ConfigResource(ConfigResourceType.TOPIC, name, configs=settings)
            for name, settings in configs.items()
        ]
    )
    for response in responses:
        for code, *_ in response.resources:
            if code:
                raise Fatal(f"kafka refused a topic's settings (error {code})")
