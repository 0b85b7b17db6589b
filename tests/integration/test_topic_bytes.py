"""Bytes on the broker's disk: measured, gone in time also where nobody writes, seen where not (D1).

Method: topics with periods of seconds and settings as the registry makes them; the broker's segment
files are searched, deleted ones that are only renamed included, and compared with what retention
measures by its own identity.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import ClusterAuthorizationFailedError
from aiokafka.structs import TopicPartition
from prometheus_client import CollectorRegistry

from deploy.local.layout import ROOT
from deploy.proof.scan import files
from deploy.provision import Infrastructure, drop_topics, provision_topics
from schemas import topics
from schemas.topics import SWEEP_MARGIN_MS, Topic
from services.chassis.clock import SystemClock
from services.chassis.service import Service
from services.privacy.chain import SigningKeys
from services.retention import alerts, kafka, log_dirs, schedule
from services.retention.app import Tasks
from services.retention.declaration import DECLARATION
from services.retention.metrics import Metrics
from services.retention.settings import Settings
from services.retention.store import Store
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.stack import World, finish, make_world, new_prefix, run_pid

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
CLOCK = SystemClock()
RETENTION_MS, SEGMENT_MS = 8_000, 2_000
BOUND_S = (RETENTION_MS + SEGMENT_MS + 5_000 + 1_000) / 1000
"""Retention, roll, the broker's check interval, its delete delay: `deploy/local/kafka.py`."""
SLACK_S = 6.0


def short(topic: Topic, name: str) -> Topic:
    """Return a topic with the same settings but for its periods."""
    age_max_ms = RETENTION_MS + SEGMENT_MS + SWEEP_MARGIN_MS
    made = replace(topic, name=name, age_max_ms=age_max_ms, segment_ms=SEGMENT_MS, partitions=2)
    assert made.retention_ms == RETENTION_MS
    return made


EVENTS = short(topics.AD_VIEW, "short-events")
STATES = short(topics.CONSENT_STATE, "short-states")
BOTH = (EVENTS, STATES)


@pytest.fixture
def world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), ("retention", "consent")))
    yield made
    finish(made.close())


@pytest.fixture
def prefix(infra: Infrastructure) -> Iterator[str]:
    made = f"{new_prefix()}-"
    finish(provision_topics(infra.kafka, BOTH, made))
    yield made
    finish(drop_topics(infra.kafka, made))


def data_folder() -> Path:
    """Return the folder of the broker's segments; only the local stack's can be looked into."""
    folder = ROOT / "var" / f"tests-{run_pid()}"
    if not list(folder.glob("kafka*/data")):
        pytest.skip("the broker's files are not on this machine")
    return folder


def n_files_with(folder: Path, text: UUID) -> int:
    """Return in how many of the broker's files a text still stands."""
    wanted = str(text).encode()
    found = 0
    for place, path in files(folder):
        if place.startswith("kafka"):
            try:
                found += wanted in path.read_bytes()
            except FileNotFoundError:  # gone since it was listed
                continue
    return found


async def write(infra: Infrastructure, name: str, *texts: UUID, key: bytes) -> None:
    producer = AIOKafkaProducer(**infra.kafka.options(), enable_idempotence=True)
    await producer.start()
    try:
        for text in texts:
            await producer.send_and_wait(name, str(text).encode(), key=key, partition=0)
    finally:
        await producer.stop()


async def test_the_bytes_of_a_silent_partition_go_without_another_write(
    infra: Infrastructure, prefix: str
) -> None:
    """D1, R-D5: of a compacted topic the overwritten value and the last one too."""
    folder = data_folder()
    texts = [new_visitor_id() for _ in range(3)]
    await write(infra, prefix + EVENTS.name, texts[0], key=b"k")
    await write(infra, prefix + STATES.name, *texts[1:], key=b"k")
    written_s = CLOCK.monotonic()
    sizes = await log_dirs.measure_bytes(infra.kafka, prefix, BOTH)
    assert {(s.topic, s.partition): s.n_bytes > 0 for s in sizes} == {
        (topic.name, partition): partition == 0 for topic in BOTH for partition in (0, 1)
    }
    assert all(n_files_with(folder, text) == 1 for text in texts)

    async def are_gone() -> bool:
        return not any(n_files_with(folder, text) for text in texts)

    await eventually(are_gone, within_s=BOUND_S + SLACK_S)
    assert CLOCK.monotonic() - written_s > RETENTION_MS / 1000 - 1
    assert not any(s.n_bytes for s in await log_dirs.measure_bytes(infra.kafka, prefix, BOTH))


async def test_bytes_that_nobody_can_read_are_seen(infra: Infrastructure, prefix: str) -> None:
    """D1: offsets have moved, the bytes stand still; the age says nothing, the size says it."""
    folder = data_folder()
    text = new_visitor_id()
    await write(infra, prefix + EVENTS.name, text, key=b"k")
    admin = AIOKafkaAdminClient(**infra.kafka.options())
    await admin.start()
    try:
        tp = TopicPartition(prefix + EVENTS.name, 0)
        await admin.delete_records({tp: RecordsToDelete(before_offset=1)})
    finally:
        await admin.close()
    ages = await kafka.measure_ages(infra.kafka, prefix, [EVENTS])
    assert {age.oldest_at for age in ages} == {None}
    sizes = await log_dirs.measure_bytes(infra.kafka, prefix, [EVENTS])
    assert [size.n_bytes > 0 for size in sizes] == [True, False]
    assert n_files_with(folder, text) == 1


async def test_retention_may_ask_for_sizes_and_nobody_else(world: World) -> None:
    """R-C5: by its own identity, exported for each partition; another one learns nothing."""
    given = world.settings("retention")
    settings = Settings.model_validate(given)
    registry = CollectorRegistry()
    service = Service(
        declaration=DECLARATION, settings=settings, registry=CollectorRegistry(), store=Store
    )
    keys = SigningKeys.from_json(settings.anchor_keys.get_secret_value())
    rules = schedule.load(settings.schedule_path)
    name = world.topic(topics.CONSENT)
    await write(world.infrastructure, name, new_visitor_id(), key=b"k")
    await Tasks(service, settings, rules, Metrics(registry), keys).watch_bytes()
    found = {
        (sample.labels["topic"], int(sample.labels["partition"])): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "retention_topic_bytes"
    }
    assert set(found) == {(t.name, n) for t in topics.ALL_TOPICS for n in range(t.partitions)}
    assert {at for at, n_bytes in found.items() if n_bytes} == {("consent", 0)}
    with pytest.raises(ClusterAuthorizationFailedError):
        await log_dirs.measure_bytes(world.kafka_login("consent"), world.kafka_prefix, BOTH)


def test_every_personal_topic_has_its_alert_on_unreadable_bytes() -> None:
    """D1: for longer than the roll, the check and the delay; where compacted, than the age."""
    text = alerts.rules({})
    for topic in topics.ALL_TOPICS:
        expression = (
            f'retention_topic_bytes{{topic=\\"{topic.name}\\"}} > 0 and on (topic, partition) '
            f'retention_topic_oldest_record_age_seconds{{topic=\\"{topic.name}\\"}} == 0'
        )
        assert (expression in text) == topic.personal
        if topic.personal:
            lasting = text.partition(expression)[2].partition('for: "')[2].partition('m"')[0]
            assert int(lasting) * 60_000 > topic.segment_ms
            assert ("compact" not in topic.cleanup) or int(lasting) * 60_000 > topic.retention_ms
