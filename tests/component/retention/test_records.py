"""Records of other systems on real PostgreSQL: told, ordered, answered (R-D5b to R-D8)."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.record import Happening, RecordV1
from schemas.retention import (
    RECORDS_MAX,
    DataKind,
    DocumentClass,
    RetentionAction,
    RetentionOrderV1,
    RetentionReceiptV1,
    TableCount,
)
from services.chassis.declaration import SERVICES
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.chassis.received import Received
from services.privacy.executor import Executor
from services.privacy.receipts import Signatories
from services.retention.handlers import on_receipts, unless_forged
from services.retention.record_store import INVARIANTS
from services.retention.records import OVERDUE_AFTER, REPEAT_AFTER, Records
from services.retention.schedule import Schedule
from services.retention.store import Store
from services.retention.sweep import issue
from tests.support import holders
from tests.support.bench import Bench, open_bench, received
from tests.support.schedules import reviewed
from tests.support.stack import World

WORLD_SERVICES = ("retention",)
QUARTER_HOUR = timedelta(minutes=15)
SCHEDULE = reviewed()
IDS = TimeOrderedIds()
_holders = (f"holder_{n}" for n in range(1000))


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "retention", Store) as found:
        await found.fetch("SELECT chassis_outbox_maintain()")
        yield found


@pytest.fixture
def holder() -> str:
    """A holder of this test alone: records are kept for ever."""
    return next(_holders)


def told(holder: str, happened: Happening, day: date, **fields: object) -> RecordV1:
    kinds = {
        Happening.PURPOSE_FULFILLED: DataKind.CONTACT,
        Happening.CONTRACT_ENDED: DataKind.CONTRACT,
        Happening.DOCUMENT_MADE: DataKind.CONTRACT,
    }
    kind = kinds.get(happened, DataKind.APPLICATION)
    if kind is DataKind.CONTRACT:
        fields = {"document_class": DocumentClass.BUSINESS_LETTER, **fields}
    base = {"record_id": IDS.new(), "kind": kind, "holder": holder, "happened": happened}
    return RecordV1.model_validate({**base, "happened_on": day, **fields})


def again(event: RecordV1, happened: Happening, day: date, **fields: object) -> RecordV1:
    return event.model_copy(update={"happened": happened, "happened_on": day, **fields})


async def tell(
    bench: Bench[Store], *events: RecordV1 | Received[RecordV1], schedule: Schedule = SCHEDULE
) -> tuple[dict[str, int], dict[str, int]]:
    """Handle events as one poll; return the counts by outcome and the dead letters by reason."""
    batch = [
        event
        if isinstance(event, Received)
        else holders.signed(received(topics.RECORD, event, bench.now))
        for event in events
    ]
    known = holders.register({one.event.holder for one in batch} - set(SERVICES))
    async with bench.transaction() as ctx:
        await Records(schedule, known).on_records(ctx, batch)
        counts = {outcome: n for (_, outcome), n in ctx.counts.items() if n}
        return counts, {reason: n for (_, reason), n in ctx.dead.items()}


async def sweep(
    bench: Bench[Store], holder: str, schedule: Schedule = SCHEDULE
) -> list[RetentionOrderV1]:
    """Make a sweep and return the orders to one holder."""
    async with bench.transaction() as ctx:
        await issue(ctx, schedule, bench.now, overdue_after=QUARTER_HOUR)
        orders = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
    return [order for order in orders if order.holder == holder]


async def answer(bench: Bench[Store], order: RetentionOrderV1) -> None:
    assert order.holder is not None
    receipt = RetentionReceiptV1(
        order_id=order.order_id,
        service=order.holder,
        kind=order.kind,
        counts=(TableCount(table="records", n_partitions=0, n_rows=len(order.record_ids)),),
        done_at=bench.now,
    )
    async with bench.transaction() as ctx:
        await on_receipts(ctx, [received(topics.RETENTION_RECEIPT, receipt, bench.now)])
        assert ctx.counts[topics.RETENTION_RECEIPT.name, "new"] == 1


async def is_complete(bench: Bench[Store], order: RetentionOrderV1) -> bool:
    async with bench.transaction() as ctx:
        standing = (await ctx.store.standings([order.order_id]))[order.order_id]
    return standing.completed_at is not None


async def violations(bench: Bench[Store]) -> dict[str, int]:
    found = {name: (await bench.fetch(sql))[0]["count"] for name, sql in INVARIANTS.items()}
    return {name: n for name, n in found.items() if n}


async def test_a_records_holder_is_ordered_and_its_answer_completes_the_order(
    bench: Bench[Store], holder: str
) -> None:
    """R-D7, D3: once; what it has deleted is never ordered again."""
    event = told(holder, Happening.PURPOSE_FULFILLED, bench.now.date())
    assert await tell(bench, event) == ({"new": 1}, {})
    (order,) = await sweep(bench, holder)
    assert (order.action, order.kind) == (RetentionAction.DROP, DataKind.CONTACT)
    assert order.record_ids == (event.record_id,)
    assert await sweep(bench, holder) == []
    assert not await is_complete(bench, order)
    # a system outside has a day, our services have minutes
    sql = "SELECT overdue_at - issued_at AS after FROM retention_order WHERE order_id = $1"
    assert (await bench.fetch(sql, order.order_id))[0]["after"] == OVERDUE_AFTER
    await answer(bench, order)
    assert await is_complete(bench, order)
    bench.now += REPEAT_AFTER * 2
    assert await sweep(bench, holder) == []
    assert (
        await bench.fetch("SELECT FROM retention_record_due WHERE record_id = $1", event.record_id)
        == []
    )


async def test_a_contract_is_blocked_and_years_later_deleted(
    bench: Bench[Store], holder: str
) -> None:
    """R-D6."""
    event = told(holder, Happening.CONTRACT_ENDED, date(2023, 5, 1))
    await tell(bench, event, again(event, Happening.DOCUMENT_MADE, date(2023, 4, 1)))
    (block,) = await sweep(bench, holder)
    assert (block.action, block.record_ids) == (RetentionAction.RESTRICT, (event.record_id,))
    await answer(bench, block)
    bench.now = datetime(2029, 12, 31, 22, 59, tzinfo=UTC)
    assert await sweep(bench, holder) == []
    bench.now += timedelta(minutes=1)
    (delete,) = await sweep(bench, holder)
    assert (delete.action, delete.record_ids) == (RetentionAction.DROP, (event.record_id,))


async def test_nothing_is_ordered_while_a_proceeding_is_open(
    bench: Bench[Store], holder: str
) -> None:
    """R-D8: and at its end at once, because the three months are over."""
    event = told(holder, Happening.REJECTION_ANNOUNCED, date(2026, 3, 1))
    await tell(bench, event, again(event, Happening.PROCEEDING_OPENED, date(2026, 4, 1)))
    assert await sweep(bench, holder) == []
    await tell(bench, again(event, Happening.PROCEEDING_CLOSED, date(2026, 11, 1)))
    assert [order.record_ids for order in await sweep(bench, holder)] == [(event.record_id,)]


async def test_what_is_not_due_yet_is_not_ordered(bench: Bench[Store], holder: str) -> None:
    """R-D8: to the day."""
    event = told(holder, Happening.REJECTION_ANNOUNCED, date(2026, 6, 15))
    bench.now = datetime(2026, 9, 14, 21, 59, tzinfo=UTC)
    await tell(bench, event)
    assert await sweep(bench, holder) == []
    bench.now += timedelta(minutes=1)
    assert len(await sweep(bench, holder)) == 1


async def test_an_event_again_changes_nothing(bench: Bench[Store], holder: str) -> None:
    """R-D9: within a poll and in a later one; two events that say the same are two."""
    one = holders.signed(
        received(
            topics.RECORD, told(holder, Happening.PURPOSE_FULFILLED, bench.now.date()), bench.now
        )
    )
    assert await tell(bench, one, one) == ({"new": 1, "repeated": 1}, {})
    assert await tell(bench, one) == ({"repeated": 1}, {})
    assert await tell(bench, one.event) == ({"new": 1}, {})


async def test_of_two_words_in_one_poll_the_later_counts(bench: Bench[Store], holder: str) -> None:
    """R-D6: in the order of their telling, whatever their ids."""
    event = told(holder, Happening.REJECTION_ANNOUNCED, date(2026, 1, 1))
    days = [date(2026, 1, day) for day in range(1, 28)]
    later = again(event, Happening.REJECTION_ANNOUNCED, bench.now.date())
    await tell(bench, *(again(event, Happening.REJECTION_ANNOUNCED, day) for day in days), later)
    assert await sweep(bench, holder) == []
    await tell(bench, event)
    assert len(await sweep(bench, holder)) == 1


async def test_what_contradicts_is_dead_lettered_and_the_others_go_on(
    bench: Bench[Store], holder: str
) -> None:
    """R-D9: another holder or class of a known record; a holder that is a service of ours."""
    event = told(holder, Happening.CONTRACT_ENDED, date(2023, 5, 1))
    fine = told(holder, Happening.PURPOSE_FULFILLED, bench.now.date())
    counts, dead = await tell(
        bench,
        event,
        again(event, Happening.CONTRACT_ENDED, date(2023, 5, 1), holder="other"),
        again(event, Happening.DOCUMENT_MADE, date(2023, 5, 1), document_class=DocumentClass.BOOKS),
        told("ad_ledger", Happening.PURPOSE_FULFILLED, bench.now.date()),
        fine,
    )
    assert counts["new"] == 2
    assert dead == {"record_differs": 2, "holder_unknown": 1}
    ordered = [record_id for order in await sweep(bench, holder) for record_id in order.record_ids]
    assert set(ordered) == {event.record_id, fine.record_id}


async def test_only_a_records_holder_tells_of_it(bench: Bench[Store], holder: str) -> None:
    """R-C5, R-D9: unsigned, by another holder's key, told again as another event: dead letters."""
    event = told(holder, Happening.PURPOSE_FULFILLED, bench.now.date())
    heard = received(topics.RECORD, event, bench.now)
    copied = holders.signed(heard)._replace(id=IDS.new())
    counts, dead = await tell(bench, heard, holders.signed(heard, by="another"), copied)
    assert counts.get("new", 0) == 0
    assert dead == {"not_signed": 1, "key_unknown": 1, "signature_forged": 1}
    assert await sweep(bench, holder) == []
    assert await tell(bench, holders.signed(heard)) == ({"new": 1}, {})


async def test_only_an_orders_holder_answers_it(bench: Bench[Store], holder: str) -> None:
    """D3, R-D9: a receipt of somebody else is poison, and the order stays open."""
    await tell(bench, told(holder, Happening.PURPOSE_FULFILLED, bench.now.date()))
    (order,) = await sweep(bench, holder)
    receipt = RetentionReceiptV1(
        order_id=order.order_id, service=holder, kind=order.kind, counts=(), done_at=bench.now
    )
    forged = holders.signed_receipt(receipt.model_copy(update={"service": "another"}))
    handle = unless_forged(Signatories("{}"), holders.register([holder, "another"]))
    for wrong, reason in (
        (receipt, "receipt_not_signed"),
        (receipt.model_copy(update={"key_id": forged.key_id, "signature": forged.signature}),
         "receipt_key_unknown"),
        (holders.signed_receipt(receipt).model_copy(update={"kind": DataKind.CONTRACT}),
         "receipt_signature_forged"),
        (receipt.model_copy(update={"service": "nobody"}), "receipt_holder_unknown"),
    ):  # fmt: skip
        with pytest.raises(Poison, match=reason):
            async with bench.transaction() as ctx:
                await handle(ctx, [received(topics.RETENTION_RECEIPT, wrong, bench.now)])
        assert not await is_complete(bench, order)
    async with bench.transaction() as ctx:
        good = received(topics.RETENTION_RECEIPT, holders.signed_receipt(receipt), bench.now)
        await handle(ctx, [good])
    assert await is_complete(bench, order)


async def test_many_records_are_more_orders_of_one_kind_and_holder_each(
    bench: Bench[Store], holder: str
) -> None:
    """R-D9: each record in exactly one order, none larger than a message may be."""
    events = [
        told(holder, Happening.PURPOSE_FULFILLED, bench.now.date()) for _ in range(RECORDS_MAX + 1)
    ]
    other = told(holder, Happening.REJECTION_ANNOUNCED, date(2026, 1, 1))
    await tell(bench, *events, other)
    orders = await sweep(bench, holder)
    assert sorted(len(order.record_ids) for order in orders) == [1, 1, RECORDS_MAX]
    ordered = [record_id for order in orders for record_id in order.record_ids]
    assert sorted(ordered) == sorted(event.record_id for event in [*events, other])
    assert {(o.kind, len(o.record_ids)) for o in orders} >= {(DataKind.APPLICATION, 1)}


async def test_the_evidence_of_a_deleted_record_goes_by_its_own_rule(
    bench: Bench[Store], holder: str
) -> None:
    """R-D10: after three calendar years, with its order; what is kept or open still stays.

    In years that are over: the database drops no evidence of later ones.
    """
    bench.now = bench.now.replace(year=bench.now.year - 4, day=1)
    gone = told(holder, Happening.PURPOSE_FULFILLED, bench.now.date())
    kept = told(holder, Happening.REJECTION_ANNOUNCED, bench.now.date())
    held = again(kept, Happening.HOLD_PLACED, bench.now.date())
    await tell(bench, gone, kept, held)
    (order,) = await sweep(bench, holder)
    await answer(bench, order)
    year = bench.now.year
    ids = "SELECT record_id FROM retention_record WHERE holder = $1 ORDER BY first_told_at"
    bench.now = datetime(year + 3, 12, 31, 22, 59, tzinfo=UTC)
    await sweep(bench, holder)
    assert len(await bench.fetch(ids, holder)) == 2
    bench.now += timedelta(minutes=1)
    await sweep(bench, holder)
    assert [row["record_id"] for row in await bench.fetch(ids, holder)] == [kept.record_id]
    events = "SELECT FROM retention_record_event WHERE record_id = $1"
    assert await bench.fetch(events, gone.record_id) == []
    sql = "SELECT FROM retention_order WHERE order_id = $1"
    assert await bench.fetch(sql, order.order_id) == []


async def test_a_holder_that_was_silent_for_long_is_ordered_again(
    bench: Bench[Store], holder: str
) -> None:
    """D3: before the first order has left its topic."""
    assert timedelta(milliseconds=topics.RETENTION_ORDER.retention_ms) > REPEAT_AFTER
    event = told(holder, Happening.PURPOSE_FULFILLED, bench.now.date())
    await tell(bench, event)
    (first,) = await sweep(bench, holder)
    bench.now += REPEAT_AFTER
    assert await sweep(bench, holder) == []
    bench.now += timedelta(minutes=1)
    (second,) = await sweep(bench, holder)
    assert second.record_ids == first.record_ids
    assert second.order_id != first.order_id


def shorter(version: str, months: int) -> Schedule:
    """Return the schedule with another period for applications."""
    document = SCHEDULE.model_dump(mode="json")
    for rule in document["rules"]:
        if rule["kind"] == "application":
            rule["period"]["months"] = months
    return Schedule.model_validate({**document, "version": version}, strict=False)


async def test_a_new_rule_counts_for_what_was_told_before(bench: Bench[Store], holder: str) -> None:
    """R-D9: computed anew with the first sweep of the new schedule, not when more is told."""
    event = told(holder, Happening.REJECTION_ANNOUNCED, bench.now.date() - timedelta(days=45))
    await tell(bench, event)
    assert await sweep(bench, holder) == []
    (order,) = await sweep(bench, holder, shorter("test.1", 1))
    assert order.record_ids == (event.record_id,)


async def test_a_due_record_without_order_is_a_violation(
    bench: Bench[Store], world: World, holder: str
) -> None:
    """D1: by the clock of the database, once a sweep and a day have passed it by."""
    clock: datetime = (await bench.fetch("SELECT now()"))[0]["now"]
    assert await violations(bench) == {}
    bench.now = clock - timedelta(hours=26)
    await tell(bench, told(holder, Happening.PURPOSE_FULFILLED, bench.now.date()))
    assert await violations(bench) == {"d1_no_record_due_without_order": 1}
    bench.now = clock
    await sweep(bench, holder)
    assert await violations(bench) == {}


async def test_a_record_that_nobody_watches_is_a_violation(
    bench: Bench[Store], world: World, holder: str
) -> None:
    """D1: told, but without the row that says when it is due."""
    event = told(holder, Happening.REJECTION_ANNOUNCED, bench.now.date())
    await tell(bench, event)
    owner = await asyncpg.connect(world.owner_url("retention"))
    try:
        await owner.execute(
            "DELETE FROM retention_record_due WHERE record_id = $1", event.record_id
        )
        assert await violations(bench) == {"d1_every_record_is_watched": 1}
    finally:
        await owner.close()
    await tell(bench, again(event, Happening.REJECTION_ANNOUNCED, bench.now.date()))
    assert await violations(bench) == {}


async def test_what_was_told_is_never_changed(bench: Bench[Store], holder: str) -> None:
    """R-D9: also not by the service itself."""
    event = told(holder, Happening.PURPOSE_FULFILLED, bench.now.date())
    await tell(bench, event)
    for table in ("retention_record", "retention_record_event", "retention_record_order"):
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET record_id = record_id"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await bench.fetch(statement)


async def test_without_a_threat_each_sweep_orders_the_addresses_again(
    bench: Bench[Store],
) -> None:
    """R-C3, R-D2: what the day brought since the last one; all other cuts are ordered once."""
    document = SCHEDULE.model_dump(mode="json")
    day = bench.now.date().isoformat()
    none = {"assessed_on": day, "level": "none", "author": "test", "reason": "test"}
    document["threat_assessments"].append(none)
    schedule = Schedule.model_validate({**document, "version": "test.2"}, strict=False)
    kinds = []
    for _ in range(3):
        async with bench.transaction() as ctx:
            await issue(ctx, schedule, bench.now, overdue_after=QUARTER_HOUR)
            orders = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
        kinds.append([order.kind for order in orders if order.holder is None])
        assert orders[0].before_day == bench.now.date() + timedelta(days=1)
    assert kinds[1:] == [[DataKind.IP_ADDRESS]] * 2


async def test_our_own_services_leave_records_alone(bench: Bench[Store]) -> None:
    """D2, D3: an order to a holder is carried out, recorded and answered by nobody else."""
    order = RetentionOrderV1(
        order_id=IDS.new(),
        kind=DataKind.CONTACT,
        action=RetentionAction.DROP,
        before_day=bench.now.date(),
        as_of=bench.now,
        record_ids=(IDS.new(),),
        holder="crm",
    )
    async with bench.transaction() as ctx:
        batch = [received(topics.RETENTION_ORDER, order, bench.now)]
        await Executor((), simulation=False).on_orders(ctx, batch)
        assert ctx.outbox.rows == []
        assert ctx.counts == {(topics.RETENTION_ORDER.name, "not_ours"): 1}
    sql = "SELECT FROM retention_done WHERE order_id = $1"
    assert await bench.fetch(sql, UUID(str(order.order_id))) == []
