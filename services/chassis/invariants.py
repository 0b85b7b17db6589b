"""Invariants over days: each round checks today and the day that was checked longest ago.

A query over all rows costs more with every day kept; a query over a day's does not. All of time is
cut into windows, so nothing escapes for ever: whatever breaks an invariant is found within
`ROUNDS_MAX` rounds, and `age_s` says how old the oldest answer is.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import NamedTuple

from services.chassis import db
from services.chassis.clock import Clock

DAYS_ALONE = 7
"""Days before today that have a window of their own; what is older shares one."""
ROUNDS_MAX = DAYS_ALONE + 1
"""After so many rounds every window was checked."""


class Window(NamedTuple):
    """Days from `first` to `last`, both included."""

    first: date
    last: date


def windows(today: date) -> list[Window]:
    """Return all of time, oldest first; the last one begins today, for clocks that are ahead."""
    days = [today - timedelta(days=n) for n in range(DAYS_ALONE, 0, -1)]
    before, day_before = date.min, days[0] - timedelta(days=1)
    return [Window(before, day_before), *(Window(d, d) for d in days), Window(today, date.max)]


def over_all_days(queries: Mapping[str, str]) -> dict[str, str]:
    """Return the same queries over all days at once, for audits and tests."""
    return {
        name: sql.replace("$1", "date '-infinity'").replace("$2", "date 'infinity'")
        for name, sql in queries.items()
    }


class DayInvariants:
    """The queries with what they answered last, per window."""

    def __init__(self, queries: Mapping[str, str], clock: Clock) -> None:
        """Take the queries: `$1` and `$2` are a window's first and last day."""
        self._queries = dict(queries)
        self._clock = clock
        self._started_at_s = clock.monotonic()
        self._answers: dict[date, dict[str, int]] = {}
        self._checked_at_s: dict[date, float] = {}
        self._windows: list[Window] = []

    async def check(self, connection: db.Connection, today: date) -> dict[str, int]:
        """Check today and one older window; return the sum of all windows' last answers."""
        *older, newest = self._windows = windows(today)
        oldest = min(older, key=lambda window: self._checked_at_s.get(window.first, 0.0))
        for window in (newest, oldest):
            answer = {
                name: int(await connection.fetchval(sql, window.first, window.last))
                for name, sql in self._queries.items()
            }
            self._answers[window.first] = answer
            self._checked_at_s[window.first] = self._clock.monotonic()
        self._answers = {w.first: self._answers.get(w.first, {}) for w in self._windows}
        return {
            name: sum(answer.get(name, 0) for answer in self._answers.values())
            for name in self._queries
        }

    def age_s(self) -> float:
        """Return how old the oldest window's answer is; since the start where there is none."""
        at_s = [self._checked_at_s.get(w.first, self._started_at_s) for w in self._windows]
        return self._clock.monotonic() - min(at_s, default=self._started_at_s)
