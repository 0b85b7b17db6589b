"""A visitor without a gateway: writes what the gateway would write, reads what services tell."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from schemas.call import CallCommand, CallCommandV1, CallRequestV1
from services.chassis import trace
from services.chassis.ids import TimeOrderedIds
from services.chassis.produce import KafkaSink, Producer
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.stack import World

IDS = TimeOrderedIds()
WHOLE_VIEW = ("page_hit", "start", "first_quartile", "midpoint", "third_quartile", "complete")
CALLBACK = "030 23125 001"
DESTINATION = "+49 (0)30 23125 900"


@dataclass(kw_only=True)
class Caller:
    """One visitor with a browser's wishes."""

    world: World
    producer: Producer
    visitor_id: UUID
    traceparent: str

    async def earn(self, ad_ms: int) -> None:
        """Watch an ad of that length; its events as the gateway would have stamped them."""
        keys = view_ticket.KeyRing.from_json(
            self.world.environments["ad_ledger"]["AD_LEDGER_VIEW_TICKET_KEYS"]
        )
        now = datetime.now(UTC)
        issued_at = now - timedelta(milliseconds=ad_ms + 1000)
        ticket = view_ticket.ViewTicket(
            ticket_id=IDS.new(), visitor_id=self.visitor_id, ad_id="house-1", duration_ms=ad_ms,
            issued_at=issued_at, expires_at=now + timedelta(hours=1),
        )  # fmt: skip
        text = view_ticket.issue(keys, ticket)
        events = [
            AdViewV1(
                visitor_id=self.visitor_id, ticket=text, kind=AdEventKind(kind),
                position_ms=ad_ms, address="192.0.2.7",
            )
            for kind in WHOLE_VIEW
        ]  # fmt: skip
        await self.producer.send_many(
            [(topics.AD_VIEW, event, IDS.new()) for event in events],
            time=now,
            traceparent=self.traceparent,
        )

    async def call(self, callback: str = CALLBACK, destination: str = DESTINATION) -> UUID:
        """Ask for a call; return its id."""
        call_id = IDS.new()
        request = CallRequestV1(
            call_id=call_id, visitor_id=self.visitor_id, callback_number=callback,
            destination_number=destination, address="192.0.2.7",
        )  # fmt: skip
        await self._send(topics.CALL_REQUEST, request)
        return call_id

    async def hang_up(self, call_id: UUID) -> None:
        """Order the call's end."""
        command = CallCommandV1(
            call_id=call_id, visitor_id=self.visitor_id, command=CallCommand.HANG_UP
        )
        await self._send(topics.CALL_COMMAND, command)

    async def _send(self, topic: topics.Topic, event: Any) -> None:
        await self.producer.send(
            topic, event, event_id=IDS.new(), time=datetime.now(UTC), traceparent=self.traceparent
        )

    async def balance(self) -> tuple[int, int]:
        """Return (available, reserved) as the ledger's read API says."""
        port = self.world.environments["ad_ledger"]["AD_LEDGER_HTTP_PORT"]
        async with httpx.AsyncClient() as client:
            with contextlib.suppress(httpx.TransportError):
                url = f"http://127.0.0.1:{port}/v1/visitors/{self.visitor_id}/balance"
                found = (await client.get(url)).json()
                return found["available_ms"], found["reserved_ms"]
        return -1, -1

    async def has_balance(self, available_ms: int, reserved_ms: int = 0) -> None:
        """Wait for a balance."""

        async def reached() -> bool:
            return await self.balance() == (available_ms, reserved_ms)

        await eventually(reached, within_s=20, what=f"balance {available_ms}/{reserved_ms}")

    async def row(self, call_id: UUID) -> Any:
        """Return the call's row, and its CDR's columns where it has one."""
        return await self.look(
            "call_control",
            "SELECT d.*, c.* FROM call c LEFT JOIN cdr d USING (call_day, call_id) "
            "WHERE c.call_id = $1",
            call_id,
        )

    async def look(self, service: str, sql: str, *arguments: object) -> Any:
        """Return one row of a service's database, as its owner."""
        connection = await asyncpg.connect(self.world.owner_url(service))
        try:
            return await connection.fetchrow(sql, *arguments)
        finally:
            await connection.close()

    async def reaches(self, call_id: UUID, *states: str, within_s: float = 20) -> Any:
        """Wait until the call is in one of the states; return its row."""

        async def reached() -> Any:
            row = await self.row(call_id)
            return row if row is not None and row["state"] in states else None

        return await eventually(reached, within_s=within_s, what=f"call {'/'.join(states)}")


@contextlib.asynccontextmanager
async def a_caller(world: World) -> AsyncIterator[Caller]:
    """Open a visitor; writes to Kafka as the gateway."""
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test-gateway")
    await sink.start()
    try:
        yield Caller(
            world=world,
            producer=Producer(sink, service="gateway", timeout_s=10),
            visitor_id=new_visitor_id(),
            traceparent=trace.new(),
        )
    finally:
        await sink.stop()
