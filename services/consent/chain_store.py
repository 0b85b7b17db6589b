"""SQL of the chain of records: append, anchor, read to verify."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

import asyncpg

from services.chassis import db
from services.privacy import chain
from services.privacy.chain import Anchor, Entry

PARTS = 8
"""Chains side by side, so that processes seldom wait for one another; as many heads are stored."""


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
    """

    name: str
    head: Entry
    entries: tuple[Entry, ...]
    anchors: tuple[Anchor, ...]
    contents: Mapping[int, tuple[bytes, bytes]]
    strays: tuple[int, ...] = ()


def chain_name(part: int) -> str:
    """Return a chain's name, which its anchors sign."""
    return f"consent/{part}"


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


async def read_part(connection: db.Connection, part: int) -> Part:
    """Read all of one chain; the head is locked, so that what is read fits together."""
    head = await connection.fetchrow(
        "SELECT seq, commitment, hash FROM consent_chain_head WHERE part = $1 FOR UPDATE", part
    )
    assert head is not None
    entries = await connection.fetch(
        "SELECT seq, commitment, hash FROM consent_chain WHERE part = $1 ORDER BY seq", part
    )
    anchors = await connection.fetch(
        """
        SELECT anchored_on, seq, hash, key_id, signature FROM consent_anchor
        WHERE part = $1 ORDER BY anchored_on
        """,
        part,
    )
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
    return Part(
        name=chain_name(part),
        head=_entry(head),
        entries=tuple(_entry(row) for row in entries),
        anchors=tuple(_anchor(part, row) for row in anchors),
        contents=contents,
        strays=tuple(sorted(strays)),
    )


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(seq=row["seq"], commitment=row["commitment"], hash=row["hash"])


def _row(part: int, entry: Entry) -> tuple[int, int, bytes, bytes]:
    return part, entry.seq, entry.commitment, entry.hash


def _anchor(part: int, row: asyncpg.Record) -> Anchor:
    return Anchor(
        chain=chain_name(part),
        day=row["anchored_on"],
        seq=row["seq"],
        hash=row["hash"],
        key_id=row["key_id"],
        signature=row["signature"],
    )
