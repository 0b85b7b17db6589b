"""SQL of transfers and disclosures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from services.chassis import db
from services.consent.catalogues import Catalogues, known
from services.consent.store import Store
from services.privacy.acts import Act
from services.privacy.staff import Signer

DISCLOSURES_MAX = 1_000
TRANSFERS_MAX = 1_000

# Who is not linked to a proof never answered, unless something took the link: an erasure, a
# restriction, or a drop of days that a consent can be of. Else, some agreement must have reached
# this recipient (it named it, or the version shown did) and be the last word, younger than a
# visitor lives, at the event and at the sending; in the order of `domain.Decision.order`.
_AGAINST_CONSENT = """
    WITH named (version, purpose, recipient) AS (VALUES $NAMED)
    SELECT count(*) FROM consent_transfer_visitor v
    JOIN consent_transfer t USING (transferred_on, transfer_id)
    LEFT JOIN consent_subject s USING (visitor_id)
    CROSS JOIN LATERAL (
        VALUES (v.happened_at, v.happened_at),
               (t.asked_at - interval '5 seconds', t.asked_at)) AS span (begins_at, ends_at)
    WHERE v.transfer_day >= current_date - 1
      AND t.verdict = 'permitted' AND t.consent IS NOT NULL
      AND CASE WHEN s.proof_id IS NULL THEN
        NOT EXISTS (SELECT FROM privacy_erased e WHERE e.visitor_id = v.visitor_id)
        AND NOT EXISTS (SELECT FROM privacy_visitor p WHERE p.visitor_id = v.visitor_id)
        AND NOT EXISTS (
            SELECT FROM retention_done d
            WHERE d.kind = 'ad_use' AND d.action = 'drop'
              AND d.before_day > (span.ends_at AT TIME ZONE 'UTC' - interval '6 days')::date)
      ELSE NOT EXISTS (
        SELECT FROM consent_record g
        WHERE g.proof_id = s.proof_id AND g.purpose = t.consent AND g.decision = 'given'
          AND (g.recipient = t.recipient OR g.recipient = '' AND EXISTS (
                SELECT FROM named n
                WHERE n.version = g.catalogue_version AND n.purpose = g.purpose
                  AND n.recipient = t.recipient))
          AND g.decided_at > span.ends_at - interval '6 days' AND g.decided_at <= span.ends_at
          AND NOT EXISTS (
            SELECT FROM consent_record w
            WHERE w.proof_id = g.proof_id AND w.purpose = g.purpose
              AND w.recipient IN ('', t.recipient)
              AND w.decision IN ('refused', 'withdrawn', 'objected') AND w.method <> 'signal'
              AND (w.decided_at, w.decision_id, w.recipient <> '', true)
                  > (g.decided_at, g.decision_id, g.recipient <> '', false)
              AND w.decided_at <= span.begins_at))
      END
"""


def _named(known: Catalogues) -> str:
    """Return whom each published version names, as rows of SQL; ids have no quotes in them."""
    rows = [
        (version, purpose, recipient)
        for version, one in known.by_version.items()
        for purpose, among in one.recipients.items()
        for recipient in sorted(among)
    ]
    assert all("'" not in text for row in rows for text in row)
    return ", ".join(str(row) for row in rows)


INVARIANTS = {
    # K2, K3: a failure means a transfer on a consent that was not in force, at the event or at the
    # sending. A withdrawal needs a moment to reach every gate (the goal is a second): five are
    # granted.
    "k3_no_transfer_against_consent": _AGAINST_CONSENT.replace("$NAMED", _named(known())),
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


PROPOSED, APPROVED = "disclosure", "disclosure_approval"
"""Kinds of what is signed."""
_PROPOSAL_FIELDS = (
    "disclosure_id", "proposed_on", "staff_id", "authority", "legal_ground", "fields",
    "from_day", "to_day", "n_persons", "stated_at",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What somebody wants to tell an authority.

    Attributes:
        from_day: first day (Berlin) of what is told, as `to_day` is the last.
        n_persons: about how many; who they are stands nowhere here (D4).
    """

    disclosure_id: UUID
    proposed_on: date
    staff_id: str
    authority: str
    legal_ground: str
    fields: tuple[str, ...]
    from_day: date | None
    to_day: date | None
    n_persons: int | None
    reference_salt: bytes
    reference_hash: bytes
    stated_at: datetime


def proposal_content(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what whoever proposes a disclosure signs."""
    found = {name: row.get(name) for name in _PROPOSAL_FIELDS}
    salt, digest = row.get("reference_salt"), row.get("reference_hash")
    return found | {
        "fields": list(found["fields"] or ()),
        "reference_salt": salt and salt.hex(),
        "reference_hash": digest and digest.hex(),
    }


def approval_content(row: Mapping[str, Any], proposal: Mapping[str, Any]) -> dict[str, Any]:
    """Return what whoever approves signs: what was proposed, too."""
    own = {name: row[name] for name in ("staff_id", "stated_at", "transfer_id")}
    return own | {"proposal": proposal_content(proposal)}


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

    async def propose(self, proposal: Proposal, sign: Signer) -> None:
        """Append a proposal, signed by who makes it."""
        await self._connection.execute(
            """
            INSERT INTO consent_disclosure (proposed_on, disclosure_id, step, staff_id, authority,
                legal_ground, fields, reference_salt, reference_hash, stated_at, from_day, to_day,
                n_persons, key_id, signature)
            VALUES ($1, $2, 'proposed', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
            """,
            proposal.proposed_on, proposal.disclosure_id, proposal.staff_id, proposal.authority,
            proposal.legal_ground, list(proposal.fields), proposal.reference_salt,
            proposal.reference_hash, proposal.stated_at, proposal.from_day, proposal.to_day,
            proposal.n_persons,
            *sign(proposal.staff_id, PROPOSED, proposal_content(vars(proposal))),
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
            from_day=row["from_day"],
            to_day=row["to_day"],
            n_persons=row["n_persons"],
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

    async def approve(
        self, proposal: Proposal, staff_id: str, at: datetime, transfer_id: UUID, sign: Signer
    ) -> None:
        """Append the approval; the database refuses one by who proposed (R-C4).

        Args:
            transfer_id: of what is told by it.

        Raises:
            asyncpg.CheckViolationError: it is the same person.
            asyncpg.UniqueViolationError: it was approved before.
        """
        await self._connection.execute(
            """
            INSERT INTO consent_disclosure (proposed_on, disclosure_id, step, staff_id, stated_at,
                transfer_id, key_id, signature)
            VALUES ($1, $2, 'approved', $3, $4, $5, $6, $7)
            """,
            proposal.proposed_on, proposal.disclosure_id, staff_id, at, transfer_id,
            *sign(staff_id, APPROVED, approval_content(
                {"staff_id": staff_id, "stated_at": at, "transfer_id": transfer_id},
                vars(proposal),
            )),
        )  # fmt: skip

    async def disclosure_acts(self) -> list[Act]:
        """Return what staff stated about disclosures, in the order in which they did."""
        rows = await self._connection.fetch(
            "SELECT * FROM consent_disclosure ORDER BY stated_at, step DESC, disclosure_id"
        )
        proposals = {row["disclosure_id"]: row for row in rows if row["step"] == "proposed"}
        return [
            Act(
                seq=seq,
                what=PROPOSED if row["step"] == "proposed" else APPROVED,
                staff_id=row["staff_id"],
                at=row["stated_at"],
                content=proposal_content(row)
                if row["step"] == "proposed"
                else approval_content(row, proposals.get(row["disclosure_id"], {})),
                key_id=row["key_id"],
                signature=row["signature"],
                pair=row["disclosure_id"],
            )
            for seq, row in enumerate(rows, start=1)
        ]

    async def disclosures(self) -> list[dict[str, Any]]:
        """Return all disclosures, newest first."""
        rows = await self._connection.fetch(
            """
            SELECT p.disclosure_id, p.stated_at AS proposed_at, p.staff_id AS proposed_by,
                p.authority, p.legal_ground, p.fields, p.from_day, p.to_day, p.n_persons,
                a.stated_at AS approved_at, a.staff_id AS approved_by, a.transfer_id
            FROM consent_disclosure p
            LEFT JOIN consent_disclosure a
                ON (a.proposed_on, a.disclosure_id) = (p.proposed_on, p.disclosure_id)
                    AND a.step = 'approved'
            WHERE p.step = 'proposed' ORDER BY p.stated_at DESC, p.disclosure_id LIMIT $1
            """,
            DISCLOSURES_MAX,
        )
        return [dict(row) for row in rows]


class ConsentStore(Store):
    """All of consent's rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        super().__init__(connection)
        self.transfers = TransferStore(connection)
