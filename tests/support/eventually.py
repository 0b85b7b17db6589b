"""Waiting for a condition without sleeping blindly."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    condition: Callable[[], Awaitable[T]], *, within_s: float, what: str = "the condition"
) -> T:
    """Return the first truthy value of `condition`.

    Raises:
        AssertionError: naming `what`, when it stays falsy for `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come about within {within_s} s"
        await asyncio.sleep(0.05)
