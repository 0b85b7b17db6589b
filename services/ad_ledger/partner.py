"""The ad partner's usage feed (R-A4, R-E1): what its contract needs, in batches, through the gate.

A step of a view is noted in the transaction that records it. A batch keeps its rows and its key
until the partner has said that it has it, so that a process that dies in between sends the same
again and the partner knows it by its key. Each try asks the gate anew: what may go is decided, and
recorded, at the moment of sending. Nobody but `PartnerClient` speaks to the partner, and it takes
nothing but what the gate cleared.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from uuid import UUID

import httpx
from pydantic import JsonValue

from schemas import view_ticket
from schemas.ad_view import AdViewV1
from services.ad_ledger.metrics import PartnerMetrics
from services.ad_ledger.partner_store import Batch, LedgerStore, Step, Usage
from services.chassis import logs
from services.chassis.clock import Clock, sleep
from services.chassis.context import Context
from services.chassis.received import Received
from services.privacy.declare import Purpose
from services.privacy.gate import Cleared, Gate, Refusal, RefusalReason, Request, StaleError

RECIPIENT = "ad-partner"
BACK_OFF_FIRST_S = 1.0
BACK_OFF_MAX_S = 300.0

Transaction = Callable[[], AbstractAsyncContextManager[Context[LedgerStore]]]


class PartnerClient:
    """Speaks HTTPS to the partner."""

    def __init__(
        self, url: str, *, token: str, timeout_s: float, ca_file: Path | None, clock: Clock
    ) -> None:
        """Take where the partner is.

        Args:
            url: `https` only.
            ca_file: the authority that signed its certificate; the system's where None.
        """
        assert url.startswith("https://")
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._clock = clock
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=ca_file),
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,
        )

    async def send(
        self, batch_id: UUID, usages: Sequence[Cleared], signals: Sequence[Cleared]
    ) -> bool:
        """Send a batch under its key; return whether the partner has it."""
        headers = {**self._headers, "Idempotency-Key": str(batch_id)}
        try:
            body = await self._body(batch_id, usages, signals)
            # the client's own limit is for each step: who answers drop by drop would take for ever
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.post(self._url, content=body, headers=headers)
        except (httpx.HTTPError, TimeoutError, StaleError) as error:
            logs.get().warning("partner did not answer", **logs.describe(error))
            return False
        if not answer.is_success:
            logs.get().warning("partner refused a batch", status=answer.status_code)
        return answer.is_success

    async def _body(
        self, batch_id: UUID, usages: Sequence[Cleared], signals: Sequence[Cleared]
    ) -> bytes:
        now = self._clock.now()
        return b'{"batch_id":"%b","usages":[%b],"signals":[%b]}' % (
            str(batch_id).encode(),
            b",".join([await cleared.take(RECIPIENT, now) for cleared in usages]),
            b",".join([await cleared.take(RECIPIENT, now) for cleared in signals]),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def enqueue(
    keys: view_ticket.KeyRing, ctx: Context[LedgerStore], batch: Sequence[Received[AdViewV1]]
) -> None:
    """Note what the partner is to know of a poll, in the transaction that recorded it."""
    tickets: dict[str, view_ticket.ViewTicket | None] = {}
    steps = []
    for received in batch:
        text = received.event.ticket
        if text not in tickets:
            tickets[text] = _read(keys, text)
        if (ticket := tickets[text]) is not None:
            day = ticket.issued_at.astimezone(UTC).date()
            kind = received.event.kind.value
            steps.append(Step(day=day, ticket_id=ticket.ticket_id, kind=kind, ad_id=ticket.ad_id))
    await ctx.store.partner.enqueue(steps)


def _read(keys: view_ticket.KeyRing, text: str) -> view_ticket.ViewTicket | None:
    try:
        return view_ticket.read(keys, text)
    except view_ticket.TicketError:
        return None  # the ledger has refused and counted it


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How the feed runs.

    Attributes:
        interval_s: between two looks when nothing waits.
        timeout_s: of the partner's answer; a batch of a process that died waits a little longer.
        batch_max: steps of a batch.
    """

    interval_s: float
    timeout_s: float
    batch_max: int


UNDECIDED_TRIES_MAX = 20
"""After so many it is a no: about an hour of back-off."""
_UNDECIDED = (RefusalReason.NOT_DECIDABLE, RefusalReason.CONSENT_STALE)


class Reporter:
    """Tells the partner what waits, a batch at a time."""

    def __init__(
        self,
        transaction: Transaction,
        gate: Gate,
        sender: PartnerClient,
        metrics: PartnerMetrics,
        pace: Pace,
    ) -> None:
        """Take the parts."""
        self._transaction = transaction
        self._gate = gate
        self._sender = sender
        self._metrics = metrics
        self._pace = pace

    async def run(self) -> None:
        """Report for ever."""
        while True:
            if not await self.report():
                await sleep(self._pace.interval_s)

    async def report(self) -> bool:
        """Send one batch, if one is due or can be made; return whether there was one."""
        async with self._transaction() as ctx:
            claimed = await self._claim(ctx)
        if claimed is None:
            return False
        batch, usages = claimed
        asked = _requests(usages)
        # recorded and committed in here, before anything is sent
        answers = await self._gate.clear_many([request for _, request in asked])
        if batch.n_tries < UNDECIDED_TRIES_MAX and any(_is_undecided(one) for one in answers):
            # what is not known now may be in a moment: no usage is lost for that
            await self._end(batch, [], has_it=False)
            return True
        cleared: dict[Purpose, list[Cleared]] = {
            Purpose.AD_SETTLEMENT: [],
            Purpose.PERSONALISED_ADVERTISING: [],
        }
        refused: list[UUID] = []
        for (ticket_id, request), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Cleared):
                cleared[request.purpose].append(answer)
            elif request.purpose is Purpose.AD_SETTLEMENT:
                refused.append(ticket_id)
        settlement = cleared[Purpose.AD_SETTLEMENT]
        signals = cleared[Purpose.PERSONALISED_ADVERTISING]
        has_it = not settlement or await self._sender.send(batch.batch_id, settlement, signals)
        await self._end(batch, refused, has_it=has_it)
        return True

    async def _claim(self, ctx: Context[LedgerStore]) -> tuple[Batch, list[Usage]] | None:
        """Return a batch that nobody else sends meanwhile."""
        store = ctx.store.partner
        # what is not answered by then is tried again, by whoever looks first
        until = ctx.now + timedelta(seconds=2 * self._pace.timeout_s)
        batch = await store.due(ctx.now, until)
        if batch is None:
            batch = Batch(batch_day=ctx.now.date(), batch_id=ctx.ids.new(), n_tries=1)
            if not await store.fill(batch, self._pace.batch_max, until):
                await store.requeue()
                return None
        return batch, await store.usages(batch)

    async def _end(self, batch: Batch, refused: Sequence[UUID], *, has_it: bool) -> None:
        self._metrics.batches.labels("reported" if has_it else "put_off").inc()
        async with self._transaction() as ctx:
            if has_it:
                await ctx.store.partner.close(batch, refused, ctx.now)
            else:
                await ctx.store.partner.put_off(batch, ctx.now + back_off(batch.n_tries))


def _is_undecided(answer: Cleared | Refusal) -> bool:
    return isinstance(answer, Refusal) and answer.reason in _UNDECIDED


def back_off(n_tries: int) -> timedelta:
    """Return how long a batch waits after so many tries in vain."""
    return timedelta(seconds=min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2 ** min(n_tries - 1, 16)))


def _requests(usages: Sequence[Usage]) -> list[tuple[UUID, Request]]:
    """Return, for each ticket, what its settlement needs, and the signal beside it.

    The two are asked for apart: another purpose and another basis, and only the latter may be
    missing. Both are about the first step that the batch has of the view.
    """
    asked = []
    for ticket_id, group in groupby(usages, key=lambda usage: usage.ticket_id):
        steps = list(group)
        asked.append((ticket_id, _request(steps[0], Purpose.AD_SETTLEMENT, _settlement(steps))))
        signal = {"signal": _signal(steps[0])}
        asked.append((ticket_id, _request(steps[0], Purpose.PERSONALISED_ADVERTISING, signal)))
    return asked


def _request(first: Usage, purpose: Purpose, payload: Mapping[str, JsonValue]) -> Request:
    return Request(
        payload=payload,
        recipient=RECIPIENT,
        purpose=purpose,
        visitor_id=first.visitor_id,
        happened_at=first.viewed_at,
    )


def _settlement(steps: Sequence[Usage]) -> dict[str, JsonValue]:
    first = steps[0]
    found: dict[str, JsonValue] = {
        "ticket_id": str(first.ticket_id),
        "ad_id": first.ad_id,
        "events": [
            {
                "kind": step.kind,
                "viewed_at": _text(step.viewed_at),
                "position_ms": step.position_ms,
            }
            for step in steps
        ],
    }
    return found if first.address is None else {**found, "address": first.address}


def _signal(first: Usage) -> dict[str, JsonValue]:
    return {
        "visitor_id": str(first.visitor_id),
        "ticket_id": str(first.ticket_id),
        "viewed_at": _text(first.viewed_at),
    }


def _text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()
