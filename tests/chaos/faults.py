"""Carries a plan's faults out on a running stack."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping

from deploy.local.errors import StackError
from deploy.local.stack import LocalStack
from tests.chaos.plan import Deed, Fault, Plan

SIGNALS = {
    Deed.KILL: signal.SIGKILL,
    Deed.FREEZE: signal.SIGSTOP,
    # PostgreSQL's words for it: fast, and immediate
    Deed.RESTART: signal.SIGINT,
    Deed.CRASH: signal.SIGQUIT,
}


async def carry_out(plan: Plan, stack: LocalStack, say: Callable[[str], None]) -> int:
    """Do everything that is planned, in time; return how many faults hit a running process.

    Frozen processes thaw on their own time, also while the next faults happen.
    """
    started_s = asyncio.get_running_loop().time()
    thawing: list[asyncio.Task[None]] = []
    frozen: dict[str, int] = {}
    n_hits = 0
    for number, fault in enumerate(plan.faults, start=1):
        wait_s = started_s + fault.at_s - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, wait_s))
        hit = _do(fault, stack)
        n_hits += hit
        lasts = f" for {fault.lasts_s} s" if fault.lasts_s else ""
        say(
            f"{number:>3}/{plan.n_faults} {fault.at_s:>7.1f} s  {fault.deed} {fault.target}{lasts}"
            f"{'' if hit else ' (was down already)'}"
        )
        if hit and fault.deed is Deed.FREEZE:
            frozen[fault.target] = number
            thawing.append(asyncio.create_task(_thaw(fault, number, frozen, stack)))
    await asyncio.gather(*thawing)
    return n_hits


def _do(fault: Fault, stack: LocalStack) -> bool:
    try:
        stack.kill(fault.target, SIGNALS[fault.deed])
    except StackError:
        return False
    return True


async def _thaw(fault: Fault, number: int, frozen: Mapping[str, int], stack: LocalStack) -> None:
    """Let a process go on, unless a later freeze has begun: that one is to last its time too."""
    await asyncio.sleep(fault.lasts_s)
    if frozen[fault.target] == number:
        with contextlib.suppress(StackError):  # killed while it was frozen
            stack.kill(fault.target, signal.SIGCONT)
