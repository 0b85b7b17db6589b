"""The chain of evidence: each order, receipt and refusal as it was recorded (R-D9, D4).

All SQL of it, and what a row's one text is. Call inside a transaction that holds the store's lock:
there is one chain, and it has one end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from services.chassis import db
from services.privacy import calendar, chain
from services.privacy.acts import judge
from services.privacy.chain import Anchor, Entry, Fault, Finding, VerifyKeys
from services.privacy.staff import StaffRegister
from services.retention.acts import Recorded, of_links

CHAIN = "retention"
_BATCH = 5_000
_YEAR = "year"
_UNCHAINED = "unchained"
"""One link at most: it names the evidence from before there was a chain (`retention_0070`)."""
_OPEN_SALT = bytes(chain.SALT_BYTES)
"""Of links that say a year, or that list: there is nothing to keep secret, so it never goes."""

_HEAD = "SELECT seq, commitment, hash FROM retention_chain ORDER BY seq DESC LIMIT 1"

# What a link committed to, read from the rows as they are now. One text per kind of evidence: a
# column added later must be left out for links that were made before it.
_CONTENTS: Mapping[str, str] = {
    "order": """
        SELECT order_id AS ref, NULL AS service, order_id, kind, requirement, before_day, attempt,
               as_of, issued_at, overdue_at, expected, action
        FROM retention_order WHERE order_id = ANY($1)
    """,
    "person_order": """
        SELECT order_id AS ref, NULL AS service, order_id, kinds, from_day, protection_id,
               case_number, staff_id, n_visitors, schedule_version,
               key_id, encode(signature, 'hex') AS signature
        FROM retention_person_order WHERE order_id = ANY($1)
    """,
    "receipt": """
        SELECT order_id AS ref, service, order_id, service AS answered_by, kind, counts, done_at,
               received_at
        FROM retention_receipt WHERE order_id = ANY($1)
    """,
    "refusal": """
        SELECT refusal_id AS ref, NULL AS service, refusal_id, what, reason, staff_id, refused_at
        FROM retention_refusal WHERE refusal_id = ANY($1)
    """,
    "protection": """
        SELECT protection_id AS ref, NULL AS service, protection_id, is_hold, case_number, ground,
               kinds, from_day, before_day, names_visitors, review_on
        FROM retention_protection WHERE protection_id = ANY($1)
    """,
    "protection_step": """
        SELECT protection_id AS ref, step AS service, protection_id, step, staff_id, done_at,
               key_id, encode(signature, 'hex') AS signature
        FROM retention_protection_step WHERE protection_id = ANY($1)
    """,
    "review": """
        SELECT review_id AS ref, NULL AS service, review_id, protection_id, review_on, reason,
               staff_id, proposed_at, key_id, encode(signature, 'hex') AS signature
        FROM retention_review WHERE review_id = ANY($1)
    """,
    "review_confirmation": """
        SELECT review_id AS ref, NULL AS service, review_id, staff_id, confirmed_at,
               key_id, encode(signature, 'hex') AS signature
        FROM retention_review_confirmation WHERE review_id = ANY($1)
    """,
    "waiver": """
        SELECT waiver_id AS ref, NULL AS service, waiver_id, order_id, holder, reason, staff_id,
               proposed_at, key_id, encode(signature, 'hex') AS signature
        FROM retention_waiver WHERE waiver_id = ANY($1)
    """,
    "waiver_confirmation": """
        SELECT waiver_id AS ref, NULL AS service, waiver_id, staff_id, confirmed_at,
               key_id, encode(signature, 'hex') AS signature
        FROM retention_waiver_confirmation WHERE waiver_id = ANY($1)
    """,
}


# Rows whose content no link proves, with the number of the link whose salt is gone, if any.
_UNPROVEN = """
    SELECT e.what, e.ref, e.service, c.seq FROM (
        SELECT 'order' AS what, order_id AS ref, NULL AS service FROM retention_order
        UNION ALL SELECT 'person_order', order_id, NULL FROM retention_person_order
        UNION ALL SELECT 'receipt', order_id, service FROM retention_receipt
        UNION ALL SELECT 'refusal', refusal_id, NULL FROM retention_refusal
        UNION ALL SELECT 'protection', protection_id, NULL FROM retention_protection
        UNION ALL SELECT 'protection_step', protection_id, step FROM retention_protection_step
        UNION ALL SELECT 'review', review_id, NULL FROM retention_review
        UNION ALL SELECT 'review_confirmation', review_id, NULL FROM retention_review_confirmation
        UNION ALL SELECT 'waiver', waiver_id, NULL FROM retention_waiver
        UNION ALL SELECT 'waiver_confirmation', waiver_id, NULL FROM retention_waiver_confirmation
    ) e
    LEFT JOIN retention_chain c
        ON c.what = e.what AND c.ref = e.ref AND coalesce(c.service, '') = coalesce(e.service, '')
    LEFT JOIN retention_chain_salt s ON s.seq = c.seq
    WHERE s.seq IS NULL
    ORDER BY c.seq, e.what, e.ref, e.service
"""


_ADDED_LATER = ("schedule_version", "key_id", "signature")
"""Columns that older links do not have: left out where they are null."""


class Item(NamedTuple):
    """One row of evidence: its kind, its id, and which of that id: a service, or a step."""

    what: str
    ref: UUID
    service: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification found.

    Attributes:
        n_links: links of the chain.
        n_contents: how many of them still have content and salt, all compared.
        n_anchors: signed heads.
        n_kept_anchors: those of them, or others, that were kept elsewhere; None = none were given.
        n_signed: acts that somebody of the staff signed.
        n_unsigned: acts of persons from before they were signed.
    """

    n_links: int
    n_contents: int
    n_anchors: int
    n_signed: int
    n_unsigned: int
    findings: Sequence[Finding]
    n_kept_anchors: int | None = None


class Evidence:
    """The chain on one open transaction."""

    def __init__(self, connection: db.Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection

    async def chain(self, items: Sequence[Item], now: datetime) -> None:
        """Append rows that this transaction has written, in this order.

        Before the first ones of a year (Berlin) stands a link that says the year.
        """
        if not items:
            return
        await self._begin_year(calendar.berlin_date(now).year)
        contents = await self._contents(items)
        salts = [chain.new_salt() for _ in items]
        entries = await self._append(
            items,
            [
                chain.commitment(salt, contents[item])
                for salt, item in zip(salts, items, strict=True)
            ],
        )
        await self._connection.executemany(
            "INSERT INTO retention_chain_salt (seq, salt) VALUES ($1, $2)",
            [(entry.seq, salt) for entry, salt in zip(entries, salts, strict=True)],
        )

    async def _begin_year(self, year: int) -> None:
        last = await self._connection.fetchval(
            "SELECT ref FROM retention_chain WHERE what = $1 ORDER BY ref DESC LIMIT 1", _YEAR
        )
        # a clock that went back begins no year
        if last is None or last.int < year:
            committed = chain.commitment(_OPEN_SALT, _year_text(year))
            await self._append([Item(_YEAR, UUID(int=year))], [committed])

    async def _append(self, items: Sequence[Item], commitments: Sequence[bytes]) -> list[Entry]:
        entries = chain.append(await self.head(), commitments)
        await self._connection.executemany(
            """
            INSERT INTO retention_chain (seq, what, ref, service, commitment, hash)
            VALUES ($1, $2, $3, $4, $5, $6)
            """,
            [
                (entry.seq, item.what, item.ref, item.service, entry.commitment, entry.hash)
                for entry, item in zip(entries, items, strict=True)
            ],
        )
        return entries

    async def refuse(
        self, refusal_id: UUID, *, what: str, reason: str, staff_id: str, now: datetime
    ) -> None:
        """Record that something was asked for and not done."""
        await self._connection.execute(
            """
            INSERT INTO retention_refusal (refusal_id, what, reason, staff_id, refused_at)
            VALUES ($1, $2, $3, $4, $5)
            """,
            refusal_id,
            what,
            reason,
            staff_id,
            now,
        )
        await self.chain([Item("refusal", refusal_id)], now)

    async def head(self) -> Entry | None:
        """Return the last link; None of an empty chain."""
        row = await self._connection.fetchrow(_HEAD)
        return None if row is None else _entry(row)

    async def has_anchor(self, day: date) -> bool:
        """Whether a day has its anchor."""
        found = await self._connection.fetchval(
            "SELECT true FROM retention_anchor WHERE anchor_day = $1", day
        )
        return bool(found)

    async def save_anchor(self, found: Anchor) -> None:
        """Keep a signed head."""
        await self._connection.execute(
            """
            INSERT INTO retention_anchor (anchor_day, seq, hash, key_id, signature)
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING
            """,
            found.day,
            found.seq,
            found.hash,
            found.key_id,
            found.signature,
        )

    async def drop(self, before: date) -> int:
        """Drop what is of before a day (Berlin), with its salts; links stay. Returns how much.

        No more than the rule allows by the database's clock, however far a sweep looks ahead.
        """
        found = await self._connection.fetchval(
            "SELECT retention_evidence_drop(least($1, retention_evidence_before(now())))", before
        )
        return int(found)

    # ------------------------------------------------------------------ verification

    async def anchors(self) -> list[Anchor]:
        """Return all signed heads, the oldest first."""
        rows = await self._connection.fetch("SELECT * FROM retention_anchor ORDER BY anchor_day")
        return [
            Anchor(
                chain=CHAIN,
                day=row["anchor_day"],
                seq=row["seq"],
                hash=row["hash"],
                key_id=row["key_id"],
                signature=row["signature"],
            )
            for row in rows
        ]

    async def verify(
        self,
        keys: VerifyKeys,
        before: date,
        staff: StaffRegister,
        kept: Sequence[Anchor] | None = None,
    ) -> Report:
        """Hold the chain, its anchors and all contents that are still there against each other.

        The first in its transaction: all is read as of one instant, while others go on writing.

        Args:
            before: first day (Berlin) whose evidence must be there still, by the schedule's rule.
            staff: by which what they signed is judged.
            kept: anchors that were kept elsewhere: who owns the database and a key cannot
                change those.
        """
        await self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = await self._connection.fetch(
            """
            SELECT c.*, s.salt FROM retention_chain c LEFT JOIN retention_chain_salt s USING (seq)
            ORDER BY c.seq
            """
        )
        entries = {row["seq"]: _entry(row) for row in rows}
        anchors = await self.anchors()
        salted = [row for row in rows if row["salt"] is not None]
        contents = await self._all_contents(salted)
        judged = judge(list(of_links(contents)), staff)
        findings = [
            *chain.verify(entries.values()),
            *chain.verify_anchors(entries, dict.fromkeys([*anchors, *(kept or ())]), keys),
            *chain.against_kept(anchors, kept or (), keys),
            *_changed(salted, entries, contents),
            *judged.findings,
            *_gone_early(rows, entries, before.year),
            *await self._put_in(rows, entries),
        ]
        return Report(
            n_links=len(rows),
            n_contents=len(salted),
            n_anchors=len(anchors),
            n_signed=judged.n_signed,
            n_unsigned=judged.n_unsigned,
            findings=sorted(findings, key=lambda found: found.seq),
            n_kept_anchors=None if kept is None else len(kept),
        )

    async def _put_in(
        self, rows: Sequence[asyncpg.Record], entries: Mapping[int, Entry]
    ) -> list[Finding]:
        """Return evidence that no link proves, but for what the list of old evidence names."""
        old = {
            _item(row)
            for row in await self._connection.fetch(
                "SELECT what, ref, service FROM retention_unchained"
            )
        }
        link = next((row["seq"] for row in rows if row["what"] == _UNCHAINED), None)
        if link is not None:
            is_listed = chain.is_content_of(entries[link], _OPEN_SALT, _listed(old))
            found = [] if is_listed else [Finding(seq=link, fault=Fault.CONTENT_CHANGED)]
        else:
            found = [Finding(seq=0, fault=Fault.NOT_CHAINED, about=_UNCHAINED)] if old else []
        return found + [
            Finding(seq=row["seq"] or 0, fault=Fault.NOT_CHAINED, about=_about(_item(row)))
            for row in await self._connection.fetch(_UNPROVEN)
            if row["seq"] is not None or _item(row) not in old
        ]

    async def _all_contents(self, rows: Sequence[asyncpg.Record]) -> list[Recorded]:
        """Return the contents of links, of those that are there."""
        found = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            contents = await self._contents([_item(row) for row in part])
            found += [
                Recorded(row["seq"], row["what"], row["ref"], contents[_item(row)])
                for row in part
                if _item(row) in contents
            ]
        return found

    async def _contents(self, items: Iterable[Item]) -> dict[Item, bytes]:
        """Return the one text of each row that is there."""
        refs: dict[str, set[UUID]] = {}
        for item in items:
            refs.setdefault(item.what, set()).add(item.ref)
        found: dict[Item, bytes] = {}
        for what, ids in refs.items():
            for row in await self._connection.fetch(_CONTENTS[what], list(ids)):
                content: dict[str, Any] = dict(row)
                item = Item(what, content.pop("ref"), content.pop("service"))
                for name in _ADDED_LATER:
                    if content.get(name, "") is None:
                        del content[name]
                found[item] = chain.canonical(content)
        return found


def _changed(
    rows: Sequence[asyncpg.Record], entries: Mapping[int, Entry], contents: Sequence[Recorded]
) -> list[Finding]:
    """Return links whose content is gone or another although their salt is there."""
    texts = {content.seq: content.text for content in contents}
    return [
        Finding(seq=row["seq"], fault=Fault.CONTENT_CHANGED)
        for row in rows
        if not chain.is_content_of(entries[row["seq"]], row["salt"], texts.get(row["seq"], b""))
    ]


def _gone_early(
    rows: Sequence[asyncpg.Record], entries: Mapping[int, Entry], year_kept: int
) -> list[Finding]:
    """Return links without a salt that are of a year which is still kept, and false years.

    A link is of the year that was said last before it; those before the first such link are of
    the year that it says.
    """
    found = []
    said, year = 0, next((row["ref"].int for row in rows if row["what"] == _YEAR), year_kept)
    for row in rows:
        seq = row["seq"]
        if row["what"] == _YEAR:
            year = row["ref"].int
            is_said = chain.is_content_of(entries[seq], _OPEN_SALT, _year_text(year))
            # years go up: who says an old one again wants salts to be missing in peace
            if year <= said or not is_said:
                found.append(Finding(seq=seq, fault=Fault.CONTENT_CHANGED))
            said = year
        elif row["salt"] is None and year >= year_kept and row["what"] != _UNCHAINED:
            found.append(Finding(seq=seq, fault=Fault.GONE_EARLY))
    return found


def _year_text(year: int) -> bytes:
    return chain.canonical({"year": year})


def _listed(items: Iterable[Item]) -> bytes:
    """Return the one text of a list of old evidence; the migration writes the same."""
    return "".join(sorted(f"{_about(item)}\n" for item in items)).encode()


def _about(item: Item) -> str:
    return f"{item.what} {item.ref} {item.service or '-'}"


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(seq=row["seq"], commitment=row["commitment"], hash=row["hash"])


def _item(row: asyncpg.Record) -> Item:
    return Item(row["what"], row["ref"], row["service"])
