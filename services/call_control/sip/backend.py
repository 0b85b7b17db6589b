"""`SipBackend`: the `CallBackend` over a SIP trunk; its state machines have their own thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from typing_extensions import override

from services.call_control.backend import (
    BackendFailedError,
    CallBackend,
    Command,
    Dial,
    DialLimits,
    Ended,
    EndedBy,
    EndReason,
    Event,
    Extend,
    HangUp,
    Persisted,
    TearDown,
    dial_of,
)
from services.call_control.sip.call import Call, Restored, World
from services.call_control.sip.settings import TrunkSettings
from services.call_control.sip.stack import Stack, mono
from services.privacy.gate import Cleared

log = structlog.get_logger(__name__)

HANG_UP_WAIT_S = 5.0
"""At a stop, how long the far ends get to answer the last BYEs."""
JOIN_WAIT_S = 2.0


class SipBackend(CallBackend):
    """Calls over one SIP trunk. One per process: sippy's event loop is a singleton."""

    def __init__(self, settings: TrunkSettings, now: Callable[[], datetime]) -> None:
        """Prepare; `now` returns the wall clock, aware, and is called from the SIP thread."""
        self._settings = settings
        self._now = now
        self._calls: dict[UUID, Call] = {}
        self._restored: dict[UUID, Restored] = {}
        self._is_draining = False
        self._stack = Stack(settings.local, self._on_stray)
        self._world = World(
            stack=self._stack,
            settings=settings,
            now=now,
            emit=self._emit,
            forget=self._forget,
        )
        # bounded by calls_max times the nine events a call has
        self._queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # --- asyncio side

    @override
    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, ready), name="sip", daemon=True
        )
        self._thread.start()
        await ready

    @override
    async def stop(self, drain_s: float) -> None:
        if self._thread is None:
            return
        self._stack.call_soon(self._drain)
        await self._wait_idle(drain_s)
        self._stack.call_soon(self._hang_up_all)
        await self._wait_idle(HANG_UP_WAIT_S)
        self._stack.call_soon(self._stack.close)
        await asyncio.to_thread(self._thread.join, JOIN_WAIT_S)
        self._thread = None
        self._queue.put_nowait(None)

    @override
    async def dial(self, call_id: UUID, numbers: Cleared, limits: DialLimits) -> None:
        dial = await dial_of(call_id, numbers, limits, self._now())
        self._stack.call_soon(self._carry_out, dial)

    @override
    def send(self, command: Command) -> None:
        if isinstance(command, Dial):
            raise TypeError("numbers are dialled as the gate cleared them: `dial`")
        self._stack.call_soon(self._carry_out, command)

    @override
    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            if isinstance(event, BaseException):
                raise BackendFailedError from event
            yield event

    async def _wait_idle(self, limit_s: float) -> None:
        # the round trip through the SIP thread: a Dial sent before must count
        checked = asyncio.Event()
        assert self._loop is not None
        self._stack.call_soon(self._post, checked.set)
        await checked.wait()
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            log.info("calls still up", n=len(self._calls), seconds=limit_s)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call back in the asyncio thread, in order."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(callback, *arguments)

    # --- SIP thread

    def _run(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        try:
            self._stack.open()
        except BaseException as error:  # noqa: BLE001 - handed over to `start`
            loop.call_soon_threadsafe(ready.set_exception, error)
            return
        loop.call_soon_threadsafe(ready.set_result, None)
        try:
            self._stack.run()
        except BaseException as error:  # noqa: BLE001 - handed over to `events`
            loop.call_soon_threadsafe(self._queue.put_nowait, error)

    def _emit(self, event: Event) -> None:
        self._post(self._queue.put_nowait, event)

    def _forget(self, call: Any) -> None:
        if isinstance(call, Restored):
            self._restored.pop(call.call_id, None)
        else:
            self._calls.pop(call.call_id, None)
        if not self._calls and not self._restored:
            self._post(self._idle.set)

    def _carry_out(self, command: Command | Dial) -> None:
        match command:
            case Dial():
                self._dial(command)
            case TearDown():
                self._tear_down(command)
            case HangUp() | Extend() | Persisted():
                if (call := self._calls.get(command.call_id)) is not None:
                    self._pass_on(command, call)

    @staticmethod
    def _pass_on(command: HangUp | Extend | Persisted, call: Call) -> None:
        match command:
            case HangUp():
                call.hang_up(command.reason)
            case Extend():
                call.extend(command.talk_limit_ms)
            case Persisted():
                call.persisted(command.leg)

    def _dial(self, command: Dial) -> None:
        if command.call_id in self._calls:
            return
        if self._is_draining:
            self._refuse(command, EndReason.SHUTDOWN)
        elif len(self._calls) >= self._settings.calls_max:
            self._refuse(command, EndReason.BUSY_HERE_CAPACITY)
        else:
            self._post(self._idle.clear)
            call = self._calls[command.call_id] = Call(command, self._world)
            call.start()

    def _refuse(self, command: Dial, reason: EndReason) -> None:
        now = mono()
        self._emit(
            Ended(
                call_id=command.call_id,
                at=self._world.wall(now),
                mono_ms=round(now * 1000),
                reason=reason,
                ended_by=EndedBy.PLATFORM,
                leg=None,
                talk_ms=0,
                overrun_ms=0,
                talk_started_at=None,
                legs=(),
            )
        )

    def _tear_down(self, command: TearDown) -> None:
        if (call := self._calls.get(command.call_id)) is not None:
            call.hang_up(command.reason)
        elif command.call_id not in self._restored:
            self._post(self._idle.clear)
            restored = self._restored[command.call_id] = Restored(command, self._world)
            restored.start()

    def _drain(self) -> None:
        self._is_draining = True

    def _hang_up_all(self) -> None:
        for call in tuple(self._calls.values()):
            call.hang_up(EndReason.SHUTDOWN)

    @staticmethod
    def _on_stray(request: Any, _: Any) -> tuple[Any, None, None]:
        """Answer a request that belongs to no dialog: nobody calls us."""
        method = request.getMethod()
        if method == "OPTIONS":
            code = (200, "OK")
        elif method == "INVITE" and request.getHFBody("to").getTag() is None:
            code = (403, "Forbidden")
        else:
            code = (481, "Call Leg/Transaction Does Not Exist")
        return (request.genResponse(*code), None, None)
