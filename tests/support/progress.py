"""Consent's word that all has been told, for tests in which no consent process runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from schemas import topics
from schemas.consent_progress import ConsentProgressV1, ProgressName
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.produce import KafkaSink, Producer
from tests.support.stack import World

EVERY_S = 0.2
_CLOCK, _IDS = SystemClock(), TimeOrderedIds()


@contextlib.asynccontextmanager
async def progress_told(world: World) -> AsyncIterator[None]:
    """Tell it all the time."""
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test-progress")
    producer = Producer(sink, service="consent", timeout_s=10)

    async def tell() -> None:
        while True:
            now = _CLOCK.now()
            event = ConsentProgressV1(name=ProgressName.CHOICES, until=now)
            await producer.send(topics.CONSENT_PROGRESS, event, event_id=_IDS.new(), time=now)
            await asyncio.sleep(EVERY_S)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await telling
        await sink.stop()
