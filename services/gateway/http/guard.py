"""What stands before every route: origin, rate, size and time limits, trace, metrics, last resort.

Plain ASGI, because a limit must hold while the body is read, not after. The one place outside the
chassis that catches everything: a bug answers 500 with a reason and is counted.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.chassis import logs
from services.chassis.clock import Clock
from services.gateway.domain import Reason, client_address, is_origin_allowed, rate_key
from services.gateway.door import RateLimits, trace_of
from services.gateway.http.problems import respond
from services.gateway.metrics import Metrics
from services.gateway.settings import Settings

BEACON_PATH = "/v1/ad-events"
MEDIA_PREFIX = "/v1/media/"
LIVE_PATH = "/v1/live"
_JSON = b"application/json"
_DRAIN_TIMEOUT_S = 1.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(kw_only=True)
class _Exchange:
    """What is known of one request while it runs."""

    scope: Scope
    started_s: float
    send: Send
    status: int = 0

    async def answer(self, message: Message) -> None:
        """Pass a message of the answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await self.send(message)


class Guard:
    """The outermost ASGI layer."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        limits: RateLimits,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """Take what stands behind, and the limits."""
        self._app = app
        self._settings = settings
        self._limits = limits
        self._clock = clock
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one opening of a WebSocket."""
        if scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve_http(scope, receive, send)

    # ------------------------------------------------------------------ http

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope=scope, started_s=self._clock.monotonic(), send=send)
        state = scope.setdefault("state", {})
        state["reason"] = "none"
        refusal = self._refusal(scope)
        if refusal is None:
            refusal = await self._run(exchange, receive)
        if refusal is not None and exchange.status == 0:
            await refusal(scope, receive, exchange.answer)
        self._count(exchange)

    async def _run(self, exchange: _Exchange, receive: Receive) -> Response | None:
        """Read the body and run the route, both within the time limit."""
        scope = exchange.scope
        is_media = scope["path"].startswith(MEDIA_PREFIX)
        limit_s = self._settings.media_timeout_s if is_media else self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                body = await self._body(scope, receive)
        except TimeoutError:
            return self._refuse(scope, Reason.REQUEST_TOO_SLOW, {"Connection": "close"})
        if isinstance(body, Response):
            if scope["state"]["reason"] == Reason.BODY_TOO_LARGE:
                await self._drain(receive)
            return body
        try:
            # `wait_for` and not a scope: what the route starts must see one cancellation
            await asyncio.wait_for(
                self._app(scope, _Replay(body, receive), exchange.answer),
                max(0.1, limit_s - (self._clock.monotonic() - exchange.started_s)),
            )
        except TimeoutError:
            return self._refuse(scope, Reason.TIME_EXCEEDED)
        except Exception as error:  # noqa: BLE001 - the gateway's top: one of the two places
            logs.get().error("request failed", route=_route(scope), **logs.describe(error))
            return self._refuse(scope, Reason.INTERNAL_ERROR)
        return None

    def _refusal(self, scope: Scope) -> Response | None:
        """Say no before anything is read: foreign origin, or too many requests."""
        headers = Headers(scope=scope)
        scope["state"]["traceparent"] = trace_of(headers.get("traceparent"))
        peer = scope["client"][0] if scope.get("client") else ""
        # a proxy may add a line of its own below the client's: all lines are one list
        forwarded_for = ",".join(headers.getlist("x-forwarded-for"))
        address = client_address(peer, forwarded_for, self._settings.proxy_networks)
        scope["state"]["address"] = address
        if not is_origin_allowed(headers.get("origin"), self._settings.public_origin):
            return self._refuse(scope, Reason.ORIGIN_FOREIGN)
        wait_s = self._limits.address.wait_s(rate_key(address))
        if wait_s > 0:
            return self._refuse(scope, Reason.RATE_EXCEEDED, {"Retry-After": str(ceil(wait_s))})
        return None

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """Read the body up to the limit; a longer one is refused as soon as that is known."""
        if scope["method"] != "POST":
            return b""
        headers = Headers(scope=scope)
        too_large = (Reason.BODY_TOO_LARGE, {"Connection": "close"})
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:19]) > self._settings.body_bytes_max:
            return self._refuse(scope, *too_large)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return self._refuse(scope, Reason.CLIENT_GONE)
            body += message.get("body", b"")
            if len(body) > self._settings.body_bytes_max:
                return self._refuse(scope, *too_large)
            if not message.get("more_body", False):
                break
        if body and not _take_as_json(scope):
            return self._refuse(scope, Reason.MEDIA_TYPE_UNSUPPORTED)
        return bytes(body)

    async def _drain(self, receive: Receive) -> None:
        """Throw away a little more, so that most clients read the answer and not a reset."""
        left = self._settings.body_bytes_max * 4
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b"")) or 1
                    if not message.get("more_body", False):
                        return

    def _refuse(
        self, scope: Scope, reason: Reason, headers: dict[str, str] | None = None
    ) -> Response:
        scope["state"]["reason"] = reason.value
        return respond(reason, headers=headers)

    def _count(self, exchange: _Exchange) -> None:
        route, reason = _route(exchange.scope), exchange.scope["state"]["reason"]
        method = exchange.scope["method"] if exchange.scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, str(exchange.status), reason).inc()
        seconds = self._clock.monotonic() - exchange.started_s
        self._metrics.request_seconds.labels(route).observe(seconds)

    # ------------------------------------------------------------------ websocket

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["reason"] = "none"
        refusal = self._refusal(scope)
        if refusal is None and scope["path"] != LIVE_PATH:
            refusal = self._refuse(scope, Reason.ROUTE_UNKNOWN)
        status = HTTPStatus.SWITCHING_PROTOCOLS.value
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            status = refusal.status_code
            await receive()  # websocket.connect
            if "websocket.http.response" in scope.get("extensions", {}):
                await refusal(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
        reason = scope["state"]["reason"]
        route = LIVE_PATH if scope["path"] == LIVE_PATH else "unknown"
        self._metrics.requests.labels(route, "GET", str(status), reason).inc()


class _Replay:
    """Hands the body that was read to the route, then waits for the client as before."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _take_as_json(scope: Scope) -> bool:
    """Whether the body is JSON by its content type; a beacon's text is passed on as JSON.

    `navigator.sendBeacon` with a string says text/plain; that needs no preflight, so that the
    Origin check above is what stands between us and other pages.
    """
    kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    if kind == _JSON.decode():
        return True
    if kind == "text/plain" and scope["path"] == BEACON_PATH:
        others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope["headers"] = [*others, (b"content-type", _JSON)]
        return True
    return False


def _route(scope: Scope) -> str:
    """Return the route's template, a closed set; never the path that was asked for."""
    return getattr(scope.get("route"), "path", None) or "unknown"
