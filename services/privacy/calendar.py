"""Calendar arithmetic of the retention rules: pure, no clock.

Partitions are UTC days, calendar rules count in Europe/Berlin (R-D9). Both meet here and nowhere
else.

Which way each rule errs, because a partition has rows of a whole day and goes as one:

- `Rolling`, and `Months` as a limit, say by when a row must be gone. The first row of a partition
  decides: it goes at its limit less the margin, the later ones up to a day before theirs.
- `Months` as a minimum says until when a row must be kept (a block, a duty to keep). The last row
  decides: it goes when its period is over, the earlier ones up to a day after theirs.
- `AtOnce` says that nothing is kept beyond its use: the day under way goes too, with all its rows.
- `CalendarYears` is both: all rows of a Berlin year have one end, and the partition goes then.
"""

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import assert_never
from zoneinfo import ZoneInfo

BERLIN = ZoneInfo("Europe/Berlin")
DAY = timedelta(days=1)
_TICK = timedelta(microseconds=1)


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


class Bound(StrEnum):
    """What a period of months says."""

    AT_MOST = "at_most"
    """A limit: gone by then (R-D2, R-D5b, R-D8)."""
    AT_LEAST = "at_least"
    """A duty to keep: not gone before then (R-D6)."""


@dataclass(frozen=True, kw_only=True)
class Months:
    """So many calendar months (Berlin) from the day of each row's start.

    Months count days, not hours: the period ends with the day of the same number, or with the
    month's last day where there is none (section 188 BGB). A limit ends where that day begins,
    which is the stricter reading; a duty to keep ends where it ends.

    Attributes:
        margin: as in `Rolling`; a duty to keep has none.
    """

    months: int
    bound: Bound
    margin: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        assert self.months > 0
        assert timedelta(0) <= self.margin < DAY
        assert self.bound is Bound.AT_MOST or not self.margin


@dataclass(frozen=True, kw_only=True)
class AtOnce:
    """Nothing is kept: what the start finds is due (R-D2 without a threat, R-D7)."""


Rule = Rolling | Months | CalendarYears | AtOnce


def drop_before_day(rule: Rule, as_of: datetime) -> date:
    """Return the first day that stays: every partition of a day before it is due at `as_of`.

    A rolling rule drops the UTC day D when D's first instant comes within `margin` of the limit,
    so that no row of D ever reaches it; so does a limit of months. A duty to keep drops D when its
    last instant's period is over. The partitions of calendar years are Berlin dates.

    Args:
        rule: what applies to the kind.
        as_of: aware instant, past or (in a simulation) future.
    """
    assert as_of.tzinfo is not None
    match rule:
        case Rolling(length=length, margin=margin):
            assert timedelta(0) <= margin < length
            return (as_of - length + margin).astimezone(UTC).date() + DAY
        case Months(months=months, bound=bound, margin=margin):
            if bound is Bound.AT_MOST:
                # D begins in Berlin on D itself, an hour or two after midnight
                return last_day_within(months, berlin_date(as_of + margin)) + DAY
            # D ends in Berlin on the day after D, and that one's last day must be over
            return last_day_within(months, berlin_date(as_of) - DAY)
        case CalendarYears(years=years):
            assert years > 0
            return date(as_of.astimezone(BERLIN).year - years, 1, 1)
        case AtOnce():
            return utc_date(as_of) + DAY
        case _:
            assert_never(rule)


def due_at(rule: Rule, start: datetime) -> datetime:
    """Return the UTC instant at which the period of one row ends.

    For a limit the row must be gone by then; for a duty to keep it may go from then on.

    Args:
        start: aware instant from which the period counts.
    """
    assert start.tzinfo is not None
    match rule:
        case Rolling(length=length):
            return (start + length).astimezone(UTC)
        case Months(months=months, bound=bound):
            last_day = add_months(berlin_date(start), months)
            return midnight_in_berlin(last_day if bound is Bound.AT_MOST else last_day + DAY)
        case CalendarYears(years=years):
            return end_of_calendar_years_after(start, years)
        case AtOnce():
            return start.astimezone(UTC)
        case _:
            assert_never(rule)


def goes_at(rule: Rule, start: datetime) -> datetime:
    """Return the UTC instant from which a row's partition is due: the moment of `drop_before_day`.

    Args:
        start: aware instant from which the row's period counts.
    """
    first = datetime.combine(utc_date(start), time(), UTC)
    match rule:
        case Rolling(length=length, margin=margin):
            return first + length - margin
        case Months(bound=bound, margin=margin):
            is_limit = bound is Bound.AT_MOST
            # a limit looks at the day's first row, a duty to keep at its last
            return due_at(rule, first) - margin if is_limit else due_at(rule, first + DAY - _TICK)
        case CalendarYears():
            return due_at(rule, start)
        case AtOnce():
            return first
        case _:
            assert_never(rule)


def add_months(day: date, months: int) -> date:
    """Return the day of the same number so many months later (earlier, where negative).

    Where that month has no such day, its last one: 31 August and six months is the end of February.
    """
    year, month0 = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month0 + 1, min(day.day, monthrange(year, month0 + 1)[1]))


def last_day_within(months: int, day: date) -> date:
    """Return the last day from which so many months lead no further than `day`."""
    earlier = add_months(day, -months)
    # the days that a shorter month clamps all lead to its last one
    return _month_end(earlier) if day == _month_end(day) else earlier


def _month_end(day: date) -> date:
    return day.replace(day=monthrange(day.year, day.month)[1])


def midnight_in_berlin(day: date) -> datetime:
    """Return the UTC instant at which a calendar date begins in Berlin."""
    return datetime.combine(day, time(), BERLIN).astimezone(UTC)


def end_of_calendar_years_after(start: datetime, years: int) -> datetime:
    """Return the UTC instant at which the n-th calendar year (Berlin) after `start`'s ends.

    One year after any instant of 2026 is 1 January 2028, 00:00 in Berlin.
    """
    assert start.tzinfo is not None
    assert years > 0
    return midnight_in_berlin(date(start.astimezone(BERLIN).year + years + 1, 1, 1))


def berlin_date(instant: datetime) -> date:
    """Return the calendar date in Berlin at an aware instant."""
    assert instant.tzinfo is not None
    return instant.astimezone(BERLIN).date()


def utc_date(instant: datetime) -> date:
    """Return the UTC day in which an aware instant lies: its day partition."""
    assert instant.tzinfo is not None
    return instant.astimezone(UTC).date()
