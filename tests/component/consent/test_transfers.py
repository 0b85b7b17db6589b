"""Transfers and refusals as consent keeps them, on real PostgreSQL (R-E2, R-D5, R-D10, K3)."""

import random
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from schemas.transfer import TransferV1, TransferVerdict
from services.chassis import db
from services.chassis.clock import SystemClock
from services.chassis.context import Context
from services.chassis.ids import TimeOrderedIds
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret
from services.consent import domain
from services.consent.classification import TABLES
from services.consent.handlers import on_consents
from services.consent.store import Store
from services.consent.transfer_store import INVARIANTS, ConsentStore
from services.consent.transfers import on_transfers
from services.consent.wire import to_wire
from services.privacy import calendar
from services.privacy.consent_states import ConsentStates
from services.privacy.declare import by_day
from services.privacy.executor import Executor
from services.privacy.rules import CONSENT_LIFE
from tests.support import protected
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
DENIED = (ConsentDecision.REFUSED, ConsentDecision.WITHDRAWN, ConsentDecision.OBJECTED)
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
    await protected.carry_out(bench, Executor(TABLES, simulation=True), event)


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
MARKETING = Purpose.MARKETING.value


def choice_of(
    visitor_id: UUID, decision: ConsentDecision, recipient: str | None = None, **more: Any
) -> ConsentV1:
    facts: dict[str, Any] = {
        "decision_id": IDS.new(),
        "catalogue_version": "2026-11.3",
        "wording_version": "2026-11.1",
        "language": "de",
        "method": ConsentMethod.BANNER,
    }
    choice = ConsentChoice(purpose=Purpose.MARKETING, decision=decision, recipient=recipient)
    return ConsentV1(visitor_id=visitor_id, choices=(choice,), **(facts | more))


async def decide(bench: Bench[ConsentStore], *said: tuple[ConsentV1, datetime]) -> None:
    async with bench.transaction() as ctx:
        events = [received(topics.CONSENT, event, at) for event, at in said]
        await on_consents(cast("Context[Store]", ctx), events)


async def against(bench: Bench[ConsentStore], event: TransferV1) -> int:
    """Return how many violations a transfer adds."""
    before = await violations(bench)
    await take(bench, event)
    return (await violations(bench))[K3] - before[K3]


def knowing(visitor: UUID, states: tuple[domain.State, ...], now: datetime) -> ConsentStates:
    """Return what a sender knows once it was told."""
    known = ConsentStates(
        KafkaLogin(bootstrap="nowhere:1", username="u", password=Secret("p")),
        prefix="",
        clock=SystemClock(),
    )
    known.take(received(topics.CONSENT_STATE, to_wire(visitor, states), now))
    return known


async def test_a_transfer_against_the_consent_is_a_violation(bench):
    """K2, K3: needed at the event and at the sending; a withdrawal has five seconds to arrive."""
    start, seconds = bench.now - timedelta(hours=1), timedelta(seconds=1)
    visitor = new_visitor_id()
    await decide(
        bench,
        (choice_of(visitor, ConsentDecision.GIVEN), start),
        (choice_of(visitor, ConsentDecision.WITHDRAWN), start + 60 * seconds),
    )

    async def judged(happened_at: datetime, asked_at: datetime) -> int:
        return await against(
            bench, transfer(asked_at, visitor, **ON_CONSENT, happened_at=happened_at)
        )

    assert await judged(start, start) == 0
    assert await judged(start + seconds, start + 59 * seconds) == 0
    assert await judged(start + seconds, start + 64 * seconds) == 0, "under way"
    assert await judged(start + seconds, start + 66 * seconds) == 1, "withdrawn before sending"
    assert await judged(start - seconds, start + seconds) == 1, "given after the event"


async def test_a_consent_is_no_ground_after_six_days(bench):
    """K3, R-F2: the query and the gate agree on the instant; the visit it was given in is over."""
    visitor, now, moment = new_visitor_id(), bench.now, timedelta(seconds=1)
    start = bench.now = now - CONSENT_LIFE
    days = [db.DayTable("consent_subject")]
    await db.ensure_days(bench.connection, days, calendar.utc_date(start))
    await decide(bench, (choice_of(visitor, ConsentDecision.GIVEN), start))
    bench.now = now
    async with bench.transaction() as ctx:
        states = domain.states_of(await ctx.store.decisions_of(visitor))
    known = knowing(visitor, states, now)
    for asked_at, is_over in ((now - moment, False), (now, True)):
        facts = known.facts_of(visitor, asked_at)
        assert facts.in_force_at(MARKETING, "ad-partner", asked_at) is not is_over
        sent = transfer(asked_at, visitor, **ON_CONSENT, happened_at=start + moment)
        assert await against(bench, sent) == is_over


async def test_a_transfer_about_somebody_who_never_answered_is_a_violation(bench):
    """K3: nobody had agreed; only what takes the link to a proof also takes that certainty."""
    ids = [new_visitor_id() for _ in range(3)]
    events = [transfer(bench.now, one, **ON_CONSENT) for one in ids]
    assert await against(bench, events[0]) == 2, "at the event and at the sending"
    assert await against(bench, transfer(bench.now, ids[0], **PERMITTED)) == 0, "by contract"
    tomorrow = calendar.utc_date(bench.now) + timedelta(days=1)
    facts = {"kind": DataKind.AD_USE, "before_day": tomorrow}
    erase = {"action": RetentionAction.ERASE, "visitor_ids": (ids[1],)}
    await carry_out(bench, order(bench, **facts, **erase))
    late = transfer(bench.now - timedelta(seconds=1), ids[1], **ON_CONSENT)
    assert await against(bench, late) == 0, "erased: nobody knows any more"
    drop = {"kind": DataKind.AD_USE, "action": RetentionAction.DROP}
    young = calendar.utc_date(bench.now) - timedelta(days=6)
    await carry_out(bench, order(bench, **drop, before_day=young))
    assert await against(bench, events[2]) == 2, "no link that a consent in force has is gone"
    await carry_out(bench, order(bench, **drop, before_day=young + timedelta(days=1)))
    assert await against(bench, transfer(bench.now, new_visitor_id(), **ON_CONSENT)) == 0


async def test_the_query_says_what_the_gates_rule_says(bench):
    """K2, K3: random histories; names, versions, signals and denials of the same instant."""
    rng = random.Random(6)
    verdicts = {True: 0, False: 0}
    for _ in range(60):
        visitor = new_visitor_id()
        start = bench.now - timedelta(hours=1)
        said = [
            (
                choice_of(
                    visitor,
                    rng.choice([ConsentDecision.GIVEN, ConsentDecision.GIVEN, *DENIED]),
                    rng.choice([None, None, "ad-partner", "adgrx-com"]),
                    catalogue_version=rng.choice(["2026-11.1", "2026-11.3"]),
                ),
                start + timedelta(seconds=rng.randint(0, 4)),
            )
            for _ in range(rng.randint(1, 5))
        ]
        objection = choice_of(visitor, ConsentDecision.OBJECTED, method=ConsentMethod.SIGNAL)
        said += [(objection, start + timedelta(seconds=2))] * rng.randint(0, 1)
        await decide(bench, *said)
        asked_at = start + timedelta(seconds=30)
        happened_at = start + timedelta(seconds=rng.randint(0, 6))
        recipient = rng.choice(["ad-partner", "adgrx-com"])
        async with bench.transaction() as ctx:
            states = domain.states_of(await ctx.store.decisions_of(visitor))
        facts = knowing(visitor, states, bench.now).facts_of(visitor, asked_at)
        may = all(
            facts.in_force_at(MARKETING, recipient, at) for at in (happened_at, asked_at)
        ) and facts.is_last_word(MARKETING, recipient)
        sent = transfer(
            asked_at, visitor, **ON_CONSENT, happened_at=happened_at, recipient=recipient
        )
        found = await against(bench, sent)
        assert (found == 0) is may, [(e.choices[0], e.catalogue_version, at) for e, at in said]
        verdicts[may] += 1
    assert min(verdicts.values()) > 5
