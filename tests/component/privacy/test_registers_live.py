"""A sender's recipient register from a real topic, and the gate by it (R-E1, K3)."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from deploy.provision import drop_topics
from schemas import topics
from schemas.register import RegisterName, RegisterV1
from services.chassis.clock import SystemClock
from services.chassis.outbox import OutboxRow
from services.chassis.produce import KafkaSink
from services.privacy import recipients
from services.privacy.declare import Purpose
from services.privacy.gate import Permit, Question, Refusal, RefusalReason
from services.privacy.registers import Registers
from services.privacy.rules import NOTHING_KNOWN, RuleBook
from tests.support.eventually import eventually
from tests.support.running import send
from tests.support.stack import World, make_world, new_prefix

CLOCK = SystemClock()
SHIPPED = recipients.load()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    found = await make_world(new_prefix(), ["call_control"], topics=(topics.REGISTER,))
    try:
        yield found
    finally:
        await found.close()


@contextlib.asynccontextmanager
async def reading(world: World, **more: timedelta) -> AsyncIterator[Registers]:
    """Read as call control does, with its rights."""
    login = world.kafka_login("call_control")
    registers = Registers(login, prefix=world.kafka_prefix, clock=CLOCK, **more)
    task = asyncio.create_task(registers.run())
    try:
        yield registers
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def told(change: dict[str, Any], **wrong: str) -> RegisterV1:
    document = json.dumps({**json.loads(recipients.FILE.read_text()), **change})
    event = {
        "version": "2026-12.1",
        "document": document,
        "sha256": hashlib.sha256(document.encode()).hexdigest(),
    } | wrong
    return RegisterV1(name=RegisterName.RECIPIENTS, **event)


async def version(registers: Registers) -> str | None:
    found = await registers.current(CLOCK.now())
    return found.version.partition("+")[0] if found else None


async def becomes(registers: Registers, expected: str | None) -> None:
    async def holds() -> bool:
        return await version(registers) == expected

    await eventually(holds, within_s=20)


def a_call() -> Question:
    """A number's way to the network that it is called in."""
    now = CLOCK.now()
    return Question(
        recipient="network-operators", purpose=Purpose.CALL, visitor_id=None,
        fields=frozenset({"callback_number"}), happened_at=now, asked_at=now, country="DE",
    )  # fmt: skip


async def test_what_consent_says_holds_for_who_reads_and_for_who_begins(world):
    """R-E1, K3: a recipient that is struck out gets nothing more from anybody."""
    async with reading(world) as registers:
        # a process that has just started waits for the first reading, and is not refused
        assert await version(registers) == SHIPPED.version.partition("+")[0]
        gate = RuleBook(registers.current, lambda _visitor_id, _now: NOTHING_KNOWN)
        assert isinstance(await gate(a_call()), Permit)
        kept = [
            entry
            for entry in json.loads(recipients.FILE.read_text())["recipients"]
            if entry["recipient_id"] != "network-operators"
        ]
        event = told({"version": "2026-12.1", "recipients": kept})
        await send(world, "consent", (topics.REGISTER, event))
        await becomes(registers, "2026-12.1")
        verdict = await gate(a_call())
        assert isinstance(verdict, Refusal)
        assert verdict.reason is RefusalReason.RECIPIENT_UNKNOWN
    async with reading(world) as registers:
        assert await version(registers) == "2026-12.1"


@pytest.mark.parametrize("wrong", [{"document": '{"version":"2027-01.1"}'}, {"sha256": "0" * 64}])
async def test_a_register_that_cannot_be_understood_permits_nothing(world, wrong):
    """K3, R-F4: in doubt nothing goes, until one is told that can be."""
    if "document" in wrong:
        wrong["sha256"] = hashlib.sha256(wrong["document"].encode()).hexdigest()
    async with reading(world) as registers:
        gate = RuleBook(registers.current, lambda _visitor_id, _now: NOTHING_KNOWN)
        await send(world, "consent", (topics.REGISTER, told({}, **wrong)))
        await becomes(registers, None)
        verdict = await gate(a_call())
        assert isinstance(verdict, Refusal)
        assert verdict.reason is RefusalReason.NOT_DECIDABLE
        await send(world, "consent", (topics.REGISTER, told({"version": "2026-12.2"})))
        await becomes(registers, "2026-12.2")
        sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test")
        try:
            await sink.send_rows([OutboxRow(topics.REGISTER.name, b"recipients", [], None)])
        finally:
            await sink.stop()
        await becomes(registers, SHIPPED.version.partition("+")[0])


async def test_without_its_topic_nothing_is_known(world):
    """K3: a reader that cannot ask how far the topic goes relies on nothing."""
    async with reading(world, stale_after=timedelta(seconds=2)) as registers:
        await becomes(registers, SHIPPED.version.partition("+")[0])
        await drop_topics(world.kafka, world.kafka_prefix)
        await becomes(registers, None)
