"""A sweep: what is due as of an instant becomes orders, in one transaction with the outbox."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from schemas import topics
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from services.chassis.context import Context
from services.privacy import calendar
from services.retention import domain, records
from services.retention.domain import Order
from services.retention.schedule import Due, Schedule
from services.retention.store import Store


async def issue(
    ctx: Context[Store],
    schedule: Schedule,
    as_of: datetime,
    *,
    overdue_after: timedelta,
    again: bool = False,
    services: Collection[str] = topics.RETENTION_ORDER.consumers,
) -> UUID:
    """Write a sweep and the orders that are not issued yet; return the sweep's id.

    Args:
        ctx: one open transaction.
        schedule: what is due follows from it.
        as_of: an instant that `domain.refuse_as_of` lets pass.
        overdue_after: silence for longer than this is an alarm.
        again: issue also what was issued for the same cut before.
        services: who has to answer each order: all readers of the topic (D3).

    Raises:
        ScheduleError: the schedule has no rule for that day.
    """
    due = schedule.due(as_of)
    await ctx.store.lock()
    sweep_id = ctx.ids.new()
    await ctx.store.save_sweep(
        sweep_id=sweep_id, as_of=as_of, swept_at=ctx.now, schedule_version=schedule.version
    )
    for entry in due:
        earlier = await ctx.store.last_attempt(entry.kind.value, entry.before_day)
        if earlier is not None and not again and _stands_for(earlier, entry):
            await ctx.store.link(sweep_id, earlier.order_id, is_new=False)
            continue
        order = _order(ctx, entry, as_of, overdue_after, services)
        if earlier is not None:
            order = replace(order, attempt=earlier.attempt + 1)
        await ctx.store.save_order(order)
        await ctx.store.link(sweep_id, order.order_id, is_new=True)
        ctx.outbox.add(topics.RETENTION_ORDER, _to_wire(order))
    await ctx.store.evidence.drop(schedule.evidence_before(as_of))
    await records.issue_due(ctx, schedule, as_of, sweep_id)
    return sweep_id


def _stands_for(earlier: Order, due: Due) -> bool:
    """Whether an order of the same cut has taken all that is due now.

    One of a day under way has not: the rest of that day was still to come (a threat that began).
    """
    is_of_days_over = calendar.utc_date(earlier.as_of) >= due.before_day
    return is_of_days_over and not due.is_repeated


def _order(
    ctx: Context[Store],
    due: Due,
    as_of: datetime,
    overdue_after: timedelta,
    services: Collection[str],
) -> Order:
    return Order(
        order_id=ctx.ids.new(),
        kind=due.kind.value,
        requirement=due.requirement,
        before_day=due.before_day,
        attempt=0,
        as_of=as_of,
        issued_at=ctx.now,
        overdue_at=ctx.now + overdue_after,
        expected=domain.answerers(services, as_of=as_of, now=ctx.now),
        action=due.action.value,
    )


def _to_wire(order: Order) -> RetentionOrderV1:
    return RetentionOrderV1(
        order_id=order.order_id,
        kind=DataKind(order.kind),
        action=RetentionAction(order.action),
        before_day=order.before_day,
        as_of=order.as_of,
    )
