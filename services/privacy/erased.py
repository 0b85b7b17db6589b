"""Who was erased: what is older than an erasure and comes after it has no effect (R-G3).

An event may be on its way while its visitor is erased, and a restored backup reads again what the
topics still hold. Both would bring back what is gone. So each service remembers whom it erased, for
as long as such events can come (7 x 24 h), and leaves them out. What the same visitor does after
the erasure is a new use.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from schemas import topics
from schemas.retention import DataKind
from services.chassis import db
from services.chassis.context import Context
from services.chassis.received import Received
from services.privacy.declare import Returning, Table

TABLE = Table(
    name="privacy_erased",
    kind=DataKind.AD_USE,
    day_column="erased_day",
    returning=Returning.EACH,
)
"""Every service that carries out erasures names it among its tables."""
OUTCOME = "refused_erased"

Batch = Sequence[Received[Any]]
Handler = Callable[[Context[Any], Batch], Awaitable[None]]


def unless_erased(handler: Handler) -> Handler:
    """Return a handler that is not given what is older than its visitor's erasure.

    For topics whose events have a `visitor_id`.
    """

    async def handle(ctx: Context[Any], batch: Batch) -> None:
        store = Store(ctx.connection)
        erased = await store.erased({received.event.visitor_id for received in batch})
        if erased:
            kept = [r for r in batch if not _is_older(r, erased)]
            ctx.count(topics.BY_NAME[batch[0].topic], OUTCOME, len(batch) - len(kept))
            batch = kept
        if batch:
            await handler(ctx, batch)

    return handle


def _is_older(received: Received[Any], erased: dict[UUID, datetime]) -> bool:
    erased_at = erased.get(received.event.visitor_id)
    return erased_at is not None and received.time <= erased_at


class Store:
    """The list's SQL on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection

    async def erased(self, visitor_ids: Collection[UUID]) -> dict[UUID, datetime]:
        """Return the last erasure of each of the visitors that were erased."""
        rows = await self._connection.fetch(
            """
            SELECT visitor_id, max(erased_at) AS erased_at FROM privacy_erased
            WHERE visitor_id = ANY($1) GROUP BY visitor_id
            """,
            list(visitor_ids),
        )
        return {row["visitor_id"]: row["erased_at"] for row in rows}

    async def remember(
        self, visitor_ids: Collection[UUID], *, erased_at: datetime, now: datetime
    ) -> None:
        """Note an erasure; see `remember_all`."""
        await self.remember_all(dict.fromkeys(visitor_ids, erased_at), now=now)

    async def remember_all(self, erased_at: Mapping[UUID, datetime], *, now: datetime) -> None:
        """Note erasures, in today's partition.

        Args:
            erased_at: by visitor the instant of the order, the same however late it is carried out.
        """
        await self._connection.execute(
            """
            INSERT INTO privacy_erased AS e (erased_day, visitor_id, erased_at)
            SELECT $1, * FROM unnest($2::uuid[], $3::timestamptz[])
            ON CONFLICT (erased_day, visitor_id)
            DO UPDATE SET erased_at = greatest(e.erased_at, excluded.erased_at)
            """,
            now.date(),
            list(erased_at),
            list(erased_at.values()),
        )
