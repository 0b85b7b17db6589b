"""One fault run from the first process to the verdict."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.kafka import node_names
from deploy.local.layout import write_private
from deploy.local.stack import LocalStack
from deploy.phones import Phone, PhoneExchange
from services.chassis.declaration import SERVICES
from tests.chaos import verdict, witness
from tests.chaos.adversary import Adversary
from tests.chaos.faults import carry_out
from tests.chaos.people import Crowd
from tests.chaos.plan import Deed, Fault, Plan, make_plan
from tests.support.machine import machine

DOUBLED = ("ad_ledger", "call_control")
"""Services that run as two processes, so that partitions really change hands."""
PROCESSES = (*SERVICES, *(f"{name}-1" for name in DOUBLED))
SHORT_SEED = 70
"""Chosen: in nine faults something of every kind (held by a test)."""
SETTLE_S = 120.0
PATIENCE_S = 240.0
"""After the last fault: if no visitor leaves for so long, those who are there give up."""
RINGS_S = 0.3
TALK_S = 4.0
DATABASES = ("ad_ledger", "call_control", "consent", "retention")


def new_plan(
    *, seed: int, n_visitors: int, at_once: int, n_faults: int, gap_s: float, kafka_nodes: int
) -> Plan:
    """Return the plan of a seed for the processes of this platform."""
    return make_plan(
        seed=seed,
        n_visitors=n_visitors,
        at_once=at_once,
        n_faults=n_faults,
        gap_s=gap_s,
        kafka_nodes=kafka_nodes,
        services=PROCESSES,
        brokers=node_names(kafka_nodes),
    )


def short_plan(seed: int = SHORT_SEED) -> Plan:
    """Return the plan of the run that belongs to every `make test`."""
    return new_plan(seed=seed, n_visitors=12, at_once=12, n_faults=9, gap_s=3.5, kafka_nodes=3)


@dataclass(kw_only=True)
class Outcome:
    """What came of a run.

    Attributes:
        wrong: everything that does not hold; empty = the platform has stood the run.
        figures: counts; no personal data.
    """

    plan: Plan
    wrong: list[str]
    figures: dict[str, Any]

    @property
    def holds(self) -> bool:
        """The verdict."""
        return not self.wrong

    def document(self) -> dict[str, Any]:
        """Return the report."""
        return {
            "name": "chaos",
            "machine": machine(),
            "plan": dataclasses.asdict(self.plan),
            "figures": self.figures,
            "wrong": self.wrong,
            "verdict": "holds" if self.holds else "fails",
        }

    def write(self, path: Path) -> None:
        """Write the report."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, self.document())


def read_plan(path: Path) -> tuple[Plan, str]:
    """Return the plan and the verdict of an earlier run's report."""
    document = json.loads(path.read_text(encoding="utf-8"))
    # JSON says a deed as plain text: a freeze that is none of `Deed` would never thaw
    faults = tuple(Fault(**f | {"deed": Deed(f["deed"])}) for f in document["plan"]["faults"])
    return Plan(**document["plan"] | {"faults": faults}), document["verdict"]


@contextlib.asynccontextmanager
async def stage(
    folder: Path, plan: Plan, *, unfenced: bool
) -> AsyncIterator[tuple[LocalStack, PhoneExchange]]:
    """Start the platform, two processes of some services, and all telephones."""
    stack = LocalStack(
        folder,
        kafka_nodes=plan.kafka_nodes,
        package="tests.chaos.unfenced" if unfenced else "services",
        overrides={
            "GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8",
            **{
                f"{name.upper()}_{setting}": value
                for name in DATABASES
                for setting, value in (
                    ("SESSION_TIMEOUT_MS", "6000"),
                    # asked for by the run itself, at the end
                    ("INVARIANT_INTERVAL_S", "60"),
                )
            },
        },
    )
    async with stack:
        exchange = PhoneExchange(
            "127.0.0.1",
            stack.port("trunk"),
            new_phone=lambda number: Phone(
                number=number,
                is_silent=True,
                answer_after_s=RINGS_S,
                # some talk until they are cut off
                hang_up_after_s=None if number.endswith("7") else TALK_S,
            ),
        )
        await exchange.start()
        try:
            for name in DOUBLED:
                await stack.add_instance(name, "1")
            yield stack, exchange
        finally:
            await exchange.stop()


async def run(
    folder: Path, plan: Plan, say: Callable[[str], None], *, unfenced: bool = False
) -> Outcome:
    """Carry a plan out and judge what is left.

    Args:
        folder: the stack's; kept, so that a failure can be looked into.
        unfenced: without the safeguards: the negative control.

    Raises:
        StackError: the stack does not start, or a process does not come back.
    """
    clock = Marks()
    async with stage(folder, plan, unfenced=unfenced) as (stack, exchange):
        clock.mark("up")
        say(f"seed {plan.seed}: {plan.n_visitors} visitors, {plan.n_faults} faults")
        dsns = {name: stack.admin_dsn(name) for name in DATABASES}
        crowd = Crowd(
            origin=stack.url("gateway"),
            seed=plan.seed,
            at_once=plan.at_once,
            arrive_within_s=plan.arrive_within_s,
        )
        adversary = Adversary(login=stack.kafka, prefix="", seed=plan.seed)
        doubling = asyncio.create_task(adversary.run())
        visiting = asyncio.create_task(crowd.run(plan.n_visitors))
        n_hits = await carry_out(plan, stack, say)
        for name in stack.names:
            await stack.wait_ready(name, within_s=90)
        clock.mark("faults_over")
        say("all faults are over; visitors finish")
        await until_left(visiting, crowd)
        await ended(doubling)
        clock.mark("visitors_gone")
        left = await verdict.settled(dsns, stack.kafka, "", SETTLE_S)
        clock.mark("settled")
        wrong = [f"{name} after {SETTLE_S:.0f} s: {n}" for name, n in left.items()]
        account = await witness.hear(stack.kafka, "")
        wrong += await verdict.judge(dsns, crowd.told, account)
        wrong += _still_there(exchange, crowd)
        figures = await verdict.figures(dsns) | {
            "faults_that_hit": n_hits,
            "doubles": adversary.n_doubled,
            "restarts": sum(stack.n_restarts(name) for name in stack.names),
            **crowd.figures(),
        }
    clock.mark("all")
    return Outcome(plan=plan, wrong=wrong, figures=figures | clock.seconds)


class Marks:
    """Seconds from the start of a run to the end of each of its phases."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self.seconds: dict[str, int] = {}

    def mark(self, phase: str) -> None:
        """Note that a phase is over."""
        self.seconds[f"{phase}_s"] = round(time.monotonic() - self._started_s)


def _still_there(exchange: PhoneExchange, crowd: Crowd) -> list[str]:
    wrong = []
    if n_up := exchange.n_active:
        wrong.append(f"{n_up} telephones are still in a call (C3)")
    if gave_up := sum(told.gave_up for told in crowd.told):
        wrong.append(f"{gave_up} visitors gave up: {sorted(set(crowd.refusals))}")
    return wrong


async def until_left(
    visiting: asyncio.Task[None], crowd: Crowd, patience_s: float = PATIENCE_S
) -> None:
    """Wait for the last visitor, as long as there is always one that leaves.

    On a slow machine two thousand take their time; one who is stuck is not waited for.
    """
    while not visiting.done():
        n_before = crowd.n_left
        await asyncio.wait({visiting}, timeout=patience_s)
        if crowd.n_left == n_before:
            break
    crowd.over.set()
    await visiting


async def ended(task: asyncio.Task[None]) -> None:
    """End a task that goes on for ever; if it has failed before, the run shows nothing: raise."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def lines(outcome: Outcome) -> Sequence[str]:
    """Return what is printed at the end."""
    figures = ", ".join(f"{name} {value}" for name, value in outcome.figures.items())
    return [
        figures,
        *(f"WRONG: {what}" for what in outcome.wrong),
        f"seed {outcome.plan.seed}: {'everything holds' if outcome.holds else 'FAILED'}",
    ]
