"""Evidence of records whose period ended, left before an order drops them (K1, ADR 0033).

Each record that goes is held against its link, which takes some ten seconds for a million. A large
year is looked through beside the service's work, a day at a time, while its order waits; what was
found stays in memory: in a table, whoever owns the database could write it.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import asyncpg

from schemas.retention import RetentionOrderV1
from services.chassis.context import Context
from services.consent.chain_store import RangesOf, merged
from services.consent.store import Store
from services.privacy.chain import SigningKeys
from services.privacy.declare import Table

RECORDS = "consent_record"
AT_ONCE_MAX = 50_000
"""So many records are looked through in the order's own transaction: about half a second."""
FRESH_FOR = timedelta(hours=1)
"""What was looked through is dropped within this time, or looked through again."""
EVERY_S = 5.0


class NotLookedThroughError(asyncpg.LockNotAvailableError):
    """The order waits, as for a table that somebody has."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    until: date
    at: datetime
    ranges: RangesOf


class Takings:
    """Leaves the evidence; `before_drop` is the executor's hook."""

    def __init__(self, keys: SigningKeys) -> None:
        """Take the keys that sign anchors."""
        self._keys = keys
        self._wanted: date | None = None
        self._seen: _Seen | None = None

    async def before_drop(self, ctx: Context[Any], table: Table, order: RetentionOrderV1) -> None:
        """Say which records an order is about to drop.

        Raises:
            NotLookedThroughError: there are many; `look_through` does so.
        """
        if table.name != RECORDS:
            return
        store: Store = ctx.store
        # years go whole
        until = date(order.before_day.year, 1, 1)
        if order.before_day > ctx.now.date():
            # a simulation: what is dropped may be what is being written
            await store.close_chains()
            ranges = await store.going(date.min, until)
        elif await store.has_at_most(AT_ONCE_MAX, until):
            ranges = await store.going(date.min, until)
        else:
            ranges = self._looked_through(until, ctx.now)
        await store.leave_takings(self._keys, order.order_id, ranges)

    def _looked_through(self, until: date, now: datetime) -> RangesOf:
        seen = self._seen
        if seen is None or seen.until != until or seen.at < now - FRESH_FOR:
            self._wanted = until
            raise NotLookedThroughError("the records are looked through first")
        return seen.ranges

    async def look_through(
        self, transaction: Callable[[], AbstractAsyncContextManager[Context[Any]]]
    ) -> bool:
        """Look through what an order waits for; return whether one did."""
        until, found = self._wanted, RangesOf()
        if until is None:
            return False
        day: date | None = date.min
        begun_at: datetime | None = None
        while day is not None:
            async with transaction() as ctx:
                begun_at = begun_at or ctx.now
                store: Store = ctx.store
                day = await store.next_day(day, until)
                if day is not None:
                    found = merged(found, await store.going(day, day + timedelta(days=1)))
        assert begun_at is not None
        self._seen, self._wanted = _Seen(until=until, at=begun_at, ranges=found), None
        return True
