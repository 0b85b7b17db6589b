"""Talking to services that run as processes: send events, wait until ready, read metrics."""

import httpx

from schemas.topics import Topic
from schemas.wire import WireModel
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox
from services.chassis.produce import KafkaSink
from tests.support.eventually import eventually
from tests.support.stack import World


async def send(world: World, service: str, *events: tuple[Topic, WireModel]) -> None:
    """Send events to Kafka as another service would."""
    outbox = Outbox(service, TimeOrderedIds(), SystemClock().now())
    for topic, event in events:
        outbox.add(topic, event)
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id=f"test-{service}")
    try:
        await sink.send_rows(outbox.rows)
    finally:
        await sink.stop()


async def get(url: str) -> httpx.Response | None:
    """Return the answer, or None while nobody listens."""
    async with httpx.AsyncClient() as client:
        try:
            return await client.get(url)
        except httpx.TransportError:
            return None


async def ready(world: World, *services: str) -> None:
    """Wait until the services say that they are ready."""
    for service in services:

        async def is_ready(service: str = service) -> bool:
            url = f"http://127.0.0.1:{world.ports[f'{service}_admin']}/readyz"
            response = await get(url)
            return response is not None and response.status_code == 200

        await eventually(is_ready, within_s=60)


async def metric(world: World, service: str, line: str) -> float | None:
    """Return the value of one line of a service's metrics; None while it is not there."""
    response = await get(f"http://127.0.0.1:{world.ports[f'{service}_admin']}/metrics")
    if response is None:
        return None
    found = [text for text in response.text.splitlines() if text.startswith(f"{line} ")]
    return float(found[0].split()[-1]) if found else None
