"""A decision whose recorder is killed with -9 between record and publish (K1, R-F2, R-F3).

Method: as `test_orders_kill`: one decision goes through all places in turn, so that each start
finds what the death before left behind.
"""

from collections.abc import Iterator

import pytest

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
from services.chassis.outbox import Outbox, OutboxRow
from services.chassis.produce import KafkaSink
from services.consent import chain_store
from services.consent.command import judge
from services.consent.store import INVARIANTS
from services.privacy.chain import SigningKeys, VerifyKeys
from tests.support.bench import IDS, new_visitor_id
from tests.support.counting import Counting
from tests.support.eventually import eventually
from tests.support.killed import COMMIT, CURSOR, DEED, Killed, fence, opened
from tests.support.running import metric, ready
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = [pytest.mark.fault, pytest.mark.integration, pytest.mark.timeout(240)]

CONSENT = "consent"
CLOCK = SystemClock()
_STOPS = """
CREATE TRIGGER deed AFTER INSERT ON consent_record FOR EACH ROW EXECUTE FUNCTION stop_here('1');
CREATE CONSTRAINT TRIGGER commit AFTER INSERT ON consent_record
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stop_here('2');
"""
_ROWS = """
SELECT (SELECT count(*) FROM consent_record), (SELECT count(*) FROM consent_subject),
       (SELECT count(*) FROM consent_chain),
       (SELECT count(*) FROM outbox WHERE topic = 'consent-state')
"""


@pytest.fixture
def world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), (CONSENT,)))
    yield made
    finish(made.close())


def a_decision() -> ConsentV1:
    return ConsentV1(
        decision_id=IDS.new(),
        visitor_id=new_visitor_id(),
        choices=(
            ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.GIVEN),
            ConsentChoice(purpose=Purpose.STATISTICS, decision=ConsentDecision.REFUSED),
        ),
        catalogue_version="2026-11.1",
        wording_version="2026-11.1",
        language="de",
        method=ConsentMethod.BANNER,
    )


async def rows(killed: Killed) -> tuple[int, ...]:
    """Return records, subjects, links of the chain, states to be published."""
    found = await killed.looking.fetchrow(_ROWS)
    assert found is not None
    return tuple(found)


async def test_a_decision_is_recorded_once_and_published_whatever_dies(world: World) -> None:
    """K1, R-F3: nothing lost, nothing twice, and the chain verifies."""
    decision, reader = a_decision(), Counting(world=world)
    outbox = Outbox("gateway", IDS, CLOCK.now())
    outbox.add(topics.CONSENT, decision)
    (row,) = outbox.rows
    async with opened(world, CONSENT, _STOPS) as killed:
        killed.start()
        await ready(world, CONSENT)
        async with killed.closed(fence(topics.CONSENT)) as gate:
            await deliver(world, row, row)
            await killed.waits(gate)
            await killed.die()
        assert await rows(killed) == (0, 0, 0, 0), "before its transaction"
        await killed.dies_at(DEED)
        assert await rows(killed) == (0, 0, 0, 0), "in the middle of its records"
        await killed.dies_at(COMMIT)
        assert await rows(killed) == (0, 0, 0, 0), "before COMMIT"
        await killed.dies_as_it_commits()

        async def is_recorded() -> bool:
            return await rows(killed) == (2, 1, 2, 1)

        await eventually(is_recorded, within_s=20)
        await killed.end_sessions()
        assert await reader.read(topics.CONSENT_STATE) == [], "recorded, not published"
        await killed.dies_at(CURSOR)
        assert len(await reader.read(topics.CONSENT_STATE)) == 1, "published, not noted"
        killed.start()
        await ready(world, CONSENT)
        await deliver(world, row)
        await taken(world)
        records = await reader.records(topics.CONSENT_STATE, 2)
        assert len({dict(record.headers)["ce_id"] for record in records}) == 1
        states = {record.value for record in records}
        (state,) = [ConsentStateV1.model_validate_json(value) for value in states]
        assert state.visitor_id == decision.visitor_id
        assert {p.purpose: p.in_force for p in state.purposes} == {
            Purpose.MARKETING: True,
            Purpose.STATISTICS: False,
        }
        assert (await rows(killed))[:3] == (2, 1, 2), "what was delivered again changed nothing"
        assert await reader.read(topics.CONSENT.dead_letter) == []
        for name, sql in INVARIANTS.items():
            assert await killed.looking.fetchval(sql) == 0, name
        for part in range(chain_store.PARTS):
            found = await chain_store.read_part(killed.looking, part)
            keys = VerifyKeys(SigningKeys(world.keys["consent_anchor_keys"]).public())
            assert judge(found, keys)["findings"] == []


async def deliver(world: World, *rows: OutboxRow) -> None:
    """Send the same record again, as a producer does that had no answer."""
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test")
    try:
        await sink.send_rows(rows)
    finally:
        await sink.stop()


async def taken(world: World) -> None:
    """Wait until what was delivered again has been taken."""

    async def is_taken() -> bool:
        line = 'consent_events_total{outcome="duplicate",topic="consent"}'
        return bool(await metric(world, CONSENT, line))

    await eventually(is_taken, within_s=30)
