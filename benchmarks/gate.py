"""The transfer gate: decisions a second, and how soon a withdrawal reaches it.

Goal: 10,000 decisions a second in one process at least; after a withdrawal every gate refuses
within a second (p99) at 1,000 consent events a second.

Method:
- `decide`: the pure rule over the shipped register, a mix of permits and refusals;
- `clear`: the whole gate without its recorder: paths of the payload, rule, cut, JSON;
- `send`: all that a sending does: the same, verdicts committed to the outbox of a real database,
  and each payload asked about once more when it is taken;
- `withdraw`: consent's real process and a reader as each sender has it; the load are decisions of
  other visitors, LOAD_RATE a second; a visitor who had given consent withdraws it, and the gate is
  asked each 5 ms until it refuses. Milliseconds from the instant before the event is handed
  to Kafka, as the gateway does it.

`python -m benchmarks.gate [--seconds 30] [--rounds 3]` writes `var/bench/gate.json`.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import JsonValue

from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1
from schemas.consent import Purpose as ConsentPurpose
from services.ad_ledger.store import Store
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.produce import KafkaSink, Producer
from services.privacy import recipients
from services.privacy.consent_states import ConsentStates
from services.privacy.declare import Purpose
from services.privacy.gate import Cleared, Gate, Permit, Question, Recorder, Request, Verdict
from services.privacy.recorder import OutboxRecorder
from services.privacy.rules import Change, ConsentFacts, RuleBook, always, decide
from tests.support.bench import new_visitor_id, open_bench
from tests.support.machine import machine
from tests.support.running import ready
from tests.support.stack import World, make_world, new_prefix

GOAL_DECISIONS = 10_000
GOAL_P99_MS = 1_000
LOAD_RATE = 1_000
PROBE_RATE = 10
N_PURE = 50_000
N_CLEARED = 10_000
BATCH = 100
"""Of one recording, as the ledger's feed has it."""
ASK_EVERY_S = 0.005
"""Denser, the probes of a slow moment would keep the loop from reading what they wait for."""
IDS = TimeOrderedIds()
CLOCK = SystemClock()
REGISTER = recipients.load()
PAYLOAD: dict[str, JsonValue] = {
    "ticket_id": "019aabcd-1234-7abc-8def-0123456789ab",
    "ad_id": "house-1",
    "address": "192.0.2.1",
    "number": "+493023125000",
    "events": [
        {"kind": kind, "viewed_at": "2026-11-22T18:00:00+00:00", "position_ms": 0}
        for kind in ("page_hit", "start", "first_quartile", "midpoint", "third_quartile")
    ],
}
ASKED = (
    ("ad-partner", Purpose.AD_SETTLEMENT),
    ("ad-partner", Purpose.PERSONALISED_ADVERTISING),
    ("stickyadstv-com", Purpose.PERSONALISED_ADVERTISING),
    ("amazon-adsystem-com", Purpose.PERSONALISED_ADVERTISING),
)


def question(visitor_id: UUID, now: datetime, recipient: str, purpose: Purpose) -> Question:
    """Return what a sender asks."""
    return Question(
        recipient=recipient, purpose=purpose,
        fields=frozenset({"address", "signal.visitor_id", "events.kind"}), visitor_id=visitor_id,
        happened_at=now - timedelta(minutes=1), asked_at=now,
    )  # fmt: skip


def time_decide() -> float:
    """Return decisions a second of the pure rule."""
    now, visitor_id = CLOCK.now(), new_visitor_id()
    facts = ConsentFacts(
        is_fresh=True,
        of_recipients={
            ("marketing", name): (Change(at=now - timedelta(hours=1), in_force=True),)
            for name in REGISTER.by_id
        },
    )
    questions = [question(visitor_id, now, *asked) for asked in ASKED]
    started = time.perf_counter()
    n_permits = 0
    for n in range(N_PURE):
        n_permits += isinstance(decide(questions[n % len(questions)], REGISTER, facts), Permit)
    took_s = time.perf_counter() - started
    assert n_permits == N_PURE * 3 // 4, "the mix is what it was"
    return N_PURE / took_s


async def nobody(verdicts: Sequence[Verdict]) -> None:
    """Stand for the recorder: its cost is the outbox's."""


async def time_clear(recorder: Recorder = nobody, *, is_taken: bool = False) -> float:
    """Return payloads a second through the gate.

    Args:
        is_taken: whether each is asked about once more, and handed out.
    """
    visitor_id = new_visitor_id()
    rules = RuleBook(always(REGISTER), lambda _visitor, _now: ConsentFacts(is_fresh=True))
    gate = Gate(recorder, CLOCK, rules=rules)
    request = Request(
        payload=PAYLOAD, recipient="ad-partner", purpose=Purpose.AD_SETTLEMENT,
        visitor_id=visitor_id, happened_at=CLOCK.now() - timedelta(minutes=1),
    )  # fmt: skip
    batch = [request] * BATCH
    started = time.perf_counter()
    for _ in range(N_CLEARED // BATCH):
        found = await gate.clear_many(batch)
        if is_taken:
            now = CLOCK.now()
            for cleared in found:
                assert isinstance(cleared, Cleared), "settlement needs no consent"
                await cleared.take("ad-partner", now)
    return N_CLEARED / (time.perf_counter() - started)


async def time_send(world: World) -> float:
    """Return payloads a second, recorded and handed out."""
    async with open_bench(world, "ad_ledger", Store) as bench:
        await bench.fetch("SELECT chassis_outbox_maintain()")
        return await time_clear(OutboxRecorder(bench.transaction), is_taken=True)


def consent(visitor_id: UUID, decision: ConsentDecision) -> ConsentV1:
    """Return a decision about marketing."""
    return ConsentV1(
        decision_id=IDS.new(), visitor_id=visitor_id,
        choices=(ConsentChoice(purpose=ConsentPurpose.MARKETING, decision=decision),),
        catalogue_version="2026-11.3", wording_version="2026-11.1", language="de",
        method=ConsentMethod.BANNER,
    )  # fmt: skip


class Withdrawals:
    """Load and probes on one world."""

    def __init__(self, producer: Producer, states: ConsentStates) -> None:
        """Take the way to Kafka and a sender's consents."""
        self._producer = producer
        self._states = states
        self._rules = RuleBook(always(REGISTER), states.facts_of)
        self.waited_ms: list[float] = []

    async def say(self, visitor_id: UUID, decision: ConsentDecision) -> None:
        """Send a decision as the gateway does."""
        event = consent(visitor_id, decision)
        await self._producer.send(
            topics.CONSENT, event, event_id=event.decision_id, time=datetime.now(UTC)
        )

    async def is_permitted(self, visitor_id: UUID, given_at: datetime) -> bool:
        """Ask the gate's rules about a signal of an event while consent was in force."""
        now = CLOCK.now()
        asked = Question(
            recipient="ad-partner", purpose=Purpose.PERSONALISED_ADVERTISING,
            fields=frozenset({"signal.visitor_id"}), visitor_id=visitor_id,
            happened_at=given_at, asked_at=now,
        )  # fmt: skip
        return isinstance(await self._rules(asked), Permit)

    async def probe(self) -> None:
        """Give, wait until it is permitted, withdraw, and time until it is refused."""
        visitor_id = new_visitor_id()
        await self.say(visitor_id, ConsentDecision.GIVEN)
        given_at = CLOCK.now()
        while not await self.is_permitted(visitor_id, given_at):
            await asyncio.sleep(0.01)
        begun = time.perf_counter()
        await self.say(visitor_id, ConsentDecision.WITHDRAWN)
        while await self.is_permitted(visitor_id, given_at):
            await asyncio.sleep(ASK_EVERY_S)
        self.waited_ms.append((time.perf_counter() - begun) * 1000)

    async def load(self, seconds: float) -> int:
        """Send decisions of new visitors at the rate; return how many."""
        sending: list[asyncio.Task[None]] = []
        started, n_sent, per_tick = time.perf_counter(), 0, LOAD_RATE // 50
        while (elapsed := time.perf_counter() - started) < seconds:
            events = [
                (topics.CONSENT, consent(new_visitor_id(), ConsentDecision.GIVEN), IDS.new())
                for _ in range(per_tick)
            ]
            sending.append(
                asyncio.create_task(self._producer.send_many(events, time=datetime.now(UTC)))
            )
            n_sent += per_tick
            await asyncio.sleep(max(0.0, n_sent / LOAD_RATE - elapsed))
        await asyncio.gather(*sending)
        return n_sent

    async def probes(self, seconds: float) -> None:
        """Probe beside each other at the rate."""
        tasks = []
        for _ in range(round(seconds * PROBE_RATE)):
            tasks.append(asyncio.create_task(self.probe()))
            await asyncio.sleep(1 / PROBE_RATE)
        await asyncio.gather(*tasks)


async def time_withdrawals(world: World, seconds: float) -> dict[str, float]:
    """Return the figures of one round under load."""
    process = world.start("consent")
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="bench-gate")
    await sink.start()
    states = ConsentStates(world.kafka_login("ad_ledger"), prefix=world.kafka_prefix, clock=CLOCK)
    reading = asyncio.create_task(states.run())
    try:
        await ready(world, "consent")
        while not states.is_fresh(CLOCK.now()):
            await asyncio.sleep(0.05)
        side = Withdrawals(Producer(sink, service="gateway", timeout_s=60), states)
        await side.load(3)
        started = time.perf_counter()
        n_sent, _ = await asyncio.gather(side.load(seconds), side.probes(seconds))
        rate = n_sent / (time.perf_counter() - started)
        assert process.poll() is None, "consent's process ended"
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await sink.stop()
        process.terminate()
        await asyncio.to_thread(process.wait)
    cuts = statistics.quantiles(side.waited_ms, n=100)
    return {
        "consent_rate": rate, "withdraw_p50": cuts[49], "withdraw_p99": cuts[98],
        "withdraw_max": max(side.waited_ms),
    }  # fmt: skip


async def one_round(seconds: float) -> dict[str, float]:
    """Run all once."""
    figures = {"decide": time_decide(), "clear": await time_clear()}
    world = await make_world(new_prefix(), ["consent", "ad_ledger"])
    try:
        figures["send"] = await time_send(world)
        return figures | await time_withdrawals(world, seconds)
    finally:
        await world.close()


def unit_of(name: str) -> str:
    """Return the unit of a figure."""
    if name.startswith("withdraw"):
        return "ms"
    return "events/s" if name == "consent_rate" else "decisions/s"


def summary(name: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a figure as the report holds it."""
    return {
        "name": name, "unit": unit, "n": len(values), "median": statistics.median(values),
        "min": min(values), "max": max(values),
    }  # fmt: skip


async def run(seconds: float, n_rounds: int) -> dict[str, Any]:
    """Run the rounds and return the report."""
    rounds = []
    for number in range(n_rounds):
        rounds.append(await one_round(seconds))
        print(f"round {number + 1}:", {k: round(v) for k, v in rounds[-1].items()}, flush=True)
    ratios = {
        "gate_decide_per_goal": [r["decide"] / GOAL_DECISIONS for r in rounds],
        "gate_clear_per_goal": [r["clear"] / GOAL_DECISIONS for r in rounds],
        "gate_send_per_goal": [r["send"] / GOAL_DECISIONS for r in rounds],
        "gate_goal_per_withdraw_p99": [GOAL_P99_MS / r["withdraw_p99"] for r in rounds],
    }
    return {
        "name": "gate",
        "machine": machine(),
        "figures": [summary(n, unit_of(n), [r[n] for r in rounds]) for n in rounds[0]],
        "ratios": [
            {k: v for k, v in summary(n, "", values).items() if k != "unit"}
            for n, values in ratios.items()
        ],
    }


def main() -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    report = asyncio.run(run(options.seconds, options.rounds))
    for figure in report["figures"]:
        print(f"{figure['name']:>16} {figure['median']:>10,.0f} {figure['unit']} "
              f"[{figure['min']:,.0f}-{figure['max']:,.0f}]")  # fmt: skip
    for ratio in report["ratios"]:
        print(f"{ratio['name']:>28} {ratio['median']:.2f} [{ratio['min']:.2f}-{ratio['max']:.2f}]")
    path = Path("var/bench/gate.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
