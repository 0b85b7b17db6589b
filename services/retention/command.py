"""`python -m services.retention sweep` and `schedule`: what a person types."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from schemas.retention import DataKind
from services.chassis.clock import Clock, SystemClock, sleep
from services.chassis.command import transaction
from services.chassis.context import Context
from services.chassis.errors import Transient
from services.retention import domain, kafka, schedule, wire
from services.retention.declaration import DECLARATION
from services.retention.domain import KAFKA, Count, Receipt, Standing, Sweep
from services.retention.handlers import take_receipts
from services.retention.settings import Settings
from services.retention.store import Store
from services.retention.sweep import issue

EXIT_REFUSED = 2
EXIT_NOT_COMPLETE = 3
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line."""

    as_of: datetime
    again: bool
    wait: bool
    timeout_s: float
    json: bool


def parse(arguments: Sequence[str]) -> Request:
    """Read the arguments of `sweep`; a wrong one ends the process with status 2."""
    parser = argparse.ArgumentParser(prog="python -m services.retention sweep")
    parser.add_argument("--as-of", required=True, type=_instant, help="2026-11-30T00:00:00Z")
    parser.add_argument("--again", action="store_true", help="also what was ordered before")
    parser.add_argument("--wait", action="store_true", help="until all have answered")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="how long --wait waits")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    found = parser.parse_args(arguments)
    return Request(
        as_of=found.as_of,
        again=found.again,
        wait=found.wait,
        timeout_s=found.timeout_s,
        json=found.json,
    )


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def print_schedule(_: Sequence[str]) -> int:
    """Print the schedule in force."""
    found = schedule.load(Settings.load().schedule_path)
    sys.stdout.write(f"schedule {found.version}\n{wire.columns(schedule.table(found))}\n")
    return 0


async def sweep(arguments: Sequence[str]) -> int:
    """Make a sweep; see `Sweeper.run`."""
    return await Sweeper(Settings.load(), SystemClock()).run(parse(arguments))


class Sweeper:
    """A sweep by hand, beside the running service or without it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Take the service's settings and a clock."""
        self._settings = settings
        self._clock = clock
        self._url = settings.secret("database_url")

    async def run(self, request: Request) -> int:
        """Issue the orders, wait where asked to, print; return the exit status.

        0: issued, or with `--wait` complete. 2: refused. 3: not complete in time. In a simulation
        that looks ahead the topics are emptied too, once the services have answered: their last
        events go with the rest. That needs waiting, asked for or not.
        """
        settings = self._settings
        refusal = domain.refuse_as_of(
            request.as_of, now=self._clock.now(), simulation=settings.simulation
        )
        if refusal is not None:
            sys.stderr.write(f"retention: sweep refused: {refusal.value}\n")
            return EXIT_REFUSED
        try:
            rules = schedule.load(settings.schedule_path)
            async with self._transaction() as ctx:
                await ctx.store.prepare_outbox()
                sweep_id = await issue(
                    ctx,
                    rules,
                    request.as_of,
                    overdue_after=timedelta(seconds=settings.order_overdue_after_s),
                    again=request.again,
                )
        except schedule.ScheduleError as error:
            sys.stderr.write(f"retention: sweep refused: {error}\n")
            return EXIT_REFUSED
        found = await self._read(sweep_id)
        needs_kafka = any(KAFKA in standing.order.expected for standing in found.orders)
        if request.wait or needs_kafka:
            found = await self._finish(sweep_id, request.timeout_s)
        sys.stdout.write(f"{wire.as_json(found) if request.json else wire.as_table(found)}\n")
        waited = request.wait or needs_kafka
        return EXIT_NOT_COMPLETE if waited and not domain.is_complete(found) else 0

    async def _finish(self, sweep_id: UUID, timeout_s: float) -> Sweep:
        """Wait until nobody is silent; empty the topics when only Kafka is."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            found = await self._read(sweep_id)
            left_s = deadline - self._clock.monotonic()
            if domain.is_complete(found) or left_s < 0:
                return found
            if _silent(found) == {KAFKA}:
                try:
                    await self._empty_topics(found, left_s)
                except Transient as error:
                    sys.stderr.write(f"retention: {error}\n")
                    return found
                continue
            await sleep(_POLL_S)

    async def _empty_topics(self, found: Sweep, timeout_s: float) -> None:
        assert self._settings.simulation
        emptied = await kafka.empty(
            self._settings.kafka,
            self._settings.kafka_prefix,
            kafka.PERSONAL,
            timeout_s=timeout_s,
            clock=self._clock,
        )
        async with self._transaction() as ctx:
            await take_receipts(
                ctx,
                [
                    Receipt(
                        order_id=standing.order.order_id,
                        service=KAFKA,
                        kind=standing.order.kind,
                        counts=_counts(DataKind(standing.order.kind), emptied),
                        done_at=ctx.now,
                    )
                    for standing in found.orders
                    if KAFKA in _silent_of(standing)
                ],
            )

    async def _read(self, sweep_id: UUID) -> Sweep:
        async with self._transaction() as ctx:
            found = await ctx.store.sweep(sweep_id)
        assert found is not None
        return found

    def _transaction(self) -> AbstractAsyncContextManager[Context[Store]]:
        return transaction(self._url, DECLARATION.name, Store, self._clock)


def _silent_of(standing: Standing) -> tuple[str, ...]:
    return domain.silent(standing.order, standing.settled)


def _silent(found: Sweep) -> set[str]:
    return {service for standing in found.orders for service in _silent_of(standing)}


def _counts(kind: DataKind, emptied: Mapping[str, kafka.Emptied]) -> tuple[Count, ...]:
    """Return what the topics that carry a kind held; a topic of two kinds counts for both."""
    return tuple(
        Count(
            table=topic.name.replace("-", "_"),
            n_partitions=emptied[topic.name].n_partitions,
            n_rows=emptied[topic.name].n_records,
        )
        for topic in kafka.PERSONAL
        if kind in topic.kinds
    )
