"""Months, years and days against each row's own end, from 1990 to 2100 (R-D2, R-D5b, R-D6, R-D8).

Hypothesis picks instants; half of them lie at a seam: a change of Berlin's clocks, the turn of a
year or a month, 29 February.
"""

from datetime import UTC, date, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy.calendar import (
    BERLIN,
    DAY,
    AtOnce,
    Bound,
    CalendarYears,
    Months,
    Rolling,
    Rule,
    add_months,
    berlin_date,
    drop_before_day,
    due_at,
    goes_at,
    last_day_within,
    utc_date,
)

MARGIN = timedelta(hours=2)
MONTHS = st.sampled_from([1, 3, 6, 120])
DAYS = st.dates(date(1990, 1, 1), date(2100, 12, 31))
LIMITS: tuple[Rule, ...] = (
    Rolling(length=timedelta(days=7), margin=MARGIN),
    *(Months(months=n, bound=Bound.AT_MOST, margin=MARGIN) for n in (1, 3, 6, 120)),
)
DUTIES = tuple(Months(months=n, bound=Bound.AT_LEAST) for n in (1, 6, 120))
YEARS = tuple(CalendarYears(years=n) for n in (1, 3, 10))


def utc(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def clock_changes(year: int) -> list[datetime]:
    """Return the instants at which Berlin's clocks change: 01:00 UTC on Sundays (since 1996)."""
    changes = []
    for month, last in ((3, 31), (9, 30), (10, 31)):
        sunday = date(year, month, last)
        while sunday.weekday() != 6:
            sunday -= DAY
        changes.append(utc(sunday) + timedelta(hours=1))
    return changes


def seams(year: int) -> list[datetime]:
    berlin = [(1, 1), (2, 28), (3, 1), (5, 31), (8, 31), (12, 31)]
    midnights = [datetime(year, m, d, tzinfo=BERLIN).astimezone(UTC) for m, d in berlin]
    days = [utc(date(year, m, d)) for m, d in berlin]
    return [*midnights, *days, *clock_changes(year)]


SEAMS = st.builds(
    lambda at, offset: at + timedelta(microseconds=offset),
    st.integers(1990, 2100).map(seams).flatmap(st.sampled_from),
    st.one_of(st.integers(-1, 1), st.integers(-3 * 3600 * 10**6, 3 * 3600 * 10**6)),
)
INSTANTS = st.one_of(
    SEAMS,
    st.builds(
        lambda day, seconds: utc(day) + timedelta(seconds=seconds), DAYS, st.floats(0, 86399)
    ),
)


def test_the_seams_are_where_the_clocks_change():
    """The strategy aims at what it says: a change of offset, twice in 2026."""
    jumps = [
        at
        for at in clock_changes(2026)
        if at.astimezone(BERLIN).utcoffset()
        != (at - timedelta(seconds=1)).astimezone(BERLIN).utcoffset()
    ]
    assert jumps == [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("day", "months", "end"),
    [
        ("2026-11-22", 3, "2027-02-22"),
        ("2026-11-30", 3, "2027-02-28"),
        ("2027-11-30", 3, "2028-02-29"),
        ("2026-08-31", 6, "2027-02-28"),
        ("2028-02-29", 12, "2029-02-28"),
        ("2028-02-29", 120, "2038-02-28"),
        ("2028-02-29", 48, "2032-02-29"),
        ("2026-12-31", 1, "2027-01-31"),
        ("2099-11-30", 3, "2100-02-28"),
        ("2027-01-31", -2, "2026-11-30"),
    ],
)
def test_months_end_with_the_day_of_the_same_number_or_the_months_last(day, months, end):
    """R-D2, R-D5b, R-D6, R-D8; section 188 BGB."""
    assert add_months(date.fromisoformat(day), months) == date.fromisoformat(end)


@given(earlier=DAYS, later=DAYS, months=MONTHS)
def test_months_keep_the_order_of_days(earlier, later, months):
    """R-D9: who began first is never due last."""
    earlier, later = sorted((earlier, later))
    assert add_months(earlier, months) <= add_months(later, months)


@given(day=DAYS, months=MONTHS)
def test_months_back_find_the_last_day_that_leads_no_further(day, months):
    """R-D9: the inverse that partitions go by, 28 to 31 January to one 28 February among it."""
    found = last_day_within(months, day)
    assert add_months(found, months) <= day < add_months(found + DAY, months)


@pytest.mark.parametrize(
    ("start", "bound", "end"),
    [
        # 23:30 UTC is the next day in Berlin
        ("2026-08-30T22:30:00+00:00", Bound.AT_MOST, "2026-11-29T23:00:00+00:00"),
        ("2026-08-30T22:30:00+00:00", Bound.AT_LEAST, "2026-11-30T23:00:00+00:00"),
        # the period runs over the change to winter time, and ends at a Berlin midnight
        ("2026-09-15T10:00:00+02:00", Bound.AT_MOST, "2026-12-15T00:00:00+01:00"),
        # into the change to summer time: the day has 23 hours
        ("2026-12-29T12:00:00+01:00", Bound.AT_MOST, "2027-03-29T00:00:00+02:00"),
        ("2026-12-28T12:00:00+01:00", Bound.AT_MOST, "2027-03-28T00:00:00+01:00"),
        ("2026-12-28T12:00:00+01:00", Bound.AT_LEAST, "2027-03-29T00:00:00+02:00"),
    ],
)
def test_three_months_end_at_midnight_in_berlin(start, bound, end):
    """R-D2, R-D8, R-D9: a limit where its last day begins, a duty to keep where it ends."""
    found = due_at(Months(months=3, bound=bound), datetime.fromisoformat(start))
    assert found == datetime.fromisoformat(end)


@given(start=INSTANTS, months=MONTHS)
def test_a_limit_is_never_later_and_a_duty_never_earlier_than_the_law(start, months):
    """R-D6, R-D8: section 188 BGB ends the period at the end of its last day."""
    last_day = add_months(berlin_date(start), months)
    law = datetime.combine(last_day + DAY, time(), BERLIN)
    limit = due_at(Months(months=months, bound=Bound.AT_MOST), start)
    duty = due_at(Months(months=months, bound=Bound.AT_LEAST), start)
    assert start < limit < law
    assert duty == law
    assert berlin_date(limit) == last_day


def is_dropped(rule: Rule, start: datetime, as_of: datetime) -> bool:
    """Whether the partition that holds a row has gone at an instant."""
    day = berlin_date(start) if isinstance(rule, CalendarYears) else utc_date(start)
    return day < drop_before_day(rule, as_of)


@pytest.mark.parametrize("rule", LIMITS, ids=str)
@given(start=INSTANTS)
def test_a_partition_goes_no_later_than_its_first_row_is_due_less_the_margin(rule, start):
    """R-D2, R-D5, R-D5b, R-D8: and not a moment before, so that no row goes a day early."""
    first = utc(utc_date(start))
    at = due_at(rule, first) - MARGIN
    assert is_dropped(rule, start, at)
    assert not is_dropped(rule, start, at - timedelta(microseconds=1))
    # each row of the day, so also this one, is gone before its own limit
    assert at <= due_at(rule, start) - MARGIN


@pytest.mark.parametrize("rule", DUTIES, ids=str)
@given(start=INSTANTS)
def test_a_partition_is_kept_until_its_last_row_may_go(rule, start):
    """R-D6: a block is never shorter than the law's minimum, and no day longer than it must be."""
    last = utc(utc_date(start) + DAY) - timedelta(microseconds=1)
    at = due_at(rule, last)
    assert not is_dropped(rule, start, at - timedelta(microseconds=1))
    assert is_dropped(rule, start, at)
    assert at >= due_at(rule, start)


@pytest.mark.parametrize("rule", YEARS, ids=str)
@given(start=INSTANTS)
def test_a_year_is_kept_to_the_moment_and_no_longer(rule, start):
    """R-D6, R-D10: limit and minimum are one, for whole years have one end."""
    at = due_at(rule, start)
    assert is_dropped(rule, start, at)
    assert not is_dropped(rule, start, at - timedelta(microseconds=1))


@pytest.mark.parametrize("rule", [*LIMITS, *DUTIES, *YEARS, AtOnce()], ids=str)
@given(start=INSTANTS)
def test_the_moment_that_a_partition_goes_is_told_as_it_is_done(rule, start):
    """R-D9: what a person is told, and what a sweep drops, are one."""
    at = goes_at(rule, start)
    assert is_dropped(rule, start, at)
    assert not is_dropped(rule, start, at - timedelta(microseconds=1))
    if rule in LIMITS:
        assert at <= due_at(rule, start) - MARGIN


@given(start=INSTANTS, later=st.timedeltas(timedelta(0), timedelta(days=400)))
def test_nothing_is_kept_at_once(start, later):
    """R-D2, R-D7: what the start finds is due, the day under way included; never the next day's."""
    assert due_at(AtOnce(), start) == start
    assert is_dropped(AtOnce(), start, start + later)
    assert not is_dropped(AtOnce(), utc(utc_date(start) + DAY), start)


@pytest.mark.parametrize("rule", [*LIMITS, *DUTIES, *YEARS, AtOnce()], ids=str)
@given(earlier=INSTANTS, later=INSTANTS)
def test_time_only_ever_drops_more(rule, earlier, later):
    """D1."""
    earlier, later = sorted((earlier, later))
    assert drop_before_day(rule, earlier) <= drop_before_day(rule, later)


@pytest.mark.parametrize(
    "wrong",
    [
        {"months": 0, "bound": Bound.AT_MOST},
        {"months": 3, "bound": Bound.AT_LEAST, "margin": MARGIN},
        {"months": 3, "bound": Bound.AT_MOST, "margin": -MARGIN},
    ],
    ids=["no_months", "a_duty_with_a_margin", "a_negative_margin"],
)
def test_a_rule_that_means_nothing_cannot_be_made(wrong):
    """R-D6: a margin would shorten a duty to keep."""
    with pytest.raises(AssertionError):
        Months(**wrong)
