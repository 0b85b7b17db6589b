"""When a record that another system keeps is to be blocked or deleted: pure.

A record has no partition and no age that we could see: what its holder tells of it is all we know.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from schemas.record import Happening
from schemas.retention import DataKind, DocumentClass
from services.privacy import calendar
from services.privacy.declare import PeriodStart
from services.retention.schedule import DocumentsPeriod, ExceptionName, Rule, Schedule

STARTS = {
    PeriodStart.CONTRACT_END: Happening.CONTRACT_ENDED,
    PeriodStart.INVOICE_SENT: Happening.INVOICE_SENT,
    PeriodStart.PURPOSE_FULFILLED: Happening.PURPOSE_FULFILLED,
    PeriodStart.REJECTION_ANNOUNCED: Happening.REJECTION_ANNOUNCED,
    PeriodStart.BLOCK_LIFTED: Happening.BLOCK_LIFTED,
}
"""By which word of its holder a record's period starts."""

EXCEPTIONS = {
    ExceptionName.LEGAL_HOLD: (Happening.HOLD_PLACED, Happening.HOLD_RELEASED),
    ExceptionName.OBJECTION_OPEN: (Happening.OBJECTION_OPENED, Happening.OBJECTION_CLOSED),
    ExceptionName.PROCEEDING_OPEN: (Happening.PROCEEDING_OPENED, Happening.PROCEEDING_CLOSED),
    ExceptionName.TAX_ASSESSMENT_OPEN: (
        Happening.TAX_ASSESSMENT_OPENED,
        Happening.TAX_ASSESSMENT_CLOSED,
    ),
}
"""With which words an exception begins and ends."""


class Deed(StrEnum):
    """What is done with a record."""

    BLOCK = "block"
    DELETE = "delete"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What never changes about a record."""

    record_id: UUID
    kind: DataKind
    document_class: DocumentClass | None
    holder: str


@dataclass(frozen=True, kw_only=True)
class Happened:
    """One thing that was told of a record. Natural key: `event_id`."""

    event_id: UUID
    happened: Happening
    happened_on: date


@dataclass(frozen=True, kw_only=True)
class History:
    """A record with all that was told of it, in the order of its telling."""

    record: Record
    events: tuple[Happened, ...]

    def last(self, happened: Happening) -> date | None:
        """Return the date of something by the last word on it."""
        dates = [event.happened_on for event in self.events if event.happened is happened]
        return dates[-1] if dates else None

    def count(self, happened: Happening) -> int:
        """Return how often something was told."""
        return sum(event.happened is happened for event in self.events)


@dataclass(frozen=True, kw_only=True)
class DueDeed:
    """A deed, from when on it is due, and by which rule."""

    record_id: UUID
    deed: Deed
    due_at: datetime
    requirement: str


def open_exceptions(rule: Rule, history: History) -> tuple[ExceptionName, ...]:
    """Return why a record may outlive its period now: what was opened more often than closed.

    Counted, because two proceedings may concern one record: the end of one frees nothing.
    """
    return tuple(
        name
        for name in rule.exceptions
        if history.count(EXCEPTIONS[name][0]) > history.count(EXCEPTIONS[name][1])
    )


def deeds(schedule: Schedule, history: History, day: date) -> tuple[DueDeed, ...]:
    """Return what is to be done with a record, and when, by the rule in force on a Berlin date.

    Nothing while its period has not started. An exception stops the deletion, not the block, and
    never shifts the period: what fell due meanwhile is due when the exception ends.
    """
    rule = schedule.rule_on(history.record.kind, day)
    start = history.last(STARTS[rule.period_start])
    if start is None:
        return ()
    arithmetic = schedule.arithmetic(rule, day)
    assert arithmetic is not None
    end = calendar.due_at(arithmetic, calendar.midnight_in_berlin(start))
    delete_at = max(end, _kept_until(rule, history, start) or end)
    found = [(Deed.BLOCK, end)] if delete_at > end else []
    if not open_exceptions(rule, history):
        found.append((Deed.DELETE, delete_at))
    return tuple(
        DueDeed(
            record_id=history.record.record_id,
            deed=deed,
            due_at=due_at,
            requirement=rule.requirement,
        )
        for deed, due_at in found
    )


def _kept_until(rule: Rule, history: History, contract_ended_on: date) -> datetime | None:
    """Return until when the law keeps a document; None for what is none.

    Of a document whose day nobody told, the contract's end counts: hardly one is made later.
    """
    document_class = history.record.document_class
    if not isinstance(rule.period, DocumentsPeriod) or document_class is None:
        return None
    made_on = history.last(Happening.DOCUMENT_MADE) or contract_ended_on
    years = calendar.CalendarYears(years=rule.period.keep_calendar_years[document_class])
    return calendar.due_at(years, calendar.midnight_in_berlin(made_on))


def due_records(schedule: Schedule, histories: Iterable[History], as_of: datetime) -> list[DueDeed]:
    """Return what must have been ordered at an instant, at most one deed a record."""
    found: list[DueDeed] = []
    for history in histories:
        due = [
            deed
            for deed in deeds(schedule, history, calendar.berlin_date(as_of))
            if deed.due_at <= as_of
        ]
        # what must go needs no blocking any more; the deletion is the last of the deeds
        found.extend(due[-1:])
    return found


def at(found: Sequence[DueDeed], deed: Deed) -> datetime | None:
    """Return when a deed is due, if it is to be done at all."""
    return next((entry.due_at for entry in found if entry.deed is deed), None)
