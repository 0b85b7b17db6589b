"""The tasks beside a service's consumer: drops and orders that wait, old receipts."""

from typing import Any

from services.chassis.clock import sleep
from services.chassis.service import Service
from services.privacy.executor import Executor

RETRY_EVERY_S = 5.0
FORGET_EVERY_S = 3600.0
TASK = "waiting_orders"
FORGET_TASK = "old_receipts"


def retry_waiting_orders(service: Service[Any], executor: Executor) -> None:
    """Give a service the task that carries out drops, and orders once what they waited for is over.

    And the one that forgets what it did about orders, once that is due itself (R-D10). What the
    first orders of a start have noted is worked off before anything is served: a database that was
    restored may hold what is due.
    """

    async def try_each() -> None:
        has_more = True
        while has_more:
            async with service.transaction() as ctx:
                has_more = await executor.retry(ctx)

    async def run() -> None:
        while True:
            await try_each()
            await executor.until_noted(RETRY_EVERY_S)

    async def forget() -> None:
        while True:
            async with service.transaction() as ctx:
                await executor.forget_done(ctx)
            await sleep(FORGET_EVERY_S)

    service.after_first(try_each)
    service.task(TASK, lambda: service.weatherproof(TASK, run))
    service.task(FORGET_TASK, lambda: service.weatherproof(FORGET_TASK, forget))
