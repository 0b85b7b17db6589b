"""Call set-up and cut error of call control, with and without load on Kafka and PostgreSQL.

Method: a whole stack; telephones that answer at once and never hang up. Visitors have watched an ad
of two seconds; calls are asked for at a steady rate, in turns with and without load: commands for
unknown calls at a steady rate, which the same process reads, decides in its database and refuses,
beside ad views for the ledger. Set-up is from the request's instant to both legs connected, by call
control's own rows (a reservation at the ledger and two SIP legs lie between); the cut error is talk
less reserved time of calls that were cut at their limit.

`python -m benchmarks.calls [--rounds 3] [--calls 60]` writes `var/bench/calls.json`; no verdict.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from benchmarks.ad_view import KEY_JSON, make_events, summary
from deploy.local.layout import ROOT
from deploy.local.stack import LocalStack
from deploy.phones import Phone, PhoneExchange
from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from schemas.call import CallCommand, CallCommandV1, CallRequestV1
from services.chassis.ids import TimeOrderedIds
from services.chassis.produce import KafkaSink, Producer
from tests.support.bench import new_visitor_id
from tests.support.machine import machine

IDS = TimeOrderedIds()
AD_MS = 2_000
CALLS_PER_S = 5.0
COMMANDS_PER_S = 500
VIEWS_PER_S = 500
BEAT_S = 0.1
VIEW = ("page_hit", "start", "first_quartile", "midpoint", "third_quartile", "complete")


async def earn(producer: Producer, visitors: Sequence[UUID]) -> None:
    """Let visitors watch an ad."""
    keys, now = view_ticket.KeyRing.from_json(KEY_JSON), datetime.now(UTC)
    events = []
    for visitor_id in visitors:
        ticket = view_ticket.ViewTicket(
            ticket_id=IDS.new(), visitor_id=visitor_id, ad_id="bench", duration_ms=AD_MS,
            issued_at=now - timedelta(milliseconds=AD_MS + 1000),
            expires_at=now + timedelta(hours=1),
        )  # fmt: skip
        text = view_ticket.issue(keys, ticket)
        events += [
            AdViewV1(visitor_id=visitor_id, ticket=text, kind=AdEventKind(kind),
                     position_ms=AD_MS, address="192.0.2.1")
            for kind in VIEW
        ]  # fmt: skip
    await producer.send_many([(topics.AD_VIEW, e, IDS.new()) for e in events], time=now)


async def load(producer: Producer) -> None:
    """Send commands for calls that nobody knows, and ad views, until cancelled."""
    while True:
        now = datetime.now(UTC)
        commands = [
            CallCommandV1(
                call_id=IDS.new(), visitor_id=new_visitor_id(), command=CallCommand.HANG_UP
            )
            for _ in range(int(COMMANDS_PER_S * BEAT_S))
        ]
        views = make_events(int(VIEWS_PER_S * BEAT_S), now)
        await producer.send_many([(topics.CALL_COMMAND, e, IDS.new()) for e in commands], time=now)
        await producer.send_many([(topics.AD_VIEW, e, IDS.new()) for e in views], time=now)
        spent_s = (datetime.now(UTC) - now).total_seconds()
        await asyncio.sleep(max(0.0, BEAT_S - spent_s))


@contextlib.asynccontextmanager
async def loaded(producer: Producer, *, is_on: bool) -> AsyncIterator[None]:
    """Keep the load on for as long as the block lasts."""
    task = asyncio.create_task(load(producer)) if is_on else None
    try:
        if task is not None:
            await asyncio.sleep(2.0)
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def one_turn(stack: LocalStack, producer: Producer, n_calls: int) -> dict[str, list[float]]:
    """Ask for calls and return set-up and cut errors in ms."""
    visitors = [new_visitor_id() for _ in range(n_calls)]
    await earn(producer, visitors)
    await asyncio.sleep(2.0)
    ids = []
    for number, visitor_id in enumerate(visitors):
        call_id = IDS.new()
        ids.append(call_id)
        request = CallRequestV1(
            call_id=call_id, visitor_id=visitor_id, address="192.0.2.1",
            callback_number=f"+493023125{number % 400:03}",
            destination_number=f"+493023125{500 + number % 400:03}",
        )  # fmt: skip
        await producer.send(
            topics.CALL_REQUEST, request, event_id=IDS.new(), time=datetime.now(UTC)
        )
        await asyncio.sleep(1 / CALLS_PER_S)
    return await ended(stack, ids)


async def ended(stack: LocalStack, ids: Sequence[UUID]) -> dict[str, list[float]]:
    """Wait for the calls' ends and read what they were like."""
    connection = await asyncpg.connect(stack.admin_dsn("call_control"))
    try:
        rows: list[Any] = []
        for _ in range(300):
            rows = await connection.fetch(
                "SELECT * FROM call WHERE call_id = ANY($1) AND state = 'ended'", list(ids)
            )
            if len(rows) == len(ids):
                break
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
    good = [row for row in rows if row["connected_at"] is not None]
    cut = [row for row in good if row["reason"] == "talk_limit"]
    return {
        "setup_ms": [
            (row["connected_at"] - row["requested_at"]).total_seconds() * 1000 for row in good
        ],
        "cut_error_ms": [float(row["talk_ms"] - row["reserved_ms"]) for row in cut],
        "not_connected": [float(len(ids) - len(good))],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def run(n_rounds: int, n_calls: int) -> dict[str, Any]:
    """Measure and return the report."""
    folder = ROOT / "var" / "bench" / "calls-stack"
    shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, list[float]] = defaultdict(list)
    setting = {"AD_LEDGER_VIEW_TICKET_KEYS": KEY_JSON}
    services = ["ad_ledger", "call_control"]
    async with LocalStack(folder, services=services, overrides=setting) as stack:
        exchange = PhoneExchange(
            "127.0.0.1",
            stack.port("trunk"),
            new_phone=lambda number: Phone(number=number, is_silent=True, answer_after_s=0.0),
        )
        await exchange.start()
        sink = KafkaSink(stack.kafka, prefix="", client_id="bench")
        producer = Producer(sink, service="gateway", timeout_s=60)
        try:
            for _ in range(n_rounds):
                for name, is_on in (("idle", False), ("loaded", True)):
                    async with loaded(producer, is_on=is_on):
                        turn = await one_turn(stack, producer, n_calls)
                    for what, values in turn.items():
                        found[f"{name}.{what}"] += values
                    found["load_average"].append(os.getloadavg()[0])
        finally:
            await sink.stop()
            await exchange.stop()
    shutil.rmtree(folder, ignore_errors=True)
    return report_of(found)


def report_of(found: dict[str, list[float]]) -> dict[str, Any]:
    """Return the report: medians, p99 and the ratio of loaded to idle set-up."""
    figures = []
    for name, values in found.items():
        figures.append(summary(name, name.rpartition("_")[2], values))
        if name.endswith("_ms"):
            figures.append(summary(f"{name}.p99", "ms", [percentile(values, 0.99)]))
    ratio = statistics.median(found["loaded.setup_ms"]) / statistics.median(found["idle.setup_ms"])
    return {
        "name": "calls",
        "machine": machine(),
        "figures": figures,
        "ratios": [
            {"name": "setup_loaded_per_idle", "n": 1, "median": ratio, "min": ratio, "max": ratio}
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=60)
    options = parser.parse_args(arguments)
    report = asyncio.run(run(options.rounds, options.calls))
    for figure in report["figures"]:
        span = f"[{figure['min']:.1f}-{figure['max']:.1f}]"
        print(f"{figure['name']:>28} {figure['median']:>9.1f} {span} n={figure['n']}")
    for ratio in report["ratios"]:
        print(f"{ratio['name']:>28} {ratio['median']:>9.2f}")
    path = Path("var/bench/calls.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
