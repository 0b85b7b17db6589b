"""A visitor: what a browser does, through the public HTTP and WebSocket interface and nothing else.

Waiting is always bounded, and every figure it tells is one that the page was sent.
"""

import asyncio
import contextlib
import io
import json
import time
import wave
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from deploy.demo.errors import DemoError
from deploy.demo.people import Person

ANSWER_S = 20.0
"""How long the page waits for anything but the ad and the talk; generous for fifty at once."""
RING_S = 60.0
LAG_S = 60.0
"""How much longer than the reserved time a call may seem to last before the page gives up."""
QUARTERS = ("first_quartile", "midpoint", "third_quartile", "complete")
CATALOGUE_VERSION = "2026-11.3"
WORDING_VERSION = "2026-11.1"
_BEACON = "text/plain;charset=UTF-8"
"""What `navigator.sendBeacon` says of a string."""


class Stage(StrEnum):
    """Where a visitor is in the story; the order is that of the story."""

    ARRIVING = "arriving"
    WATCHING = "watching the ad"
    EARNED = "earned"
    CALLING = "calling"
    TALKING = "talking"
    SETTLING = "settling"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Progress:
    """What the page shows; times are milliseconds unless the name says otherwise."""

    person: Person
    stage: Stage = Stage.ARRIVING
    ad_ms: int = 0
    ad_duration_ms: int = 0
    available_ms: int = 0
    reserved_ms: int = 0
    call_status: str = ""
    end_reason: str = ""
    talk_ms: int | None = None
    talking_since_s: float | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What the browser knows when it leaves: ids it was given, and what it was told.

    Attributes:
        media_bytes: size of the ad that was downloaded.
        earned_ms: balance that the page showed before it asked for a call.
        spent_ms: what the page was told was spent.
    """

    person: Person
    ticket: str
    ticket_id: str
    decision_id: str
    call_id: str
    media_bytes: int
    earned_ms: int
    talk_ms: int
    spent_ms: int


Tell = Callable[[Progress, str], None]


@dataclass
class _Page:
    """Messages of the live connection; `changed` wakes who waits for one."""

    progress: Progress
    tell: Tell
    messages: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    closed: str = ""

    async def read(self, socket: ClientConnection) -> None:
        """Take messages in until the connection ends."""
        try:
            async for text in socket:
                self._take(json.loads(text))
                async with self.changed:
                    self.changed.notify_all()
        except WebSocketException as error:
            self.closed = str(error)
        self.closed = self.closed or "closed by the gateway"
        async with self.changed:
            self.changed.notify_all()

    def _take(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        progress = self.progress
        if message["type"] == "balance" and "available_ms" in message:
            progress.available_ms = message["available_ms"]
            progress.reserved_ms = message["reserved_ms"]
            if "change" in message:
                text = f"{message['change']} {message['amount_ms']} ms"
                self.tell(progress, f"balance: {text}, available {progress.available_ms} ms")
        elif message["type"] == "call":
            progress.call_status = message["status"]
            progress.talk_ms = message.get("talk_ms", progress.talk_ms)
            progress.end_reason = message.get("reason", "")
            self.tell(progress, f"call: {message['status']} {progress.end_reason}".rstrip())

    async def until(
        self,
        what: str,
        within_s: float,
        matches: Callable[[dict[str, Any]], bool],
        n_looked: int = 0,
    ) -> dict[str, Any]:
        """Return the first message that matches, after the first `n_looked` ones.

        Raises:
            DemoError: none came in time, or the connection has ended.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), self.changed:
                while True:
                    for message in self.messages[n_looked:]:
                        if matches(message):
                            return message
                    n_looked = len(self.messages)
                    if self.closed:
                        break
                    await self.changed.wait()
        why = f"the live connection ended: {self.closed}" if self.closed else f"{within_s:.0f} s"
        raise DemoError(f"Visitor {self.progress.person.number} waited in vain for {what} ({why}).")


class Browser:
    """One visitor's browser."""

    def __init__(self, origin: str, person: Person, tell: Tell) -> None:
        """Take where the page is, who sits before it, and who is told of it."""
        self.progress = Progress(person=person)
        self._origin = origin
        self._person = person
        self._tell = tell

    async def run(self) -> Visit:
        """Go through the whole story.

        Raises:
            DemoError: a step did not come true.
        """
        try:
            async with self._client() as http:
                return await self._visit(http)
        except (httpx.HTTPError, WebSocketException, OSError) as error:
            self._fail(f"{type(error).__name__}: {error}")
            raise DemoError(
                f"Visitor {self._person.number} lost the gateway ({type(error).__name__})."
            ) from error
        except DemoError as error:
            self._fail(str(error))
            raise

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._origin,
            # the demo's gateway trusts this machine as its proxy: each visitor has an own address
            headers={"Origin": self._origin, "X-Forwarded-For": self._person.address},
            timeout=ANSWER_S,
            trust_env=False,
        )

    def _fail(self, text: str) -> None:
        self.progress.stage, self.progress.failure = Stage.FAILED, text
        self._tell(self.progress, f"failed: {text}")

    async def _visit(self, http: httpx.AsyncClient) -> Visit:
        await self._post(http, "/v1/visits")
        decision_id = (await self._post(http, "/v1/consents", self._choice()))["decision_id"]
        async with self._live(http) as page:
            await page.until("the balance", ANSWER_S, lambda m: m["type"] == "balance")
            given = await self._post(http, "/v1/view-tickets")
            media_bytes = await self._download(http, given["ad"])
            n_before = await self._watch(http, page, given)
            earned_ms = await self._earned(page, n_before)
            call_id = await self._call(http, page)
            spent_ms = await self._settled(page, call_id)
        self._stage(Stage.DONE, "leaves the page")
        assert self.progress.talk_ms is not None
        return Visit(
            person=self._person,
            ticket=given["ticket"],
            ticket_id=given["ticket_id"],
            decision_id=decision_id,
            call_id=call_id,
            media_bytes=media_bytes,
            earned_ms=earned_ms,
            talk_ms=self.progress.talk_ms,
            spent_ms=spent_ms,
        )

    # --- steps

    def _choice(self) -> dict[str, Any]:
        decision = "given" if self._person.accepts_all else "refused"
        choices = [
            {"purpose": purpose, "decision": decision}
            for purpose in ("preferences", "statistics", "marketing")
        ]
        return {
            "choices": [{"purpose": "necessary", "decision": "given"}, *choices],
            "catalogue_version": CATALOGUE_VERSION,
            "wording_version": WORDING_VERSION,
            "language": "de",
            "method": "banner",
        }

    @contextlib.asynccontextmanager
    async def _live(self, http: httpx.AsyncClient) -> AsyncIterator[_Page]:
        cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
        async with connect(
            f"ws{self._origin.removeprefix('http')}/v1/live",
            additional_headers={
                "Cookie": cookie,
                "Origin": self._origin,
                "X-Forwarded-For": self._person.address,
            },
            open_timeout=ANSWER_S,
            proxy=None,
        ) as socket:
            page = _Page(self.progress, self._tell)
            reader = asyncio.create_task(page.read(socket))
            try:
                yield page
            finally:
                reader.cancel()

    async def _download(self, http: httpx.AsyncClient, ad: dict[str, Any]) -> int:
        """Fetch the ad and make sure that it is as long as the ticket says."""
        answer = await http.get(ad["media_url"])
        self._check(answer, ad["media_url"])
        with wave.open(io.BytesIO(answer.content)) as media:
            length_ms = round(media.getnframes() * 1000 / media.getframerate())
        if length_ms != ad["duration_ms"]:
            raise DemoError(f"The ad lasts {length_ms} ms, its ticket says {ad['duration_ms']} ms.")
        self._tell(self.progress, f"has the ad: {len(answer.content)} bytes, {length_ms} ms")
        return len(answer.content)

    async def _watch(self, http: httpx.AsyncClient, page: _Page, given: dict[str, Any]) -> int:
        """Play the ad in real time and report as the player passes each quarter (R-A2).

        Returns:
            How many messages the page had when the last event left.
        """
        duration_ms = self.progress.ad_duration_ms = given["ad"]["duration_ms"]
        self._stage(Stage.WATCHING, f"watches {given['ad']['title']!r}")
        ticket = given["ticket"]
        await self._report(http, ticket, "page_hit", 0)
        started_s, n_before = time.monotonic(), 0
        await self._report(http, ticket, "start", 0)
        for number, kind in enumerate(QUARTERS, start=1):
            position_ms = duration_ms * number // len(QUARTERS)
            await self._play_until(started_s, position_ms)
            n_before = len(page.messages)
            # the last one leaves with the page, as a beacon does
            await self._report(http, ticket, kind, position_ms, beacon=number == len(QUARTERS))
        return n_before

    async def _play_until(self, started_s: float, position_ms: int) -> None:
        while (played_ms := (time.monotonic() - started_s) * 1000) < position_ms:
            self.progress.ad_ms = int(played_ms)
            await asyncio.sleep(min(0.1, (position_ms - played_ms) / 1000))
        self.progress.ad_ms = position_ms

    async def _report(
        self, http: httpx.AsyncClient, ticket: str, kind: str, position_ms: int, *,
        beacon: bool = False,
    ) -> None:  # fmt: skip
        events = {"events": [{"ticket": ticket, "kind": kind, "position_ms": position_ms}]}
        answer = await http.post(
            "/v1/ad-events",
            content=json.dumps(events),
            headers={"Content-Type": _BEACON if beacon else "application/json"},
        )
        self._check(answer, f"the ad event {kind}")

    async def _earned(self, page: _Page, n_before: int) -> int:
        """Wait until the page shows what the whole ad has earned.

        Events of one visitor are handled in order, and those of the quarters before are seconds
        old: the balance that follows the last one is the whole.
        """
        await page.until(
            "credit for the ad", ANSWER_S, lambda m: _is_change(m, "granted"), n_before
        )
        self._stage(Stage.EARNED, f"has earned {self.progress.available_ms} ms")
        return self.progress.available_ms

    async def _call(self, http: httpx.AsyncClient, page: _Page) -> str:
        """Ask for the call and follow it to its end (R-A5)."""
        self._stage(Stage.CALLING, "asks for a call")
        asked = await self._post(
            http,
            "/v1/calls",
            {
                "callback_number": self._person.callback_number,
                "destination_number": self._person.destination_number,
            },
        )
        call_id = str(asked["call_id"])

        def is_now(*statuses: str) -> Callable[[dict[str, Any]], bool]:
            return lambda m: (
                m["type"] == "call" and m["call_id"] == call_id and m["status"] in statuses
            )

        last = ("refused", "ended")
        found = await page.until("the talk", RING_S, is_now("talking", *last))
        if found["status"] != "talking":
            raise DemoError(
                f"Visitor {self._person.number} was not connected: {found.get('reason')}."
            )
        self.progress.talking_since_s = time.monotonic()
        self._stage(Stage.TALKING, f"talks, for at most {found['reserved_ms']} ms")
        within_s = found["reserved_ms"] / 1000 + LAG_S
        await page.until("the end of the call", within_s, is_now(*last))
        return call_id

    async def _settled(self, page: _Page, call_id: str) -> int:
        """Wait until nothing is reserved any more; return what was spent."""
        self._stage(Stage.SETTLING, "waits for the settlement")

        def is_mine(message: dict[str, Any], change: str) -> bool:
            return _is_change(message, change) and message.get("reservation_id") == call_id

        spent = await page.until("the settlement", ANSWER_S, lambda m: is_mine(m, "spent"))
        await page.until(
            "the balance after the call",
            ANSWER_S,
            lambda m: m.get("reservation_id") == call_id and m.get("reserved_ms") == 0,
        )
        return int(spent["amount_ms"])

    # --- helpers

    def _stage(self, stage: Stage, text: str) -> None:
        self.progress.stage = stage
        self._tell(self.progress, text)

    async def _post(
        self, http: httpx.AsyncClient, path: str, body: Any | None = None
    ) -> dict[str, Any]:
        answer = await http.post(path, json=body)
        self._check(answer, path)
        found = answer.json()
        assert isinstance(found, dict)
        return found

    def _check(self, answer: httpx.Response, what: str) -> None:
        if answer.is_success:
            return
        reason = ""
        with contextlib.suppress(ValueError, AttributeError):
            reason = f" {answer.json().get('reason', '')}"
        raise DemoError(
            f"The gateway answered {answer.status_code}{reason} to {what}"
            f" of visitor {self._person.number}."
        )


def _is_change(message: dict[str, Any], change: str) -> bool:
    return message["type"] == "balance" and message.get("change") == change
