"""Carries out retention orders in any service and answers with counts (D1, D2, D3, D4).

One transaction holds the deed, its record and the receipt, so that there is no receipt without its
deed and no deed without its receipt. An order that comes again gets the receipt of the first time.
Rows are dropped, erased and set aside by the database owner's functions (`order_store.py`), which
spare what is protected whatever this code does; what is settled before is the service's.

A poll only notes its drops (`retention_later`), for they take locks that nobody can pass, and what
is about everybody's rows (a hold without names, its end), for a poll must not last so long: each is
carried out in a transaction of its own, at once after that, by the task of `waiting.py`. A poll
that meets such a transaction notes all of its orders, unseen: they are looked at next, before
anything else is carried out, as if the poll had waited.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from schemas import topics
from schemas.retention import (
    RetentionAction,
    RetentionOrderV1,
    RetentionReceiptV1,
)
from services.chassis import db, errors, logs
from services.chassis.context import Context
from services.chassis.errors import Poison
from services.chassis.received import Received
from services.privacy import erased, receipts
from services.privacy.chain import SigningKeys
from services.privacy.declare import Table
from services.privacy.order_store import Counts, Done, OrderStore, Protection

AHEAD_MAX = timedelta(minutes=5)
"""How far an order's instant may lie in the future on a stack that is no simulation."""
_FIRST = UUID(int=0)
POLL_WAITS_S = 1.0
"""For somebody else who carries out orders; a drop may take an hour, a poll must not."""
NOTED_MAX = 200
"""Orders noted unseen: each that names visitors is a partition. Beyond that a poll waits."""
WAITING_MAX = 20
"""Orders tried again in one transaction."""


BeforeDrop = Callable[[Context[Any], Table, RetentionOrderV1], Awaitable[None]]
Busy = Callable[[Context[Any], Collection[UUID]], Awaitable[set[UUID]]]
MakeFigures = Callable[[Context[Any], Table, date], Awaitable[int]]
Settle = Callable[[Context[Any], Collection[UUID], date], Awaitable[None]]
Orders = Sequence[Received[RetentionOrderV1]]


async def _settle_nothing(_: Context[Any], __: Table, ___: RetentionOrderV1) -> None:
    """Stand in where a service has nothing to settle before a drop."""


async def _nobody_is_busy(_: Context[Any], __: Collection[UUID]) -> set[UUID]:
    """Stand in where no row of a visitor is ever in use."""
    return set()


async def _nothing_is_open(_: Context[Any], __: Collection[UUID], ___: date) -> None:
    """Stand in where a visitor has nothing to settle."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a service does around an order, in the order's transaction.

    Attributes:
        before_drop: called per table before rows go: the service settles what must outlive them,
            and may enqueue events.
        busy: returns those of the visitors whose rows are in use (a live call): the order waits.
        settle: closes what visitors have open in days before a day, before their rows go.
        figures: makes the anonymised figures of a table with `has_figures`, of its days before a
            day that were not counted yet; returns how many.
    """

    before_drop: BeforeDrop = _settle_nothing
    busy: Busy = _nobody_is_busy
    settle: Settle = _nothing_is_open
    figures: MakeFigures | None = None


class Executor:
    """Carries out a service's orders; drops, and those that must wait, by `retry`."""

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        simulation: bool,
        hooks: Hooks | None = None,
        keys: SigningKeys | None = None,
    ) -> None:
        """Take what the service declares.

        Args:
            tables: all its tables of personal data; an order of a kind that none of them has is
                answered too, with no counts (D3).
            simulation: whether orders may be as of an instant in the future.
            hooks: the service's own part.
            keys: sign the receipts; without them retention takes none.
        """
        self._keys = keys
        self._tables = tuple(tables)
        self._simulation = simulation
        self._hooks = hooks or Hooks()
        self._tried_last = _FIRST
        self._is_noted = asyncio.Event()
        self._gave_way: set[UUID] = set()

    async def on_orders(
        self, ctx: Context[Any], orders: Sequence[Received[RetentionOrderV1]]
    ) -> None:
        """Handle `retention-order`: deed, record and receipt, or a place in the waiting line.

        A drop always gets that place: what comes with it and is to be kept is said before it goes.

        Raises:
            Poison: the order contradicts what this service knows; nothing is changed.
        """
        store = OrderStore(ctx.connection)
        ours = [received for received in orders if received.event.holder is None]
        if len(ours) < len(orders):
            # about records outside: their holder answers, and nobody else
            ctx.count(topics.RETENTION_ORDER, "not_ours", len(orders) - len(ours))
        if not self._simulation and any(r.event.as_of > ctx.now + AHEAD_MAX for r in ours):
            raise Poison("order_from_the_future")
        if not await self._has_its_turn(store, len(ours)):
            for received in ours:
                ctx.count(topics.RETENTION_ORDER, await self._note(ctx, store, received))
            return
        await self._see_noted(ctx, store)
        for _, alike in itertools.groupby(ours, _what_is_done_together):
            for received in await self._take_new_erasures(ctx, store, list(alike)):
                outcome = await self._take(ctx, store, received)
                ctx.count(topics.RETENTION_ORDER, outcome)

    async def until_noted(self, within_s: float) -> None:
        """Wait until a poll has noted something, or so long.

        The poll may not have committed then; whoever looks stands behind it (`be_alone`), but for
        one that found somebody else at work: what it noted is seen with the next look.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_noted.wait(), within_s)
        self._is_noted.clear()

    async def retry(self, ctx: Context[Any]) -> bool:
        """Carry out waiting orders that can be now; return whether there are others to try.

        In rotation, so that none waits for another one's calls to end; a drop alone, so that
        no table stays closed while another one is counted. What nobody has looked at comes first.
        """
        store = OrderStore(ctx.connection)
        await store.be_alone()
        if await self._see_noted(ctx, store):
            return True
        found = await store.waiting(self._tried_last, WAITING_MAX)
        n_done = 0
        for order in found:
            is_alone = order.action in _ALONE
            if is_alone and n_done:
                return True
            self._tried_last = order.order_id
            n_done += await self._try_again(ctx, store, order)
            if is_alone and n_done:
                return True
        if len(found) == WAITING_MAX:
            return True
        self._tried_last = _FIRST
        return False

    async def _has_its_turn(self, store: OrderStore, n_orders: int) -> bool:
        """Return whether a poll may carry out orders; where it may not, it may note them."""
        if await store.is_alone_within(POLL_WAITS_S):
            return True
        if await store.n_unseen() + n_orders <= NOTED_MAX:
            return False
        await store.be_alone()
        return True

    async def _see_noted(self, ctx: Context[Any], store: OrderStore) -> bool:
        """Look at what was noted, before what came later: a hold before what it keeps is erased."""
        unseen = await store.waiting(_FIRST, NOTED_MAX, only_unseen=True)
        for order in unseen:
            await self._see(ctx, store, order)
        return bool(unseen)

    async def _note(
        self, ctx: Context[Any], store: OrderStore, received: Received[RetentionOrderV1]
    ) -> str:
        """Note an order while somebody else carries out others; return what became of it."""
        order = received.event
        # in this order: what waits no longer is done, for whoever looks after that
        if await store.is_waiting(order.order_id):
            return "waiting"
        if await self._answer_again(ctx, store, received):
            return "repeated"
        await self._refuse(store, order)
        await store.wait(order, ctx.now, is_unseen=True)
        self._is_noted.set()
        return "later"

    async def _see(self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1) -> None:
        """Do about a noted order what its poll would have done.

        What a poll would have made a dead letter is forgotten: whoever sent it hears nothing (D3).
        """
        if order.names_gone and await self._is_unknown(store, order):
            await store.stop_waiting(order)
            return
        try:
            async with ctx.part():
                counts = await self._carry_out_now(ctx, store, order)
                if counts is None:
                    await store.saw(order)
                else:
                    await self._answer(ctx, store, order, counts)
        except Poison as error:
            logs.get().error("order refused", reason=error.reason)
            await store.stop_waiting(order)
        except Exception as error:
            if not errors.is_data_error(error):
                raise
            logs.get().error("order failed", **logs.describe(error))
            await store.saw(order)

    async def _answer(
        self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1, counts: Counts
    ) -> None:
        """End the waiting of an order that is done."""
        await store.stop_waiting(order)
        receipt = await _record(ctx, store, order, counts)
        ctx.outbox.add(topics.RETENTION_RECEIPT, self._signed(receipt))

    async def _try_again(
        self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1
    ) -> bool:
        """Carry out an order that waits; return whether it could be.

        One that fails for what it finds would fail again, and must not end the service each time:
        it goes on waiting, and whoever sent it hears nothing (D3).
        """
        try:
            async with ctx.part():
                return await self._finish(ctx, store, order)
        except Exception as error:
            if not errors.is_data_error(error):
                raise
            logs.get().error("order failed", **logs.describe(error))
            return False

    async def _finish(self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1) -> bool:
        counts: Counts | None = ()
        # a restriction may be lifted while its order waits: then there is nothing left to do
        if not await store.is_over(order.protection_id):
            counts = await self._carry_out(ctx, store, order)
        if counts is None:
            return False
        await self._answer(ctx, store, order, counts)
        return True

    async def forget_done(self, ctx: Context[Any]) -> int:
        """Forget what was done about orders so long ago that its proof is due; return how many."""
        return int(await ctx.connection.fetchval("SELECT privacy_done_forget($1)", ctx.now))

    async def _take(
        self, ctx: Context[Any], store: OrderStore, received: Received[RetentionOrderV1]
    ) -> str:
        """Take one order; return what became of it, a word to count it by."""
        order = received.event
        if await self._answer_again(ctx, store, received):
            return "repeated"
        if await store.is_waiting(order.order_id):
            return "waiting"
        if order.names_gone and await self._is_unknown(store, order):
            # nobody could say whom it protects: answered, it would be a receipt without a deed
            return "names_missing"
        counts = await self._carry_out_now(ctx, store, order)
        if counts is None:
            await store.wait(order, ctx.now)
            return "later"
        receipt = self._signed(await _record(ctx, store, order, counts))
        ctx.outbox.add(topics.RETENTION_RECEIPT, receipt, cause=received)
        return "carried_out"

    async def _answer_again(
        self, ctx: Context[Any], store: OrderStore, received: Received[RetentionOrderV1]
    ) -> bool:
        """Answer an order that is done as the first time; return whether it is."""
        order = received.event
        done = await store.done(order.order_id)
        if done is None:
            return False
        if (done.kind, done.action) != (order.kind, order.action):
            raise Poison("order_differs")
        receipt = self._signed(done.receipt(ctx.service))
        ctx.outbox.add(topics.RETENTION_RECEIPT, receipt, cause=received)
        return True

    async def _refuse(self, store: OrderStore, order: RetentionOrderV1) -> None:
        """Refuse, while it can still be a dead letter, what contradicts what is known by now.

        Raises:
            Poison: it does.
        """
        if order.names_gone:
            return
        if order.action is RetentionAction.ANONYMISE and not self._can_count(
            self._dropped_by(order)
        ):
            raise Poison("no_anonymiser")
        if order.action in _PROTECTING:
            _refuse_protection(order, await store.protection(order.protection_id))

    async def _carry_out_now(
        self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1
    ) -> Counts | None:
        """Carry out an order in the poll's transaction; None where it has to wait."""
        if order.names_gone:
            return ()
        # whoever let it pass would destroy what was to be known, or keep what was to go
        await self._refuse(store, order)
        if order.action in _DROPPING:
            if not self._dropped_by(order):
                return ()
        elif not await self._is_about_everybody(store, order):
            return await self._carry_out(ctx, store, order)
        elif order.action is RetentionAction.HOLD:
            # at once, so that nothing goes while its rows are yet to be copied and counted
            await store.place(order, ctx.now)
        self._is_noted.set()
        return None

    async def _is_about_everybody(self, store: OrderStore, order: RetentionOrderV1) -> bool:
        """Whether a hold, or its end, meets the rows of all visitors: as many as a drop."""
        if order.action is RetentionAction.HOLD:
            return not order.visitor_ids
        if order.action is not RetentionAction.RELEASE:
            return False
        known = await store.protection(order.protection_id)
        return known is not None and not (
            known.is_over or known.is_restriction or known.names_visitors
        )

    def _can_count(self, tables: Sequence[Table]) -> bool:
        """Whether figures are made of all that these hold."""
        has_all = all(table.has_figures for table in tables)
        return has_all and (self._hooks.figures is not None or not tables)

    def _dropped_by(self, order: RetentionOrderV1) -> list[Table]:
        return [table for table in self._tables if table.kind is order.kind]

    async def _is_unknown(self, store: OrderStore, order: RetentionOrderV1) -> bool:
        return order.action in _PROTECTING and await store.protection(order.protection_id) is None

    async def _take_new_erasures(
        self, ctx: Context[Any], store: OrderStore, alike: Orders
    ) -> Orders:
        """Carry out several erasures at once; return what is to be taken one by one.

        An order alone costs some twenty statements, and so do a thousand together.
        """
        if len(alike) == 1 or alike[0].event.action is not RetentionAction.ERASE:
            return alike
        known = await store.known([received.event.order_id for received in alike])
        first = {r.event.order_id: r for r in reversed(alike) if r.event.order_id not in known}
        new = [r for r in alike if r is first.get(r.event.order_id)]
        names = self._tables_of(alike[0].event)
        if not names or len(new) <= 1 or alike[0].event.names_gone:
            return alike
        busy = await self._hooks.busy(ctx, {id_ for r in new for id_ in r.event.visitor_ids})
        free = [r for r in new if busy.isdisjoint(r.event.visitor_ids)]
        if free:
            await self._erase_together(ctx, store, names, free)
        done = {id(received) for received in free}
        return [received for received in alike if id(received) not in done]

    async def _erase_together(
        self, ctx: Context[Any], store: OrderStore, names: Sequence[str], free: Orders
    ) -> None:
        orders = [received.event for received in free]
        # whom two orders name, the first one erases
        order_of = {id_: o.order_id for o in reversed(orders) for id_ in o.visitor_ids}
        before_day = orders[0].before_day
        await self._hooks.settle(ctx, order_of.keys(), before_day)
        counts = await store.erase(names, order_of, [o.order_id for o in orders], before_day)
        asked_at = {id_: o.as_of for o in sorted(orders, key=_as_of) for id_ in o.visitor_ids}
        await erased.Store(ctx.connection).remember_all(asked_at, now=ctx.now)
        done = [_done(ctx, order, counts[order.order_id]) for order in orders]
        await store.save(done, before_day)
        for received, one in zip(free, done, strict=True):
            receipt = self._signed(one.receipt(ctx.service))
            ctx.outbox.add(topics.RETENTION_RECEIPT, receipt, cause=received)
        ctx.count(topics.RETENTION_ORDER, "carried_out", len(free))

    def _signed(self, receipt: RetentionReceiptV1) -> RetentionReceiptV1:
        return receipt if self._keys is None else receipts.sign(self._keys, receipt)

    async def _carry_out(
        self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1
    ) -> Counts | None:
        """Do what an order says; None where it has to wait: for a call's end, for its tables."""
        match order.action:
            case RetentionAction.DROP | RetentionAction.ANONYMISE:
                return await self._drop(ctx, store, order)
            case RetentionAction.ERASE:
                counts = await self._take_rows(ctx, store, order)
                if counts is not None and self._tables_of(order):
                    await erased.Store(ctx.connection).remember(
                        order.visitor_ids, erased_at=order.as_of, now=ctx.now
                    )
                return counts
            case RetentionAction.HOLD:
                await _protect(ctx, store, order)
                return await store.held(order)
            case RetentionAction.RESTRICT:
                # at once, so that nothing goes while the order waits
                await _protect(ctx, store, order)
                return await self._take_rows(ctx, store, order)
            case RetentionAction.RELEASE | RetentionAction.UNRESTRICT:
                return await _release(ctx, store, order)

    async def _drop(
        self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1
    ) -> Counts | None:
        """Drop what is due; None where somebody has a table all the time: later, when nobody does.

        Whoever comes after one that waits for a table waits behind it, the busiest path too.
        """
        tables = self._dropped_by(order)
        try:
            async with ctx.part():
                for table in tables:
                    await self._hooks.before_drop(ctx, table, order)
                n_figures = await self._figures(ctx, tables, order)
                again = order.order_id in self._gave_way
                counts = await store.drop([table.name for table in tables], order, again=again)
        except asyncpg.LockNotAvailableError:
            self._gave_way.add(order.order_id)
            return None
        self._gave_way.discard(order.order_id)
        if order.before_day > ctx.now.date() - timedelta(days=db.DAYS_BEHIND):
            # only in a simulation: the days that are being written to went as well
            await store.restore_days(tables, ctx.now.date())
        return tuple(
            count.model_copy(update={"n_figures": n_figures.get(count.table, 0)})
            for count in counts
        )

    async def _figures(
        self, ctx: Context[Any], tables: Sequence[Table], order: RetentionOrderV1
    ) -> dict[str, int]:
        """Make the figures of what goes, also by a drop; return what the receipt says, by table.

        It says nothing of them to who ordered a drop: that may be of the version before, which
        does not know that they are signed.
        """
        make = self._hooks.figures
        if make is None:
            return {}
        made = {t.name: await make(ctx, t, order.before_day) for t in tables if t.has_figures}
        return made if order.action is RetentionAction.ANONYMISE else {}

    def _tables_of(self, order: RetentionOrderV1) -> list[str]:
        return [t.name for t in self._tables if t.kind in order.kinds and t.names_visitors]

    async def _take_rows(
        self, ctx: Context[Any], store: OrderStore, order: RetentionOrderV1
    ) -> Counts | None:
        """Erase visitors' rows, or set them aside under their restriction."""
        names = self._tables_of(order)
        if not names:
            return ()
        if await self._hooks.busy(ctx, order.visitor_ids):
            return None
        await self._hooks.settle(ctx, order.visitor_ids, order.before_day)
        return await store.take(names, order)


async def _record(
    ctx: Context[Any], store: OrderStore, order: RetentionOrderV1, counts: Counts
) -> RetentionReceiptV1:
    done = _done(ctx, order, counts)
    await store.save([done], order.before_day)
    return done.receipt(ctx.service)


def _done(ctx: Context[Any], order: RetentionOrderV1, counts: Counts) -> Done:
    return Done(
        order_id=order.order_id,
        kind=order.kind,
        action=order.action,
        counts=counts,
        done_at=ctx.now,
    )


_PROTECTING = (RetentionAction.HOLD, RetentionAction.RESTRICT)
_DROPPING = (RetentionAction.DROP, RetentionAction.ANONYMISE)
_ALONE = (*_DROPPING, RetentionAction.HOLD, RetentionAction.RELEASE)
"""What takes long where it waits: no other order in its transaction."""


def _what_is_done_together(received: Received[RetentionOrderV1]) -> tuple[object, ...]:
    """Return what neighbours must have in common to be carried out at once."""
    order = received.event
    return order.action, order.kinds, order.before_day, order.names_gone


def _as_of(order: RetentionOrderV1) -> datetime:
    return order.as_of


async def _protect(ctx: Context[Any], store: OrderStore, order: RetentionOrderV1) -> None:
    """Place a hold or restriction, or add visitors to it.

    Raises:
        Poison: its id is another one's, or it is over: what it kept is gone, it cannot begin anew.
    """
    _refuse_protection(order, await store.protection(order.protection_id))
    await store.protect(order, ctx.now)


def _refuse_protection(order: RetentionOrderV1, known: Protection | None) -> None:
    if known is not None and known.is_over:
        raise Poison("protection_is_over")
    if known is not None and known != Protection.of(order):
        raise Poison("protection_differs")


async def _release(ctx: Context[Any], store: OrderStore, order: RetentionOrderV1) -> Counts:
    known = await store.protection(order.protection_id)
    restricts = order.action is RetentionAction.UNRESTRICT
    if known is not None and known.is_restriction != restricts:
        raise Poison("protection_differs")
    return await store.release(order, ctx.now)
