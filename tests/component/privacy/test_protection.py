"""Erase, hold, release and restrict on the real tables of each service (R-D3, R-G3, R-G4, D2)."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from schemas.retention import DataKind, RetentionAction, RetentionReceiptV1
from services.chassis import db
from services.chassis.errors import Poison
from services.privacy import calendar
from services.privacy.invariants import D2_INVARIANTS
from services.privacy.order_store import OrderStore
from services.privacy.waiting import TASK
from services.retention.schedule import YearsPeriod, load
from services.retention.settings import DEFAULT_SCHEDULE
from tests.support.bench import IDS, new_visitor_id
from tests.support.protected import KINDS, Side, open_side, poll, total
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger", "call_control", "consent")
ERASE, HOLD, RELEASE = RetentionAction.ERASE, RetentionAction.HOLD, RetentionAction.RELEASE
RESTRICT, UNRESTRICT = RetentionAction.RESTRICT, RetentionAction.UNRESTRICT
# rows of one visitor and day, by table
ROWS = {
    "ad_ledger": {
        "lot": 1, "posting": 3, "ad_view": 2, "visitor_watch": 1, "reservation": 1,
        "reservation_share": 1, "ad_view_address": 1, "partner_report": 1,
    },
    "call_control": {"call": 1, "call_leg": 2, "call_order": 1, "call_address": 1},
    "consent": {"consent_subject": 1, "consent_transfer_visitor": 1},
}  # fmt: skip
NAMING = {table for tables in ROWS.values() for table in tables}
LIVE_SIDES = ("ad_ledger", "call_control")


@pytest.fixture(params=WORLD_SERVICES)
async def side(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    async with open_side(world, request.param) as found:
        yield found


@pytest.fixture(params=LIVE_SIDES)
async def busy_side(world: World, request: pytest.FixtureRequest) -> AsyncIterator[Side]:
    async with open_side(world, request.param) as found:
        yield found


@pytest.fixture
async def calls(world: World) -> AsyncIterator[Side]:
    async with open_side(world, "call_control") as found:
        yield found


def gone(side: Side) -> dict[str, tuple[int, int, int]]:
    return {table: (n, 0, 0) for table, n in ROWS[side.name].items()}


def settled_posting(side: Side) -> dict[str, int]:
    """One row more: what was available is expired before the rows go."""
    return {**ROWS[side.name], **({"posting": 4} if side.name == "ad_ledger" else {})}


def of(side: Side, n_held: int = 0, n_restricted: int = 0) -> dict[str, tuple[int, int, int]]:
    """The receipt of an order that met one visitor's rows and spared all of them."""
    return {table: (0, n * n_held, n * n_restricted) for table, n in settled_posting(side).items()}


def without_proofs(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """Leave out tables whose rows name nobody."""
    return {table: found for table, found in rows.items() if table in NAMING}


async def erase(side: Side, *visitors: UUID) -> list[RetentionReceiptV1]:
    return await side.handle(side.order(ERASE, *visitors))


# ------------------------------------------------------------------ erase


async def test_an_erasure_takes_a_visitors_rows_and_nobody_elses(side: Side) -> None:
    """R-G3, L1: at once, in every table, also what hangs on a row; the proof of consent stays."""
    mine, other = new_visitor_id(), new_visitor_id()
    await side.fill(other)
    before = await side.live()
    await side.fill(mine)
    await side.fill(mine, side.today - timedelta(days=1))
    receipts = await erase(side, mine)
    after = await side.live()
    assert without_proofs(after) == without_proofs(before)
    expected = {t: (2 * n, 0, 0) for t, n in settled_posting(side).items()}
    assert total(receipts) == expected
    assert await side.kept() == {}
    if side.name == "consent":
        assert len(after["consent_record"]) == 3, "a proof names no visitor (ADR 0013)"
    assert await side.violations() == {}


async def test_an_erasure_again_does_nothing_and_says_the_same(side: Side) -> None:
    """R-D9: the same order gets its first receipt; a new one finds nothing."""
    visitor = new_visitor_id()
    await side.fill(visitor)
    issued = side.order(ERASE, visitor)
    first, second = await side.handle(issued, issued)
    side.bench.now += timedelta(minutes=1)
    (third,) = await side.handle(issued)
    assert first == second == third
    assert total(await erase(side, visitor)) == {}


async def test_an_erasure_of_days_before_leaves_the_others(side: Side) -> None:
    """R-G3: an order means the days before its day, and what came later is another order's."""
    visitor = new_visitor_id()
    await side.fill(visitor, side.today - timedelta(days=1))
    expected = settled_posting(side)
    await side.fill(visitor)
    receipts = await side.handle(side.order(ERASE, visitor, before=side.today))
    assert total(receipts) == {t: (n, 0, 0) for t, n in expected.items()}
    assert await side.violations() == {}


async def test_the_sums_of_the_platform_outlive_an_erasure(world: World) -> None:
    """L1: available credit expires into the platform's account first; nobody is named there."""
    async with open_side(world, "ad_ledger") as side:
        visitor = new_visitor_id()
        await side.fill(visitor)
        await erase(side, visitor)
        rows = await side.owner.fetch("SELECT account, balance_ms FROM platform_account")
        assert dict(map(tuple, rows)) == {"issued": -4000, "spent": 3000, "expired": 1000}
        assert await side.violations() == {}


async def test_an_address_goes_with_the_view_or_call_it_hangs_on(busy_side: Side) -> None:
    """R-G3: without it nobody could find the address by its person again."""
    visitor = new_visitor_id()
    await busy_side.fill(visitor)
    kind = busy_side.tables[0].kind
    receipts = await busy_side.handle(busy_side.order(ERASE, visitor, kinds=(kind,)))
    address = next(t.name for t in busy_side.tables if t.kind is DataKind.IP_ADDRESS)
    assert total(receipts)[address] == (1, 0, 0)
    assert (await busy_side.live())[address] == []


# ------------------------------------------------------------------ a call under way


async def test_an_erasure_waits_for_the_call_to_end_and_is_not_lost(busy_side: Side) -> None:
    """R-G3, C3, L5: later, by itself; neither receipt nor deed before."""
    visitor, side = new_visitor_id(), busy_side
    await side.fill(visitor, live=True)
    before = await side.live()
    issued = side.order(ERASE, visitor)
    assert await side.handle(issued) == []
    assert await side.handle(issued) == [], "redelivered: it waits already"
    assert await side.retry() == []
    assert await side.live() == before
    assert await side.violations() == {}
    await side.end_call()
    (receipt,) = await side.retry()
    assert receipt.order_id == issued.order_id
    assert {c.table for c in receipt.counts if c.n_rows} == set(ROWS[side.name])
    assert all(rows == [] for rows in (await side.live()).values())
    assert await side.retry() == []
    assert await side.handle(issued) == [receipt]
    assert await side.violations() == {}
    lists = await side.owner.fetch("SELECT 1 FROM pg_class WHERE relname ~ '^privacy_visitor_.*'")
    assert [row for row in lists if row] == await side.owner.fetch(
        "SELECT 1 FROM pg_class WHERE relname = 'privacy_visitor_pk'"
    ), "nobody is remembered for having been erased"


async def test_a_restriction_protects_at_once_and_moves_when_the_call_has_ended(
    busy_side: Side,
) -> None:
    """R-G4, D2: what comes before the call's end, an erasure, destroys nothing."""
    visitor, side, protection = new_visitor_id(), busy_side, IDS.new()
    await side.fill(visitor, live=True)
    restrict = side.order(RESTRICT, visitor, protection_id=protection)
    assert await side.handle(restrict) == []
    assert await side.handle(side.order(ERASE, visitor)) == []
    await side.end_call()
    receipts = await side.retry()
    assert next(r.order_id for r in receipts) == restrict.order_id
    assert all(n_rows == 0 for n_rows, _, _ in total(receipts).values())
    assert set(await side.kept()) == set(ROWS[side.name])
    assert await side.violations() == {}


async def test_a_drop_destroys_nothing_of_a_restriction_that_still_waits(busy_side: Side) -> None:
    """R-G4, D2: it is in force before its rows have moved."""
    visitor, side, protection = new_visitor_id(), busy_side, IDS.new()
    await side.fill(visitor, live=True)
    await side.handle(side.order(RESTRICT, visitor, protection_id=protection))
    receipts = await side.handle(*side.drops())
    assert all(n_rows == 0 for n_rows, _, _ in total(receipts).values())
    assert set(await side.kept()) == set(ROWS[side.name])


async def test_a_restriction_lifted_while_it_waits_leaves_all_as_it_was(busy_side: Side) -> None:
    """R-G4, D3: its order is answered all the same."""
    visitor, side, protection = new_visitor_id(), busy_side, IDS.new()
    await side.fill(visitor, live=True)
    restrict = side.order(RESTRICT, visitor, protection_id=protection)
    await side.handle(restrict)
    await side.handle(side.order(UNRESTRICT, protection_id=protection))
    before = await side.live()
    (receipt,) = await side.retry()
    assert (receipt.order_id, receipt.counts) == (restrict.order_id, ())
    assert await side.live() == before
    assert await side.violations() == {}


async def test_what_is_open_cannot_be_erased_even_by_mistake(busy_side: Side) -> None:
    """L1, C3: a call or credit that begins between the look and the DELETE ends in another try."""
    visitor = new_visitor_id()
    await busy_side.fill(visitor, live=True)
    names = [t.name for t in busy_side.tables]
    with pytest.raises(asyncpg.SerializationError):
        await busy_side.bench.fetch(
            "SELECT * FROM privacy_take($1, $2, $3, $4, NULL)",
            names, [visitor], busy_side.today + timedelta(days=1), IDS.new(),
        )  # fmt: skip


async def test_credit_earned_between_settling_and_erasing_is_not_lost(world: World) -> None:
    """L1: the same for what is only available."""
    async with open_side(world, "ad_ledger") as side:
        visitor = new_visitor_id()
        await side.fill(visitor)
        with pytest.raises(asyncpg.SerializationError):
            await side.bench.fetch(
                "SELECT * FROM privacy_take('{lot}', $1, $2, $3, NULL)",
                [visitor], side.today + timedelta(days=1), IDS.new(),
            )  # fmt: skip


# ------------------------------------------------------------------ hold, release


@pytest.mark.parametrize("by", ["drop", "erase"])
async def test_held_rows_survive_until_the_release(side: Side, by: str) -> None:
    """R-D3, D2: readable until they fall due, then kept as they were, then gone with the hold."""
    mine, other, hold = new_visitor_id(), new_visitor_id(), IDS.new()
    await side.fill(mine)
    before = without_proofs(await side.live())
    await side.fill(other)
    receipts = await side.handle(side.order(HOLD, mine, protection_id=hold))
    assert total(receipts) == {t: (0, n, 0) for t, n in ROWS[side.name].items()}
    assert (
        before.items()
        <= {
            t: [row for row in rows if str(mine) in row or row in before[t]]
            for t, rows in without_proofs(await side.live()).items()
        }.items()
    )
    orders = side.drops() if by == "drop" else [side.order(ERASE, mine, other)]
    receipts = [r for order in orders for r in await side.handle(order)]
    # an expiry was posted for each before
    assert total(receipts) == {t: (n, n, 0) for t, n in settled_posting(side).items()}
    assert all(rows == [] for rows in without_proofs(await side.live()).values())
    kept = await side.kept()
    assert {t: len(rows) for t, rows in kept.items()} == settled_posting(side)
    if side.name != "ad_ledger":  # there `lot` and `posting` say that it expired
        assert kept == before
    assert await side.violations() == {}
    receipts = await side.handle(side.order(RELEASE, protection_id=hold))
    assert total(receipts) == {t: (n, 0, 0) for t, n in settled_posting(side).items()}
    assert await side.kept() == {}
    assert await side.violations() == {}


async def test_a_hold_after_the_drop_finds_nothing(side: Side) -> None:
    """R-D3: order of arrival; what is gone is gone."""
    visitor = new_visitor_id()
    await side.fill(visitor)
    await side.handle(*side.drops())
    receipts = await side.handle(side.order(HOLD, visitor, protection_id=IDS.new()))
    assert total(receipts) == {}


async def test_rows_that_come_after_the_hold_are_held(side: Side) -> None:
    """R-D3, D2."""
    visitor = new_visitor_id()
    await side.handle(side.order(HOLD, visitor, protection_id=IDS.new()))
    await side.fill(visitor)
    assert total(await erase(side, visitor)) == of(side, n_held=1)


async def test_two_holds_keep_a_row_until_both_are_released(side: Side) -> None:
    """R-D3, D2: also where the second came when the first kept it already."""
    visitor, one, two = new_visitor_id(), IDS.new(), IDS.new()
    await side.fill(visitor)
    await side.handle(side.order(HOLD, visitor, protection_id=one))
    await erase(side, visitor)
    receipts = await side.handle(side.order(HOLD, visitor, protection_id=two))
    assert total(receipts) == of(side, n_held=1)
    kept = await side.kept()
    receipts = await side.handle(side.order(RELEASE, protection_id=one))
    assert total(receipts) == of(side, n_held=1)
    assert await side.kept() == kept
    receipts = await side.handle(side.order(RELEASE, protection_id=two))
    assert total(receipts) == {t: (n, 0, 0) for t, n in settled_posting(side).items()}
    assert await side.kept() == {}
    assert await side.violations() == {}


async def test_a_hold_of_a_kind_and_days_needs_no_visitor(world: World) -> None:
    """R-D3: proofs of consent of some days, past the drop of their year."""
    async with open_side(world, "consent") as side:
        days = [side.today.replace(year=side.today.year - 1, month=3, day=n) for n in (1, 2, 3)]
        year = f"consent_record_y{days[0].year}"
        await side.owner.execute(
            "SELECT chassis_range_add('consent_record', $1, $2, $3)",
            year, f"{days[0].year}-01-01", f"{days[0].year + 1}-01-01",
        )  # fmt: skip
        for day in days:
            await side.owner.execute(
                "INSERT INTO consent_record VALUES "
                "($1, $2, 'marketing', $3, 'given', 'v1', 'de.1', 'de', 'banner', now(), 0, 1,"
                " decode(repeat('11', 32), 'hex'))",
                day, IDS.new(), IDS.new(),
            )  # fmt: skip
        kinds, hold = (DataKind.CONSENT_RECORD,), IDS.new()
        order = side.order(HOLD, kinds=kinds, protection_id=hold, from_day=days[1], before=days[2])
        assert total(await side.handle(order)) == {"consent_record": (0, 1, 0)}
        drop = side.order(RetentionAction.DROP, kinds=kinds, before=side.today)
        (receipt,) = await side.handle(drop)
        assert total([receipt]) == {"consent_record": (2, 1, 0)}
        assert receipt.counts[0].n_partitions == 1
        (row,) = (await side.kept())["consent_record"]
        assert f'"ends_on": "{days[1]}"' in row
        released = await side.handle(side.order(RELEASE, kinds=kinds, protection_id=hold))
        assert total(released) == {"consent_record": (1, 0, 0)}


async def test_what_is_about_everybody_is_no_part_of_a_poll(calls: Side) -> None:
    """D2, D3: in force at once; its rows are counted, and given up, beside the other records."""
    visitor, hold = new_visitor_id(), IDS.new()
    await calls.fill(visitor)
    placed, release = (
        calls.order(HOLD, protection_id=hold),
        calls.order(RELEASE, protection_id=hold),
    )
    assert await poll(calls.bench, calls.executor, placed) == []
    protections = "SELECT count(*) FROM privacy_protection WHERE released_at IS NULL"
    assert await calls.owner.fetchval(protections) == 1
    (receipt,) = await calls.retry()
    assert (receipt.order_id, total([receipt])) == (
        placed.order_id, {t: (0, n, 0) for t, n in ROWS["call_control"].items()},
    )  # fmt: skip
    await calls.handle(*calls.drops())
    kept = await calls.kept()
    assert await poll(calls.bench, calls.executor, release, placed) == [receipt]
    assert await calls.kept() == kept
    (receipt,) = await calls.retry()
    assert (receipt.order_id, total([receipt])) == (release.order_id, gone(calls))
    assert await poll(calls.bench, calls.executor, release) == [receipt]
    assert await calls.kept() == {}
    assert await calls.violations() == {}


@pytest.mark.parametrize("by", ["the first one's release", "time"])
async def test_a_second_hold_of_everybody_copies_nothing_in_a_poll(calls: Side, by: str) -> None:
    """D2: rows that another one keeps are safe from the poll on, and copied in their own time."""
    visitor, (first, second), limit_s = new_visitor_id(), (IDS.new(), IDS.new()), 1.0
    await calls.fill(visitor)
    await calls.handle(calls.order(HOLD, visitor, protection_id=first))
    await calls.handle(*calls.drops())
    kept = await calls.kept()
    assert kept["call"]
    of_second = f"SELECT count(*) FROM privacy_kept WHERE protection_id = '{second}'"
    placed = calls.order(HOLD, protection_id=second)
    hurried = await db.connect(calls.bench.url, command_timeout_s=limit_s)
    side = replace(calls, bench=replace(calls.bench, connection=hurried))
    try:
        if by == "time":
            await calls.owner.execute(
                f"""
                CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep({limit_s + 0.5}); RETURN NEW; END $$;
                CREATE TRIGGER slow BEFORE INSERT ON privacy_kept FOR EACH ROW
                    WHEN (NEW.source = 'call') EXECUTE FUNCTION slow()
                """
            )
        assert await poll(side.bench, side.executor, placed) == []
        assert await calls.owner.fetchval(of_second) == 0
        if by != "time":
            ends = calls.order(RELEASE, protection_id=first)
            assert len(await poll(side.bench, side.executor, ends)) == 1
            assert await calls.kept() == kept
            assert await calls.owner.fetchval(of_second) > 0
        (receipt,) = await side.retry()
    finally:
        await hurried.close()
        await calls.owner.execute("DROP FUNCTION IF EXISTS slow CASCADE")
    assert total([receipt])["call"] == (0, 1, 0)
    assert (
        await calls.owner.fetchval("SELECT count(*) FROM privacy_protection p WHERE lacks_copies")
        == 0
    )
    await calls.handle(calls.order(RELEASE, protection_id=first))
    assert await calls.kept() == kept
    assert total(await calls.handle(calls.order(RELEASE, protection_id=second)))["call"][0] == 1
    assert await calls.kept() == {}
    assert await calls.violations() == {}


async def test_a_day_of_which_much_is_held_goes_all_the_same(calls: Side) -> None:
    """D1, D2: as long as it takes. A limit as of other statements would undo it again and again."""
    hold, limit_s = IDS.new(), 3.0
    await calls.fill(new_visitor_id())
    hurried = await db.connect(calls.bench.url, command_timeout_s=limit_s)
    side = replace(calls, bench=replace(calls.bench, connection=hurried))
    try:
        await calls.owner.execute(
            f"""
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep({limit_s + 1}); RETURN NEW; END $$;
            CREATE TRIGGER slow BEFORE INSERT ON privacy_kept FOR EACH ROW
                WHEN (NEW.source = 'call') EXECUTE FUNCTION slow();
            CREATE TRIGGER slow BEFORE UPDATE ON privacy_protection FOR EACH ROW
                EXECUTE FUNCTION slow()
            """
        )
        await calls.owner.execute("BEGIN; LOCK TABLE call IN ACCESS EXCLUSIVE MODE")
        placing = asyncio.create_task(side.handle(side.order(HOLD, protection_id=hold)))
        await asyncio.sleep(limit_s + 1)
        await calls.owner.execute("COMMIT")
        assert len(await placing) == 1
        assert set(total(await side.handle(*side.drops()))) == set(ROWS["call_control"])
        assert total(await side.handle(side.order(RELEASE, protection_id=hold))) == gone(calls)
    finally:
        await hurried.close()
        await calls.owner.execute("ROLLBACK")
        await calls.owner.execute("DROP FUNCTION IF EXISTS slow CASCADE")


async def test_a_held_address_outlives_the_call_that_names_its_person(calls: Side) -> None:
    """D2, R-D2: its period may be longer than the call's; without the call nobody could find it."""
    visitor, hold = new_visitor_id(), IDS.new()
    await calls.fill(visitor)
    address = (await calls.live())["call_address"]
    traffic, ip = (DataKind.TRAFFIC_DATA,), (DataKind.IP_ADDRESS,)
    await calls.handle(calls.order(HOLD, visitor, kinds=ip, protection_id=hold))
    (receipt,) = await calls.handle(calls.order(RetentionAction.DROP, kinds=traffic))
    assert total([receipt])["call_address"] == (0, 1, 0)
    assert await calls.kept() == {"call_address": address}
    # not due yet, so it goes back at the release and ends by its own rule
    yesterday = calls.today
    released = await calls.handle(calls.order(RELEASE, protection_id=hold, before=yesterday))
    assert total(released) == {"call_address": (0, 1, 0)}
    assert (await calls.live())["call_address"] == address
    dropped = await calls.handle(calls.order(RetentionAction.DROP, kinds=ip))
    assert total(dropped) == {"call_address": (1, 0, 0)}


# ------------------------------------------------------------------ restrict, unrestrict


async def test_restricted_rows_leave_at_once_and_come_back_as_they_were(side: Side) -> None:
    """R-G4, D2, L1: nobody reads them meanwhile; lifted before they are due, they are back."""
    mine, other, restriction = new_visitor_id(), new_visitor_id(), IDS.new()
    await side.fill(mine)
    await side.fill(other)
    receipts = await side.handle(side.order(RESTRICT, mine, protection_id=restriction))
    assert total(receipts) == of(side, n_restricted=1)
    live, kept = await side.live(), await side.kept()
    assert str(mine) not in str(live)
    assert await side.violations() == {}
    for table in ("privacy_kept", f"privacy_kept_{restriction.hex}"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await side.bench.fetch(f"SELECT * FROM {table}")
    lift = side.order(UNRESTRICT, protection_id=restriction, before=side.today)
    assert total(await side.handle(lift)) == of(side, n_restricted=1)
    again = await side.live()
    for table, rows in kept.items():
        assert sorted([*live[table], *rows]) == again[table]
    assert await side.kept() == {}
    assert await side.violations() == {}


@pytest.mark.parametrize("by", ["drop", "erase", "cut"])
async def test_restricted_rows_that_fell_due_are_destroyed_when_it_is_lifted(
    side: Side, by: str
) -> None:
    """R-D6, R-G4: by a drop or an erasure meanwhile, or by the day that the order says."""
    visitor, restriction = new_visitor_id(), IDS.new()
    await side.fill(visitor)
    await side.handle(side.order(RESTRICT, visitor, protection_id=restriction))
    orders = {"drop": side.drops(), "erase": [side.order(ERASE, visitor)], "cut": []}[by]
    receipts = [r for order in orders for r in await side.handle(order)]
    assert total(receipts) == (of(side, n_restricted=1) if orders else {})
    before = side.today + timedelta(days=1 if by == "cut" else 0)
    lift = side.order(UNRESTRICT, protection_id=restriction, before=before)
    assert total(await side.handle(lift)) == {
        t: (n, 0, 0) for t, n in settled_posting(side).items()
    }
    assert await side.kept() == {}
    assert all(rows == [] for rows in without_proofs(await side.live()).values())
    assert await side.violations() == {}


async def test_a_restricted_row_under_a_hold_outlives_the_restriction(side: Side) -> None:
    """D2: both name it; erased meanwhile, it lives until the second is over."""
    visitor, restriction, hold = new_visitor_id(), IDS.new(), IDS.new()
    await side.fill(visitor)
    await side.handle(side.order(RESTRICT, visitor, protection_id=restriction))
    receipts = await side.handle(side.order(HOLD, visitor, protection_id=hold))
    assert total(receipts) == of(side, n_held=1)
    assert total(await erase(side, visitor)) == of(side, n_held=1, n_restricted=1)
    await side.handle(side.order(UNRESTRICT, protection_id=restriction))
    assert {t: len(rows) for t, rows in (await side.kept()).items()} == settled_posting(side)
    released = await side.handle(side.order(RELEASE, protection_id=hold))
    assert total(released) == {t: (n, 0, 0) for t, n in settled_posting(side).items()}


async def test_rows_come_back_into_tables_that_have_grown(side: Side) -> None:
    """R-G4, D2: a release in which a table got a column; or nobody could lift it any more."""
    visitor, restriction, hold = new_visitor_id(), IDS.new(), IDS.new()
    await side.fill(visitor)
    for protection, action in ((hold, HOLD), (restriction, RESTRICT)):
        await side.handle(side.order(action, visitor, protection_id=protection))
    tables = [table.name for table in side.tables if table.name in NAMING]
    try:
        for table in tables:
            await side.owner.execute(f"ALTER TABLE {table} ADD COLUMN later int NOT NULL DEFAULT 7")
        lift = side.order(UNRESTRICT, protection_id=restriction, before=side.today)
        assert total(await side.handle(lift)) == of(side, n_restricted=1)
        grown = await side.owner.fetch(
            " UNION ALL ".join(f"SELECT later FROM {table}" for table in tables)
        )
        assert [row["later"] for row in grown] == [7] * sum(settled_posting(side).values())
        live = await side.live()
        # what the hold still has of them is no newer than they are
        released = await side.handle(side.order(RELEASE, protection_id=hold, before=side.today))
        assert total(released) == of(side, n_held=1)
        assert await side.live() == live
    finally:
        for table in tables:
            await side.owner.execute(f"ALTER TABLE {table} DROP COLUMN later")
    assert await side.violations() == {}


async def test_two_restrictions_keep_rows_from_their_tables_until_both_are_lifted(
    side: Side,
) -> None:
    """R-G4, D2: who lifts the one does not lift the other."""
    visitor, one, two = new_visitor_id(), IDS.new(), IDS.new()
    await side.fill(visitor)
    for protection in (one, two):
        await side.handle(side.order(RESTRICT, visitor, protection_id=protection))
    live, kept = await side.live(), await side.kept()
    lift = side.order(UNRESTRICT, protection_id=one, before=side.today)
    assert total(await side.handle(lift)) == of(side, n_restricted=1)
    assert (await side.live(), await side.kept()) == (live, kept)
    await side.handle(side.order(UNRESTRICT, protection_id=two, before=side.today))
    assert {t: len(rows) for t, rows in without_proofs(await side.live()).items()} == (
        settled_posting(side)
    )
    assert await side.kept() == {}


async def test_a_link_to_proofs_comes_back_only_where_there_is_no_newer_one(world: World) -> None:
    """K3: one proof per visitor; consent refuses to work with two."""
    async with open_side(world, "consent") as side:
        visitor, restriction = new_visitor_id(), IDS.new()
        await side.fill(visitor, side.today - timedelta(days=1))
        restrict = side.order(RESTRICT, visitor, protection_id=restriction)
        await side.handle(restrict)
        await side.fill(visitor)
        newer = (await side.live())["consent_subject"]
        lift = side.order(
            UNRESTRICT, protection_id=restriction, before=side.today - timedelta(days=1)
        )
        assert total(await side.handle(lift))["consent_subject"] == (1, 0, 0)
        assert (await side.live())["consent_subject"] == newer
        assert await side.violations() == {}


async def test_credit_whose_ticket_was_used_anew_does_not_come_back(world: World) -> None:
    """L1, L3: a visitor's rows refer to each other: they return together or not at all."""
    async with open_side(world, "ad_ledger") as side:
        visitor, restriction = new_visitor_id(), IDS.new()
        await side.fill(visitor)
        lot = (await side.owner.fetch("SELECT lot_day, ticket_id FROM lot"))[0]
        await side.handle(side.order(RESTRICT, visitor, protection_id=restriction))
        await side.owner.execute(
            """
            WITH v AS (INSERT INTO ad_view
                       VALUES ($1, $2, 'complete', $3, now(), 1, 7, '2026-1', false)),
            p AS (INSERT INTO posting (lot_day, ticket_id, visitor_id, operation, debit_account,
                  credit_account, amount_ms, posted_at, kind, tariff_version)
                  VALUES ($1, $2, $3, 'grant', 'issued', 'available', 7, now(), 'complete',
                          '2026-1')),
            a AS (UPDATE platform_account SET balance_ms = balance_ms - 7 WHERE account = 'issued')
            INSERT INTO lot VALUES ($1, $2, $3, now() + interval '6 days', 7, 7, 0, 0, 0, 0)
            """,
            *lot, visitor,
        )  # fmt: skip
        lift = side.order(UNRESTRICT, protection_id=restriction, before=side.today)
        await side.handle(lift)
        assert [r["granted_ms"] for r in await side.owner.fetch("SELECT * FROM lot")] == [7]
        assert await side.violations() == {}


# ------------------------------------------------------------------ bad orders, rights, failures


async def test_the_database_knows_the_tables_as_they_are_declared(side: Side) -> None:
    """D2, D5: the owner's functions go by `privacy_table`, the executor by TABLES."""
    declared = [
        {
            "name": t.name,
            "kind": t.kind,
            "day_column": t.day_column,
            "subject_column": t.subject_column,
            "via": t.via and t.via.table,
            "own_columns": t.via and list(t.via.columns),
            "via_columns": t.via and list(t.via.columns.values()),
            "returning_rows": t.returning,
            "partition_of": t.partition_of,
            "drop_function": t.drop_function,
        }
        for t in sorted(side.tables, key=lambda table: table.name)
    ]
    assert [
        dict(row) for row in await side.bench.fetch("TABLE privacy_table ORDER BY 1")
    ] == declared


async def test_orders_that_contradict_what_is_known_are_poison_and_change_nothing(
    calls: Side,
) -> None:
    """R-D9, D2: a second meaning for an id would hide the first."""
    visitor, hold = new_visitor_id(), IDS.new()
    await calls.fill(visitor)
    placed = calls.order(HOLD, visitor, protection_id=hold)
    await calls.handle(placed)
    over = IDS.new()
    await calls.handle(calls.order(RELEASE, protection_id=over))
    before = await calls.live()
    for bad, reason in (
        (calls.order(HOLD, visitor, kinds=KINDS[:2], protection_id=hold), "protection_differs"),
        (calls.order(HOLD, protection_id=hold), "protection_differs"),
        (calls.order(RESTRICT, visitor, protection_id=hold), "protection_differs"),
        (calls.order(UNRESTRICT, protection_id=hold), "protection_differs"),
        (calls.order(HOLD, visitor, protection_id=over), "protection_is_over"),
        (
            calls.order(ERASE, visitor).model_copy(update={"order_id": placed.order_id}),
            "order_differs",
        ),
    ):
        with pytest.raises(Poison, match=reason):
            await calls.handle(bad)
    assert await calls.live() == before
    assert total(await erase(calls, visitor)) == of(calls, n_held=1)


async def test_a_hold_may_come_to_name_more_visitors(calls: Side) -> None:
    """R-D3: an order names at most a thousand."""
    one, two, hold = new_visitor_id(), new_visitor_id(), IDS.new()
    for visitor in (one, two):
        await calls.fill(visitor)
        await calls.handle(calls.order(HOLD, visitor, protection_id=hold))
    assert total(await erase(calls, one, two)) == {
        t: (0, 2 * n, 0) for t, n in ROWS["call_control"].items()
    }


async def test_the_service_can_go_by_the_front_door_only(side: Side) -> None:
    """D2, R-C1: no right to read what is kept, to end a hold by hand, or to drop a day past it."""
    hold = IDS.new()
    await side.handle(side.order(HOLD, new_visitor_id(), protection_id=hold))
    for statement in (
        # consent itself moves a link to an earlier day
        *(f"DELETE FROM {t.name}" for t in side.tables if t.name != "consent_subject"),
        "DELETE FROM privacy_visitor",
        "UPDATE privacy_protection SET released_at = now()",
        "UPDATE privacy_table SET subject_column = NULL",
        "INSERT INTO privacy_kept SELECT * FROM privacy_kept",
        f"SELECT * FROM privacy_visitor_{hold.hex}",
        f"SELECT chassis_day_drop('{side.tables[0].name}', '2100-01-01')",
        f"SELECT privacy_day_drop('{side.tables[0].name}', '2100-01-01')",
        f"SELECT privacy_list_drop('privacy_kept', '{hold}')",
        "SELECT privacy_keep_sql('SELECT 1', 'x')",
        f"SELECT privacy_copy_kept('{hold}', NULL)",
        f"SELECT privacy_release_copied('{hold}', false, '2100-01-01', now())",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await side.bench.fetch(statement)
    with pytest.raises(asyncpg.RaiseError, match="belongs to a hold"):
        await side.bench.fetch("SELECT privacy_wait_end($1)", hold)


STEPS = ("protection", "protect", "take", "drop", "release", "held", "save")


@pytest.mark.parametrize("step", STEPS)
async def test_a_failure_between_steps_leaves_all_as_it_was(
    side: Side, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """R-D9, D2: one transaction; a kill at any boundary is a rollback, the next try does it all.

    A drop's is its own: what came with it is done, and the drop itself is noted.
    """
    visitor, restriction, hold = new_visitor_id(), IDS.new(), IDS.new()
    await side.fill(visitor)
    poll = [
        side.order(HOLD, visitor, protection_id=hold),
        side.order(RESTRICT, visitor, protection_id=restriction),
        *side.drops(),
        side.order(ERASE, visitor),
        side.order(UNRESTRICT, protection_id=restriction),
        side.order(RELEASE, protection_id=hold),
    ]
    step_of_it = getattr(OrderStore, step)

    async def fail(self: Any, *arguments: Any, **named: Any) -> Any:
        await step_of_it(self, *arguments, **named)
        raise ConnectionError

    before = await side.live()
    with monkeypatch.context() as patch:
        patch.setattr(OrderStore, step, fail)
        with pytest.raises(ConnectionError):
            await side.handle(*poll)
    drops = {order.order_id for order in poll if order.action is RetentionAction.DROP}
    if step == "drop":
        noted = await side.bench.fetch("SELECT order_id FROM retention_later")
        assert {row["order_id"] for row in noted} <= drops
        assert noted
        done = await side.bench.fetch("SELECT order_id FROM retention_done")
        assert {row["order_id"] for row in done}.isdisjoint(row["order_id"] for row in noted)
    else:
        assert await side.live() == before
        assert await side.kept() == {}
        for table in ("retention_done", "retention_later", "privacy_protection", "outbox"):
            assert await side.bench.fetch(f"SELECT 1 FROM {table}") == []
    receipts = [*await side.handle(*poll), *await side.retry()]
    assert {r.order_id for r in receipts} == {order.order_id for order in poll}
    assert len(receipts) == len(poll)
    assert await side.kept() == {}
    assert all(rows == [] for rows in without_proofs(await side.live()).values())
    assert await side.violations() == {}


@pytest.mark.parametrize(
    ("damage", "broken"),
    [
        ("DROP TABLE privacy_kept_{0}", "d2_every_protection_has_its_store"),
        ("DROP TABLE privacy_visitor_{0}", "d2_every_protection_has_its_store"),
        ("UPDATE privacy_protection SET released_at = now()", "d2_nothing_is_kept_without_ground"),
        ("SELECT privacy_list_add('privacy_visitor', gen_random_uuid())", "d2_nothing_is_kept"),
        (
            "INSERT INTO retention_later SELECT gen_random_uuid(), '{{}}', now() - interval '25 h'",
            "d3_no_order_waits",
        ),
    ],
)
async def test_each_query_sees_the_damage_it_is_for(calls: Side, damage: str, broken: str) -> None:
    """D2, D3: a query that cannot fail proves nothing."""
    hold = IDS.new()
    await calls.handle(calls.order(HOLD, new_visitor_id(), protection_id=hold))
    assert set(D2_INVARIANTS) <= set(calls.invariants)
    assert await calls.violations() == {}
    await calls.owner.execute(damage.format(hold.hex))
    assert [name for name in await calls.violations() if name.startswith(broken)]


@pytest.mark.parametrize("service", LIVE_SIDES)
def test_services_whose_orders_may_wait_try_them_again(world: World, service: str) -> None:
    """R-G3: an order that nobody tries again is lost."""
    app = importlib.import_module(f"services.{service}.app")
    settings = importlib.import_module(f"services.{service}.settings").Settings
    built = app.build(settings.model_validate(world.settings(service)))
    assert TASK in built._tasks


async def test_a_services_own_receipts_go_with_their_rule(side: Side) -> None:
    """R-D10, R-D9: with the end of the third calendar year in Berlin, as retention's own do."""
    rule = load(DEFAULT_SCHEDULE).rule_on(DataKind.DELETION_RECEIPT, side.today)
    assert rule.period == YearsPeriod(unit="calendar_years", years=3)
    newest_gone = datetime(side.today.year - 3, 1, 1, tzinfo=calendar.BERLIN) - timedelta(seconds=1)
    for done_at in (newest_gone, newest_gone + timedelta(seconds=1)):
        await side.owner.execute(
            "INSERT INTO retention_done (order_id, kind, before_day, counts, done_at)"
            " VALUES ($1, 'ad_use', $2, '[]', $3)",
            IDS.new(), done_at.date(), done_at,
        )  # fmt: skip
    executor = side.executor
    async with side.bench.transaction() as ctx:
        assert await executor.forget_done(ctx) == 1
        assert await executor.forget_done(ctx) == 0
    left = await side.owner.fetchval("SELECT min(done_at) FROM retention_done")
    assert left == newest_gone + timedelta(seconds=1)
    # whatever its clock says, a service cannot rid itself of proofs
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await side.bench.connection.execute("DELETE FROM retention_done")
    gone = await side.bench.connection.fetchval(
        "SELECT privacy_done_forget(now() + interval '9 years')"
    )
    assert gone == 0
