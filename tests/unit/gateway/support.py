"""A gateway with a fake at the seam to Kafka and a clock that stands still; spoken to as ASGI."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from schemas import view_ticket
from schemas.topics import Topic
from schemas.view_ticket import KeyRing, ViewTicket
from schemas.wire import WireModel
from services.chassis.errors import Transient
from services.chassis.ids import TimeOrderedIds
from services.chassis.received import Received
from services.gateway.ads import load_ads, make_media
from services.gateway.app import make_limits, make_live_limits
from services.gateway.door import Visits
from services.gateway.http import Parts, build_http
from services.gateway.live import Live
from services.gateway.metrics import Metrics
from services.gateway.offers import Offers
from services.gateway.partner import PartnerAds
from services.gateway.reads import Reads
from services.gateway.settings import Settings
from services.gateway.threat import Threat
from services.privacy.gate import Gate, Rules
from services.privacy.recorder import KafkaRecorder

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
ORIGIN = "https://minutes.example"
TICKET_KEYS = {"t1": "11" * 32}
COOKIE_KEYS = {"c1": "22" * 32}
PEER = "203.0.113.7"
ADS = load_ads()
MEDIA = make_media(ADS)


class FakeClock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.at = NOW
        self.seconds = 1000.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.seconds += seconds


@dataclass
class Sent:
    """One call of the producer."""

    events: list[tuple[Topic, WireModel, UUID]]
    time: datetime
    traceparent: str | None


@dataclass
class FakeSender:
    """Kafka, as far as the gateway sees it."""

    sent: list[Sent] = field(default_factory=list)
    is_away: bool = False
    error: Exception | None = None
    release: asyncio.Event | None = None
    """When set, an acknowledgement comes only after this event."""

    async def send_many(
        self,
        events: Sequence[tuple[Topic, WireModel, UUID]],
        *,
        time: datetime,
        traceparent: str | None = None,
    ) -> None:
        if self.release is not None:
            await self.release.wait()
        if self.error is not None:
            raise self.error
        if self.is_away:
            raise Transient("away")
        self.sent.append(Sent([*events], time, traceparent))

    @property
    def events(self) -> list[Any]:
        return [event for sent in self.sent for _, event, _ in sent.events]


@dataclass
class FakeServices:
    """The read APIs of ledger, call control and consent, as a small server of their own."""

    balances: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    raw: bytes | None = None
    consent: bytes | None = None
    threat: Any = None
    offers: Any = None
    seen: list[Request] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/visitors/{visitor_id}/balance", self._balance),
                Route("/v1/calls/{call_id}", self._call),
                Route("/v1/visitors/{visitor_id}/{what}", self._consent),
                Route("/v1/catalogue", self._consent),
                Route("/v1/threat", self._threat),
                Route("/v1/offers", self._offers),
            ]
        )

    async def _consent(self, request: Request) -> Response:
        self.seen.append(request)
        return Response(self.consent) if self.consent else Response(status_code=503)

    async def _offers(self, request: Request) -> Response:
        return self._answer(request, self.offers)

    async def _threat(self, request: Request) -> Response:
        return self._answer(request, self.threat)

    async def _balance(self, request: Request) -> Response:
        return self._answer(request, self.balances.get(request.path_params["visitor_id"]))

    async def _call(self, request: Request) -> Response:
        found = self.calls.get(request.path_params["call_id"])
        mine = found is not None and found["owner"] == request.query_params["visitor_id"]
        return self._answer(request, found if mine else None)

    def _answer(self, request: Request, found: Any) -> Response:
        self.seen.append(request)
        if self.raw is not None:
            return Response(self.raw)
        if self.status != 200:
            return Response(status_code=self.status)
        return JSONResponse(found) if found is not None else Response(status_code=404)


class Gateway:
    """The app under test with all its parts at hand."""

    def __init__(
        self, *, rules: Rules | None = None, partner_tag_url: str = "", **settings: Any
    ) -> None:
        self.settings = Settings.model_validate(
            {
                "kafka_bootstrap": "nowhere:1",
                "kafka_username": "gateway",
                "kafka_password": "secret",
                "admin_port": 0,
                "view_ticket_keys": json.dumps(TICKET_KEYS),
                "visit_cookie_keys": json.dumps(COOKIE_KEYS),
                "ad_ledger_url": "http://ledger",
                "call_control_url": "http://calls",
                "consent_url": "http://consent",
                "public_origin": ORIGIN,
                **settings,
            }
        )
        self.clock = FakeClock()
        self.sender = FakeSender()
        self.services = FakeServices()
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        self.visits = Visits(
            KeyRing(COOKIE_KEYS), age_max_s=self.settings.visit_age_max_s, clock=self.clock
        )
        reads = Reads(
            httpx.AsyncClient(transport=httpx.ASGITransport(self.services.app())),
            ad_ledger_url=self.settings.ad_ledger_url,
            call_control_url=self.settings.call_control_url,
            consent_url=self.settings.consent_url,
            retention_url="http://retention",
            metrics=metrics,
        )
        self.reads = reads
        self.threat = Threat(reads, self.clock)
        self.threat.learn(self.clock.now() + timedelta(days=1))
        self.offers = Offers(reads, self.clock)
        self.limits = make_limits(self.settings, self.clock, metrics)
        self.live = Live(
            limits=make_live_limits(self.settings),
            visits=self.visits,
            reads=reads,
            clock=self.clock,
            metrics=metrics,
        )
        self.app = build_http(
            Parts(
                settings=self.settings,
                clock=self.clock,
                ids=TimeOrderedIds(),
                sender=self.sender,
                reads=reads,
                threat=self.threat,
                offers=self.offers,
                visits=self.visits,
                tickets=KeyRing(TICKET_KEYS),
                limits=self.limits,
                serve_live=self.live.serve,
                metrics=metrics,
                ads=ADS,
                media_by_name=MEDIA,
                partner=None
                if rules is None
                else PartnerAds(partner_tag_url, self._gate(rules), self.clock),
            )
        )

    def _gate(self, rules: Rules) -> Gate:
        recorder = KafkaRecorder(self.sender, TimeOrderedIds(), self.clock)
        return Gate(recorder, self.clock, rules=rules)

    def client(self, peer: str = PEER) -> httpx.AsyncClient:
        """Return a browser without a visit."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, client=(peer, 50_000)), base_url=ORIGIN
        )

    def visitor(self, peer: str = PEER) -> tuple[httpx.AsyncClient, UUID]:
        """Return a browser with a visit, and its pseudonym."""
        visit, cookie = self.visits.open()
        client = self.client(peer)
        client.cookies.set("visit", cookie, domain="minutes.example")
        return client, visit.visitor_id

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric's value; 0 where it never moved."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def ticket(self, visitor_id: UUID, **changed: Any) -> str:
        """Return a good ticket of a visitor, or with some claims changed."""
        now = self.clock.now()
        claims: dict[str, Any] = {
            "ticket_id": TimeOrderedIds().new(),
            "visitor_id": visitor_id,
            "ad_id": "minutes-15s",
            "duration_ms": 15_000,
            "issued_at": now,
            "expires_at": now + timedelta(hours=1),
        }
        return view_ticket.issue(KeyRing(TICKET_KEYS), ViewTicket(**(claims | changed)))


def ad_event(ticket: str, kind: str = "start", position_ms: int = 0) -> dict[str, Any]:
    """Return one event of a batch."""
    return {"ticket": ticket, "kind": kind, "position_ms": position_ms}


def received(topic: Topic, event: WireModel, at: datetime = NOW) -> Received[Any]:
    """Return an event as the tail hands it over."""
    return Received(
        event=event,
        id=TimeOrderedIds().new(),
        time=at,
        source="/services/test",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        topic=topic.name,
        partition=0,
        offset=0,
    )


class WebSocketClient:
    """One WebSocket spoken as ASGI messages; `is_stuck` = it no longer takes what is sent."""

    def __init__(self, gateway: Gateway, *, headers: dict[str, str] | None = None) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        self.is_stuck = False
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "wss",
            "path": "/v1/live",
            "raw_path": b"/v1/live",
            "query_string": b"",
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in (headers or {}).items()
            ],
            "client": (PEER, 50_001),
            "server": ("minutes.example", 443),
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
            "state": {},
        }
        self.task = asyncio.create_task(gateway.app(scope, self._inbox.get, self._take))

    async def _take(self, message: Any) -> None:
        if self.is_stuck:
            await asyncio.Event().wait()
        self._outbox.put_nowait(message)

    async def next(self, within_s: float = 5.0) -> Any:
        """Return the next ASGI message of the server."""
        return await asyncio.wait_for(self._outbox.get(), within_s)

    async def next_json(self) -> Any:
        """Return the next text message as JSON."""
        message = await self.next()
        assert message["type"] == "websocket.send", message
        return json.loads(message["text"])

    async def opened(self) -> "WebSocketClient":
        """Wait for the server to accept."""
        assert (await self.next())["type"] == "websocket.accept"
        return self

    def send(self, text: str) -> None:
        """Send a text message."""
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        self._inbox.put_nowait({"type": "websocket.receive", "bytes": data})

    async def leave(self) -> None:
        """Close from the page's side and wait for the server to notice."""
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait_for(self.task, 5)

    async def closing(self) -> tuple[int, str]:
        """Return code and text of the server's close."""
        message = await self.next()
        assert message["type"] == "websocket.close", message
        await asyncio.wait_for(self.task, 5)
        return message["code"], message["reason"]


def cookie_of(client: httpx.AsyncClient) -> dict[str, str]:
    """Return the headers with which a browser opens a WebSocket."""
    return {"cookie": f"visit={client.cookies['visit']}", "origin": ORIGIN}
