"""Per topic: load, decide, save, enqueue."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from schemas import topics
from schemas.retention import RetentionReceiptV1
from services.chassis.consume import Handler
from services.chassis.context import Context
from services.chassis.declaration import SERVICES
from services.chassis.errors import Poison
from services.chassis.received import Received
from services.privacy.receipts import Signatories
from services.retention import domain
from services.retention.domain import Answer, Count, Receipt
from services.retention.holders import HolderRegister, judge_receipt
from services.retention.store import Store


async def on_receipts(ctx: Context[Store], batch: Sequence[Received[RetentionReceiptV1]]) -> None:
    """Take what the services answered; the last answer completes its order."""
    answers = await take_receipts(ctx, [_from_wire(received.event) for received in batch])
    for answer in answers:
        ctx.count(topics.RETENTION_RECEIPT, answer.value)


def unless_forged(signatories: Signatories, holders: HolderRegister) -> Handler:
    """Return the handler that takes receipts only of those who signed them (R-D9).

    It raises Poison where one is not signed by the service, or the system outside, that it names.
    """

    async def handle(ctx: Context[Store], batch: Sequence[Received[RetentionReceiptV1]]) -> None:
        for received in batch:
            if received.event.service not in SERVICES:
                refusal = judge_receipt(holders, received.event, ctx.now)
                if refusal is not None:
                    raise Poison(f"receipt_{refusal.value}")
            elif not signatories.is_valid(received.event):
                raise Poison("receipt_not_signed")
        await on_receipts(ctx, batch)

    return handle


async def take_receipts(ctx: Context[Store], receipts: Sequence[Receipt]) -> list[Answer]:
    """Judge receipts, append what is new, and complete orders that nobody is silent about.

    Returns:
        What each receipt was, in the same order.

    Raises:
        Poison: a receipt fits no order.
    """
    await ctx.store.lock()
    standings = await ctx.store.standings({receipt.order_id for receipt in receipts})
    known: dict[tuple[UUID, str], Receipt] = {
        (receipt.order_id, receipt.service): receipt
        for standing in standings.values()
        for receipt in standing.receipts
    }
    answers: list[Answer] = []
    fresh: list[Receipt] = []
    for receipt in receipts:
        standing = standings.get(receipt.order_id)
        key = receipt.order_id, receipt.service
        answer = domain.judge(standing.order if standing else None, receipt, known.get(key))
        if answer not in (Answer.NEW, Answer.REPEATED, Answer.DONE_AGAIN):
            raise Poison(answer.value)
        if answer is Answer.NEW:
            fresh.append(receipt)
            known[key] = receipt
        answers.append(answer)
    await ctx.store.save_receipts(fresh, ctx.now)
    complete = [
        standing.order.order_id
        for standing in standings.values()
        if standing.completed_at is None
        and not domain.silent(
            standing.order, standing.settled | _answered(standing.order.order_id, known)
        )
    ]
    await ctx.store.save_completions(complete, ctx.now)
    return answers


def _answered(order_id: UUID, known: Iterable[tuple[UUID, str]]) -> set[str]:
    return {service for other_id, service in known if other_id == order_id}


def _from_wire(event: RetentionReceiptV1) -> Receipt:
    return Receipt(
        order_id=event.order_id,
        service=event.service,
        kind=event.kind.value,
        counts=tuple(
            Count(
                table=count.table,
                n_partitions=count.n_partitions,
                n_rows=count.n_rows,
                n_held=count.n_held,
                n_restricted=count.n_restricted,
                n_figures=count.n_figures,
            )
            for count in event.counts
        ),
        done_at=event.done_at,
    )
