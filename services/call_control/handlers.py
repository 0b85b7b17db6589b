"""Per topic: load, decide, save, enqueue. Calls are carried out elsewhere (`switch.py`)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from uuid import UUID

from schemas import topics
from schemas.call import CallCommandV1, CallRequestV1, CallStatus, CallStatusV1
from schemas.credit import CreditDecisionV1, CreditOperation, CreditRequestV1
from services.call_control import domain
from services.call_control.domain import State
from services.call_control.store import Call, End, Store
from services.chassis.context import Context
from services.chassis.received import Received
from services.privacy.declare import Table

REASON_REQUESTED = "requested"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a call asks the ledger for, and how old its request may be."""

    talk_max_ms: int
    lease_ms: int
    request_age_max_s: int

    @property
    def request_age_max(self) -> timedelta:
        """The age from which on a request is not dialled any more."""
        return timedelta(seconds=self.request_age_max_s)


class Handlers:
    """Call control's handlers with their limits."""

    def __init__(self, limits: Limits) -> None:
        """Take the limits that every call asks for."""
        self._limits = limits

    async def on_call_requests(
        self, ctx: Context[Store], batch: Sequence[Received[CallRequestV1]]
    ) -> None:
        """Check numbers, record the use, ask for credit (R-A1; C1, C5)."""
        known = await ctx.store.calls(r.event.call_id for r in batch)
        busy = await ctx.store.visitors_with_active_call(r.event.visitor_id for r in batch)
        hung_up = await ctx.store.hung_up_before_known(r.event.call_id for r in batch)
        added: dict[UUID, Call] = {}
        addresses: dict[UUID, str] = {}
        for received in batch:
            event = received.event
            if event.call_id in known or event.call_id in added:
                ctx.count(topics.CALL_REQUEST, "duplicate")
                continue
            decision = domain.decide_request(
                _request(received),
                has_active_call=event.visitor_id in busy,
                is_old=domain.is_too_old(received.time, ctx.now, self._limits.request_age_max),
            )
            if event.call_id in hung_up and isinstance(decision, domain.AcceptedRequest):
                decision = domain.RefusedRequest(reason=domain.RefusalReason.REQUESTED)
            call = _new_call(received, decision)
            added[call.call_id] = call
            addresses[call.call_id] = event.address
            if isinstance(decision, domain.AcceptedRequest):
                busy.add(event.visitor_id)
                self._ask_for_credit(ctx, received)
                tell(ctx, call, CallStatus.REQUESTED)
                ctx.count(topics.CALL_REQUEST, "accepted")
            else:
                tell(ctx, call, CallStatus.REFUSED, reason=decision.reason)
                ctx.count(topics.CALL_REQUEST, f"refused_{decision.reason}")
        await ctx.store.add_calls(list(added.values()), addresses)

    def _ask_for_credit(self, ctx: Context[Store], received: Received[CallRequestV1]) -> None:
        request = CreditRequestV1(
            reservation_id=received.event.call_id,
            visitor_id=received.event.visitor_id,
            operation=CreditOperation.RESERVE,
            wanted_ms=self._limits.talk_max_ms,
            lease_ms=self._limits.lease_ms,
        )
        ctx.outbox.add(topics.CREDIT_REQUEST, request, cause=received)

    async def on_credit_decisions(
        self, ctx: Context[Store], batch: Sequence[Received[CreditDecisionV1]]
    ) -> None:
        """Order the dialling of what was granted; refuse the rest."""
        calls = await ctx.store.calls(r.event.reservation_id for r in batch)
        granted = []
        refused = []
        for received in batch:
            event, call = received.event, calls.get(received.event.reservation_id)
            if call is None:
                ctx.dead_letter(received, "call_unknown")
            elif call.state in (State.ENDED, State.REFUSED):
                # hung up or given up before the answer came: give back what nobody will use
                if event.granted and call.reserved_ms is None:
                    self._give_back(ctx, received)
                ctx.count(topics.CREDIT_DECISION, "too_late")
            elif call.state is not State.REQUESTED:
                ctx.count(topics.CREDIT_DECISION, "duplicate")
            elif event.granted:
                assert event.lease_until is not None
                granted.append((call.call_id, event.reserved_ms, event.lease_until))
                calls[call.call_id] = replace(
                    call, state=State.RESERVED, reserved_ms=event.reserved_ms
                )
                tell(ctx, call, CallStatus.RESERVED, reserved_ms=event.reserved_ms)
                ctx.count(topics.CREDIT_DECISION, "granted")
            else:
                reason = event.reason or "no_credit"
                refused.append((call.call_id, reason))
                calls[call.call_id] = replace(call, state=State.REFUSED)
                tell(ctx, call, CallStatus.REFUSED, reason=reason)
                ctx.count(topics.CREDIT_DECISION, "refused")
        await ctx.store.grant(granted)
        await ctx.store.order("dial", [call_id for call_id, _, _ in granted], ctx.now)
        await ctx.store.refuse(refused)

    def _give_back(self, ctx: Context[Store], received: Received[CreditDecisionV1]) -> None:
        request = CreditRequestV1(
            reservation_id=received.event.reservation_id,
            visitor_id=received.event.visitor_id,
            operation=CreditOperation.RELEASE,
            wanted_ms=0,
            lease_ms=0,
        )
        ctx.outbox.add(topics.CREDIT_REQUEST, request, cause=received)

    async def on_call_commands(
        self, ctx: Context[Store], batch: Sequence[Received[CallCommandV1]]
    ) -> None:
        """Hang up: at once where nothing was dialled yet, else by order to the call's holder."""
        calls = await ctx.store.calls(r.event.call_id for r in batch)
        orders: list[UUID] = []
        early: list[UUID] = []
        for received in batch:
            call = calls.get(received.event.call_id)
            if call is None and self._may_come(received.event.call_id, ctx):
                # its request may still come: topics are not read in one order
                early.append(received.event.call_id)
                ctx.count(topics.CALL_COMMAND, "early")
            elif call is None or call.visitor_id != received.event.visitor_id:
                ctx.count(topics.CALL_COMMAND, "refused_not_your_call")
            elif call.state in (State.REFUSED, State.ENDED) or call.call_id in orders:
                ctx.count(topics.CALL_COMMAND, "too_late")
            elif call.state is State.REQUESTED:
                await ctx.store.end(_cancelled(call, received))
                calls[call.call_id] = replace(call, state=State.ENDED)
                tell(ctx, call, CallStatus.ENDED, reason=REASON_REQUESTED, talk_ms=0)
                ctx.count(topics.CALL_COMMAND, "cancelled")
            else:
                orders.append(call.call_id)
                ctx.count(topics.CALL_COMMAND, "ordered")
        await ctx.store.order("hang_up", orders, ctx.now)
        await ctx.store.note_early_hang_up(early, ctx.now)

    async def with_active_call(
        self, ctx: Context[Store], visitor_ids: Collection[UUID]
    ) -> set[UUID]:
        """Return those of the visitors whose call has not ended: its rows are in use."""
        return await ctx.store.visitors_with_active_call(visitor_ids)

    async def make_figures(self, ctx: Context[Store], _: Table, before_day: date) -> int:
        """Count what may be known of days for ever, before what it is counted from goes (R-C2).

        Calls and addresses are counted together, when the first of them goes; returns how many.
        """
        return await ctx.store.count_networks_before(before_day)

    def _may_come(self, call_id: UUID, ctx: Context[Store]) -> bool:
        """Whether a call's request may still be under way: its id is young enough to be dialled."""
        age = abs(ctx.now - domain.made_at(call_id))
        return age < self._limits.request_age_max


def tell(
    ctx: Context[Store],
    call: Call,
    status: CallStatus,
    *,
    reason: str | None = None,
    reserved_ms: int | None = None,
    talk_ms: int | None = None,
) -> None:
    """Enqueue a call's new status for the page."""
    event = CallStatusV1(
        call_id=call.call_id,
        visitor_id=call.visitor_id,
        status=status,
        reason=reason,
        reserved_ms=reserved_ms or call.reserved_ms,
        talk_ms=talk_ms,
        connected_at=call.connected_at,
    )
    ctx.outbox.add(topics.CALL_STATUS, event, cause=call, origin=call.requested_at)


def _request(received: Received[CallRequestV1]) -> domain.Request:
    event = received.event
    return domain.Request(
        call_id=event.call_id,
        visitor_id=event.visitor_id,
        callback_number=event.callback_number,
        destination_number=event.destination_number,
        at=received.time,
    )


def _new_call(received: Received[CallRequestV1], decision: domain.RequestDecision) -> Call:
    event = received.event
    call = Call(
        call_id=event.call_id,
        visitor_id=event.visitor_id,
        state=State.REQUESTED,
        traceparent=received.traceparent,
        requested_at=received.time,
    )
    if isinstance(decision, domain.RefusedRequest):
        # a refused number is not kept: nobody may dial it, and nobody needs it (R-C1)
        return replace(call, state=State.REFUSED, reason=decision.reason.value)
    return replace(
        call,
        callback_number=decision.callback_number,
        destination_number=decision.destination_number,
    )


def _cancelled(call: Call, received: Received[CallCommandV1]) -> End:
    return End(
        call_id=call.call_id,
        reason=REASON_REQUESTED,
        ended_by="platform",
        ended_at=received.time,
        talk_ms=0,
        overrun_ms=0,
    )
