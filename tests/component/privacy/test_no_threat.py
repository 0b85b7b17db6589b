"""Without a threat no address outlives its use: the day under way goes, and is written to again."""

import json
from datetime import date, datetime, timedelta
from uuid import UUID

import pytest

from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from services.ad_ledger.classification import TABLES
from services.ad_ledger.store import Store
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.privacy import calendar
from services.privacy.declare import PartitionOf
from services.privacy.executor import Executor
from services.privacy.invariants import YEARS_KEPT
from tests.support.bench import Bench, new_visitor_id, open_bench
from tests.support.protected import Side, carry_out, open_side
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger", "call_control", "consent")
IDS = TimeOrderedIds()


async def view(bench: Bench[Store]) -> None:
    """Write one view of today with its address."""
    ticket_id = IDS.new()
    await bench.fetch(
        """
        INSERT INTO ad_view (view_day, ticket_id, kind, visitor_id, viewed_at, position_ms,
                             credit_ms, is_capped, tariff_version)
        VALUES ($1, $2, 'start', $3, $4, 0, 0, false, (SELECT max(version) FROM tariff))
        """,
        bench.now.date(),
        ticket_id,
        new_visitor_id(),
        bench.now,
    )
    await bench.fetch(
        "INSERT INTO ad_view_address (address_day, ticket_id, address) VALUES ($1, $2, '::1')",
        bench.now.date(),
        ticket_id,
    )


async def count(bench: Bench[Store]) -> tuple[int, int]:
    rows = await bench.fetch(
        "SELECT (SELECT count(*) FROM ad_view), (SELECT count(*) FROM ad_view_address)"
    )
    return tuple(rows[0])


@pytest.mark.parametrize("service", ["ad_ledger", "call_control"])
@pytest.mark.parametrize("is_waiting", [False, True])
async def test_an_address_that_outlives_its_use_is_seen(
    world: World,
    service: str,
    is_waiting: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """D1, R-D1, R-C3: three hours after its use, though an order said at once; never otherwise."""
    async with open_side(world, service) as side:

        async def seen() -> int:
            query = side.invariants["d1_no_address_without_threat"]
            return int((await side.bench.fetch(query))[0][0])

        (table,) = (t for t in side.tables if t.kind is DataKind.IP_ADDRESS)
        column = {"ad_ledger": "ticket_id", "call_control": "call_id"}[service]
        hours_ago = [at_hours_ago(hours) for hours in (1, 2.9, 3.1, 20)]
        await side.owner.execute("SELECT chassis_day_add($1, $2)", table.name, side.today)
        for id_ in hours_ago:
            await side.owner.execute(
                f"INSERT INTO {table.name} ({table.day_column}, {column}, address)"
                " VALUES ($1, $2, '192.0.2.7')",
                side.today,
                id_,
            )
        assert await seen() == 0, "nothing says that there is no threat"
        now = await side.owner.fetchval("SELECT now()")
        normal, at_once = now.date() - timedelta(days=6), now.date() + timedelta(days=1)
        for before_day, done_at, n_seen in (
            (normal, now, 0),
            (at_once, now - timedelta(hours=3), 0 if not is_waiting else 2),
            (at_once, now, 2),
        ):
            await tell(side, before_day, done_at, is_waiting=is_waiting)
            assert await seen() == n_seen, (before_day, done_at)


async def tell(side: Side, before_day: date, at: datetime, *, is_waiting: bool) -> None:
    """Write an order for addresses, as it stands when it was carried out or while it waits."""
    if is_waiting:
        content = {"kind": "ip_address", "action": "anonymise", "before_day": str(before_day)}
        await side.owner.execute(
            "INSERT INTO retention_later VALUES ($1, $2::text::jsonb, $3)",
            IDS.new(),
            json.dumps(content),
            at,
        )
        return
    await side.owner.execute(
        "INSERT INTO retention_done (order_id, kind, action, before_day, counts, done_at)"
        " VALUES ($1, 'ip_address', 'anonymise', $2, '[]'::text::jsonb, $3)",
        IDS.new(),
        before_day,
        at,
    )


def at_hours_ago(hours: float) -> UUID:
    """Return an id as the gateway would have given it so many hours ago."""
    at_ms = int((SystemClock().now() - timedelta(hours=hours)).timestamp() * 1000)
    return UUID(int=at_ms << 80 | 0x7 << 76 | 0x2 << 62 | IDS.new().int & 0xFFFF)


@pytest.mark.parametrize("service", ["ad_ledger", "call_control", "consent"])
async def test_a_year_that_outlives_its_rule_is_seen(world: World, service: str) -> None:
    """D1, R-D10: from three hours after the third New Year (Berlin) on, in every table of years."""
    async with open_side(world, service) as side:

        async def seen() -> int:
            query = side.invariants["d1_no_year_partition_too_old"]
            return int((await side.bench.fetch(query))[0][0])

        years = [t for t in side.tables if t.partition_of is PartitionOf.YEAR]
        assert years
        assert await seen() == 0
        this_year = calendar.berlin_date(SystemClock().now() - timedelta(hours=3)).year
        for table in years:
            before = await seen()
            change = side.owner.transaction()
            await change.start()
            for year in (this_year - YEARS_KEPT, this_year - YEARS_KEPT - 1):
                await side.owner.execute(
                    "SELECT chassis_range_add($1, $2, $3, $4)",
                    table.name,
                    f"{table.name}_y{year}",
                    f"{year}-01-01",
                    f"{year + 1}-01-01",
                )
            query = side.invariants["d1_no_year_partition_too_old"]
            assert await side.owner.fetchval(query) == before + 1, table.name
            await change.rollback()


@pytest.mark.parametrize("n_sweeps", [1, 3])
async def test_each_sweep_takes_the_addresses_of_today_and_leaves_the_rest(
    world: World, n_sweeps: int
) -> None:
    """R-C3, R-D2, R-D4: on a real stack, not a simulation; what comes later goes with the next."""
    async with open_bench(
        world, "ad_ledger", Store, days_of=("ad_view", "ad_view_address")
    ) as bench:
        n_views, _ = await count(bench)
        for n in range(n_sweeps):
            await view(bench)
            assert await count(bench) == (n_views + n + 1, 1)
            order = RetentionOrderV1(
                order_id=IDS.new(),
                kind=DataKind.IP_ADDRESS,
                action=RetentionAction.DROP,
                before_day=bench.now.date() + timedelta(days=1),
                as_of=bench.now,
            )
            (receipt,) = await carry_out(bench, Executor(TABLES, simulation=False), order)
            assert {entry.table: entry.n_rows for entry in receipt.counts} == {"ad_view_address": 1}
            assert await count(bench) == (n_views + n + 1, 0)
            bench.now += timedelta(hours=1)
