"""The chain of evidence on real PostgreSQL, attacked as its owner (R-D9, R-D10, D4)."""

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from schemas import topics
from schemas.retention import RetentionOrderV1, RetentionReceiptV1, TableCount
from services.chassis import db
from services.chassis.errors import Poison
from services.privacy import chain
from services.privacy.chain import Fault, SigningKeys, VerifyKeys
from services.privacy.receipts import Signatories
from services.retention.evidence import CHAIN, Report
from services.retention.handlers import on_receipts, unless_forged
from services.retention.person_orders import Author, PersonOrders
from services.retention.schedule import load
from services.retention.settings import DEFAULT_SCHEDULE
from services.retention.store import Store
from services.retention.wire import as_text
from tests.support.bench import IDS, Bench, new_visitor_id, open_bench, received
from tests.support.stack import World

WORLD_SERVICES = ("retention",)
KEYS = SigningKeys({"k1": "11" * 32})
PUBLIC = VerifyKeys(KEYS.public())
ANNA = Author(staff_id="staff-1", case_number="AUSK-2026-1")
TABLES = (
    "retention_chain_salt retention_chain retention_anchor retention_refusal retention_names_gone "
    "retention_person_order retention_completion retention_receipt retention_sweep_order "
    "retention_sweep retention_record_order retention_order outbox"
)


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "retention", Store) as found:
        await as_owner(world, f"TRUNCATE {', '.join(TABLES.split())}")
        await found.fetch("SELECT chassis_outbox_maintain()")
        yield found


async def as_owner(world: World, *statements: str) -> None:
    """Forge, as somebody who may do everything to the rows."""
    owner = await db.connect(world.owner_url("retention"))
    try:
        for statement in statements:
            await owner.execute(statement)
    finally:
        await owner.close()


async def erase(bench: Bench[Store], n: int = 1) -> list[RetentionOrderV1]:
    """Order erasures; two links each."""
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, load(DEFAULT_SCHEDULE), timedelta(minutes=15))
        for _ in range(n):
            await orders.erase(ANNA, [new_visitor_id()])
        return bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)


async def answered(bench: Bench[Store], order: RetentionOrderV1) -> None:
    count = TableCount(table="lot", n_partitions=0, n_rows=3)
    receipts = [
        RetentionReceiptV1(
            order_id=order.order_id,
            service=service,
            kind=order.kind,
            counts=(count,),
            done_at=bench.now,
        )
        for service in topics.RETENTION_ORDER.consumers
    ]
    async with bench.transaction() as ctx:
        topic = topics.RETENTION_RECEIPT
        await on_receipts(ctx, [received(topic, one, bench.now) for one in receipts])


async def anchored(bench: Bench[Store]) -> None:
    async with bench.transaction() as ctx:
        head = await ctx.store.evidence.head()
        assert head is not None
        day = bench.now.date()
        await ctx.store.evidence.save_anchor(chain.anchor(KEYS, CHAIN, day, head))


async def verified(bench: Bench[Store]) -> Report:
    async with bench.transaction() as ctx:
        return await ctx.store.evidence.verify(PUBLIC)


async def faults(bench: Bench[Store]) -> set[tuple[int, Fault]]:
    return {(found.seq, found.fault) for found in (await verified(bench)).findings}


async def test_orders_receipts_and_refusals_are_chained_and_intact(bench: Bench[Store]) -> None:
    """R-D9."""
    (order,) = await erase(bench)
    await answered(bench, order)
    async with bench.transaction() as ctx:
        await ctx.store.evidence.refuse(
            IDS.new(), what="place", reason="same_person", staff_id="staff-1", now=ctx.now
        )
    await anchored(bench)
    report = await verified(bench)
    assert report.findings == []
    assert (report.n_links, report.n_contents, report.n_anchors) == (6, 6, 1)
    assert "intact" in as_text(report)
    rows = await bench.fetch("SELECT what FROM retention_chain ORDER BY seq")
    assert [row["what"] for row in rows] == ["order", "person_order", *["receipt"] * 3, "refusal"]


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (
            ["UPDATE retention_receipt SET counts = '[]' WHERE service = 'consent'"],
            {(5, Fault.CONTENT_CHANGED)},
        ),
        (
            ["DELETE FROM retention_completion", "DELETE FROM retention_receipt"],
            {(3, Fault.CONTENT_CHANGED), (4, Fault.CONTENT_CHANGED), (5, Fault.CONTENT_CHANGED)},
        ),
        (
            ["DELETE FROM retention_chain_salt WHERE seq = 3",
             "DELETE FROM retention_chain WHERE seq = 3"],
            {(4, Fault.MISSING)},
        ),
        (
            ["UPDATE retention_chain SET commitment = sha256('x') WHERE seq = 2"],
            {(2, Fault.CHANGED), (2, Fault.CONTENT_CHANGED)},
        ),
        (
            ["DELETE FROM retention_chain_salt WHERE seq > 2",
             "DELETE FROM retention_chain WHERE seq > 2"],
            {(5, Fault.CUT)},
        ),
        (
            ["""UPDATE retention_anchor
                SET seq = 2, hash = (SELECT hash FROM retention_chain WHERE seq = 2)"""],
            {(2, Fault.ANCHOR_FORGED)},
        ),
        (
            ["UPDATE retention_person_order SET staff_id = 'staff-9'"],
            {(2, Fault.CONTENT_CHANGED)},
        ),
    ],
    ids=["edited", "content removed", "dropped", "link edited", "cut", "anchor moved", "author"],
)  # fmt: skip
async def test_a_forgery_is_found_and_said_where(
    world: World, bench: Bench[Store], statements: list[str], found: set[tuple[int, Fault]]
) -> None:
    """R-D9: by somebody who may do everything to the rows, but has no key."""
    (order,) = await erase(bench)
    await answered(bench, order)
    await anchored(bench)
    await as_owner(world, *statements)
    assert await faults(bench) == found


async def test_the_service_itself_cannot_change_evidence(bench: Bench[Store]) -> None:
    """R-D9, R-C5."""
    await erase(bench)
    for statement in (
        "UPDATE retention_chain SET hash = hash",
        "DELETE FROM retention_chain",
        "DELETE FROM retention_chain_salt",
        "UPDATE retention_anchor SET seq = 1",
        "DELETE FROM retention_refusal",
        "TRUNCATE retention_chain CASCADE",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await bench.fetch(statement)


async def test_what_is_due_goes_and_the_chain_still_verifies(bench: Bench[Store]) -> None:
    """R-D10, K1: after three calendar years; what is open, or a hold rests on, stays."""
    first, second = await erase(bench, 2)
    await answered(bench, first)
    await anchored(bench)
    later = bench.now.date() + timedelta(days=1)
    async with bench.transaction() as ctx:
        assert await ctx.store.evidence.drop(later) == 1
    report = await verified(bench)
    assert report.findings == []
    assert (report.n_links, report.n_contents) == (7, 2)
    rows = await bench.fetch("SELECT order_id FROM retention_order")
    assert [row["order_id"] for row in rows] == [second.order_id]
    assert not await bench.fetch("SELECT FROM retention_receipt")


async def test_a_receipt_of_nobody_is_poison_and_changes_nothing(bench: Bench[Store]) -> None:
    """R-D9, D3: a service cannot answer for another one."""
    (order,) = await erase(bench)
    receipt = RetentionReceiptV1(
        order_id=order.order_id, service="consent", kind=order.kind, counts=(), done_at=bench.now
    )
    handle = unless_forged(Signatories('{"consent": {}, "ad_ledger": {}}'))
    with pytest.raises(Poison, match="receipt_not_signed"):
        async with bench.transaction() as ctx:
            await handle(ctx, [received(topics.RETENTION_RECEIPT, receipt, bench.now)])
    assert not await bench.fetch("SELECT FROM retention_receipt")
