"""Retention with real processes, Kafka and PostgreSQL (R-D5, R-D9, D1, D3, D4).

Goal: an order leaves by Kafka, a real service drops its day partitions and answers, and nothing
counts as done before everyone has answered. Method: consent and retention run as processes; the
test itself answers for the two services that are not under test here.
"""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from prometheus_client import CollectorRegistry

from deploy.provision import Infrastructure
from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from schemas.topics import Topic
from services.chassis.clock import SystemClock, sleep
from services.chassis.ids import TimeOrderedIds
from services.chassis.service import Service
from services.privacy.chain import SigningKeys
from services.retention import kafka, schedule
from services.retention.app import Tasks
from services.retention.declaration import DECLARATION
from services.retention.metrics import Metrics
from services.retention.settings import DEFAULT_SCHEDULE, Settings
from services.retention.store import Store
from tests.support.answering import answered
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.identities import shown
from tests.support.running import get, metric, ready, send
from tests.support.schedules import give_reviewed
from tests.support.signals import Signals
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = pytest.mark.integration
SERVICES = ("consent", "retention")
OTHERS = tuple(name for name in topics.RETENTION_ORDER.consumers if name not in SERVICES)
IDS = TimeOrderedIds()
CLOCK = SystemClock()


@pytest.fixture
def world(infra: Infrastructure, tmp_path: Path) -> Iterator[World]:
    made = finish(make_world(new_prefix(), SERVICES))
    give_reviewed(made, tmp_path)
    yield made
    finish(made.close())


@pytest.fixture
def simulation(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), SERVICES, simulation=True))
    yield made
    finish(made.close())


def consent() -> ConsentV1:
    return ConsentV1(
        decision_id=IDS.new(),
        visitor_id=new_visitor_id(),
        choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.GIVEN),),
        catalogue_version="2026-11.1",
        wording_version="2026-11.1",
        language="de",
        method=ConsentMethod.BANNER,
    )


async def run(world: World, arguments: tuple[str, ...], **overrides: str) -> tuple[int, str]:
    """Run a command as a person would; return its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.retention", *shown(*arguments)),
        env={**world.environments["retention"], **overrides},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def sweep(world: World, *arguments: str) -> tuple[int, str]:
    """Run the sweep."""
    return await run(world, ("sweep", *arguments))


async def query(world: World, service: str, sql: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(world.database_url(service))
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()


async def served_consent(world: World, visitor_id: UUID) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{world.ports['consent']}/v1/visitors/{visitor_id}/consent"
    response = await get(url)
    assert response is not None
    found: list[dict[str, Any]] = response.json()["purposes"]
    return found


async def n_records(world: World, *which: Topic) -> dict[str, int]:
    """Return how many records the topics still hold, by name, where there are any."""
    tps = [TopicPartition(world.topic(t), n) for t in which for n in range(t.partitions)]
    consumer = AIOKafkaConsumer(**world.kafka.options(), group_id=None)
    await consumer.start()
    try:
        begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    finally:
        await consumer.stop()
    held: dict[str, int] = {}
    for tp in tps:
        name = tp.topic.removeprefix(world.kafka_prefix)
        held[name] = held.get(name, 0) + ends[tp] - begins[tp]
    return {name: n for name, n in held.items() if n}


async def retention_ms(world: World, topic: Topic) -> str:
    admin = AIOKafkaAdminClient(**world.kafka.options())
    await admin.start()
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, world.topic(topic))
        (response,) = await admin.describe_configs([resource])
    finally:
        await admin.close()
    ((_, _, _, _, entries),) = response.resources
    found: str = next(entry[1] for entry in entries if entry[0] == "retention.ms")
    return found


@pytest.mark.timeout(240)
async def test_eight_days_later_nothing_is_left_anywhere(simulation):
    """R-D5, D1, D3, D4: tables, topics and dead letters; the receipts count what went."""
    world = simulation
    event = consent()
    broken = topics.CONSENT.dead_letter
    for service in SERVICES:
        world.start(service)
    await ready(world, *SERVICES)
    await send(world, "gateway", (topics.CONSENT, event))
    # a decision of another visitor under the same id: poison, so that a dead letter exists
    stolen = event.model_copy(update={"visitor_id": new_visitor_id()})
    await send(world, "gateway", (topics.CONSENT, stolen))

    async def is_recorded() -> bool:
        return bool(await served_consent(world, event.visitor_id))

    await eventually(is_recorded, within_s=20)

    async def is_buried() -> bool:
        held = await n_records(world, topics.CONSENT, topics.CONSENT_STATE, broken)
        return held == {"consent": 2, "consent-state": 1, "consent-dlq": 1}

    await eventually(is_buried, within_s=20)

    as_of = (CLOCK.now() + timedelta(days=8)).isoformat()
    async with answered(world, OTHERS):
        status, out = await sweep(world, "--as-of", as_of, "--wait", "--json")
    assert status == 0, out
    body = json.loads(out)
    assert body["is_complete"] is True
    gone = {
        (order["kind"], receipt["service"], count["table"]): count["n_rows"]
        for order in body["orders"]
        for receipt in order["receipts"]
        for count in receipt["counts"]
        if count["n_rows"]
    }
    # orders may name visitors, so that their topic is emptied too
    assert gone.pop(("ad_use", "kafka", "retention_order")) >= len(body["orders"])
    assert gone == {
        ("ad_use", "consent", "consent_subject"): 1,
        ("ad_use", "kafka", "consent"): 2,
        ("ad_use", "kafka", "consent_state"): 1,
        ("ad_use", "kafka", "consent_dlq"): 1,
    }
    assert str(event.visitor_id) not in out
    assert await served_consent(world, event.visitor_id) == []
    assert await n_records(world, *kafka.PERSONAL) == {}
    # the proof stays by its own rule (R-D10), without a link to the visitor
    assert len(await query(world, "consent", "SELECT FROM consent_record")) == 1
    for topic in (topics.CONSENT, topics.CONSENT_STATE, broken):
        assert await retention_ms(world, topic) == str(topic.retention_ms)
    # and life goes on
    again = consent()
    await send(world, "gateway", (topics.CONSENT, again))

    async def is_recorded_again() -> bool:
        return bool(await served_consent(world, again.visitor_id))

    await eventually(is_recorded_again, within_s=20)


@pytest.mark.timeout(240)
async def test_an_order_waits_for_a_service_that_was_down(world):
    """D3: silence is seen and exported; the service that comes back catches up."""
    retention = world.start(
        "retention",
        RETENTION_ORDER_OVERDUE_AFTER_S="1",
        RETENTION_ORDER_WATCH_INTERVAL_S="0.2",
        RETENTION_INVARIANT_INTERVAL_S="0.2",
    )
    async with answered(world, OTHERS) as orders:
        # the timer sweeps at the start, without anybody asking

        async def is_overdue() -> bool:
            return await metric(world, "retention", "retention_orders_overdue") == 6

        await eventually(is_overdue, within_s=30)
        assert await metric(world, "retention", "retention_orders_open") == 6
        name = 'retention_invariant_violations{invariant="d3_no_order_overdue"}'

        async def is_violated() -> bool:
            return await metric(world, "retention", name) == 6

        await eventually(is_violated, within_s=10)
        # killed and restarted in the middle: the orders are not issued twice
        retention.kill()
        retention.wait()
        world.start("retention", RETENTION_ORDER_WATCH_INTERVAL_S="0.2")
        world.start("consent")
        await ready(world, *SERVICES)

        async def is_complete() -> bool:
            return await metric(world, "retention", "retention_orders_open") == 0

        await eventually(is_complete, within_s=30)
        assert await metric(world, "retention", "retention_orders_overdue") == 0
        last_sweep = await metric(world, "retention", "retention_last_sweep_timestamp_seconds")
        assert last_sweep is not None
        assert abs(last_sweep - CLOCK.now().timestamp()) < 60
        assert len({order.order_id for order in orders}) == 6
    rows = await query(world, "retention", "SELECT kind FROM retention_order")
    assert sorted(row["kind"] for row in rows) == [
        "access_log",
        "ad_use",
        "consent_record",
        "ip_address",
        "traffic_data",
        "transfer_record",
    ]
    assert len(await query(world, "retention", "SELECT FROM retention_sweep")) == 2


@pytest.mark.timeout(120)
async def test_a_sweep_of_the_future_is_refused_outside_a_simulation(world):
    """R-D5: by the command itself, before anything is written."""
    as_of = (CLOCK.now() + timedelta(days=8)).isoformat()
    status, out = await sweep(world, "--as-of", as_of, "--wait")
    assert status == 2
    assert "as_of_in_the_future" in out
    assert await query(world, "retention", "SELECT FROM retention_sweep") == []


@pytest.mark.timeout(120)
async def test_a_wrong_schedule_is_a_clear_error_at_the_start(world: World, tmp_path: Path) -> None:
    """R-D9: one sentence and status 1, before anything is consumed or ordered."""
    document = json.loads(DEFAULT_SCHEDULE.read_text("utf-8"))
    document["rules"] = document["rules"][1:]
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(document), "utf-8")
    status, out = await run(world, (), RETENTION_SCHEDULE_PATH=str(path))
    assert status == 1
    assert out.splitlines()[-1].startswith(f"retention: schedule {path} is wrong: ")
    assert "web_use has no rule" in out
    assert "Traceback" not in out


@pytest.mark.timeout(120)
async def test_the_schedule_is_printed(world: World) -> None:
    """R-D9, R-D10."""
    status, out = await run(world, ("schedule",))
    assert status == 0
    assert re.search(r"^R-D5 +traffic_data +168 h, ordered 2 h before ", out, re.MULTILINE)


@pytest.mark.timeout(120)
async def test_a_person_asks_what_applies_and_what_happened(world: World) -> None:
    """R-D9: by the service's own role, reading only; an order's id leads to its answers."""
    assert (await sweep(world, "--as-of", CLOCK.now().isoformat()))[0] == 0
    status, out = await run(world, ("explain", "ad_use", "--event", "2026-11-22", "--json"))
    assert status == 0, out
    found = json.loads(out.splitlines()[-1])
    assert found["item"]["due_at"] == "2026-11-28T23:00:00+00:00"
    status, out = await run(world, ("explain", found["orders"][0]["order_id"]))
    assert status == 0
    assert "  silent: ad_ledger, call_control, consent" in out.splitlines()
    status, out = await run(world, ("explain", str(IDS.new())))
    assert status == 4
    assert "no order, record, hold or restriction has the id" in out


@pytest.mark.timeout(120)
async def test_the_age_of_the_oldest_record_is_measured_per_partition(world):
    """D1: from the broker's own timestamps, exported and kept for the invariant."""
    events = [consent() for _ in range(8)]
    before = CLOCK.now()
    await send(world, "gateway", *((topics.CONSENT, event) for event in events[:4]))
    after = CLOCK.now()
    await sleep(1.1)
    await send(world, "gateway", *((topics.CONSENT, event) for event in events[4:]))
    ages = await kafka.measure_ages(
        world.kafka, world.kafka_prefix, [topics.CONSENT, topics.CREDIT]
    )
    assert len(ages) == topics.CONSENT.partitions + topics.CREDIT.partitions
    found = [age.oldest_at for age in ages if age.oldest_at is not None]
    assert {age.topic for age in ages if age.oldest_at is not None} == {"consent"}
    slack = timedelta(seconds=0.2)
    assert before - slack < min(found) < after + slack
    world.start("retention")
    await ready(world, "retention")
    partition = next(a.partition for a in ages if a.oldest_at == min(found))
    name = f'retention_topic_oldest_record_age_seconds{{partition="{partition}",topic="consent"}}'

    async def is_exported() -> bool:
        return (await metric(world, "retention", name) or 0) > 1

    await eventually(is_exported, within_s=20)
    rows = await query(world, "retention", "SELECT FROM retention_topic_age")
    assert len(rows) == sum(topic.partitions for topic in topics.ALL_TOPICS)


@pytest.mark.timeout(120)
async def test_every_metric_of_retention_moves(world):
    """The signal matrix (D1, D3): a metric that nobody ever saw move proves nothing."""
    given = world.settings("retention", order_overdue_after_s=0.001)
    settings = Settings.model_validate(given)
    service = Service(
        declaration=DECLARATION, settings=settings, registry=CollectorRegistry(), store=Store
    )
    # retention's own metrics; the chassis' have a signal matrix of their own
    registry = CollectorRegistry()
    signals = Signals(registry)
    keys = SigningKeys.from_json(settings.anchor_keys.get_secret_value())
    rules = schedule.load(settings.schedule_path)
    tasks = Tasks(service, settings, rules, Metrics(registry), keys)
    await send(world, "gateway", (topics.CONSENT, consent()))
    await service._open_database()
    try:
        await tasks.sweep()
        await tasks.watch_topics()
        await tasks.watch_bytes()
        (order,) = await query(
            world,
            "retention",
            "SELECT order_id, expected[1] AS holder FROM retention_order"
            " WHERE cardinality(expected) > 1 LIMIT 1",
        )
        waive = ("order", "waive", str(order["order_id"]), "--holder", order["holder"])
        code, out = await run(world, (*waive, "--reason", "decommissioned", "--by", "staff-1"))
        assert (code, "waived" in out) == (0, True), out
        code, out = await run(world, (*waive, "--by", "staff-1"))
        assert code == 2, "the same person"
        code, out = await run(world, (*waive, "--by", "staff-2"))
        assert code == 0, out
        await tasks.watch_orders()
    finally:
        await service._close()
    assert signals.unmoved() == set()
    ends = registry.get_sample_value("retention_threat_level_ends_timestamp_seconds")
    assert ends is not None
    assert timedelta(days=290) < datetime.fromtimestamp(ends, UTC) - CLOCK.now()
    assert registry.get_sample_value("retention_answers_waived") == 1
    assert registry.get_sample_value("retention_orders_open") == 6
    assert registry.get_sample_value("retention_orders_overdue") == 6


@pytest.mark.timeout(120)
async def test_topics_keep_their_settings_when_emptying_fails(world):
    """D1: a simulation that is interrupted must not leave topics that forget at once."""
    await send(world, "gateway", (topics.CONSENT, consent()))
    with pytest.raises(Exception, match="did not become empty in time"):
        await kafka.empty(
            world.kafka,
            world.kafka_prefix,
            [topics.CONSENT],
            timeout_s=0,
            clock=CLOCK,
        )

    async def is_restored() -> bool:
        # the controller has agreed; the broker that answers hears of it a moment later
        return await retention_ms(world, topics.CONSENT) == str(topics.CONSENT.retention_ms)

    await eventually(is_restored, within_s=10)


async def test_an_attempt_to_place_ones_own_hold_is_refused_and_kept(world: World) -> None:
    """R-D3, R-D9: four eyes, however one spells oneself; who tried stands in the log."""
    asked = (
        "hold", "propose", "--by", "staff-1", "--case", "STRAF-2026-7", "--ground",
        "criminal_complaint", "--kinds", "traffic_data", "--review-on",
        (CLOCK.now() + timedelta(days=30)).date().isoformat(),
    )  # fmt: skip
    code, out = await run(world, asked)
    assert code == 0, out
    hold_id = out.split("hold ")[1].split()[0]
    code, out = await run(world, ("hold", "place", hold_id, "--by", "staff-1"))
    assert (code, "same_person" in out, "Traceback" in out) == (2, True, False)
    code, out = await run(world, ("hold", "place", hold_id, "--by", "staff-01"))
    assert (code, "identity_unknown" in out) == (2, True)
    rows = await query(
        world, "retention", "SELECT what, reason, staff_id FROM retention_refusal ORDER BY 2"
    )
    assert [tuple(row) for row in rows] == [
        ("place", "identity_unknown", "unknown"),
        ("place", "same_person", "staff-1"),
    ]
    code, out = await run(world, ("verify",))
    assert code == 0, out
