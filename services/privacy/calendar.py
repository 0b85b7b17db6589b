"""Calendar arithmetic of the retention rules: pure, no clock.

Partitions are UTC days, calendar rules count in Europe/Berlin (R-D9). Both meet here and nowhere
else.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import assert_never
from zoneinfo import ZoneInfo

BERLIN = ZoneInfo("Europe/Berlin")
DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Rolling:
    """A period of fixed length from each row's own start.

    Attributes:
        length: at this age a row must be gone.
        margin: room for the sweep's interval, the order's way and the drop itself.
    """

    length: timedelta
    margin: timedelta


@dataclass(frozen=True, kw_only=True)
class CalendarYears:
    """Until the end of the n-th calendar year (Berlin) after the one in which the start lies."""

    years: int


Rule = Rolling | CalendarYears


def drop_before_day(rule: Rule, as_of: datetime) -> date:
    """Return the first day that stays: every partition of a day before it is due at `as_of`.

    A rolling rule drops the UTC day D when D's first instant comes within `margin` of the limit,
    so that no row of D ever reaches it. A calendar rule's partitions are Berlin dates.

    Args:
        rule: what applies to the kind.
        as_of: aware instant, past or (in a simulation) future.
    """
    assert as_of.tzinfo is not None
    match rule:
        case Rolling(length=length, margin=margin):
            assert timedelta(0) <= margin < length
            return (as_of - length + margin).astimezone(UTC).date() + DAY
        case CalendarYears(years=years):
            assert years > 0
            return date(as_of.astimezone(BERLIN).year - years, 1, 1)
        case _:
            assert_never(rule)


def end_of_calendar_years_after(start: datetime, years: int) -> datetime:
    """Return the UTC instant at which the n-th calendar year (Berlin) after `start`'s ends.

    One year after any instant of 2026 is 1 January 2028, 00:00 in Berlin.
    """
    assert start.tzinfo is not None
    assert years > 0
    first_year_beyond = start.astimezone(BERLIN).year + years + 1
    return datetime(first_year_beyond, 1, 1, tzinfo=BERLIN).astimezone(UTC)


def berlin_date(instant: datetime) -> date:
    """Return the calendar date in Berlin at an aware instant."""
    assert instant.tzinfo is not None
    return instant.astimezone(BERLIN).date()


def utc_date(instant: datetime) -> date:
    """Return the UTC day in which an aware instant lies: its day partition."""
    assert instant.tzinfo is not None
    return instant.astimezone(UTC).date()
