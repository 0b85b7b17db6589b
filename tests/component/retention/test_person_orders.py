"""Erasures, restrictions and legal holds on real PostgreSQL (R-D3, R-G3, R-G4, R-D9)."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.retention import (
    VISITORS_MAX,
    DataKind,
    RetentionAction,
    RetentionOrderV1,
    RetentionReceiptV1,
)
from services.privacy import calendar
from services.retention.handlers import on_receipts
from services.retention.person_orders import (
    NAMES_LIFE,
    PROPOSAL_LIFE,
    SEND_AGAIN_AFTER,
    Author,
    PersonOrders,
    RefusedError,
)
from services.retention.protection_store import ProtectionStore
from services.retention.protections import REVIEW_MAX, Refusal, Scope
from services.retention.schedule import ThreatAssessment, ThreatLevel, load
from services.retention.settings import DEFAULT_SCHEDULE
from services.retention.store import INVARIANTS, Store
from services.retention.wire import describe
from tests.support.bench import IDS, Bench, new_visitor_id, open_bench, received
from tests.support.identities import sign
from tests.support.stack import World

WORLD_SERVICES = ("retention",)
SCHEDULE = load(DEFAULT_SCHEDULE)
QUARTER_HOUR = timedelta(minutes=15)
ANNA = Author(staff_id="staff-1", case_number="STRAF-2026-3")
BERT = "staff-2"


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    """A bench of tomorrow: by the database's clock no order is overdue, whatever the hour."""
    async with open_bench(world, "retention", Store) as found:
        found.now += timedelta(days=1)
        await found.fetch("SELECT chassis_outbox_maintain()")
        yield found


class Desk:
    """Issues orders, one transaction each, and keeps what was sent."""

    def __init__(self, bench: Bench[Store]) -> None:
        self.bench = bench
        self.schedule = SCHEDULE
        self.review_max = REVIEW_MAX
        self.sent: list[RetentionOrderV1] = []

    async def do(self, name: str, *arguments: object, **more: object):
        async with self.bench.transaction() as ctx:
            orders = PersonOrders(ctx, self.schedule, QUARTER_HOUR, self.review_max, sign)
            found = await getattr(orders, name)(*arguments, **more)
            self.sent = self.bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
        return found

    async def propose(self, *visitors: UUID, author: Author = ANNA, **more: object) -> UUID:
        today = self.bench.now.date()
        scope = Scope(
            kinds=("traffic_data", "ad_use"),
            from_day=today - timedelta(days=3),
            before_day=today + timedelta(days=1),
            names_visitors=bool(visitors),
        )
        given = {
            "ground": "criminal_complaint",
            "scope": scope,
            "review_on": today + timedelta(days=90),
            "visitor_ids": visitors,
        }
        found: UUID = await self.do("propose_hold", author, **(given | more))
        return found

    async def refused(self, *arguments: object, **more: object) -> Refusal:
        with pytest.raises(RefusedError) as caught:
            await self.do(*arguments, **more)  # type: ignore[arg-type]
        return caught.value.refusal

    async def answered(self) -> None:
        """Let every service answer the orders that were sent last."""
        receipts = [
            RetentionReceiptV1(
                order_id=order.order_id,
                service=service,
                kind=order.kind,
                counts=(),
                done_at=self.bench.now,
            )
            for order in self.sent
            for service in topics.RETENTION_ORDER.consumers
        ]
        async with self.bench.transaction() as ctx:
            topic = topics.RETENTION_RECEIPT
            await on_receipts(ctx, [received(topic, one, self.bench.now) for one in receipts])

    async def names(self, protection_id: UUID) -> list[UUID]:
        return await ProtectionStore(self.bench.connection).names(protection_id)

    async def violations(self) -> dict[str, int]:
        found = {name: (await self.bench.fetch(q))[0][0] for name, q in INVARIANTS.items()}
        return {name: n for name, n in found.items() if n}


@pytest.fixture
def desk(bench: Bench[Store]) -> Desk:
    return Desk(bench)


async def test_an_erasure_names_everybody_once_in_orders_that_fit_on_the_topic(desk: Desk) -> None:
    """R-G3: all kinds that a visitor's id reaches, up to today; the names are kept nowhere here."""
    visitors = [new_visitor_id() for _ in range(VISITORS_MAX + 5)]
    order_ids = await desk.do("erase", ANNA, [*visitors, *visitors[:9]])
    assert [order.order_id for order in desk.sent] == order_ids
    assert [len(order.visitor_ids) for order in desk.sent] == [VISITORS_MAX, 5]
    assert {v for order in desk.sent for v in order.visitor_ids} == set(visitors)
    first = desk.sent[0]
    assert {kind.value for kind in first.kinds} == {"ad_use", "ip_address", "traffic_data"}
    assert first.before_day == desk.bench.now.date() + timedelta(days=1)
    rows = await desk.bench.fetch(
        "SELECT n_visitors, staff_id, case_number FROM retention_person_order"
        " WHERE order_id = ANY($1) ORDER BY 1",
        order_ids,
    )
    expected = [(5, "staff-1", "STRAF-2026-3"), (VISITORS_MAX, "staff-1", "STRAF-2026-3")]
    assert [tuple(row) for row in rows] == expected
    assert not await desk.bench.fetch("SELECT FROM privacy_visitor")
    assert await desk.violations() == {}


async def test_names_leave_the_topic_after_five_days(desk: Desk) -> None:
    """R-D5: the copy has the order's key and no names, and is sent once.

    Not when all have answered: a backup of those days needs the names again.
    """
    await desk.do("erase", ANNA, [new_visitor_id()])
    (order,) = desk.sent
    desk.sent = [order]
    await desk.answered()
    await desk.do("take_names_away")
    assert order.order_id not in {one.order_id for one in desk.sent}
    desk.bench.now += NAMES_LIFE + timedelta(minutes=1)
    await desk.do("take_names_away")
    (copy,) = [one for one in desk.sent if one.order_id == order.order_id]
    assert copy == order.model_copy(update={"visitor_ids": (), "names_gone": True})
    assert topics.RETENTION_ORDER.key_of(copy) == topics.RETENTION_ORDER.key_of(order)
    assert await desk.do("take_names_away") == 0


async def test_names_leave_the_topic_after_five_days_though_a_service_is_silent(desk: Desk) -> None:
    """R-D5: by then what they stood for is nearly due by age; the order stays open (D3)."""
    (order_id,) = await desk.do("erase", ANNA, [new_visitor_id()])
    desk.bench.now += NAMES_LIFE - timedelta(minutes=1)
    await desk.do("take_names_away")
    assert order_id not in {order.order_id for order in desk.sent}
    desk.bench.now += timedelta(minutes=2)
    await desk.do("take_names_away")
    assert order_id in {order.order_id for order in desk.sent if order.names_gone}


async def test_a_hold_that_somebody_has_not_heard_of_is_ordered_anew_with_its_names(
    desk: Desk,
) -> None:
    """D2: without names nobody could place it; who was away for a week finds them again."""
    visitor_id = new_visitor_id()
    hold = await desk.propose(visitor_id)
    await desk.do("place_hold", BERT, hold)
    (first,) = desk.sent
    desk.bench.now += NAMES_LIFE + timedelta(minutes=1)
    await desk.do("take_names_away")
    (again,) = [order for order in desk.sent if order.protection_id == hold]
    # the same order: who has answered it repeats the answer, and nobody owes two
    assert again == first
    await desk.do("take_names_away")
    assert [order for order in desk.sent if order.protection_id == hold] == []
    # once all have answered, and once it is lifted, nobody needs to hear of it
    desk.sent = [again]
    await desk.answered()
    desk.bench.now += NAMES_LIFE + timedelta(minutes=1)
    desk.sent = []
    await desk.do("take_names_away")
    ours = [order for order in desk.sent if order.protection_id == hold]
    assert [(order.order_id, order.names_gone) for order in ours] == [(first.order_id, True)]
    assert await desk.violations() == {}


async def test_each_order_of_a_large_hold_names_the_same_persons_again(desk: Desk) -> None:
    """D2, R-D3: nobody is left out where the names filled more than one order."""
    hold = await desk.propose(*(new_visitor_id() for _ in range(VISITORS_MAX + 5)))
    await desk.do("place_hold", BERT, hold)
    first = {order.order_id: order.visitor_ids for order in desk.sent}
    desk.bench.now += NAMES_LIFE + timedelta(minutes=1)
    await desk.do("take_names_away")
    again = {o.order_id: o.visitor_ids for o in desk.sent if o.protection_id == hold}
    assert again == first
    assert len(again) == 2


async def settle(desk: Desk) -> None:
    """Let all orders of earlier tests be answered, so that only what follows is open."""
    standings = await Store(desk.bench.connection).open_orders()
    for standing in standings:
        receipts = [
            RetentionReceiptV1(
                order_id=standing.order.order_id,
                service=name,
                kind=DataKind(standing.order.kind),
                counts=(),
                done_at=desk.bench.now,
            )
            for name in standing.order.expected
        ]
        async with desk.bench.transaction() as ctx:
            topic = topics.RETENTION_RECEIPT
            await on_receipts(ctx, [received(topic, one, desk.bench.now) for one in receipts])


async def test_an_open_order_is_sent_again_before_it_leaves_its_topic(desk: Desk) -> None:
    """D3: the same order, each 20 days while somebody owes the answer, and no more often."""
    await settle(desk)
    assert timedelta(milliseconds=topics.RETENTION_ORDER.retention_ms) > SEND_AGAIN_AFTER
    await desk.do("erase", ANNA, [new_visitor_id()])
    (erasure,) = desk.sent
    hold = await desk.propose()
    await desk.do("place_hold", BERT, hold)
    (held,) = desk.sent
    desk.bench.now += SEND_AGAIN_AFTER - timedelta(days=1)
    await desk.do("take_names_away")
    assert await desk.do("send_open_again") == 0
    desk.bench.now += timedelta(days=1, minutes=1)
    # the erasure was sent a day ago, as its copy without names
    assert await desk.do("send_open_again") == 1
    assert desk.sent == [held]
    assert await desk.do("send_open_again") == 0
    desk.bench.now += SEND_AGAIN_AFTER - timedelta(days=1)
    assert await desk.do("send_open_again") == 1
    assert desk.sent == [erasure.model_copy(update={"visitor_ids": (), "names_gone": True})]
    desk.sent = [erasure]
    await desk.answered()
    await desk.do("propose_release", BERT, hold)
    await desk.do("release_hold", ANNA.staff_id, hold)
    await desk.answered()
    desk.bench.now += SEND_AGAIN_AFTER + timedelta(minutes=1)
    # lifted meanwhile: who has not heard of it must not begin with it
    assert await desk.do("send_open_again") == 1
    assert [(order.order_id, order.names_gone) for order in desk.sent] == [(held.order_id, True)]
    await desk.answered()
    desk.bench.now += SEND_AGAIN_AFTER + timedelta(minutes=1)
    assert await desk.do("send_open_again") == 0


async def test_two_persons_waive_an_answer_that_never_comes(desk: Desk) -> None:
    """D3, R-D9: it shows as waived and never as answered; the order ends, and its alarm."""
    (order_id,) = await desk.do("erase", ANNA, [new_visitor_id()])
    silent, *others = topics.RETENTION_ORDER.consumers

    async def refused(*arguments: object) -> Refusal:
        return await desk.refused("waive", *arguments)

    gone = "decommissioned"
    assert await refused(BERT, order_id, silent, gone) is Refusal.NOT_OVERDUE
    desk.bench.now += QUARTER_HOUR * 2
    assert await refused(BERT, IDS.new(), silent, gone) is Refusal.NOT_FOUND
    assert await refused(BERT, order_id, "billing", gone) is Refusal.NOT_EXPECTED
    assert await refused("Bert", order_id, silent, gone) is Refusal.STAFF_ID_MALFORMED
    assert await refused(BERT, order_id, silent, None) is Refusal.NOTHING_PROPOSED
    for name in others:
        await answer(desk, order_id, name)
    assert await refused(BERT, order_id, others[0], gone) is Refusal.ANSWERED_ALREADY
    assert await desk.do("waive", BERT, order_id, silent, gone) is False
    assert await refused(BERT, order_id, silent, None) is Refusal.SAME_PERSON
    standing = (await Store(desk.bench.connection).standings([order_id]))[order_id]
    assert (standing.waived, standing.completed_at) == ((), None)
    before = await Store(desk.bench.connection).count_waived()
    assert await desk.do("waive", "staff-3", order_id, silent, None) is True
    assert await Store(desk.bench.connection).count_waived() == before + 1
    standing = (await Store(desk.bench.connection).standings([order_id]))[order_id]
    (waived,) = standing.waived
    assert (waived.holder, waived.proposed_by, waived.confirmed_by) == (silent, BERT, "staff-3")
    assert standing.completed_at == desk.bench.now
    assert {receipt.service for receipt in standing.receipts} == set(others)
    assert describe(standing)["silent"] == []
    assert await refused("staff-4", order_id, silent, None) is Refusal.ANSWERED_ALREADY
    assert await desk.violations() == {}
    # it answers after all: both stand
    await answer(desk, order_id, silent)
    standing = (await Store(desk.bench.connection).standings([order_id]))[order_id]
    assert len(standing.receipts) == len(topics.RETENTION_ORDER.consumers)
    assert len(standing.waived) == 1
    assert await desk.violations() == {}


async def test_the_database_too_wants_two_persons_for_a_waiver(desk: Desk) -> None:
    """D3: and none for an answer that is there; D3's query counts who is neither."""
    (order_id,) = await desk.do("erase", ANNA, [new_visitor_id()])
    silent, other, _ = topics.RETENTION_ORDER.consumers
    await answer(desk, order_id, other)
    for holder, says in ((silent, "same person"), (other, "is there")):
        waiver = IDS.new()
        await desk.bench.fetch(
            "INSERT INTO retention_waiver VALUES ($1, $2, $3, 'dead_letter', 'staff-1', now(), 'k',"
            " decode(repeat('00', 64), 'hex'))",
            *(waiver, order_id, holder),
        )
        with pytest.raises(asyncpg.CheckViolationError, match=says):
            await desk.bench.fetch(
                "INSERT INTO retention_waiver_confirmation VALUES ($1, $2, now())",
                *(waiver, "staff-1" if holder == silent else "staff-2"),
            )
    assert "d3_complete_only_with_all_receipts" not in await desk.violations()
    attempt = desk.bench.connection.transaction()
    await attempt.start()
    await desk.bench.fetch("INSERT INTO retention_completion VALUES ($1, now())", order_id)
    assert (await desk.violations())["d3_complete_only_with_all_receipts"] == 1
    await attempt.rollback()


async def answer(desk: Desk, order_id: UUID, service: str) -> None:
    standing = (await Store(desk.bench.connection).standings([order_id]))[order_id]
    receipt = RetentionReceiptV1(
        order_id=order_id,
        service=service,
        kind=DataKind(standing.order.kind),
        counts=(),
        done_at=desk.bench.now,
    )
    async with desk.bench.transaction() as ctx:
        await on_receipts(ctx, [received(topics.RETENTION_RECEIPT, receipt, desk.bench.now)])


async def test_a_proposal_does_not_wait_for_ever(desk: Desk) -> None:
    """D1, R-D3: nobody's id is kept for long on the word of one person; what was so may be over."""
    old, late = await desk.propose(new_visitor_id()), await desk.propose(new_visitor_id())
    await desk.do("withdraw_old_proposals")
    assert len(await desk.names(old)) == len(await desk.names(late)) == 1
    desk.bench.now += PROPOSAL_LIFE + timedelta(minutes=1)
    assert await desk.do("withdraw_old_proposals") >= 2
    assert await desk.names(old) == await desk.names(late) == []
    assert await desk.refused("place_hold", BERT, old) is Refusal.OUT_OF_TURN
    soon = desk.bench.now.date() + timedelta(days=1)
    hold = await desk.propose(new_visitor_id(), review_on=soon)
    desk.bench.now += timedelta(days=2)
    assert await desk.refused("place_hold", BERT, hold) is Refusal.REVIEW_NOT_AHEAD
    assert await desk.violations() == {}


@pytest.mark.parametrize(
    ("author", "visitors", "refusal"),
    [
        (Author(staff_id="Anna", case_number="AUSK-2026-1"), 1, Refusal.STAFF_ID_MALFORMED),
        (Author(staff_id="staff-1", case_number="+4930"), 1, Refusal.CASE_NUMBER_MALFORMED),
        (ANNA, 0, Refusal.NOBODY_NAMED),
    ],
)
@pytest.mark.parametrize("what", ["erase", "restrict"])
async def test_what_is_not_in_form_is_refused_and_changes_nothing(
    desk: Desk, what: str, author: Author, visitors: int, refusal: Refusal
) -> None:
    """R-D9, R-C5: nothing personal hides in an author or a case number."""
    before = await desk.bench.fetch("SELECT count(*) FROM retention_order")
    ids = [new_visitor_id() for _ in range(visitors)]
    assert await desk.refused(what, author, ids) is refusal
    assert await desk.bench.fetch("SELECT count(*) FROM retention_order") == before


async def test_a_restriction_is_lifted_for_its_own_case_once(desk: Desk) -> None:
    """R-G4."""
    visitor = new_visitor_id()
    restriction, (order_id,) = await desk.do("restrict", ANNA, [visitor])
    (order,) = desk.sent
    assert (order.order_id, order.action) == (order_id, RetentionAction.RESTRICT)
    assert (order.protection_id, order.visitor_ids) == (restriction, (visitor,))
    other = Author(staff_id="staff-1", case_number="AUSK-2026-9")
    assert await desk.refused("unrestrict", other, restriction) is Refusal.CASE_DIFFERS
    await desk.do("unrestrict", ANNA, restriction)
    (lifted,) = desk.sent
    assert (lifted.action, lifted.visitor_ids) == (RetentionAction.UNRESTRICT, ())
    assert lifted.before_day == desk.bench.now.date() - timedelta(days=6)
    assert await desk.names(restriction) == []
    assert await desk.refused("unrestrict", ANNA, restriction) is Refusal.OUT_OF_TURN
    assert await desk.refused("unrestrict", ANNA, IDS.new()) is Refusal.NOT_FOUND


async def test_two_persons_place_a_hold_and_two_lift_it(desk: Desk) -> None:
    """R-D3: case, scope, ground, author, review date; what was proposed holds nothing."""
    visitor = new_visitor_id()
    hold = await desk.propose(visitor)
    assert desk.sent == []
    assert await desk.refused("place_hold", ANNA.staff_id, hold) is Refusal.SAME_PERSON
    await desk.do("place_hold", BERT, hold)
    (order,) = desk.sent
    assert (order.action, order.protection_id) == (RetentionAction.HOLD, hold)
    assert order.visitor_ids == (visitor,)
    assert order.from_day == desk.bench.now.date() - timedelta(days=3)
    assert await desk.refused("place_hold", BERT, hold) is Refusal.OUT_OF_TURN
    assert await desk.refused("release_hold", BERT, hold) is Refusal.OUT_OF_TURN
    await desk.do("send_again", BERT, hold)
    assert desk.sent[0].visitor_ids == (visitor,)
    await desk.do("propose_release", BERT, hold)
    assert await desk.refused("release_hold", BERT, hold) is Refusal.SAME_PERSON
    await desk.do("release_hold", ANNA.staff_id, hold)
    assert desk.sent[0].action is RetentionAction.RELEASE
    assert await desk.names(hold) == []
    assert await desk.refused("send_again", BERT, hold) is Refusal.NOT_FOUND
    assert await desk.violations() == {}


async def test_the_database_too_wants_a_second_person(desk: Desk) -> None:
    """R-D3: whatever the program does."""
    hold = await desk.propose()
    with pytest.raises(asyncpg.CheckViolationError, match="same person"):
        await desk.bench.fetch(
            "INSERT INTO retention_protection_step VALUES ($1, 'placed', 'staff-1', now())", hold
        )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await desk.bench.fetch("UPDATE retention_protection_step SET staff_id = 'staff-9'")


async def test_a_hold_that_was_only_proposed_can_be_given_up(desk: Desk) -> None:
    """R-D3: its names go with it."""
    hold = await desk.propose(new_visitor_id())
    assert len(await desk.names(hold)) == 1
    await desk.do("withdraw_hold", BERT, hold)
    assert await desk.names(hold) == []
    assert await desk.refused("place_hold", BERT, hold) is Refusal.OUT_OF_TURN
    assert await desk.violations() == {}


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"kinds": ("gossip",)}, Refusal.KIND_UNKNOWN),
        ({"kinds": ("contract",), "names_visitors": False}, Refusal.KEPT_ELSEWHERE),
        ({"kinds": ("deletion_receipt",), "names_visitors": False}, Refusal.KEPT_ELSEWHERE),
        ({"kinds": ()}, Refusal.NOTHING_TO_HOLD),
        ({"kinds": ("consent_record",), "names_visitors": True}, Refusal.NOTHING_TO_HOLD),
        ({"names_visitors": True}, Refusal.NOBODY_NAMED),
        ({"from_day": 2}, Refusal.DAYS_REVERSED),
    ],
)
async def test_a_hold_of_nothing_is_refused(desk: Desk, change, refusal: Refusal) -> None:
    """R-D3, D2: a hold must not promise what nobody can do."""
    today = desk.bench.now.date()
    if "from_day" in change:
        change = {"from_day": today + timedelta(days=change["from_day"])}
    given = {
        "kinds": ("traffic_data",),
        "from_day": None,
        "before_day": today + timedelta(days=1),
        "names_visitors": False,
    }
    with pytest.raises(RefusedError, match=refusal.value):
        await desk.propose(scope=Scope(**(given | change)))


@pytest.mark.parametrize(
    ("days", "refusal"), [(0, Refusal.REVIEW_NOT_AHEAD), (400, Refusal.REVIEW_TOO_FAR)]
)
async def test_a_review_lies_ahead_and_within_a_year(desk: Desk, days: int, refusal) -> None:
    """R-D3: a hold never lengthens by accident."""
    day = desk.bench.now.date() + timedelta(days=days)
    with pytest.raises(RefusedError, match=refusal.value):
        await desk.propose(review_on=day)


async def test_a_hold_past_its_review_is_a_violation_until_it_is_reviewed(desk: Desk) -> None:
    """R-D3."""
    start = desk.bench.now
    desk.bench.now = start - timedelta(days=100)
    await desk.bench.fetch("SELECT chassis_outbox_maintain()")
    hold = await desk.propose(review_on=(start - timedelta(days=10)).date())
    await desk.do("place_hold", BERT, hold)
    await desk.answered()
    desk.bench.now = start
    assert (await desk.violations())["r_d3_none_past_its_review"] == 1
    later = (start + timedelta(days=30)).date()
    await desk.do("propose_review", BERT, hold, later, "proceedings_pending")
    assert (await desk.violations())["r_d3_none_past_its_review"] == 1
    await desk.do("confirm_review", "staff-3", hold, later)
    assert await desk.violations() == {}
    await desk.do("propose_release", BERT, hold)
    await desk.do("release_hold", "staff-3", hold)


async def test_a_review_takes_two_persons_a_reason_and_never_moves_back(desk: Desk) -> None:
    """R-D3: a hold goes on because two say so; the last proposal counts, and not for ever."""
    hold = await desk.propose()
    today = calendar.berlin_date(desk.bench.now)
    days = [today + timedelta(days=n) for n in (60, 90, 120, 150, 400)]
    reason = "claim_open"
    assert await desk.refused("propose_review", BERT, hold, days[2], reason) is Refusal.OUT_OF_TURN
    await desk.do("place_hold", BERT, hold)
    for day, why, refusal in (
        (days[0], reason, Refusal.REVIEW_NOT_LATER),
        (days[1], reason, Refusal.REVIEW_NOT_LATER),
        (days[4], reason, Refusal.REVIEW_TOO_FAR),
        (days[2], "accuracy_disputed", Refusal.REASON_UNFIT),
    ):
        assert await desk.refused("propose_review", BERT, hold, day, why) is refusal
    assert await desk.refused("confirm_review", BERT, hold, days[2]) is Refusal.NOTHING_PROPOSED
    await desk.do("propose_review", BERT, hold, days[2], reason)
    await desk.do("propose_review", BERT, hold, days[3], reason)
    assert await desk.refused("confirm_review", BERT, hold, days[3]) is Refusal.SAME_PERSON
    assert await desk.refused("confirm_review", "staff-3", hold, days[2]) is Refusal.REVIEW_DIFFERS
    desk.bench.now += PROPOSAL_LIFE + timedelta(minutes=1)
    stale = await desk.refused("confirm_review", "staff-3", hold, days[3])
    assert stale is Refusal.NOTHING_PROPOSED
    await desk.do("propose_review", BERT, hold, days[3], reason)
    await desk.do("confirm_review", "staff-3", hold, days[3])
    again = await desk.refused("confirm_review", "staff-3", hold, days[3])
    assert again is Refusal.NOTHING_PROPOSED
    found = await ProtectionStore(desk.bench.connection).protection(hold)
    assert found is not None
    assert found.review_on == days[3]
    assert await desk.refused("propose_review", BERT, IDS.new(), days[3], reason) is (
        Refusal.NOT_FOUND
    )
    assert await desk.violations() == {}


async def test_an_installation_may_want_reviews_sooner(desk: Desk) -> None:
    """R-D3: the bound is a setting, of a year at most."""
    desk.review_max = timedelta(days=80)
    with pytest.raises(RefusedError, match="review_too_far"):
        await desk.propose()
    restriction, _ = await desk.do("restrict", ANNA, [new_visitor_id()])
    found = await ProtectionStore(desk.bench.connection).protection(restriction)
    assert found is not None
    assert found.review_on == calendar.berlin_date(desk.bench.now) + desk.review_max


async def test_the_database_too_lets_no_review_move_back_or_far(desk: Desk) -> None:
    """R-D3: whatever the program does."""
    hold = await desk.propose()
    await desk.do("place_hold", BERT, hold)
    today = calendar.berlin_date(desk.bench.now)
    for days, staff_id, says in (
        (120, "staff-1", "same person"),
        (90, "staff-3", "moves ahead"),
        (400, "staff-3", "moves ahead"),
    ):
        review = IDS.new()
        await desk.bench.fetch(
            "INSERT INTO retention_review VALUES ($1, $2, $3, 'claim_open', 'staff-1', now(), 'k',"
            " decode(repeat('00', 64), 'hex'))",
            *(review, hold, today + timedelta(days=days)),
        )
        with pytest.raises(asyncpg.CheckViolationError, match=says):
            await desk.bench.fetch(
                "INSERT INTO retention_review_confirmation VALUES ($1, $2, now())",
                *(review, staff_id),
            )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await desk.bench.fetch(
            "INSERT INTO retention_protection_review VALUES ($1, 'staff-9', $2, now())",
            *(hold, today + timedelta(days=120)),
        )


async def test_a_restriction_is_looked_at_again(desk: Desk) -> None:
    """R-G4: after 90 days where nobody says another day; two persons let it go on."""
    now, start = desk.bench.now, desk.bench.now - timedelta(days=92)
    desk.bench.now = start
    restriction, _ = await desk.do("restrict", ANNA, [new_visitor_id()])
    await desk.answered()
    desk.bench.now = now
    assert (await desk.violations())["r_d3_none_past_its_review"] == 1
    later = calendar.berlin_date(now) + timedelta(days=30)
    refused = await desk.refused("propose_review", BERT, restriction, later, "claim_open")
    assert refused is Refusal.REASON_UNFIT
    await desk.do("propose_review", BERT, restriction, later, "accuracy_disputed")
    await desk.do("confirm_review", "staff-3", restriction, later)
    desk.sent = []
    await desk.do("take_names_away")
    await desk.answered()
    assert await desk.violations() == {}


async def test_a_hold_covers_no_day_after_its_review(desk: Desk) -> None:
    """R-D3: those nobody has looked at when they begin."""
    today = desk.bench.now.date()
    scope = Scope(
        kinds=("traffic_data",),
        from_day=None,
        before_day=today + timedelta(days=32),
        names_visitors=False,
    )
    with pytest.raises(RefusedError, match="days_past_review"):
        await desk.propose(scope=scope, review_on=today + timedelta(days=30))
    await desk.propose(scope=scope, review_on=today + timedelta(days=31))


async def test_a_special_threat_holds_addresses_of_its_case_and_ends_by_itself(desk: Desk) -> None:
    """R-C3, R-D2: assessed, for named visitors' addresses only, and no day longer."""
    today = calendar.berlin_date(desk.bench.now)
    assessment = ThreatAssessment(
        assessed_on=today,
        level=ThreatLevel.SPECIAL,
        author="data-protection contact",
        reason="scripted calls from some addresses",
        ends_on=today + timedelta(days=30),
        case_id="ABWEHR-2026-7",
    )
    known = (*SCHEDULE.threat_assessments, assessment)
    desk.schedule = SCHEDULE.model_copy(update={"threat_assessments": known})
    author = Author(staff_id="staff-1", case_number="ABWEHR-2026-7")
    scope = Scope(
        kinds=("ip_address",),
        from_day=None,
        before_day=desk.bench.now.date() + timedelta(days=1),
        names_visitors=True,
    )
    given = {"ground": "special_threat", "scope": scope}
    for change, refusal in (
        ({"author": ANNA}, Refusal.NOT_ASSESSED),
        ({"scope": replace(scope, kinds=("ip_address", "ad_use"))}, Refusal.ADDRESSES_ONLY),
    ):
        with pytest.raises(RefusedError, match=refusal.value):
            await desk.propose(new_visitor_id(), **({"author": author} | given | change))  # type: ignore[arg-type]
    hold = await desk.propose(new_visitor_id(), author=author, **given)
    await desk.do("place_hold", BERT, hold)
    assert await desk.do("release_ended_threats") == 0
    desk.bench.now += timedelta(days=31)
    await desk.bench.fetch("SELECT chassis_outbox_maintain()")
    assert await desk.do("release_ended_threats") == 1
    (order,) = desk.sent
    assert (order.action, order.protection_id) == (RetentionAction.RELEASE, hold)
    assert await desk.names(hold) == []
    assert await desk.do("release_ended_threats") == 0


async def test_an_order_ends_with_the_last_answer_where_another_was_waived_before(
    desk: Desk,
) -> None:
    """D3: the one who is waived is waited for by nobody, whoever answers later."""
    (order_id,) = await desk.do("erase", ANNA, [new_visitor_id()])
    silent, *others = topics.RETENTION_ORDER.consumers
    desk.bench.now += QUARTER_HOUR * 2
    assert await desk.do("waive", BERT, order_id, silent, "decommissioned") is False
    assert await desk.do("waive", "staff-3", order_id, silent, None) is True
    for name in others:
        standing = (await Store(desk.bench.connection).standings([order_id]))[order_id]
        assert standing.completed_at is None, "others still owe theirs"
        await answer(desk, order_id, name)
    standing = (await Store(desk.bench.connection).standings([order_id]))[order_id]
    assert standing.completed_at == desk.bench.now
    assert await desk.violations() == {}
