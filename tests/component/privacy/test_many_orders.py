"""Many erasures in one poll, and a drop beside a long reader (R-D5, R-G3, D2, D3)."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from uuid import UUID

import asyncpg
import pytest

from schemas.retention import DataKind, RetentionAction, RetentionOrderV1, RetentionReceiptV1
from services.chassis import db
from services.chassis.errors import Poison
from services.privacy.executor import NOTED_MAX, POLL_WAITS_S, WAITING_MAX
from services.privacy.order_store import ORDERS_LOCK
from tests.support.bench import IDS, new_visitor_id
from tests.support.protected import Side, carry_out, open_side, poll, somebody_at_work, total
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger", "call_control", "consent")
N_VISITORS = 8
HELD, TWICE_HELD, LIVE, RESTRICTED, UNKNOWN = 0, 1, 2, 3, 7


@pytest.fixture(params=WORLD_SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def people(side: Side) -> list[UUID]:
    """Return visitors with rows of one and of two days; one live, some protected, one unknown."""
    found = [new_visitor_id() for _ in range(N_VISITORS)]
    for number, visitor_id in enumerate(found[:UNKNOWN]):
        # where nothing can be live, nobody is
        live = number == LIVE and side.name != "consent"
        await side.fill(visitor_id, live=live)
        if number % 2:
            await side.fill(visitor_id, side.today - timedelta(days=1))
    for number in (HELD, TWICE_HELD, TWICE_HELD):
        hold = side.order(RetentionAction.HOLD, found[number], protection_id=IDS.new())
        await side.handle(hold)
    restriction = side.order(RetentionAction.RESTRICT, found[RESTRICTED], protection_id=IDS.new())
    await side.handle(restriction)
    return found


def erasures(side: Side, of: list[UUID]) -> list[RetentionOrderV1]:
    """Return orders as they may come: about one, about several, about one that was named before."""
    erase = RetentionAction.ERASE
    orders = [side.order(erase, visitor_id) for visitor_id in of]
    orders.append(side.order(erase, of[4], of[5], new_visitor_id()))
    orders.append(side.order(erase, of[4]))
    # a neighbour of other days
    orders.append(side.order(erase, of[6], before=side.today))
    # told again
    orders.append(orders[5])
    return orders


async def test_many_erasures_of_a_poll_do_what_each_would_do_alone(
    world: World, service: str
) -> None:
    """D2, D3, D4: the same counts, rows, store, list of the erased, and who waits."""
    async with open_side(world, service) as side:
        alone, together = await people(side), await people(side)
        one_by_one: list[RetentionReceiptV1] = []
        for order in erasures(side, alone):
            one_by_one += await side.handle(order)
        orders = erasures(side, together)
        at_once = await side.handle(*orders)
        by_id = {receipt.order_id: receipt for receipt in at_once}
        answered = [by_id[order.order_id] for order in orders if order.order_id in by_id]
        assert [receipt.counts for receipt in answered] == [r.counts for r in one_by_one]
        assert len(at_once) == len(one_by_one)
        assert len(orders) - len(one_by_one) == (0 if service == "consent" else 1)
        assert any(held for receipt in answered for _, held, _ in total([receipt]).values())
        live, kept = await side.live(), await side.kept()
        for rows in (live, kept):
            for texts in rows.values():
                found = {who: sum(str(who) in t for t in texts) for who in (*alone, *together)}
                assert [found[who] for who in together] == [found[who] for who in alone]
        erased = await side.owner.fetch(
            "SELECT visitor_id FROM privacy_erased WHERE visitor_id = ANY($1)", [*alone, *together]
        )
        assert {row[0] for row in erased} == {
            who
            for them in (alone, together)
            for number, who in enumerate(them)
            if number != LIVE or service == "consent"
        }
        # what the store keeps is due, and destroyed by its release
        assert (
            await side.owner.fetchval(
                "SELECT count(*) FROM privacy_kept k WHERE NOT is_due AND visitor_id = ANY($1)",
                [alone[HELD], together[HELD]],
            )
            == 0
        )
        assert await side.violations() == {}


async def test_a_drop_gives_way_to_a_reader_and_is_done_later(world: World, service: str) -> None:
    """D1, D3: whoever writes is not queued behind a drop; nothing is dropped by half."""
    async with open_side(world, service) as side:
        day = side.today - timedelta(days=6)
        visitor_id = new_visitor_id()
        await side.fill(visitor_id, day)
        kind = next(
            t.kind for t in side.tables if t.kind in (DataKind.AD_USE, DataKind.TRAFFIC_DATA)
        )
        table = [t.name for t in side.tables if t.kind is kind][-1]
        before = await side.live()
        order = side.order(RetentionAction.DROP, kinds=(kind,), before=day + timedelta(days=1))
        reader = await asyncpg.connect(world.owner_url(service))
        writer = await asyncpg.connect(world.database_url(service))
        try:
            await reader.execute(f"BEGIN; SELECT FROM {table} LIMIT 1")
            begun_s = monotonic()
            dropping = asyncio.create_task(side.handle(order))
            await asyncio.sleep(0.05)
            # a write takes a lock on its table that goes with a reader's, not with a waiting drop's
            await writer.execute(f"BEGIN; LOCK TABLE {table} IN ROW EXCLUSIVE MODE; COMMIT")
            waited_s = monotonic() - begun_s
            assert await dropping == []
            assert waited_s < 1
            assert monotonic() - begun_s < 2
            assert await side.live() == before
            assert await side.retry() == []
            assert await side.owner.fetchval("SELECT count(*) FROM outbox") == 0
            await reader.execute("COMMIT")
            (receipt,) = await side.retry()
            assert receipt.order_id == order.order_id
            assert sum(count.n_rows for count in receipt.counts) > 0
            assert await side.handle(order) == [receipt]
            assert await side.violations() == {}
            assert await side.bench.connection.fetchval("SHOW lock_timeout") == "0"
        finally:
            await writer.close()
            await reader.close()


async def test_what_is_to_be_kept_is_said_before_it_would_go(world: World, service: str) -> None:
    """D2: who was away finds drops and the hold of a later day in one poll."""
    async with open_side(world, service) as side:
        day = side.today - timedelta(days=6)
        held, other = new_visitor_id(), new_visitor_id()
        for visitor_id in (held, other):
            await side.fill(visitor_id, day)
        kinds = {t.kind for t in side.tables if t.subject_column is not None}
        drops = [
            side.order(RetentionAction.DROP, kinds=(kind,), before=day + timedelta(days=1))
            for kind in sorted(kinds)
        ]
        hold = side.order(RetentionAction.HOLD, held, protection_id=IDS.new())
        assert len(await side.handle(*drops, hold)) == len(drops) + 1
        kept = "".join(text for texts in (await side.kept()).values() for text in texts)
        assert (str(held) in kept, str(other) in kept) == (True, False)
        live = "".join(text for texts in (await side.live()).values() for text in texts)
        assert str(other) not in live
        assert await side.violations() == {}


@pytest.mark.parametrize(
    ("name", "first", "second", "table"),
    [
        ("ad_ledger", DataKind.IP_ADDRESS, DataKind.AD_USE, "ad_view"),
        ("call_control", DataKind.IP_ADDRESS, DataKind.TRAFFIC_DATA, "call_order"),
    ],
)
async def test_a_drop_has_a_transaction_of_its_own(
    world: World, name: str, first: DataKind, second: DataKind, table: str
) -> None:
    """D1, R-D9: while the second one of a poll waits or counts, the first one's locks are gone."""
    async with open_side(world, name) as side:
        day = side.today - timedelta(days=6)
        await side.fill(new_visitor_id(), day)
        one, two = (
            side.order(RetentionAction.DROP, kinds=(kind,), before=day + timedelta(days=1))
            for kind in (first, second)
        )
        reader = await asyncpg.connect(world.owner_url(name))
        other = await asyncpg.connect(world.database_url(name))
        (locked,) = (t.name for t in side.tables if t.kind is first)
        try:
            await reader.execute(f"BEGIN; SELECT FROM {table} LIMIT 1")
            # it has given way once: from now on it takes more than a second
            assert await side.handle(two) == []
            assert await poll(side.bench, side.executor, one) == []
            await asyncio.wait_for(side.executor.until_noted(60), 1)
            begun_s = monotonic()
            dropping = asyncio.create_task(carry_out(side.bench, side.executor, one))
            await other.execute("SET lock_timeout = '700ms'")
            # who locks its table any sooner makes the first one give way as well
            done = "SELECT count(*) FROM retention_done WHERE order_id = $1"
            while not await side.owner.fetchval(done, one.order_id):
                assert not dropping.done(), "the first one waited for the second one's end"
                await asyncio.sleep(0.01)
            while not dropping.done():
                await other.execute(f"BEGIN; LOCK {locked} IN ROW EXCLUSIVE MODE; COMMIT")
                await asyncio.sleep(0.01)
            assert [receipt.order_id for receipt in await dropping] == [one.order_id]
            assert monotonic() - begun_s > 1, "the second one did not try"
            await reader.execute("COMMIT")
            assert [receipt.order_id for receipt in await side.retry()] == [two.order_id]
            assert await side.retry() == []
        finally:
            await other.close()
            await reader.close()


async def test_a_drop_waits_for_the_next_transaction_where_another_order_was_done(
    world: World,
) -> None:
    """R-D9: what the other one has written stays locked until the end of the transaction."""
    async with open_side(world, "call_control") as side:
        visitor_id = new_visitor_id()
        await side.fill(visitor_id, live=True)
        erasure = side.order(RetentionAction.ERASE, visitor_id)
        assert await side.handle(erasure) == []
        drop = side.order(RetentionAction.DROP, kinds=(DataKind.IP_ADDRESS,), before=side.today)
        assert await poll(side.bench, side.executor, drop) == []
        await side.end_call()
        found = [await side.retry(), await side.retry(), await side.retry()]
        ids = [[receipt.order_id for receipt in receipts] for receipts in found]
        assert ids == [[erasure.order_id], [drop.order_id], []]


async def test_a_protection_without_names_that_nobody_has_placed_is_not_answered(
    world: World, service: str
) -> None:
    """D3, D4: a receipt for it would be one without its deed."""
    async with open_side(world, service) as side:
        visitor_id = new_visitor_id()
        for action in (RetentionAction.HOLD, RetentionAction.RESTRICT):
            order = side.order(action, visitor_id, protection_id=IDS.new())
            nameless = order.model_copy(update={"visitor_ids": (), "names_gone": True})
            assert await side.handle(nameless) == []
            assert await side.owner.fetchval("SELECT count(*) FROM retention_done") == 0
            (receipt,) = await side.handle(order)
            assert await side.handle(nameless) == [receipt]
            await side.owner.execute("TRUNCATE retention_done")


async def test_one_transaction_at_a_time_carries_out_orders(world: World, service: str) -> None:
    """D2: a hold that was placed while a drop had looked for holds would come too late."""
    async with open_side(world, service) as side:
        other = await asyncpg.connect(world.database_url(service))
        try:
            await other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({ORDERS_LOCK})")
            order = side.order(RetentionAction.HOLD, new_visitor_id(), protection_id=IDS.new())
            holding = asyncio.create_task(side.handle(order))
            await asyncio.sleep(0.3)
            assert not holding.done()
            await other.execute("COMMIT")
            (receipt,) = await holding
            assert receipt.order_id == order.order_id
        finally:
            await other.close()


async def test_a_poll_beside_a_long_drop_notes_its_orders_and_ends(world: World) -> None:
    """D2, D3: a real drop, slow; each order gets its receipt after that, a hold before a drop."""
    slow_s = 6.0
    async with open_side(world, "call_control") as side:
        held, erased, day = new_visitor_id(), new_visitor_id(), side.today - timedelta(days=6)
        await side.fill(new_visitor_id(), day)
        hold, erase, drop = (
            side.order(RetentionAction.HOLD, held, protection_id=IDS.new()),
            side.order(RetentionAction.ERASE, erased),
            side.order(RetentionAction.DROP, kinds=(DataKind.TRAFFIC_DATA,)),
        )
        nameless = side.order(
            RetentionAction.HOLD, before=day + timedelta(days=1), protection_id=IDS.new()
        )
        assert len(await side.handle(nameless)) == 1
        slow = side.order(
            RetentionAction.DROP, kinds=(DataKind.TRAFFIC_DATA,), before=day + timedelta(days=1)
        )
        await side.owner.execute(
            f"""
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({slow_s}); RETURN NEW; END $$;
            CREATE TRIGGER slow BEFORE INSERT ON privacy_kept FOR EACH ROW
                WHEN (NEW.source = 'call') EXECUTE FUNCTION slow()
            """
        )
        task = await db.connect(side.bench.url)
        beside = replace(side, bench=replace(side.bench, connection=task))
        try:
            assert await poll(side.bench, side.executor, slow) == []
            dropping = asyncio.create_task(beside.retry())
            await asyncio.sleep(0.5)
            begun_s = monotonic()
            # the drop stands before the hold: noted, not carried out
            assert await poll(side.bench, side.executor, drop, hold, erase, erase) == []
            assert monotonic() - begun_s < POLL_WAITS_S + 1.5
            assert not dropping.done()
            (receipt,) = await dropping
            assert receipt.order_id == slow.order_id
        finally:
            await task.close()
            await side.owner.execute("DROP FUNCTION slow CASCADE")
        for visitor_id in (held, erased):
            await side.fill(visitor_id)
        seen = await side.retry()
        assert {receipt.order_id for receipt in seen} == {hold.order_id, erase.order_id}
        assert not any(
            str(erased) in text for texts in (await side.live()).values() for text in texts
        )
        # in rotation: it is older than the one that was tried last
        assert [r.order_id for _ in range(2) for r in await side.retry()] == [drop.order_id]
        assert any(str(held) in text for text in (await side.kept())["call"])
        assert await side.retry() == []
        # told again, each gets its first receipt
        assert len(await poll(side.bench, side.executor, drop, hold, erase)) == 3
        assert await side.violations() == {}


async def test_what_was_noted_comes_before_what_follows_it(world: World, service: str) -> None:
    """D2: an erasure that finds nobody at work does not take what a noted hold keeps."""
    async with open_side(world, service) as side:
        visitor_id = new_visitor_id()
        await side.fill(visitor_id)
        hold = side.order(RetentionAction.HOLD, visitor_id, protection_id=IDS.new())
        async with somebody_at_work(world, service):
            assert await poll(side.bench, side.executor, hold) == []
        erase = side.order(RetentionAction.ERASE, visitor_id)
        receipts = await poll(side.bench, side.executor, erase)
        assert [receipt.order_id for receipt in receipts] == [hold.order_id, erase.order_id]
        # by the erasure's own receipt: rows met the hold, and none went
        found = total(receipts[1:]).values()
        assert any(n_held for _, n_held, _ in found)
        assert not any(n_gone for n_gone, _, _ in found)
        assert await side.retry() == []
        assert await side.violations() == {}


async def test_what_contradicts_is_refused_by_a_poll_that_only_notes(
    world: World, service: str
) -> None:
    """D3, D4: as a dead letter where it is known; else it is forgotten, and answered by nobody."""
    async with open_side(world, service) as side:
        hold = side.order(RetentionAction.HOLD, new_visitor_id(), protection_id=IDS.new())
        await side.handle(hold)
        other = hold.model_copy(update={"order_id": IDS.new(), "before_day": side.today})
        fresh = side.order(RetentionAction.HOLD, new_visitor_id(), protection_id=IDS.new())
        differs = fresh.model_copy(update={"order_id": IDS.new(), "before_day": side.today})
        async with somebody_at_work(world, service):
            with pytest.raises(Poison, match="protection_differs"):
                await poll(side.bench, side.executor, other)
            assert await poll(side.bench, side.executor, fresh, differs) == []
        assert [receipt.order_id for receipt in await side.retry()] == [fresh.order_id]
        assert await side.retry() == []
        assert await side.owner.fetchval("SELECT count(*) FROM retention_later") == 0
        assert await side.violations() == {}


async def test_no_more_is_noted_than_the_database_bears(world: World) -> None:
    """D3: each noted order that names visitors is a partition; beyond that the poll waits."""
    async with open_side(world, "consent") as side:
        erasures = [side.order(RetentionAction.ERASE, new_visitor_id()) for _ in range(3)]
        await side.owner.execute(
            """
            INSERT INTO retention_later (order_id, content, received_at, is_unseen)
            SELECT gen_random_uuid(), '{}', now(), true FROM generate_series(2, $1)
            """,
            NOTED_MAX - 1,
        )
        async with somebody_at_work(world, "consent") as other:
            assert await poll(side.bench, side.executor, erasures[0]) == []
            assert await poll(side.bench, side.executor, erasures[1]) == []
            waiting = asyncio.create_task(poll(side.bench, side.executor, erasures[2]))
            await asyncio.sleep(POLL_WAITS_S + 1)
            assert not waiting.done()
            await side.owner.execute("DELETE FROM retention_later WHERE content = '{}'")
            await other.execute("COMMIT")
            answered = {receipt.order_id for receipt in await waiting}
        assert answered == {order.order_id for order in erasures}


async def test_no_order_waits_for_another_ones_call_to_end(world: World) -> None:
    """D1, D3: more of them wait than are tried at once, and the last one could be done."""
    async with open_side(world, "call_control") as side:
        people = [new_visitor_id() for _ in range(WAITING_MAX + 3)]
        orders = []
        for visitor_id in people:
            await side.fill(visitor_id, live=True)
            orders.append(side.order(RetentionAction.ERASE, visitor_id))
        assert await side.handle(*orders) == []
        await side.owner.execute(
            "UPDATE call SET state = 'ended', reason = 'hung_up', ended_at = now(),"
            " talk_ms = 2000, overrun_ms = 0 WHERE visitor_id = $1",
            people[-1],
        )
        receipts = [*await side.retry(), *await side.retry()]
        assert [receipt.order_id for receipt in receipts] == [orders[-1].order_id]


async def test_the_version_before_can_still_drop(world: World, service: str) -> None:
    """D1: it runs beside the new schema until it is rolled, and calls as it always did."""
    async with open_side(world, service) as side:
        day, visitor_id = side.today - timedelta(days=6), new_visitor_id()
        await side.fill(visitor_id, day)
        named = [t for t in side.tables if t.subject_column is not None]
        kind = named[0].kind
        rows = await side.bench.fetch(
            "SELECT * FROM privacy_drop($1, $2, $3)",
            [table.name for table in side.tables if table.kind is kind],
            day + timedelta(days=1),
            IDS.new(),
        )
        assert sum(row["n_rows"] for row in rows) > 0
        live = await side.live()
        assert all(str(visitor_id) not in text for text in live[named[0].name])
