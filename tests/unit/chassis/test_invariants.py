"""Invariants over days: bounded work a round, and nothing escapes for ever.

Method: a connection that knows in which days something is wrong, a clock that the test moves.
"""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.invariants import ROUNDS_MAX, DayInvariants, over_all_days, windows

TODAY = date(2026, 11, 22)
some_days = st.sets(
    st.one_of(
        st.integers(-12, 3).map(lambda n: TODAY + timedelta(days=n)),
        st.dates(min_value=date(2020, 1, 1), max_value=date(2030, 1, 1)),
    ),
    max_size=4,
)


class Days:
    """A database in which some days are wrong."""

    def __init__(self, wrong: set[date]) -> None:
        self.wrong = wrong
        self.asked: list[tuple[date, date]] = []

    async def fetchval(self, _sql: str, first: date, last: date) -> int:
        self.asked.append((first, last))
        return sum(first <= day <= last for day in self.wrong)


class HandClock:
    def __init__(self) -> None:
        self.s = 100.0

    def now(self) -> datetime:
        return datetime(2026, 11, 22, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.s


async def rounds(checks: DayInvariants, days: Days, clock: HandClock, n: int, today: date = TODAY):
    found = {}
    for _ in range(n):
        clock.s += 15
        found = await checks.check(cast(Any, days), today)
    return found


@given(today=st.dates(min_value=date(2020, 1, 1), max_value=date(2030, 1, 1)))
def test_the_windows_are_all_of_time_without_gap_or_overlap(today):
    found = windows(today)
    assert (found[0].first, found[-1].last) == (date.min, date.max)
    for one, after in pairwise(found):
        assert one.last + timedelta(days=1) == after.first
    assert len(found) == ROUNDS_MAX + 1


@given(wrong=some_days, mended=some_days)
async def test_damage_in_any_day_is_found_and_its_repair_is_seen_within_the_rounds(wrong, mended):
    """L1-L6 in production: an injected violation in any day is found within N rounds."""
    clock, days = HandClock(), Days(wrong)
    checks = DayInvariants({"x": "$1 $2"}, clock)
    assert await rounds(checks, days, clock, ROUNDS_MAX) == {"x": len(wrong)}
    days.wrong = wrong - mended
    assert await rounds(checks, days, clock, ROUNDS_MAX) == {"x": len(wrong - mended)}


@given(wrong=some_days)
async def test_a_change_of_day_hides_nothing(wrong):
    clock, days = HandClock(), Days(wrong)
    checks = DayInvariants({"x": "$1 $2"}, clock)
    await rounds(checks, days, clock, ROUNDS_MAX)
    tomorrow = TODAY + timedelta(days=1)
    assert await rounds(checks, days, clock, ROUNDS_MAX, tomorrow) == {"x": len(wrong)}


async def test_a_round_asks_for_today_and_one_older_window():
    clock, days = HandClock(), Days(set())
    checks = DayInvariants({"x": "$1 $2"}, clock)
    for _ in range(3):
        days.asked.clear()
        await rounds(checks, days, clock, 1)
        assert len(days.asked) == 2
        assert (TODAY, date.max) in days.asked


async def test_the_age_is_that_of_the_oldest_answer():
    clock, days = HandClock(), Days(set())
    checks = DayInvariants({"x": "$1 $2"}, clock)
    await rounds(checks, days, clock, 3)
    assert checks.age_s() == pytest.approx(3 * 15)  # most windows have no answer since the start
    await rounds(checks, days, clock, ROUNDS_MAX)
    assert checks.age_s() == pytest.approx((ROUNDS_MAX - 1) * 15)


def test_the_same_query_over_all_days_needs_no_parameters():
    assert over_all_days({"x": "a BETWEEN $1 AND $2"}) == {
        "x": "a BETWEEN date '-infinity' AND date 'infinity'"
    }
