"""The switch on real PostgreSQL with a scripted carrier: every order of things that may happen.

A `Process` is call control without Kafka: the real service, handlers and switch. Two of them share
the database, as after a rebalance.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

import asyncpg
import httpx
import pytest
from prometheus_client import CollectorRegistry
from typing_extensions import override

from schemas import topics
from schemas.call import (
    CallCommand,
    CallCommandV1,
    CallEndV1,
    CallRequestV1,
    CallStatus,
    CallStatusV1,
)
from schemas.credit import CreditDecisionV1, CreditOperation, CreditRequestV1
from schemas.transfer import TransferV1, TransferVerdict
from services.call_control import store
from services.call_control.backend import (
    BackendFailedError,
    Command,
    Dial,
    EndedBy,
    Ending,
    EndReason,
    HangUp,
    Leg,
    Persisted,
    TearDown,
)
from services.call_control.classification import TABLES
from services.call_control.declaration import DECLARATION
from services.call_control.handlers import Handlers, Limits
from services.call_control.http import build_http
from services.call_control.metrics import CallMetrics
from services.call_control.settings import Settings
from services.call_control.store import INVARIANTS, Store
from services.call_control.switch import Switch
from services.call_control.transfers import NumberGate
from services.chassis import errors
from services.chassis.clock import SystemClock
from services.chassis.context import Context
from services.chassis.db import DayTable
from services.chassis.service import Service
from services.gateway.reads import CallView
from services.privacy import recipients
from services.privacy.declare import LegalBasis, by_day
from services.privacy.gate import (
    CLEARED_AGE_MAX,
    Permit,
    Question,
    Refusal,
    RefusalReason,
    Rules,
    ThirdCountryGround,
    Verdict,
)
from services.privacy.recorder import OutboxRecorder
from services.privacy.rules import NOTHING_KNOWN, RuleBook, always
from tests.support.bench import IDS, new_visitor_id, received
from tests.support.eventually import eventually
from tests.support.fake_backend import FakeBackend
from tests.support.signals import Signals
from tests.support.stack import World

WORLD_SERVICES = ("call_control",)
RESERVED_MS = 30_000
LEASE_S = 6.0
C = TypeVar("C", Dial, HangUp, Persisted, TearDown)


class MovableClock(SystemClock):
    """The machine's clock, and as much ahead as a test says."""

    def __init__(self) -> None:
        """Begin with the machine's instant."""
        self.ahead = timedelta()
        self.stopped_s = 0.0

    @override
    def now(self) -> datetime:
        """Return the instant; durations do not jump, as on a machine that was suspended."""
        return super().now() + self.ahead

    @override
    def monotonic(self) -> float:
        """Return seconds; they go on where only the process stood still."""
        return super().monotonic() + self.stopped_s


class LossyService(Service[Store]):
    """Fails as many commits, or loses the answers of as many that worked, as a test says."""

    answers_to_lose = 0
    commits_to_fail = 0

    @override
    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Context[Store]]:
        """Open a transaction; its outcome may stay unknown to the caller."""
        async with super().transaction() as ctx:
            yield ctx
            if self.commits_to_fail:
                self.commits_to_fail -= 1
                raise asyncpg.ConnectionDoesNotExistError("connection was closed")
        if self.answers_to_lose:
            self.answers_to_lose -= 1
            raise asyncpg.ConnectionDoesNotExistError("connection was closed")


class Carrier(FakeBackend):
    """Loses its commands while it is deaf: the process died, or stood still, before sending."""

    is_deaf = False

    @override
    def send(self, command: Command) -> None:
        if not self.is_deaf:
            super().send(command)


class Process:
    """One process of call control, without Kafka."""

    def __init__(self, world: World, instance: str) -> None:
        """Prepare; nothing is opened yet."""
        given = world.settings("call_control", instance=instance, holder_lease_s=LEASE_S)
        settings = Settings.model_validate(given)
        # call control's own metrics; the chassis' have a signal matrix of their own
        self.registry = CollectorRegistry()
        self.clock = MovableClock()
        self.service = LossyService(
            declaration=DECLARATION, settings=settings, registry=CollectorRegistry(), store=Store,
            day_tables=[DayTable(name) for name in by_day(TABLES)], clock=self.clock,
        )  # fmt: skip
        self.backend = Carrier(self.clock)
        self.rules: Rules = RuleBook(
            always(recipients.load()), lambda _visitor_id, _now: NOTHING_KNOWN
        )
        gate = NumberGate(self._ask, self.clock, OutboxRecorder(self.service.transaction))
        self.switch = Switch(self.service, self.backend, settings, CallMetrics(self.registry), gate)
        self.handlers = Handlers(Limits(talk_max_ms=60_000, lease_ms=600_000, request_age_max_s=60))
        self.running: asyncio.Task[None] | None = None

    async def _ask(self, question: Question) -> Verdict:
        return await self.rules(question)

    async def start(self) -> None:
        """Open the database and begin to write down what the carrier reports."""
        await self.service._open_database()
        self.running = asyncio.create_task(self.switch.run())
        await self.switch._started.wait()

    async def die(self) -> None:
        """Stop at once, as a kill would: what is not on disk is gone."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
        await self.service._close()

    async def take_orders(self) -> int:
        """Carry out what is ordered now."""
        return await self.switch._carry_out_orders()

    async def look_for_orphans(self) -> None:
        """Do once what the task does every two seconds."""
        await self.switch._adopt()

    def sent(self, kind: type[C], call_id: UUID) -> list[C]:
        """Return the commands of a kind about a call that the carrier was given."""
        return [c for c in self.backend.commands if isinstance(c, kind) and c.call_id == call_id]

    async def reserved_call(self) -> UUID:
        """Bring a call to where its dialling is ordered."""
        visitor_id, call_id = new_visitor_id(), IDS.new()
        await self.request(visitor_id, call_id)
        await self.grant(visitor_id, call_id)
        return call_id

    async def request(self, visitor_id: UUID, call_id: UUID) -> None:
        """Let a visitor's request arrive."""
        event = CallRequestV1(
            call_id=call_id, visitor_id=visitor_id, callback_number="030 23125 001",
            destination_number="030 23125 900", address="192.0.2.7",
        )  # fmt: skip
        async with self.service.transaction() as ctx:
            record = received(topics.CALL_REQUEST, event, self.clock.now())
            await self.handlers.on_call_requests(ctx, [record])

    async def grant(self, visitor_id: UUID, call_id: UUID) -> None:
        """Let the ledger's grant arrive."""
        event = CreditDecisionV1(
            reservation_id=call_id, visitor_id=visitor_id, granted=True, reserved_ms=RESERVED_MS,
            lease_until=self.clock.now() + timedelta(hours=2),
        )  # fmt: skip
        async with self.service.transaction() as ctx:
            record = received(topics.CREDIT_DECISION, event, self.clock.now())
            await self.handlers.on_credit_decisions(ctx, [record])

    async def hang_up(self, call_id: UUID) -> None:
        """Let the visitor's order arrive."""
        row = await self.row(call_id)
        event = CallCommandV1(
            call_id=call_id, visitor_id=row["visitor_id"], command=CallCommand.HANG_UP
        )
        async with self.service.transaction() as ctx:
            record = received(topics.CALL_COMMAND, event, self.clock.now())
            await self.handlers.on_call_commands(ctx, [record])

    async def talking_call(self) -> UUID:
        """Bring a call to where both people talk."""
        call_id = await self.reserved_call()
        await self.take_orders()
        self.backend.answer(call_id, Leg.A)
        self.backend.answer(call_id, Leg.B)
        await self.reaches(call_id, "talking")
        return call_id

    async def row(self, call_id: UUID) -> asyncpg.Record:
        """Return a call's row."""
        return (await self.fetch("SELECT * FROM call WHERE call_id = $1", call_id))[0]

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database."""
        async with self.service.transaction() as ctx:
            return list(await ctx.connection.fetch(sql, *arguments))

    async def reaches(self, call_id: UUID, state: str) -> asyncpg.Record:
        """Wait until a call is in a state."""

        async def reached() -> bool:
            return bool((await self.row(call_id))["state"] == state)

        await eventually(reached, within_s=5, what=state)
        return await self.row(call_id)

    async def ends(self, call_id: UUID) -> list[CallEndV1]:
        """Return what the ledger is told about a call's end."""
        rows = await self.fetch(
            "SELECT payload FROM outbox WHERE topic = 'call-end' "
            "AND convert_from(payload, 'UTF8') LIKE $1",
            f"%{call_id}%",
        )
        return [CallEndV1.model_validate_json(row["payload"]) for row in rows]

    async def told(self, call_id: UUID) -> CallStatus:
        """Return the status that the page was told last."""
        rows = await self.fetch(
            "SELECT payload FROM outbox WHERE topic = 'call-status' "
            "AND convert_from(payload, 'UTF8') LIKE $1 ORDER BY id DESC LIMIT 1",
            f"%{call_id}%",
        )
        return CallStatusV1.model_validate_json(rows[0]["payload"]).status

    async def read(self, call_id: UUID) -> CallView:
        """Return what the gateway reads of a call, as the gateway understands it."""
        visitor_id = (await self.row(call_id))["visitor_id"]
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(build_http(self.service)), base_url="http://call-control"
        ) as client:
            answer = await client.get(f"/v1/calls/{call_id}?visitor_id={visitor_id}")
        return CallView.model_validate_json(answer.content)

    async def transfers(self, visitor_id: UUID) -> list[TransferV1]:
        """Return what was recorded of a visitor's data that went outside, or did not."""
        rows = await self.fetch("SELECT payload FROM outbox WHERE topic = 'transfer'")
        events = [TransferV1.model_validate_json(row["payload"]) for row in rows]
        return [event for event in events if event.visitor_id == visitor_id]

    async def assert_invariants(self) -> None:
        """C1-C5."""
        for name, sql in INVARIANTS.items():
            assert (await self.fetch(sql))[0][0] == 0, name


@contextlib.asynccontextmanager
async def a_process(world: World, instance: str = "0") -> AsyncIterator[Process]:
    process = Process(world, instance)
    await process.start()
    try:
        yield process
    finally:
        await process.die()


@pytest.fixture
async def process(world: World) -> AsyncIterator[Process]:
    async with a_process(world) as one:
        yield one


@pytest.fixture
async def peer(world: World, process: Process) -> AsyncIterator[Process]:
    async with a_process(world, "1") as other:
        yield other


@pytest.fixture(autouse=True)
async def nothing_is_left_over(world: World) -> AsyncIterator[None]:
    """Begin each test with no call of another: they share the database."""
    owner = await asyncpg.connect(world.owner_url("call_control"))
    try:
        await owner.execute("TRUNCATE call, call_leg, call_order, call_address, holder")
        yield
    finally:
        await owner.close()


# --------------------------------------------------------------------------- a good call


async def test_a_call_from_order_to_record(process):
    """R-A1, R-A5; C1-C4: dialled once, talk noted, ended once, dialogs forgotten."""
    call_id = await process.reserved_call()
    assert await process.take_orders() == 1
    assert await process.take_orders() == 0
    (dial,) = process.sent(Dial, call_id)
    assert dial.talk_limit_ms == RESERVED_MS
    assert (dial.number_a, dial.number_b) == ("+493023125001", "+493023125900")
    process.backend.ring(call_id, Leg.A)
    process.backend.answer(call_id, Leg.A)
    process.backend.answer(call_id, Leg.B)
    row = await process.reaches(call_id, "talking")
    assert row["connected_at"] == process.backend.calls[call_id].talk_started
    process.backend.end(call_id, EndReason.HUNG_UP, EndedBy.B, talk_ms=7_000)
    row = await process.reaches(call_id, "ended")
    assert (row["reason"], row["ended_by"], row["talk_ms"]) == ("hung_up", "b", 7_000)
    assert [(e.talk_ms, e.reason) for e in await process.ends(call_id)] == [(7_000, "hung_up")]
    legs = await process.fetch("SELECT * FROM call_leg WHERE call_id = $1 ORDER BY leg", call_id)
    assert [(leg["leg"], leg["dialog"], leg["is_down"]) for leg in legs] == [
        ("a", None, True), ("b", None, True),
    ]  # fmt: skip
    assert process.switch._held == set()
    await process.assert_invariants()


async def test_what_is_read_is_what_was_told(process):
    """R-A1: at every moment of a call the page reads the status that it was told, in its words."""
    call_id = await process.reserved_call()

    async def both_say(status: CallStatus) -> None:
        async def said() -> bool:
            return (await process.told(call_id), (await process.read(call_id)).status) == (
                status, status,
            )  # fmt: skip

        await eventually(said, within_s=5, what=status)

    await both_say(CallStatus.RESERVED)
    await process.take_orders()
    await both_say(CallStatus.CALLBACK_DIALLING)
    process.backend.ring(call_id, Leg.A)
    await both_say(CallStatus.CALLBACK_RINGING)
    process.backend.answer(call_id, Leg.A)
    await both_say(CallStatus.DESTINATION_DIALLING)
    process.backend.ring(call_id, Leg.B)
    await both_say(CallStatus.DESTINATION_RINGING)
    process.backend.answer(call_id, Leg.B)
    await both_say(CallStatus.TALKING)
    ending = Ending(
        **process.backend._head(call_id), reason=EndReason.HUNG_UP, ended_by=EndedBy.B,
        leg=Leg.B, talk_ms=7_000, overrun_ms=0,
    )  # fmt: skip
    process.backend._emit(ending)
    assert (await process.reaches(call_id, "ending"))["ended_at"] is None
    await both_say(CallStatus.ENDED)
    found = await process.read(call_id)
    assert (found.reason, found.talk_ms, found.reserved_ms) == ("hung_up", 7_000, RESERVED_MS)
    process.backend.end(call_id, EndReason.HUNG_UP, EndedBy.B, talk_ms=7_000)
    await process.reaches(call_id, "ended")
    await both_say(CallStatus.ENDED)


async def test_an_answer_is_acknowledged_only_when_its_dialog_is_on_disk(process):
    """C3: as long as the commit fails, the far end gets no ACK."""
    call_id = await process.reserved_call()
    await process.take_orders()
    process.service.commits_to_fail = 3
    process.backend.answer(call_id, Leg.A)
    await asyncio.sleep(0.3)
    assert process.service.commits_to_fail < 3
    assert process.sent(Persisted, call_id) == []
    await process.backend.received(Persisted)
    (leg,) = await process.fetch(
        "SELECT dialog FROM call_leg WHERE call_id = $1 AND leg = 'a'", call_id
    )
    assert leg["dialog"] is not None


async def test_the_switch_ends_a_call_at_its_stop(process):
    """C3: SIGTERM in mid-talk; the end is written and told before the process goes."""
    call_id = await process.talking_call()
    await process.switch.stop()
    row = await process.row(call_id)
    assert (row["state"], row["reason"]) == ("ended", "shutdown")
    assert len(await process.ends(call_id)) == 1


# --------------------------------------------------------------------------- the gate


async def test_the_transfer_of_the_numbers_is_recorded_before_anything_is_dialled(process):
    """R-E2, K3: with its ground, in the transaction that takes the call; once, names only."""
    call_id = await process.reserved_call()
    process.service.commits_to_fail = 1
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await process.take_orders()
    assert process.sent(Dial, call_id) == []
    await process.take_orders()
    assert len(process.sent(Dial, call_id)) == 1
    row = await process.row(call_id)
    (event,) = await process.transfers(row["visitor_id"])
    assert (event.recipient, event.purpose, event.country) == ("network-operators", "call", "DE")
    assert event.fields == ("callback_number", "destination_number")
    assert (event.verdict, event.basis) == (TransferVerdict.PERMITTED, "Art. 6(1)(b)")
    assert event.happened_at == row["requested_at"]
    assert "3023125" not in event.model_dump_json()


@pytest.mark.parametrize("allowed", [frozenset(), frozenset({"callback_number"})])
async def test_what_the_gate_does_not_clear_is_not_dialled(process, allowed):
    """R-E2, K3, C3: refused, or half of it: nothing goes, the call ends, the credit is free."""

    async def rules(question: Question) -> Verdict:
        if not allowed:
            return Refusal(question=question, reason=RefusalReason.RECIPIENT_NOT_VALID)
        return Permit(
            question=question,
            fields=allowed,
            basis=LegalBasis.CONTRACT,
            country=ThirdCountryGround.NOT_A_THIRD_COUNTRY,
        )

    process.rules = rules
    call_id = await process.reserved_call()
    await process.take_orders()
    assert process.sent(Dial, call_id) == []
    row = await process.row(call_id)
    assert (row["state"], row["reason"]) == ("ended", "transfer_not_permitted")
    assert len(await process.ends(call_id)) == 1
    assert len(await process.transfers(row["visitor_id"])) == 1
    assert process.switch._held == set()
    await process.assert_invariants()


async def test_who_may_not_be_told_any_more_is_not_dialled(process):
    """R-E2, K3, C3: the register changed between the commit and the dialling: refused, recorded."""
    permit = process.rules
    n_asked = 0

    async def rules(question: Question) -> Verdict:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 1:
            return await permit(question)
        return Refusal(question=question, reason=RefusalReason.RECIPIENT_NOT_VALID)

    process.rules = rules
    call_id = await process.reserved_call()
    await process.take_orders()
    assert process.sent(Dial, call_id) == []
    await process.look_for_orphans()
    row = await process.reaches(call_id, "ended")
    told = await process.transfers(row["visitor_id"])
    assert sorted(event.verdict.value for event in told) == ["permitted", "refused"]
    assert len(await process.ends(call_id)) == 1


async def test_what_was_cleared_too_long_ago_is_not_dialled(process):
    """R-E2, C3: a commit that took longer than what is cleared lasts: no dialling, one end."""
    gate = process.switch._gate
    clear = gate.clear

    async def slow(ctx, call):
        found = await clear(ctx, call)
        process.clock.ahead = CLEARED_AGE_MAX + timedelta(seconds=1)
        return found

    gate.clear = slow
    call_id = await process.reserved_call()
    await process.take_orders()
    assert process.sent(Dial, call_id) == []
    assert call_id not in process.switch._held
    process.switch._note_renewed()  # as its task does meanwhile
    await process.look_for_orphans()
    await process.reaches(call_id, "ended")
    assert len(await process.ends(call_id)) == 1
    await process.assert_invariants()


# --------------------------------------------------------------------------- orders


async def test_who_hangs_up_before_the_dialling_is_never_called(process):
    """R-A5, C3, R-C1: both orders wait; nothing is dialled, the reservation ends, numbers go."""
    call_id = await process.reserved_call()
    await process.hang_up(call_id)
    assert await process.take_orders() == 2
    assert process.sent(Dial, call_id) == []
    row = await process.row(call_id)
    assert (row["state"], row["reason"], row["talk_ms"]) == ("ended", "requested", 0)
    assert row["callback_number"] is row["destination_number"] is None
    assert len(await process.ends(call_id)) == 1
    await process.assert_invariants()


async def test_two_processes_dial_a_call_once(process, peer):
    call_ids = [await process.reserved_call() for _ in range(5)]
    await asyncio.gather(process.take_orders(), peer.take_orders())
    for call_id in call_ids:
        assert len(process.sent(Dial, call_id)) + len(peer.sent(Dial, call_id)) == 1


async def test_a_hang_up_seen_by_a_peer_during_the_dialling_is_not_lost(process, peer, world):
    """R-A5: the peer takes the order while this process is just taking the call."""
    call_id = await process.reserved_call()
    await process.hang_up(call_id)
    owner = await asyncpg.connect(world.owner_url("call_control"))
    try:
        async with owner.transaction():
            # the other process's transaction, at the point where it has taken the dial order alone
            await owner.execute(
                "UPDATE call_order SET done_at = now() WHERE call_id = $1 AND name = 'dial'",
                call_id,
            )
            await owner.execute(
                "UPDATE call SET state = 'dialling', holder = '0', holder_epoch = $2 "
                "WHERE call_id = $1", call_id, process.switch._epoch,
            )  # fmt: skip
            overtaking = asyncio.create_task(peer.take_orders())
            await asyncio.sleep(0.3)
    finally:
        await owner.close()
    await overtaking
    assert peer.sent(HangUp, call_id) == []
    await process.take_orders()
    assert len(process.sent(HangUp, call_id)) == 1


async def test_an_old_order_is_not_dialled(process):
    """R-A5, L5: no process was there to dial for an hour; nobody waits for the call any more."""
    call_id = await process.reserved_call()
    process.clock.ahead += timedelta(hours=1)
    await process.take_orders()
    assert process.sent(Dial, call_id) == []
    row = await process.row(call_id)
    assert (row["state"], row["reason"]) == ("ended", "request_too_old")
    assert [e.talk_ms for e in await process.ends(call_id)] == [0]


async def test_a_request_that_the_ledger_does_not_answer_is_given_up(process):
    """C3, L5: the visitor may call again; the late grant goes back."""
    visitor_id, call_id = new_visitor_id(), IDS.new()
    await process.request(visitor_id, call_id)
    await process.switch._give_up_unanswered()
    assert (await process.row(call_id))["state"] == "requested"
    process.clock.ahead += timedelta(seconds=61)
    await process.switch._give_up_unanswered()
    row = await process.row(call_id)
    assert (row["state"], row["reason"]) == ("refused", "request_too_old")
    again = IDS.new()
    await process.request(visitor_id, again)
    assert (await process.row(again))["state"] == "requested"
    await process.grant(visitor_id, call_id)
    asked = await process.fetch(
        "SELECT payload FROM outbox WHERE topic = 'credit-request' "
        "AND convert_from(payload, 'UTF8') LIKE $1 ORDER BY id", f"%{call_id}%",
    )  # fmt: skip
    operations = [CreditRequestV1.model_validate_json(row["payload"]).operation for row in asked]
    assert operations == [CreditOperation.RESERVE, CreditOperation.RELEASE]


# --------------------------------------------------------------------------- deaths


async def test_a_kill_between_the_hold_and_the_dialling_loses_no_call(process, world):
    """C3, L5: no leg, no dialog; the next life ends the call and the ledger hears of it."""
    call_id = await process.reserved_call()
    with lost_commands(process):
        await process.take_orders()
    await process.die()
    async with a_process(world) as reborn:
        await reborn.look_for_orphans()
        row = await reborn.reaches(call_id, "ended")
        assert (row["reason"], row["talk_ms"]) == ("orphaned", 0)
        assert [c.dialogs for c in reborn.sent(TearDown, call_id)] == [()]
        assert len(await reborn.ends(call_id)) == 1
        await reborn.assert_invariants()


async def test_a_kill_in_mid_talk_is_settled_once_by_the_next_life(process, world):
    """C3, C4."""
    call_id = await process.talking_call()
    await process.die()
    async with a_process(world) as reborn:
        await reborn.look_for_orphans()
        await reborn.look_for_orphans()
        await reborn.reaches(call_id, "ended")
        (torn_down,) = reborn.sent(TearDown, call_id)
        assert [dialog["leg"] for dialog in torn_down.dialogs] == ["a", "b"]
        assert len(await reborn.ends(call_id)) == 1
        await reborn.assert_invariants()


async def test_a_kill_while_the_legs_come_down_keeps_who_ended_it_and_the_measured_talk(
    process, world
):
    """C4, R-A6: the record says what happened, not when the next process came up."""
    call_id = await process.talking_call()
    await process.fetch(
        "UPDATE call SET state = 'ending', reason = 'hung_up', ended_by = 'a', talk_ms = 5000, "
        "overrun_ms = 0, connected_at = now() - interval '10 minutes' WHERE call_id = $1", call_id,
    )  # fmt: skip
    await process.die()
    async with a_process(world) as reborn:
        await reborn.look_for_orphans()
        row = await reborn.reaches(call_id, "ended")
    assert (row["reason"], row["ended_by"], row["talk_ms"]) == ("hung_up", "a", 5_000)
    assert row["ended_at"] - row["connected_at"] == timedelta(seconds=5)


async def test_a_dead_back_end_ends_the_process(process):
    """C3: also when it has nothing more to report; or orders would go on into nowhere."""
    process.backend.fail(RuntimeError("the SIP thread died"))
    with pytest.raises(BackendFailedError):
        await asyncio.wait_for(asyncio.shield(process.running), 2)


async def test_peers_bring_down_the_calls_of_a_silent_process_once(process, peer, world):
    """C3: both look at the same time, again and again."""
    call_ids = [await process.talking_call() for _ in range(4)]
    await process.die()
    peer.clock.ahead += timedelta(seconds=LEASE_S + 1)
    async with a_process(world, "2") as third:
        third.clock.ahead = peer.clock.ahead
        for each in (peer, third):
            await each.switch._take_epoch()
        for _ in range(3):
            await asyncio.gather(peer.look_for_orphans(), third.look_for_orphans())
        for call_id in call_ids:
            await peer.reaches(call_id, "ended")
            assert len(peer.sent(TearDown, call_id)) + len(third.sent(TearDown, call_id)) == 1
            assert len(await peer.ends(call_id)) == 1


async def test_an_orphan_that_a_peer_has_just_taken_is_left_to_it(
    process, peer, world, monkeypatch
):
    """C3: the peer's commit falls between this process's view of the table and its lock."""
    call_id = await process.talking_call()
    await process.die()
    late = timedelta(seconds=LEASE_S + 1)
    peer.clock.ahead += late
    await peer.switch._take_epoch()
    async with a_process(world, "2") as third:
        third.clock.ahead += late
        slowly = "AND (SELECT true FROM pg_sleep(0.5)) ORDER BY"
        with monkeypatch.context() as patch:
            patch.setattr(store, "_ORPHANS", store._ORPHANS.replace("ORDER BY", slowly))
            looking = asyncio.create_task(third.look_for_orphans())
            await asyncio.sleep(0.2)
        # the legs take their time to come down: the call is still there to be taken
        with lost_commands(peer):
            await peer.look_for_orphans()
        await looking
        assert (await third.row(call_id))["holder"] == "1"
        assert third.sent(TearDown, call_id) == []


async def test_a_process_that_stood_still_loses_its_calls_and_ends_itself(process, peer):
    """C3: its peer has settled the call; nothing is acknowledged or left up here."""
    call_id = await process.reserved_call()
    await process.take_orders()
    process.backend.answer(call_id, Leg.A)
    await process.backend.received(Persisted)
    process.backend.commands.clear()
    # it stands still; the peer looks
    peer.clock.ahead += timedelta(seconds=LEASE_S + 1)
    with lost_commands(peer):
        await peer.look_for_orphans()
    assert (await process.row(call_id))["holder"] == "1"
    # it wakes up in the middle of B's answer
    process.clock.ahead = peer.clock.ahead
    process.backend.answer(call_id, Leg.B)
    await process.backend.received(HangUp)
    assert {h.reason for h in process.sent(HangUp, call_id)} == {EndReason.ORPHANED}
    assert process.sent(Persisted, call_id) == []
    assert await process.ends(call_id) == []
    with pytest.raises(errors.Fatal, match="stood still"):
        await asyncio.wait_for(process.switch.keep_lease(), 2)


@pytest.mark.parametrize("is_suspended", [False, True], ids=["process stopped", "machine asleep"])
async def test_what_was_cut_too_late_is_settled_as_an_orphans_end(process, world, is_suspended):
    """C2, C3, C4: nobody took the call meanwhile; its late end is not one by its time."""
    call_id = await process.talking_call()
    slept = timedelta(milliseconds=RESERVED_MS) + timedelta(seconds=LEASE_S + 5)
    process.clock.ahead += slept
    if not is_suspended:
        process.clock.stopped_s += slept.total_seconds()
    process.backend.end(call_id, EndReason.TALK_LIMIT, EndedBy.PLATFORM)
    with pytest.raises(errors.Fatal, match="in time"):
        await asyncio.wait_for(asyncio.shield(process.running), 5)
    assert [h.reason for h in process.sent(HangUp, call_id)] == [EndReason.ORPHANED]
    assert (await process.row(call_id))["state"] == "talking"
    assert await process.ends(call_id) == []
    await process.die()
    async with a_process(world) as reborn:
        reborn.clock.ahead = process.clock.ahead
        reborn.switch._note_renewed()
        await reborn.look_for_orphans()
        row = await reborn.reaches(call_id, "ended")
        assert row["reason"] == "orphaned"
        assert row["talk_ms"] == row["reserved_ms"] + row["overrun_ms"]
        assert [end.talk_ms for end in await reborn.ends(call_id)] == [row["talk_ms"]]
        legs = await reborn.fetch("SELECT is_down FROM call_leg WHERE call_id = $1", call_id)
        assert [leg["is_down"] for leg in legs] == [True, True]
        await reborn.assert_invariants()


async def test_a_lease_that_cannot_be_renewed_ends_the_process_in_time(process, world):
    """C3: the database does not answer at all; the peers take over when the lease is over."""
    owner = await asyncpg.connect(world.owner_url("call_control"))
    try:
        async with owner.transaction():
            await owner.fetch("SELECT 1 FROM holder FOR UPDATE")
            with pytest.raises(errors.Fatal, match="in time"):
                await asyncio.wait_for(process.switch.keep_lease(), LEASE_S)
    finally:
        await owner.close()


async def test_a_twin_ends_the_older_process(process, world):
    async with a_process(world):
        with pytest.raises(errors.Fatal, match="another process"):
            await asyncio.wait_for(process.switch.keep_lease(), 2)


# --------------------------------------------------------------------------- the database goes away


async def test_a_commit_whose_answer_is_lost_strands_no_call(process):
    """C3, L5: the hold is on disk, the call was never dialled: it is ended, not forgotten."""
    call_id = await process.reserved_call()
    process.service.answers_to_lose = 1
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await process.take_orders()
    assert (await process.row(call_id))["state"] == "dialling"
    assert process.sent(Dial, call_id) == []
    await process.look_for_orphans()
    row = await process.reaches(call_id, "ended")
    assert (row["reason"], row["talk_ms"]) == ("orphaned", 0)
    assert len(await process.ends(call_id)) == 1


async def test_a_takeover_whose_answer_is_lost_is_taken_up_again(process, world):
    """C3: or both legs would stay up for ever."""
    call_id = await process.talking_call()
    await process.die()
    async with a_process(world) as reborn:
        reborn.service.answers_to_lose = 1
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await reborn.look_for_orphans()
        assert reborn.sent(TearDown, call_id) == []
        await reborn.look_for_orphans()
        await reborn.reaches(call_id, "ended")
        assert len(reborn.sent(TearDown, call_id)) == 1


async def test_an_end_whose_answer_is_lost_is_told_once(process):
    """C3, C4."""
    call_id = await process.talking_call()
    process.service.answers_to_lose = 1
    process.backend.end(call_id, EndReason.TALK_LIMIT, EndedBy.PLATFORM, talk_ms=RESERVED_MS)

    async def idle() -> bool:
        return not process.switch._held

    await eventually(idle, within_s=5)
    assert process.service.answers_to_lose == 0
    assert (await process.row(call_id))["state"] == "ended"
    assert len(await process.ends(call_id)) == 1


async def test_own_calls_are_no_orphans(process):
    """C3: looking for orphans leaves what this process carries alone, whatever its state."""
    ringing = await process.reserved_call()
    await process.take_orders()
    talking = await process.talking_call()
    await process.look_for_orphans()
    assert process.sent(TearDown, ringing) == process.sent(TearDown, talking) == []


async def test_a_call_whose_day_was_dropped_is_hung_up(process, world):
    """D1, C1: a simulation has dropped today; its reservation ended too, so the legs come down."""
    call_id = await process.reserved_call()
    await process.take_orders()
    owner = await asyncpg.connect(world.owner_url("call_control"))
    try:
        await owner.execute("TRUNCATE call, call_leg, call_order")
    finally:
        await owner.close()
    process.backend.answer(call_id, Leg.A)
    await process.backend.received(HangUp)
    assert process.sent(Persisted, call_id) == []
    await process.assert_invariants()


# --------------------------------------------------------------------------- signals


async def test_every_metric_of_call_control_moves(process):
    """The signal matrix (C2, C3): a metric that nobody ever saw move proves nothing."""
    signals = Signals(process.registry)
    # a call that no process carries: the hold's commit worked, its answer was lost
    stranded = await process.reserved_call()
    process.service.answers_to_lose = 1
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await process.take_orders()
    await process.look_for_orphans()
    await process.reaches(stranded, "ended")
    call_id = await process.talking_call()
    signals.look()
    process.backend.end(
        call_id, EndReason.HUNG_UP, EndedBy.B, talk_ms=RESERVED_MS + 40, silent=Leg.A
    )

    async def have_all_moved() -> bool:
        return not signals.unmoved()

    with contextlib.suppress(AssertionError):  # the line below says which did not
        await eventually(have_all_moved, within_s=5)
    assert signals.unmoved() == set()
    # and back: a gauge that only rises proves nothing either
    assert process.registry.get_sample_value("call_control_calls_active") == 0
    assert process.registry.get_sample_value("call_control_legs_unconfirmed_total") == 1
    assert process.registry.get_sample_value("call_control_overrun_seconds_sum") == 0.04


# --------------------------------------------------------------------------- invariants


OVER = "UPDATE call SET state = 'ended', ended_at = now(), overrun_ms = 0, reason = 'hung_up', "
BACK = "UPDATE call SET state = 'requested', reserved_ms = NULL, lease_until = NULL, "


@pytest.mark.parametrize(
    ("damage", "broken"),
    [
        (BACK + "connected_at = NULL", "c1_"),
        (OVER + "talk_ms = 99000", "c2_"),
        ("UPDATE call SET lease_until = now() - interval '1 s'", "c3_every"),
        (BACK + "requested_at = now() - interval '1 h'", "c3_every"),
        (OVER + "talk_ms = 0", "c3_legs"),
        ("WITH x AS (DELETE FROM call_leg WHERE leg = 'b') " + OVER + "talk_ms = 1", "c4_"),
        ("UPDATE call SET state = 'refused', reason = 'no_credit', holder = NULL", "c5_"),
    ],
    ids=["unreserved", "overrun", "unended", "unanswered", "leg-up", "one-leg", "refused"],
)
async def test_each_invariant_query_sees_the_damage_it_is_for(process, world, damage, broken):
    """C1-C5: a query that cannot fail proves nothing; the damage is done as the owner."""
    await process.talking_call()
    await process.assert_invariants()
    owner = await asyncpg.connect(world.owner_url("call_control"))
    try:
        change = owner.transaction()
        await change.start()
        await owner.execute(damage)
        found = {name: await owner.fetchval(sql) for name, sql in INVARIANTS.items()}
        await change.rollback()
    finally:
        await owner.close()
    assert any(count for name, count in found.items() if name.startswith(broken)), found


@contextlib.contextmanager
def lost_commands(process: Process) -> Iterator[None]:
    """Let the process die, or stand still, before the carrier gets its commands."""
    process.backend.is_deaf = True
    try:
        yield
    finally:
        process.backend.is_deaf = False
