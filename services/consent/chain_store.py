"""SQL of the chain of records: append, anchor, read to verify."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any
from uuid import UUID

import asyncpg

from services.chassis import db
from services.privacy import chain
from services.privacy.chain import NO_SALT, Anchor, Entry, SigningKeys, Taking

PARTS = 8
"""Chains side by side, so that processes seldom wait for one another; as many heads are stored."""
TAKINGS = PARTS
"""The chain of what orders took from the others: no decision ever waits for it."""
ALL = range(PARTS + 1)


def part_of(proof_id: UUID) -> int:
    """Return the chain of a proof: all of one proof stand in one chain."""
    return hashlib.sha256(proof_id.bytes).digest()[0] % PARTS


def content_of(row: Mapping[str, Any]) -> bytes:
    """Return the bytes that a record commits to: all that it says, by its columns' names."""
    said = {name: row[name] for name in CONTENT}
    # these came later: what did not have them commits to the same bytes as before
    return chain.canonical({k: v for k, v in said.items() if v or k not in ("recipient", "page")})


CONTENT = (
    "ends_on",
    "decision_id",
    "purpose",
    "proof_id",
    "decision",
    "catalogue_version",
    "wording_version",
    "language",
    "method",
    "decided_at",
    "recipient",
    "page",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """All there is of one chain.

    Attributes:
        contents: seq -> (salt, content) of the records that are still kept.
        strays: places that records claim which belong to another one, or to no chain of theirs.
        takings: of the chain of takings: its contents.
    """

    name: str
    head: Entry
    entries: tuple[Entry, ...]
    anchors: tuple[Anchor, ...]
    contents: Mapping[int, tuple[bytes, bytes]]
    strays: tuple[int, ...] = ()
    takings: tuple[Taking, ...] = ()


def chain_name(part: int) -> str:
    """Return a chain's name, which its anchors sign."""
    return f"consent/{part}" if part < PARTS else "consent/takings"


async def append(
    connection: db.Connection, commitments: Mapping[int, Sequence[bytes]]
) -> dict[int, list[Entry]]:
    """Append to the chains under their heads' locks, in the parts' order; three statements in all.

    Args:
        commitments: part -> what to append, in order.

    Returns:
        part -> the new entries, in the same order.
    """
    if not commitments:
        return {}
    rows = await connection.fetch(
        """
        SELECT part, seq, commitment, hash FROM consent_chain_head
        WHERE part = ANY($1) ORDER BY part FOR UPDATE
        """,
        sorted(commitments),
    )
    entries = {
        row["part"]: chain.append(_entry(row) if row["seq"] else None, commitments[row["part"]])
        for row in rows
    }
    assert entries.keys() == commitments.keys()
    await connection.execute(
        """
        INSERT INTO consent_chain (part, seq, commitment, hash)
        SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::bytea[], $4::bytea[])
        """,
        *zip(
            *[_row(part, entry) for part, added in entries.items() for entry in added], strict=True
        ),
    )
    await connection.execute(
        """
        UPDATE consent_chain_head h SET seq = n.seq, commitment = n.commitment, hash = n.hash
        FROM unnest($1::smallint[], $2::bigint[], $3::bytea[], $4::bytea[])
            AS n (part, seq, commitment, hash)
        WHERE h.part = n.part
        """,
        *zip(*[_row(part, added[-1]) for part, added in entries.items()], strict=True),
    )
    return entries


async def anchor(connection: db.Connection, keys: chain.SigningKeys, day: date) -> int:
    """Sign the end of each chain that has none of this day yet; return how many were signed."""
    rows = await connection.fetch(
        """
        SELECT part, seq, commitment, hash FROM consent_chain_head h
        WHERE seq > 0 AND NOT EXISTS (
            SELECT FROM consent_anchor a WHERE a.part = h.part AND a.anchored_on = $1
        ) ORDER BY part
        """,
        day,
    )
    for row in rows:
        signed = chain.anchor(keys, chain_name(row["part"]), day, _entry(row))
        # another process may have signed meanwhile: one a day is enough
        await connection.execute(
            """
            INSERT INTO consent_anchor (part, anchored_on, seq, hash, key_id, signature)
            VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING
            """,
            row["part"], day, signed.seq, signed.hash, signed.key_id, signed.signature,
        )  # fmt: skip
    return len(rows)


# What of some days is what its link committed to, in runs of numbers. What is not was
# put in or changed: a drop must not make it look like something that was taken rightly. The text is
# `content_of`'s, and a test holds both against each other.
_GOING = """
    WITH going AS (
        SELECT DISTINCT r.chain_part AS part, r.chain_seq AS seq
        FROM consent_record r
        JOIN consent_chain c ON (c.part, c.seq) = (r.chain_part, r.chain_seq)
        WHERE r.ends_on >= $1 AND r.ends_on < $2
          AND get_byte(sha256(uuid_send(r.proof_id)), 0) % $3 = r.chain_part
          AND c.commitment = sha256('commitment\\000'::bytea || r.salt || convert_to(concat(
            '{"catalogue_version":', coalesce(to_json(r.catalogue_version)::text, 'null'),
            ',"decided_at":"',
            to_char(r.decided_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
            '","decision":', to_json(r.decision)::text,
            ',"decision_id":"', r.decision_id,
            '","ends_on":"', to_char(r.ends_on, 'YYYY-MM-DD'),
            '","language":', coalesce(to_json(r.language)::text, 'null'),
            ',"method":', to_json(r.method)::text,
            CASE WHEN r.page <> '' THEN concat(',"page":', to_json(r.page)::text) END,
            ',"proof_id":"', r.proof_id,
            '","purpose":', to_json(r.purpose)::text,
            CASE WHEN r.recipient <> ''
                THEN concat(',"recipient":', to_json(r.recipient)::text) END,
            ',"wording_version":', coalesce(to_json(r.wording_version)::text, 'null'),
            '}'), 'UTF8'))
    ), islands AS (
        SELECT part, seq, seq - row_number() OVER (PARTITION BY part ORDER BY seq) AS island
        FROM going
    )
    SELECT part, min(seq) AS first, max(seq) AS last FROM islands
    GROUP BY part, island ORDER BY part, first
"""


class RangesOf(dict[int, list[tuple[int, int]]]):
    """Part -> runs of numbers, ascending."""


def merged(one: RangesOf, other: RangesOf) -> RangesOf:
    """Return the runs of both, those that touch as one."""
    found = RangesOf()
    for part in sorted(one.keys() | other.keys()):
        runs: list[tuple[int, int]] = []
        for first, last in sorted([*one.get(part, ()), *other.get(part, ())]):
            if runs and first <= runs[-1][1] + 1:
                runs[-1] = runs[-1][0], max(last, runs[-1][1])
            else:
                runs.append((first, last))
        found[part] = runs
    return found


async def going(connection: db.Connection, since: date, until: date) -> RangesOf:
    """Return the numbers of the records that end in these days and are what was committed to."""
    found = RangesOf()
    for row in await connection.fetch(_GOING, since, until, PARTS):
        found.setdefault(row["part"], []).append((row["first"], row["last"]))
    return found


async def next_day(connection: db.Connection, after: date, until: date) -> date | None:
    """Return the next day on which a record ends; None = there is none before `until`."""
    found: date | None = await connection.fetchval(
        "SELECT min(ends_on) FROM consent_record WHERE ends_on > $1 AND ends_on < $2", after, until
    )
    return found


async def has_at_most(connection: db.Connection, n_rows: int, until: date) -> bool:
    """Whether no more than so many records end before a day."""
    found: int = await connection.fetchval(
        """
        SELECT count(*) FROM (
            SELECT FROM consent_record WHERE ends_on < $1 LIMIT $2::int + 1
        ) AS first_ones
        """,
        until,
        n_rows,
    )
    return found <= n_rows


async def close_chains(connection: db.Connection) -> None:
    """Let nobody append a record until the transaction's end."""
    await connection.execute(
        "SELECT FROM consent_chain_head WHERE part < $1 ORDER BY part FOR UPDATE", PARTS
    )


async def leave_takings(
    connection: db.Connection, keys: SigningKeys, order_id: UUID, ranges: RangesOf
) -> None:
    """Say, chained and signed, which records an order takes; in the order's transaction."""
    unsigned = [
        Taking(chain=chain_name(part), seq=0, order_id=order_id, ranges=tuple(among))
        for part, among in ranges.items()
    ]
    if not unsigned:
        return
    commitments = [chain.commitment(NO_SALT, one.content()) for one in unsigned]
    entries = (await append(connection, {TAKINGS: commitments}))[TAKINGS]
    for part, one, entry in zip(ranges, unsigned, entries, strict=True):
        signed = replace(one, seq=entry.seq).signed(keys)
        await connection.execute(
            """
            INSERT INTO consent_taking
                (seq, part, order_id, first_seqs, last_seqs, key_id, signature)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            signed.seq, part, order_id, [first for first, _ in signed.ranges],
            [last for _, last in signed.ranges], signed.key_id, signed.signature,
        )  # fmt: skip


async def reads_as_of_one_instant(connection: db.Connection) -> None:
    """Let a transaction read what fits together, while others go on writing; its first statement.

    Heads that were locked instead would let no decision in, and a transaction that locks holds back
    the outbox too: no gate would hear of a withdrawal until a large chain was read.
    """
    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


async def read_part(connection: db.Connection, part: int) -> Part:
    """Read all of one chain, in a transaction that `reads_as_of_one_instant`."""
    head = await connection.fetchrow(
        "SELECT seq, commitment, hash FROM consent_chain_head WHERE part = $1", part
    )
    assert head is not None
    entries = await connection.fetch(
        "SELECT seq, commitment, hash FROM consent_chain WHERE part = $1 ORDER BY seq", part
    )
    found = Part(
        name=chain_name(part),
        head=_entry(head),
        entries=tuple(_entry(row) for row in entries),
        anchors=tuple(await read_anchors(connection, [part])),
        contents={},
    )
    if part == TAKINGS:
        takings = await _read_takings(connection)
        contents = {one.seq: (NO_SALT, one.content()) for one in takings}
        return replace(found, contents=contents, takings=takings)
    contents, strays = await _read_records(connection, part)
    return replace(found, contents=contents, strays=strays)


async def read_anchors(connection: db.Connection, parts: Sequence[int]) -> list[Anchor]:
    """Return the anchors of chains, the oldest first."""
    rows = await connection.fetch(
        """
        SELECT part, anchored_on, seq, hash, key_id, signature FROM consent_anchor
        WHERE part = ANY($1) ORDER BY anchored_on, part
        """,
        list(parts),
    )
    return [
        Anchor(
            chain=chain_name(row["part"]),
            day=row["anchored_on"],
            seq=row["seq"],
            hash=row["hash"],
            key_id=row["key_id"],
            signature=row["signature"],
        )
        for row in rows
    ]


async def _read_takings(connection: db.Connection) -> tuple[Taking, ...]:
    rows = await connection.fetch(
        """
        SELECT seq, part, order_id, first_seqs, last_seqs, key_id, signature
        FROM consent_taking ORDER BY seq
        """
    )
    return tuple(
        Taking(
            chain=chain_name(row["part"]),
            seq=row["seq"],
            order_id=row["order_id"],
            ranges=tuple(zip(row["first_seqs"], row["last_seqs"], strict=False)),
            key_id=row["key_id"],
            signature=row["signature"],
        )
        for row in rows
    )


async def _read_records(
    connection: db.Connection, part: int
) -> tuple[dict[int, tuple[bytes, bytes]], tuple[int, ...]]:
    """Return the records' salts and contents by number, and the numbers claimed wrongly."""
    records = await connection.fetch(
        """
        SELECT chain_part, chain_seq, salt, ends_on, decision_id, purpose, proof_id, decision,
            catalogue_version, wording_version, language, method, decided_at, recipient, page
        FROM consent_record
        -- what claims a chain that there is not is found with the first
        WHERE chain_part = $1 OR ($1 = 0 AND chain_part NOT BETWEEN 0 AND $2)
        """,
        part,
        PARTS - 1,
    )
    contents: dict[int, tuple[bytes, bytes]] = {}
    strays = []
    for row in records:
        if part_of(row["proof_id"]) != row["chain_part"] or row["chain_seq"] in contents:
            strays.append(row["chain_seq"])
        else:
            contents[row["chain_seq"]] = (row["salt"], content_of(row))
    return contents, tuple(sorted(strays))


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(seq=row["seq"], commitment=row["commitment"], hash=row["hash"])


def _row(part: int, entry: Entry) -> tuple[int, int, bytes, bytes]:
    return part, entry.seq, entry.commitment, entry.hash
