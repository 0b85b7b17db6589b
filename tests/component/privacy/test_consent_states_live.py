"""A sender's consents from a real topic: from nothing, and stale when the brokers are away (K3)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from deploy.provision import drop_topics
from schemas import topics
from schemas.consent import ConsentStateV1, Purpose, PurposeState
from services.chassis.clock import SystemClock
from services.chassis.outbox import OutboxRow
from services.chassis.produce import KafkaSink
from services.privacy.consent_states import ConsentStates
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.progress import progress_told
from tests.support.running import send
from tests.support.stack import World, make_world, new_prefix

CLOCK = SystemClock()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = await make_world(
        new_prefix(), ["ad_ledger"], topics=(topics.CONSENT_STATE, topics.CONSENT_PROGRESS)
    )
    try:
        yield found
    finally:
        await found.close()


@contextlib.asynccontextmanager
async def reading(world: World, **more: timedelta) -> AsyncIterator[ConsentStates]:
    """Read as the ledger does, with its rights."""
    login = world.kafka_login("ad_ledger")
    states = ConsentStates(login, prefix=world.kafka_prefix, clock=CLOCK, **more)
    task = asyncio.create_task(states.run())
    try:
        yield states
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def fresh(states: ConsentStates, *, is_fresh: bool = True) -> None:
    async def holds() -> bool:
        return states.is_fresh(CLOCK.now()) is is_fresh

    await eventually(holds, within_s=20)


def state(visitor_id, *, in_force: bool) -> ConsentStateV1:
    purposes = tuple(
        PurposeState(
            purpose=Purpose.MARKETING, recipient=name, in_force=in_force, since=CLOCK.now()
        )
        for name in (None, "adgrx-com")
    )
    return ConsentStateV1(visitor_id=visitor_id, purposes=purposes)


async def test_it_knows_what_was_said_before_it_began_and_since(world):
    """K2, R-F3: the last word per visitor; a service that starts from nothing knows all of it."""
    before, since = new_visitor_id(), new_visitor_id()
    for in_force in (False, True):
        event = state(before, in_force=in_force)
        await send(world, "consent", (topics.CONSENT_STATE, event))
    async with progress_told(world), reading(world) as states:
        assert not states.is_fresh(CLOCK.now()), "nothing has been read"
        await fresh(states)
        now = CLOCK.now()
        assert states.facts_of(before, now).in_force_at("marketing", "adgrx-com", now)
        assert not states.facts_of(since, now).changes
        await send(world, "consent", (topics.CONSENT_STATE, state(since, in_force=True)))

        async def is_known() -> bool:
            return bool(states.facts_of(since, CLOCK.now()).changes)

        await eventually(is_known, within_s=10)


async def test_what_is_deleted_is_in_force_no_more(world):
    """R-G3: a record without value."""
    visitor = new_visitor_id()
    await send(world, "consent", (topics.CONSENT_STATE, state(visitor, in_force=True)))
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test")
    try:
        await sink.send_rows(
            [OutboxRow(topics.CONSENT_STATE.name, str(visitor).encode(), [], None)]
        )
    finally:
        await sink.stop()
    async with progress_told(world), reading(world) as states:
        await fresh(states)
        assert not states.facts_of(visitor, CLOCK.now()).changes


async def test_without_its_topic_it_grows_stale(world):
    """K3: a reader that cannot ask how far the topic goes relies on nothing."""
    async with reading(world, stale_after=timedelta(seconds=2)) as states:
        async with progress_told(world):
            await fresh(states)
        await drop_topics(world.kafka, world.kafka_prefix)
        await fresh(states, is_fresh=False)


async def test_while_consent_is_silent_it_grows_stale(world):
    """K3: all that is on the topic has been read; what consent has not told yet may be more."""
    async with reading(world, stale_after=timedelta(seconds=2)) as states:

        async def has_read() -> bool:
            return states._replay.read_until is not None

        await eventually(has_read, within_s=20)
        assert not states.is_fresh(CLOCK.now()), "nobody has said that this was all"
        async with progress_told(world):
            await fresh(states)
        await fresh(states, is_fresh=False)
        async with progress_told(world):
            await fresh(states)
