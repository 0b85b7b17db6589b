"""SQL of transfers and disclosures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from services.chassis import db
from services.consent import catalogues
from services.consent.store import Store

DISCLOSURES_MAX = 1_000
ACCESSES_MAX = 10_000
TRANSFERS_MAX = 1_000

_NAME = re.compile(r"[a-z0-9.-]+")


def _offered() -> str:
    """Return (version, purpose, recipient) of all catalogues as SQL: whom each version named."""
    rows = sorted(
        (version, purpose, recipient)
        for version, one in catalogues.known().by_version.items()
        for purpose, among in one.recipients.items()
        for recipient in among
    )
    assert all(_NAME.fullmatch(name) for row in rows for name in row), "from files of ours"
    return ", ".join("('{}', '{}', '{}')".format(*row) for row in rows)


INVARIANTS = {
    # K2, K3: a failure means a transfer on a consent that was not in force, at the event or at the
    # sending. A withdrawal needs a moment to reach every gate (the goal is a second): five are
    # granted. An agreement reaches whom the version shown named (ADR 0030), for six days; of two
    # words of one instant the one with the higher id counts, and within one decision the denial. A
    # signal after an agreement is none (domain.py). Where the link to the proof is gone nothing can
    # be said any more: who has none never answered, unless they were erased, or their first answer
    # may be a week old. Events of today are of visits that began on a day that still has its links.
    "k3_no_transfer_against_consent": """
        WITH offered (version, purpose, recipient) AS (VALUES $offered)
        SELECT count(DISTINCT v.transfer_id) FROM consent_transfer_visitor v
        JOIN consent_transfer t USING (transferred_on, transfer_id)
        LEFT JOIN consent_subject s USING (visitor_id)
        CROSS JOIN LATERAL (
            VALUES (v.happened_at, v.happened_at),
                   (t.asked_at - interval '5 seconds', t.asked_at)) AS span (begins_at, ends_at)
        WHERE v.transfer_day >= current_date - 1
          AND t.verdict = 'permitted' AND t.consent IS NOT NULL
          AND (s.proof_id IS NOT NULL OR (
            (v.happened_at AT TIME ZONE 'UTC')::date >= (now() AT TIME ZONE 'UTC')::date
            AND NOT EXISTS (SELECT FROM privacy_erased e WHERE e.visitor_id = v.visitor_id)))
          AND NOT EXISTS (
            SELECT FROM consent_record g
            WHERE g.proof_id = s.proof_id AND g.purpose = t.consent AND g.decision = 'given'
              AND (g.recipient = t.recipient OR (g.recipient = '' AND EXISTS (
                SELECT FROM offered o WHERE o.version = g.catalogue_version
                  AND o.purpose = g.purpose AND o.recipient = t.recipient)))
              AND g.decided_at <= span.ends_at
              AND g.decided_at > span.begins_at - interval '6 days'
              AND NOT EXISTS (
                SELECT FROM consent_record w
                WHERE w.proof_id = g.proof_id AND w.purpose = g.purpose
                  AND w.recipient IN ('', t.recipient)
                  AND w.decision IN ('refused', 'withdrawn', 'objected') AND w.method <> 'signal'
                  AND (w.decided_at, w.decision_id, w.recipient <> '', true)
                    > (g.decided_at, g.decision_id, g.recipient <> '', false)
                  AND w.decided_at <= span.begins_at))
    """.replace("$offered", _offered()),
    # R-C4: a failure means that the trigger for four eyes was gone for a time.
    "four_eyes_on_every_disclosure": """
        SELECT count(*) FROM consent_disclosure a
        LEFT JOIN consent_disclosure p ON p.proposed_on = a.proposed_on
            AND p.disclosure_id = a.disclosure_id AND p.step = 'proposed'
        WHERE a.step = 'approved' AND (p.staff_id IS NULL OR p.staff_id = a.staff_id)
    """,
}


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One verdict of a gate.

    Attributes:
        transferred_on: Berlin's date of `asked_at`.
        transfer_day: UTC's; None where the link to a visitor would have no day to stand in.
    """

    transfer_id: UUID
    sender: str
    recipient: str
    purpose: str
    fields: tuple[str, ...]
    verdict: str
    reason: str | None
    basis: str | None
    country_ground: str | None
    consent: str | None
    country: str | None
    register_version: str
    asked_at: datetime
    happened_at: datetime
    visitor_id: UUID | None
    transferred_on: date
    transfer_day: date | None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What somebody wants to tell an authority."""

    disclosure_id: UUID
    proposed_on: date
    staff_id: str
    authority: str
    legal_ground: str
    fields: tuple[str, ...]
    reference_salt: bytes
    reference_hash: bytes
    stated_at: datetime


class TransferStore:
    """These rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection

    async def maintain(self) -> None:
        """Make the partitions of this year and its neighbours."""
        await self._connection.execute("SELECT consent_transfer_maintain()")

    async def save(self, transfers: Sequence[Transfer]) -> int:
        """Append what is not known yet; return how many were new."""
        rows = await self._connection.fetch(
            """
            INSERT INTO consent_transfer (transferred_on, transfer_id, sender, recipient, purpose,
                fields, verdict, reason, basis, country_ground, consent, country, register_version,
                asked_at)
            SELECT d, t, s, r, p, string_to_array(f, ' '), v, y, b, g, c, l, w, a
            FROM unnest($1::date[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[],
                        $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
                        $13::text[], $14::timestamptz[])
                AS x (d, t, s, r, p, f, v, y, b, g, c, l, w, a)
            ON CONFLICT DO NOTHING RETURNING transfer_id
            """,
            [t.transferred_on for t in transfers], [t.transfer_id for t in transfers],
            [t.sender for t in transfers], [t.recipient for t in transfers],
            [t.purpose for t in transfers], [" ".join(t.fields) for t in transfers],
            [t.verdict for t in transfers], [t.reason for t in transfers],
            [t.basis for t in transfers], [t.country_ground for t in transfers],
            [t.consent for t in transfers], [t.country for t in transfers],
            [t.register_version for t in transfers], [t.asked_at for t in transfers],
        )  # fmt: skip
        new = {row["transfer_id"] for row in rows}
        linked = [
            (
                t.transfer_day,
                t.transfer_id,
                t.visitor_id,
                t.transferred_on,
                t.happened_at,
                t.asked_at,
            )
            for t in transfers
            if t.transfer_id in new and t.visitor_id is not None and t.transfer_day is not None
        ]
        await self._connection.execute(
            """
            INSERT INTO consent_transfer_visitor
                (transfer_day, transfer_id, visitor_id, transferred_on, happened_at)
            SELECT d, t, v, o, h
            FROM unnest($1::date[], $2::uuid[], $3::uuid[], $4::date[], $5::timestamptz[],
                        $6::timestamptz[]) AS x (d, t, v, o, h, a)
            -- what is older than its visitor's erasure keeps its proof and gets no link (R-G3)
            WHERE NOT EXISTS (SELECT FROM privacy_erased e
                              WHERE e.visitor_id = x.v AND x.a <= e.erased_at)
            ON CONFLICT DO NOTHING
            """,
            *([row[n] for row in linked] for n in range(6)),
        )
        return len(new)

    async def of_visitor(self, visitor_id: UUID) -> list[dict[str, Any]]:
        """Return a visitor's transfers and refusals of the last days, oldest first."""
        rows = await self._connection.fetch(
            """
            SELECT t.asked_at, t.sender, t.recipient, t.purpose, t.fields, t.verdict,
                coalesce(t.reason, t.basis || ', ' || t.country_ground) AS why, t.register_version
            FROM consent_transfer_visitor v
            JOIN consent_transfer t USING (transferred_on, transfer_id)
            WHERE v.visitor_id = $1 ORDER BY t.asked_at, t.transfer_id LIMIT $2
            """,
            visitor_id,
            TRANSFERS_MAX,
        )
        return [dict(row) for row in rows]

    # ------------------------------------------------------------------ disclosures

    async def propose(self, proposal: Proposal) -> None:
        """Append a proposal."""
        await self._connection.execute(
            """
            INSERT INTO consent_disclosure (proposed_on, disclosure_id, step, staff_id, authority,
                legal_ground, fields, reference_salt, reference_hash, stated_at)
            VALUES ($1, $2, 'proposed', $3, $4, $5, $6, $7, $8, $9)
            """,
            proposal.proposed_on, proposal.disclosure_id, proposal.staff_id, proposal.authority,
            proposal.legal_ground, list(proposal.fields), proposal.reference_salt,
            proposal.reference_hash, proposal.stated_at,
        )  # fmt: skip

    async def proposal(self, disclosure_id: UUID) -> Proposal | None:
        """Return a proposal; it stays locked against a second approval meanwhile."""
        await self._connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", str(disclosure_id)
        )
        row = await self._connection.fetchrow(
            "SELECT * FROM consent_disclosure WHERE disclosure_id = $1 AND step = 'proposed'",
            disclosure_id,
        )
        if row is None:
            return None
        return Proposal(
            disclosure_id=row["disclosure_id"],
            proposed_on=row["proposed_on"],
            staff_id=row["staff_id"],
            authority=row["authority"],
            legal_ground=row["legal_ground"],
            fields=tuple(row["fields"]),
            reference_salt=row["reference_salt"],
            reference_hash=row["reference_hash"],
            stated_at=row["stated_at"],
        )

    async def is_approved(self, disclosure_id: UUID) -> bool:
        """Whether a second person has approved it."""
        found = await self._connection.fetchval(
            "SELECT EXISTS (SELECT FROM consent_disclosure "
            "WHERE disclosure_id = $1 AND step = 'approved')",
            disclosure_id,
        )
        return bool(found)

    async def approve(self, proposal: Proposal, staff_id: str, at: datetime) -> None:
        """Append the approval; the database refuses one by who proposed (R-C4).

        Raises:
            asyncpg.CheckViolationError: it is the same person.
            asyncpg.UniqueViolationError: it was approved before.
        """
        await self._connection.execute(
            """
            INSERT INTO consent_disclosure (proposed_on, disclosure_id, step, staff_id, stated_at)
            VALUES ($1, $2, 'approved', $3, $4)
            """,
            proposal.proposed_on, proposal.disclosure_id, staff_id, at,
        )  # fmt: skip

    async def disclosures(self) -> list[dict[str, Any]]:
        """Return all disclosures, newest first."""
        rows = await self._connection.fetch(
            """
            SELECT p.disclosure_id, p.stated_at AS proposed_at, p.staff_id AS proposed_by,
                p.authority, p.legal_ground, p.fields, a.stated_at AS approved_at,
                a.staff_id AS approved_by
            FROM consent_disclosure p
            LEFT JOIN consent_disclosure a
                ON (a.proposed_on, a.disclosure_id) = (p.proposed_on, p.disclosure_id)
                    AND a.step = 'approved'
            WHERE p.step = 'proposed' ORDER BY p.stated_at DESC, p.disclosure_id LIMIT $1
            """,
            DISCLOSURES_MAX,
        )
        return [dict(row) for row in rows]

    # ------------------------------------------------------------------ access log

    async def accesses(self, since: datetime) -> list[dict[str, Any]]:
        """Return who of the staff read what, and why, newest first; nobody whom it was about."""
        rows = await self._connection.fetch(
            """
            SELECT b.accessed_at, b.staff_id, b.reason, b.case_number, b.kind, b.subject, a.n_rows
            FROM access_log b
            LEFT JOIN access_log a
                ON (a.accessed_on, a.access_id) = (b.accessed_on, b.access_id)
                    AND a.step = 'answered'
            WHERE b.step = 'begun' AND b.accessed_at >= $1
            ORDER BY b.accessed_at DESC, b.access_id LIMIT $2
            """,
            since,
            ACCESSES_MAX,
        )
        return [dict(row) for row in rows]


class ConsentStore(Store):
    """All of consent's rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        super().__init__(connection)
        self.transfers = TransferStore(connection)
