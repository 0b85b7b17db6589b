"""Goal: while Kafka is away nothing is accepted, and the gateway comes back by itself.

Method: a stack of this module's own (the run's shared broker must not be harmed), its broker
stopped with SIGSTOP, later killed; the gateway is the real process.
"""

import asyncio
import json
import signal
import time
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from websockets.asyncio.client import connect

from deploy.local.stack import LocalStack
from schemas import topics
from schemas.credit import CreditChange, CreditV1
from schemas.view_ticket import KeyRing, read_token
from services.chassis.clock import SystemClock, sleep
from services.chassis.ids import TimeOrderedIds
from services.chassis.produce import KafkaSink, Producer

pytestmark = [pytest.mark.integration, pytest.mark.fault, pytest.mark.timeout(180)]
NUMBERS = {"callback_number": "+49 30 23125 011", "destination_number": "+49 30 23125 022"}
NOWHERE = "http://127.0.0.1:9"


async def _n_requested(stack: LocalStack, call_id: str) -> int:
    """Return how often a call request is in Kafka."""
    consumer = AIOKafkaConsumer(
        **stack.kafka.options(), group_id=None, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        name = topics.CALL_REQUEST.name
        parts = [TopicPartition(name, n) for n in range(topics.CALL_REQUEST.partitions)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        await consumer.seek_to_beginning(*parts)
        n_found = 0
        for part in parts:
            while await consumer.position(part) < ends[part]:
                records = await consumer.getmany(part, timeout_ms=1000)
                n_found += sum(call_id.encode() in r.value for r in records.get(part, []))
        return n_found
    finally:
        await consumer.stop()


async def _until_accepted(page: httpx.AsyncClient, within_s: float) -> str:
    """Ask for a call until it is taken; return its id."""
    deadline_s = time.monotonic() + within_s
    while True:
        answer = await page.post("/v1/calls", json=NUMBERS)
        if answer.status_code == 202:
            return str(answer.json()["call_id"])
        assert (answer.status_code, answer.json()["reason"]) == (503, "kafka_away")
        assert time.monotonic() < deadline_s, "not taken again"
        await sleep(0.5)


async def _until_pushed(stack: LocalStack, page: httpx.AsyncClient, within_s: float) -> None:
    """Change the balance until an open page hears of it: the tail reads from now on again."""
    path = stack.layout.folder / "secrets" / "gateway" / "gateway_visit_cookie_keys"
    keys = KeyRing.from_json(path.read_text(encoding="utf-8"))
    cookie = page.cookies["visit"]
    visitor_id = UUID(read_token(keys, cookie).decode().split(".")[0])
    event = CreditV1(
        visitor_id=visitor_id,
        change=CreditChange.GRANTED,
        amount_ms=1,
        available_ms=1,
        reserved_ms=0,
    )
    url = stack.url("gateway").replace("http", "ws") + "/v1/live"
    sink = KafkaSink(stack.kafka, prefix="", client_id="test")
    producer = Producer(sink, service="ad_ledger", timeout_s=20)
    async with connect(url, additional_headers={"cookie": f"visit={cookie}"}) as live:
        assert json.loads(await live.recv()) == {"type": "balance", "reason": "ledger_away"}
        async with asyncio.timeout(within_s):
            heard = asyncio.ensure_future(live.recv())
            while not heard.done():
                await producer.send(
                    topics.CREDIT,
                    event,
                    event_id=TimeOrderedIds().new(),
                    time=SystemClock().now(),
                )
                await asyncio.wait({heard}, timeout=1.0)
        assert json.loads(heard.result())["change"] == "granted"
    await sink.stop()


async def test_nothing_is_accepted_without_an_acknowledgement(tmp_path: Path) -> None:
    """A broker that hangs, then one that is killed: 503 in time, then 202 with the event there."""
    overrides = {
        "GATEWAY_AD_LEDGER_URL": NOWHERE,
        "GATEWAY_CALL_CONTROL_URL": NOWHERE,
        "GATEWAY_KAFKA_TIMEOUT_S": "2",
    }
    async with (
        LocalStack(tmp_path / "stack", services=["gateway"], overrides=overrides) as stack,
        httpx.AsyncClient(base_url=stack.url("gateway"), timeout=15) as page,
    ):
        assert (await page.post("/v1/visits")).status_code == 201
        first = await _until_accepted(page, within_s=10)
        assert await _n_requested(stack, first) == 1
        pid = stack.pid("gateway")

        stack.kill("kafka", signal.SIGSTOP)
        started_s = time.monotonic()
        hung = await page.post("/v1/calls", json=NUMBERS)
        took_s = time.monotonic() - started_s
        assert (hung.status_code, hung.json()["reason"]) == (503, "kafka_away")
        assert int(hung.headers["retry-after"]) >= 1
        assert 1.9 < took_s < 4
        assert (await page.post("/v1/view-tickets")).status_code == 201, "the rest goes on"
        away = await page.get("/v1/balance")
        assert (away.status_code, away.json()["reason"]) == (503, "ledger_away")
        stack.kill("kafka", signal.SIGCONT)
        second = await _until_accepted(page, within_s=30)
        assert await _n_requested(stack, second) == 1

        stack.kill("kafka", signal.SIGKILL)
        gone = await page.post("/v1/calls", json=NUMBERS)
        assert (gone.status_code, gone.json()["reason"]) == (503, "kafka_away")
        third = await _until_accepted(page, within_s=60)
        assert await _n_requested(stack, third) == 1
        await _until_pushed(stack, page, within_s=60)
        assert stack.pid("gateway") == pid, "the gateway never had to be restarted"
