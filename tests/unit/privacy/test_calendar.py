"""Calendar arithmetic of the retention rules (R-D5, R-D9, R-D10)."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy.calendar import (
    BERLIN,
    CalendarYears,
    Rolling,
    berlin_date,
    drop_before_day,
    end_of_calendar_years_after,
    utc_date,
)

WEEK = Rolling(length=timedelta(days=7), margin=timedelta(hours=2))
THREE_YEARS = CalendarYears(years=3)
INSTANTS = st.integers(
    int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()),
    int(datetime(2090, 1, 1, tzinfo=UTC).timestamp()),
).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@pytest.mark.parametrize(
    ("as_of", "before_day"),
    [
        ("2026-11-29T21:59:59.999999+00:00", date(2026, 11, 23)),
        ("2026-11-29T22:00:00+00:00", date(2026, 11, 24)),
        ("2026-11-30T00:00:00+00:00", date(2026, 11, 24)),
        ("2026-11-29T23:00:00+01:00", date(2026, 11, 24)),
        ("2024-03-07T21:00:00+00:00", date(2024, 3, 1)),
    ],
    ids=["just_before_the_margin", "at_the_margin", "midnight", "other_offset", "leap_day"],
)
def test_a_day_is_due_two_hours_before_its_first_row_is_a_week_old(as_of, before_day):
    """R-D5."""
    assert drop_before_day(WEEK, datetime.fromisoformat(as_of)) == before_day


@given(as_of=INSTANTS)
def test_no_row_that_stays_reaches_its_limit_within_the_margin(as_of):
    """R-D5, D1: the oldest row that may stay is younger than the limit by more than the margin."""
    oldest_that_stays = midnight(drop_before_day(WEEK, as_of))
    assert oldest_that_stays + WEEK.length > as_of + WEEK.margin


@given(as_of=INSTANTS)
def test_no_day_is_dropped_before_it_is_due(as_of):
    """R-D9: the last day that goes has its first row at the limit, less the margin, or older."""
    last_that_goes = midnight(drop_before_day(WEEK, as_of) - timedelta(days=1))
    assert last_that_goes + WEEK.length - WEEK.margin <= as_of


@given(earlier=INSTANTS, later=INSTANTS)
def test_a_later_sweep_never_keeps_more(earlier, later):
    """D1."""
    earlier, later = sorted((earlier, later))
    for rule in (WEEK, THREE_YEARS):
        assert drop_before_day(rule, earlier) <= drop_before_day(rule, later)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-22T12:00:00+00:00", "2029-12-31T23:00:00+00:00"),
        ("2026-12-31T22:59:59+00:00", "2029-12-31T23:00:00+00:00"),
        ("2026-12-31T23:00:00+00:00", "2030-12-31T23:00:00+00:00"),
        ("2024-02-29T00:00:00+00:00", "2027-12-31T23:00:00+00:00"),
    ],
    ids=["in_the_year", "last_second_in_berlin", "new_year_in_berlin", "leap_day"],
)
def test_the_third_calendar_year_ends_in_berlin(start, end):
    """R-D9, R-D10."""
    found = end_of_calendar_years_after(datetime.fromisoformat(start), 3)
    assert found == datetime.fromisoformat(end)


@given(start=INSTANTS, years=st.integers(1, 10))
def test_a_calendar_period_is_longer_than_its_years_and_at_most_one_more(start, years):
    """R-D10."""
    end = end_of_calendar_years_after(start, years).astimezone(BERLIN)
    assert (end.month, end.day, end.hour, end.minute, end.second) == (1, 1, 0, 0, 0)
    assert start.astimezone(BERLIN).year + years + 1 == end.year


@given(start=INSTANTS, as_of=INSTANTS)
def test_a_year_goes_exactly_when_the_calendar_period_of_its_rows_has_ended(start, as_of):
    """R-D10: dropping whole years by `drop_before_day` agrees with each row's own end."""
    is_dropped = berlin_date(start) < drop_before_day(THREE_YEARS, as_of)
    assert is_dropped == (as_of >= end_of_calendar_years_after(start, 3))


def test_days_are_utc_and_calendar_dates_are_berlins():
    """R-D9."""
    instant = datetime(2026, 7, 1, 22, 30, tzinfo=UTC)
    assert utc_date(instant) == date(2026, 7, 1)
    assert berlin_date(instant) == date(2026, 7, 2)
