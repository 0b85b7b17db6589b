"""Call control's handlers on real PostgreSQL, under the service's own role."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.call import CallCommand, CallCommandV1, CallRequestV1, CallStatus, CallStatusV1
from schemas.credit import CreditDecisionV1, CreditOperation, CreditRequestV1
from services.call_control.classification import TABLES
from services.call_control.handlers import Handlers, Limits
from services.call_control.store import INVARIANTS, Store
from services.chassis.clock import SystemClock
from services.privacy.declare import by_day
from tests.support.bench import IDS, Bench, new_visitor_id, open_bench, received
from tests.support.stack import World

WORLD_SERVICES = ("call_control",)
DAY_TABLES = by_day(TABLES)
CALLBACK, DESTINATION = "030 23125 001", "+49 (0)30 23125 900"
AGE_MAX_S = 60
# a valid UUIDv7 as a browser may make it up: of the year 10889
MADE_UP = UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    now = SystemClock().now()
    async with open_bench(world, "call_control", Store, days_of=DAY_TABLES, now=now) as found:
        yield found


@pytest.fixture
def handlers() -> Handlers:
    return Handlers(Limits(talk_max_ms=60_000, lease_ms=600_000, request_age_max_s=AGE_MAX_S))


def a_request(bench, visitor_id, call_id, callback=CALLBACK, destination=DESTINATION):
    event = CallRequestV1(
        call_id=call_id, visitor_id=visitor_id, callback_number=callback,
        destination_number=destination, address="192.0.2.7",
    )  # fmt: skip
    return received(topics.CALL_REQUEST, event, bench.now)


def a_decision(bench, visitor_id, call_id, reserved_ms=30_000):
    event = CreditDecisionV1(
        reservation_id=call_id, visitor_id=visitor_id, granted=reserved_ms > 0,
        reserved_ms=reserved_ms, reason=None if reserved_ms else "no_credit",
        lease_until=bench.now + timedelta(hours=1) if reserved_ms else None,
    )  # fmt: skip
    return received(topics.CREDIT_DECISION, event, bench.now)


def a_hang_up(bench, visitor_id, call_id):
    event = CallCommandV1(call_id=call_id, visitor_id=visitor_id, command=CallCommand.HANG_UP)
    return received(topics.CALL_COMMAND, event, bench.now)


async def handle(bench, handler, *records):
    """Return outcomes counted, credit asked for or given back, and statuses told."""
    async with bench.transaction() as ctx:
        await handler(ctx, records)
        credit = bench.enqueued(ctx, topics.CREDIT_REQUEST, CreditRequestV1)
        told = bench.enqueued(ctx, topics.CALL_STATUS, CallStatusV1)
        outcomes = [outcome for (_, outcome), n in ctx.counts.items() for _ in range(n)]
    return outcomes, [c.operation for c in credit], [(s.status, s.reason) for s in told]


async def the_call(bench, call_id):
    return (await bench.fetch("SELECT * FROM call WHERE call_id = $1", call_id))[0]


async def the_orders(bench, call_id):
    rows = await bench.fetch(
        "SELECT name FROM call_order WHERE call_id = $1 AND done_at IS NULL ORDER BY name", call_id
    )
    return [row["name"] for row in rows]


async def assert_invariants(bench):
    for name, sql in INVARIANTS.items():
        assert (await bench.fetch(sql))[0][0] == 0, name


async def test_a_request_asks_for_credit_once_however_often_it_comes(bench, handlers):
    """R-A1, C1: twice in one poll, and again in the next."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    request = a_request(bench, visitor_id, call_id)
    outcomes, credit, told = await handle(bench, handlers.on_call_requests, request, request)
    assert outcomes == ["accepted", "duplicate"]
    assert credit == [CreditOperation.RESERVE]
    assert told == [(CallStatus.REQUESTED, None)]
    assert await handle(bench, handlers.on_call_requests, request) == (["duplicate"], [], [])
    row = await the_call(bench, call_id)
    assert (row["callback_number"], row["destination_number"]) == ("+493023125001", "+493023125900")
    await assert_invariants(bench)


async def test_a_visitor_has_one_call_at_a_time(bench, handlers):
    """R-A5: in one poll too."""
    visitor_id = new_visitor_id()
    requests = [a_request(bench, visitor_id, IDS.new()) for _ in range(2)]
    outcomes, credit, _ = await handle(bench, handlers.on_call_requests, *requests)
    assert outcomes == ["accepted", "refused_call_in_progress"]
    assert credit == [CreditOperation.RESERVE]


async def test_a_grant_orders_the_dialling_once(bench, handlers):
    """C1: a decision that comes again changes nothing."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await handle(bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id))
    grant = a_decision(bench, visitor_id, call_id)
    outcomes, _, told = await handle(bench, handlers.on_credit_decisions, grant, grant)
    assert outcomes == ["granted", "duplicate"]
    assert told == [(CallStatus.RESERVED, None)]
    assert await handle(bench, handlers.on_credit_decisions, grant) == (["duplicate"], [], [])
    assert await the_orders(bench, call_id) == ["dial"]


async def test_a_grant_after_hanging_up_is_given_back(bench, handlers):
    """L5, R-C1: the ledger's answer crosses the hang-up; the numbers are forgotten."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await handle(bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id))
    hang_up = a_hang_up(bench, visitor_id, call_id)
    outcomes, _, told = await handle(bench, handlers.on_call_commands, hang_up, hang_up)
    assert outcomes == ["cancelled", "too_late"]
    assert told == [(CallStatus.ENDED, "requested")]
    grant = a_decision(bench, visitor_id, call_id)
    outcomes, credit, _ = await handle(bench, handlers.on_credit_decisions, grant)
    assert (outcomes, credit) == (["too_late"], [CreditOperation.RELEASE])
    assert await the_orders(bench, call_id) == []
    row = await the_call(bench, call_id)
    assert row["callback_number"] is row["destination_number"] is None
    await assert_invariants(bench)


@pytest.mark.parametrize("is_one_poll", [True, False])
async def test_a_grant_after_a_refusal_is_given_back(bench, handlers, is_one_poll):
    """L5: the request for credit was sent twice, and there was credit the second time."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await handle(bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id))
    refusal = a_decision(bench, visitor_id, call_id, reserved_ms=0)
    grant = a_decision(bench, visitor_id, call_id)
    if is_one_poll:
        _, credit, _ = await handle(bench, handlers.on_credit_decisions, refusal, grant)
    else:
        await handle(bench, handlers.on_credit_decisions, refusal)
        _, credit, _ = await handle(bench, handlers.on_credit_decisions, grant)
    assert credit == [CreditOperation.RELEASE]
    row = await the_call(bench, call_id)
    assert (row["state"], row["reason"], row["callback_number"]) == ("refused", "no_credit", None)
    assert await the_orders(bench, call_id) == []


async def test_a_hang_up_that_overtakes_its_request_holds(bench, handlers):
    """R-A5: topics are not read in one order; nobody's telephone rings."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    hang_up = a_hang_up(bench, visitor_id, call_id)
    outcomes, _, _ = await handle(bench, handlers.on_call_commands, hang_up)
    assert outcomes == ["early"]
    assert await the_orders(bench, call_id) == []
    outcomes, credit, told = await handle(
        bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id)
    )
    assert (outcomes, credit) == (["refused_requested"], [])
    assert told == [(CallStatus.REFUSED, "requested")]
    assert (await the_call(bench, call_id))["callback_number"] is None


async def test_a_made_up_call_id_is_refused_and_stops_nothing(bench, handlers):
    """Security: the id comes from a browser; its time may be beyond every calendar."""
    outcomes, _, _ = await handle(
        bench, handlers.on_call_commands, a_hang_up(bench, new_visitor_id(), MADE_UP)
    )
    assert outcomes == ["refused_not_your_call"]
    async with bench.transaction() as ctx:
        assert await ctx.store.read_call(MADE_UP) is None


async def test_only_its_visitor_hangs_a_call_up(bench, handlers):
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await handle(bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id))
    hang_up = a_hang_up(bench, new_visitor_id(), call_id)
    assert (await handle(bench, handlers.on_call_commands, hang_up))[0] == ["refused_not_your_call"]
    assert (await the_call(bench, call_id))["state"] == "requested"


async def test_a_request_that_waited_too_long_is_not_dialled(bench, handlers):
    """R-A5: call control was away for an hour; the visitor has left the page long ago."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    request = a_request(bench, visitor_id, call_id)
    bench.now += timedelta(seconds=AGE_MAX_S + 1)
    outcomes, credit, told = await handle(bench, handlers.on_call_requests, request)
    assert (outcomes, credit) == (["refused_request_too_old"], [])
    assert told == [(CallStatus.REFUSED, "request_too_old")]


async def test_a_refused_number_is_not_kept_and_costs_nothing(bench, handlers):
    """C5, R-C1."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    request = a_request(bench, visitor_id, call_id, destination="110")
    outcomes, credit, told = await handle(bench, handlers.on_call_requests, request)
    assert outcomes == ["refused_number_emergency_dial_directly"]
    assert credit == []
    assert told == [(CallStatus.REFUSED, "number_emergency_dial_directly")]
    row = await the_call(bench, call_id)
    assert row["callback_number"] is row["destination_number"] is None


async def test_a_reader_waits_for_nobody(bench, handlers, world):
    """A page that asks again and again must not hold up the call it asks about."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await handle(bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id))
    async with open_bench(world, "call_control", Store) as other, bench.transaction() as ctx:
        assert call_id in await ctx.store.calls([call_id])
        await other.fetch("SET lock_timeout = '200ms'")
        async with other.transaction() as reading:
            found = await reading.store.read_call(call_id)
    assert found is not None
    assert found.visitor_id == visitor_id


@pytest.mark.parametrize(
    "change",
    [
        "state = 'reserved'",
        "state = 'dialling', reserved_ms = 1000, lease_until = now()",
        "state = 'ended'",
        "state = 'refused'",
    ],
    ids=["no-reservation", "no-holder", "no-facts", "no-reason"],
)
async def test_the_database_refuses_a_call_that_breaks_the_rules(bench, handlers, change):
    """C1, C3, C5 as constraints: whatever the code does."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await handle(bench, handlers.on_call_requests, a_request(bench, visitor_id, call_id))
    with pytest.raises(asyncpg.CheckViolationError):
        await bench.fetch(f"UPDATE call SET {change} WHERE call_id = $1", call_id)
