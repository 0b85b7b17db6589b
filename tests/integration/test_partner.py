"""The ad partner's usage feed: a ledger's process, real Kafka and PostgreSQL, real HTTPS (R-A4)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from schemas.consent import (
    ConsentChange,
    ConsentDecision,
    ConsentStateV1,
    Purpose,
    PurposeState,
)
from services.chassis.ids import TimeOrderedIds
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.partner import TOKEN, Partner, open_partner
from tests.support.progress import progress_told
from tests.support.running import ready, send
from tests.support.stack import World, make_world, new_prefix

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

IDS = TimeOrderedIds()
KEY_JSON = '{"k1": "' + "11" * 32 + '"}'
KEYS = view_ticket.KeyRing.from_json(KEY_JSON)
KINDS = ("page_hit", "start")
WHOLE_VIEW = (*KINDS, "first_quartile", "midpoint", "third_quartile", "complete")
ADDRESS = "203.0.113.77"


@pytest.fixture
async def partner(tmp_path: Path) -> AsyncIterator[Partner]:
    async with open_partner(tmp_path) as found:
        yield found


@pytest.fixture
async def world(partner: Partner) -> AsyncIterator[World]:
    """A world that ends before the partner does: nobody is connected to it then."""
    found = await make_world(new_prefix(), ["ad_ledger"])
    try:
        async with progress_told(found):
            yield found
    finally:
        await found.close()


def start(world: World, partner: Partner, **more: str) -> Any:
    return world.start(
        "ad_ledger", AD_LEDGER_VIEW_TICKET_KEYS=KEY_JSON, **(partner.environment | more)
    )


async def watch(
    world: World, visitor_id: UUID, kinds: Sequence[str] = KINDS, begun_s: float = 1
) -> list[tuple[str, str]]:
    """Send the first steps of a view, or all; return (ticket, kind) of each."""
    now = datetime.now(UTC)
    ticket = view_ticket.ViewTicket(
        ticket_id=IDS.new(), visitor_id=visitor_id, ad_id="house-1", duration_ms=16_000,
        issued_at=now - timedelta(seconds=begun_s), expires_at=now + timedelta(hours=1),
    )  # fmt: skip
    text, position_ms = view_ticket.issue(KEYS, ticket), min(16_000, int(begun_s * 1000))
    events = [
        AdViewV1(
            visitor_id=visitor_id, ticket=text, kind=AdEventKind(kind), position_ms=position_ms,
            address=ADDRESS,
        )
        for kind in kinds
    ]  # fmt: skip
    await send(world, "gateway", *((topics.AD_VIEW, event) for event in events))
    return [(str(ticket.ticket_id), kind) for kind in kinds]


async def say(world: World, visitor_id: UUID, decision: ConsentDecision, at: datetime) -> None:
    """Publish a visitor's state of consent, as consent does."""
    states = tuple(
        PurposeState(
            purpose=Purpose.MARKETING,
            recipient=recipient,
            in_force=decision is ConsentDecision.GIVEN,
            since=at,
            changes=(ConsentChange(decision=decision, at=at),),
        )
        # as a whole, and of whom the version shown named
        for recipient in (None, "ad-partner")
    )
    event = ConsentStateV1(visitor_id=visitor_id, purposes=states)
    await send(world, "consent", (topics.CONSENT_STATE, event))


async def enqueued(world: World, topic: topics.Topic) -> list[Any]:
    """Return the events of a topic in the ledger's outbox, as their values."""
    connection = await asyncpg.connect(world.owner_url("ad_ledger"))
    try:
        rows = await connection.fetch("SELECT payload FROM outbox WHERE topic = $1", topic.name)
    finally:
        await connection.close()
    return [topic.model.model_validate_json(row["payload"]) for row in rows]


async def states_of_reports(world: World) -> dict[str, int]:
    connection = await asyncpg.connect(world.owner_url("ad_ledger"))
    try:
        rows = await connection.fetch("SELECT state, count(*) FROM partner_report GROUP BY state")
    finally:
        await connection.close()
    return {row["state"]: row["count"] for row in rows}


async def until(check: Any, within_s: float = 40) -> None:
    async def holds() -> bool:
        return bool(check())

    await eventually(holds, within_s=within_s)


async def test_the_partner_gets_what_its_contract_needs_and_no_more(world, partner):
    """R-A4, R-E1, R-E2: usage on the contract; the signal with consent only; each recorded."""
    with_consent, without = new_visitor_id(), new_visitor_id()
    await say(world, with_consent, ConsentDecision.GIVEN, datetime.now(UTC) - timedelta(hours=1))
    start(world, partner)
    await ready(world, "ad_ledger")
    await asyncio.sleep(2)  # the consents have been read by now, else the signal is refused
    wanted = [*await watch(world, with_consent), *await watch(world, without)]
    await until(lambda: sorted(partner.steps) == sorted(wanted))
    ours = wanted[0][0]
    assert [(s["visitor_id"], s["ticket_id"]) for s in partner.signals] == [
        (str(with_consent), ours)
    ]
    usages = [u for body in partner.batches.values() for u in body["usages"]]
    assert {frozenset(u) for u in usages} == {
        frozenset({"ticket_id", "ad_id", "address", "events"})
    }
    assert {u["address"] for u in usages} == {ADDRESS}
    everything = repr([delivery.body for delivery in partner.deliveries])
    assert str(without) not in everything, "no pseudonym without consent"
    assert {d.authorization for d in partner.deliveries} == {f"Bearer {TOKEN}"}

    recorded = await enqueued(world, topics.TRANSFER)
    said = {(t.visitor_id, t.purpose): t for t in recorded}
    assert len(recorded) == len(said) == 4
    permit = said[with_consent, "personalised_advertising"]
    assert (permit.verdict.value, permit.consent) == ("permitted", "marketing")
    assert set(permit.fields) == {"signal.visitor_id", "signal.ticket_id", "signal.viewed_at"}
    refusal = said[without, "personalised_advertising"]
    assert (refusal.verdict.value, refusal.reason) == ("refused", "no_consent_then")
    for visitor_id in (with_consent, without):
        settled = said[visitor_id, "ad_settlement"]
        assert (settled.basis, settled.country_ground) == ("Art. 6(1)(b)", "adequacy")


async def test_who_refuses_marketing_earns_the_same(world, partner):
    """R-F5: given, refused or silent, with the partner's feed on: a whole ad earns as much."""
    given, refused, silent = (new_visitor_id() for _ in range(3))
    before = datetime.now(UTC) - timedelta(hours=1)
    await say(world, given, ConsentDecision.GIVEN, before)
    await say(world, refused, ConsentDecision.REFUSED, before)
    start(world, partner)
    await ready(world, "ad_ledger")
    await asyncio.sleep(2)
    for visitor_id in (given, refused, silent):
        await watch(world, visitor_id, kinds=WHOLE_VIEW, begun_s=60)
    earned: dict[UUID, int] = {}

    async def all_have() -> bool:
        earned.clear()
        for event in await enqueued(world, topics.CREDIT):
            earned[event.visitor_id] = earned.get(event.visitor_id, 0) + event.amount_ms
        return earned == dict.fromkeys((given, refused, silent), 16_000)

    await eventually(all_have, within_s=40)
    await until(lambda: len(partner.signals) == 1)
    assert {signal["visitor_id"] for signal in partner.signals} == {str(given)}


async def test_after_a_withdrawal_no_signal_goes(world, partner):
    """R-F3, K2: needed at the sending too; the usage itself goes on."""
    visitor = new_visitor_id()
    start(world, partner)
    await ready(world, "ad_ledger")
    await say(world, visitor, ConsentDecision.GIVEN, datetime.now(UTC) - timedelta(hours=1))
    await asyncio.sleep(2)
    wanted = await watch(world, visitor)
    await until(lambda: sorted(partner.steps) == sorted(wanted))
    assert len(partner.signals) == 1
    await say(world, visitor, ConsentDecision.WITHDRAWN, datetime.now(UTC))
    await asyncio.sleep(2)
    wanted += await watch(world, visitor)
    await until(lambda: sorted(partner.steps) == sorted(wanted))
    assert len(partner.signals) == 1


async def test_a_partner_that_fails_gets_the_same_batch_again(world, partner):
    """R-A4: at least once, under one key."""
    partner.status = 500
    start(world, partner)
    wanted = await watch(world, new_visitor_id())
    await until(lambda: len(partner.deliveries) >= 2)
    assert len(partner.batches) == 1
    assert (await states_of_reports(world)) == {"sending": 2}
    partner.status = 200
    n_tries = len(partner.deliveries)
    await until(lambda: len(partner.deliveries) > n_tries)
    assert len(partner.batches) == 1
    assert sorted(partner.steps) == sorted(wanted)

    async def reported() -> bool:
        return await states_of_reports(world) == {"reported": 2}

    await eventually(reported, within_s=20)


@pytest.mark.fault
async def test_killed_in_the_middle_each_usage_is_told_once(world, partner):
    """R-A4: SIGKILL while the partner has it and has not answered; then nothing is lost or double.

    Small batches, so that some are reported, one is under way and others wait.
    """
    more = {"AD_LEDGER_PARTNER_BATCH_MAX": "4"}
    process = start(world, partner, **more)
    await ready(world, "ad_ledger")
    wanted = await watch(world, new_visitor_id())
    await until(lambda: len(partner.steps) == len(wanted))
    partner.status = 0
    for _ in range(10):
        wanted += await watch(world, new_visitor_id())
    n_before = len(partner.deliveries)
    await until(lambda: len(partner.deliveries) > n_before)
    process.kill()
    await asyncio.to_thread(process.wait)
    partner.status = 200
    start(world, partner, **more)
    await until(lambda: len(set(partner.steps)) == len(wanted))
    await until(lambda: len(partner.deliveries) > len(partner.batches))
    assert sorted(partner.steps) == sorted(wanted), "each once, doubles removed by their key"

    async def reported() -> bool:
        return await states_of_reports(world) == {"reported": len(wanted)}

    await eventually(reported, within_s=30)
    sent = [usage for delivery in partner.deliveries for usage in delivery.body["usages"]]
    recorded = [t for t in await enqueued(world, topics.TRANSFER) if t.purpose == "ad_settlement"]
    assert len(recorded) >= len(sent), "each try was recorded before it was made"
