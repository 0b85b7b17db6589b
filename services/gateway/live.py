"""The WebSocket: balance, call and consent pushed to the page as they change.

Each instance reads all partitions of the topics and keeps what belongs to its own open sockets;
nothing is stored. A socket is bounded in everything: how many per visitor and in all, queue, size
and rate of messages, idle time (R-D1), and the life of its visit.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from schemas import topics
from schemas.call import CallStatusV1
from schemas.consent import ConsentStateV1
from schemas.credit import CreditV1
from services.chassis.clock import Clock
from services.chassis.received import Received
from services.gateway.domain import Bucket, Closing, Rate, Reason, Visit, take_token
from services.gateway.door import COOKIE, Visits, trace_of
from services.gateway.metrics import Metrics
from services.gateway.reads import AwayError, Reads

TOPICS = (topics.CREDIT, topics.CALL_STATUS, topics.CONSENT_STATE)
CLOSE_TIMEOUT_S = 2.0
CODES: dict[Closing, int] = {
    Closing.CLIENT_LEFT: 1000,
    Closing.IDLE: 4408,
    Closing.MESSAGE_INVALID: 4400,
    Closing.MESSAGE_TOO_LARGE: 1009,
    Closing.RATE_EXCEEDED: 4429,
    Closing.SLOW_CLIENT: 1013,
    Closing.SOCKETS_TOO_MANY: 1013,
    Closing.VISIT_EXPIRED: 4401,
    Closing.VISIT_MISSING: 4401,
}

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LiveLimits:
    """Bounds of the live connections."""

    sockets_max: int
    sockets_per_visitor_max: int
    queue_max: int
    message_bytes_max: int
    rate: Rate
    idle_s: float


@dataclass(eq=False, kw_only=True)
class _Socket:
    """One open connection: what waits to be sent, and why it ends."""

    websocket: WebSocket
    visit: Visit
    queue: asyncio.Queue[Message]
    ending: asyncio.Future[Closing]
    active_at_s: float
    bucket: Bucket | None = None

    def offer(self, message: Message) -> None:
        """Queue a message; who does not read fast enough is let go, not waited for."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.end(Closing.SLOW_CLIENT)

    def end(self, closing: Closing) -> None:
        """End the connection; the first reason counts."""
        if not self.ending.done():
            self.ending.set_result(closing)


class Live:
    """All live connections of this instance."""

    def __init__(
        self, *, limits: LiveLimits, visits: Visits, reads: Reads, clock: Clock, metrics: Metrics
    ) -> None:
        """Take the limits and the parts."""
        self._limits = limits
        self._visits = visits
        self._reads = reads
        self._clock = clock
        self._metrics = metrics
        self._sockets_by_visitor: dict[UUID, set[_Socket]] = {}
        self._n_sockets = 0

    async def on_record(self, received: Received[Any]) -> None:
        """Push an event to the sockets of its visitor; never waits for one of them."""
        sockets = self._sockets_by_visitor.get(received.event.visitor_id)
        if sockets:
            message = message_of(received)
            for socket in tuple(sockets):
                socket.offer(message)

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection from its opening to its end."""
        await websocket.accept()
        closing = await self._admit_and_run(websocket)
        self._metrics.sockets_closed.labels(closing.value).inc()
        if closing is Closing.CLIENT_LEFT:
            return
        if websocket.application_state is not WebSocketState.DISCONNECTED:
            # a client that reads nothing never takes the close frame either
            with contextlib.suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
                await asyncio.wait_for(
                    websocket.close(CODES[closing], closing.value), CLOSE_TIMEOUT_S
                )

    async def _admit_and_run(self, websocket: WebSocket) -> Closing:
        visit = self._visits.read(websocket.cookies.get(COOKIE))
        if isinstance(visit, Reason):
            expired = visit is Reason.VISIT_EXPIRED
            return Closing.VISIT_EXPIRED if expired else Closing.VISIT_MISSING
        mine = self._sockets_by_visitor.get(visit.visitor_id, set())
        if (
            self._n_sockets >= self._limits.sockets_max
            or len(mine) >= self._limits.sockets_per_visitor_max
        ):
            return Closing.SOCKETS_TOO_MANY
        socket = _Socket(
            websocket=websocket,
            visit=visit,
            queue=asyncio.Queue(self._limits.queue_max),
            ending=asyncio.get_running_loop().create_future(),
            active_at_s=self._clock.monotonic(),
        )
        with self._registered(socket):
            return await self._run(socket)

    @contextlib.contextmanager
    def _registered(self, socket: _Socket) -> Iterator[None]:
        visitor_id = socket.visit.visitor_id
        self._sockets_by_visitor.setdefault(visitor_id, set()).add(socket)
        self._n_sockets += 1
        self._metrics.sockets.set(self._n_sockets)
        try:
            yield
        finally:
            mine = self._sockets_by_visitor[visitor_id]
            mine.discard(socket)
            if not mine:
                del self._sockets_by_visitor[visitor_id]
            self._n_sockets -= 1
            self._metrics.sockets.set(self._n_sockets)

    async def _run(self, socket: _Socket) -> Closing:
        """Read and write until something ends the connection."""
        expires_at = socket.visit.expires_at(self._visits.age_max_s)
        life_s = (expires_at - self._clock.now()).total_seconds()
        tasks = [
            asyncio.create_task(self._write(socket)),
            asyncio.create_task(self._read(socket)),
        ]
        try:
            watched: set[asyncio.Future[Any]] = {socket.ending, *tasks}
            done, _ = await asyncio.wait(
                watched, timeout=life_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(
                result, (WebSocketDisconnect, OSError)
            ):
                raise result
        if socket.ending.done():
            return socket.ending.result()
        return Closing.CLIENT_LEFT if done else Closing.VISIT_EXPIRED

    async def _write(self, socket: _Socket) -> None:
        # Registered before this read: a change meanwhile waits in the queue and follows it.
        await self._send(socket, await self._first_balance(socket))
        while True:
            await self._send(socket, await socket.queue.get())

    async def _send(self, socket: _Socket, message: Message) -> None:
        await socket.websocket.send_text(json.dumps(message, separators=(",", ":")))
        socket.active_at_s = self._clock.monotonic()
        self._metrics.pushes.labels(message["type"]).inc()

    async def _first_balance(self, socket: _Socket) -> Message:
        traceparent = trace_of(socket.websocket.headers.get("traceparent"))
        try:
            balance = await self._reads.balance(socket.visit.visitor_id, traceparent)
        except AwayError:
            # the next change of the balance comes by Kafka whether the ledger serves reads or not
            return {"type": "balance", "reason": Reason.LEDGER_AWAY.value}
        return {"type": "balance", **balance.model_dump()}

    async def _read(self, socket: _Socket) -> None:
        """Take the page's messages: only `{"type":"ping"}` is one; end what is idle."""
        while not socket.ending.done():
            idle_s = self._clock.monotonic() - socket.active_at_s
            if idle_s >= self._limits.idle_s:
                socket.end(Closing.IDLE)
                return
            try:
                received = await asyncio.wait_for(
                    socket.websocket.receive(), self._limits.idle_s - idle_s
                )
            except TimeoutError:
                continue
            if received["type"] == "websocket.disconnect":
                socket.end(Closing.CLIENT_LEFT)
                return
            self._take(socket, received)

    def _take(self, socket: _Socket, received: MutableMapping[str, Any]) -> None:
        socket.active_at_s = self._clock.monotonic()
        socket.bucket, wait_s = take_token(
            self._limits.rate, socket.bucket, now_s=socket.active_at_s
        )
        text = received.get("text")
        if wait_s > 0:
            socket.end(Closing.RATE_EXCEEDED)
        elif len(text or received.get("bytes") or "") > self._limits.message_bytes_max:
            socket.end(Closing.MESSAGE_TOO_LARGE)
        elif text is None or not _is_ping(text):
            socket.end(Closing.MESSAGE_INVALID)
        else:
            socket.offer({"type": "pong"})


def _is_ping(text: str) -> bool:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(message == {"type": "ping"})


def message_of(received: Received[Any]) -> Message:
    """Return what the page is told of an event; `at` is when it happened.

    The visitor id stays here: the page does not know its own pseudonym (HttpOnly cookie).
    """
    event, at = received.event, received.time.isoformat()
    match event:
        case CreditV1():
            data = event.model_dump(mode="json", exclude={"visitor_id"}, exclude_none=True)
            return {"type": "balance", "at": at, **data}
        case CallStatusV1():
            data = event.model_dump(mode="json", exclude={"visitor_id"}, exclude_none=True)
            return {"type": "call", "at": at, **data}
        case ConsentStateV1():
            purposes = [
                p.model_dump(mode="json", exclude={"changes"}, exclude_none=True)
                for p in event.purposes
            ]
            return {"type": "consent", "at": at, "purposes": purposes}
        case _:
            raise AssertionError(f"no message for {received.topic}")
