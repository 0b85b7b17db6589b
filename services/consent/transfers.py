"""Keeps each transfer and each refusal (R-E2, K3); whose they were, for a few days only."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from schemas import topics
from schemas.transfer import TransferV1
from services.chassis.context import Context
from services.chassis.received import Received
from services.consent.transfer_store import ConsentStore, Transfer
from services.privacy.calendar import berlin_date, utc_date

LINK_AGE_MAX = timedelta(hours=72)
"""The topic's own limit: for an older one no day stands ready, and none is worth making (R-D5)."""
AHEAD_MAX = timedelta(minutes=5)


async def on_transfers(ctx: Context[ConsentStore], batch: Sequence[Received[TransferV1]]) -> None:
    """Append a poll's verdicts; a repeated one changes nothing."""
    store = ctx.store.transfers
    transfers = []
    for received in batch:
        if received.event.asked_at > ctx.now + AHEAD_MAX:
            ctx.dead_letter(received, "from_the_future")
            continue
        sender = received.source.rpartition("/")[2]
        transfers.append(to_row(received.event, sender, ctx.now))
    await store.maintain()
    n_new = await store.save(transfers)
    if n_new:
        ctx.count(topics.TRANSFER, "recorded", n_new)
    if n_new < len(transfers):
        ctx.count(topics.TRANSFER, "duplicate", len(transfers) - n_new)


def to_row(event: TransferV1, sender: str, now: datetime) -> Transfer:
    """Return an event as it is kept; a service of ours is its sender."""
    is_recent = event.asked_at > now - LINK_AGE_MAX
    return Transfer(
        transfer_id=event.transfer_id,
        sender=sender,
        recipient=event.recipient,
        purpose=event.purpose,
        fields=event.fields,
        verdict=event.verdict.value,
        reason=event.reason,
        basis=event.basis,
        country_ground=event.country_ground,
        consent=event.consent,
        country=event.country,
        register_version=event.register_version,
        asked_at=event.asked_at,
        happened_at=event.happened_at,
        visitor_id=event.visitor_id,
        transferred_on=berlin_date(event.asked_at),
        transfer_day=utc_date(event.asked_at) if is_recent else None,
    )
