"""The task beside a service's consumer that tries waiting orders again."""

from typing import Any

from services.chassis.clock import sleep
from services.chassis.service import Service
from services.privacy.executor import WAITING_MAX, Executor

RETRY_EVERY_S = 5.0
TASK = "waiting_orders"


def retry_waiting_orders(service: Service[Any], executor: Executor) -> None:
    """Give a service the task that carries out orders once what they waited for is over."""

    async def run() -> None:
        while True:
            async with service.transaction() as ctx:
                n_done = await executor.retry(ctx)
            if n_done < WAITING_MAX:
                await sleep(RETRY_EVERY_S)

    service.task(TASK, lambda: service.weatherproof(TASK, run))
