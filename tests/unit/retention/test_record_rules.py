"""When records of other systems are due: by what their holders told, and by nothing else."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.record import FITTING, Happening
from schemas.retention import RECORD_KINDS, DataKind, DocumentClass
from services.chassis.ids import TimeOrderedIds
from services.privacy.calendar import BERLIN, add_months
from services.retention.record_rules import (
    EXCEPTIONS,
    STARTS,
    Deed,
    Happened,
    History,
    Record,
    deeds,
    due_records,
)
from services.retention.schedule import DeletedBy, ExceptionName, load
from services.retention.settings import DEFAULT_SCHEDULE

SCHEDULE = load(DEFAULT_SCHEDULE)
IDS = TimeOrderedIds()
NOW = date(2026, 11, 23)
DAYS = st.dates(date(2005, 1, 1), date(2060, 12, 31))


def history(kind: DataKind, *told: tuple[Happening, date], **fields: Any) -> History:
    return History(
        record=Record(
            record_id=IDS.new(),
            kind=kind,
            holder="crm",
            document_class=fields.get("document_class"),
        ),
        events=tuple(
            Happened(event_id=IDS.new(), happened=happened, happened_on=day)
            for happened, day in told
        ),
    )


def berlin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=BERLIN)


def found(told: History, day: date = NOW) -> dict[Deed, datetime]:
    return {entry.deed: entry.due_at for entry in deeds(SCHEDULE, told, day)}


def contract(document_class: DocumentClass, made: date | None, ended: date | None) -> History:
    told = []
    if made is not None:
        told.append((Happening.DOCUMENT_MADE, made))
    if ended is not None:
        told.append((Happening.CONTRACT_ENDED, ended))
    return history(DataKind.CONTRACT, *told, document_class=document_class)


@pytest.mark.parametrize(
    ("document_class", "made", "ended", "block", "delete"),
    [
        # ended in 2024: blocked with 2026; a voucher of 2023 is kept for 8 years
        ("booking_voucher", date(2023, 5, 1), date(2024, 3, 31), 2026, 2032),
        ("books", date(2023, 5, 1), date(2024, 3, 31), 2026, 2034),
        ("business_letter", date(2023, 5, 1), date(2024, 3, 31), 2026, 2030),
        # the law's years are over before the contract's: nothing to block, gone with the latter
        ("business_letter", date(2015, 5, 1), date(2024, 3, 31), None, 2026),
        # nobody told when it was made: as if at the contract's end
        ("booking_voucher", None, date(2024, 3, 31), 2026, 2033),
        # 31 December in Berlin belongs to its year
        ("books", date(2024, 12, 31), date(2024, 12, 31), 2026, 2035),
    ],
)
def test_a_contracts_document_is_blocked_and_then_deleted(
    document_class, made, ended, block, delete
):
    """R-D6: the calendar year after the contract's end, then by the years of its class."""
    told = contract(DocumentClass(document_class), made, ended)
    expected = {Deed.DELETE: berlin(date(delete, 1, 1))}
    if block is not None:
        expected[Deed.BLOCK] = berlin(date(block, 1, 1))
    assert found(told) == expected


def test_vouchers_are_kept_by_the_law_of_the_day():
    """R-D6, R-D9: 10 years by the rule of 2024, 8 by that of 2025 (BEG IV), old ones included."""
    told = contract(DocumentClass.BOOKING_VOUCHER, date(2015, 5, 1), date(2016, 5, 1))
    assert found(told, date(2024, 12, 31))[Deed.DELETE] == berlin(date(2026, 1, 1))
    assert found(told, date(2025, 1, 1))[Deed.DELETE] == berlin(date(2024, 1, 1))


def test_what_goes_on_is_not_due():
    """R-D6, R-D7: no contract's end, no invoice, no rejection: no period."""
    for kind in RECORD_KINDS:
        assert found(history(kind)) == {}
    assert found(contract(DocumentClass.BOOKS, date(2005, 1, 1), None)) == {}


@pytest.mark.parametrize(
    ("kind", "start", "day", "due"),
    [
        ("paid_traffic", "invoice_sent", date(2026, 8, 31), date(2027, 2, 28)),
        ("paid_traffic", "invoice_sent", date(2027, 8, 31), date(2028, 2, 29)),
        ("application", "rejection_announced", date(2026, 11, 30), date(2027, 2, 28)),
        ("contact", "purpose_fulfilled", date(2026, 11, 20), date(2026, 11, 20)),
        ("block_list", "block_lifted", date(2026, 11, 20), date(2026, 11, 20)),
    ],
)
def test_a_single_record_is_deleted_when_its_period_ends(kind, start, day, due):
    """R-D5b, R-D7, R-D8, R-D10: counted in Berlin, by calendar months."""
    told = history(DataKind(kind), (Happening(start), day))
    assert found(told) == {Deed.DELETE: berlin(due)}


@pytest.mark.parametrize(
    ("kind", "start", "opened", "closed"),
    [
        ("paid_traffic", "invoice_sent", "objection_opened", "objection_closed"),
        ("application", "rejection_announced", "proceeding_opened", "proceeding_closed"),
        ("contact", "purpose_fulfilled", "hold_placed", "hold_released"),
    ],
)
def test_an_exception_pauses_and_never_lengthens(kind, start, opened, closed):
    """R-D3, R-D5b, R-D8: at its end what fell due meanwhile is due; two of them end with both."""
    day = date(2026, 1, 15)
    told = [(Happening(start), day), (Happening(opened), day + timedelta(days=3))]
    before = found(history(DataKind(kind), told[0]))
    assert found(history(DataKind(kind), *told)) == {}
    twice = [*told, told[1], (Happening(closed), NOW)]
    assert found(history(DataKind(kind), *twice)) == {}
    assert found(history(DataKind(kind), *twice, (Happening(closed), NOW))) == before


def test_a_tax_assessment_stops_the_deletion_and_not_the_block():
    """R-D6: section 147 (3) AO; who needs no access has none meanwhile."""
    told = contract(DocumentClass.BUSINESS_LETTER, date(2015, 5, 1), date(2015, 5, 1))
    letter = history(
        DataKind.CONTRACT,
        (Happening.DOCUMENT_MADE, date(2023, 5, 1)),
        (Happening.CONTRACT_ENDED, date(2023, 5, 1)),
        (Happening.TAX_ASSESSMENT_OPENED, date(2024, 1, 1)),
        document_class=DocumentClass.BUSINESS_LETTER,
    )
    assert set(found(told)) == {Deed.BLOCK, Deed.DELETE}
    assert set(found(letter)) == {Deed.BLOCK}


def test_the_later_word_counts():
    """R-D6: a contract that was prolonged ends on the day told last, also when that is earlier."""
    ends = [(Happening.CONTRACT_ENDED, date(year, 6, 1)) for year in (2024, 2026, 2025)]
    told = history(DataKind.CONTRACT, *ends, document_class=DocumentClass.BOOKS)
    assert found(told)[Deed.BLOCK] == berlin(date(2027, 1, 1))


def test_what_is_due_is_ordered_once_and_the_deletion_wins():
    """R-D6, R-D9: a deed a record; who must be deleted needs no blocking any more."""
    gone = contract(DocumentClass.BUSINESS_LETTER, date(2010, 1, 1), date(2012, 1, 1))
    blocked = contract(DocumentClass.BOOKS, date(2023, 1, 1), date(2023, 1, 1))
    kept = contract(DocumentClass.BOOKS, date(2023, 1, 1), date(2025, 6, 1))
    contact = history(DataKind.CONTACT, (Happening.PURPOSE_FULFILLED, NOW))
    due = due_records(SCHEDULE, [gone, blocked, kept, contact], datetime(2026, 11, 23, tzinfo=UTC))
    assert [(entry.record_id, entry.deed, entry.requirement) for entry in due] == [
        (gone.record.record_id, Deed.DELETE, "R-D6"),
        (blocked.record.record_id, Deed.BLOCK, "R-D6"),
        (contact.record.record_id, Deed.DELETE, "R-D7"),
    ]


def test_every_kind_has_the_words_that_its_rules_need():
    """R-D5b to R-D8: each start and each exception can be told of its kind."""
    for rule in SCHEDULE.rules:
        if rule.deleted_by is DeletedBy.HOLDERS:
            words = {STARTS[rule.period_start]}
            for name in rule.exceptions:
                words |= set(EXCEPTIONS[name])
            assert words <= FITTING[rule.kind], rule.kind
    assert set(EXCEPTIONS) == set(ExceptionName) - {ExceptionName.RESTRICTION}


# ------------------------------------------------------------------ properties

KINDS = st.sampled_from(sorted(RECORD_KINDS))
CLASSES = st.sampled_from(DocumentClass)


@st.composite
def told_histories(draw: st.DrawFn) -> History:
    kind = draw(KINDS)
    words = st.tuples(st.sampled_from(sorted(FITTING[kind])), DAYS)
    document_class = draw(CLASSES) if kind is DataKind.CONTRACT else None
    return history(kind, *draw(st.lists(words, max_size=6)), document_class=document_class)


@given(told=told_histories(), day=st.dates(date(2021, 12, 1), date(2060, 1, 1)))
def test_no_deed_is_later_than_section_d_allows(told, day):
    """R-D5b to R-D8: whatever was told in whatever order; nothing is blocked after its deletion."""
    due = {entry.deed: entry.due_at for entry in deeds(SCHEDULE, told, day)}
    if not due:
        return
    start = told.last(STARTS[SCHEDULE.rule_on(told.record.kind, day).period_start])
    assert start is not None
    limits = {
        DataKind.PAID_TRAFFIC: add_months(start, 6),
        DataKind.APPLICATION: add_months(start, 3),
        DataKind.CONTACT: start,
        DataKind.BLOCK_LIST: start,
        DataKind.CONTRACT: date(
            max(start, told.last(Happening.DOCUMENT_MADE) or start).year + 11, 1, 1
        ),
    }
    assert max(due.values()) <= berlin(limits[told.record.kind])
    if len(due) > 1:
        assert due[Deed.BLOCK] < due[Deed.DELETE]
    if told.record.kind is not DataKind.CONTRACT:
        assert set(due) == {Deed.DELETE}


@given(
    told=told_histories(),
    start=st.dates(date(2025, 1, 2), date(2070, 1, 1)),
    days=st.integers(0, 4000),
)
def test_time_makes_only_more_due(told, start, days):
    """D1, R-D9: what is due stays due, and a block becomes a deletion, never the reverse."""
    first = due_records(SCHEDULE, [told], berlin(start))
    later = due_records(SCHEDULE, [told], berlin(start + timedelta(days=days)))
    assert len(first) <= len(later) <= 1
    if first and first[0].deed is Deed.DELETE:
        assert later == first
