"""Honest visitors over real HTTP: they send again what was not acknowledged, and remember the rest.

What they were told is the yardstick of the verdict: acknowledged events must be credited, once.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx

KINDS = ("page_hit", "start", "first_quartile", "midpoint", "third_quartile", "complete")
QUARTERS = KINDS[2:]
AGAIN = frozenset({429, 500, 502, 503, 504})
"""Answers after which an honest client sends the same again."""
PAUSE_S = 0.4
POLL_S = 1.0
CALL_WITHIN_S = 150.0
NUMBERS = 400
"""Callback and destination numbers of the range for fiction that take turns."""


@dataclass(kw_only=True)
class Told:
    """What one visitor was told, and nothing that says who it is.

    Attributes:
        acknowledged: kinds of ad events that were answered with 202, of this ticket.
        tried: kinds that were sent at all: each may have arrived.
        call_ids: calls that were answered with 202.
        end: how the last call ended, as the page was told; empty = it was never told.
    """

    number: int
    ticket_id: UUID | None = None
    acknowledged: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    call_ids: list[UUID] = field(default_factory=list)
    end: str = ""
    n_again: int = 0
    gave_up: bool = False


class GiveUp(Exception):  # noqa: N818 - it is what a visitor does
    """The run is over, or the gateway refuses what an honest client sends."""


@dataclass(kw_only=True)
class Crowd:
    """All visitors of a run.

    Attributes:
        arrive_within_s: each comes at a moment of its own within so long of finding a place.
        over: set when nobody is to try again any more.
    """

    origin: str
    seed: int
    at_once: int
    arrive_within_s: float
    over: asyncio.Event = field(default_factory=asyncio.Event)
    n_left: int = 0
    told: list[Told] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    async def run(self, n_visitors: int) -> None:
        """Let them all come, so many at once, and return when the last has left."""
        places = asyncio.Semaphore(self.at_once)

        async def come(number: int) -> None:
            async with places:
                chance = random.Random(self.seed * 7919 + number)
                await asyncio.sleep(chance.uniform(0, self.arrive_within_s))
                await self._visit(number)
                self.n_left += 1

        await asyncio.gather(*(come(number) for number in range(n_visitors)))

    def figures(self) -> dict[str, int]:
        """Return what visitors went through, as counts."""
        return {
            "sent_again": sum(told.n_again for told in self.told),
            "calls_told": sum(len(told.call_ids) for told in self.told),
            # the end came, but later than the page waited for it
            "ends_untold": sum(bool(told.call_ids) and not told.end for told in self.told),
        }

    async def _visit(self, number: int) -> None:
        told = Told(number=number)
        self.told.append(told)
        headers = {
            "Origin": self.origin,
            "X-Forwarded-For": f"203.0.{113 + number // 250 % 100}.{number % 250 + 1}",
        }
        async with httpx.AsyncClient(
            base_url=self.origin, headers=headers, timeout=12, trust_env=False
        ) as http:
            try:
                await self._story(http, told)
            except GiveUp:
                told.gave_up = True

    async def _story(self, http: httpx.AsyncClient, told: Told) -> None:
        post = http.post
        await self._insist(told, lambda: post("/v1/visits"))
        choice = {
            "choices": [{"purpose": "marketing", "decision": "refused"}],
            "catalogue_version": "2026-11.3",
            "wording_version": "2026-11.1",
            "language": "de",
            "method": "banner",
        }
        await self._insist(told, lambda: post("/v1/consents", json=choice))
        given = await self._insist(told, lambda: post("/v1/view-tickets"))
        told.ticket_id = UUID(given["ticket_id"])
        await self._watch(http, told, given)
        await self._call(http, told)

    async def _watch(self, http: httpx.AsyncClient, told: Told, given: dict[str, Any]) -> None:
        duration_ms = given["ad"]["duration_ms"]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for kind in KINDS:
            share = QUARTERS.index(kind) + 1 if kind in QUARTERS else 0
            position_ms = duration_ms * share // len(QUARTERS)
            if kind == "first_quartile":
                # the ad begins when its start is acknowledged: a page waits for that
                started_s = loop.time()
            await asyncio.sleep(max(0.0, started_s + position_ms / 1000 - loop.time()))
            event = {"ticket": given["ticket"], "kind": kind, "position_ms": position_ms}
            told.tried.append(kind)
            body = {"events": [event]}
            await self._insist(told, lambda body=body: http.post("/v1/ad-events", json=body))  # type: ignore[misc]
            told.acknowledged.append(kind)

    async def _call(self, http: httpx.AsyncClient, told: Told) -> None:
        chosen = told.number % NUMBERS
        body = {
            "callback_number": f"+49 30 23125 {chosen + 1:03}",
            "destination_number": f"+49 30 23125 {chosen + NUMBERS + 1:03}",
        }
        # the credit may be on its way still: a call that is refused for want of it is asked again
        for _ in range(20):
            asked = await self._insist(told, lambda: http.post("/v1/calls", json=body))
            call_id = UUID(asked["call_id"])
            told.call_ids.append(call_id)
            told.end = await self._until_over(http, told, call_id)
            if told.end not in {"credit_insufficient", "call_in_progress"}:
                return
            await asyncio.sleep(2 * POLL_S)

    async def _until_over(self, http: httpx.AsyncClient, told: Told, call_id: UUID) -> str:
        """Return the reason of the end; empty when the page was not told in time."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + CALL_WITHIN_S
        while loop.time() < deadline_s and not self.over.is_set():
            await asyncio.sleep(POLL_S)
            try:
                answer = await http.get(f"/v1/calls/{call_id}")
            except httpx.TransportError:
                continue
            if answer.is_success and answer.json()["status"] in {"ended", "refused"}:
                return str(answer.json().get("reason") or "ended")
        return ""

    async def _insist(
        self, told: Told, send: Callable[[], Awaitable[httpx.Response]]
    ) -> dict[str, Any]:
        """Send until it is acknowledged, as the interface's documentation asks of a client.

        Raises:
            GiveUp: the run is over, or the answer is a refusal.
        """
        while not self.over.is_set():
            try:
                answer = await send()
            except httpx.TransportError:
                told.n_again += 1
                await asyncio.sleep(PAUSE_S)
                continue
            if answer.is_success:
                found = answer.json()
                assert isinstance(found, dict)
                return found
            if answer.status_code not in AGAIN:
                self.refusals.append(f"{answer.status_code} {answer.json().get('reason')}")
                raise GiveUp
            told.n_again += 1
            await asyncio.sleep(PAUSE_S)
        raise GiveUp
