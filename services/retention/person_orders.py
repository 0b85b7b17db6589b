"""Orders about persons, holds and restrictions: decided, recorded and enqueued in one transaction.

Whom an order names goes out with it and is not kept here, but for a hold: its names stand in a list
of their own, so that it can be sent again to a service whose database was restored. After
`NAMES_LIFE` a copy without names takes the order's place on its topic (ADR 0025).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from schemas import topics
from schemas.retention import VISITORS_MAX, DataKind, RetentionAction, RetentionOrderV1
from services.chassis.context import Context
from services.privacy import calendar
from services.privacy.staff import BY_SCHEDULE, Signer, sign_nothing
from services.retention import domain
from services.retention.domain import Order, Standing
from services.retention.protection_store import PersonOrder
from services.retention.protections import (
    PERSON_KINDS,
    RESTRICTION_REVIEW_AFTER,
    REVIEW_MAX,
    Ground,
    ProposedReview,
    Protection,
    Refusal,
    Scope,
    Step,
    refuse_author,
    refuse_confirmation,
    refuse_later_review,
    refuse_reach,
    refuse_review,
    refuse_scope,
    refuse_step,
    refuse_threat,
    refuse_unrestrict,
)
from services.retention.schedule import Schedule
from services.retention.store import ProposedWaiver, Store

NAMES_LIFE = timedelta(days=5)
"""Less than what `retention-order` allows what is personal (`personal_age_max_ms`)."""
PROPOSAL_LIFE = timedelta(days=3)
"""How long a proposed hold waits for the second person; its names are kept without one so long."""
NAMES_BATCH_MAX = 500
SEND_AGAIN_AFTER = timedelta(days=20)
"""So long after it was last sent an open order is sent again; it leaves its topic after 30 days."""
SEND_AGAIN_BATCH_MAX = 200
_ANY_CASE = "AUSK-2026-1"
_REQUIREMENT = {
    RetentionAction.ERASE: "R-G3",
    RetentionAction.RESTRICT: "R-G4",
    RetentionAction.UNRESTRICT: "R-G4",
    RetentionAction.HOLD: "R-D3",
    RetentionAction.RELEASE: "R-D3",
}


class RefusedError(Exception):
    """What was asked for is not done; nothing was changed."""

    def __init__(self, refusal: Refusal) -> None:
        """Take the reason."""
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, kw_only=True)
class Author:
    """Who asks, and for which case file: `staff-12`, `AUSK-2026-17`."""

    staff_id: str
    case_number: str


def _check(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise RefusedError(refusal)


class PersonOrders:
    """Issues orders on one open transaction.

    Every method raises RefusedError where it does nothing.
    """

    def __init__(
        self,
        ctx: Context[Store],
        schedule: Schedule,
        overdue_after: timedelta,
        review_max: timedelta = REVIEW_MAX,
        sign: Signer = sign_nothing,
    ) -> None:
        """Take the transaction and the schedule.

        Args:
            overdue_after: silence for longer than this is an alarm.
            review_max: how far ahead a review date may lie.
            sign: signs what somebody of the staff does; by itself the service signs nothing.
        """
        self._ctx = ctx
        self._store = ctx.store.protections
        self._schedule = schedule
        self._overdue_after = overdue_after
        self._review_max = review_max
        self._sign = sign

    # ------------------------------------------------------------------ persons

    async def erase(self, author: Author, visitor_ids: Sequence[UUID]) -> list[UUID]:
        """Order all rows of visitors to be erased; return the orders' ids."""
        _check(refuse_author(author.staff_id, author.case_number))
        if not visitor_ids:
            raise RefusedError(Refusal.NOBODY_NAMED)
        return [
            await self._issue(RetentionAction.ERASE, author, PERSON_KINDS, self._tomorrow(), some)
            for some in _portions(visitor_ids)
        ]

    async def restrict(
        self, author: Author, visitor_ids: Sequence[UUID], review_on: date | None = None
    ) -> tuple[UUID, list[UUID]]:
        """Order visitors' rows out of the live tables; return the restriction's and orders' ids.

        Args:
            review_on: when it is looked at again; None = after the usual time.
        """
        _check(refuse_author(author.staff_id, author.case_number))
        today = calendar.berlin_date(self._ctx.now)
        review_on = review_on or today + min(RESTRICTION_REVIEW_AFTER, self._review_max)
        _check(refuse_review(review_on, today, self._review_max))
        if not visitor_ids:
            raise RefusedError(Refusal.NOBODY_NAMED)
        scope = Scope(
            kinds=PERSON_KINDS,
            from_day=None,
            before_day=self._tomorrow(),
            names_visitors=True,
        )
        restriction = Protection(
            protection_id=self._ctx.ids.new(),
            is_hold=False,
            case_number=author.case_number,
            ground=None,
            scope=scope,
            review_on=review_on,
            steps={},
        )
        await self._ctx.store.lock()
        await self._store.propose(restriction, author.staff_id, self._ctx.now, self._sign)
        await self._store.keep_names(restriction.protection_id, visitor_ids)
        return restriction.protection_id, await self.send_hold(author.staff_id, restriction)

    async def unrestrict(self, author: Author, protection_id: UUID) -> UUID:
        """Order a restriction to be lifted; return the order's id."""
        _check(refuse_author(author.staff_id, author.case_number))
        await self._ctx.store.lock()
        found = await self._store.protection(protection_id)
        _check(refuse_unrestrict(found, author.case_number))
        assert found is not None
        return await self._end(author, found)

    # ------------------------------------------------------------------ holds

    async def propose_hold(
        self,
        author: Author,
        *,
        ground: str,
        scope: Scope,
        review_on: date,
        visitor_ids: Sequence[UUID],
    ) -> UUID:
        """Record a hold that somebody else has to place; return its id."""
        _check(refuse_author(author.staff_id, author.case_number))
        today = calendar.berlin_date(self._ctx.now)
        holdable = self._schedule.holdable_on(today)
        _check(refuse_scope(scope, frozenset(DataKind), holdable))
        cases = self._schedule.special_cases_on(today)
        _check(refuse_threat(ground, scope, author.case_number, cases))
        _check(refuse_review(review_on, today, self._review_max))
        _check(refuse_reach(scope, review_on))
        if scope.names_visitors and not visitor_ids:
            raise RefusedError(Refusal.NOBODY_NAMED)
        hold = Protection(
            protection_id=self._ctx.ids.new(),
            is_hold=True,
            case_number=author.case_number,
            ground=ground,
            scope=scope,
            review_on=review_on,
            steps={},
        )
        await self._ctx.store.lock()
        await self._store.propose(hold, author.staff_id, self._ctx.now, self._sign)
        if scope.names_visitors:
            await self._store.keep_names(hold.protection_id, visitor_ids)
        return hold.protection_id

    async def place_hold(self, staff_id: str, protection_id: UUID) -> list[UUID]:
        """Put a proposed hold in force; return the orders' ids."""
        hold = await self._step(Step.PLACED, staff_id, protection_id)
        today = calendar.berlin_date(self._ctx.now)
        assert hold.review_on is not None
        assert hold.ground is not None
        # what was so at the proposal may be over
        _check(refuse_review(hold.review_on, today, self._review_max))
        cases = self._schedule.special_cases_on(today)
        _check(refuse_threat(hold.ground, hold.scope, hold.case_number, cases))
        return await self.send_hold(staff_id, hold)

    async def withdraw_hold(self, staff_id: str, protection_id: UUID) -> None:
        """Give up a hold that was proposed and not placed."""
        hold = await self._step(Step.WITHDRAWN, staff_id, protection_id)
        if hold.scope.names_visitors:
            await self._store.forget_names(protection_id)

    async def propose_release(self, staff_id: str, protection_id: UUID) -> None:
        """Record that a hold is to be lifted, by somebody else."""
        await self._step(Step.RELEASE_PROPOSED, staff_id, protection_id)

    async def release_hold(self, staff_id: str, protection_id: UUID) -> UUID:
        """Lift a hold; return the order's id."""
        hold = await self._step(Step.RELEASED, staff_id, protection_id)
        return await self._end(Author(staff_id=staff_id, case_number=hold.case_number), hold)

    async def release_ended_threats(self) -> int:
        """Lift the holds whose special threat is over: it ends by itself (R-D2). Returns how many.

        No two persons here: they placed it for so long, and the assessment has its end.
        """
        over = set(self._schedule.special_holds_due(self._ctx.now))
        if not over:
            return 0
        await self._ctx.store.lock()
        found = [
            hold
            for hold in await self._store.protections_in_force()
            if hold.ground == Ground.SPECIAL_THREAT
            and hold.is_in_force
            and hold.case_number in over
        ]
        for hold in found:
            await self._store.take_step(
                hold.protection_id, Step.RELEASED, BY_SCHEDULE, self._ctx.now, self._sign
            )
            await self._end(Author(staff_id=BY_SCHEDULE, case_number=hold.case_number), hold)
        return len(found)

    async def propose_review(
        self, staff_id: str, protection_id: UUID, review_on: date, reason: str
    ) -> None:
        """Propose a later review date of a hold or restriction; the last proposal counts."""
        await self._may_review(staff_id, protection_id, review_on, reason)
        proposed = ProposedReview(
            review_id=self._ctx.ids.new(), review_on=review_on, reason=reason, staff_id=staff_id
        )
        await self._store.propose_review(protection_id, proposed, self._ctx.now, self._sign)

    async def confirm_review(self, staff_id: str, protection_id: UUID, review_on: date) -> None:
        """Set a later review date that somebody else has proposed, and not long ago."""
        await self._ctx.store.lock()
        since = self._ctx.now - PROPOSAL_LIFE
        proposed = await self._store.proposed_review(protection_id, since)
        _check(refuse_confirmation(proposed, review_on, staff_id))
        assert proposed is not None
        # what was so at the proposal may be over
        await self._may_review(staff_id, protection_id, review_on, proposed.reason)
        await self._store.confirm_review(proposed.review_id, staff_id, self._ctx.now, self._sign)

    async def _may_review(
        self, staff_id: str, protection_id: UUID, review_on: date, reason: str
    ) -> None:
        await self._ctx.store.lock()
        found = await self._store.protection(protection_id)
        today = calendar.berlin_date(self._ctx.now)
        _check(refuse_later_review(found, review_on, reason, today, self._review_max))
        assert found is not None
        _check(refuse_author(staff_id, found.case_number))

    async def send_again(self, staff_id: str, protection_id: UUID) -> list[UUID]:
        """Order what is in force once more, for a service whose database was restored."""
        found = await self._store.protection(protection_id)
        if found is None or not found.is_in_force:
            raise RefusedError(Refusal.NOT_FOUND)
        _check(refuse_author(staff_id, found.case_number))
        return await self.send_hold(staff_id, found)

    async def send_hold(self, staff_id: str, found: Protection) -> list[UUID]:
        """Send the orders of a protection with the names that are kept."""
        names = await self._store.names(found.protection_id)
        author = Author(staff_id=staff_id, case_number=found.case_number)
        return await self._protect(author, found, names)

    # ------------------------------------------------------------------ names leave the topic

    async def take_names_away(self) -> int:
        """Send copies without names of orders that are too old; return how many.

        Not before, though all have answered: a backup of those days, restored, needs the names. A
        protection in force that somebody has not heard of is sent again instead, under the same
        ids, with the names that are kept.
        """
        await self._ctx.store.lock()
        found = await self._store.with_names(self._ctx.now - NAMES_LIFE, NAMES_BATCH_MAX)
        standings = await self._ctx.store.standings([order_id for order_id, *_ in found])
        needed = await self._store.unanswered([order_id for order_id, *_ in found])
        gone: list[UUID] = []
        again: list[UUID] = []
        for order_id, kinds, from_day, protection_id in found:
            order = standings[order_id].order
            names = await self._names_of(order_id, protection_id) if order_id in needed else ()
            self._send(order, kinds, names, from_day, protection_id, names_gone=not names)
            (again if names else gone).append(order_id)
        await self._store.names_gone(gone, self._ctx.now)
        await self._store.sent_again(again, self._ctx.now, has_names=True)
        return len(found)

    async def _names_of(self, order_id: UUID, protection_id: UUID | None) -> Sequence[UUID]:
        """Return whom an order named: those of one protection and instant share its list."""
        assert protection_id is not None
        portions = _portions(await self._store.names(protection_id))
        place = await self._store.place_of(order_id)
        return portions[place] if place < len(portions) else ()

    async def send_open_again(self) -> int:
        """Send open orders once more before they leave the topic; return how many.

        Under their own ids: who has answered repeats it, who was away finds them. Without the names
        that are gone, and of a protection that is over without its beginning: both are answered
        with nothing done. Orders about records are judged anew by the sweep (`records.py`).
        """
        await self._ctx.store.lock()
        found = await self._store.open_for_long(
            self._ctx.now - SEND_AGAIN_AFTER, SEND_AGAIN_BATCH_MAX
        )
        standings = await self._ctx.store.standings([row.order_id for row in found])
        for row in found:
            self._send(
                standings[row.order_id].order,
                row.kinds,
                (),
                row.from_day,
                row.protection_id,
                names_gone=row.is_without_names,
            )
        await self._store.sent_again(
            [row.order_id for row in found], self._ctx.now, has_names=False
        )
        return len(found)

    # ------------------------------------------------------------------ answers that never come

    async def waive(self, staff_id: str, order_id: UUID, holder: str, reason: str | None) -> bool:
        """Propose to wait no longer for a holder's answer, or confirm what another one proposed.

        Args:
            reason: None confirms; the reason of a proposal by somebody else does so too.

        Returns:
            Whether it is waived by this; the order is complete then if nobody else is silent.
        """
        _check(refuse_author(staff_id, _ANY_CASE))
        await self._ctx.store.lock()
        now = self._ctx.now
        standing = (await self._ctx.store.standings([order_id])).get(order_id)
        _check(_refuse_waiver(standing, holder, now))
        assert standing is not None
        proposed = await self._ctx.store.proposed_waiver(order_id, holder, now - PROPOSAL_LIFE)
        if reason is not None and (proposed is None or proposed.reason != reason):
            new = ProposedWaiver(waiver_id=self._ctx.ids.new(), reason=reason, staff_id=staff_id)
            await self._ctx.store.propose_waiver(order_id, new, holder, now, self._sign)
            return False
        if proposed is None:
            raise RefusedError(Refusal.NOTHING_PROPOSED)
        if proposed.staff_id == staff_id:
            raise RefusedError(Refusal.SAME_PERSON)
        await self._ctx.store.confirm_waiver(proposed.waiver_id, staff_id, now, self._sign)
        if not domain.silent(standing.order, standing.settled | {holder}):
            await self._ctx.store.save_completions([order_id], now)
        return True

    async def withdraw_old_proposals(self) -> int:
        """Give up holds that nobody has placed in time, and their names; return how many."""
        await self._ctx.store.lock()
        found = await self._store.old_proposals(self._ctx.now - PROPOSAL_LIFE)
        for protection_id in found:
            await self._store.take_step(
                protection_id, Step.WITHDRAWN, BY_SCHEDULE, self._ctx.now, self._sign
            )
            await self._store.forget_names(protection_id)
        return len(found)

    # ------------------------------------------------------------------ parts

    async def _step(self, step: Step, staff_id: str, protection_id: UUID) -> Protection:
        await self._ctx.store.lock()
        hold = await self._store.protection(protection_id)
        _check(refuse_step(hold, step, staff_id))
        assert hold is not None
        _check(refuse_author(staff_id, hold.case_number))
        await self._store.take_step(protection_id, step, staff_id, self._ctx.now, self._sign)
        return hold

    async def _protect(
        self, author: Author, found: Protection, names: Sequence[UUID]
    ) -> list[UUID]:
        action = RetentionAction.HOLD if found.is_hold else RetentionAction.RESTRICT
        return [
            await self._issue(
                action,
                author,
                found.scope.kinds,
                found.scope.before_day,
                some,
                from_day=found.scope.from_day,
                protection_id=found.protection_id,
            )
            for some in _portions(names) or [()]
        ]

    async def _end(self, author: Author, found: Protection) -> UUID:
        if not found.is_hold:
            await self._store.take_step(
                found.protection_id, Step.RELEASED, author.staff_id, self._ctx.now, self._sign
            )
        if found.scope.names_visitors:
            await self._store.forget_names(found.protection_id)
        action = RetentionAction.RELEASE if found.is_hold else RetentionAction.UNRESTRICT
        return await self._issue(
            action,
            author,
            found.scope.kinds[:1],
            self._due_before(found.scope.kinds),
            (),
            protection_id=found.protection_id,
        )

    def _due_before(self, kinds: Sequence[str]) -> date:
        """Return the day before which all of the kinds are due; the next sweep takes the rest."""
        due = {entry.kind.value: entry.before_day for entry in self._schedule.due(self._ctx.now)}
        return min((due[kind] for kind in kinds if kind in due), default=self._ctx.now.date())

    def _tomorrow(self) -> date:
        return calendar.utc_date(self._ctx.now) + timedelta(days=1)

    async def _issue(
        self,
        action: RetentionAction,
        author: Author,
        kinds: Sequence[str],
        before_day: date,
        visitor_ids: Sequence[UUID],
        *,
        from_day: date | None = None,
        protection_id: UUID | None = None,
    ) -> UUID:
        ctx = self._ctx
        await ctx.store.lock()
        order = Order(
            order_id=ctx.ids.new(),
            kind=kinds[0],
            requirement=_REQUIREMENT[action],
            before_day=before_day,
            attempt=0,
            as_of=ctx.now,
            issued_at=ctx.now,
            overdue_at=ctx.now + self._overdue_after,
            expected=domain.answerers(topics.RETENTION_ORDER.consumers, as_of=ctx.now, now=ctx.now),
            action=action.value,
        )
        await ctx.store.save_order(order)
        await self._store.save_person_order(
            PersonOrder(
                order=order,
                kinds=tuple(kinds),
                case_number=author.case_number,
                staff_id=author.staff_id,
                n_visitors=len(visitor_ids),
                from_day=from_day,
                protection_id=protection_id,
                schedule_version=self._schedule.version,
            ),
            self._sign,
        )
        self._send(order, kinds, visitor_ids, from_day, protection_id)
        return order.order_id

    def _send(
        self,
        order: Order,
        kinds: Sequence[str],
        visitor_ids: Sequence[UUID],
        from_day: date | None,
        protection_id: UUID | None,
        *,
        names_gone: bool = False,
    ) -> None:
        self._ctx.outbox.add(
            topics.RETENTION_ORDER,
            RetentionOrderV1(
                order_id=order.order_id,
                kind=DataKind(order.kind),
                action=RetentionAction(order.action),
                before_day=order.before_day,
                as_of=order.as_of,
                other_kinds=tuple(DataKind(kind) for kind in kinds[1:]),
                visitor_ids=tuple(visitor_ids),
                from_day=from_day,
                protection_id=protection_id,
                names_gone=names_gone,
            ),
        )


def _refuse_waiver(standing: Standing | None, holder: str, now: datetime) -> Refusal | None:
    if standing is None:
        return Refusal.NOT_FOUND
    if holder not in standing.order.expected:
        return Refusal.NOT_EXPECTED
    if holder in standing.settled:
        return Refusal.ANSWERED_ALREADY
    return None if now > standing.order.overdue_at else Refusal.NOT_OVERDUE


def _portions(visitor_ids: Sequence[UUID]) -> list[Sequence[UUID]]:
    """Return visitors without repetition, in portions that one order may name."""
    distinct = list(dict.fromkeys(visitor_ids))
    return list(_cut(distinct))


def _cut(visitor_ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for start in range(0, len(visitor_ids), VISITORS_MAX):
        yield visitor_ids[start : start + VISITORS_MAX]
