"""The broker killed and frozen under the sink (hot-path.md 1j, 3).

Goal: no loss and no double on the topic; the producer is kept when `send` times out. Method: own
servers, so that no other test is disturbed; the broker gets SIGKILL, then SIGSTOP.
"""

import asyncio
import signal

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.local.stack import LocalStack
from deploy.provision import provision_topics
from schemas import topics
from services.chassis import produce
from services.chassis.errors import is_transient
from services.chassis.kafka import KafkaLogin
from services.chassis.outbox import OutboxRow
from services.chassis.produce import KafkaSink

pytestmark = [pytest.mark.fault, pytest.mark.integration, pytest.mark.timeout(180)]
TOPIC = topics.RETENTION_ORDER
FILL = b" " * 900


async def read(login: KafkaLogin) -> list[int]:
    consumer = AIOKafkaConsumer(**login.options(), group_id=None, auto_offset_reset="earliest")
    await consumer.start()
    try:
        tp = TopicPartition(TOPIC.name, 0)
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        found: list[int] = []
        async with asyncio.timeout(30):
            while await consumer.position(tp) < end:
                polled = await consumer.getmany(timeout_ms=500)
                found.extend(int(r.value) for records in polled.values() for r in records)
    finally:
        await consumer.stop()
    return found


async def send_as_the_relay_does(sink: KafkaSink, rows: list[OutboxRow]) -> None:
    """Send again on weather; anything else is a failure of the test."""
    async with asyncio.timeout(90):
        while True:
            try:
                await sink.send_rows(rows)
            except Exception as error:
                if not is_transient(error):
                    raise
                await asyncio.sleep(0.2)
            else:
                return


def rows(numbers: range) -> list[OutboxRow]:
    return [OutboxRow(TOPIC.name, b"k", [], str(n).encode() + FILL) for n in numbers]


async def test_a_broker_killed_or_frozen_costs_nothing_and_doubles_nothing(tmp_path, monkeypatch):
    """R 1j: 0 lost, 0 duplicates, order kept, one and the same producer from first to last."""
    monkeypatch.setattr(produce, "REQUEST_TIMEOUT_MS", 2_000)
    async with LocalStack(tmp_path / "stack", services=()) as stack:
        await provision_topics(stack.kafka, (TOPIC,))
        sink = KafkaSink(stack.kafka, prefix="", client_id="test")
        try:
            await sink.send_rows(rows(range(100)))
            producer = sink._producer
            # killed in the middle of a batch, away for the time of its restart
            sending = asyncio.create_task(send_as_the_relay_does(sink, rows(range(100, 600))))
            await asyncio.sleep(0)
            stack.kill("kafka")
            await sending
            # frozen: the buffer fills, send() gives up after the request time-out: not taken
            stack.kill("kafka", signal.SIGSTOP)
            sending = asyncio.create_task(send_as_the_relay_does(sink, rows(range(600, 1100))))
            await asyncio.sleep(5)
            assert not sending.done()
            stack.kill("kafka", signal.SIGCONT)
            await sending
            assert sink._producer is producer
        finally:
            await sink.stop()
        assert await read(stack.kafka) == list(range(1100))
