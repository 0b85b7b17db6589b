"""What waits for the ad partner, on real PostgreSQL: batches keep their rows and key (R-A4)."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest

from services.ad_ledger.classification import TABLES
from services.ad_ledger.partner import BACK_OFF_MAX_S, back_off
from services.ad_ledger.partner_store import Batch, LedgerStore, Step
from services.privacy.declare import by_day
from tests.support.bench import IDS, Bench, new_visitor_id, open_bench
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger",)
SECOND = timedelta(seconds=1)


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[LedgerStore]]:
    async with open_bench(world, "ad_ledger", LedgerStore, days_of=by_day(TABLES)) as found:
        yield found


async def add(bench: Bench[LedgerStore], *, is_recorded: bool = True) -> UUID:
    """Note a step; the ledger has recorded it, or not."""
    ticket_id, day = IDS.new(), bench.now.date()
    if is_recorded:
        await bench.fetch(
            "INSERT INTO ad_view VALUES ($1, $2, 'start', $3, $4, 0, 0, '2026-1', false)",
            day, ticket_id, new_visitor_id(), bench.now,
        )  # fmt: skip
    async with bench.transaction() as ctx:
        step = Step(day=day, ticket_id=ticket_id, kind="start", ad_id="house-1")
        await ctx.store.partner.enqueue([step, step])
        await ctx.store.partner.enqueue([step])
    return ticket_id


async def fill(bench: Bench[LedgerStore], *, until: timedelta = SECOND) -> tuple[Batch, int]:
    async with bench.transaction() as ctx:
        batch = Batch(batch_day=ctx.now.date(), batch_id=ctx.ids.new(), n_tries=1)
        return batch, await ctx.store.partner.fill(batch, 100, ctx.now + until)


async def tickets(bench: Bench[LedgerStore], batch: Batch) -> list[UUID]:
    async with bench.transaction() as ctx:
        return [usage.ticket_id for usage in await ctx.store.partner.usages(batch)]


async def due(bench: Bench[LedgerStore]) -> Batch | None:
    async with bench.transaction() as ctx:
        return await ctx.store.partner.due(ctx.now, ctx.now + SECOND)


async def test_a_batch_keeps_its_rows_until_it_is_closed(bench):
    """R-A4: what waits is in one batch, once; what the ledger has not recorded is in none."""
    ticket_id = await add(bench)
    await add(bench, is_recorded=False)
    batch, n_filled = await fill(bench)
    assert (n_filled, await tickets(bench, batch)) == (1, [ticket_id])
    assert (await fill(bench))[1] == 0
    assert await due(bench) is None, "somebody is about to send it"
    bench.now += SECOND
    again = await due(bench)
    assert again is not None
    assert (again.batch_id, again.n_tries) == (batch.batch_id, 2)
    assert await due(bench) is None
    async with bench.transaction() as ctx:
        await ctx.store.partner.close(batch, [], ctx.now)
    bench.now += 10 * SECOND
    assert await due(bench) is None
    async with bench.transaction() as ctx:
        await ctx.store.partner.requeue()
    assert (await fill(bench))[1] == 0, "what is reported is told no more"


async def test_what_was_set_aside_while_its_batch_was_under_way_waits_again(bench):
    """R-G4: a restriction takes the row out, the batch ends, the row comes back as it was."""
    ticket_id = await add(bench)
    batch, _ = await fill(bench)
    async with bench.transaction() as ctx:
        await ctx.store.partner.requeue()
    assert await tickets(bench, batch) == [ticket_id], "its batch is open"
    await bench.fetch(
        "UPDATE partner_batch SET is_open = false, ended_at = now() WHERE batch_id = $1",
        batch.batch_id,
    )
    async with bench.transaction() as ctx:
        await ctx.store.partner.requeue()
    later, n_filled = await fill(bench)
    assert (n_filled, await tickets(bench, later)) == (1, [ticket_id])
    async with bench.transaction() as ctx:
        await ctx.store.partner.close(later, [ticket_id], ctx.now)
    (row,) = await bench.fetch("SELECT state FROM partner_report WHERE ticket_id = $1", ticket_id)
    assert row["state"] == "refused"


def test_a_batch_waits_longer_each_time_and_never_for_hours():
    """R-A4: nothing is given up."""
    waits = [back_off(n) for n in range(1, 30)]
    assert waits[:3] == [SECOND, 2 * SECOND, 4 * SECOND]
    assert waits == sorted(waits)
    assert waits[-1] == timedelta(seconds=BACK_OFF_MAX_S)
