"""A scripted `CallBackend` for tests at the seam: no SIP, no thread, the test's own clock.

    backend = FakeBackend(clock)
    await backend.dial(call_id, numbers, limits)  # by the code under test
    backend.answer(call_id, Leg.A)              # by the test: emits `Answered`
    await backend.received(Persisted)           # waits for the code under test
    backend.end(call_id, EndReason.HUNG_UP, EndedBy.A)

It keeps the promises of the real one that handlers rely on: a `Dial` of a held call is ignored, the
talk starts only once both legs are persisted, `Ended` comes once, `HangUp` and `TearDown` work.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from typing_extensions import override

from services.call_control.backend import (
    Answered,
    BackendFailedError,
    CallBackend,
    Command,
    Dial,
    DialLimits,
    Ended,
    EndedBy,
    Ending,
    EndReason,
    Event,
    Extend,
    HangUp,
    Leg,
    LegResult,
    Persisted,
    Ringing,
    TalkStarted,
    TearDown,
    TornDown,
    Trying,
    dial_of,
)
from services.chassis.clock import Clock
from services.privacy.gate import Cleared


@dataclass
class FakeCall:
    """A call that the fake holds."""

    order: Dial
    talk_limit_ms: int
    dialled: dict[Leg, datetime] = field(default_factory=dict)
    answered: dict[Leg, datetime] = field(default_factory=dict)
    persisted: set[Leg] = field(default_factory=set)
    talk_started: datetime | None = None


class FakeBackend(CallBackend):
    """Does what the test says; `commands` keeps all that it was sent."""

    def __init__(self, clock: Clock) -> None:
        """Prepare; instants of events come from `clock`."""
        self.commands: list[Command | Dial] = []
        self.calls: dict[UUID, FakeCall] = {}
        self.is_started = False
        self._clock = clock
        self._queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._received = asyncio.Event()

    # --- the protocol

    @override
    async def start(self) -> None:
        self.is_started = True

    @override
    async def stop(self, drain_s: float) -> None:
        for call_id in tuple(self.calls):
            self.end(call_id, EndReason.SHUTDOWN, EndedBy.PLATFORM)
        self._queue.put_nowait(None)

    @override
    async def dial(self, call_id: UUID, numbers: Cleared, limits: DialLimits) -> None:
        command = await dial_of(call_id, numbers, limits, self._clock.now())
        self.commands.append(command)
        self._received.set()
        self._dial(command)

    @override
    def send(self, command: Command) -> None:
        self.commands.append(command)
        self._received.set()
        match command:
            case Persisted():
                self._persisted(command)
            case TearDown():
                self._tear_down(command)
            case HangUp() if command.call_id in self.calls:
                self.end(command.call_id, command.reason, EndedBy.PLATFORM)
            case Extend() if command.call_id in self.calls:
                self.calls[command.call_id].talk_limit_ms = command.talk_limit_ms
            case _:
                return

    @override
    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            if isinstance(event, BaseException):
                raise BackendFailedError from event
            yield event

    # --- what the test lets happen

    def ring(self, call_id: UUID, leg: Leg) -> None:
        """Let a leg ring."""
        self._emit(Ringing(**self._head(call_id), leg=leg, sip_status=180))

    def answer(self, call_id: UUID, leg: Leg) -> None:
        """Let a leg answer; the other is dialled after A."""
        self.calls[call_id].answered[leg] = self._clock.now()
        dialog = {"leg": leg.value, "call_id": f"sip-{call_id}-{leg.value}"}
        self._emit(Answered(**self._head(call_id), leg=leg, dialog=dialog))
        if leg is Leg.A:
            self._try(call_id, Leg.B)

    def end(
        self,
        call_id: UUID,
        reason: EndReason,
        ended_by: EndedBy,
        *,
        leg: Leg | None = None,
        talk_ms: int | None = None,
        silent: Leg | None = None,
    ) -> None:
        """Let the call end.

        Args:
            talk_ms: counted by the clock unless given.
            silent: this leg's far end does not answer the BYE.
        """
        call = self.calls.pop(call_id)
        now = self._clock.now()
        if talk_ms is None:
            since = call.talk_started or now
            talk_ms = round((now - since).total_seconds() * 1000)
        overrun_ms = max(0, talk_ms - call.talk_limit_ms)
        facts: dict[str, Any] = {
            "reason": reason,
            "ended_by": ended_by,
            "leg": leg,
            "talk_ms": talk_ms,
            "overrun_ms": overrun_ms,
        }
        self._emit(Ending(**self._head(call_id), **facts))
        legs = tuple(self._result(call, each, is_silent=each is silent) for each in Leg)
        started = call.talk_started
        self._emit(Ended(**self._head(call_id), **facts, talk_started_at=started, legs=legs))

    def fail(self, error: BaseException) -> None:
        """Let the back end die: `events` raises."""
        self._queue.put_nowait(error)

    async def received(self, kind: type[Command | Dial], limit_s: float = 5.0) -> Command | Dial:
        """Wait for the latest command of a kind."""
        async with asyncio.timeout(limit_s):
            while not (found := [each for each in self.commands if isinstance(each, kind)]):
                self._received.clear()
                await self._received.wait()
        return found[-1]

    # --- inside

    def _dial(self, command: Dial) -> None:
        if command.call_id not in self.calls:
            self.calls[command.call_id] = FakeCall(command, command.talk_limit_ms)
            self._try(command.call_id, Leg.A)

    def _try(self, call_id: UUID, leg: Leg) -> None:
        trying = Trying(**self._head(call_id), leg=leg)
        self.calls[call_id].dialled[leg] = trying.at
        self._emit(trying)

    def _persisted(self, command: Persisted) -> None:
        call = self.calls.get(command.call_id)
        if call is None:
            return
        call.persisted.add(command.leg)
        is_connected = set(call.answered) == set(Leg) == call.persisted
        if is_connected and call.talk_started is None:
            call.talk_started = call.answered[Leg.B]
            head = self._head(command.call_id) | {"at": call.talk_started}
            self._emit(TalkStarted(**head, talk_limit_ms=call.talk_limit_ms))

    def _tear_down(self, command: TearDown) -> None:
        if command.call_id in self.calls:
            self.end(command.call_id, command.reason, EndedBy.PLATFORM)
            return
        legs = tuple(
            LegResult(leg=Leg(state["leg"]), bye_status=200, is_down=True)
            for state in command.dialogs
        )
        head = self._head(command.call_id)
        self._emit(TornDown(**head, reason=command.reason, legs=legs))

    def _result(self, call: FakeCall, leg: Leg, *, is_silent: bool) -> LegResult:
        answered = call.answered.get(leg)
        now = self._clock.now()
        duration_ms = round((now - answered).total_seconds() * 1000) if answered else 0
        return LegResult(
            leg=leg,
            dialled_at=call.dialled.get(leg),
            answered_at=answered,
            ended_at=now if answered else None,
            duration_ms=duration_ms,
            sip_status=200 if answered else None,
            bye_status=(408 if is_silent else 200) if answered else None,
            is_down=answered is None or not is_silent,
        )

    def _head(self, call_id: UUID) -> dict[str, Any]:
        mono_ms = round(self._clock.monotonic() * 1000)
        return {"call_id": call_id, "at": self._clock.now(), "mono_ms": mono_ms}

    def _emit(self, event: Event) -> None:
        self._queue.put_nowait(event)
