"""Without a threat no address outlives its use: the day under way goes, and is written to again."""

from datetime import timedelta

import pytest

from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from services.ad_ledger.classification import TABLES
from services.ad_ledger.store import Store
from services.chassis.ids import TimeOrderedIds
from services.privacy.executor import Executor
from tests.support.bench import Bench, new_visitor_id, open_bench
from tests.support.protected import carry_out
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger",)
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
