"""The ledger's handlers on real PostgreSQL, under the service's own role."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, time, timedelta
from uuid import UUID

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from schemas.call import CallEndV1, CallStartV1
from schemas.credit import (
    CreditChange,
    CreditDecisionV1,
    CreditOperation,
    CreditRequestV1,
    CreditV1,
)
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from services.ad_ledger.classification import TABLES
from services.ad_ledger.handlers import Handlers
from services.ad_ledger.metrics import LedgerMetrics
from services.ad_ledger.store import DAY_INVARIANTS, INVARIANTS, Store
from services.chassis.clock import SystemClock
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.chassis.invariants import ROUNDS_MAX, DayInvariants
from services.privacy.declare import by_day
from services.privacy.executor import Executor, Hooks
from tests.support.bench import Bench, new_visitor_id, open_bench, received
from tests.support.protected import carry_out
from tests.support.signals import Signals
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger",)
IDS = TimeOrderedIds()
KEYS = view_ticket.KeyRing({"k1": "11" * 32})
FORGED = view_ticket.KeyRing({"k1": "22" * 32})
AD_MS = 16_000
WHOLE_VIEW = ("page_hit", "start", "first_quartile", "midpoint", "third_quartile", "complete")
DAY_TABLES = by_day(TABLES)


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    now = datetime.now(tz=None).astimezone()
    async with open_bench(world, "ad_ledger", Store, days_of=DAY_TABLES, now=now) as found:
        yield found


@pytest.fixture
def handlers() -> Handlers:
    return Handlers(KEYS, LedgerMetrics(CollectorRegistry()))


def a_ticket(bench: Bench[Store], visitor_id: UUID, keys: view_ticket.KeyRing = KEYS) -> str:
    issued_at = bench.now - timedelta(seconds=20)
    return view_ticket.issue(
        keys,
        view_ticket.ViewTicket(
            ticket_id=IDS.new(), visitor_id=visitor_id, ad_id="house-1", duration_ms=AD_MS,
            issued_at=issued_at, expires_at=issued_at + timedelta(hours=1),
        ),
    )  # fmt: skip


def views(bench, visitor_id, ticket, kinds=WHOLE_VIEW, address="192.0.2.7"):
    return [
        received(
            topics.AD_VIEW,
            AdViewV1(
                visitor_id=visitor_id, ticket=ticket, kind=AdEventKind(kind), position_ms=AD_MS,
                address=address,
            ),
            bench.now,
        )
        for kind in kinds
    ]  # fmt: skip


async def watch(bench, handlers, visitor_id, kinds=WHOLE_VIEW):
    ticket = a_ticket(bench, visitor_id)
    async with bench.transaction() as ctx:
        await handlers.on_ad_views(ctx, views(bench, visitor_id, ticket, kinds))
        return ctx.counts, bench.enqueued(ctx, topics.CREDIT, CreditV1)


def reserve(bench, visitor_id, call_id, wanted_ms=3_600_000, lease_ms=3_600_000):
    event = CreditRequestV1(
        reservation_id=call_id, visitor_id=visitor_id, operation=CreditOperation.RESERVE,
        wanted_ms=wanted_ms, lease_ms=lease_ms,
    )  # fmt: skip
    return received(topics.CREDIT_REQUEST, event, bench.now)


async def ask(bench, handlers, *requests):
    async with bench.transaction() as ctx:
        await handlers.on_credit_requests(ctx, requests)
        return bench.enqueued(ctx, topics.CREDIT_DECISION, CreditDecisionV1)


async def end(bench, handlers, visitor_id, call_id, talk_ms, reason="talk_limit"):
    event = CallEndV1(
        call_id=call_id, visitor_id=visitor_id, ended_at=bench.now, reason=reason,
        talk_ms=talk_ms, overrun_ms=0,
    )  # fmt: skip
    async with bench.transaction() as ctx:
        await handlers.on_call_ends(ctx, [received(topics.CALL_END, event, bench.now)])
        return ctx.counts, bench.enqueued(ctx, topics.CREDIT, CreditV1)


async def balance(bench, visitor_id):
    async with bench.transaction() as ctx:
        return (await ctx.store.balances([visitor_id]))[visitor_id]


async def assert_invariants(bench):
    for name, sql in INVARIANTS.items():
        assert (await bench.fetch(sql))[0][0] == 0, name


async def test_a_watched_ad_is_recorded_and_credited(bench, handlers):
    """R-A1, R-A2, R-A3; L1-L6: the view, its depth, the address apart, the credit, the event."""
    visitor_id = new_visitor_id()
    counts, told = await watch(bench, handlers, visitor_id)
    assert counts["ad-view", "credited"] == 4
    assert counts["ad-view", "recorded"] == 2
    assert [(e.change, e.amount_ms, e.available_ms) for e in told] == [
        (CreditChange.GRANTED, AD_MS, AD_MS)
    ]
    rows = await bench.fetch(
        "SELECT kind, credit_ms FROM ad_view WHERE visitor_id = $1", visitor_id
    )
    assert {row["kind"]: row["credit_ms"] for row in rows} == dict.fromkeys(
        WHOLE_VIEW[:2], 0
    ) | dict.fromkeys(WHOLE_VIEW[2:], AD_MS // 4)
    addresses = await bench.fetch(
        "SELECT host(address) FROM ad_view_address JOIN ad_view USING (ticket_id) "
        "WHERE visitor_id = $1 AND kind = 'start'", visitor_id,
    )  # fmt: skip
    assert [row[0] for row in addresses] == ["192.0.2.7"]
    await assert_invariants(bench)


async def test_redelivered_events_earn_nothing_more(bench, handlers):
    """L3: the same events in a later poll."""
    visitor_id = new_visitor_id()
    ticket = a_ticket(bench, visitor_id)
    for _ in range(3):
        async with bench.transaction() as ctx:
            await handlers.on_ad_views(ctx, views(bench, visitor_id, ticket))
    assert await balance(bench, visitor_id) == (AD_MS, 0)
    await assert_invariants(bench)


async def test_a_forged_or_stolen_ticket_leaves_no_trace(bench, handlers):
    """R-C1, L3: refused, counted by reason, nothing stored."""
    thief, owner = new_visitor_id(), new_visitor_id()
    forged = views(bench, thief, a_ticket(bench, thief, FORGED))
    stolen = views(bench, thief, a_ticket(bench, owner))
    broken = views(bench, thief, "x" * 40)
    async with bench.transaction() as ctx:
        await handlers.on_ad_views(ctx, [*forged, *stolen, *broken])
    assert ctx.counts["ad-view", "refused_ticket_signature_invalid"] == 6
    assert ctx.counts["ad-view", "refused_ticket_of_other_visitor"] == 6
    assert ctx.counts["ad-view", "refused_ticket_malformed"] == 6
    assert await bench.fetch("SELECT 1 FROM ad_view WHERE visitor_id = $1", thief) == []


async def test_reserve_talk_settle(bench, handlers):
    """R-A5; L4, L5, C4: two-phase, charged what was talked, the rest back."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    decisions = await ask(bench, handlers, reserve(bench, visitor_id, call_id))
    assert [(d.granted, d.reserved_ms) for d in decisions] == [(True, AD_MS)]
    assert await balance(bench, visitor_id) == (0, AD_MS)
    start = CallStartV1(
        call_id=call_id, visitor_id=visitor_id, connected_at=bench.now, reserved_ms=AD_MS
    )
    async with bench.transaction() as ctx:
        await handlers.on_call_starts(ctx, [received(topics.CALL_START, start, bench.now)])
    counts, told = await end(bench, handlers, visitor_id, call_id, 9_000)
    assert counts["call-end", "settled"] == 1
    assert {(e.change, e.amount_ms) for e in told} == {
        (CreditChange.SPENT, 9_000),
        (CreditChange.RELEASED, AD_MS - 9_000),
    }
    assert await balance(bench, visitor_id) == (AD_MS - 9_000, 0)
    await assert_invariants(bench)


async def test_the_second_end_of_a_call_changes_nothing(bench, handlers):
    """L5, C4."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id))
    await end(bench, handlers, visitor_id, call_id, 9_000)
    counts, told = await end(bench, handlers, visitor_id, call_id, 16_000)
    assert counts["call-end", "duplicate"] == 1
    assert told == []
    assert await balance(bench, visitor_id) == (AD_MS - 9_000, 0)
    with pytest.raises(asyncpg.CheckViolationError, match="exactly once"):
        await bench.fetch("UPDATE reservation SET spent_ms = 0 WHERE reservation_id = $1", call_id)


async def test_a_repeated_reserve_gets_the_same_answer_and_reserves_once(bench, handlers):
    """C1, L5: also twice in one poll."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    request = reserve(bench, visitor_id, call_id, wanted_ms=5_000)
    first = await ask(bench, handlers, request, request)
    again = await ask(bench, handlers, request)
    assert [(d.granted, d.reserved_ms) for d in (*first, *again)] == [(True, 5_000)] * 3
    assert await balance(bench, visitor_id) == (AD_MS - 5_000, 5_000)
    await assert_invariants(bench)


async def test_two_calls_in_one_poll_share_what_there_is(bench, handlers):
    """L2: the second gets what the first has left; a third is refused."""
    visitor_id = new_visitor_id()
    await watch(bench, handlers, visitor_id)
    decisions = await ask(
        bench,
        handlers,
        *(reserve(bench, visitor_id, IDS.new(), wanted_ms=10_000) for _ in range(3)),
    )
    assert [(d.granted, d.reserved_ms, d.reason) for d in decisions] == [
        (True, 10_000, None),
        (True, 6_000, None),
        (False, 0, "no_credit"),
    ]
    await assert_invariants(bench)


async def test_a_release_voids_and_returns_all(bench, handlers):
    """L5: the visitor hung up before anything was dialled."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id))
    release = CreditRequestV1(
        reservation_id=call_id, visitor_id=visitor_id, operation=CreditOperation.RELEASE,
        wanted_ms=0, lease_ms=0,
    )  # fmt: skip
    await ask(bench, handlers, received(topics.CREDIT_REQUEST, release, bench.now))
    assert await balance(bench, visitor_id) == (AD_MS, 0)
    state = await bench.fetch("SELECT state FROM reservation WHERE reservation_id = $1", call_id)
    assert state[0]["state"] == "void"
    await assert_invariants(bench)


async def test_a_lease_that_runs_out_gives_the_credit_back_and_a_late_end_is_the_platforms_loss(
    bench, handlers
):
    """L5: the end of a call does not come; when it comes late, nobody pays twice."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id, lease_ms=1_000))
    bench.now += timedelta(seconds=2)
    async with bench.transaction() as ctx:
        assert await handlers.expire(ctx) >= 1
    assert await balance(bench, visitor_id) == (AD_MS, 0)
    counts, _ = await end(bench, handlers, visitor_id, call_id, 9_000)
    assert counts["call-end", "refused_ended_before"] == 1
    assert await balance(bench, visitor_id) == (AD_MS, 0)
    await assert_invariants(bench)


async def test_credit_ends_after_its_life(bench, handlers):
    """R-D5: lots live at most six days."""
    visitor_id = new_visitor_id()
    await watch(bench, handlers, visitor_id)
    bench.now += timedelta(days=6, seconds=1)
    async with bench.transaction() as ctx:
        await handlers.expire(ctx)
        told = bench.enqueued(ctx, topics.CREDIT, CreditV1)
    mine = [e for e in told if e.visitor_id == visitor_id]
    assert [(e.change, e.amount_ms) for e in mine] == [(CreditChange.EXPIRED, AD_MS)]
    assert await balance(bench, visitor_id) == (0, 0)
    await assert_invariants(bench)


async def test_the_end_of_an_unknown_reservation_is_a_dead_letter(bench, handlers):
    async with bench.transaction() as ctx:
        event = CallEndV1(
            call_id=IDS.new(), visitor_id=new_visitor_id(), ended_at=bench.now, reason="busy",
            talk_ms=0, overrun_ms=0,
        )  # fmt: skip
        await handlers.on_call_ends(ctx, [received(topics.CALL_END, event, bench.now)])
        assert [row.topic for row in ctx.outbox.rows] == ["call-end-dlq"]


async def test_a_cancelled_call_makes_room_for_the_next_in_the_same_poll(bench, handlers):
    """L5, R-A5: given back first, then reserved."""
    visitor_id, first, second = new_visitor_id(), IDS.new(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, first))
    release = CreditRequestV1(
        reservation_id=first, visitor_id=visitor_id, operation=CreditOperation.RELEASE,
        wanted_ms=0, lease_ms=0,
    )  # fmt: skip
    decisions = await ask(
        bench,
        handlers,
        received(topics.CREDIT_REQUEST, release, bench.now),
        reserve(bench, visitor_id, second),
    )
    assert [(d.granted, d.reserved_ms) for d in decisions] == [(True, AD_MS)]
    await assert_invariants(bench)


async def test_a_reserve_and_its_release_in_one_poll_leave_nothing_held(bench, handlers):
    """L5: redelivered together."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    request = reserve(bench, visitor_id, call_id)
    release = request.event.model_copy(update={"operation": CreditOperation.RELEASE})
    records = (request, received(topics.CREDIT_REQUEST, release, bench.now))
    for _ in range(2):
        await ask(bench, handlers, *records)
        assert await balance(bench, visitor_id) == (AD_MS, 0)
    await assert_invariants(bench)


async def test_the_end_of_a_call_before_its_start_keeps_since_when_it_talked(bench, handlers):
    """R-A1: two topics, no order between them."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id))
    connected_at = bench.now - timedelta(seconds=9)
    over = CallEndV1(
        call_id=call_id, visitor_id=visitor_id, ended_at=bench.now, reason="hung_up",
        talk_ms=9_000, overrun_ms=0, connected_at=connected_at,
    )  # fmt: skip
    start = CallStartV1(
        call_id=call_id, visitor_id=visitor_id, connected_at=connected_at, reserved_ms=AD_MS
    )
    async with bench.transaction() as ctx:
        await handlers.on_call_ends(ctx, [received(topics.CALL_END, over, bench.now)])
    async with bench.transaction() as ctx:
        await handlers.on_call_starts(ctx, [received(topics.CALL_START, start, bench.now)])
    row = (await bench.fetch("SELECT * FROM reservation WHERE reservation_id = $1", call_id))[0]
    assert (row["state"], row["spent_ms"]) == ("settled", 9_000)
    assert row["connected_at"] == connected_at
    await assert_invariants(bench)


async def test_credit_that_expires_in_a_call_is_spent_or_goes_when_it_comes_back(bench, handlers):
    """R-D5, L4: a lot's life ends while a reservation holds it."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    lots = await bench.fetch("SELECT expires_at FROM lot WHERE visitor_id = $1", visitor_id)
    expires_at = lots[0]["expires_at"]
    bench.now = expires_at - timedelta(seconds=5)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id))
    bench.now = expires_at + timedelta(seconds=4)
    async with bench.transaction() as ctx:
        await handlers.expire(ctx)
    assert await balance(bench, visitor_id) == (0, AD_MS)
    await end(bench, handlers, visitor_id, call_id, 9_000)
    assert await balance(bench, visitor_id) == (AD_MS - 9_000, 0)
    decisions = await ask(bench, handlers, reserve(bench, visitor_id, IDS.new()))
    assert [d.reason for d in decisions] == ["no_credit"]
    async with bench.transaction() as ctx:
        await handlers.expire(ctx)
    assert await balance(bench, visitor_id) == (0, 0)
    await assert_invariants(bench)


async def test_two_ads_around_midnight_earn_for_one(bench, handlers):
    """L3, R-A3: the day's change gives no second pair of eyes."""
    visitor_id = new_visitor_id()
    midnight = datetime.combine(bench.now.astimezone(UTC).date(), time(), UTC)
    tickets = []
    for issued_at in (midnight - timedelta(seconds=2), midnight + timedelta(seconds=1)):
        claims = view_ticket.ViewTicket(
            ticket_id=IDS.new(), visitor_id=visitor_id, ad_id="house-1", duration_ms=AD_MS,
            issued_at=issued_at, expires_at=issued_at + timedelta(hours=1),
        )  # fmt: skip
        tickets.append(view_ticket.issue(KEYS, claims))
    bench.now = midnight + timedelta(seconds=18)
    refused = 0
    for ticket in tickets:
        async with bench.transaction() as ctx:
            await handlers.on_ad_views(ctx, views(bench, visitor_id, ticket))
            refused += ctx.counts["ad-view", "refused_parallel_view"]
    assert refused >= 1
    available_ms, _ = await balance(bench, visitor_id)
    assert available_ms < 2 * AD_MS


async def test_the_service_cannot_change_a_tariff_or_delete_an_account(bench, handlers):
    """R-A3, L1: tariffs are the owner's data; what ages goes by the day."""
    await watch(bench, handlers, new_visitor_id())
    for statement in (
        "UPDATE tariff SET daily_cap_ms = daily_cap_ms * 2",
        "UPDATE tariff_rule SET credit_permille = 10000",
        "INSERT INTO tariff VALUES ('x', now(), 1, 1)",
        "DELETE FROM lot",
        "DELETE FROM reservation",
        "DELETE FROM platform_account",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await bench.fetch(statement)


@pytest.mark.parametrize(
    "change",
    [
        "available_ms = -1, spent_ms = spent_ms + available_ms + 1",
        "available_ms = available_ms + 1",
        "spent_ms = spent_ms + 1",
        "granted_ms = granted_ms + 1",
    ],
    ids=["below-zero", "from-nothing", "spent-twice", "granted-more"],
)
async def test_the_database_refuses_credit_out_of_nothing(bench, handlers, change):
    """L2, L4 as constraints: whatever the code does."""
    visitor_id = new_visitor_id()
    await watch(bench, handlers, visitor_id)
    with pytest.raises(asyncpg.CheckViolationError):
        await bench.fetch(f"UPDATE lot SET {change} WHERE visitor_id = $1", visitor_id)


async def test_the_database_refuses_a_second_grant_and_any_change_of_postings(bench, handlers):
    """L3, L1 as constraints: append-only, one grant per ticket and kind."""
    visitor_id = new_visitor_id()
    await watch(bench, handlers, visitor_id)
    copy = """
        INSERT INTO posting (lot_day, ticket_id, visitor_id, operation, debit_account,
            credit_account, amount_ms, posted_at, kind, tariff_version)
        SELECT lot_day, ticket_id, visitor_id, operation, debit_account, credit_account, amount_ms,
            posted_at, kind, tariff_version FROM posting WHERE visitor_id = $1 LIMIT 1"""
    with pytest.raises(asyncpg.UniqueViolationError):
        await bench.fetch(copy, visitor_id)
    for statement in ("UPDATE posting SET amount_ms = 1", "DELETE FROM posting"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await bench.fetch(statement)


@pytest.mark.parametrize(
    ("damage", "broken"),
    [
        (
            "UPDATE platform_account SET balance_ms = balance_ms - 1 WHERE account = 'issued'",
            "l1_sum",
        ),
        ("UPDATE lot SET granted_ms = granted_ms + 1, available_ms = available_ms + 1", "l1_lots"),
        (
            "UPDATE platform_account SET account_day = account_day - 5 WHERE account = 'issued'",
            "l1_sum",
        ),
        ("DELETE FROM ad_view WHERE kind = 'complete'", "l6_credit"),
        ("UPDATE reservation SET reserved_ms = reserved_ms + 1 WHERE state = 'held'", "l5_reserv"),
        (
            "UPDATE reservation SET lease_until = now() - interval '1 h' WHERE state = 'held'",
            "l5_no",
        ),
    ],
    ids=["sum", "lots", "other-day", "trace", "reservation", "lease"],
)
async def test_each_invariant_query_sees_the_damage_it_is_for(
    world, bench, handlers, damage, broken
):
    """L1-L6: a query that cannot fail proves nothing; the damage is done as the owner."""
    visitor_id = new_visitor_id()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, IDS.new(), wanted_ms=4_000))
    owner = await asyncpg.connect(world.owner_url("ad_ledger"))
    try:
        change = owner.transaction()
        await change.start()
        await owner.execute(damage)
        found = {name: await owner.fetchval(sql) for name, sql in INVARIANTS.items()}
        checks, by_days = DayInvariants(DAY_INVARIANTS, SystemClock()), {}
        for _ in range(ROUNDS_MAX):
            by_days = await checks.check(owner, bench.now.date())
        await change.rollback()
    finally:
        await owner.close()
    assert any(count for name, count in found.items() if name.startswith(broken)), found
    assert by_days == {name: found[name] for name in DAY_INVARIANTS}


async def test_dropping_a_day_keeps_the_books_balanced_and_leaves_no_visitor(bench, handlers):
    """R-D5, R-D4; L1, D1: with open credit and a held reservation in the day that goes."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id, wanted_ms=4_000))
    executor = Executor(
        TABLES,
        simulation=True,
        hooks=Hooks(before_drop=handlers.close_before_drop, figures=handlers.make_figures),
    )
    counts: dict[str, int] = {}
    for kind in (DataKind.AD_USE, DataKind.IP_ADDRESS, DataKind.TRAFFIC_DATA):
        order = RetentionOrderV1(
            order_id=IDS.new(), kind=kind, action=RetentionAction.DROP,
            before_day=(bench.now + timedelta(days=1)).date(), as_of=bench.now + timedelta(days=8),
        )  # fmt: skip
        receipts = await carry_out(bench, executor, order)
        counts |= {count.table: count.n_rows for count in receipts[0].counts}
    assert counts["ad_view"] >= len(WHOLE_VIEW)
    assert counts["ad_view_address"] >= 1
    for table in DAY_TABLES:
        assert await bench.fetch(f"SELECT 1 FROM {table} LIMIT 1") == [], table
    platform = await bench.fetch("SELECT sum(balance_ms) AS total FROM platform_account")
    assert platform[0]["total"] == 0
    await assert_invariants(bench)
    # and the day is open again: a stack marked as a simulation goes on in real time
    await watch(bench, handlers, new_visitor_id())
    await assert_invariants(bench)


async def drop_today(bench, handlers, *kinds, action=RetentionAction.DROP):
    receipts = []
    executor = Executor(
        TABLES,
        simulation=True,
        hooks=Hooks(before_drop=handlers.close_before_drop, figures=handlers.make_figures),
    )
    for kind in kinds:
        order = RetentionOrderV1(
            order_id=IDS.new(), kind=kind, action=action,
            before_day=(bench.now + timedelta(days=1)).date(), as_of=bench.now + timedelta(days=8),
        )  # fmt: skip
        receipts += await carry_out(bench, executor, order)
    return receipts


@pytest.fixture
async def uncounted(world, bench, handlers):
    """A day without views of other tests, as if it had not been counted yet."""
    await drop_today(bench, handlers, DataKind.AD_USE, DataKind.IP_ADDRESS)
    owner = await asyncpg.connect(world.owner_url("ad_ledger"))
    await owner.execute("TRUNCATE ad_statistics, ad_statistics_day")
    yield owner
    await owner.close()


async def watch_from(bench, handlers, *addresses, n_views=1):
    for address in addresses:
        visitor_id = new_visitor_id()
        for _ in range(n_views):
            ticket = a_ticket(bench, visitor_id)
            async with bench.transaction() as ctx:
                rows = views(bench, visitor_id, ticket, address=address)
                await handlers.on_ad_views(ctx, rows)


@pytest.mark.parametrize("first", [DataKind.AD_USE, DataKind.IP_ADDRESS])
async def test_a_day_is_counted_by_network_before_its_addresses_go(
    bench, handlers, uncounted, first
):
    """R-C2: truncated, the few together, once; whichever of the two kinds goes first."""
    await watch_from(bench, handlers, *(f"192.0.2.{n}" for n in range(10)), n_views=2)
    few = (*(f"198.51.{n}.7" for n in range(9)), "2001:db8:1:2::1", "2001:db8:1:3::1")
    await watch_from(bench, handlers, *few)
    second = DataKind.IP_ADDRESS if first is DataKind.AD_USE else DataKind.AD_USE
    await drop_today(bench, handlers, first, second, first)
    async with bench.transaction() as ctx:
        found = await ctx.store.statistics(bench.now.date() - timedelta(days=1))
    # of the last two both are one network of two visitors: not named
    assert [tuple(row.values())[1:] for row in found] == [
        ("192.0.2.0/24", 10, 20, 10),  # two at once are completed once
        (None, 11, 11, 11),
    ]


async def test_an_order_to_anonymise_says_what_went_and_what_was_made_of_it(
    bench, handlers, uncounted
):
    """R-C2, R-D2, D4: the addresses are gone, two figures remain; again there is nothing to do."""
    await watch_from(bench, handlers, *(f"192.0.2.{n}" for n in range(10)))
    await watch_from(bench, handlers, *(f"198.51.{n}.7" for n in range(10)))
    anonymise = RetentionAction.ANONYMISE
    for n_rows, n_figures in ((20, 2), (0, 0)):
        (receipt,) = await drop_today(bench, handlers, DataKind.IP_ADDRESS, action=anonymise)
        (count,) = receipt.counts
        assert (count.table, count.n_rows, count.n_figures) == (
            "ad_view_address", n_rows, n_figures,
        )  # fmt: skip
    assert await uncounted.fetch("SELECT FROM ad_view_address") == []
    async with bench.transaction() as ctx:
        found = await ctx.store.statistics(bench.now.date() - timedelta(days=1))
    assert [row["n_visitors"] for row in found] == [10, 10]


@pytest.mark.parametrize("kind", [DataKind.AD_USE, DataKind.IP_ADDRESS])
async def test_what_nobody_counts_is_not_anonymised(bench, handlers, uncounted, kind):
    """R-C2, D3: refused, unanswered, and nothing goes: a kind, or a service, without figures."""
    await watch_from(bench, handlers, *(f"192.0.2.{n}" for n in range(10)))
    hooks = Hooks(figures=handlers.make_figures if kind is DataKind.AD_USE else None)
    executor = Executor(TABLES, simulation=True, hooks=hooks)
    order = RetentionOrderV1(
        order_id=IDS.new(), kind=kind, action=RetentionAction.ANONYMISE,
        before_day=(bench.now + timedelta(days=1)).date(), as_of=bench.now,
    )  # fmt: skip
    with pytest.raises(Poison, match="no_anonymiser"):
        await carry_out(bench, executor, order)
    assert await uncounted.fetchval("SELECT count(*) FROM ad_view_address") == 10
    assert await uncounted.fetchval("SELECT count(*) FROM retention_later") == 0
    # who keeps none of it says so
    nothing = order.model_copy(update={"kind": DataKind.TRAFFIC_DATA})
    (receipt,) = await carry_out(bench, executor, nothing)
    assert receipt.counts == ()


async def test_few_visitors_are_not_told_of_at_all(bench, handlers, uncounted):
    """R-C2: nine that stand together are as easily picked out as one."""
    await watch_from(bench, handlers, *(f"192.0.2.{n}" for n in range(9)), n_views=3)
    await drop_today(bench, handlers, DataKind.IP_ADDRESS)
    assert await uncounted.fetch("SELECT * FROM ad_statistics") == []
    assert len(await uncounted.fetch("SELECT * FROM ad_statistics_day")) >= 1
    for network, n_visitors in (
        ("192.0.2.0/24", 9),
        ("192.0.2.128/25", 10),
        ("2001:db8::/64", 10),
        ("2002:c000:207::/48", 10),
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            await uncounted.execute(
                "INSERT INTO ad_statistics VALUES (current_date, $1::text::cidr, $2, 1, 1)",
                network, n_visitors,
            )  # fmt: skip


async def test_two_processes_after_a_rebalance_credit_once(world, handlers):
    """L3, L4: the same events at the same time on two connections: one of them has to try again."""
    now = datetime.now(tz=None).astimezone()
    async with (
        open_bench(world, "ad_ledger", Store, days_of=DAY_TABLES, now=now) as one,
        open_bench(world, "ad_ledger", Store, now=now) as two,
    ):
        visitor_id = new_visitor_id()
        ticket = a_ticket(one, visitor_id)

        async def run(bench):
            async with bench.transaction() as ctx:
                await handlers.on_ad_views(ctx, views(bench, visitor_id, ticket))

        outcomes = await asyncio.gather(run(one), run(two), return_exceptions=True)
        assert sum(isinstance(outcome, Exception) for outcome in outcomes) <= 1
        assert await balance(one, visitor_id) == (AD_MS, 0)
        await assert_invariants(one)


async def test_every_metric_of_the_ledger_moves(bench):
    """The signal matrix: a metric that nobody ever saw move proves nothing."""
    registry = CollectorRegistry()
    signals = Signals(registry)
    handlers = Handlers(KEYS, LedgerMetrics(registry))
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, call_id, lease_ms=1_000))
    bench.now += timedelta(seconds=2)
    async with bench.transaction() as ctx:
        await handlers.expire(ctx)
    await end(bench, handlers, visitor_id, call_id, 9_000)
    assert signals.unmoved() == set()


async def test_a_lot_gives_to_a_reservation_once(world, bench, handlers):
    """L5: the database refuses the second posting, also in partitions made after the index."""
    visitor_id = new_visitor_id()
    await watch(bench, handlers, visitor_id)
    await ask(bench, handlers, reserve(bench, visitor_id, IDS.new(), wanted_ms=4_000))
    with pytest.raises(asyncpg.UniqueViolationError):
        await bench.fetch(
            "INSERT INTO posting (lot_day, ticket_id, visitor_id, operation, debit_account, "
            "credit_account, amount_ms, posted_at, reservation_id) "
            "SELECT lot_day, ticket_id, visitor_id, operation, debit_account, credit_account, "
            "amount_ms, posted_at, reservation_id FROM posting "
            "WHERE visitor_id = $1 AND operation = 'reserve'", visitor_id,
        )  # fmt: skip
