"""What deletion costs at scale: the drop of a day beside DELETE, and the erasure of one person.

Method: the ledger's own database and executor, days of so many ad views each (the busiest table,
with its indexes). One day goes by an order to drop, another one by DELETE and VACUUM; time and
write-ahead log of both. Before that, a visitor with six views is erased by an order while all days
stand: by index, all tables of the ledger. `python -m benchmarks.deletion [--rows 1000000]
[--days 2] [--visitors 20]` writes `var/bench/deletion.json`; no verdict.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.ad_view import summary
from schemas.retention import DataKind, RetentionAction
from tests.support.machine import machine
from tests.support.protected import Side, open_side
from tests.support.stack import make_world, new_prefix

_FILL = """
INSERT INTO ad_view (view_day, ticket_id, kind, visitor_id, viewed_at, position_ms, credit_ms,
                     tariff_version, is_capped)
SELECT $1::date, gen_random_uuid(), 'start', gen_random_uuid(),
       $1::date + interval '1 hour', 0, 0, '2026-1', false
FROM generate_series(1, $2)
"""
_WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'"


async def cost(side: Side, act: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """Return how long something takes (s), and how much write-ahead log it makes (bytes)."""
    before, started_s = await side.owner.fetchval(_WAL), time.monotonic()
    await act()
    took_s, after = time.monotonic() - started_s, await side.owner.fetchval(_WAL)
    return took_s, float(after - before)


async def measure(side: Side, n_rows: int, n_days: int, n_visitors: int) -> dict[str, list[float]]:
    """Fill, erase, drop, delete; return figures by name."""
    days = [side.today - timedelta(days=number) for number in range(1, n_days + 1)]
    for day in days:
        await side.owner.execute("SELECT chassis_day_add('ad_view', $1)", day)
        await side.owner.execute(_FILL, day, n_rows, timeout=600)
    await side.owner.execute("ANALYZE ad_view", timeout=600)
    erasures = [await erase_one(side, UUID(int=number + 1)) for number in range(n_visitors)]
    oldest, newest = days[-1], days[0]
    order = side.order(RetentionAction.DROP, kinds=(DataKind.AD_USE,), before=oldest + timedelta(1))
    drop_s, drop_wal = await cost(side, lambda: side.handle(order))

    async def delete() -> None:
        await side.owner.execute("DELETE FROM ad_view WHERE view_day = $1", newest, timeout=600)
        await side.owner.execute("VACUUM ad_view", timeout=600)

    delete_s, delete_wal = await cost(side, delete)
    return {
        "erase_a_person_s": erasures,
        "drop_day_s": [drop_s],
        "drop_day_wal_mb": [drop_wal / 1e6],
        "delete_day_s": [delete_s],
        "delete_day_wal_mb": [delete_wal / 1e6],
    }


async def erase_one(side: Side, visitor_id: UUID) -> float:
    """Give a visitor rows in all tables and erase them; return the seconds."""
    await side.fill(visitor_id)
    order = side.order(RetentionAction.ERASE, visitor_id)
    started_s = time.monotonic()
    (receipt,) = await side.handle(order)
    took_s = time.monotonic() - started_s
    if not sum(count.n_rows for count in receipt.counts):
        raise RuntimeError("nothing was erased")
    return took_s


async def run(n_rows: int, n_days: int, n_visitors: int) -> dict[str, Any]:
    """Measure and return the report."""
    world = await make_world(new_prefix(), ("ad_ledger",))
    try:
        async with open_side(world, "ad_ledger") as side:
            found = await measure(side, n_rows, n_days, n_visitors)
    finally:
        await world.close()
    ratio = found["delete_day_s"][0] / found["drop_day_s"][0]
    wal = found["delete_day_wal_mb"][0] / max(found["drop_day_wal_mb"][0], 0.001)
    return {
        "name": "deletion",
        "machine": machine(),
        "figures": [
            summary("rows_a_day", "rows", [float(n_rows)]),
            *(summary(name, name.rpartition("_")[2], values) for name, values in found.items()),
        ],
        "ratios": [
            {"name": name, "n": 1, "median": value, "min": value, "max": value}
            for name, value in (("delete_per_drop_time", ratio), ("delete_per_drop_wal", wal))
        ],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="ad views a day")
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--visitors", type=int, default=20, help="erased one after the other")
    options = parser.parse_args(arguments)
    report = asyncio.run(run(options.rows, options.days, options.visitors))
    for part in ("figures", "ratios"):
        for one in report[part]:
            span = f"[{one['min']:.3f}-{one['max']:.3f}] n={one['n']}"
            print(f"{one['name']:>22} {one['median']:>14,.3f} {span}")
    path = Path("var/bench/deletion.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
