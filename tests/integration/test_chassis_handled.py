"""Until when a topic has been handled, and what came of it has left (K3)."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from deploy.provision import Infrastructure
from schemas import topics
from tests.support.counting import Counting, event, make_counting, row_of, word_of
from tests.support.stack import finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


async def test_a_topic_is_handled_when_all_that_came_of_it_has_left(counting):
    """K3: an instant that is told to others stands behind the effects, and behind the relay."""
    may_handle, may_send = asyncio.Event(), asyncio.Event()

    async def wait(_, batch):
        if word_of(batch[0]) == "hold":
            await may_handle.wait()

    def arrange(service) -> None:
        send_rows = service.sink.send_rows

        async def send_when_it_may(rows):
            await may_send.wait()
            await send_rows(rows)

        service.sink.send_rows = send_when_it_may

    async with counting.running(before_save=wait, arrange=arrange) as run:
        before = run.service.clock.now()
        at_once = await run.service.handled_until(topics.CONSENT)
        assert at_once is not None
        assert at_once >= before, "nothing was there"
        await counting.send(row_of(event("hold")))
        asked = asyncio.create_task(run.service.handled_until(topics.CONSENT))
        await asyncio.sleep(0.5)
        assert not asked.done(), "not handled"
        may_handle.set()
        await counting.has_seen(1)
        await asyncio.sleep(0.5)
        assert not asked.done(), "handled, not sent"
        may_send.set()
        asked_at = await asyncio.wait_for(asked, 10)
        assert asked_at is not None
        assert at_once < asked_at < run.service.clock.now() - timedelta(seconds=1)
        assert len(await counting.read(topics.CONSENT_STATE)) == 1
