"""Per topic: load, decide, save, enqueue. No rule lives here; no SQL either."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any
from uuid import UUID

from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from schemas.call import CallEndV1, CallStartV1
from schemas.credit import (
    CreditChange,
    CreditDecisionV1,
    CreditOperation,
    CreditRequestV1,
    CreditV1,
)
from schemas.retention import RetentionOrderV1
from services.ad_ledger import domain
from services.ad_ledger.domain import (
    AdEvent,
    Duplicate,
    Kind,
    Lot,
    LotKey,
    Operation,
    Recorded,
    RefusalReason,
)
from services.ad_ledger.metrics import LedgerMetrics
from services.ad_ledger.store import Store
from services.chassis.context import Context
from services.chassis.received import Received
from services.privacy.declare import Table

SWEEP_MAX = 500
_KINDS = {kind: Kind(kind.value) for kind in AdEventKind}
_TICKET_REASONS = {
    "malformed": RefusalReason.TICKET_MALFORMED,
    "signature_invalid": RefusalReason.TICKET_SIGNATURE_INVALID,
}
_CHANGES = {
    Operation.GRANT: CreditChange.GRANTED,
    Operation.RESERVE: CreditChange.RESERVED,
    Operation.RELEASE: CreditChange.RELEASED,
    Operation.SPEND: CreditChange.SPENT,
    Operation.EXPIRE: CreditChange.EXPIRED,
    Operation.CLAW_BACK: CreditChange.CLAWED_BACK,
}


class Handlers:
    """The ledger's handlers with what they need: ticket keys and metrics."""

    def __init__(self, keys: view_ticket.KeyRing, metrics: LedgerMetrics) -> None:
        """Take the keys that verify tickets, and the metrics."""
        self._keys = keys
        self._metrics = metrics

    # ------------------------------------------------------------------ ad views

    async def on_ad_views(self, ctx: Context[Store], batch: Sequence[Received[AdViewV1]]) -> None:
        """Record what was consumed and grant what it earns (R-A1, R-A2, R-A3; L3, L6)."""
        # a poll holds the steps of one view together: its ticket is verified once
        tickets: dict[str, domain.Ticket | RefusalReason] = {}
        events = [(r, event) for r in batch if (event := self._read(ctx, r, tickets))]
        if not events:
            return
        good = [ticket for ticket in tickets.values() if isinstance(ticket, domain.Ticket)]
        state = await ctx.store.load_views(
            {ticket.key for ticket in good}, {ticket.visitor_id for ticket in good}
        )
        tariffs = await ctx.store.tariffs()
        recorded: list[Recorded] = []
        addresses: list[str] = []
        outcomes: Counter[str] = Counter()
        for received, event in events:
            decision = domain.decide_view(state, event, tariffs)
            if isinstance(decision, Recorded):
                domain.apply_view(state, decision)
                recorded.append(decision)
                addresses.append(received.event.address)
            outcomes[_outcome(decision)] += 1
        for outcome, n in outcomes.items():
            ctx.count(topics.AD_VIEW, outcome, n)
        if not recorded:
            return
        earned_ms = await ctx.store.save_views(recorded, addresses, state)
        changes = _Changes()
        for visitor_id, amount_ms in earned_ms.items():
            changes.add(visitor_id, Operation.GRANT, amount_ms)
        await self._tell_balances(ctx, changes, {event.visitor_id: r for r, event in events})

    def _read(
        self,
        ctx: Context[Store],
        received: Received[AdViewV1],
        tickets: dict[str, domain.Ticket | RefusalReason],
    ) -> AdEvent | None:
        """Translate wire to domain; a ticket that is none of ours is refused."""
        text = received.event.ticket
        ticket = tickets.get(text)
        if ticket is None:
            ticket = tickets[text] = self._verify(text)
        if isinstance(ticket, RefusalReason):
            ctx.count(topics.AD_VIEW, f"refused_{ticket}")
            return None
        event = received.event
        return AdEvent(
            event.visitor_id, ticket, _KINDS[event.kind], event.position_ms, received.time
        )

    def _verify(self, text: str) -> domain.Ticket | RefusalReason:
        try:
            ticket = view_ticket.read(self._keys, text)
        except view_ticket.TicketError as error:
            return _TICKET_REASONS[str(error)]
        return domain.Ticket(
            ticket_id=ticket.ticket_id,
            visitor_id=ticket.visitor_id,
            duration_ms=ticket.duration_ms,
            issued_at=ticket.issued_at,
            expires_at=ticket.expires_at,
        )

    # ------------------------------------------------------------------ reservations

    async def on_credit_requests(
        self, ctx: Context[Store], batch: Sequence[Received[CreditRequestV1]]
    ) -> None:
        """Reserve or release talk time; answer every reserve, the repeated one the same (C1)."""
        known = await ctx.store.reservations(r.event.reservation_id for r in batch)
        releases = [r for r in batch if r.event.operation is CreditOperation.RELEASE]
        # first, so that the next call finds what a cancelled one gives back
        await self._release(ctx, [r for r in releases if r.event.reservation_id in known])
        lots = await ctx.store.lots_of({r.event.visitor_id for r in batch})
        added: dict[UUID, domain.Reservation] = {}
        postings: list[domain.Posting] = []
        for received in batch:
            event = received.event
            if event.operation is CreditOperation.RELEASE:
                continue
            existing = known.get(event.reservation_id) or added.get(event.reservation_id)
            if existing is not None:
                _answer(ctx, received, existing)
                ctx.count(topics.CREDIT_REQUEST, "duplicate")
                continue
            mine = lots[event.visitor_id]
            decision = domain.reserve(mine.values(), _request(received), ctx.now)
            _answer(ctx, received, decision)
            if isinstance(decision, domain.Refused):
                ctx.count(topics.CREDIT_REQUEST, f"refused_{decision.reason}")
                continue
            _post_all(mine, decision.postings)
            added[event.reservation_id] = decision.reservation
            postings.extend(decision.postings)
            ctx.count(topics.CREDIT_REQUEST, "granted")
        await ctx.store.add_reservations(list(added.values()))
        await ctx.store.save_credit([lot for by in lots.values() for lot in by.values()], postings)
        await self._tell_postings(ctx, postings, {r.event.visitor_id: r for r in batch})
        await self._release(ctx, [r for r in releases if r.event.reservation_id not in known])

    async def _release(
        self, ctx: Context[Store], releases: Sequence[Received[CreditRequestV1]]
    ) -> None:
        await self._end(ctx, [(r.event.reservation_id, None, r) for r in releases])

    async def on_call_starts(
        self, ctx: Context[Store], batch: Sequence[Received[CallStartV1]]
    ) -> None:
        """Note since when a reservation's talk runs."""
        await ctx.store.mark_connected([(r.event.call_id, r.event.connected_at) for r in batch])
        ctx.count(topics.CALL_START, "noted", len(batch))

    async def on_call_ends(self, ctx: Context[Store], batch: Sequence[Received[CallEndV1]]) -> None:
        """Settle: charge the talk once for both legs, return the rest (C4, L5)."""
        await self._end(ctx, [(r.event.call_id, r.event.talk_ms, r) for r in batch])

    async def _end(
        self,
        ctx: Context[Store],
        ends: Sequence[tuple[UUID, int | None, Received[CallEndV1] | Received[CreditRequestV1]]],
    ) -> None:
        """End reservations: settled with their talk, or void (None); a second end does nothing."""
        if not ends:
            return
        open_ones = await ctx.store.reservations(id_ for id_, _, _ in ends)
        lots = await ctx.store.lots(s.lot for r in open_ones.values() for s in r.shares)
        ended: list[domain.Reservation] = []
        postings: list[domain.Posting] = []
        for reservation_id, talk_ms, received in ends:
            topic = topics.BY_NAME[received.topic]
            reservation = open_ones.get(reservation_id)
            if reservation is None:
                # call control ends only calls whose reservation we granted: a hole in the path
                ctx.dead_letter(received, "reservation_unknown")
                continue
            if reservation.state is not domain.ReservationState.HELD:
                late = reservation.state is domain.ReservationState.VOID and talk_ms
                ctx.count(topic, "refused_ended_before" if late else "duplicate")
                if late:
                    self._metrics.unbilled_talk.inc((talk_ms or 0) / 1000)
                continue
            moved = (
                domain.void(reservation, ctx.now)
                if talk_ms is None
                else domain.settle(reservation, domain.charge_ms(talk_ms), ctx.now)
            )
            _post_all(lots, moved.postings)
            open_ones[reservation_id] = moved.reservation
            ended.append(_with_connection(moved.reservation, received.event))
            postings.extend(moved.postings)
            ctx.count(topic, moved.reservation.state.value)
        await ctx.store.end_reservations(ended)
        await ctx.store.save_credit(lots.values(), postings)
        causes = {r.event.visitor_id: r for _, _, r in ends}
        await self._tell_postings(ctx, postings, causes)

    # ------------------------------------------------------------------ what time ends

    async def expire(self, ctx: Context[Store]) -> int:
        """End reservations past their lease and lots past their life; return how many."""
        lapsed = await ctx.store.lapsed_reservations(ctx.now, SWEEP_MAX)
        await self._void(ctx, lapsed)
        self._metrics.lapsed_reservations.inc(len(lapsed))
        lots = await ctx.store.expired_lots(ctx.now, SWEEP_MAX)
        await self._expire_lots(ctx, lots)
        return len(lapsed) + len(lots)

    async def close_before_drop(
        self, ctx: Context[Store], table: Table, order: RetentionOrderV1
    ) -> None:
        """Close what is open before its rows go, so that all accounts still sum to zero (L1)."""
        if table.name != "lot":
            return
        await self._void(ctx, await ctx.store.held_reservations_before(order.before_day))
        await self._expire_lots(ctx, await ctx.store.open_lots_before(order.before_day))

    async def make_figures(self, ctx: Context[Store], _: Table, before_day: date) -> int:
        """Count what may be known of days for ever, before what it is counted from goes (R-C2).

        Views and addresses are counted together, when the first of them goes; returns how many.
        """
        return await ctx.store.count_networks_before(before_day)

    async def with_held_reservation(
        self, ctx: Context[Store], visitor_ids: Collection[UUID]
    ) -> set[UUID]:
        """Return those of the visitors whose call may be under way: its credit is in use."""
        return await ctx.store.visitors_with_held_reservation(visitor_ids)

    async def close_of_visitors(
        self, ctx: Context[Store], visitor_ids: Collection[UUID], before_day: date
    ) -> None:
        """Expire what visitors have available of days before a day, before their lots go (L1)."""
        found = await ctx.store.lots_of(set(visitor_ids))
        lots = [lot for mine in found.values() for lot in mine.values()]
        await self._expire_lots(ctx, [lot for lot in lots if lot.key.day < before_day])

    async def _void(self, ctx: Context[Store], ids: Sequence[UUID]) -> None:
        reservations = await ctx.store.reservations(ids)
        held = [r for r in reservations.values() if r.state is domain.ReservationState.HELD]
        lots = await ctx.store.lots(s.lot for r in held for s in r.shares)
        moved = [domain.void(reservation, ctx.now) for reservation in held]
        postings = [posting for m in moved for posting in m.postings]
        _post_all(lots, postings)
        await ctx.store.end_reservations([m.reservation for m in moved])
        await ctx.store.save_credit(lots.values(), postings)
        await self._tell_postings(ctx, postings, {})

    async def _expire_lots(self, ctx: Context[Store], expired: Sequence[Lot]) -> None:
        lots = {lot.key: lot for lot in expired}
        postings = [domain.expire(lot, ctx.now) for lot in expired]
        _post_all(lots, postings)
        await ctx.store.save_credit(lots.values(), postings)
        await self._tell_postings(ctx, postings, {})

    # ------------------------------------------------------------------ telling

    async def _tell_postings(
        self,
        ctx: Context[Store],
        postings: Iterable[domain.Posting],
        causes: Mapping[UUID, Received[Any]],
    ) -> None:
        changes = _Changes()
        for posting in postings:
            changes.add(
                posting.visitor_id, posting.operation, posting.amount_ms, posting.reservation_id
            )
        await self._tell_balances(ctx, changes, causes)

    async def _tell_balances(
        self, ctx: Context[Store], changes: "_Changes", causes: Mapping[UUID, Received[Any]]
    ) -> None:
        """One `credit` event per visitor and operation of the batch, with the balance after it."""
        if not changes.amounts:
            return
        balances = await ctx.store.balances(visitor for visitor, _ in changes.amounts)
        for (visitor, operation), amount_ms in changes.amounts.items():
            available_ms, reserved_ms = balances[visitor]
            event = CreditV1(
                visitor_id=visitor,
                change=_CHANGES[operation],
                amount_ms=amount_ms,
                available_ms=available_ms,
                reserved_ms=reserved_ms,
                reservation_id=changes.reservation_ids[visitor, operation],
            )
            ctx.outbox.add(topics.CREDIT, event, cause=causes.get(visitor))
        for operation, moved_ms in changes.by_operation().items():
            self._metrics.moved.labels(operation.value).inc(moved_ms / 1000)


class _Changes:
    """What a batch moved, per visitor and operation, in the order of the first of each."""

    def __init__(self) -> None:
        self.amounts: dict[tuple[UUID, Operation], int] = {}
        self.reservation_ids: dict[tuple[UUID, Operation], UUID | None] = {}

    def add(
        self,
        visitor_id: UUID,
        operation: Operation,
        amount_ms: int,
        reservation_id: UUID | None = None,
    ) -> None:
        """Add one movement; one of nothing is none."""
        if amount_ms:
            key = (visitor_id, operation)
            self.amounts[key] = self.amounts.get(key, 0) + amount_ms
            self.reservation_ids[key] = reservation_id

    def by_operation(self) -> "Counter[Operation]":
        """Return milliseconds by operation."""
        sums: Counter[Operation] = Counter()
        for (_, operation), amount_ms in self.amounts.items():
            sums[operation] += amount_ms
        return sums


def _outcome(decision: Recorded | Duplicate | domain.Refused) -> str:
    match decision:
        case Duplicate():
            return "duplicate"
        case domain.Refused(reason=reason):
            return f"refused_{reason}"
        case Recorded(capped=True):
            return "capped"
        case Recorded(credit_ms=0):
            return "recorded"
        case Recorded():
            return "credited"


def _with_connection(
    reservation: domain.Reservation, event: CallEndV1 | CreditRequestV1
) -> domain.Reservation:
    """Note since when the talk ran: a call's end may arrive before its start, on another topic."""
    if isinstance(event, CreditRequestV1):
        return reservation
    return replace(reservation, connected_at=reservation.connected_at or event.connected_at)


def _request(received: Received[CreditRequestV1]) -> domain.ReserveRequest:
    event = received.event
    return domain.ReserveRequest(
        reservation_id=event.reservation_id,
        visitor_id=event.visitor_id,
        wanted_ms=event.wanted_ms,
        lease_ms=event.lease_ms,
        at=received.time,
    )


def _answer(
    ctx: Context[Store],
    received: Received[CreditRequestV1],
    decision: domain.Moved | domain.Reservation | domain.Refused,
) -> None:
    reservation = decision.reservation if isinstance(decision, domain.Moved) else decision
    if isinstance(reservation, domain.Refused):
        granted, reserved_ms, until, reason = False, 0, None, reservation.reason.value
    else:
        granted, reserved_ms, until, reason = (
            True, reservation.reserved_ms, reservation.lease_until, None,
        )  # fmt: skip
    answer = CreditDecisionV1(
        reservation_id=received.event.reservation_id,
        visitor_id=received.event.visitor_id,
        granted=granted,
        reserved_ms=reserved_ms,
        lease_until=until,
        reason=reason,
    )
    ctx.outbox.add(topics.CREDIT_DECISION, answer, cause=received)


def _post_all(lots: dict[LotKey, Lot], postings: Iterable[domain.Posting]) -> None:
    for posting in postings:
        lots[posting.lot] = domain.post(lots[posting.lot], posting)
