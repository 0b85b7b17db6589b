"""The tasks beside a service's consumer: orders that wait are tried again, old receipts go."""

from typing import Any

from services.chassis.clock import sleep
from services.chassis.service import Service
from services.privacy.executor import Executor

RETRY_EVERY_S = 5.0
FORGET_EVERY_S = 3600.0
TASK = "waiting_orders"
FORGET_TASK = "old_receipts"


def retry_waiting_orders(service: Service[Any], executor: Executor) -> None:
    """Give a service the task that carries out orders once what they waited for is over.

    And the one that forgets what it did about orders, once that is due itself (R-D10).
    """

    async def run() -> None:
        while True:
            async with service.transaction() as ctx:
                has_more = await executor.retry(ctx)
            if not has_more:
                await sleep(RETRY_EVERY_S)

    async def forget() -> None:
        while True:
            async with service.transaction() as ctx:
                await executor.forget_done(ctx)
            await sleep(FORGET_EVERY_S)

    service.task(TASK, lambda: service.weatherproof(TASK, run))
    service.task(FORGET_TASK, lambda: service.weatherproof(FORGET_TASK, forget))
