"""Transfers and refusals as consent keeps them, on real PostgreSQL (R-E2, R-D5, R-D10, K3)."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import Phase, settings
from hypothesis import given as given_examples
from hypothesis import strategies as st

from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from schemas.transfer import TransferV1, TransferVerdict
from services.chassis.ids import TimeOrderedIds
from services.consent import catalogues, domain
from services.consent.classification import TABLES
from services.consent.handlers import on_consents
from services.consent.transfer_store import INVARIANTS, ConsentStore
from services.consent.transfers import on_transfers
from services.privacy import calendar
from services.privacy.declare import by_day
from services.privacy.executor import on_retention_orders
from services.privacy.rules import Change, ConsentFacts
from tests.support.bench import Bench, new_visitor_id, open_bench, received
from tests.support.stack import World

WORLD_SERVICES = ("consent",)
IDS = TimeOrderedIds()
PERMITTED = {
    "verdict": TransferVerdict.PERMITTED,
    "basis": "Art. 6(1)(b)",
    "country_ground": "adequacy",
}
REFUSED = {"verdict": TransferVerdict.REFUSED, "reason": "no_consent_now"}
ON_CONSENT = {**PERMITTED, "basis": "Art. 6(1)(a)", "consent": "marketing"}


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[ConsentStore]]:
    days = by_day(TABLES)
    async with open_bench(world, "consent", ConsentStore, days_of=days) as found:
        yield found


def transfer(at: datetime, visitor_id: UUID | None = None, **more: Any) -> TransferV1:
    facts: dict[str, Any] = {
        "transfer_id": IDS.new(),
        "recipient": "ad-partner",
        "purpose": "ad_settlement",
        "fields": ("address", "events.kind"),
        "register_version": "2026-11.1+b3952b636aab",
        "happened_at": at - timedelta(minutes=1),
        "asked_at": at,
        "visitor_id": visitor_id,
    }
    return TransferV1(**(facts | (more or REFUSED)))


async def take(bench: Bench[ConsentStore], *events: TransferV1) -> dict[tuple[str, str], int]:
    async with bench.transaction() as ctx:
        await on_transfers(ctx, [received(topics.TRANSFER, e, bench.now) for e in events])
        return dict(ctx.counts)


async def rows_of(bench: Bench[ConsentStore], event: TransferV1) -> list[Any]:
    return await bench.fetch(
        "SELECT * FROM consent_transfer WHERE transfer_id = $1", event.transfer_id
    )


async def links_of(bench: Bench[ConsentStore], event: TransferV1) -> list[Any]:
    return await bench.fetch(
        "SELECT * FROM consent_transfer_visitor WHERE transfer_id = $1", event.transfer_id
    )


async def violations(bench: Bench[ConsentStore]) -> dict[str, int]:
    return {name: (await bench.fetch(sql))[0]["count"] for name, sql in INVARIANTS.items()}


async def test_permits_and_refusals_are_kept_with_their_grounds(bench):
    """R-E2: to whom, for what, which fields, why; whose and when it happened apart from it."""
    visitor = new_visitor_id()
    permit = transfer(bench.now, visitor, **PERMITTED)
    refusal = transfer(bench.now, None)
    counts = await take(bench, permit, refusal)
    assert counts == {("transfer", "recorded"): 2}
    (row,) = await rows_of(bench, permit)
    assert (row["recipient"], row["purpose"], row["fields"], row["verdict"]) == (
        "ad-partner", "ad_settlement", ["address", "events.kind"], "permitted",
    )  # fmt: skip
    assert (row["basis"], row["country_ground"], row["reason"]) == (
        "Art. 6(1)(b)", "adequacy", None,
    )  # fmt: skip
    assert (row["sender"], row["asked_at"]) == ("test", bench.now)
    assert str(visitor) not in str(dict(row))
    (link,) = await links_of(bench, permit)
    assert (link["visitor_id"], link["happened_at"]) == (visitor, permit.happened_at)
    (row,) = await rows_of(bench, refusal)
    assert (row["reason"], row["basis"]) == ("no_consent_now", None)
    assert await links_of(bench, refusal) == []


async def test_the_same_verdict_again_changes_nothing(bench):
    """R-E2: within a poll and in a later one."""
    event = transfer(bench.now, new_visitor_id())
    assert await take(bench, event, event) == {
        ("transfer", "recorded"): 1,
        ("transfer", "duplicate"): 1,
    }
    assert await take(bench, event) == {("transfer", "duplicate"): 1}
    assert len(await rows_of(bench, event)) == len(await links_of(bench, event)) == 1


async def test_what_comes_too_late_for_a_day_is_kept_without_its_visitor(bench):
    """R-D5: no day is made for a link that is due."""
    event = transfer(bench.now - timedelta(hours=73), new_visitor_id())
    await take(bench, event)
    assert len(await rows_of(bench, event)) == 1
    assert await links_of(bench, event) == []


async def test_a_transfer_of_the_future_is_set_apart(bench):
    """K3: a sender's clock that is wrong must be seen."""
    event = transfer(bench.now + timedelta(minutes=6), new_visitor_id())
    assert await take(bench, event) == {("transfer", "dead_letter"): 1}
    assert await rows_of(bench, event) == []


@pytest.mark.parametrize(
    "facts",
    [
        {**PERMITTED, "basis": None},
        {**PERMITTED, "country_ground": None},
        {**PERMITTED, "reason": "no_consent_now"},
        {**PERMITTED, "consent": "marketing"},
        {**ON_CONSENT, "consent": None},
        {"verdict": TransferVerdict.REFUSED},
        {**REFUSED, "basis": "Art. 6(1)(b)"},
    ],
)
async def test_a_verdict_without_its_ground_is_refused_by_the_database(bench, facts):
    """K3: no transfer without a recorded permission, no refusal without a reason."""
    with pytest.raises(asyncpg.CheckViolationError):
        await take(bench, transfer(bench.now, new_visitor_id(), **facts))


@pytest.mark.parametrize("table", ["consent_transfer", "consent_transfer_visitor"])
async def test_the_service_cannot_change_or_delete_what_was_recorded(bench, table):
    """K3: append-only is a fact of the database."""
    await take(bench, transfer(bench.now, new_visitor_id()))
    for sql in (f"UPDATE {table} SET transfer_id = transfer_id", f"DELETE FROM {table}"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await bench.fetch(sql)


def order(bench: Bench[ConsentStore], **facts: Any) -> RetentionOrderV1:
    base: dict[str, Any] = {"order_id": IDS.new(), "as_of": bench.now}
    return RetentionOrderV1(**(base | facts))


async def carry_out(bench: Bench[ConsentStore], event: RetentionOrderV1) -> None:
    on_orders = on_retention_orders(TABLES, simulation=True)
    async with bench.transaction() as ctx:
        await on_orders(ctx, [received(topics.RETENTION_ORDER, event, bench.now)])


async def test_an_erasure_takes_the_visitor_and_leaves_the_proof(bench):
    """R-G3, R-D10: what went to whom stays provable, whose it was does not."""
    visitor, other = new_visitor_id(), new_visitor_id()
    event, kept = (transfer(bench.now, who, **PERMITTED) for who in (visitor, other))
    await take(bench, event, kept)
    tomorrow = calendar.utc_date(bench.now) + timedelta(days=1)
    await carry_out(
        bench,
        order(
            bench, kind=DataKind.AD_USE, action=RetentionAction.ERASE, before_day=tomorrow,
            visitor_ids=(visitor,),
        ),
    )  # fmt: skip
    assert await links_of(bench, event) == []
    assert len(await rows_of(bench, event)) == 1
    assert len(await links_of(bench, kept)) == 1
    late, since = (transfer(bench.now + timedelta(seconds=n), visitor) for n in (-1, 1))
    await take(bench, late, since)
    assert (len(await rows_of(bench, late)), await links_of(bench, late)) == (1, [])
    assert len(await links_of(bench, since)) == 1, "a new use"


K3 = "k3_no_transfer_against_consent"
SECOND = timedelta(seconds=1)
Said = tuple[ConsentDecision, datetime, str, str | None, UUID]
"""What was decided, when, of which version, about whom (None = everybody), decision id."""


async def say(bench: Any, visitor_id: UUID, *said: Said) -> None:
    """Let decisions about marketing arrive."""
    for decision, at, version, recipient, decision_id in said:
        event = ConsentV1(
            decision_id=decision_id,
            visitor_id=visitor_id,
            choices=(
                ConsentChoice(purpose=Purpose.MARKETING, decision=decision, recipient=recipient),
            ),
            catalogue_version=version,
            wording_version="2026-11.1",
            language="de",
            method=ConsentMethod.BANNER,
        )
        async with bench.transaction() as ctx:
            await on_consents(ctx, [received(topics.CONSENT, event, at)])


def given(
    at: datetime, version: str = "2026-11.2", recipient: str | None = None, n: int | None = None
) -> Said:
    made = IDS.new() if n is None else decision_id_of(n)
    return ConsentDecision.GIVEN, at, version, recipient, made


def withdrawn(at: datetime, recipient: str | None = None, n: int | None = None) -> Said:
    made = IDS.new() if n is None else decision_id_of(n)
    return ConsentDecision.WITHDRAWN, at, "2026-11.2", recipient, made


def decision_id_of(n: int) -> UUID:
    """Return an id that orders as `n` does, and is nobody else's."""
    return UUID(int=(n << 120) | (IDS.new().int & ((1 << 120) - 1)))


async def judged(
    bench: Bench[ConsentStore],
    visitor_id: UUID,
    happened_at: datetime,
    asked_at: datetime,
    recipient: str = "ad-partner",
) -> int:
    """Return how many violations a permit adds."""
    before = (await violations(bench))[K3]
    facts = {**ON_CONSENT, "happened_at": happened_at, "recipient": recipient}
    await take(bench, transfer(asked_at, visitor_id, **facts))
    return (await violations(bench))[K3] - before


async def test_a_transfer_against_the_consent_is_a_violation(bench):
    """K2, K3: needed at the event and at the sending; a withdrawal has five seconds to arrive."""
    start, visitor = bench.now - timedelta(hours=1), new_visitor_id()
    await say(bench, visitor, given(start), withdrawn(start + 60 * SECOND))
    for happened_s, asked_s, n_found, why in [
        (0, 0, 0, "at once"),
        (1, 59, 0, "in time"),
        (1, 64, 0, "under way"),
        (1, 66, 1, "withdrawn before sending"),
        (-1, 1, 1, "given after the event"),
    ]:
        happened_at, asked_at = start + happened_s * SECOND, start + asked_s * SECOND
        assert await judged(bench, visitor, happened_at, asked_at) == n_found, why


async def test_a_permit_of_who_never_answered_is_a_violation(bench):
    """K3: no answer is no consent; of who was erased nothing can be said any more."""
    visitor, erased = new_visitor_id(), new_visitor_id()
    assert await judged(bench, visitor, bench.now, bench.now) == 1
    tomorrow = calendar.utc_date(bench.now) + timedelta(days=1)
    await carry_out(
        bench,
        order(
            bench, kind=DataKind.AD_USE, action=RetentionAction.ERASE, before_day=tomorrow,
            visitor_ids=(erased,),
        ),
    )  # fmt: skip
    assert await judged(bench, erased, bench.now, bench.now + SECOND) == 0


async def test_a_permit_for_whom_the_version_shown_did_not_name_is_a_violation(bench):
    """K3, ADR 0030: an agreement reaches whom it named, whatever a later version says."""
    start = bench.now - timedelta(hours=1)
    old, new, one = (new_visitor_id() for _ in range(3))
    await say(bench, old, given(start, "2026-11.1"))
    await say(bench, new, given(start))
    await say(bench, one, given(start, recipient="adgrx-com"))
    later = start + SECOND
    assert await judged(bench, old, later, later) == 1
    assert await judged(bench, old, later, later, "adgrx-com") == 0
    assert await judged(bench, new, later, later) == 0
    assert await judged(bench, new, later, later, "nobody-we-know") == 1
    assert await judged(bench, one, later, later) == 1
    assert await judged(bench, one, later, later, "adgrx-com") == 0


async def test_of_one_instant_the_higher_decision_counts(bench):
    """K2, K3: a denial of the same instant is not overlooked, nor wrongly held against anybody."""
    start = bench.now - timedelta(hours=1)
    denied, agreed = new_visitor_id(), new_visitor_id()
    await say(bench, denied, given(start, n=1), withdrawn(start, n=2))
    await say(bench, agreed, withdrawn(start, n=1), given(start, n=2))
    later = start + 10 * SECOND
    assert await judged(bench, denied, later, later) == 1
    assert await judged(bench, agreed, later, later) == 0


def facts_of(said: Sequence[Said], known_at: datetime) -> ConsentFacts:
    """Return what a gate knows that has heard all of it."""
    states = domain.states_of(
        domain.Decision(
            decision_id=decision_id,
            purpose="marketing",
            verdict=domain.Verdict(decision.value),
            decided_at=at,
            recipient=recipient,
            named=catalogues.known().by_version[version].recipients["marketing"],
        )
        for decision, at, version, recipient, decision_id in said
        if at <= known_at
    )
    return ConsentFacts(
        is_fresh=True,
        of_recipients={
            ("marketing", recipient): tuple(
                Change(at=c.at, in_force=c.verdict is domain.Verdict.GIVEN) for c in state.changes
            )
            for state in states
            for recipient in (state.reaches if state.recipient is None else (state.recipient,))
        },
    )


def permits(facts: ConsentFacts, recipient: str, happened_at: datetime, asked_at: datetime) -> bool:
    """Whether the gate's pure rule finds the consent that it needs."""
    return (
        facts.in_force_at("marketing", recipient, happened_at)
        and facts.is_last_word("marketing", recipient)
        and facts.in_force_at("marketing", recipient, asked_at)
    )


RECIPIENTS = ("ad-partner", "adgrx-com")
HISTORIES = st.lists(
    st.tuples(
        st.sampled_from([ConsentDecision.GIVEN, ConsentDecision.GIVEN, ConsentDecision.WITHDRAWN]),
        st.integers(0, 30),
        st.sampled_from(["2026-11.1", "2026-11.2"]),
        st.sampled_from([None, None, "adgrx-com"]),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=4,
)
ASKED = st.tuples(st.sampled_from(RECIPIENTS), st.integers(0, 70), st.integers(0, 20))


async def test_what_the_gate_permits_is_no_violation(bench):
    """K3: histories of all kinds against the gate's pure rule; what it refuses is found.

    A refusal is found unless it would have been a permit some seconds ago, when the gate need not
    have known of the last word.
    """
    start = bench.now - timedelta(hours=1)
    examples: list[tuple[Any, Any]] = []

    @settings(max_examples=40, deadline=None, database=None, phases=[Phase.generate])
    @given_examples(HISTORIES, ASKED)
    def collect(history: Any, asked: Any) -> None:
        examples.append((history, asked))

    collect()
    n_legal = n_found = 0
    for history, (recipient, happened_s, delay_s) in examples:
        said = [
            (decision, start + at_s * SECOND, version, who, decision_id_of(n))
            for decision, at_s, version, who, n in history
        ]
        visitor = new_visitor_id()
        await say(bench, visitor, *said)
        happened_at = start + happened_s * SECOND
        asked_at = happened_at + delay_s * SECOND
        found = await judged(bench, visitor, happened_at, asked_at, recipient)
        heard = [
            permits(facts_of(said, asked_at - late * SECOND), recipient, happened_at, asked_at)
            for late in range(6)
        ]
        if heard[0]:
            n_legal += 1
            assert found == 0, (history, recipient, happened_s, delay_s)
        elif not any(heard) and happened_s > 36:
            n_found += found
            assert found == 1, (history, recipient, happened_s, delay_s)
    assert n_legal, "no example was legal"
    assert n_found, "no example was a violation"
