"""Answers orders in the name of services that do not run: they hold nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from aiokafka import AIOKafkaConsumer

from deploy.local.environment import RECEIPT_KEYS
from schemas import topics
from schemas.retention import RetentionOrderV1, RetentionReceiptV1
from services.chassis.clock import SystemClock
from services.privacy.chain import SigningKeys
from services.privacy.receipts import sign
from tests.support.running import send
from tests.support.stack import World


def receipt_of(world: World, service: str, order: RetentionOrderV1) -> RetentionReceiptV1:
    """Return the signed receipt of a service that has nothing of what an order is about."""
    receipt = RetentionReceiptV1(
        order_id=order.order_id,
        service=service,
        kind=order.kind,
        counts=(),
        done_at=SystemClock().now(),
    )
    return sign(SigningKeys(world.keys[RECEIPT_KEYS[service]]), receipt)


@contextlib.asynccontextmanager
async def answered(world: World, services: Sequence[str]) -> AsyncIterator[list[RetentionOrderV1]]:
    """Answer each order as these services would; yields the list of what was ordered so far."""
    seen: list[RetentionOrderV1] = []
    consumer = AIOKafkaConsumer(
        world.topic(topics.RETENTION_ORDER),
        **world.kafka.options(),
        group_id=None,
        auto_offset_reset="earliest",
    )

    async def answer() -> None:
        async for record in consumer:
            order = RetentionOrderV1.model_validate_json(record.value)
            seen.append(order)
            for service in services:
                receipt = receipt_of(world, service, order)
                await send(world, service, (topics.RETENTION_RECEIPT, receipt))

    await consumer.start()
    task = asyncio.create_task(answer())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()
