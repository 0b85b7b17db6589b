"""How long the path stands still after a fault, on a whole stack with three Kafka nodes.

Goal: consumer killed -> its standby reads within 1 s (measured without one as well); broker of
three killed -> the path flows again within 3.5 s; PostgreSQL restarted, and everything killed with
a backlog, as they are.

Method: probes (consent decisions) are written to Kafka all the while; recovery is the time from the
fault to the moment at which the effect of a probe written after it is read back from Kafka's
`consent-state` (written, consumed, durable, relayed, read): of the first probe, and, for a broker,
of one probe in every partition (two thirds of them have their leader elsewhere). A consumer's
recovery has two parts, parted by its first log line: the process (supervisor, interpreter,
imports) and taking over (database, Kafka, static membership). The backlog is ad events that a
frozen ledger has left untouched; everything is killed -9, and timed to the last committed poll.
All of it depends on what else the machine does: the load average is among the figures.

`python -m benchmarks.recovery [--rounds 5] [--backlog 100000]` writes `var/bench/recovery.json`.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
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
STANDBY = "consent-standby"
SERVICES = ("ad_ledger", "call_control", "consent", "retention", "gateway")


class Probes:
    """Writes decisions without end and notes when their state is read back."""

    def __init__(self, login: KafkaLogin) -> None:
        """Take the administrator's login."""
        self._login = login
        self._written: dict[UUID, float] = {}
        self._back: list[tuple[float, float, int]] = []
        self._changed = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

    async def first_after(self, at_s: float, n_partitions: int = 1) -> float:
        """Return when effects of probes written after an instant were read back.

        Args:
            n_partitions: in how many partitions there must be one.

        Raises:
            TimeoutError: not within `WAIT_S`.
        """
        async with asyncio.timeout(WAIT_S):
            while True:
                firsts: dict[int, float] = {}
                for written_s, back_s, part in self._back:
                    if written_s > at_s:
                        firsts[part] = min(back_s, firsts.get(part, back_s))
                if len(firsts) >= n_partitions:
                    return sorted(firsts.values())[n_partitions - 1]
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
                    self._back.append((written_s, time.monotonic(), record.partition))
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


class Recovery(NamedTuple):
    """How long after a fault the path flows again: anywhere, and in every partition."""

    killed_at: datetime
    first_s: float
    all_s: float


async def recovery_s(
    stack: LocalStack, probes: Probes, target: str, number: signal.Signals
) -> Recovery:
    """Do a fault and measure it; when this returns, everything is well again."""
    await probes.first_after(time.monotonic())
    killed_at, at_s = datetime.now(UTC), time.monotonic()
    stack.kill(target, number)
    first_s = await probes.first_after(at_s) - at_s
    all_s = await probes.first_after(at_s, topics.CONSENT_STATE.partitions) - at_s
    for name in stack.names:
        if name != STANDBY:  # it does not run always
            await stack.wait_ready(name)
    await asyncio.sleep(5.0)  # replicas catch up, leaders move back
    return Recovery(killed_at, first_s, all_s)


def started_after_s(log: Path, killed_at: datetime) -> float:
    """Return how long after a kill the next process wrote its first log line."""
    for line in reversed(log.read_text(encoding="utf-8").splitlines()):
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if said.get("event") == "starting":
                return (datetime.fromisoformat(said["timestamp"]) - killed_at).total_seconds()
    raise ValueError(f"{log} does not say when the process started")


async def standby_s(stack: LocalStack, probes: Probes) -> float:
    """Return the recovery of a consumer that has a standby; the standby is gone afterwards."""
    if STANDBY in stack.names:
        await stack.start_again(STANDBY)
    else:
        await stack.add_standby("consent")
    found = (await recovery_s(stack, probes, "consent", signal.SIGKILL)).first_s
    await stack.stop(STANDBY)
    await stack.wait_ready("consent")
    return found


async def rounds(stack: LocalStack, n_rounds: int) -> dict[str, list[float]]:
    """Return seconds by figure, the faults taking turns so that all meet the same machine."""
    found: dict[str, list[float]] = defaultdict(list)

    def note(name: str, value: float) -> None:
        found[name].append(value)
        print(f"{name} {value:.2f}", flush=True)

    async with probing(stack.kafka) as probes:
        for _ in range(n_rounds):
            note("load_average", os.getloadavg()[0])
            consumer = await recovery_s(stack, probes, "consent", signal.SIGKILL)
            process_s = started_after_s(stack.log_path("consent"), consumer.killed_at)
            note("consumer_killed", consumer.first_s)
            note("consumer_killed.process", process_s)
            note("consumer_killed.taking_over", consumer.first_s - process_s)
            note("standby_takes_over", await standby_s(stack, probes))
            name = random.choice(stack.kafka_names)
            broker = await recovery_s(stack, probes, name, signal.SIGKILL)
            note("broker_killed", broker.first_s)
            note("broker_killed.every_partition", broker.all_s)
            database = await recovery_s(stack, probes, "postgres", signal.SIGINT)
            note("database_restarted", database.first_s)
    return found


async def drain(stack: LocalStack, n_events: int) -> tuple[int, float]:
    """Kill everything with a backlog of ad events.

    Returns:
        How many events there were, and the seconds until the last of them was worked off.
    """
    now = datetime.now(UTC)
    # frozen, not stopped: it is killed with all the others, and has touched nothing by then
    stack.kill("ad_ledger", signal.SIGSTOP)
    sink = KafkaSink(stack.kafka, prefix="", client_id="backlog")
    producer = Producer(sink, service="gateway", timeout_s=WAIT_S)
    events = make_events(n_events, now)
    for start in range(0, len(events), 5000):
        chunk = events[start : start + 5000]
        await producer.send_many([(topics.AD_VIEW, e, IDS.new()) for e in chunk], time=now)
    await sink.stop()
    dsn = stack.admin_dsn("ad_ledger")
    if n_before := await n_handled(dsn):
        raise RuntimeError(f"{n_before} events were handled before the kill")
    at_s = time.monotonic()
    for name in (*stack.kafka_names, *SERVICES):
        stack.kill(name)
    stack.kill("postgres", signal.SIGQUIT)
    n_done = 0
    while n_done < len(events):
        await asyncio.sleep(0.1)
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            n_done = await n_handled(dsn)
    return len(events), time.monotonic() - at_s


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
    async with LocalStack(
        folder, kafka_nodes=3, overrides={"AD_LEDGER_VIEW_TICKET_KEYS": KEY_JSON}
    ) as stack:
        found = await rounds(stack, n_rounds)
        n_events, seconds = await drain(stack, n_backlog)
    shutil.rmtree(folder, ignore_errors=True)
    load = found.pop("load_average", [])
    return {
        "name": "recovery",
        "machine": machine(),
        "figures": [
            *(summary(name, "s", values) for name, values in found.items()),
            summary(f"all_killed_backlog_of_{n_events}", "s", [seconds]),
            summary("all_killed_backlog_rate", "events/s", [n_events / seconds]),
            summary("load_average", "processes", [*load, os.getloadavg()[0]]),
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
