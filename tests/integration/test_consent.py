"""Consent as a process on real Kafka and PostgreSQL (R-F2, R-F3, K2).

Goal: what a visitor decided is recorded once and published, whatever is sent twice or killed.
Method: events are sent as the gateway sends them; the service is killed in the middle.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.provision import Infrastructure
from schemas import topics
from schemas.consent import (
    ConsentChoice,
    ConsentDecision,
    ConsentMethod,
    ConsentStateV1,
    ConsentV1,
    Purpose,
)
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox
from services.chassis.produce import KafkaSink
from services.privacy import recipients
from services.privacy.consent_states import ConsentStates
from services.privacy.declare import Purpose as SendingPurpose
from services.privacy.gate import Permit, Question, Refusal, RefusalReason, Verdict
from services.privacy.rules import RuleBook, always
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.running import metric, ready, send
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = pytest.mark.integration
IDS = TimeOrderedIds()
NOW = SystemClock().now()


@pytest.fixture
def world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), ["consent", "ad_ledger"]))
    yield made
    finish(made.close())


def decide(visitor_id: UUID, decision: ConsentDecision) -> ConsentV1:
    return ConsentV1(
        decision_id=IDS.new(),
        visitor_id=visitor_id,
        choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=decision),),
        catalogue_version="2026-11.1",
        wording_version="2026-11.1",
        language="de",
        method=ConsentMethod.PAGE,
    )


async def states(world: World) -> dict[UUID, list[ConsentStateV1]]:
    """Return every published state, by visitor, in order."""
    consumer = AIOKafkaConsumer(**world.kafka.options(), group_id=None)
    await consumer.start()
    found: dict[UUID, list[ConsentStateV1]] = {}
    try:
        name = world.topic(topics.CONSENT_STATE)
        tps = [TopicPartition(name, n) for n in range(topics.CONSENT_STATE.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    state = ConsentStateV1.model_validate_json(record.value)
                    assert record.key == str(state.visitor_id).encode()
                    found.setdefault(state.visitor_id, []).append(state)
    finally:
        await consumer.stop()
    return found


async def n_decisions(world: World) -> int:
    connection = await asyncpg.connect(world.database_url("consent"))
    try:
        return int(await connection.fetchval("SELECT count(*) FROM consent_record"))
    finally:
        await connection.close()


@pytest.mark.timeout(240)
async def test_a_kill_and_repeated_events_leave_one_record_and_one_state_each(
    world: World,
) -> None:
    """R-F2, R-F3: forty visitors give and withdraw, everything is sent twice, with a kill -9."""
    visitors = [new_visitor_id() for _ in range(40)]
    given = [decide(visitor, ConsentDecision.GIVEN) for visitor in visitors]
    withdrawn = [decide(visitor, ConsentDecision.WITHDRAWN) for visitor in visitors]
    times = dict.fromkeys([event.decision_id for event in given], NOW - timedelta(minutes=2))
    times |= dict.fromkeys([event.decision_id for event in withdrawn], NOW - timedelta(minutes=1))
    # a withdrawal overtakes its consent for half of them
    script = [*given[:20], *withdrawn, *given[20:]]

    async def send_all() -> None:
        outbox = Outbox("gateway", IDS, NOW)
        for event in script:
            outbox.add(topics.CONSENT, event, time=times[event.decision_id])
        sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test")
        await sink.send_rows(outbox.rows)
        await sink.stop()

    process = world.start("consent", CONSENT_BATCH_RECORDS_MAX="7")
    await ready(world, "consent")
    await send_all()

    async def has_begun() -> bool:
        return await n_decisions(world) > 0

    await eventually(has_begun, within_s=20)
    process.kill()
    process.wait()
    await send_all()
    world.start("consent")
    await ready(world, "consent")
    name = 'consent_events_total{outcome="duplicate",topic="consent"}'

    async def is_done() -> bool:
        found = await states(world)
        is_withdrawn = [
            len(found.get(visitor, [])) > 0 and len(found[visitor][-1].purposes[0].changes) == 2
            for visitor in visitors
        ]
        return all(is_withdrawn) and (await metric(world, "consent", name) or 0) >= len(script)

    await eventually(is_done, within_s=30)
    assert await n_decisions(world) == 80
    for published in (await states(world)).values():
        assert published[-1].purposes[0].in_force is False
        assert published[-1].purposes[0].since == NOW - timedelta(minutes=1)
        distinct = {state.model_dump_json() for state in published}
        assert len(distinct) <= 2


@pytest.mark.timeout(120)
async def test_what_cannot_be_refused_is_counted_with_its_reason(world: World) -> None:
    """R-F2: the refusal moves its metric and publishes nothing."""
    event = decide(new_visitor_id(), ConsentDecision.REFUSED)
    choice = ConsentChoice(purpose=Purpose.NECESSARY, decision=ConsentDecision.REFUSED)
    world.start("consent")
    await ready(world, "consent")
    await send(world, "gateway", (topics.CONSENT, event.model_copy(update={"choices": (choice,)})))
    name = 'consent_events_total{outcome="refused_purpose_necessary",topic="consent"}'

    async def is_counted() -> bool:
        return await metric(world, "consent", name) == 1

    await eventually(is_counted, within_s=20)
    assert await states(world) == {}
    assert await n_decisions(world) == 0


@pytest.mark.timeout(240)
async def test_nobody_relies_on_consents_while_the_service_stands_still(world: World) -> None:
    """K3, R-F4: a withdrawal that the broker has and nobody has handled is no reason to send.

    The process is frozen, so that nothing on any topic tells a reader that it is away.
    """
    visitor_id, login = new_visitor_id(), world.kafka_login("ad_ledger")
    known = ConsentStates(login, prefix=world.kafka_prefix, clock=SystemClock())
    rules = RuleBook(always(recipients.load()), known.facts_of)
    process = world.start("consent")
    await ready(world, "consent")
    reading = asyncio.create_task(known.run())

    async def verdict() -> Verdict:
        now = SystemClock().now()
        return await rules(
            Question(
                recipient="ad-partner", purpose=SendingPurpose.PERSONALISED_ADVERTISING,
                fields=frozenset({"signal.visitor_id"}), visitor_id=visitor_id, happened_at=now,
                asked_at=now,
            )
        )  # fmt: skip

    async def is_permitted() -> bool:
        return isinstance(await verdict(), Permit)

    def refused_for(reason: RefusalReason) -> Callable[[], Awaitable[bool]]:
        async def is_so() -> bool:
            found = await verdict()
            return isinstance(found, Refusal) and found.reason is reason

        return is_so

    try:
        given = decide(visitor_id, ConsentDecision.GIVEN).model_copy(
            update={"catalogue_version": "2026-11.3"}
        )
        await send(world, "gateway", (topics.CONSENT, given))
        await eventually(is_permitted, within_s=20)
        process.send_signal(signal.SIGSTOP)
        withdrawn = decide(visitor_id, ConsentDecision.WITHDRAWN)
        await send(world, "gateway", (topics.CONSENT, withdrawn))
        await eventually(refused_for(RefusalReason.CONSENT_STALE), within_s=20)
        process.send_signal(signal.SIGCONT)
        await eventually(refused_for(RefusalReason.NO_CONSENT_THEN), within_s=40)
    finally:
        process.send_signal(signal.SIGCONT)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
