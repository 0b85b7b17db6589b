"""Calls end to end on real Kafka, PostgreSQL and SIP: ledger and call control as processes.

Method: a visitor's events are written as the gateway writes them; telephones of our own answer at
the trunk's address with real RTP; afterwards the databases are asked.
"""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest

from deploy.phones import Mode, Phone, PhoneExchange
from services.ad_ledger.store import INVARIANTS as LEDGER_INVARIANTS
from services.call_control.store import INVARIANTS as CALL_INVARIANTS
from tests.support.caller import CALLBACK, DESTINATION, a_caller
from tests.support.eventually import eventually
from tests.support.running import ready
from tests.support.stack import World, finish

WORLD_SERVICES = ("ad_ledger", "call_control")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

A, B = "+493023125001", "+493023125900"


@pytest.fixture(scope="module")
def services(world: World) -> World:
    for name in WORLD_SERVICES:
        world.start(name)
    finish(ready(world, *WORLD_SERVICES))
    return world


@pytest.fixture
async def phones(services: World) -> AsyncIterator[tuple[Phone, Phone]]:
    exchange = PhoneExchange("127.0.0.1", services.ports["trunk"])
    callback, destination = Phone(A, answer_after_s=0.2), Phone(B, answer_after_s=0.2)
    exchange.plug(callback, destination)
    await exchange.start()
    yield callback, destination
    await exchange.stop()


async def assert_invariants(world: World) -> None:
    for service, invariants in (
        ("ad_ledger", LEDGER_INVARIANTS),
        ("call_control", CALL_INVARIANTS),
    ):
        connection = await asyncpg.connect(world.owner_url(service))
        try:
            for name, sql in invariants.items():
                assert await connection.fetchval(sql) == 0, name
        finally:
            await connection.close()


async def test_a_call_talks_until_the_earned_time_is_used_up(services, phones):
    """R-A1, R-A3, R-A5; C1, C2, C4, L5: earn, call, talk, cut, charge, record."""
    callback, destination = phones
    async with a_caller(services) as caller:
        await caller.earn(4_000)
        await caller.has_balance(4_000)
        call_id = await caller.call()
        row = await caller.reaches(call_id, "ended")
        charged_ms = min(row["talk_ms"], 4_000)
        await caller.has_balance(4_000 - charged_ms)
        assert row["reason"] == "talk_limit"
        assert (row["callback_number"], row["destination_number"]) == (A, B)
        # cut a timer's tick before the limit rather than after it; measured, not assumed
        assert 3_900 <= row["talk_ms"] <= 4_000 + row["overrun_ms"]
        for leg in "ab":
            assert row[f"{leg}_sip_status"] == row[f"{leg}_bye_status"] == 200
            assert row[f"{leg}_is_down"]
        address = await caller.look(
            "call_control",
            "SELECT host(address) AS a FROM call_address WHERE call_id = $1",
            call_id,
        )
        assert address["a"] == "192.0.2.7"
        spent = await caller.look(
            "ad_ledger", "SELECT * FROM reservation WHERE reservation_id = $1", call_id
        )
        assert (spent["state"], spent["spent_ms"]) == ("settled", charged_ms)
        assert spent["connected_at"] == row["connected_at"]
    heard = callback.calls[-1], destination.calls[-1]
    assert heard[0].heard_hz == pytest.approx(880, abs=30)
    assert heard[1].heard_hz == pytest.approx(440, abs=30)
    assert min(call.rtp_received for call in heard) > 100
    await assert_invariants(services)


async def test_the_trace_goes_from_the_request_to_the_settlement(services, phones):
    """One W3C trace through topics, outboxes and the telephone call."""
    callback, _ = phones
    callback.hang_up_after_s = 0.5
    async with a_caller(services) as caller:
        await caller.earn(4_000)
        await caller.has_balance(4_000)
        call_id = await caller.call()
        row = await caller.reaches(call_id, "ended")
        assert row["traceparent"].split("-")[1] == caller.traceparent.split("-")[1]

        async def settled():
            return await caller.look(
                "ad_ledger",
                "SELECT convert_from(headers, 'UTF8') AS headers FROM outbox "
                "WHERE topic = 'credit' AND convert_from(payload, 'UTF8') LIKE $1",
                f'%"spent"%{call_id}%',
            )

        headers = (await eventually(settled, within_s=10))["headers"]
        assert caller.traceparent.split("-")[1] in headers


@pytest.mark.parametrize(
    ("modes", "reason"),
    [
        ((Mode.BUSY, Mode.ANSWER), "busy"),
        ((Mode.ANSWER, Mode.BUSY), "busy"),
    ],
    ids=["callback-busy", "destination-busy"],
)
async def test_a_call_that_does_not_connect_costs_nothing(services, phones, modes, reason):
    """R-A5, L5: ringing is free to the visitor."""
    for phone, mode in zip(phones, modes, strict=True):
        phone.mode = mode
    async with a_caller(services) as caller:
        await caller.earn(4_000)
        await caller.has_balance(4_000)
        row = await caller.reaches(await caller.call(), "ended")
        assert (row["reason"], row["talk_ms"]) == (reason, 0)
        await caller.has_balance(4_000)
    await assert_invariants(services)


async def test_who_hangs_up_early_keeps_the_rest(services, phones):
    """R-A5: by the visitor's order in mid-talk, and on the telephone."""
    callback, _ = phones
    async with a_caller(services) as caller:
        await caller.earn(8_000)
        await caller.has_balance(8_000)
        call_id = await caller.call()
        await caller.reaches(call_id, "talking")
        await caller.hang_up(call_id)
        row = await caller.reaches(call_id, "ended")
        assert (row["reason"], row["ended_by"]) == ("requested", "platform")
        left_ms = 8_000 - row["talk_ms"]
        await caller.has_balance(left_ms)
        callback.hang_up_after_s = 0.5
        row = await caller.reaches(await caller.call(), "ended")
        assert (row["reason"], row["ended_by"]) == ("hung_up", "a")
        await caller.has_balance(left_ms - row["talk_ms"])
    await assert_invariants(services)


async def test_hanging_up_while_it_rings_cancels_both_legs(services, phones):
    callback, _ = phones
    callback.mode = Mode.NO_ANSWER
    async with a_caller(services) as caller:
        await caller.earn(4_000)
        await caller.has_balance(4_000)
        call_id = await caller.call()

        async def rings():
            return callback.calls and callback.calls[-1].ringing_at

        await eventually(rings, within_s=10)
        await caller.hang_up(call_id)
        row = await caller.reaches(call_id, "ended")
        assert (row["reason"], row["talk_ms"], row["b_dialled_at"]) == ("requested", 0, None)
        await caller.has_balance(4_000)


async def test_only_the_callers_own_call_can_be_hung_up(services, phones):
    async with a_caller(services) as caller, a_caller(services) as stranger:
        await caller.earn(2_000)
        await caller.has_balance(2_000)
        call_id = await caller.call()
        await stranger.hang_up(call_id)
        row = await caller.reaches(call_id, "ended")
        assert row["reason"] == "talk_limit"


@pytest.mark.parametrize(
    ("callback", "destination", "reason"),
    [
        (CALLBACK, "110", "number_emergency_dial_directly"),
        ("112", DESTINATION, "number_emergency_dial_directly"),
        (CALLBACK, "0900 123456", "number_premium"),
        (CALLBACK, "+33 1 23 45 67 89", "number_foreign"),
        (CALLBACK, CALLBACK, "numbers_equal"),
        (CALLBACK, DESTINATION, "no_credit"),
    ],
    ids=["emergency", "emergency-callback", "premium", "foreign", "equal", "no-credit"],
)
async def test_a_refused_call_dials_nothing(services, phones, callback, destination, reason):
    """C1, C5: refused with its reason; the numbers are not kept."""
    async with a_caller(services) as caller:
        row = await caller.reaches(await caller.call(callback, destination), "refused")
        assert row["reason"] == reason
        assert row["callback_number"] is row["destination_number"] is None
    assert [phone.calls for phone in phones] == [[], []]


async def test_one_call_at_a_time(services, phones):
    async with a_caller(services) as caller:
        await caller.earn(3_000)
        await caller.has_balance(3_000)
        first = await caller.call()
        await caller.reaches(first, "talking")
        second = await caller.reaches(await caller.call(), "refused")
        assert second["reason"] == "call_in_progress"
        await caller.reaches(first, "ended")


async def test_the_read_api_shows_a_call_to_its_visitor_only(services, phones):
    async with a_caller(services) as caller, a_caller(services) as stranger:
        call_id = await caller.call(CALLBACK, "110")
        await caller.reaches(call_id, "refused")
        port = services.environments["call_control"]["CALL_CONTROL_HTTP_PORT"]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            own = await client.get(f"/v1/calls/{call_id}?visitor_id={caller.visitor_id}")
            assert own.json()["reason"] == "number_emergency_dial_directly"
            other = await client.get(f"/v1/calls/{call_id}?visitor_id={stranger.visitor_id}")
            assert other.status_code == 404


@pytest.mark.fault
async def test_a_killed_process_loses_no_call(services, phones):
    """C3, C4, L5: kill -9 in mid-talk; the next process brings both legs down and settles once."""
    callback, destination = phones
    async with a_caller(services) as caller:
        await caller.earn(60_000)
        await caller.has_balance(60_000)
        call_id = await caller.call()
        await caller.reaches(call_id, "talking")
        process = services.processes[-1]
        process.kill()
        process.wait()
        assert callback.calls[-1].ended_at is None
        await asyncio.sleep(0.5)
        services.start("call_control")
        row = await caller.reaches(call_id, "ended", within_s=40)
        assert row["reason"] == "orphaned"
        assert row["a_bye_status"] == row["b_bye_status"] == 200
        assert 500 <= row["talk_ms"] < 60_000
        assert callback.calls[-1].ended_at is not None
        assert destination.calls[-1].ended_at is not None
        await caller.has_balance(60_000 - row["talk_ms"])
        ends = await caller.look(
            "call_control",
            "SELECT count(*) AS n FROM outbox WHERE topic = 'call-end' "
            "AND convert_from(payload, 'UTF8') LIKE $1",
            f"%{call_id}%",
        )
        assert ends["n"] == 1
    await assert_invariants(services)


@pytest.mark.fault
async def test_everything_is_killed_midway_and_goes_on(services, phones):
    """R-A5; C3, L3, L5: both services die while a phone rings; nothing is lost or charged twice."""
    callback, _ = phones
    callback.answer_after_s = 3.0
    async with a_caller(services) as caller:
        await caller.earn(2_000)
        await caller.has_balance(2_000)
        call_id = await caller.call()

        async def rings():
            return callback.calls and callback.calls[-1].ringing_at

        await eventually(rings, within_s=10)
        for process in services.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        await caller.earn(1_000)
        for name in WORLD_SERVICES:
            services.start(name)
        row = await caller.reaches(call_id, "ended", within_s=60)
        assert (row["reason"], row["talk_ms"]) == ("orphaned", 0)
        await caller.has_balance(3_000)
    await assert_invariants(services)
