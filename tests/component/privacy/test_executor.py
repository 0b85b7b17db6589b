"""The executor of retention orders on real PostgreSQL (R-D5, R-D9, D1, D3, D4)."""

import json
from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from schemas.retention import (
    DataKind,
    RetentionAction,
    RetentionOrderV1,
    RetentionReceiptV1,
    TableCount,
)
from services.chassis.context import Context
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.consent import classification
from services.consent.store import Store
from services.privacy.chain import SigningKeys, canonical
from services.privacy.declare import Table
from services.privacy.executor import BeforeDrop, Executor, Hooks
from services.privacy.receipts import Signatories
from tests.support import protected
from tests.support.bench import Bench, new_visitor_id, open_bench
from tests.support.stack import World

WORLD_SERVICES = ("consent",)
IDS = TimeOrderedIds()
# a part of consent's: what is counted here does not change with each table that it gets
COUNTED = ("consent_subject", "consent_record", "privacy_erased")
TABLES = tuple(table for table in classification.TABLES if table.name in COUNTED)
NOBODY_ERASED = TableCount(table="privacy_erased", n_partitions=0, n_rows=0)


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "consent", Store, days_of=("consent_subject",)) as found:
        await found.fetch("DELETE FROM consent_subject")
        yield found


def order(
    bench: Bench[Store],
    before_day: date,
    *,
    kind: DataKind = DataKind.AD_USE,
    ahead: timedelta = timedelta(0),
) -> RetentionOrderV1:
    return RetentionOrderV1(
        order_id=IDS.new(),
        kind=kind,
        action=RetentionAction.DROP,
        before_day=before_day,
        as_of=bench.now + ahead,
    )


async def fill(bench: Bench[Store], day: date, n_rows: int) -> None:
    await bench.fetch("SELECT chassis_day_add('consent_subject', $1)", day)
    for _ in range(n_rows):
        await bench.fetch(
            "INSERT INTO consent_subject (subject_day, visitor_id, proof_id) VALUES ($1, $2, $3)",
            day,
            new_visitor_id(),
            IDS.new(),
        )


async def days(bench: Bench[Store]) -> dict[date, int]:
    rows = await bench.fetch("SELECT subject_day, count(*) AS n FROM consent_subject GROUP BY 1")
    return {row["subject_day"]: row["n"] for row in rows}


async def carry_out(
    bench: Bench[Store],
    *orders: RetentionOrderV1,
    simulation: bool = False,
    keys: SigningKeys | None = None,
    before_drop: BeforeDrop | None = None,
) -> list[RetentionReceiptV1]:
    """Handle orders as one poll, and the drops that it noted; return the receipts."""
    hooks = Hooks() if before_drop is None else Hooks(before_drop=before_drop)
    executor = Executor(TABLES, simulation=simulation, keys=keys, hooks=hooks)
    return await protected.carry_out(bench, executor, *orders)


async def test_days_before_the_cut_go_and_the_receipt_counts_them(bench: Bench[Store]) -> None:
    """R-D5, D1, D4: the day of the cut stays; the receipt holds counts and nothing else."""
    today = bench.now.date()
    cut = today - timedelta(days=6)
    for n_days, n_rows in ((9, 2), (7, 3), (6, 4), (0, 1)):
        await fill(bench, today - timedelta(days=n_days), n_rows)
    issued = order(bench, cut)
    (receipt,) = await carry_out(bench, issued)
    assert await days(bench) == {cut: 4, today: 1}
    assert receipt == RetentionReceiptV1(
        order_id=issued.order_id,
        service="consent",
        kind=DataKind.AD_USE,
        counts=(TableCount(table="consent_subject", n_partitions=2, n_rows=5), NOBODY_ERASED),
        done_at=bench.now,
    )


async def test_the_same_order_again_gets_the_same_receipt_and_does_nothing(
    bench: Bench[Store],
) -> None:
    """R-D9: idempotent by the order's id, within a poll and in a later one."""
    day = bench.now.date() - timedelta(days=8)
    await fill(bench, day, 2)
    issued = order(bench, day + timedelta(days=1))
    (first,) = await carry_out(bench, issued, issued)
    (second,) = await carry_out(bench, issued)
    await fill(bench, day, 1)
    bench.now += timedelta(hours=1)
    (third,) = await carry_out(bench, issued)
    assert first == second == third
    assert (await days(bench)).get(day) == 1


async def test_a_receipt_is_signed_by_its_service(bench: Bench[Store]) -> None:
    """R-D9: the first time and again; another service's key, or another count, is no signature."""
    keys, other = SigningKeys({"k1": "11" * 32}), SigningKeys({"k1": "22" * 32})
    issued = order(bench, bench.now.date() - timedelta(days=20))
    (first,) = await carry_out(bench, issued, keys=keys)
    (second,) = await carry_out(bench, issued, keys=keys)
    assert first == second
    signatories = Signatories(json.dumps({"consent": keys.public(), "ad_ledger": other.public()}))
    assert signatories.is_valid(first)
    more = first.counts[0].model_copy(update={"n_rows": 7})
    figures = first.counts[0].model_copy(update={"n_figures": 1})
    for change in (
        {"counts": (figures, *first.counts[1:])},
        {"service": "ad_ledger"},
        {"service": "call_control"},
        {"order_id": IDS.new()},
        {"counts": (more,)},
        {"key_id": "k2"},
        {"signature": None, "key_id": None},
    ):
        assert not signatories.is_valid(first.model_copy(update=change))
    # a service of the version before signs what it knows: without figures
    known = first.model_dump(mode="json", exclude={"key_id", "signature"})
    for count in known["counts"]:
        del count["n_figures"]
    key_id, signature = keys.sign(b"receipt\0" + canonical(known))
    earlier = {"key_id": key_id, "signature": signature.hex()}
    assert signatories.is_valid(first.model_copy(update=earlier))
    outside = first.model_copy(update={"service": "billing", "signature": None, "key_id": None})
    assert not signatories.is_valid(outside), "a system outside has a register of its own"


async def test_a_kind_that_the_service_does_not_hold_is_answered_too(bench: Bench[Store]) -> None:
    """D3: silence would look like a service that is down."""
    (receipt,) = await carry_out(bench, order(bench, date(2026, 1, 1), kind=DataKind.TRAFFIC_DATA))
    assert receipt.counts == ()
    assert receipt.service == "consent"


async def test_an_order_with_nothing_due_is_answered_with_zeros(bench: Bench[Store]) -> None:
    """D3."""
    (receipt,) = await carry_out(bench, order(bench, date(2026, 1, 1)))
    nothing = TableCount(table="consent_subject", n_partitions=0, n_rows=0)
    assert receipt.counts == (nothing, NOBODY_ERASED)


async def test_an_order_from_the_future_is_poison_outside_a_simulation(bench: Bench[Store]) -> None:
    """R-D9: each service refuses by itself what would drop data that is not due."""
    today = bench.now.date()
    await fill(bench, today, 1)
    issued = order(bench, today + timedelta(days=1), ahead=timedelta(days=8))
    with pytest.raises(Poison, match="order_from_the_future"):
        await carry_out(bench, issued)
    assert await days(bench) == {today: 1}


async def test_a_simulation_drops_today_and_can_write_on(bench: Bench[Store]) -> None:
    """R-D5: eight days later nothing is left, and the days of the real clock are there again."""
    today = bench.now.date()
    await fill(bench, today, 3)
    issued = order(bench, today + timedelta(days=3), ahead=timedelta(days=8))
    (receipt,) = await carry_out(bench, issued, simulation=True)
    assert receipt.counts[0].n_rows == 3
    assert await days(bench) == {}
    await bench.fetch(
        "INSERT INTO consent_subject (subject_day, visitor_id, proof_id) VALUES ($1, $2, $3)",
        today,
        new_visitor_id(),
        IDS.new(),
    )


async def test_a_service_settles_in_the_same_transaction_before_rows_go(
    bench: Bench[Store],
) -> None:
    """L1, R-D5: what must outlive the rows is written while they are still there."""
    day = bench.now.date() - timedelta(days=8)
    await fill(bench, day, 2)
    seen: list[tuple[UUID, str, int]] = []

    async def settle(ctx: Context[Any], table: Table, issued: RetentionOrderV1) -> None:
        n_rows = await ctx.connection.fetchval("SELECT count(*) FROM consent_subject")
        seen.append((issued.order_id, table.name, n_rows))

    issued = order(bench, day + timedelta(days=1))
    await carry_out(bench, issued, before_drop=settle)
    await carry_out(bench, issued, before_drop=settle)
    assert seen == [
        (issued.order_id, "consent_subject", 2),
        (issued.order_id, "privacy_erased", 2),
    ]


async def test_a_failure_leaves_neither_deed_nor_receipt(bench: Bench[Store]) -> None:
    """R-D9: no receipt without its deed, no deed without its receipt."""
    day = bench.now.date() - timedelta(days=8)
    await fill(bench, day, 2)
    issued = order(bench, day + timedelta(days=1))
    executor = Executor(TABLES, simulation=False)
    assert await protected.poll(bench, executor, issued) == []

    async def fail_after_the_drop() -> None:
        async with bench.transaction() as ctx:
            await executor.retry(ctx)
            assert len(ctx.outbox.rows) == 1
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await fail_after_the_drop()
    assert await days(bench) == {day: 2}
    # in rotation: what failed is tried again after all others
    assert await protected.retry(bench, executor) == (False, [])
    _, (receipt,) = await protected.retry(bench, executor)
    assert receipt.counts[0].n_rows == 2


async def test_a_drop_that_the_database_refuses_ends_neither_the_service_nor_the_others(
    bench: Bench[Store],
) -> None:
    """D3: it waits, unanswered, and can be done once its cause is mended."""
    day = bench.now.date() - timedelta(days=8)
    await fill(bench, day, 2)
    broken = [True]

    async def settle(ctx: Context[Any], table: Table, issued: RetentionOrderV1) -> None:
        if broken and table.name == "consent_subject":
            await ctx.connection.execute("INSERT INTO retention_done SELECT")

    refused = order(bench, day + timedelta(days=1))
    other = order(bench, date(2020, 1, 1), kind=DataKind.CONSENT_RECORD)
    executor = Executor(TABLES, simulation=False, hooks=Hooks(before_drop=settle))
    (receipt,) = await protected.carry_out(bench, executor, refused, other)
    assert receipt.order_id == other.order_id
    assert await days(bench) == {day: 2}
    broken.clear()
    (receipt,) = await protected.carry_out(bench, executor, refused)
    assert receipt.order_id == refused.order_id
    assert await days(bench) == {}
