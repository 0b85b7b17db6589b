"""Orders whose service, or whose sender, is killed with -9 at every boundary (D1, D2, D3, D4).

Goal: nothing forgotten, nothing done twice, no receipt without its deed.
Method: real processes on real rows. Locks and triggers of the test, in PostgreSQL, stop a process
exactly at a place; there it dies. The same order goes through all places in turn, so that each
start finds what the death before left behind. What its receipt must count is measured: a twin, a
visitor or day with the same rows, is treated the same way without any death.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from deploy.provision import Infrastructure
from schemas import topics
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1, RetentionReceiptV1
from services.chassis import db
from services.chassis.clock import SystemClock
from services.privacy.chain import SigningKeys, VerifyKeys
from services.retention.evidence import Evidence
from services.retention.store import INVARIANTS
from tests.support.answering import receipt_of
from tests.support.bench import IDS, new_visitor_id
from tests.support.counting import Counting
from tests.support.eventually import eventually
from tests.support.identities import register
from tests.support.killed import COMMIT, CURSOR, DEED, RELAY, Killed, fence, opened
from tests.support.protected import Side, open_side, total
from tests.support.running import metric, ready, send
from tests.support.schedules import give_reviewed
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = [pytest.mark.fault, pytest.mark.integration, pytest.mark.timeout(240)]

LEDGER, RETENTION = "ad_ledger", "retention"
CLOCK = SystemClock()
_LEDGER_STOPS = """
CREATE TRIGGER deed AFTER DELETE ON lot FOR EACH ROW EXECUTE FUNCTION stop_here('1');
CREATE TRIGGER deed AFTER INSERT OR UPDATE ON privacy_protection FOR EACH ROW
    WHEN (NOT new.is_restriction OR new.released_at IS NOT NULL) EXECUTE FUNCTION stop_here('1');
CREATE CONSTRAINT TRIGGER commit AFTER INSERT ON retention_done
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stop_here('2');
CREATE CONSTRAINT TRIGGER noted AFTER INSERT ON retention_later
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stop_here('3');
"""
NOTED = "SELECT pg_advisory_xact_lock(3)"
"""A poll that has noted a drop, before its COMMIT; the deed has a transaction of its own."""
_RETENTION_STOPS = """
CREATE TRIGGER deed AFTER INSERT ON retention_completion
    FOR EACH ROW EXECUTE FUNCTION stop_here('1');
CREATE CONSTRAINT TRIGGER commit AFTER INSERT ON retention_completion
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stop_here('2');
"""


# ---------------------------------------------------------------------- in the service


@dataclass(frozen=True, kw_only=True)
class Case:
    """An order, what is so before it, and what must be so after it.

    Attributes:
        arrange: what was ordered before, about a visitor.
        action: of the order itself.
    """

    arrange: tuple[RetentionAction, ...] = ()
    action: RetentionAction


def order_of(
    side: Side, action: RetentionAction, visitor_id: UUID, day_number: int, protection_id: UUID
) -> RetentionOrderV1:
    """Return an order; a drop of days up to that of the rows, else about the visitor."""
    if action is RetentionAction.DROP:
        before = side.today - timedelta(days=day_number - 1)
        made = side.order(action, kinds=(DataKind.AD_USE,), before=before)
    else:
        ends = action in (RetentionAction.RELEASE, RetentionAction.UNRESTRICT)
        protects = action not in (RetentionAction.ERASE, RetentionAction.DROP)
        made = side.order(
            action,
            *(() if ends else (visitor_id,)),
            protection_id=protection_id if protects else None,
            # what is due at a release: nothing by its age
            before=side.today - timedelta(days=8) if ends else None,
        )
    return made.model_copy(update={"as_of": CLOCK.now()})


A = RetentionAction
CASES = {
    "erase": Case(action=A.ERASE),
    "drop": Case(action=A.DROP),
    "drop past a hold": Case(arrange=(A.HOLD,), action=A.DROP),
    "restrict": Case(action=A.RESTRICT),
    "unrestrict": Case(arrange=(A.RESTRICT,), action=A.UNRESTRICT),
    "hold": Case(action=A.HOLD),
    "erase past a hold": Case(arrange=(A.HOLD,), action=A.ERASE),
    "release what fell due": Case(arrange=(A.HOLD, A.ERASE), action=A.RELEASE),
}


@pytest.fixture
def ledger_world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), (LEDGER,)))
    yield made
    finish(made.close())


async def everything(side: Side) -> tuple[Any, ...]:
    """Return every row that an order may touch, and what was done about orders."""
    owner = side.owner
    return (
        await side.live(),
        await side.kept(),
        await owner.fetch("SELECT * FROM privacy_protection ORDER BY 1"),
        await owner.fetch("SELECT visitor_id FROM privacy_erased ORDER BY 1"),
        await owner.fetch("SELECT order_id FROM retention_done ORDER BY 1"),
        [dict(row) for row in await owner.fetch("SELECT order_id FROM retention_later ORDER BY 1")],
        await owner.fetch(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname !~ '^outbox' ORDER BY 1"
        ),
    )


LATER = 5
"""Place of the orders that wait in `everything`."""


def of_visitor(rows: dict[str, list[str]], visitor_id: UUID) -> dict[str, int]:
    found = {table: sum(str(visitor_id) in row for row in found) for table, found in rows.items()}
    return {table: n for table, n in found.items() if n}


@dataclass(frozen=True, kw_only=True)
class Story:
    """What is there before an order, and what must be counted.

    Attributes:
        gone: whom the order is about; `day_rows` are theirs, by table.
        stays: whom it must not touch.
        expected: what its receipt must count, by table.
    """

    side: Side
    case: Case
    gone: UUID
    stays: UUID
    order: RetentionOrderV1
    day_rows: dict[str, int]
    expected: dict[str, tuple[int, int, int]]


async def arrange(side: Side, case: Case) -> Story:
    """Fill the ledger, do what was ordered before, and measure at a twin what will be counted."""
    gone, twin, stays = new_visitor_id(), new_visitor_id(), new_visitor_id()
    await side.fill(twin, side.today - timedelta(days=6))
    await side.fill(stays, side.today - timedelta(days=1))
    expected = await treated(side, case, twin, 6)
    assert any(any(counts) for counts in expected.values())
    day = side.today - timedelta(days=5)
    await side.fill(gone, day)
    protection_id = IDS.new()
    for action in case.arrange:
        await side.handle(order_of(side, action, gone, 5, protection_id))
    await side.owner.execute("TRUNCATE outbox")
    return Story(
        side=side,
        case=case,
        gone=gone,
        stays=stays,
        order=order_of(side, case.action, gone, 5, protection_id),
        day_rows=of_visitor(await side.live(), gone),
        expected=expected,
    )


async def treated(
    side: Side, case: Case, visitor_id: UUID, day_number: int
) -> dict[str, tuple[int, int, int]]:
    """Do to a twin what the order will do, without any death; return what was counted."""
    protection_id = IDS.new()
    for action in case.arrange:
        await side.handle(order_of(side, action, visitor_id, day_number, protection_id))
    return total(
        await side.handle(order_of(side, case.action, visitor_id, day_number, protection_id))
    )


@pytest.mark.parametrize("name", CASES)
async def test_an_order_whose_service_dies_at_every_boundary(
    ledger_world: World, name: str
) -> None:
    """D2, D3, D4, R-D9: done once, counted rightly, answered always the same."""
    async with (
        open_side(ledger_world, LEDGER) as side,
        opened(ledger_world, LEDGER, _LEDGER_STOPS) as killed,
    ):
        killed.spared = {side.bench.connection.get_server_pid()}
        story = await arrange(side, CASES[name])
        before = await dies_before_commit(story, killed)
        await killed.dies_as_it_commits()

        async def is_done() -> bool:
            found = "SELECT count(*) FROM retention_done WHERE order_id = $1"
            return bool(await side.owner.fetchval(found, story.order.order_id))

        await eventually(is_done, within_s=20)
        await killed.end_sessions()
        after = await everything(side)
        receipts = await dies_while_it_answers(story, killed)
        assert len({receipt.model_dump_json() for receipt in receipts}) == 1
        assert receipts[0].order_id == story.order.order_id
        assert total(receipts[:1]) == story.expected
        # what was delivered again changed nothing
        assert await everything(side) == after
        reader = Counting(world=ledger_world)
        assert await reader.read(topics.RETENTION_ORDER.dead_letter) == []
        assert await side.violations() == {}
        await check_rows(story, before)


async def dies_before_commit(story: Story, killed: Killed) -> tuple[Any, ...]:
    """Deliver the order and kill its service before each step; nothing may change. Returns it."""
    killed.start()
    await ready(killed.world, LEDGER)
    before = await everything(story.side)
    async with killed.closed(fence(topics.RETENTION_ORDER)) as gate:
        # twice, as a sender says it that died between Kafka's word and its own note
        delivered = (topics.RETENTION_ORDER, story.order)
        await send(killed.world, RETENTION, delivered, delivered)
        await killed.waits(gate)
        await killed.die()
    assert await everything(story.side) == before, "before its transaction"
    undone = before
    if story.case.action is A.DROP:
        await killed.dies_at(NOTED)
        assert await everything(story.side) == before, "before COMMIT of its note"
        noted = [{"order_id": story.order.order_id}]
        undone = (*before[:LATER], noted, *before[LATER + 1 :])
    await killed.dies_at(DEED)
    assert await everything(story.side) == undone, "in the middle of the deeds"
    await killed.dies_at(COMMIT)
    assert await everything(story.side) == undone, "before COMMIT"
    assert await story.side.owner.fetchval("SELECT count(*) FROM outbox") == 0
    return before


async def dies_while_it_answers(story: Story, killed: Killed) -> list[RetentionReceiptV1]:
    """Kill it once its receipts are on Kafka, and deliver the order again; return all receipts."""
    reader = Counting(world=killed.world)
    assert await reader.read(topics.RETENTION_RECEIPT) == [], "a receipt before its relay"
    await killed.dies_at(CURSOR)
    n_sent = len(await reader.read(topics.RETENTION_RECEIPT))
    assert n_sent > 0
    killed.start()
    await ready(killed.world, LEDGER)
    await reader.records(topics.RETENTION_RECEIPT, 2 * n_sent)
    await send(killed.world, RETENTION, (topics.RETENTION_ORDER, story.order))
    records = await reader.records(topics.RETENTION_RECEIPT, 2 * n_sent + 1)
    return [RetentionReceiptV1.model_validate_json(record.value) for record in records]


async def check_rows(story: Story, before: tuple[Any, ...]) -> None:
    """Check that exactly the rows that the order is about are where it wants them."""
    action, gone = story.case.action, story.gone
    live, kept = await story.side.live(), await story.side.kept()
    assert of_visitor(live, story.stays) == of_visitor(before[0], story.stays)
    if action is A.HOLD:
        assert of_visitor(live, gone) == story.day_rows
    elif action is A.UNRESTRICT:
        assert story.day_rows == {}
        assert of_visitor(live, gone) == of_visitor(before[1], gone) != {}
    else:
        assert of_visitor(live, gone) == {}
    keeps = action is A.RESTRICT or (A.HOLD in story.case.arrange and action is not A.RELEASE)
    assert bool(of_visitor(kept, gone)) == keeps


# ---------------------------------------------------------------------- in retention


@pytest.fixture
def retention_world(infra: Infrastructure, tmp_path: Path) -> Iterator[World]:
    made = finish(make_world(new_prefix(), (RETENTION,)))
    give_reviewed(made, tmp_path)
    yield made
    finish(made.close())


async def test_orders_whose_sender_dies_at_every_boundary(retention_world: World) -> None:
    """D3, R-D9: each order is recorded once and sent, each receipt taken once, and only then done.

    The sweep at the start is the sender's first deed; the services' answers are the test's.
    """
    world = retention_world
    reader = Counting(world=world)
    async with opened(
        world, RETENTION, _RETENTION_STOPS, RETENTION_ORDER_WATCH_INTERVAL_S="0.2"
    ) as killed:
        look = killed.looking

        async def counted(table: str) -> int:
            return int(await look.fetchval(f"SELECT count(*) FROM {table}"))

        async def are_recorded() -> bool:
            return await counted("retention_order") > 0

        async with killed.closed(RELAY):
            killed.start()
            await eventually(are_recorded, within_s=30)
            await killed.die()
        rows = await look.fetch("SELECT order_id FROM retention_order")
        ids = {row["order_id"] for row in rows}
        assert await reader.read(topics.RETENTION_ORDER) == [], "recorded, not yet sent"
        await killed.dies_at(CURSOR)
        assert len(await reader.read(topics.RETENTION_ORDER)) == len(ids), "sent, not noted"
        killed.start()
        records = await reader.records(topics.RETENTION_ORDER, 2 * len(ids))
        orders = [RetentionOrderV1.model_validate_json(record.value) for record in records]
        assert Counter(order.order_id for order in orders) == dict.fromkeys(ids, 2)
        await ready(world, RETENTION)
        n_receipts = await dies_while_it_completes(killed, orders)
        assert {row["order_id"] for row in await look.fetch("SELECT * FROM retention_order")} == ids
        assert len(await reader.read(topics.RETENTION_ORDER)) == 2 * len(ids)
        assert await reader.read(topics.RETENTION_RECEIPT.dead_letter) == []
        for name, sql in INVARIANTS.items():
            assert await look.fetchval(sql) == 0, name
        # beside them the link that says the year
        assert await n_linked(world) == 1 + len(ids) + n_receipts


async def dies_while_it_completes(killed: Killed, orders: Sequence[RetentionOrderV1]) -> int:
    """Answer orders and kill their sender before it has completed them; return the receipts."""
    world = killed.world
    by_id = {order.order_id: order for order in orders}

    async def counted(table: str) -> int:
        return int(await killed.looking.fetchval(f"SELECT count(*) FROM {table}"))

    receipts = [
        receipt_of(world, service, order)
        for order in by_id.values()
        for service in topics.RETENTION_ORDER.consumers
    ]
    delivered = [(topics.RETENTION_RECEIPT, receipt) for receipt in receipts]
    async with killed.closed(fence(topics.RETENTION_RECEIPT)) as gate:
        # each order came twice, so that each is answered twice: the same receipt
        for one in [*delivered, *delivered]:
            await send(world, one[1].service, one)
        await killed.waits(gate)
        await killed.die()
    for place in (DEED, COMMIT):
        await killed.dies_at(place)
        assert await counted("retention_completion") == 0, place
        # receipts of an earlier poll may be there; never all of an order without its completion
        unnoticed = INVARIANTS["d3_complete_with_all_receipts"]
        assert await killed.looking.fetchval(unnoticed) == 0, place
    await killed.dies_as_it_commits()
    killed.start()
    await ready(world, RETENTION)

    async def are_complete() -> bool:
        return await counted("retention_completion") == len(by_id)

    await eventually(are_complete, within_s=20)
    await send(world, receipts[0].service, delivered[0])
    taken = 'retention_events_total{outcome="repeated",topic="retention-receipt"}'

    async def is_taken() -> bool:
        return (await metric(world, RETENTION, taken) or 0) > 0

    await eventually(is_taken, within_s=20)
    assert await counted("retention_receipt") == len(receipts)
    return len(receipts)


async def n_linked(world: World) -> int:
    """Return how many links the chain of evidence has, once it is found intact."""
    keys = VerifyKeys(SigningKeys(world.keys["retention_anchor_keys"]).public())
    connection = await db.connect(world.database_url(RETENTION))
    try:
        report = await Evidence(connection).verify(keys, CLOCK.now().date(), register())
    finally:
        await connection.close()
    assert report.findings == []
    return report.n_links
