"""All SQL of this service."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from uuid import UUID

import asyncpg

from services.chassis import db
from services.consent import catalogues, chain_store, domain
from services.consent.domain import Choice, Decision, Key, Verdict
from services.consent.receipts import Recorded
from services.privacy import chain
from services.privacy.invariants import (
    D1_NO_DAY_PARTITION_TOO_OLD,
    D1_NO_YEAR_PARTITION_TOO_OLD,
    D2_INVARIANTS,
)

DECISIONS_PER_PURPOSE_MAX = 256
"""Newest decisions per visitor and purpose that are read: a bound, far above what a person does."""

RECEIPTS_MAX = 64
"""Newest decisions of a visitor's own about a purpose that are shown again."""
RECEIPTS_WITHOUT_ANSWER_MAX = 16
"""The same of a browser's signals, of questions closed, and of questions shown."""

IMPORT_LOCK = 7_411_033
"""Beside the chassis' and the executor's locks."""
SIGNAL = "signal"
"""The method of what a browser says for the visitor."""

_INSERT_RECORDS = """
    INSERT INTO consent_record (ends_on, decision_id, purpose, proof_id, decision,
        catalogue_version, wording_version, language, method, decided_at, recipient, page,
        chain_part, chain_seq, salt)
    SELECT * FROM unnest($1::date[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::text[],
        $7::text[], $8::text[], $9::text[], $10::timestamptz[], $11::text[], $12::text[],
        $13::smallint[], $14::bigint[], $15::bytea[])
"""
"""One statement for a poll's records: a row at a time took three times as long."""

INVARIANTS = {
    **D2_INVARIANTS,
    "d1_no_day_partition_too_old": D1_NO_DAY_PARTITION_TOO_OLD,
    # D1: a failure means that a year outlived its rule; did its order arrive?
    "d1_no_year_partition_too_old": D1_NO_YEAR_PARTITION_TOO_OLD,
    # one proof per visitor, one visitor per proof
    "one_proof_per_visitor": """
        SELECT count(*) FROM (
            SELECT visitor_id FROM consent_subject GROUP BY visitor_id HAVING count(*) > 1
            UNION ALL
            SELECT proof_id FROM consent_subject GROUP BY proof_id HAVING count(*) > 1
        ) doubled
    """,
    "every_subject_has_a_record": """
        SELECT count(*) FROM consent_subject s
        WHERE NOT EXISTS (SELECT FROM consent_record r WHERE r.proof_id = s.proof_id)
    """,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The link from a visitor to the proof of what they decided."""

    visitor_id: UUID
    proof_id: UUID
    day: date


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One decision with what proves it."""

    decision: Decision
    proof_id: UUID
    ends_on: date
    method: str
    salt: bytes
    catalogue_version: str | None = None
    wording_version: str | None = None
    language: str | None = None
    page: str | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """One record as it stands under its proof id."""

    decision: Decision
    ends_on: date
    method: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What is known of some visitors.

    Attributes:
        decisions: by proof, then by natural key.
        owners: decision id -> proof, for the decisions asked for.
    """

    subjects: dict[UUID, Subject] = field(default_factory=dict)
    decisions: dict[UUID, dict[Key, Decision]] = field(default_factory=dict)
    owners: dict[UUID, UUID] = field(default_factory=dict)


class Store:
    """Consent's rows on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection

    async def load(self, visitor_ids: Collection[UUID], decision_ids: Collection[UUID]) -> Loaded:
        """Lock the visitors' rows, in key order, and read all that is known of them."""
        rows = await self._connection.fetch(
            """
            SELECT visitor_id, proof_id, subject_day FROM consent_subject
            WHERE visitor_id = ANY($1) ORDER BY visitor_id, subject_day FOR UPDATE
            """,
            list(visitor_ids),
        )
        subjects = {
            row["visitor_id"]: Subject(
                visitor_id=row["visitor_id"], proof_id=row["proof_id"], day=row["subject_day"]
            )
            for row in rows
        }
        assert len(subjects) == len(rows)  # one proof per visitor
        loaded = Loaded(subjects=subjects)
        for row in await self._records([subject.proof_id for subject in subjects.values()]):
            decision = _decision(row)
            loaded.decisions.setdefault(row["proof_id"], {})[decision.key] = decision
        for row in await self._connection.fetch(
            """
            SELECT decision_id, purpose, recipient, decision, method, catalogue_version,
                decided_at, proof_id
            FROM consent_record WHERE decision_id = ANY($1)
            """,
            list(decision_ids),
        ):
            loaded.owners[row["decision_id"]] = row["proof_id"]
            # also where the newest ones do not reach back to it
            decision = _decision(row)
            loaded.decisions.setdefault(row["proof_id"], {})[decision.key] = decision
        return loaded

    async def decisions_of(self, visitor_id: UUID) -> list[Decision]:
        """Return what a visitor decided; nothing once the link has gone."""
        rows = await self._connection.fetch(
            "SELECT proof_id FROM consent_subject WHERE visitor_id = $1", visitor_id
        )
        return [_decision(row) for row in await self._records([row["proof_id"] for row in rows])]

    async def known_of(self, proof_id: UUID) -> list[Known]:
        """Return what stands under a proof id, whoever's it is."""
        rows = await self._connection.fetch(
            """
            SELECT decision_id, purpose, recipient, decision, method, catalogue_version,
                decided_at, ends_on
            FROM consent_record WHERE proof_id = $1
            """,
            proof_id,
        )
        return [
            Known(decision=_decision(row), ends_on=row["ends_on"], method=row["method"])
            for row in rows
        ]

    async def visitor_of(self, proof_id: UUID) -> UUID | None:
        """Return whose proof it is; None once the link has gone, or where there never was one."""
        found: UUID | None = await self._connection.fetchval(
            "SELECT visitor_id FROM consent_subject WHERE proof_id = $1", proof_id
        )
        return found

    async def recorded_of(self, visitor_id: UUID) -> list[Recorded]:
        """Return a visitor's newest decisions, whole, with what a receipt says.

        Nothing once the link has gone. What the visitor chose, what their browser says and a
        question without an answer are counted apart: a page shown often must not hide a choice.
        """
        rows = await self._connection.fetch(
            """
            WITH mine AS (
                SELECT r.* FROM consent_record r JOIN consent_subject s USING (proof_id)
                WHERE visitor_id = $1
            ), counted AS (
                SELECT decision_id, decision = ANY($2) AS is_no_answer, method = $3 AS is_signal,
                    dense_rank() OVER (
                        PARTITION BY purpose, decision = ANY($2), decision = 'served', method = $3
                        ORDER BY decided_at DESC, decision_id DESC
                    ) AS nth
                FROM mine
            )
            SELECT * FROM mine
            WHERE decision_id IN (
                SELECT decision_id FROM counted
                WHERE nth <= CASE WHEN is_no_answer OR is_signal THEN $4::int ELSE $5::int END
            )
            """,
            visitor_id,
            [verdict.value for verdict in domain.NO_ANSWER],
            SIGNAL,
            RECEIPTS_WITHOUT_ANSWER_MAX,
            RECEIPTS_MAX,
        )
        return _recorded(rows)

    async def import_alone(self) -> None:
        """Wait for another import to end: both would find that nothing is recorded yet."""
        await self._connection.execute("SELECT pg_advisory_xact_lock($1)", IMPORT_LOCK)

    async def recorded_under(self, proof_ids: Collection[UUID]) -> list[Recorded]:
        """Return what is recorded under proof ids, with what a receipt says."""
        rows = await self._connection.fetch(
            "SELECT * FROM consent_record WHERE proof_id = ANY($1)", list(proof_ids)
        )
        return _recorded(rows)

    async def recorded_as(self, decision_ids: Collection[UUID]) -> list[Recorded]:
        """Return what was recorded of decisions, whoever's they are, with what a receipt says."""
        rows = await self._connection.fetch(
            "SELECT * FROM consent_record WHERE decision_id = ANY($1)", list(decision_ids)
        )
        return _recorded(rows)

    async def save(
        self, proofs: Sequence[Proof], subjects: Iterable[Subject], before: Mapping[UUID, Subject]
    ) -> None:
        """Append records and place each visitor's link in the day of the first decision.

        Args:
            proofs: new ones only.
            subjects: as they are now.
            before: as `load` gave them; a link that moved to an earlier day leaves its old row.
        """
        if proofs:
            await self._connection.execute(
                _INSERT_RECORDS, *zip(*await self._chained(proofs), strict=True)
            )
        moved = [
            (subject, before.get(subject.visitor_id))
            for subject in subjects
            if before.get(subject.visitor_id) != subject
        ]
        if moved:
            await self._connection.execute(
                """
                INSERT INTO consent_subject (subject_day, visitor_id, proof_id)
                SELECT * FROM unnest($1::date[], $2::uuid[], $3::uuid[])
                """,
                [subject.day for subject, _ in moved],
                [subject.visitor_id for subject, _ in moved],
                [subject.proof_id for subject, _ in moved],
            )
        left = [old for _, old in moved if old is not None]
        if left:
            await self._connection.execute(
                """
                DELETE FROM consent_subject WHERE (subject_day, visitor_id)
                    IN (SELECT * FROM unnest($1::date[], $2::uuid[]))
                """,
                [old.day for old in left],
                [old.visitor_id for old in left],
            )

    async def anchor(self, keys: chain.SigningKeys, day: date) -> int:
        """Sign the end of each chain once a day; return how many were signed."""
        return await chain_store.anchor(self._connection, keys, day)

    async def going(self, since: date, until: date) -> chain_store.RangesOf:
        """Return the numbers of sound records that end in these days; see `chain_store`."""
        return await chain_store.going(self._connection, since, until)

    async def next_day(self, after: date, until: date) -> date | None:
        """Return the next day on which a record ends; None = there is none before `until`."""
        return await chain_store.next_day(self._connection, after, until)

    async def has_at_most(self, n_rows: int, until: date) -> bool:
        """Whether no more than so many records end before a day."""
        return await chain_store.has_at_most(self._connection, n_rows, until)

    async def close_chains(self) -> None:
        """Let nobody append a record until the transaction's end."""
        await chain_store.close_chains(self._connection)

    async def leave_takings(
        self, keys: chain.SigningKeys, order_id: UUID, ranges: chain_store.RangesOf
    ) -> None:
        """Say which records an order takes; see `chain_store`."""
        await chain_store.leave_takings(self._connection, keys, order_id, ranges)

    async def anchors(self) -> list[chain.Anchor]:
        """Return all anchors, the oldest first."""
        return await chain_store.read_anchors(self._connection, chain_store.ALL)

    async def reads_as_of_one_instant(self) -> None:
        """Let the transaction read what fits together; its first statement."""
        await chain_store.reads_as_of_one_instant(self._connection)

    async def chain_part(self, part: int) -> chain_store.Part:
        """Read all of one chain, to verify it."""
        return await chain_store.read_part(self._connection, part)

    async def _chained(self, proofs: Sequence[Proof]) -> list[tuple[object, ...]]:
        """Append the proofs to their chains; return their rows with the places they have there."""
        by_part: dict[int, list[Proof]] = {}
        for proof in proofs:
            by_part.setdefault(chain_store.part_of(proof.proof_id), []).append(proof)
        entries = await chain_store.append(
            self._connection,
            {
                part: [chain.commitment(proof.salt, _content(proof)) for proof in among]
                for part, among in by_part.items()
            },
        )
        return [
            (*_row(proof), part, entry.seq, proof.salt)
            for part, among in by_part.items()
            for proof, entry in zip(among, entries[part], strict=True)
        ]

    async def maintain_years(self) -> None:
        """Make the partitions of this year and the next."""
        await self._connection.execute("SELECT consent_year_maintain()")

    async def _records(self, proof_ids: list[UUID]) -> list[asyncpg.Record]:
        if not proof_ids:
            return []  # a poll of first choices: as a rule
        rows: list[asyncpg.Record] = await self._connection.fetch(
            """
            SELECT decision_id, purpose, recipient, decision, method, catalogue_version,
                decided_at, proof_id
            FROM (
                SELECT *, row_number() OVER (
                    PARTITION BY proof_id, purpose, recipient, method = 'signal'
                    ORDER BY decided_at DESC, decision_id DESC
                ) AS nth
                FROM consent_record WHERE proof_id = ANY($1) AND decision <> ALL($3)
            ) newest WHERE nth <= $2
            """,
            proof_ids,
            DECISIONS_PER_PURPOSE_MAX,
            [verdict.value for verdict in domain.NO_ANSWER],
        )
        return rows


def _decision(row: asyncpg.Record) -> Decision:
    choice = Choice(
        purpose=row["purpose"],
        verdict=Verdict(row["decision"]),
        recipient=row["recipient"] or None,
    )
    offer = catalogues.known().offer(row["catalogue_version"])
    return Decision(
        decision_id=row["decision_id"],
        purpose=choice.purpose,
        verdict=choice.verdict,
        decided_at=row["decided_at"],
        recipient=choice.recipient,
        is_signal=row["method"] == SIGNAL,
        named=domain.named(offer, choice),
    )


def _recorded(rows: Sequence[asyncpg.Record]) -> list[Recorded]:
    # once for all rows: it is the hash of a whole catalogue, a millisecond each
    hashes = {
        shown: _shown_hash(*shown)
        for shown in {(r["catalogue_version"], r["wording_version"], r["language"]) for r in rows}
    }
    return [
        Recorded(
            decision_id=row["decision_id"],
            proof_id=row["proof_id"],
            purpose=row["purpose"],
            recipient=row["recipient"] or None,
            verdict=Verdict(row["decision"]),
            catalogue_version=row["catalogue_version"],
            wording_version=row["wording_version"],
            language=row["language"],
            method=row["method"],
            page=row["page"],
            decided_at=row["decided_at"],
            ends_on=row["ends_on"],
            named=_named(row["catalogue_version"], row["purpose"], row["decided_at"]),
            shown_hash=hashes[row["catalogue_version"], row["wording_version"], row["language"]],
        )
        for row in rows
    ]


def _shown_hash(version: str | None, wording: str | None, language: str | None) -> str | None:
    if version is None:
        # from before there were catalogues: the wording's own hash
        return wording
    shown = catalogues.known().by_version.get(version)
    if shown is None or language is None or language not in catalogues.LANGUAGES:
        return None
    return shown.hash(language)


def _named(version: str | None, purpose: str, at: datetime) -> frozenset[str]:
    """Return who would get something: by the version shown, else by the one in force."""
    known = catalogues.known()
    offer = known.offer(version)
    if offer is None and version is None:
        try:
            offer = known.offer(known.in_force(at).version)
        except catalogues.CatalogueError:
            # before the first one: only the controller is known
            return frozenset()
    return frozenset() if offer is None else offer.recipients.get(purpose, frozenset())


def _content(proof: Proof) -> bytes:
    return chain_store.content_of(dict(zip(chain_store.CONTENT, _row(proof), strict=True)))


def _row(proof: Proof) -> tuple[object, ...]:
    return (
        proof.ends_on,
        proof.decision.decision_id,
        proof.decision.purpose,
        proof.proof_id,
        proof.decision.verdict.value,
        proof.catalogue_version,
        proof.wording_version,
        proof.language,
        proof.method,
        proof.decision.decided_at,
        proof.decision.recipient or "",
        proof.page,
    )
