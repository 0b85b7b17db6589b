"""SQL of orders about persons and of holds, on one open transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import asyncpg

from services.chassis import db
from services.privacy.staff import Signer
from services.retention.domain import Order
from services.retention.evidence import Evidence, Item
from services.retention.protections import ProposedReview, Protection, Scope, Step

INVARIANTS = {
    # the trigger refuses it; this sees it also where the trigger was taken away
    "r_d3_two_persons_hold_and_lift": """
        SELECT count(*) FROM retention_protection p
        JOIN retention_protection_step a USING (protection_id)
        JOIN retention_protection_step b USING (protection_id)
        WHERE p.is_hold AND a.staff_id = b.staff_id
          AND (a.step, b.step) IN (('proposed', 'placed'), ('release_proposed', 'released'))
    """,
    "r_d3_two_persons_review": """
        SELECT count(*) FROM retention_review a JOIN retention_review_confirmation b
            USING (review_id, staff_id)
    """,
    # of holds and restrictions alike (R-G4); one without a date is late
    "r_d3_none_past_its_review": """
        SELECT count(*) FROM retention_protection p
        WHERE EXISTS (SELECT FROM retention_protection_step s
                      WHERE s.protection_id = p.protection_id AND s.step = 'placed')
          AND NOT EXISTS (SELECT FROM retention_protection_step s
                          WHERE s.protection_id = p.protection_id AND s.step = 'released')
          AND coalesce(greatest(p.review_on, (
                   SELECT max(r.review_on) FROM retention_review r
                   JOIN retention_review_confirmation USING (review_id)
                   WHERE r.protection_id = p.protection_id)), '-infinity')
              < (now() AT TIME ZONE 'Europe/Berlin')::date
    """,
    # a list of names lives as long as its hold, or its proposal, and no longer
    "d1_no_names_without_their_hold": """
        SELECT count(DISTINCT v.list_id) FROM privacy_visitor v
        WHERE NOT EXISTS (
            SELECT FROM retention_protection p
            WHERE p.protection_id = v.list_id AND NOT EXISTS (
                SELECT FROM retention_protection_step s
                WHERE s.protection_id = p.protection_id AND s.step IN ('released', 'withdrawn')))
    """,
    "d1_names_leave_their_topic": """
        SELECT count(*) FROM retention_person_order p JOIN retention_order o USING (order_id)
        WHERE p.n_visitors > 0 AND o.issued_at < now() - interval '5 days 1 hour'
          AND NOT EXISTS (SELECT FROM retention_reissue i
                          WHERE i.order_id = p.order_id AND i.has_names
                            AND i.sent_at >= now() - interval '5 days 1 hour')
          AND NOT EXISTS (SELECT FROM retention_names_gone g WHERE g.order_id = p.order_id)
    """,
}


@dataclass(frozen=True, kw_only=True)
class PersonOrder:
    """What an order about persons is, without them.

    Attributes:
        kinds: the first one is the order's own.
        n_visitors: how many it names; 0 = none.
    """

    order: Order
    kinds: tuple[str, ...]
    case_number: str
    staff_id: str
    n_visitors: int
    from_day: date | None = None
    protection_id: UUID | None = None
    schedule_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class OpenOrder:
    """An order that was last sent long ago; `kinds` is the order's own one where it is a drop.

    Attributes:
        is_without_names: it named visitors, or is about a protection that is over.
    """

    order_id: UUID
    kinds: tuple[str, ...]
    from_day: date | None
    protection_id: UUID | None
    is_without_names: bool


class ProtectionStore:
    """Rows of orders about persons, holds and restrictions."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection

    # ------------------------------------------------------------------ orders

    async def save_person_order(self, found: PersonOrder, sign: Signer) -> None:
        """Record what an order about persons is, signed; the order itself is there."""
        content = {
            "order_id": found.order.order_id,
            "kinds": list(found.kinds),
            "from_day": found.from_day,
            "protection_id": found.protection_id,
            "case_number": found.case_number,
            "staff_id": found.staff_id,
            "n_visitors": found.n_visitors,
            "schedule_version": found.schedule_version,
        }
        await self._connection.execute(
            """
            INSERT INTO retention_person_order (order_id, kinds, from_day, protection_id,
                                                case_number, staff_id, n_visitors,
                                                schedule_version, key_id, signature)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
            """,
            *content.values(),
            *sign(found.staff_id, "person_order", content),
        )
        item = Item("person_order", found.order.order_id)
        await self._chain(item, found.order.issued_at)

    async def with_names(
        self, issued_before: datetime, limit: int
    ) -> list[tuple[UUID, tuple[str, ...], date | None, UUID | None]]:
        """Return orders whose names must leave the topic by their age.

        Returns:
            (order id, kinds, first day, protection), oldest first.
        """
        rows = await self._connection.fetch(
            """
            SELECT p.order_id, p.kinds, p.from_day, p.protection_id
            FROM retention_person_order p JOIN retention_order o USING (order_id)
            WHERE p.n_visitors > 0
              AND NOT EXISTS (SELECT FROM retention_names_gone g WHERE g.order_id = p.order_id)
              AND o.issued_at < $1
              AND NOT EXISTS (SELECT FROM retention_reissue i WHERE i.order_id = p.order_id
                                AND i.has_names AND i.sent_at >= $1)
            ORDER BY o.issued_at, p.order_id LIMIT $2
            """,
            issued_before,
            limit,
        )
        return [
            (row["order_id"], tuple(row["kinds"]), row["from_day"], row["protection_id"])
            for row in rows
        ]

    async def unanswered(self, order_ids: Sequence[UUID]) -> set[UUID]:
        """Return the open orders among some that place a protection which is in force."""
        rows = await self._connection.fetch(
            """
            SELECT p.order_id
            FROM retention_person_order p JOIN retention_order o USING (order_id)
            WHERE p.order_id = ANY($1) AND o.action IN ('hold', 'restrict')
              AND NOT EXISTS (SELECT FROM retention_completion c WHERE c.order_id = p.order_id)
              AND NOT EXISTS (SELECT FROM retention_protection_step s
                              WHERE s.protection_id = p.protection_id AND s.step = 'released')
            """,
            order_ids,
        )
        return {row["order_id"] for row in rows}

    async def place_of(self, order_id: UUID) -> int:
        """Return how many orders stand before one of those that shared a protection's names."""
        found: int = await self._connection.fetchval(
            """
            SELECT count(*) FROM retention_person_order p JOIN retention_order o USING (order_id)
            JOIN retention_person_order q ON q.protection_id = p.protection_id
            JOIN retention_order b ON b.order_id = q.order_id AND b.issued_at = o.issued_at
                AND b.action = o.action
            WHERE p.order_id = $1 AND q.order_id < $1
            """,
            order_id,
        )
        return found

    async def open_for_long(self, sent_before: datetime, limit: int) -> list[OpenOrder]:
        """Return open orders that were last sent before an instant, oldest first.

        Not those whose names are still on the topic, nor those about records.
        """
        rows = await self._connection.fetch(
            """
            SELECT o.order_id, coalesce(p.kinds, ARRAY[o.kind]) AS kinds, p.from_day,
                   p.protection_id, o.action IN ('erase', 'hold', 'restrict') AND (
                       p.n_visitors > 0 OR EXISTS (
                           SELECT FROM retention_protection_step s
                           WHERE s.protection_id = p.protection_id AND s.step = 'released')
                   ) AS is_without_names
            FROM retention_order o LEFT JOIN retention_person_order p USING (order_id)
            LEFT JOIN retention_names_gone g USING (order_id)
            WHERE o.issued_at < $1
              AND NOT EXISTS (SELECT FROM retention_completion c WHERE c.order_id = o.order_id)
              AND NOT EXISTS (SELECT FROM retention_record_order r WHERE r.order_id = o.order_id)
              AND NOT EXISTS (SELECT FROM retention_reissue i
                              WHERE i.order_id = o.order_id AND i.sent_at >= $1)
              AND (coalesce(p.n_visitors, 0) = 0 OR g.gone_at < $1)
            ORDER BY o.issued_at, o.order_id LIMIT $2
            """,
            sent_before,
            limit,
        )
        return [
            OpenOrder(
                order_id=row["order_id"],
                kinds=tuple(row["kinds"]),
                from_day=row["from_day"],
                protection_id=row["protection_id"],
                is_without_names=bool(row["is_without_names"]),
            )
            for row in rows
        ]

    async def sent_again(
        self, order_ids: Sequence[UUID], sent_at: datetime, *, has_names: bool
    ) -> None:
        """Record that orders were sent once more."""
        await self._connection.executemany(
            "INSERT INTO retention_reissue (order_id, sent_at, has_names) VALUES ($1, $2, $3)",
            [(order_id, sent_at, has_names) for order_id in order_ids],
        )

    async def old_proposals(self, proposed_before: datetime) -> list[UUID]:
        """Return holds that nobody has placed or withdrawn since."""
        rows = await self._connection.fetch(
            """
            SELECT s.protection_id FROM retention_protection_step s
            JOIN retention_protection p USING (protection_id)
            WHERE p.is_hold AND s.step = 'proposed' AND s.done_at < $1
              AND NOT EXISTS (SELECT FROM retention_protection_step o
                              WHERE o.protection_id = s.protection_id AND o.step <> 'proposed')
            ORDER BY s.done_at
            """,
            proposed_before,
        )
        return [row["protection_id"] for row in rows]

    async def names_gone(self, order_ids: Sequence[UUID], gone_at: datetime) -> None:
        """Record that copies without names were sent."""
        await self._connection.executemany(
            "INSERT INTO retention_names_gone (order_id, gone_at) VALUES ($1, $2)",
            [(order_id, gone_at) for order_id in order_ids],
        )

    # ------------------------------------------------------------------ protections

    async def protection(self, protection_id: UUID) -> Protection | None:
        """Return a hold or restriction as it stands."""
        found = await self._protections(protection_id)
        return found[0] if found else None

    async def protections_in_force(self) -> list[Protection]:
        """Return what is proposed or in force, the earliest review first."""
        found = await self._protections(None)
        over = {Step.RELEASED, Step.WITHDRAWN}
        return [protection for protection in found if not over & protection.steps.keys()]

    async def _protections(self, only: UUID | None) -> list[Protection]:
        rows = await self._connection.fetch(
            """
            SELECT p.*, greatest(p.review_on, (
                   SELECT max(r.review_on) FROM retention_review r
                   JOIN retention_review_confirmation USING (review_id)
                   WHERE r.protection_id = p.protection_id)) AS next_review_on,
                   (SELECT jsonb_object_agg(s.step, s.staff_id)
                    FROM retention_protection_step s
                    WHERE s.protection_id = p.protection_id) AS steps
            FROM retention_protection p WHERE $1::uuid IS NULL OR p.protection_id = $1
            ORDER BY next_review_on, p.protection_id
            """,
            only,
        )
        return [_protection(row) for row in rows]

    async def propose(self, found: Protection, staff_id: str, now: datetime, sign: Signer) -> None:
        """Record a hold that is proposed, or a restriction that is placed at once."""
        await self._connection.execute(
            """
            INSERT INTO retention_protection (protection_id, is_hold, case_number, ground, kinds,
                from_day, before_day, names_visitors, review_on)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            """,
            found.protection_id,
            found.is_hold,
            found.case_number,
            found.ground,
            list(found.scope.kinds),
            found.scope.from_day,
            found.scope.before_day,
            found.scope.names_visitors,
            found.review_on,
        )
        await self._chain(Item("protection", found.protection_id), now)
        first = Step.PROPOSED if found.is_hold else Step.PLACED
        await self.take_step(found.protection_id, first, staff_id, now, sign)

    async def take_step(
        self, protection_id: UUID, step: Step, staff_id: str, now: datetime, sign: Signer
    ) -> None:
        """Record a step; the database refuses a second time, and the same person twice."""
        content = {
            "protection_id": protection_id,
            "step": step.value,
            "staff_id": staff_id,
            "done_at": now,
        }
        await self._connection.execute(
            """
            INSERT INTO retention_protection_step (protection_id, step, staff_id, done_at, key_id,
                                                   signature)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            *content.values(),
            *sign(staff_id, "protection_step", content),
        )
        await self._chain(Item("protection_step", protection_id, step.value), now)

    # ------------------------------------------------------------------ reviews

    async def propose_review(
        self, protection_id: UUID, found: ProposedReview, now: datetime, sign: Signer
    ) -> None:
        """Record that somebody wants a later review date."""
        content = {
            "review_id": found.review_id,
            "protection_id": protection_id,
            "review_on": found.review_on,
            "reason": found.reason,
            "staff_id": found.staff_id,
            "proposed_at": now,
        }
        await self._connection.execute(
            """
            INSERT INTO retention_review (review_id, protection_id, review_on, reason, staff_id,
                                          proposed_at, key_id, signature)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """,
            *content.values(),
            *sign(found.staff_id, "review", content),
        )
        await self._chain(Item("review", found.review_id), now)

    async def proposed_review(
        self, protection_id: UUID, proposed_after: datetime
    ) -> ProposedReview | None:
        """Return the last proposal, if it is not too old and nobody has confirmed it."""
        row = await self._connection.fetchrow(
            """
            SELECT r.*, c.review_id IS NOT NULL AS is_confirmed FROM retention_review r
            LEFT JOIN retention_review_confirmation c USING (review_id)
            WHERE r.protection_id = $1
            ORDER BY r.proposed_at DESC, r.review_id DESC LIMIT 1
            """,
            protection_id,
        )
        if row is None or row["is_confirmed"] or row["proposed_at"] < proposed_after:
            return None
        return ProposedReview(
            review_id=row["review_id"],
            review_on=row["review_on"],
            reason=row["reason"],
            staff_id=row["staff_id"],
        )

    async def confirm_review(
        self, review_id: UUID, staff_id: str, now: datetime, sign: Signer
    ) -> None:
        """Let a proposed date count; the database refuses the same person, and a step back."""
        content = {"review_id": review_id, "staff_id": staff_id, "confirmed_at": now}
        await self._connection.execute(
            """
            INSERT INTO retention_review_confirmation (review_id, staff_id, confirmed_at, key_id,
                                                       signature)
            VALUES ($1, $2, $3, $4, $5)
            """,
            *content.values(),
            *sign(staff_id, "review_confirmation", content),
        )
        await self._chain(Item("review_confirmation", review_id), now)

    async def reviews(self, protection_id: UUID) -> list[dict[str, object]]:
        """Return what was proposed and confirmed about review dates, oldest first."""
        rows = await self._connection.fetch(
            """
            SELECT r.review_on, r.reason, r.staff_id AS proposed_by, r.proposed_at,
                   c.staff_id AS confirmed_by, c.confirmed_at
            FROM retention_review r LEFT JOIN retention_review_confirmation c USING (review_id)
            WHERE r.protection_id = $1 ORDER BY r.proposed_at, r.review_id
            """,
            protection_id,
        )
        return [dict(row) for row in rows]

    async def _chain(self, item: Item, now: datetime) -> None:
        await Evidence(self._connection).chain([item], now)

    # ------------------------------------------------------------------ names

    async def keep_names(self, protection_id: UUID, visitor_ids: Collection[UUID]) -> None:
        """Keep whom a hold names, in a partition that goes with it."""
        await self._connection.execute(
            "SELECT privacy_wait($1, $2)", protection_id, list(visitor_ids)
        )

    async def names(self, protection_id: UUID) -> list[UUID]:
        """Return whom a hold names."""
        rows = await self._connection.fetch(
            "SELECT visitor_id FROM privacy_visitor WHERE list_id = $1 ORDER BY 1", protection_id
        )
        return [row["visitor_id"] for row in rows]

    async def forget_names(self, protection_id: UUID) -> None:
        """Drop whom a hold names."""
        await self._connection.execute("SELECT privacy_wait_end($1)", protection_id)


def _protection(row: asyncpg.Record) -> Protection:
    steps: dict[str, str] = row["steps"] or {}
    return Protection(
        protection_id=row["protection_id"],
        is_hold=row["is_hold"],
        case_number=row["case_number"],
        ground=row["ground"],
        scope=Scope(
            kinds=tuple(row["kinds"]),
            from_day=row["from_day"],
            before_day=row["before_day"],
            names_visitors=row["names_visitors"],
        ),
        review_on=row["next_review_on"],
        steps={Step(step): staff_id for step, staff_id in steps.items()},
    )
