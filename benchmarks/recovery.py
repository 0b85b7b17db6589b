"""How long the path stands still after a fault, on a whole stack with three Kafka nodes.

Goal: consumer killed -> records are read again within 1 s; broker of three killed -> the path flows
again within 3.5 s; PostgreSQL restarted, and everything killed with a backlog, as they are.

Method: probes (consent decisions) are written to Kafka all the while; recovery is the time from the
fault to the moment at which the effect of a probe written after it is read back from Kafka's
`consent-state` (written, consumed, durable, relayed, read). The backlog is ad events, drained
by the ledger after kill -9 of every service; timed from the kill to the last committed poll.

`python -m benchmarks.recovery [--rounds 5] [--backlog 100000]` writes `var/bench/recovery.json`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from benchmarks.ad_view import KEY_JSON, make_events, summary
from deploy.local.layout import ROOT
from deploy.local.stack import LocalStack
from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from services.chassis.errors import Transient
from services.chassis.ids import TimeOrderedIds
from services.chassis.kafka import KafkaLogin
from services.chassis.produce import KafkaSink, Producer
from tests.support.bench import new_visitor_id
from tests.support.machine import machine

IDS = TimeOrderedIds()
PROBE_EVERY_S = 0.05
WAIT_S = 90.0
SERVICES = ("ad_ledger", "call_control", "consent", "retention", "gateway")


class Probes:
    """Writes decisions without end and notes when their state is read back."""

    def __init__(self, login: KafkaLogin) -> None:
        """Take the administrator's login."""
        self._login = login
        self._written: dict[UUID, float] = {}
        self._back: list[tuple[float, float]] = []
        self._changed = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    async def first_after(self, at_s: float) -> float:
        """Return when the first effect of a probe written after an instant was read back."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [back_s for written_s, back_s in self._back if written_s > at_s]
                if found:
                    return min(found)
                self._changed.clear()
                await self._changed.wait()

    async def write(self) -> None:
        """Write for ever, one probe after the other has begun, not ended."""
        sink = KafkaSink(self._login, prefix="", client_id="probes")
        producer = Producer(sink, service="gateway", timeout_s=WAIT_S)
        try:
            while True:
                task = asyncio.create_task(self._write_one(producer))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
                await asyncio.sleep(PROBE_EVERY_S)
        finally:
            await sink.stop()

    async def _write_one(self, producer: Producer) -> None:
        visitor_id = new_visitor_id()
        event = ConsentV1(
            decision_id=IDS.new(),
            visitor_id=visitor_id,
            choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.REFUSED),),
            catalogue_version="2026-11.1",
            wording_version="2026-11.1",
            language="de",
            method=ConsentMethod.BANNER,
        )
        self._written[visitor_id] = time.monotonic()
        with contextlib.suppress(Transient, KafkaError):
            await producer.send(topics.CONSENT, event, event_id=IDS.new(), time=datetime.now(UTC))

    async def read(self) -> None:
        """Read what comes back; a broken connection is made again."""
        while True:
            with contextlib.suppress(KafkaError, OSError):
                await self._read()

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._login.options(),
            group_id=None,
            request_timeout_ms=10_000,
            metadata_max_age_ms=5_000,
        )
        try:
            await consumer.start()
            topic = topics.CONSENT_STATE
            consumer.assign([TopicPartition(topic.name, n) for n in range(topic.partitions)])
            await consumer.seek_to_end()
            async for record in consumer:
                written_s = self._written.pop(UUID(record.key.decode()), None)
                if written_s is not None:
                    self._back.append((written_s, time.monotonic()))
                    self._changed.set()
        finally:
            await consumer.stop()


@contextlib.asynccontextmanager
async def probing(login: KafkaLogin) -> AsyncIterator[Probes]:
    """Probe until the block ends."""
    probes = Probes(login)
    tasks = [asyncio.create_task(probes.read()), asyncio.create_task(probes.write())]
    try:
        await probes.first_after(0.0)
        yield probes
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def recovery_s(
    stack: LocalStack, probes: Probes, target: str, number: signal.Signals
) -> float:
    """Return how long after a fault the path flows again; then everything is well again."""
    await probes.first_after(time.monotonic())
    at_s = time.monotonic()
    stack.kill(target, number)
    found_s = await probes.first_after(at_s) - at_s
    for name in stack.names:
        await stack.wait_ready(name)
    await asyncio.sleep(5.0)  # replicas catch up, leaders move back
    return found_s


async def drain(stack: LocalStack, n_events: int) -> dict[str, float]:
    """Kill everything with a backlog of ad events; return how long it takes to be worked off."""
    now = datetime.now(UTC)
    await stack.stop("ad_ledger")
    sink = KafkaSink(stack.kafka, prefix="", client_id="backlog")
    producer = Producer(sink, service="gateway", timeout_s=WAIT_S)
    events = make_events(n_events, now)
    for start in range(0, len(events), 5000):
        chunk = events[start : start + 5000]
        await producer.send_many([(topics.AD_VIEW, e, IDS.new()) for e in chunk], time=now)
    await sink.stop()
    await stack.start_again("ad_ledger")
    at_s = time.monotonic()
    for name in (*stack.kafka_names, *SERVICES):
        stack.kill(name)
    stack.kill("postgres", signal.SIGQUIT)
    n_done = 0
    while n_done < len(events):
        await asyncio.sleep(0.1)
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            n_done = await n_handled(stack.admin_dsn("ad_ledger"))
    seconds = time.monotonic() - at_s
    return {"backlog_s": seconds, "backlog_rate": len(events) / seconds}


async def n_handled(dsn: str) -> int:
    """Return how many ad events have had their effect."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return int(
            await connection.fetchval(
                "SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offset"
                " WHERE topic = 'ad-view'"
            )
        )
    finally:
        await connection.close()


async def run(n_rounds: int, n_backlog: int) -> dict[str, Any]:
    """Measure and return the report."""
    folder = ROOT / "var" / "bench" / "recovery-stack"
    shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, list[float]] = {"consumer_killed": [], "broker_killed": [], "database": []}
    async with LocalStack(
        folder, kafka_nodes=3, overrides={"AD_LEDGER_VIEW_TICKET_KEYS": KEY_JSON}
    ) as stack:
        async with probing(stack.kafka) as probes:
            for number in range(n_rounds):
                broker = random.choice(stack.kafka_names)
                for name, target, sent in (
                    ("consumer_killed", "consent", signal.SIGKILL),
                    ("broker_killed", broker, signal.SIGKILL),
                    ("database", "postgres", signal.SIGINT),
                ):
                    found[name].append(await recovery_s(stack, probes, target, sent))
                    print(f"round {number + 1}: {name} {found[name][-1]:.2f} s", flush=True)
        drained = await drain(stack, n_backlog)
    shutil.rmtree(folder, ignore_errors=True)
    names = {"database": "database_restarted"}
    return {
        "name": "recovery",
        "machine": machine(),
        "figures": [
            *(summary(names.get(name, name), "s", values) for name, values in found.items()),
            summary(f"all_killed_backlog_of_{n_backlog}", "s", [drained["backlog_s"]]),
            summary("all_killed_backlog_rate", "events/s", [drained["backlog_rate"]]),
        ],
        "ratios": [],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backlog", type=int, default=100_000)
    options = parser.parse_args(arguments)
    report = asyncio.run(run(options.rounds, options.backlog))
    for figure in report["figures"]:
        print(f"{figure['name']:>32} {figure['median']:>10,.2f} {figure['unit']} "
              f"[{figure['min']:,.2f}-{figure['max']:,.2f}] n={figure['n']}")  # fmt: skip
    path = Path("var/bench/recovery.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
