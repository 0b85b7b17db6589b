"""Admin port: /metrics, /livez, /readyz; and an HTTP server that leaves signals alone."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY_TIMEOUT_S = 10
HEAD_TIMEOUT_S = 10
CONNECTIONS_MAX = 2000
STANDING_BY = "standing by"
"""What `/readyz` says where another process of the same instance works (`standby.py`)."""


class HttpServer:
    """One ASGI app on one port, run inside the service's loop."""

    def __init__(self, app: Any, *, host: str, port: int, stop_timeout_s: float) -> None:
        """Take the app and where it listens."""
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            http=_PromptProtocol,
            lifespan="off",
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=BODY_TIMEOUT_S,
            timeout_graceful_shutdown=max(1, int(stop_timeout_s)),
            ws_max_size=16_384,
            h11_max_incomplete_event_size=32_768,
        )
        self._server = _QuietServer(config)

    async def run(self) -> None:
        """Serve until told to stop.

        Raises:
            OSError: the port is taken.
        """
        await self._server.serve()

    async def started(self) -> None:
        """Wait until the port is open."""
        while not self._server.started:
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """Accept nothing more and end open requests within the time-out."""
        self._server.should_exit = True


class _PromptProtocol(H11Protocol):
    """HTTP whose request heads must arrive in time; uvicorn itself waits for them for ever."""

    _deadline: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # IDLE = the head of a request is not whole yet; between requests keep-alive has its timer
        is_waiting = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not is_waiting:
            self._disarm()
        elif self._deadline is None:
            self._arm()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _QuietServer(uvicorn.Server):
    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service, which stops its parts in order."""
        yield


def admin_app(
    registry: CollectorRegistry, live: Callable[[], str | None], ready: Callable[[], str | None]
) -> Starlette:
    """Return the admin app; `live` and `ready` say what is wrong, or None."""

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def probe(check: Callable[[], str | None]) -> Callable[[Request], Any]:
        async def answer(_: Request) -> Response:
            problem = check()
            return PlainTextResponse(problem or "ok", status_code=503 if problem else 200)

        return answer

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/livez", probe(live)),
            Route("/readyz", probe(ready)),
        ]
    )
