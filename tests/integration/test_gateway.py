"""Goal: a browser's requests reach real Kafka before they are answered, and events reach the page.

Method: `python -m services.gateway` as a process of its own on the run's Kafka, in a world of this
module's own; spoken to over TCP by httpx and websockets; its topics read back with aiokafka; the
ledger's and call control's read APIs are a small HTTP server here.
"""

import asyncio
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from typing_extensions import override
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from schemas import envelope, topics
from schemas.call import CallStatus, CallStatusV1
from schemas.credit import CreditChange, CreditV1
from schemas.topics import Topic
from schemas.view_ticket import KeyRing, read_token
from schemas.wire import WireModel
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.received import Received, decode
from tests.support.stack import World

WORLD_SERVICES = ["gateway"]
CALL_ID = UUID("019aabcd-1234-7abc-8def-0123456789ab")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


class _ReadApi(BaseHTTPRequestHandler):
    """Ledger: everybody has 15 s. Call control: knows no call."""

    def do_GET(self) -> None:
        known = self.path.endswith("/balance")
        body = json.dumps({"available_ms": 15_000, "reserved_ms": 0}).encode() if known else b""
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def read_api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ReadApi)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def origin(world: World, read_api: str) -> str:
    """Start the gateway and wait until it is ready."""
    process = world.start(
        "gateway",
        GATEWAY_AD_LEDGER_URL=read_api,
        GATEWAY_CALL_CONTROL_URL=read_api,
        GATEWAY_SOCKET_QUEUE_MAX="4",
    )
    await_ready(process, world.ports["gateway_admin"])
    return f"http://127.0.0.1:{world.ports['gateway']}"


def await_ready(process: "subprocess.Popen[bytes]", admin_port: int) -> None:
    """Wait until a gateway takes requests."""
    ready = f"http://127.0.0.1:{admin_port}/readyz"
    deadline_s = time.monotonic() + 60
    with httpx.Client() as client:
        while not _is_ready(client, ready):
            assert process.poll() is None, "the gateway ended; see var/test-logs"
            assert time.monotonic() < deadline_s, "not ready in 60 s"
            time.sleep(0.1)


def _is_ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@pytest.fixture
async def page(origin: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser with a visit."""
    async with httpx.AsyncClient(base_url=origin, headers={"origin": origin}) as client:
        assert (await client.post("/v1/visits")).status_code == 201
        yield client


def visitor_of(world: World, page: httpx.AsyncClient) -> UUID:
    """Return the pseudonym of a page's cookie."""
    keys = KeyRing.from_json(world.environments["gateway"]["GATEWAY_VISIT_COOKIE_KEYS"])
    return UUID(read_token(keys, page.cookies["visit"]).decode().split(".")[0])


async def events_of(world: World, topic: Topic, visitor_id: UUID) -> list[Received[Any]]:
    """Return a visitor's events as they stand in Kafka now."""
    consumer = AIOKafkaConsumer(
        **world.kafka.options(), group_id=None, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        parts = [TopicPartition(world.topic(topic), n) for n in range(topic.partitions)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        await consumer.seek_to_beginning(*parts)
        found: list[Received[Any]] = []
        for part in parts:
            while await consumer.position(part) < ends[part]:
                records = await consumer.getmany(part, timeout_ms=1000)
                found += [decode(topic, record) for record in records.get(part, [])]
        return [received for received in found if received.event.visitor_id == visitor_id]
    finally:
        await consumer.stop()


async def publish(world: World, topic: Topic, event: WireModel, source: str) -> None:
    """Write an event as the service would whose event it is."""
    producer = AIOKafkaProducer(**world.kafka.options(), acks="all")
    await producer.start()
    try:
        head = envelope.for_event(
            topic,
            event_id=TimeOrderedIds().new(),
            source=source,
            time=SystemClock().now(),
            key=topic.key_of(event),
            traceparent=TRACE,
        )
        await producer.send_and_wait(
            world.topic(topic),
            key=topic.key_of(event).encode(),
            value=event.model_dump_json(exclude_none=True).encode(),
            headers=head.headers(),
        )
    finally:
        await producer.stop()


async def test_ad_events_are_in_kafka_when_they_are_answered(
    world: World, page: httpx.AsyncClient
) -> None:
    """R-A1, R-A2: 202 = every event is there, in order, under the visitor's key, in its trace."""
    ticket = (await page.post("/v1/view-tickets")).json()["ticket"]
    kinds = ["page_hit", "start", "first_quartile", "midpoint", "third_quartile", "complete"]
    events = [
        {"ticket": ticket, "kind": kind, "position_ms": n * 3_000} for n, kind in enumerate(kinds)
    ]
    before = SystemClock().now()
    response = await page.post(
        "/v1/ad-events", json={"events": events}, headers={"traceparent": TRACE}
    )
    assert (response.status_code, response.json()) == (202, {"accepted": 6})
    found = await events_of(world, topics.AD_VIEW, visitor_of(world, page))
    assert [received.event.kind.value for received in found] == kinds
    assert {received.event.ticket for received in found} == {ticket}
    # nobody has told this gateway of a threat: the network and no more (R-C3)
    assert {received.event.address for received in found} == {"127.0.0.0"}
    assert {received.source for received in found} == {"/services/gateway"}
    assert {received.traceparent.split("-")[1] for received in found} == {TRACE.split("-")[1]}
    assert len({received.id for received in found}) == 6
    assert all(before <= received.time <= SystemClock().now() for received in found)


async def test_beacon_reaches_kafka_and_a_bad_batch_leaves_nothing(
    world: World, page: httpx.AsyncClient
) -> None:
    """sendBeacon's text/plain is taken; a batch with one bad ticket leaves no trace in Kafka."""
    ticket = (await page.post("/v1/view-tickets")).json()["ticket"]
    good = {"ticket": ticket, "kind": "start", "position_ms": 0}
    bad = {**good, "ticket": ticket[:-8] + "AAAAAAAA", "kind": "midpoint"}
    text = {"content-type": "text/plain;charset=UTF-8"}
    refused = await page.post(
        "/v1/ad-events", content=json.dumps({"events": [good, bad]}), headers=text
    )
    assert refused.status_code == 422
    assert (refused.json()["reason"], refused.json()["index"]) == ("ticket_signature_invalid", 1)
    assert await events_of(world, topics.AD_VIEW, visitor_of(world, page)) == []
    taken = await page.post("/v1/ad-events", content=json.dumps({"events": [good]}), headers=text)
    assert taken.status_code == 202
    assert len(await events_of(world, topics.AD_VIEW, visitor_of(world, page))) == 1


async def test_consent_call_and_hang_up_reach_their_topics(
    world: World, page: httpx.AsyncClient
) -> None:
    """R-A1, R-F2: one event each, on its own topic, under the id that was answered."""
    visitor_id = visitor_of(world, page)
    consent = await page.post(
        "/v1/consents",
        json={
            "choices": [{"purpose": "marketing", "decision": "refused"}],
            "catalogue_version": "2026-11.1",
            "wording_version": "2026-11.1",
            "language": "de",
            "method": "banner",
        },
    )
    numbers = {"callback_number": "030 23125011", "destination_number": "+49 30 23125 022"}
    call = await page.post("/v1/calls", json=numbers)
    call_id = call.json()["call_id"]
    hang_up = await page.post(f"/v1/calls/{call_id}/hang-up")
    assert [r.status_code for r in (consent, call, hang_up)] == [202, 202, 202]
    (decided,) = await events_of(world, topics.CONSENT, visitor_id)
    (requested,) = await events_of(world, topics.CALL_REQUEST, visitor_id)
    (ordered,) = await events_of(world, topics.CALL_COMMAND, visitor_id)
    assert str(decided.event.decision_id) == consent.json()["decision_id"]
    assert str(requested.event.call_id) == str(ordered.event.call_id) == call_id
    assert requested.event.callback_number == "030 23125011"


async def test_reads_go_to_the_services(page: httpx.AsyncClient) -> None:
    """The balance is the ledger's; a call that call control does not know is unknown."""
    assert (await page.get("/v1/balance")).json() == {"available_ms": 15_000, "reserved_ms": 0}
    unknown = await page.get(f"/v1/calls/{CALL_ID}")
    assert (unknown.status_code, unknown.json()["reason"]) == (404, "call_unknown")


async def test_events_are_pushed_to_the_page(
    world: World, origin: str, page: httpx.AsyncClient
) -> None:
    """From Kafka to two open pages of the visitor, over real WebSockets; poison in between."""
    visitor_id = visitor_of(world, page)
    headers = {"cookie": f"visit={page.cookies['visit']}"}
    url = origin.replace("http", "ws") + "/v1/live"
    credit = CreditV1(
        visitor_id=visitor_id, change=CreditChange.GRANTED, amount_ms=3_750,
        available_ms=18_750, reserved_ms=0,
    )  # fmt: skip
    status = CallStatusV1(call_id=CALL_ID, visitor_id=visitor_id, status=CallStatus.TALKING)
    async with (
        connect(url, additional_headers=headers, origin=origin) as first,  # type: ignore[arg-type]
        connect(url, additional_headers=headers) as second,
    ):
        for page_socket in (first, second):
            message = json.loads(await asyncio.wait_for(page_socket.recv(), 10))
            assert message == {"type": "balance", "available_ms": 15_000, "reserved_ms": 0}
        producer = AIOKafkaProducer(**world.kafka.options())
        await producer.start()
        await producer.send_and_wait(
            world.topic(topics.CREDIT), b"poison", headers=[("ce_id", b"\xff")]
        )
        await producer.stop()
        await publish(world, topics.CREDIT, credit, "ad_ledger")
        await publish(world, topics.CALL_STATUS, status, "call_control")
        for page_socket in (first, second):
            pushed = [json.loads(await asyncio.wait_for(page_socket.recv(), 10)) for _ in range(2)]
            by_type = {message["type"]: message for message in pushed}
            assert by_type["balance"]["available_ms"] == 18_750
            assert by_type["call"]["status"] == "talking"


async def test_socket_needs_a_visit_and_our_own_page(origin: str, page: httpx.AsyncClient) -> None:
    """4401 without a visit; a foreign page is refused before anything opens; too large is 1009."""
    url = origin.replace("http", "ws") + "/v1/live"
    headers = {"cookie": f"visit={page.cookies['visit']}"}
    async with connect(url) as stranger:
        with pytest.raises(ConnectionClosed) as closed:
            await stranger.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "visit_missing")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, additional_headers=headers, origin="https://evil.example"):  # type: ignore[arg-type]
            pass
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body or b"")["reason"] == "origin_foreign"
    async with connect(url, additional_headers=headers) as mine:
        await mine.recv()
        await mine.send("x" * 20_000)
        with pytest.raises(ConnectionClosed) as closed:
            await mine.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_page_that_does_not_read_is_let_go(
    world: World, origin: str, page: httpx.AsyncClient
) -> None:
    """A stuck page over TCP: its place is free again, and the others are served meanwhile."""
    visitor_id = visitor_of(world, page)
    port = int(origin.rsplit(":", 1)[1])
    stuck = socket.create_connection(("127.0.0.1", port))
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.sendall(
        (
            f"GET /v1/live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Cookie: visit={page.cookies['visit']}\r\n\r\n"
        ).encode()
    )
    assert stuck.recv(12) == b"HTTP/1.1 101"
    admin = f"http://127.0.0.1:{world.ports['gateway_admin']}/metrics"
    closed = 'gateway_sockets_closed_total{reason="slow_client"}'
    head = envelope.for_event(
        topics.CREDIT, event_id=TimeOrderedIds().new(), source="ad_ledger",
        time=SystemClock().now(), key=str(visitor_id), traceparent=None,
    )  # fmt: skip
    event = CreditV1(
        visitor_id=visitor_id,
        change=CreditChange.GRANTED,
        amount_ms=1,
        available_ms=1,
        reserved_ms=0,
    )
    producer = AIOKafkaProducer(**world.kafka.options(), linger_ms=5)
    await producer.start()
    try:
        deadline_s = time.monotonic() + 40
        async with httpx.AsyncClient() as looking:
            while closed not in (await looking.get(admin)).text:
                assert time.monotonic() < deadline_s, "still open"
                futures = [
                    await producer.send(
                        world.topic(topics.CREDIT),
                        event.model_dump_json(exclude_none=True).encode(),
                        key=str(visitor_id).encode(),
                        headers=head.headers(),
                    )
                    for _ in range(2000)
                ]
                await asyncio.gather(*futures)
                assert (await page.get("/v1/media/minutes-15s.wav")).status_code == 200
    finally:
        await producer.stop()
        stuck.close()


async def test_limits_hold_over_tcp(origin: str, page: httpx.AsyncClient) -> None:
    """Size while reading, content type, Origin, method: each a problem with its reason."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024

    json_type = {"content-type": "application/json"}
    cases: list[tuple[httpx.Response, int, str]] = [
        (await page.post("/v1/calls", content=endless(), headers=json_type), 413, "body_too_large"),
        (await page.post("/v1/calls", content=b"{}", headers={"content-type": "text/plain"}), 415,
         "media_type_unsupported"),
        (await page.post("/v1/calls", json={}, headers={"origin": "null"}), 403, "origin_foreign"),
        (await page.delete("/v1/balance"), 405, "method_not_allowed"),
        (await page.get("/"), 404, "route_unknown"),
    ]  # fmt: skip
    for response, status, reason in cases:
        assert (response.status_code, response.json()["reason"]) == (status, reason)
        assert response.headers["content-type"] == "application/problem+json"
    assert (await page.post("/v1/view-tickets")).status_code == 201


async def test_rate_is_limited_with_a_wait_that_is_enough(origin: str) -> None:
    """429 with Retry-After for a visitor in a hurry; another visitor goes on."""
    async with (
        httpx.AsyncClient(base_url=origin) as hasty,
        httpx.AsyncClient(base_url=origin) as calm,
    ):
        for client in (hasty, calm):
            await client.post("/v1/visits")
        answers = [await hasty.post("/v1/view-tickets") for _ in range(80)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert {answer.json()["reason"] for answer in refused} == {"rate_exceeded"}
        assert int(refused[0].headers["retry-after"]) >= 1
        assert (await calm.post("/v1/view-tickets")).status_code == 201


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_two_instances_share_visitors_and_stop_in_order(
    world: World, origin: str, page: httpx.AsyncClient, read_api: str
) -> None:
    """A visit and a ticket of one instance count at another; SIGTERM tells pages, exits 0."""
    port, admin_port = free_port(), free_port()
    process = world.start(
        "gateway",
        GATEWAY_INSTANCE="1",
        GATEWAY_HTTP_PORT=str(port),
        GATEWAY_ADMIN_PORT=str(admin_port),
        GATEWAY_AD_LEDGER_URL=read_api,
        GATEWAY_CALL_CONTROL_URL=read_api,
    )
    await asyncio.to_thread(await_ready, process, admin_port)
    ticket = (await page.post("/v1/view-tickets")).json()["ticket"]
    visitor_id = visitor_of(world, page)
    cookie = {"cookie": f"visit={page.cookies['visit']}"}
    async with (
        connect(f"ws://127.0.0.1:{port}/v1/live", additional_headers=cookie) as live,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=cookie) as other,
    ):
        await live.recv()
        event = {"ticket": ticket, "kind": "start", "position_ms": 0}
        taken = await other.post("/v1/ad-events", json={"events": [event]})
        assert taken.status_code == 202
        assert len(await events_of(world, topics.AD_VIEW, visitor_id)) == 1
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(live.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012, "service restart: the page connects again"
    assert await asyncio.to_thread(process.wait, 20) == 0
