"""What deletion costs at scale: a day, a person, ten thousand orders, and the ad path beside it.

Method: the ledger's own database, executor and handlers, in three parts of its own world each.
- `days`: days of so many ad views each (the busiest table, with its indexes). A visitor is erased
  by an order while all days stand: by index, all tables of the ledger. Then one day goes by an
  order to drop, another one by DELETE and VACUUM; time, write-ahead log and what is left on disk of
  both. These two days are logged as usual; the days between them are filled unlogged, so that they
  can be many.
- `orders`: erasures of one visitor each, given at once in polls as large as the consumer's; the
  visitors with rows are spread evenly among them.
- `path`: batches of the ad path (handler and commit, `benchmarks.ad_view`'s events) while another
  connection drops a day every so often, against the same without; in turns, each with as many.

`python -m benchmarks.deletion [--parts days,orders,path] [--rows 1000000] [--days 2]
[--visitors 20] [--orders 10000] [--rounds 5]` writes `var/bench/deletion.json`; no verdict.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from benchmarks.ad_view import make_events, summary
from schemas import topics
from schemas.ad_view import AdViewV1
from schemas.retention import DataKind, RetentionAction
from services.ad_ledger.store import Store
from services.privacy.erased import unless_erased
from tests.support.bench import Bench, new_visitor_id, open_bench, received
from tests.support.machine import machine
from tests.support.protected import Side, ledger_handlers, open_side
from tests.support.stack import World, make_world, new_prefix

POLL = 1000
"""The consumer's `batch_records_max`."""
VISITORS_SHARE = 10
"""One order in so many is about a visitor with rows."""
BATCHES = 150
"""Of the ad path in each turn; its p99 is the second largest."""
BATCH_EVENTS = 600
DROP_EVERY_S = 0.5
DROPS_MAX = 12
DROP_ROWS = 50_000
_FILL = """
INSERT INTO {table} (view_day, ticket_id, kind, visitor_id, viewed_at, position_ms, credit_ms,
                     tariff_version, is_capped)
SELECT $1::date, gen_random_uuid(), 'start', gen_random_uuid(),
       $1::date + interval '1 hour', 0, 0, '2026-1', false
FROM generate_series(1, $2)
"""
_WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'"
_LONG_S = 1800.0
Figures = dict[str, list[float]]


def partition(day: date) -> str:
    """Return the name of a day's partition of `ad_view`."""
    return f"ad_view_{day:y%Ym%md%d}"


async def cost(side: Side, act: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Return how long something takes (s), and how much write-ahead log it makes (bytes)."""
    before, started_s = await side.owner.fetchval(_WAL), time.monotonic()
    await act()
    took_s, after = time.monotonic() - started_s, await side.owner.fetchval(_WAL)
    return took_s, float(after - before)


async def size_mb(side: Side, day: date) -> float:
    """Return what a day's partition takes on disk, indexes included; 0 where it is gone."""
    name = partition(day)
    found = "SELECT coalesce(pg_total_relation_size(to_regclass($1)), 0)"
    return float(await side.owner.fetchval(found, name)) / 1e6


# ---------------------------------------------------------------------- days


async def fill_day(side: Side, day: date, n_rows: int, *, logged: bool) -> None:
    """Fill a day the quickest way: apart from its table, its indexes built over all of it."""
    name = partition(day)
    await side.owner.execute("SELECT chassis_day_add('ad_view', $1)", day)
    await side.owner.execute(f"ALTER TABLE ad_view DETACH PARTITION {name}")
    await side.owner.execute(
        f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey; DROP INDEX {name}_visitor_id_idx"
    )
    if not logged:
        await side.owner.execute(f"ALTER TABLE {name} SET UNLOGGED")
    await side.owner.execute(_FILL.format(table=name), day, n_rows, timeout=_LONG_S)
    await side.owner.execute(
        f"ALTER TABLE ad_view ATTACH PARTITION {name} "
        f"FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')",
        timeout=_LONG_S,
    )
    await side.owner.execute(f"ANALYZE {name}", timeout=_LONG_S)


async def days_at_scale(
    side: Side, n_rows: int, n_days: int, n_visitors: int, checkpoint: Callable[[], Awaitable[None]]
) -> Figures:
    """Fill, erase, drop, delete; return figures by name."""
    await side.owner.execute("SET synchronous_commit = off; SET maintenance_work_mem = '1GB'")
    days = [side.today - timedelta(days=number) for number in range(1, n_days + 1)]
    oldest, newest = days[-1], days[0]
    started_s = time.monotonic()
    for day in days:
        await fill_day(side, day, n_rows, logged=day in (oldest, newest))
        print(f"filled {day}: {time.monotonic() - started_s:.0f} s", flush=True)
    filled_s = time.monotonic() - started_s
    await checkpoint()
    erasures = [await erase_one(side, UUID(int=number + 1)) for number in range(n_visitors)]
    day_mb = await size_mb(side, oldest)
    order = side.order(RetentionAction.DROP, kinds=(DataKind.AD_USE,), before=oldest + timedelta(1))
    drop_s, drop_wal = await cost(side, lambda: side.handle(order))
    dropped_mb = await size_mb(side, oldest)
    on_newest = "DELETE FROM ad_view WHERE view_day = $1", newest
    delete_s, delete_wal = await cost(side, lambda: side.owner.execute(*on_newest, timeout=_LONG_S))
    deleted_mb = await size_mb(side, newest)
    vacuum_s, vacuum_wal = await cost(
        side, lambda: side.owner.execute(f"VACUUM {partition(newest)}", timeout=_LONG_S)
    )
    return {
        "filled_rows": [float(n_rows * n_days)],
        "filled_s": [filled_s],
        "erase_a_person_s": erasures,
        "day_mb": [day_mb],
        "drop_day_s": [drop_s],
        "drop_day_wal_mb": [drop_wal / 1e6],
        "drop_day_left_mb": [dropped_mb],
        "delete_day_s": [delete_s + vacuum_s],
        "delete_day_wal_mb": [(delete_wal + vacuum_wal) / 1e6],
        "delete_day_left_before_vacuum_mb": [deleted_mb],
        "delete_day_left_mb": [await size_mb(side, newest)],
    }


async def checkpoint(world: World) -> None:
    """Let the server write its pages, so that the next step does not pay for the last one."""
    admin = await asyncpg.connect(world.infrastructure.postgres_admin_dsn)
    try:
        await admin.execute("CHECKPOINT", timeout=_LONG_S)
    finally:
        await admin.close()


async def erase_one(side: Side, visitor_id: UUID) -> float:
    """Give a visitor rows in all tables and erase them; return the seconds."""
    await side.fill(visitor_id, side.today - timedelta(days=1))
    order = side.order(RetentionAction.ERASE, visitor_id)
    started_s = time.monotonic()
    (receipt,) = await side.handle(order)
    took_s = time.monotonic() - started_s
    if not sum(count.n_rows for count in receipt.counts):
        raise RuntimeError("nothing was erased")
    return took_s


# ---------------------------------------------------------------------- orders


async def orders_in_one_go(side: Side, n_orders: int) -> Figures:
    """Give erasures poll by poll; return orders a second, and the milliseconds of each order."""
    with_rows = [new_visitor_id() for _ in range(n_orders // VISITORS_SHARE)]
    for visitor_id in with_rows:
        await side.fill(visitor_id)
    orders = [
        side.order(
            RetentionAction.ERASE,
            new_visitor_id() if n % VISITORS_SHARE else with_rows[n // VISITORS_SHARE],
        )
        for n in range(n_orders)
    ]
    polls_s: list[float] = []
    n_gone = 0
    for start in range(0, n_orders, POLL):
        started_s = time.monotonic()
        receipts = await side.handle(*orders[start : start + POLL])
        polls_s.append(time.monotonic() - started_s)
        n_gone += sum(bool(sum(count.n_rows for count in r.counts)) for r in receipts)
    if n_gone != len(with_rows):
        raise RuntimeError(f"{n_gone} visitors were erased, {len(with_rows)} had rows")
    # an order counts as done with the commit of its poll
    done_s = [sum(polls_s[: n // POLL + 1]) for n in range(n_orders)]
    cuts = statistics.quantiles(done_s, n=100)
    return {
        "orders_per_s": [n_orders / sum(polls_s)],
        "order_cost_ms": [1000 * took_s / POLL for took_s in polls_s],
        "order_done_p50_s": [cuts[49]],
        "order_done_p99_s": [cuts[98]],
        "orders_poll_s": polls_s,
    }


# ---------------------------------------------------------------------- path


async def beside_the_ad_path(world: World, side: Side, n_rounds: int) -> Figures:
    """Run the ad path without and with drops beside it, in turns; return p50, p99 and their ratio.

    The days to drop are filled before each turn, also where nothing is dropped.
    """
    found: Figures = {}
    async with open_bench(world, "ad_ledger", Store) as path:
        for number in range(-1, n_rounds):
            quiet = await turn(path, side, drops=False)
            beside = await turn(path, side, drops=True)
            if number < 0:  # the first ones fill caches and plans
                continue
            for name, value in {
                "path_batch_p50_ms": quiet[0],
                "path_batch_p99_ms": quiet[1],
                "path_beside_drops_p50_ms": beside[0],
                "path_beside_drops_p99_ms": beside[1],
                "path_beside_drops_max_ms": beside[2],
                "drops_beside_path": beside[3],
                "p99_beside_drops_per_quiet": beside[1] / quiet[1],
            }.items():
                found.setdefault(name, []).append(value)
    return found


async def turn(path: Bench[Any], side: Side, *, drops: bool) -> tuple[float, float, float, float]:
    """Return p50, p99 and maximum of the batches (ms), and how many days were dropped."""
    batches = [make_events(BATCH_EVENTS, path.now) for _ in range(BATCHES)]
    days = [side.today - timedelta(days=7 + number) for number in range(DROPS_MAX, 0, -1)]
    for day in days:
        for table in side.tables:
            if table.drop_function == "privacy_day_drop":
                await side.owner.execute("SELECT chassis_day_add($1, $2)", table.name, day)
        await side.owner.execute(_FILL.format(table="ad_view"), day, DROP_ROWS)
    over = asyncio.Event()
    dropping = asyncio.create_task(drop_in_turn(side, days if drops else [], over))
    took_ms = [await one_batch(path, events) for events in batches]
    over.set()
    n_dropped = await dropping
    await drop(side, days[-1])
    cuts = statistics.quantiles(took_ms, n=100)
    return cuts[49], cuts[98], max(took_ms), float(n_dropped)


async def one_batch(path: Bench[Any], events: Sequence[AdViewV1]) -> float:
    """Handle and commit one poll of ad views; return the milliseconds."""
    batch = [received(topics.AD_VIEW, event, path.now) for event in events]
    handle = unless_erased(HANDLERS.on_ad_views)
    started_s = time.monotonic()
    async with path.transaction() as ctx:
        await handle(ctx, batch)
    return 1000 * (time.monotonic() - started_s)


async def drop_in_turn(side: Side, days: Sequence[date], over: asyncio.Event) -> int:
    """Drop a day every so often until the turn is over; return how many."""
    for number, day in enumerate(days):
        if over.is_set():
            return number
        await drop(side, day)
        await asyncio.sleep(DROP_EVERY_S)
    return len(days)


async def drop(side: Side, day: date) -> None:
    """Order the day and all before it to be dropped; tried again where it had to give way."""
    before = day + timedelta(days=1)
    order = side.order(RetentionAction.DROP, kinds=(DataKind.AD_USE,), before=before)
    if not await side.handle(order):
        while not await side.retry():
            await asyncio.sleep(DROP_EVERY_S)


HANDLERS = ledger_handlers()


# ---------------------------------------------------------------------- all


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts asked for and return the report."""
    found: Figures = {}
    for part in options.parts.split(","):
        world = await make_world(new_prefix(), ("ad_ledger",))
        try:
            async with open_side(world, "ad_ledger") as side:
                if part == "days":
                    found |= await days_at_scale(
                        side,
                        options.rows,
                        options.days,
                        options.visitors,
                        partial(checkpoint, world),
                    )
                elif part == "orders":
                    found |= await orders_in_one_go(side, options.orders)
                else:
                    found |= await beside_the_ad_path(world, side, options.rounds)
        finally:
            await world.close()
    ratios = {name: found.pop(name) for name in list(found) if "_per_quiet" in name}
    if "drop_day_s" in found:
        for what in ("s", "wal_mb"):
            per_drop = found[f"delete_day_{what}"][0] / max(found[f"drop_day_{what}"][0], 0.001)
            ratios[f"delete_per_drop_{'time' if what == 's' else 'wal'}"] = [per_drop]
    return {
        "name": "deletion",
        "machine": machine(),
        "figures": [summary(name, name.rpartition("_")[2], vs) for name, vs in found.items()],
        "ratios": [
            {k: v for k, v in summary(name, "", values).items() if k != "unit"}
            for name, values in ratios.items()
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="days,orders,path")
    parser.add_argument("--rows", type=int, default=1_000_000, help="ad views a day")
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--visitors", type=int, default=20, help="erased one after the other")
    parser.add_argument("--orders", type=int, default=10_000, help="erasures given in one go")
    parser.add_argument("--rounds", type=int, default=5, help="of the ad path beside drops")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts.split(",")) - {"days", "orders", "path"}:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    report = asyncio.run(run(options))
    for part in ("figures", "ratios"):
        for one in report[part]:
            span = f"[{one['min']:.3f}-{one['max']:.3f}] n={one['n']}"
            print(f"{one['name']:>34} {one['median']:>14,.3f} {span}")
    path = Path("var/bench/deletion.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
