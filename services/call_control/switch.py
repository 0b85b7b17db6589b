"""Carries out calls, step by step on disk, so that a kill at any instant loses no call (C3).

Takes orders from the database, hands them to the back end, and writes what that reports. A call
stays with the process that holds its lease, whatever Kafka's partitions do. Order of things: the
hold is committed before the first INVITE; a leg's dialog is committed before its answer is
acknowledged; the end of the call, its CDR and its `call-end` are one transaction.
"""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from uuid import UUID

from schemas import topics
from schemas.call import CallEndV1, CallStartV1, CallStatus
from services.call_control import backend, domain
from services.call_control.backend import CallBackend, Leg
from services.call_control.domain import State
from services.call_control.handlers import REASON_REQUESTED, tell
from services.call_control.metrics import CallMetrics
from services.call_control.settings import Settings
from services.call_control.store import Call, End, Store
from services.call_control.transfers import REASON_NOT_PERMITTED, NumberGate
from services.chassis import errors, logs
from services.chassis.clock import sleep
from services.chassis.context import Context
from services.chassis.service import Service
from services.privacy.gate import Cleared

ORDERS_MAX = 100
EVENTS_MAX = 200
ORDERS_POLL_S = 0.05
RENEW_EVERY_S = 1.5
ORPHANS_EVERY_S = 2.0
RETRY_S = 0.2

_TRYING = {Leg.A: CallStatus.CALLBACK_DIALLING, Leg.B: CallStatus.DESTINATION_DIALLING}
_RINGING = {Leg.A: CallStatus.CALLBACK_RINGING, Leg.B: CallStatus.DESTINATION_RINGING}


class Switch:
    """This process's share of the calls."""

    def __init__(
        self,
        service: Service[Store],
        carrier: CallBackend,
        settings: Settings,
        metrics: CallMetrics,
        gate: NumberGate,
    ) -> None:
        """Take the chassis, the back end that carries calls, settings, metrics and the gate."""
        self._gate = gate
        self._service = service
        self._backend = carrier
        self._settings = settings
        self._metrics = metrics
        self._request_age_max = timedelta(seconds=settings.request_age_max_s)
        self._holder = settings.instance
        self._epoch = 0
        self._renewed_at = 0.0
        self._renewed_on = service.clock.now()
        self._started = asyncio.Event()
        self._stopping = False
        self._held: set[UUID] = set()

    # ------------------------------------------------------------------ tasks of the service

    async def run(self) -> None:
        """Take a new epoch, start the back end, and write down what it reports, for ever."""
        await self._patiently(self._take_epoch)
        await self._backend.start()
        self._started.set()
        queue: asyncio.Queue[backend.Event | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(queue))
        try:
            while not (reader.done() and queue.empty()):
                taken = [await queue.get()]
                while not queue.empty() and len(taken) < EVENTS_MAX:
                    taken.append(queue.get_nowait())
                events = [event for event in taken if event is not None]
                if events:
                    await self._patiently(functools.partial(self._write, events))
            reader.result()
        finally:
            reader.cancel()

    async def _read(self, queue: "asyncio.Queue[backend.Event | None]") -> None:
        try:
            async for event in self._backend.events():
                queue.put_nowait(event)
        finally:
            # wakes the writer: a back end that died has nothing more to report, and nobody to tell
            queue.put_nowait(None)

    async def take_orders(self) -> None:
        """Carry out orders as they come."""
        await self._started.wait()
        while True:
            n_done = 0 if self._stopping else await self._carry_out_orders()
            if n_done < ORDERS_MAX:
                await sleep(ORDERS_POLL_S)

    async def keep_lease(self) -> None:
        """Renew this process's lease; without it the calls belong to the peers: end at once."""
        await self._started.wait()
        while True:
            renewing = asyncio.create_task(self._renew())
            # not `wait_for`: a cancelled statement may itself wait for a server that is away
            try:
                await asyncio.wait({renewing}, timeout=self._lease_left_s())
                if not renewing.done():
                    raise errors.Fatal("the lease could not be renewed in time")
            finally:
                renewing.cancel()
            error = renewing.exception()
            if error is not None:
                if not errors.is_transient(error):
                    raise error
                if self._lease_left_s() <= 0:
                    raise errors.Fatal("the lease could not be renewed in time") from error
            await sleep(RENEW_EVERY_S)

    def _lease_left_s(self) -> float:
        """Return for how long renewing may fail: room is left to end before the peers take over."""
        silent_s = self._service.clock.monotonic() - self._renewed_at
        return max(0.0, self._settings.holder_lease_s - RENEW_EVERY_S - silent_s)

    async def _renew(self) -> None:
        lease = timedelta(seconds=self._settings.holder_lease_s)
        async with self._service.transaction() as ctx:
            # a process that stood still must not go on as if its peers had not taken its calls
            is_mine = await ctx.store.renew(self._holder, self._epoch, ctx.now, ctx.now - lease)
        if not is_mine:
            raise errors.Fatal(
                f"another process runs as instance {self._holder}, or this one stood still for "
                "longer than its lease"
            )
        self._note_renewed()

    def _note_renewed(self) -> None:
        self._renewed_at = self._service.clock.monotonic()
        self._renewed_on = self._service.clock.now()

    def _is_past_lease(self) -> bool:
        """Whether the peers may have taken the calls; durations stand still with the machine."""
        room = timedelta(seconds=self._settings.holder_lease_s - RENEW_EVERY_S)
        has_slept = self._service.clock.now() - self._renewed_on >= room
        return has_slept or self._lease_left_s() <= 0

    async def adopt_orphans(self) -> None:
        """Bring down the legs of calls that no living process carries; give up stale requests."""
        await self._started.wait()
        while True:
            if not self._stopping:
                await self._adopt()
                await self._give_up_unanswered()
            await sleep(ORPHANS_EVERY_S)

    async def stop(self) -> None:
        """Take no new calls, let the others end, end the rest; every end is written."""
        self._stopping = True
        if not self._started.is_set():
            return
        await self._backend.stop(self._settings.drain_s)
        deadline = self._service.clock.monotonic() + 5.0
        while self._held and self._service.clock.monotonic() < deadline:
            await sleep(RETRY_S / 4)

    # ------------------------------------------------------------------ orders

    async def _take_epoch(self) -> None:
        async with self._service.transaction() as ctx:
            self._epoch = await ctx.store.take_epoch(self._holder, ctx.now)
        self._note_renewed()

    async def _carry_out_orders(self) -> int:
        dials: list[tuple[Call, Cleared]] = []
        with self._holding() as hold:
            async with self._service.transaction() as ctx:
                orders = await ctx.store.open_orders(self._holder, ORDERS_MAX)
                if not orders:
                    return 0
                calls = await ctx.store.calls(call_id for call_id, _ in orders)
                hang_ups = {call_id for call_id, name in orders if name == "hang_up"}
                # what a peer has dialled meanwhile is the peer's to hang up
                mine = [
                    (call_id, name)
                    for call_id, name in orders
                    if name == "dial" or self._may_hang_up(calls[call_id])
                ]
                for call_id, name in mine:
                    call = calls[call_id]
                    if name == "hang_up":
                        await self._hang_up(ctx, call)
                    elif (
                        call.state is State.RESERVED
                        and call_id not in hang_ups
                        and (numbers := await self._wanted(ctx, call)) is not None
                    ):
                        await hold(ctx, call)
                        dials.append((call, numbers))
                await ctx.store.orders_done(mine, ctx.now)
        # only now: what is dialled is held for certain
        for call, numbers in dials:
            await self._dial(call, numbers)
        return len(orders)

    @contextlib.contextmanager
    def _holding(self) -> Iterator[Callable[[Context[Store], Call], Awaitable[None]]]:
        """Hand out what makes this process a call's holder; undone here where the commit failed.

        A commit whose answer is lost may have worked all the same: then the call is ours by the
        table but not here, and the next look for orphans brings it down.
        """
        taken: set[UUID] = set()

        async def hold(ctx: Context[Store], call: Call) -> None:
            await ctx.store.hold(call, self._holder, self._epoch)
            # before the commit: from then on the look for orphans sees the call
            taken.add(call.call_id)
            self._held.add(call.call_id)

        try:
            yield hold
        except BaseException:
            self._held -= taken
            raise
        finally:
            self._metrics.active.set(len(self._held))

    def _may_hang_up(self, call: Call) -> bool:
        return call.state not in domain.HELD or call.holder == self._holder

    def _is_mine(self, call: Call) -> bool:
        return (call.holder, call.holder_epoch) == (self._holder, self._epoch)

    async def _hang_up(self, ctx: Context[Store], call: Call) -> None:
        if call.state is State.RESERVED:
            await self._end_undialled(ctx, call, REASON_REQUESTED)
        elif call.state in domain.HELD:
            # before the commit, whose answer may get lost: rather twice than never
            self._backend.send(backend.HangUp(call_id=call.call_id))

    async def _wanted(self, ctx: Context[Store], call: Call) -> Cleared | None:
        """Return what to dial; a call that nobody waits for, or that may not go, is ended."""
        if domain.is_too_old(call.requested_at, ctx.now, self._request_age_max):
            await self._end_undialled(ctx, call, domain.RefusalReason.REQUEST_TOO_OLD.value)
            return None
        numbers = await self._gate.clear(ctx, call)
        if numbers is None:
            await self._end_undialled(ctx, call, REASON_NOT_PERMITTED)
        return numbers

    async def _dial(self, call: Call, numbers: Cleared) -> None:
        assert call.reserved_ms is not None, "no call starts without a reservation (C1)"
        limits = backend.DialLimits(
            talk_limit_ms=call.reserved_ms,
            ring_a_timeout_ms=self._settings.ring_a_timeout_s * 1000,
            ring_b_timeout_ms=self._settings.ring_b_timeout_s * 1000,
        )
        try:
            await self._backend.dial(call.call_id, numbers, limits)
        except Exception as error:
            # ours by the table and not here: the next look for orphans ends it
            self._held.discard(call.call_id)
            if not (isinstance(error, ValueError) or errors.is_transient(error)):
                raise
            logs.get().warning("not dialled", call_id=str(call.call_id), **logs.describe(error))

    async def _end_undialled(self, ctx: Context[Store], call: Call, reason: str) -> None:
        end = End(
            call_id=call.call_id,
            reason=reason,
            ended_by="platform",
            ended_at=ctx.now,
            talk_ms=0,
            overrun_ms=0,
        )
        await self._end(ctx, call, end)
        tell(ctx, call, CallStatus.ENDED, reason=reason, talk_ms=0)

    async def _give_up_unanswered(self) -> None:
        """Refuse requests that the ledger has not answered in time; a late answer is given back."""
        reason = domain.RefusalReason.REQUEST_TOO_OLD.value
        async with self._service.transaction() as ctx:
            calls = await ctx.store.unanswered(ctx.now - self._request_age_max, ORDERS_MAX)
            await ctx.store.refuse([(call.call_id, reason) for call in calls])
            for call in calls:
                tell(ctx, call, CallStatus.REFUSED, reason=reason)

    async def _adopt(self) -> None:
        dead_for = timedelta(seconds=self._settings.holder_lease_s)
        commands: list[backend.TearDown] = []
        with self._holding() as hold:
            async with self._service.transaction() as ctx:
                orphans = await ctx.store.orphans(
                    self._holder, self._epoch, self._held, ctx.now - dead_for, ORDERS_MAX
                )
                # asked again: an order may have been taken while the query ran
                for call in (each for each in orphans if each.call_id not in self._held):
                    await hold(ctx, call)
                    dialogs = await ctx.store.dialogs(call)
                    commands.append(backend.TearDown(call_id=call.call_id, dialogs=dialogs))
        for command in commands:
            logs.get().warning("orphan taken over", call_id=str(command.call_id))
            self._metrics.orphans.inc()
            self._backend.send(command)

    # ------------------------------------------------------------------ what the back end reports

    async def _write(self, events: Sequence[backend.Event]) -> None:
        self._end_past_lease()
        acknowledge: list[backend.Persisted] = []
        lost: set[UUID] = set()
        async with self._service.transaction() as ctx:
            calls = await ctx.store.calls(event.call_id for event in events)
            for event in events:
                call = calls.get(event.call_id)
                if call is None or call.state is State.ENDED or not self._is_mine(call):
                    lost.add(event.call_id)
                    continue
                calls[event.call_id] = await self._note(ctx, call, event)
                if isinstance(event, backend.Answered):
                    acknowledge.append(backend.Persisted(call_id=event.call_id, leg=event.leg))
        # only now: the far end's answer is acknowledged when its dialog is durable
        for message in acknowledge:
            self._backend.send(message)
        for event in events:
            self._measure(event)
        # a peer has settled them, or is about to: their legs must not stay up here (ignored where
        # they do not)
        for call_id in lost & self._held:
            self._backend.send(backend.HangUp(call_id=call_id, reason=backend.EndReason.ORPHANED))

    def _end_past_lease(self) -> None:
        """End a process that was frozen: what it cut too late is an orphan's end, none by its time.

        Until somebody takes its calls over no leg need stay up.

        Raises:
            errors.Fatal: the lease is over.
        """
        if not self._is_past_lease():
            return
        for call_id in self._held:
            self._backend.send(backend.HangUp(call_id=call_id, reason=backend.EndReason.ORPHANED))
        raise errors.Fatal("the lease could not be renewed in time")

    async def _note(self, ctx: Context[Store], call: Call, event: backend.Event) -> Call:
        """Write one event; return the call as it is after it."""
        match event:
            case backend.Trying() | backend.Ringing() | backend.Answered():
                await self._note_leg(ctx, call, event)
                return call
            case backend.TalkStarted():
                return await self._connected(ctx, call, event)
            case backend.Ending():
                return await self._ending(ctx, call, event)
            case backend.Ended():
                return await self._ended(ctx, call, event)
            case backend.TornDown():
                return await self._torn_down(ctx, call, event)

    async def _note_leg(
        self,
        ctx: Context[Store],
        call: Call,
        event: backend.Trying | backend.Ringing | backend.Answered,
    ) -> None:
        leg = event.leg.value
        match event:
            case backend.Trying():
                await ctx.store.leg_event(call.call_id, leg, dialled_at=event.at)
                tell(ctx, call, _TRYING[event.leg])
            case backend.Ringing():
                await ctx.store.leg_event(call.call_id, leg, ringing_at=event.at)
                tell(ctx, call, _RINGING[event.leg])
            case backend.Answered():
                await ctx.store.leg_event(
                    call.call_id, leg, answered_at=event.at, dialog=event.dialog
                )
                if event.leg is Leg.A:
                    tell(ctx, call, CallStatus.CALLBACK_ANSWERED)

    async def _connected(self, ctx: Context[Store], call: Call, event: backend.TalkStarted) -> Call:
        await ctx.store.connect(call.call_id, event.at)
        assert call.reserved_ms is not None
        start = CallStartV1(
            call_id=call.call_id,
            visitor_id=call.visitor_id,
            connected_at=event.at,
            reserved_ms=call.reserved_ms,
        )
        ctx.outbox.add(topics.CALL_START, start, cause=call)
        call = dataclasses.replace(call, state=State.TALKING, connected_at=event.at)
        tell(ctx, call, CallStatus.TALKING)
        return call

    async def _ending(self, ctx: Context[Store], call: Call, event: backend.Ending) -> Call:
        end = End(
            call_id=call.call_id,
            reason=event.reason.value,
            ended_by=event.ended_by.value,
            ended_at=event.at,
            talk_ms=event.talk_ms,
            overrun_ms=event.overrun_ms,
        )
        await ctx.store.ending(end)
        tell(ctx, call, CallStatus.ENDED, reason=end.reason, talk_ms=end.talk_ms)
        return dataclasses.replace(call, state=State.ENDING, reason=end.reason, talk_ms=end.talk_ms)

    async def _ended(self, ctx: Context[Store], call: Call, event: backend.Ended) -> Call:
        end = End(
            call_id=call.call_id,
            reason=event.reason.value,
            ended_by=event.ended_by.value,
            ended_at=event.at,
            talk_ms=event.talk_ms,
            overrun_ms=event.overrun_ms,
        )
        if call.state is not State.ENDING:
            tell(ctx, call, CallStatus.ENDED, reason=end.reason, talk_ms=end.talk_ms)
        for leg in event.legs:
            await ctx.store.leg_ended(call.call_id, leg)
        return await self._end(ctx, call, end)

    async def _torn_down(self, ctx: Context[Store], call: Call, event: backend.TornDown) -> Call:
        """Settle an orphan: by what was measured before the process died, else until the BYE."""
        assert call.reserved_ms is not None
        ended_at = min((leg.ended_at for leg in event.legs if leg.ended_at), default=event.at)
        if call.talk_ms is None:
            talk = domain.talk_between(call.connected_at, ended_at, call.reserved_ms)
        else:
            talk = domain.Talk(talk_ms=call.talk_ms, overrun_ms=call.overrun_ms or 0)
            if call.connected_at is not None:
                ended_at = call.connected_at + timedelta(milliseconds=call.talk_ms)
        end = End(
            call_id=call.call_id,
            reason=call.reason or event.reason.value,
            ended_by=call.ended_by or "platform",
            ended_at=ended_at,
            talk_ms=talk.talk_ms,
            overrun_ms=talk.overrun_ms,
        )
        tell(ctx, call, CallStatus.ENDED, reason=end.reason, talk_ms=end.talk_ms)
        for leg in event.legs:
            await ctx.store.leg_ended(call.call_id, leg)
        return await self._end(ctx, call, end)

    async def _end(self, ctx: Context[Store], call: Call, end: End) -> Call:
        """Write the end and tell the ledger, in one transaction (C3, C4)."""
        await ctx.store.end(end)
        event = CallEndV1(
            call_id=call.call_id,
            visitor_id=call.visitor_id,
            ended_at=end.ended_at,
            reason=end.reason,
            talk_ms=end.talk_ms,
            overrun_ms=end.overrun_ms,
            connected_at=call.connected_at,
        )
        ctx.outbox.add(topics.CALL_END, event, cause=call)
        return dataclasses.replace(call, state=State.ENDED)

    def _measure(self, event: backend.Event) -> None:
        match event:
            case backend.Ended():
                self._metrics.ended.labels(event.reason.value).inc()
                if event.talk_started_at is not None:
                    self._metrics.overrun.observe(event.overrun_ms / 1000)
                    dialled = next((leg.dialled_at for leg in event.legs if leg.dialled_at), None)
                    if dialled is not None:
                        setup = event.talk_started_at - dialled
                        self._metrics.setup.observe(setup.total_seconds())
            case backend.TornDown():
                self._metrics.ended.labels(event.reason.value).inc()
            case _:
                return
        self._held.discard(event.call_id)
        self._metrics.active.set(len(self._held))
        unconfirmed = [leg for leg in event.legs if leg.answered_at and not leg.is_down]
        self._metrics.legs_unconfirmed.inc(len(unconfirmed))

    async def _patiently(self, act: Callable[[], Awaitable[None]]) -> None:
        """Try again on weather, within the chassis' budget."""
        deadline = self._service.clock.monotonic() + self._settings.retry_budget_s
        while True:
            try:
                return await act()
            except Exception as error:
                if not errors.is_transient(error):
                    raise
                if self._service.clock.monotonic() > deadline:
                    raise errors.Fatal("the database was away for too long") from error
                logs.get().warning("switch waits", **logs.describe(error))
                await sleep(RETRY_S)
