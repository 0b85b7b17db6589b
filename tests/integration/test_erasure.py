"""An erasure that meets a call under way, with real processes (R-G3, L1, L5).

Goal: the order waits without a receipt, survives kill -9, and is carried out by the service itself
once the call's reservation has ended; the same of one that was only noted. Method: the ledger as a
process; the reservation's lease is made to lapse, so that the ledger's own expiry ends it.
"""

import pytest

from schemas import topics
from schemas.retention import RetentionAction
from services.chassis.clock import SystemClock
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.protected import Side, open_side, somebody_at_work
from tests.support.running import ready, send
from tests.support.stack import World

pytestmark = pytest.mark.integration
WORLD_SERVICES = ("ad_ledger",)


async def n_rows(side: Side, table: str) -> int:
    return int(await side.owner.fetchval(f"SELECT count(*) FROM {table}"))


async def test_an_erasure_waits_through_kill_9_and_is_carried_out_after_the_call(
    world: World,
) -> None:
    """R-G3, R-D9: never lost, never twice."""
    async with open_side(world, "ad_ledger") as side:
        visitor = new_visitor_id()
        await side.fill(visitor, live=True)
        process = world.start("ad_ledger")
        await ready(world, "ad_ledger")
        order = side.order(RetentionAction.ERASE, visitor)
        # the bench's day begins at noon, which the process may still have before it
        order = order.model_copy(update={"as_of": SystemClock().now()})
        await send(world, "retention", (topics.RETENTION_ORDER, order))

        async def waits() -> bool:
            return await n_rows(side, "retention_later") == 1

        await eventually(waits, within_s=60)
        process.kill()
        process.wait()
        assert await n_rows(side, "retention_done") == 0
        assert await n_rows(side, "lot") == 1
        await side.owner.execute("UPDATE reservation SET lease_until = now()")
        world.start("ad_ledger")

        async def is_done() -> bool:
            return await n_rows(side, "retention_done") == 1

        await eventually(is_done, within_s=60)
        assert {table: rows for table, rows in (await side.live()).items() if rows} == {}
        assert await n_rows(side, "retention_later") == 0
        rows = await side.owner.fetch(
            "SELECT 1 FROM outbox WHERE topic = $1", topics.RETENTION_RECEIPT.name
        )
        assert len(rows) == 1
        assert await side.violations() == {}


async def test_what_was_noted_beside_other_orders_survives_kill_9(world: World) -> None:
    """D1, D3: the poll is over, nobody has looked at the order yet, and nobody tells it again."""
    async with open_side(world, "ad_ledger") as side:
        visitor = new_visitor_id()
        await side.fill(visitor)
        process = world.start("ad_ledger")
        await ready(world, "ad_ledger")
        order = side.order(RetentionAction.ERASE, visitor)
        order = order.model_copy(update={"as_of": SystemClock().now()})

        async def is_noted() -> bool:
            return bool(await side.owner.fetchval("SELECT is_unseen FROM retention_later"))

        async with somebody_at_work(world, "ad_ledger"):
            await send(world, "retention", (topics.RETENTION_ORDER, order))
            await eventually(is_noted, within_s=60)
            process.kill()
            process.wait()
        assert await is_noted()
        assert await n_rows(side, "retention_done") == 0
        assert await n_rows(side, "lot") == 1
        world.start("ad_ledger")

        async def is_done() -> bool:
            return await n_rows(side, "retention_done") == 1

        await eventually(is_done, within_s=60)
        assert {table: rows for table, rows in (await side.live()).items() if rows} == {}
        assert await n_rows(side, "retention_later") == 0
        assert await n_rows(side, "retention_done") == 1
        assert await side.violations() == {}
