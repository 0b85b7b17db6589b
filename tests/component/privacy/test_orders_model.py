"""Random orders and rows against a small model: which rows live, are kept, or are gone (D2).

Goal: whatever comes in whatever order, a protected row is neither lost nor shown, and a receipt
says exactly what is gone. Method: hypothesis plays sequences of orders on call control's tables
(two kinds, one table with the visitor and three that hang on it) in a transaction that is rolled
back, and after each order compares the database with a model made of sets.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import NamedTuple
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.retention import DataKind, RetentionAction, RetentionReceiptV1
from tests.support.bench import IDS
from tests.support.protected import Side, open_side
from tests.support.stack import World

WORLD_SERVICES = ("call_control",)
TRAFFIC, ADDRESS = DataKind.TRAFFIC_DATA, DataKind.IP_ADDRESS
VISITORS = tuple(UUID(int=n, version=4) for n in (1, 2))
FOREVER = 99
KIND_OF = {"call": TRAFFIC, "call_leg": TRAFFIC, "call_order": TRAFFIC, "call_address": ADDRESS}
N_ROWS = {"call": 1, "call_leg": 2, "call_order": 1, "call_address": 1}


class Row(NamedTuple):
    """A row of the model; the two legs of a call are one here."""

    table: str
    visitor: int
    day: int
    call: UUID

    @property
    def kind(self) -> DataKind:
        return KIND_OF[self.table]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that happens.

    Attributes:
        before: day, counted from the day before yesterday, that is the first to stay.
        protection: which of three.
    """

    action: str
    visitors: frozenset[int]
    kinds: tuple[DataKind, ...]
    before: int
    protection: int


@dataclass(frozen=True)
class Protection:
    """One that is in force."""

    is_restriction: bool
    kinds: frozenset[DataKind]
    before: int
    visitors: frozenset[int]

    def covers(self, row: Row, visitor: int | None) -> bool:
        named = not self.visitors or visitor in self.visitors
        return named and row.kind in self.kinds and row.day < self.before


@dataclass
class Model:
    """Which rows live, and what each protection keeps.

    Attributes:
        kept: protection -> row -> (is due, its visitor as far as the store knows).
    """

    live: set[Row] = field(default_factory=set)
    protections: dict[int, Protection] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    kept: dict[int, dict[Row, tuple[bool, int | None]]] = field(default_factory=dict)

    def visitor_of(self, row: Row) -> int | None:
        """A row that hangs on a call is found by its person only while the call lives."""
        call = row._replace(table="call")
        return row.visitor if row.table == "call" or call in self.live else None

    def existing(self) -> set[Row]:
        return self.live.union(*self.kept.values())

    def set_aside(self, rows: set[Row], *, is_due: bool, also: int | None = None) -> None:
        owners = {row: self.visitor_of(row) for row in rows}
        for row, visitor in owners.items():
            for name, protection in self.protections.items():
                if name == also or protection.covers(row, visitor):
                    was_due = self.kept[name].get(row, (False, None))[0]
                    self.kept[name][row] = (was_due or is_due, visitor)
        self.live -= rows

    def mark_due(self, tables: set[str], before: int, visitors: frozenset[int] | None) -> None:
        for rows in self.kept.values():
            for row, (_, visitor) in rows.items():
                mine = visitors is None or visitor in visitors
                if row.table in tables and row.day < before and mine:
                    rows[row] = (True, visitor)

    def drop(self, kind: DataKind, before: int) -> None:
        if kind is TRAFFIC:
            pinned = {
                row for row in self.live
                if row.kind is ADDRESS and row.day < before
                and any(p.visitors and p.covers(row, self.visitor_of(row))
                        for p in self.protections.values())
            }  # fmt: skip
            self.set_aside(pinned, is_due=False)
        self.set_aside({r for r in self.live if r.kind is kind and r.day < before}, is_due=True)
        self.mark_due({t for t, k in KIND_OF.items() if k is kind}, before, None)

    def take(self, step: Step, restriction: int | None) -> None:
        tables = {t for t, k in KIND_OF.items() if k in step.kinds or TRAFFIC in step.kinds}
        if restriction is None:
            self.mark_due(tables, step.before, step.visitors)
        rows = {
            row for row in self.live
            if row.table in tables and row.day < step.before
            and self.visitor_of(row) in step.visitors
        }  # fmt: skip
        self.set_aside(rows, is_due=restriction is None, also=restriction)

    def protect(self, step: Step) -> None:
        name = step.protection
        protection = Protection(
            step.action == "restrict", frozenset(step.kinds), step.before, step.visitors
        )
        self.protections[name] = protection
        copies: dict[Row, tuple[bool, int | None]] = {}
        for rows in self.kept.values():
            for row, (is_due, visitor) in rows.items():
                if protection.covers(row, visitor):
                    copies[row] = (is_due and copies.get(row, (True, None))[0], visitor)
        self.kept[name] = copies

    def release(self, name: int, before: int) -> None:
        self.over.add(name)
        self.protections.pop(name, None)
        mine = self.kept.pop(name, {})
        restricted = {
            row for other, p in self.protections.items() if p.is_restriction
            for row in self.kept[other]
        }  # fmt: skip
        back = {r for r, (due, _) in mine.items() if not due and r.day >= before}
        self.live |= back - restricted


steps = st.builds(
    Step,
    action=st.sampled_from(
        ["call", "call", "hold", "hold everybody", "restrict", "erase", "drop", "lift", "lift"]
    ),
    visitors=st.frozensets(st.sampled_from([0, 1]), min_size=1),
    kinds=st.sampled_from([(TRAFFIC,), (ADDRESS,), (TRAFFIC, ADDRESS)]),
    before=st.sampled_from([1, 2, 3, FOREVER]),
    protection=st.integers(0, 2),
)


async def play(side: Side, sequence: Sequence[Step]) -> None:
    change = side.owner.transaction()
    await change.start()
    try:
        model, names = Model(), [IDS.new() for _ in range(3)]
        for step in sequence:
            if step.action == "call":
                await add_call(side, model, step)
                continue
            before = model.existing()
            receipts = await order(side, model, names, step)
            await compare(side, model, names)
            n_gone = sum(N_ROWS[row.table] for row in before - model.existing())
            assert sum(c.n_rows for r in receipts for c in r.counts) == n_gone
            assert await side.violations() == {}
    finally:
        await change.rollback()


def day_of(side: Side, n: int) -> date:
    return date(9999, 12, 31) if n == FOREVER else side.today + timedelta(days=n - 2)


async def add_call(side: Side, model: Model, step: Step) -> None:
    visitor, day = min(step.visitors), min(step.before, 3) - 1
    known = {row.call for row in model.existing()}
    await side.fill(VISITORS[visitor], day_of(side, day))
    rows = await side.owner.fetch("SELECT call_id FROM call")
    (call,) = {row["call_id"] for row in rows} - known
    model.live |= {Row(table, visitor, day, call) for table in KIND_OF}


async def order(
    side: Side, model: Model, names: list[UUID], step: Step
) -> list[RetentionReceiptV1]:
    """Carry out a step on both; one that the executor would refuse is left out."""
    name, action = step.protection, step.action
    if action == "hold everybody":
        step, action = replace(step, visitors=frozenset(), action="hold"), "hold"
    if action in ("hold", "restrict") and (name in model.over or name in model.protections):
        return []
    if action == "lift":
        placed = model.protections.get(name)
        action = "unrestrict" if placed and placed.is_restriction else "release"
        if name in model.over:
            return []
    apply(model, step, action)
    visitors = step.visitors if action in ("hold", "restrict", "erase") else ()
    return await side.handle(
        side.order(
            RetentionAction(action),
            *(VISITORS[n] for n in visitors),
            kinds=step.kinds[:1] if action == "drop" else step.kinds,
            before=day_of(side, step.before),
            protection_id=None if action in ("drop", "erase") else names[name],
        )
    )


def apply(model: Model, step: Step, action: str) -> None:
    if action in ("hold", "restrict"):
        model.protect(step)
    if action == "drop":
        model.drop(step.kinds[0], step.before)
    elif action in ("erase", "restrict"):
        model.take(step, step.protection if action == "restrict" else None)
    elif action in ("release", "unrestrict"):
        model.release(step.protection, step.before)


async def compare(side: Side, model: Model, names: list[UUID]) -> None:
    live = {
        (name, row["call_id"])
        for name in KIND_OF
        for row in await side.owner.fetch(f"SELECT call_id FROM {name}")
    }
    assert live == {(row.table, row.call) for row in model.live}
    rows = await side.owner.fetch(
        "SELECT protection_id, source, content ->> 'call_id' AS call, is_due FROM privacy_kept"
    )
    found = {
        (names.index(r["protection_id"]), r["source"], UUID(r["call"]), r["is_due"]) for r in rows
    }
    assert found == {
        (name, row.table, row.call, is_due)
        for name, copies in model.kept.items()
        for row, (is_due, _) in copies.items()
    }


def test_random_orders_agree_with_the_model(world: World) -> None:
    """D2, D4, R-D3, R-G3, R-G4."""
    opened = contextlib.AsyncExitStack()
    with asyncio.Runner() as runner:
        connecting = opened.enter_async_context(open_side(world, "call_control", as_owner=True))
        side = runner.run(connecting)

        @settings(max_examples=50)
        @given(st.lists(steps, min_size=2, max_size=12))
        def check(sequence: list[Step]) -> None:
            runner.run(play(side, sequence))

        try:
            check()
        finally:
            runner.run(opened.aclose())
