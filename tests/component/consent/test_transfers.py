"""Transfers and refusals as consent keeps them, on real PostgreSQL (R-E2, R-D5, R-D10, K3)."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from schemas.transfer import TransferV1, TransferVerdict
from services.chassis.ids import TimeOrderedIds
from services.consent.classification import TABLES
from services.consent.handlers import on_consents
from services.consent.transfer_store import INVARIANTS, ConsentStore
from services.consent.transfers import on_transfers
from services.privacy import calendar
from services.privacy.declare import by_day
from services.privacy.executor import Executor
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


async def test_a_transfer_against_the_consent_is_a_violation(bench):
    """K2, K3: needed at the event and at the sending; a withdrawal has five seconds to arrive."""

    async def decide(visitor_id: UUID, decision: ConsentDecision, at: datetime) -> None:
        event = ConsentV1(
            decision_id=IDS.new(),
            visitor_id=visitor_id,
            choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=decision),),
            catalogue_version="2026-11.1",
            wording_version="2026-11.1",
            language="de",
            method=ConsentMethod.BANNER,
        )
        async with bench.transaction() as ctx:
            await on_consents(ctx, [received(topics.CONSENT, event, at)])

    start, seconds = bench.now - timedelta(hours=1), timedelta(seconds=1)
    visitor = new_visitor_id()
    await decide(visitor, ConsentDecision.GIVEN, start)
    await decide(visitor, ConsentDecision.WITHDRAWN, start + 60 * seconds)

    async def judged(happened_at: datetime, asked_at: datetime) -> int:
        before = await violations(bench)
        event = transfer(asked_at, visitor, **ON_CONSENT, happened_at=happened_at)
        await take(bench, event)
        after = await violations(bench)
        name = "k3_no_transfer_against_consent"
        return after[name] - before[name]

    assert await judged(start, start) == 0
    assert await judged(start + seconds, start + 59 * seconds) == 0
    assert await judged(start + seconds, start + 64 * seconds) == 0, "under way"
    assert await judged(start + seconds, start + 66 * seconds) == 1, "withdrawn before sending"
    assert await judged(start - seconds, start + seconds) == 1, "given after the event"
