"""The one statement that writes a batch of views beside the pure rules.

Goal: the statement is no second home of the rules (architecture.md, "The path of a message").
Method: any events of two visitors and eight tickets, in up to three polls; what the database has
afterwards is compared with the pure domain's fold over the same events.
"""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.ad_ledger import domain
from services.ad_ledger.classification import TABLES
from services.ad_ledger.domain import AdEvent, Kind, Lot, LotKey, Posting, Recorded, Ticket
from services.ad_ledger.store import Store
from services.chassis import errors
from services.chassis.ids import TimeOrderedIds
from services.privacy.declare import by_day
from tests.support.bench import Bench, new_visitor_id, open_bench

WORLD_SERVICES = ("ad_ledger",)
IDS = TimeOrderedIds()
AD_MS = 16_000
WHOLE_VIEW = [
    Kind.PAGE_HIT, Kind.START, Kind.FIRST_QUARTILE, Kind.MIDPOINT, Kind.THIRD_QUARTILE,
    Kind.COMPLETE,
]  # fmt: skip
DAY_TABLES = by_day(TABLES)

step = st.tuples(st.integers(0, 1), st.integers(0, 3), st.sampled_from(list(Kind)))
whole_view = st.builds(
    lambda who, n: [(who, n, kind) for kind in WHOLE_VIEW], st.integers(0, 1), st.integers(0, 3)
)
steps_of_views = st.lists(
    st.one_of(st.lists(step, min_size=1, max_size=3), whole_view), min_size=1, max_size=8
).map(lambda parts: [one for part in parts for one in part])


def cut(steps: list[tuple[int, int, Kind]], at: list[int]) -> list[list[tuple[int, int, Kind]]]:
    """Return the steps as polls: a view may be spread over several."""
    edges = [0, *sorted(n % (len(steps) + 1) for n in at), len(steps)]
    return [steps[start:end] for start, end in pairwise(edges)]


class Books(NamedTuple):
    """What is kept of two visitors; the platform's side is what it changed by."""

    lots: dict[LotKey, Lot]
    postings: dict[tuple[UUID, Kind], Posting]
    views: dict[tuple[UUID, Kind], int]
    platform: dict[tuple[date, domain.Account], int]


def a_ticket(now: datetime, visitor_id: UUID, days_ago: int) -> Ticket:
    issued_at = now - timedelta(days=days_ago, seconds=40)
    return Ticket(
        ticket_id=IDS.new(), visitor_id=visitor_id, duration_ms=AD_MS, issued_at=issued_at,
        expires_at=now + timedelta(hours=1),
    )  # fmt: skip


async def carry_out(bench: Bench[Store], events: Sequence[AdEvent]) -> None:
    """Load, decide, save: as the handler does with a poll."""
    async with bench.transaction() as ctx:
        state = await ctx.store.load_views(
            {e.ticket.key for e in events}, {e.ticket.visitor_id for e in events}
        )
        recorded = decide(state, events, await ctx.store.tariffs())
        if recorded:
            await ctx.store.save_views(recorded, ["192.0.2.7"] * len(recorded), state)


def decide(
    state: domain.ViewState, events: Sequence[AdEvent], tariffs: Sequence[domain.Tariff]
) -> list[Recorded]:
    recorded = []
    for event in events:
        decision = domain.decide_view(state, event, tariffs)
        if isinstance(decision, Recorded):
            domain.apply_view(state, decision)
            recorded.append(decision)
    return recorded


def by_the_rules(recorded: Sequence[Recorded]) -> Books:
    lots: dict[LotKey, Lot] = {}
    postings = [posting for r in recorded if (posting := domain.grant(r)) is not None]
    for posting in postings:
        lot = lots.get(posting.lot) or domain.new_lot(posting.lot, posting.visitor_id)
        lots[posting.lot] = domain.post(lot, posting)
    return Books(
        lots=lots,
        postings={(p.lot.ticket_id, p.kind): p for p in postings if p.kind is not None},
        views={(r.event.ticket.ticket_id, r.event.kind): r.credit_ms for r in recorded},
        platform=domain.platform_deltas(postings),
    )


async def in_the_database(
    bench: Bench[Store], visitors: list[UUID], before: dict[tuple[date, domain.Account], int]
) -> Books:
    async with bench.transaction() as ctx:
        lots = await ctx.store.lots_of(set(visitors))
    postings = await bench.fetch("SELECT * FROM posting WHERE visitor_id = ANY($1)", visitors)
    views = await bench.fetch("SELECT * FROM ad_view WHERE visitor_id = ANY($1)", visitors)
    after = await platform(bench)
    return Books(
        lots={key: lot for by_key in lots.values() for key, lot in by_key.items()},
        postings={
            (r["ticket_id"], Kind(r["kind"])): Posting(
                lot=LotKey(r["lot_day"], r["ticket_id"]), visitor_id=r["visitor_id"],
                operation=domain.Operation(r["operation"]), amount_ms=r["amount_ms"],
                at=r["posted_at"], kind=Kind(r["kind"]), tariff_version=r["tariff_version"],
            )
            for r in postings
        },
        views={(r["ticket_id"], Kind(r["kind"])): r["credit_ms"] for r in views},
        platform={
            key: ms - before.get(key, 0) for key, ms in after.items() if ms != before.get(key, 0)
        },
    )  # fmt: skip


async def platform(bench: Bench[Store]) -> dict[tuple[date, domain.Account], int]:
    rows = await bench.fetch("SELECT * FROM platform_account")
    return {(r["account_day"], domain.Account(r["account"])): r["balance_ms"] for r in rows}


@given(steps=steps_of_views, cuts=st.lists(st.integers(0, 50), max_size=2))
@example(steps=[(0, 0, kind) for kind in WHOLE_VIEW], cuts=[4])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_the_statement_writes_what_the_rules_say(world, steps, cuts):
    """R-A2, R-A3; L1, L3, L4, L6: views, lots, postings, platform accounts."""
    async with open_bench(world, "ad_ledger", Store, days_of=DAY_TABLES) as bench:
        visitors = [new_visitor_id(), new_visitor_id()]
        # the last ticket of each is of the day before: a batch may span two days
        tickets = [
            [a_ticket(bench.now, visitor, days_ago=n // 3) for n in range(4)]
            for visitor in visitors
        ]
        before = await platform(bench)
        async with bench.transaction() as ctx:
            tariffs = await ctx.store.tariffs()
        state = domain.ViewState(seen={}, watches={})
        recorded = []
        for poll in cut(steps, cuts):
            events = [
                AdEvent(visitors[who], tickets[who][n], kind, AD_MS, bench.now)
                for who, n, kind in poll
            ]
            await carry_out(bench, events)
            recorded += decide(state, events, tariffs)
        assert await in_the_database(bench, visitors, before) == by_the_rules(recorded)


async def test_an_event_that_another_process_wrote_meanwhile_is_decided_anew(world):
    """L3: what was decided on a state that is no longer so must not leave as credit."""
    async with open_bench(world, "ad_ledger", Store, days_of=DAY_TABLES) as bench:
        ticket = a_ticket(bench.now, new_visitor_id(), days_ago=0)
        events = [AdEvent(ticket.visitor_id, ticket, k, AD_MS, bench.now) for k in WHOLE_VIEW]
        async with bench.transaction() as ctx:
            stale = await ctx.store.load_views({ticket.key}, {ticket.visitor_id})
            recorded = decide(stale, events, await ctx.store.tariffs())
        # these earn nothing: only the count of written views can tell
        free = [r for r in recorded if not r.credit_ms]
        await carry_out(bench, events[:1])
        with pytest.raises(errors.Transient):
            async with bench.transaction() as ctx:
                await ctx.store.save_views(free, ["192.0.2.7"] * len(free), stale)
