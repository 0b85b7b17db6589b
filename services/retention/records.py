"""Records that other systems keep: takes what is told of them, and orders their holders (R-D6)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from uuid import UUID

from schemas import topics
from schemas.record import Happening, RecordV1
from schemas.retention import (
    RECORD_KINDS,
    RECORDS_MAX,
    DataKind,
    DocumentClass,
    RetentionAction,
    RetentionOrderV1,
)
from services.chassis.context import Context
from services.chassis.received import Received
from services.privacy import calendar
from services.retention import record_rules
from services.retention.domain import Order
from services.retention.holders import HolderRegister, judge_record
from services.retention.record_rules import Deed, DueDeed, Happened, History, Record
from services.retention.record_store import DueRow, EventRow, RecordRow
from services.retention.schedule import Schedule
from services.retention.store import Store

REPEAT_AFTER = timedelta(days=20)
"""An order lives 30 days on its topic: who has not answered by then gets another."""
OVERDUE_AFTER = timedelta(days=1)
"""Silence of a holder for longer than this is an alarm: people may work there, not services."""
_STALE_AT_ONCE = 1000

_ACTIONS = {Deed.BLOCK: RetentionAction.RESTRICT, Deed.DELETE: RetentionAction.DROP}


class Refusal(StrEnum):
    """Why something told of a record is not taken, though its holder said it (`holders.py`)."""

    RECORD_DIFFERS = "record_differs"


class Records:
    """Takes what holders tell; when their records are due follows from the schedule."""

    def __init__(self, schedule: Schedule, holders: HolderRegister) -> None:
        """Take the schedule in force, and who may tell."""
        self._schedule = schedule
        self._holders = holders

    async def on_records(self, ctx: Context[Store], batch: Sequence[Received[RecordV1]]) -> None:
        """Keep what was told and compute anew when its records are due.

        What its holder did not sign, and a record that is not what it was before, is
        dead-lettered: an order for it might never be carried out.
        """
        await ctx.store.lock()
        known = await ctx.store.records.known({received.event.record_id for received in batch})
        new: list[RecordRow] = []
        events: list[EventRow] = []
        for received in batch:
            row = _row(received.event)
            refusal = judge_record(self._holders, received.event, received.id, ctx.now) or _refuse(
                row, known.get(row.record_id)
            )
            if refusal is not None:
                ctx.dead_letter(received, refusal.value)
                continue
            if row.record_id not in known:
                known[row.record_id] = row
                new.append(row)
            events.append(_event(received))
        await ctx.store.records.save(new, ctx.now)
        n_new = await ctx.store.records.save_events(events, ctx.now)
        await compute(ctx, self._schedule, {event.record_id for event in events}, ctx.now)
        ctx.count(topics.RECORD, "new", n_new)
        ctx.count(topics.RECORD, "repeated", len(events) - n_new)


def _refuse(row: RecordRow, known: RecordRow | None) -> Refusal | None:
    if known is not None and known != row:
        return Refusal.RECORD_DIFFERS
    return None


async def histories(ctx: Context[Store], record_ids: Collection[UUID]) -> list[History]:
    """Return records with all that was told of them; unknown ids are left out."""
    return histories_of(
        await ctx.store.records.known(record_ids), await ctx.store.records.events(record_ids)
    )


def histories_of(
    rows: Mapping[UUID, RecordRow], events: Mapping[UUID, Sequence[EventRow]]
) -> list[History]:
    """Return rows of the database as what the rules work on."""
    return [
        History(
            record=Record(
                record_id=row.record_id,
                kind=DataKind(row.kind),
                document_class=DocumentClass(row.document_class) if row.document_class else None,
                holder=row.holder,
            ),
            events=tuple(
                Happened(
                    event_id=event.event_id,
                    happened=Happening(event.happened),
                    happened_on=event.happened_on,
                )
                for event in events.get(row.record_id, ())
            ),
        )
        for row in rows.values()
    ]


async def compute(
    ctx: Context[Store], schedule: Schedule, record_ids: Collection[UUID], as_of: datetime
) -> None:
    """Write anew when records are due, by the rules in force at an instant."""
    day = calendar.berlin_date(as_of)
    dues = []
    for history in await histories(ctx, record_ids):
        found = record_rules.deeds(schedule, history, day)
        dues.append(
            DueRow(
                record_id=history.record.record_id,
                block_at=record_rules.at(found, Deed.BLOCK),
                delete_at=record_rules.at(found, Deed.DELETE),
                rule_from=schedule.rule_on(history.record.kind, day).valid_from,
                schedule_version=schedule.version,
            )
        )
    await ctx.store.records.save_dues(dues, ctx.now)


async def issue_due(
    ctx: Context[Store],
    schedule: Schedule,
    as_of: datetime,
    sweep_id: UUID,
) -> int:
    """Order the holders of all records that are due at an instant; return how many orders.

    Part of a sweep, in its transaction and under its lock.
    """
    await ctx.store.records.forget_deleted()
    await ctx.store.records.drop(schedule.evidence_before(as_of))
    await _compute_stale(ctx, schedule, as_of)
    candidates = await ctx.store.records.unordered(as_of, ctx.now - REPEAT_AFTER)
    known = {history.record.record_id: history for history in await histories(ctx, candidates)}
    due = record_rules.due_records(schedule, known.values(), as_of)
    n_orders = 0
    for (holder, kind, deed, requirement), found in _by_order(due, known):
        order = Order(
            order_id=ctx.ids.new(),
            kind=kind,
            requirement=requirement,
            before_day=calendar.berlin_date(as_of) + calendar.DAY,
            attempt=0,
            as_of=as_of,
            issued_at=ctx.now,
            overdue_at=ctx.now + OVERDUE_AFTER,
            expected=(holder,),
            action=_ACTIONS[deed].value,
        )
        await _issue(ctx, sweep_id, order, deed, [entry.record_id for entry in found])
        n_orders += 1
    return n_orders


async def _issue(
    ctx: Context[Store], sweep_id: UUID, order: Order, deed: Deed, record_ids: list[UUID]
) -> None:
    attempt = await ctx.store.records.next_attempt(order.kind, order.before_day)
    order = replace(order, attempt=attempt)
    await ctx.store.save_order(order)
    await ctx.store.records.save_order(order.order_id, record_ids, deed.value)
    await ctx.store.link(sweep_id, order.order_id, is_new=True)
    ctx.outbox.add(
        topics.RETENTION_ORDER,
        RetentionOrderV1(
            order_id=order.order_id,
            kind=DataKind(order.kind),
            action=_ACTIONS[deed],
            before_day=order.before_day,
            as_of=order.as_of,
            record_ids=tuple(record_ids),
            holder=order.expected[0],
        ),
    )


async def _compute_stale(ctx: Context[Store], schedule: Schedule, as_of: datetime) -> None:
    """Compute anew what was computed by a rule that is no longer the one in force."""
    day = calendar.berlin_date(as_of)
    rules_from = {
        kind.value: schedule.rule_on(kind, day).valid_from for kind in sorted(RECORD_KINDS)
    }
    while stale := await ctx.store.records.stale(rules_from, schedule.version, _STALE_AT_ONCE):
        await compute(ctx, schedule, stale, as_of)


def _by_order(
    due: Sequence[DueDeed], known: dict[UUID, History]
) -> Iterator[tuple[tuple[str, str, Deed, str], list[DueDeed]]]:
    """Yield what fits into one order: one holder, kind and deed, and no more than it may name."""

    def head(entry: DueDeed) -> tuple[str, str, Deed, str]:
        record = known[entry.record_id].record
        return record.holder, record.kind.value, entry.deed, entry.requirement

    for key, group in groupby(sorted(due, key=head), key=head):
        found = list(group)
        for start in range(0, len(found), RECORDS_MAX):
            yield key, found[start : start + RECORDS_MAX]


def _row(event: RecordV1) -> RecordRow:
    return RecordRow(
        record_id=event.record_id,
        kind=event.kind.value,
        document_class=event.document_class and event.document_class.value,
        holder=event.holder,
    )


def _event(received: Received[RecordV1]) -> EventRow:
    return EventRow(
        event_id=received.id,
        record_id=received.event.record_id,
        happened=received.event.happened.value,
        happened_on=received.event.happened_on,
    )
