"""SQL of what the ad partner is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from services.ad_ledger.store import Store
from services.chassis import db

_ENQUEUE = """
INSERT INTO partner_report (report_day, ticket_id, kind, ad_id)
SELECT v.view_day, v.ticket_id, v.kind, g.ad_id
FROM unnest($1::date[], $2::uuid[], $3::text[], $4::text[]) AS g (view_day, ticket_id, kind, ad_id)
JOIN ad_view v USING (view_day, ticket_id, kind)
ORDER BY 1, 2, 3
ON CONFLICT DO NOTHING
"""
_DUE = """
UPDATE partner_batch b SET n_tries = b.n_tries + 1, next_try_at = $2
FROM (SELECT batch_day, batch_id FROM partner_batch WHERE is_open AND next_try_at <= $1
      ORDER BY next_try_at LIMIT 1 FOR UPDATE SKIP LOCKED) due
WHERE (b.batch_day, b.batch_id) = (due.batch_day, due.batch_id)
RETURNING b.batch_day, b.batch_id, b.n_tries
"""
_FILL = """
UPDATE partner_report r SET state = 'sending', batch_id = $1
FROM (SELECT report_day, ticket_id, kind FROM partner_report WHERE state = 'waiting'
      ORDER BY report_day, ticket_id LIMIT $2 FOR UPDATE SKIP LOCKED) picked
WHERE (r.report_day, r.ticket_id, r.kind) = (picked.report_day, picked.ticket_id, picked.kind)
"""
_OPEN = """
INSERT INTO partner_batch (batch_day, batch_id, is_open, n_tries, next_try_at)
VALUES ($1, $2, true, 1, $3)
"""
_REQUEUE = """
UPDATE partner_report r SET state = 'waiting', batch_id = NULL
WHERE r.state = 'sending' AND NOT EXISTS (
    SELECT FROM partner_batch b WHERE b.batch_id = r.batch_id AND b.is_open)
"""
_USAGES = """
SELECT r.report_day, r.ticket_id, r.kind, r.ad_id, v.visitor_id, v.viewed_at, v.position_ms,
       host(a.address) AS address
FROM partner_report r
JOIN ad_view v ON (v.view_day, v.ticket_id, v.kind) = (r.report_day, r.ticket_id, r.kind)
LEFT JOIN ad_view_address a ON (a.address_day, a.ticket_id) = (r.report_day, r.ticket_id)
WHERE r.batch_id = $1 AND r.state = 'sending'
ORDER BY r.ticket_id, v.viewed_at, v.position_ms, r.kind
"""
_END_REPORTS = """
UPDATE partner_report SET state = $3
WHERE batch_id = $1 AND ticket_id = ANY($2) AND state = 'sending'
"""
_END_REST = "UPDATE partner_report SET state = 'reported' WHERE batch_id = $1 AND state = 'sending'"
_CLOSE = """
UPDATE partner_batch SET is_open = false, ended_at = $3 WHERE batch_day = $1 AND batch_id = $2
"""
_PUT_OFF = """
UPDATE partner_batch SET next_try_at = $3 WHERE batch_day = $1 AND batch_id = $2 AND is_open
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a view that happened; `day` is that of its ticket."""

    day: date
    ticket_id: UUID
    kind: str
    ad_id: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is sent together. `n_tries` counts this one."""

    batch_day: date
    batch_id: UUID
    n_tries: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One step of a view as the partner may be told of it; `address` None where it is gone."""

    ticket_id: UUID
    kind: str
    ad_id: str
    visitor_id: UUID
    viewed_at: datetime
    position_ms: int
    address: str | None


class PartnerStore:
    """These rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._db = connection

    async def enqueue(self, steps: Sequence[Step]) -> None:
        """Note those of the steps that the ledger has recorded; known ones stay as they are."""
        await self._db.execute(
            _ENQUEUE, [s.day for s in steps], [s.ticket_id for s in steps],
            [s.kind for s in steps], [s.ad_id for s in steps],
        )  # fmt: skip

    async def due(self, now: datetime, until: datetime) -> Batch | None:
        """Take the batch that is due; nobody else takes it before `until`."""
        row = await self._db.fetchrow(_DUE, now, until)
        return None if row is None else Batch(**dict(row))

    async def fill(self, batch: Batch, n_max: int, until: datetime) -> int:
        """Make a batch of what waits; return how many steps are in it, 0 = there is none."""
        done: str = await self._db.execute(_FILL, batch.batch_id, n_max)
        n_filled = int(done.rpartition(" ")[2])
        if n_filled:
            await self._db.execute(_OPEN, batch.batch_day, batch.batch_id, until)
        return n_filled

    async def requeue(self) -> None:
        """Let steps wait again whose batch ended without them: a restriction was lifted (R-G4)."""
        await self._db.execute(_REQUEUE)

    async def usages(self, batch: Batch) -> list[Usage]:
        """Return a batch's steps by ticket, in the order in which they happened."""
        rows = await self._db.fetch(_USAGES, batch.batch_id)
        return [
            Usage(
                ticket_id=row["ticket_id"],
                kind=row["kind"],
                ad_id=row["ad_id"],
                visitor_id=row["visitor_id"],
                viewed_at=row["viewed_at"],
                position_ms=row["position_ms"],
                address=row["address"],
            )
            for row in rows
        ]

    async def close(self, batch: Batch, refused: Sequence[UUID], now: datetime) -> None:
        """End a batch: the partner has it, but for the tickets that the gate refused."""
        await self._db.execute(_END_REPORTS, batch.batch_id, list(refused), "refused")
        await self._db.execute(_END_REST, batch.batch_id)
        await self._db.execute(_CLOSE, batch.batch_day, batch.batch_id, now)

    async def put_off(self, batch: Batch, until: datetime) -> None:
        """Try a batch again, the same rows under the same key."""
        await self._db.execute(_PUT_OFF, batch.batch_day, batch.batch_id, until)


class LedgerStore(Store):
    """All of the ledger's rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        super().__init__(connection)
        self.partner = PartnerStore(connection)
