"""Carries a plan's faults out on a running stack."""

import asyncio
import contextlib
import signal
from collections.abc import Callable

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
            thawing.append(asyncio.create_task(_thaw(fault, stack)))
    await asyncio.gather(*thawing)
    return n_hits


def _do(fault: Fault, stack: LocalStack) -> bool:
    try:
        stack.kill(fault.target, SIGNALS[fault.deed])
    except StackError:
        return False
    return True


async def _thaw(fault: Fault, stack: LocalStack) -> None:
    await asyncio.sleep(fault.lasts_s)
    with contextlib.suppress(StackError):  # killed while it was frozen
        stack.kill(fault.target, signal.SIGCONT)
