"""The WebSocket: who gets in, what is pushed to whom, and every bound."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from schemas.call import CallStatus, CallStatusV1
from schemas.consent import (
    ConsentChange,
    ConsentDecision,
    ConsentStateV1,
    Purpose,
    PurposeState,
)
from schemas.credit import CreditChange, CreditV1
from schemas.topics import CALL_END, CALL_STATUS, CONSENT_STATE, CREDIT
from services.gateway.live import TOPICS
from tests.unit.gateway.support import (
    NOW,
    Gateway,
    WebSocketClient,
    cookie_of,
    received,
)

CALL_ID = UUID("019aabcd-1234-7abc-8def-0123456789ab")


def _credit(visitor_id: UUID, available_ms: int = 15_000) -> Any:
    event = CreditV1(
        visitor_id=visitor_id,
        change=CreditChange.GRANTED,
        amount_ms=3_750,
        available_ms=available_ms,
        reserved_ms=0,
    )
    return received(CREDIT, event)


async def _until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def _connect(gateway: Gateway) -> tuple[WebSocketClient, UUID]:
    client, visitor_id = gateway.visitor()
    socket = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    assert (await socket.next_json())["type"] == "balance"
    return socket, visitor_id


async def test_balance_is_sent_at_once() -> None:
    """The page shows what the ledger says as soon as it is open."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    gateway.services.balances[str(visitor_id)] = {"available_ms": 7_500, "reserved_ms": 100}
    socket = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    assert await socket.next_json() == {
        "type": "balance",
        "available_ms": 7_500,
        "reserved_ms": 100,
    }
    assert gateway.metric("gateway_sockets") == 1
    await socket.leave()
    assert gateway.metric("gateway_sockets") == 0
    assert gateway.metric("gateway_sockets_closed_total", reason="client_left") == 1


async def test_live_goes_on_while_the_ledger_is_away() -> None:
    """The first balance says why it has no figure; changes still come by Kafka."""
    gateway = Gateway()
    gateway.services.status = 500
    client, visitor_id = gateway.visitor()
    socket = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    assert await socket.next_json() == {"type": "balance", "reason": "ledger_away"}
    await gateway.live.on_record(_credit(visitor_id))
    assert (await socket.next_json())["available_ms"] == 15_000
    await socket.leave()


async def test_events_reach_all_sockets_of_their_visitor_and_no_other() -> None:
    """Several pages of one visitor see the same; another visitor sees nothing; no pseudonym."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    pages = [await WebSocketClient(gateway, headers=cookie_of(client)).opened() for _ in range(2)]
    for page in pages:
        await page.next_json()
    other, other_id = await _connect(gateway)
    status = CallStatusV1(
        call_id=CALL_ID,
        visitor_id=visitor_id,
        status=CallStatus.TALKING,
        reserved_ms=15_000,
        connected_at=NOW,
    )
    state = ConsentStateV1(
        visitor_id=visitor_id,
        purposes=(
            PurposeState(
                purpose=Purpose.MARKETING,
                in_force=False,
                since=NOW,
                changes=(ConsentChange(decision=ConsentDecision.WITHDRAWN, at=NOW),),
            ),
        ),
    )
    await gateway.live.on_record(_credit(visitor_id))
    await gateway.live.on_record(received(CALL_STATUS, status))
    await gateway.live.on_record(received(CONSENT_STATE, state))
    await gateway.live.on_record(_credit(other_id, available_ms=1))
    at = NOW.isoformat()
    for page in pages:
        assert await page.next_json() == {
            "type": "balance", "at": at, "change": "granted", "amount_ms": 3_750,
            "available_ms": 15_000, "reserved_ms": 0,
        }  # fmt: skip
        assert await page.next_json() == {
            "type": "call", "at": at, "call_id": str(CALL_ID), "status": "talking",
            "reserved_ms": 15_000, "connected_at": "2026-11-22T18:00:00Z",
        }  # fmt: skip
        assert await page.next_json() == {
            "type": "consent", "at": at,
            "purposes": [
                {
                    "purpose": "marketing", "reaches": [], "in_force": False,
                    "since": "2026-11-22T18:00:00Z",
                }
            ],
        }  # fmt: skip
    assert (await other.next_json())["available_ms"] == 1
    assert gateway.metric("gateway_pushes_total", type="call") == 2
    for socket in (*pages, other):
        await socket.leave()


def test_pushed_topics_are_those_the_registry_gives_the_gateway() -> None:
    """Least privilege: what the gateway reads is what the registry says that it reads."""
    assert {topic.name for topic in TOPICS} == {"credit", "call-status", "consent-state"}
    assert all("gateway" in topic.consumers for topic in TOPICS)
    assert "gateway" not in CALL_END.consumers


async def test_a_change_during_the_first_read_is_not_lost() -> None:
    """The socket listens before it asks: what happens meanwhile follows the first balance."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    socket = WebSocketClient(gateway, headers=cookie_of(client))
    await _until(lambda: gateway.metric("gateway_sockets") == 1)
    await gateway.live.on_record(_credit(visitor_id))
    await socket.opened()
    assert "change" not in await socket.next_json()
    assert (await socket.next_json())["change"] == "granted"
    await socket.leave()


@pytest.mark.parametrize("cookie", ["", "visit=x", "visit=a.c1.b"])
async def test_without_a_visit_it_closes_4401(cookie: str) -> None:
    """Accepted and closed, so that the page can read the code."""
    gateway = Gateway()
    socket = await WebSocketClient(gateway, headers={"cookie": cookie}).opened()
    assert await socket.closing() == (4401, "visit_missing")
    assert gateway.services.seen == []


async def test_it_ends_with_the_visit() -> None:
    """R-D5: an ended visit opens nothing, and an open socket does not outlive its visit."""
    gateway = Gateway(visit_age_max_s=60)
    client, _ = gateway.visitor()
    gateway.clock.at = NOW + timedelta(seconds=59.8)
    socket = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    await socket.next_json()
    assert await socket.closing() == (4401, "visit_expired")
    gateway.clock.at = NOW + timedelta(seconds=60)
    late = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    assert await late.closing() == (4401, "visit_expired")


async def test_foreign_page_gets_no_socket() -> None:
    """Cross-site WebSocket hijacking: refused before it opens, cookie or not."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    headers = cookie_of(client) | {"origin": "https://evil.example"}
    socket = WebSocketClient(gateway, headers=headers)
    message = await socket.next()
    assert (message["type"], message["status"]) == ("websocket.http.response.start", 403)
    assert b"origin_foreign" in (await socket.next())["body"]
    assert gateway.metric("gateway_requests_total", route="/v1/live", method="GET", status="403",
                          reason="origin_foreign") == 1  # fmt: skip


async def test_opening_counts_for_the_address_rate() -> None:
    """Opening and leaving again and again is a request each."""
    gateway = Gateway(address_burst=1, address_rate_per_s=0.1)
    socket, _ = await _connect(gateway)
    refused = await WebSocketClient(gateway).next()
    assert refused["status"] == 429
    await socket.leave()


async def test_sockets_are_limited_per_visitor_and_in_all() -> None:
    """1013 says so, and a place that is left is free again."""
    gateway = Gateway(sockets_per_visitor_max=2, sockets_max=3)
    client, _ = gateway.visitor()
    mine = [await WebSocketClient(gateway, headers=cookie_of(client)).opened() for _ in range(2)]
    third = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    assert await third.closing() == (1013, "sockets_too_many")
    other, _ = await _connect(gateway)
    stranger, _ = gateway.visitor()
    fourth = await WebSocketClient(gateway, headers=cookie_of(stranger)).opened()
    assert await fourth.closing() == (1013, "sockets_too_many")
    await other.leave()
    fifth = await WebSocketClient(gateway, headers=cookie_of(stranger)).opened()
    assert (await fifth.next_json())["type"] == "balance"
    for socket in (*mine, fifth):
        await socket.leave()
    assert gateway.metric("gateway_sockets_closed_total", reason="sockets_too_many") == 2


async def test_slow_page_is_let_go_and_told_why() -> None:
    """A bounded queue: whoever does not read is closed 1013; nobody else waits."""
    gateway = Gateway(socket_queue_max=4)
    slow, slow_id = await _connect(gateway)
    quick, quick_id = await _connect(gateway)
    slow.is_stuck = True
    for _ in range(4 + 2):
        await gateway.live.on_record(_credit(slow_id))
        await asyncio.sleep(0)
    await gateway.live.on_record(_credit(quick_id, available_ms=42))
    assert (await quick.next_json())["available_ms"] == 42
    slow.is_stuck = False
    assert await slow.closing() == (1013, "slow_client")
    await _until(lambda: gateway.metric("gateway_sockets") == 1)
    assert gateway.metric("gateway_sockets_closed_total", reason="slow_client") == 1
    await quick.leave()


async def test_page_that_takes_not_even_the_close_is_dropped() -> None:
    """The close itself is bounded in time."""
    gateway = Gateway(socket_queue_max=1)
    slow, visitor_id = await _connect(gateway)
    slow.is_stuck = True
    for _ in range(4):
        await gateway.live.on_record(_credit(visitor_id))
        await asyncio.sleep(0)
    await asyncio.wait_for(slow.task, 5)
    assert gateway.metric("gateway_sockets") == 0


async def test_ping_is_answered() -> None:
    """The page can see whether the other side is there."""
    gateway = Gateway()
    socket, _ = await _connect(gateway)
    socket.send('{"type": "ping"}')
    assert await socket.next_json() == {"type": "pong"}
    await socket.leave()


@pytest.mark.parametrize(
    ("text", "closing"),
    [
        ("hello", (4400, "message_invalid")),
        ('{"type":"balance"}', (4400, "message_invalid")),
        ("[" * 1000, (4400, "message_invalid")),
        ('"' + "x" * 1024 + '"', (1009, "message_too_large")),
    ],
    ids=["text", "other", "deep", "large"],
)
async def test_other_messages_end_it(text: str, closing: tuple[int, str]) -> None:
    """A closed protocol: what is no ping is not read on."""
    socket, _ = await _connect(Gateway())
    socket.send(text)
    assert await socket.closing() == closing


async def test_binary_message_ends_it() -> None:
    """Text only."""
    socket, _ = await _connect(Gateway())
    socket.send_bytes(b'{"type":"ping"}')
    assert await socket.closing() == (4400, "message_invalid")


async def test_too_many_messages_end_it() -> None:
    """A rate for the page's messages too."""
    gateway = Gateway(socket_burst=3, socket_rate_per_s=0.5)
    socket, _ = await _connect(gateway)
    for _ in range(3):
        socket.send('{"type":"ping"}')
        assert await socket.next_json() == {"type": "pong"}
    socket.send('{"type":"ping"}')
    assert await socket.closing() == (4429, "rate_exceeded")


async def test_idle_connection_ends() -> None:
    """R-D1: the use ends after 30 idle minutes (here 0.3 s); a push or a ping is use."""

    class RunningClock:
        def now(self) -> datetime:
            return datetime.now(UTC)

        def monotonic(self) -> float:
            return asyncio.get_running_loop().time()

    gateway = Gateway(idle_s=0.3)
    gateway.live._clock = RunningClock()
    gateway.clock.at = datetime.now(UTC)
    socket, visitor_id = await _connect(gateway)
    opened_s = asyncio.get_running_loop().time()
    await asyncio.sleep(0.2)
    await gateway.live.on_record(_credit(visitor_id))
    await socket.next_json()
    assert await socket.closing() == (4408, "idle")
    assert asyncio.get_running_loop().time() - opened_s >= 0.45
