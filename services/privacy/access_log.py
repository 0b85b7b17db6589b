"""The access log: who of the staff reads or changes personal data is recorded first (R-C5, R-D10).

An entry is written in a transaction of its own before anything is read, and a second one with the
number of rows before they are handed out. The log holds no personal data of those it is about: whom
an access was about stands there as a hash under the day's key, which says nothing once the key is
gone (`keyed_hash`); after seven days it tells who looked at how much, why, and for which case.
"""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from typing_extensions import override

from schemas.retention import DataKind
from services.chassis import db
from services.chassis.context import Context
from services.privacy.calendar import berlin_date
from services.privacy.declare import PartitionOf, Table
from services.privacy.keyed_hash import DayKeys, Subject

TABLE = Table(
    name="access_log",
    kind=DataKind.ACCESS_LOG,
    day_column="accessed_on",
    partition_of=PartitionOf.YEAR,
    drop_function="access_log_drop",
)
"""Every service with personal data names it among its tables, so that orders reach it."""

ACCESSES_MAX = 10_000
_STAFF_ID = re.compile(r"staff-[1-9][0-9]{0,5}")
_CASE_NUMBER = re.compile(r"[A-Z]{2,8}-20[0-9]{2}-[0-9]{1,5}")

Transaction = Callable[[], AbstractAsyncContextManager[Context[Any]]]
"""Opens a transaction of its own and commits it at the end: `Service.transaction`."""


class Reason(StrEnum):
    """Why personal data may be read by staff at all."""

    PERSON_REQUEST = "person_request"
    """The person asked: R-G1 to R-G6, R-G10."""
    AUTHORITY_REQUEST = "authority_request"
    """R-C4."""
    LEGAL_CLAIM = "legal_claim"
    """A complaint, a prosecution, a claim against a violator: R-D3."""
    SECURITY_INCIDENT = "security_incident"
    """R-C3."""
    FAULT = "fault"
    """Something broke, and its record says why."""
    ACCOUNTABILITY = "accountability"
    """What must be provable is taken over (Art. 5(2), 7(1) GDPR); no reason to read."""


class Act(StrEnum):
    """What staff does with the data."""

    READ = "read"
    IMPORT = "import"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who wants to read what kind of data, and why.

    Attributes:
        staff_id: `staff-` and a number, never a name.
        case_number: of the case file, like `AUSK-2026-17`: letters, year, number; None without one.
        subject: what `looked_for` is; None where the access is about nobody in particular.
        looked_for: the number, address or visitor's id; it is hashed and not kept.
        protection_id: of the hold or restriction whose store is read; None = none is.
        means: by which it was asked for, closed words (`email`, `letter`, …); sorted.

    Raises:
        ValueError: an id or number is not of its form, so that nothing personal hides in it.
    """

    staff_id: str
    reason: Reason
    kind: DataKind
    case_number: str | None = None
    subject: Subject | None = None
    looked_for: str | None = None
    protection_id: UUID | None = None
    act: Act = Act.READ
    means: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if _STAFF_ID.fullmatch(self.staff_id) is None:
            raise ValueError("a staff id is `staff-` and a number")
        if self.case_number is not None and _CASE_NUMBER.fullmatch(self.case_number) is None:
            raise ValueError("a case number is letters, a year and a number: AUSK-2026-17")
        if self.reason is Reason.ACCOUNTABILITY and self.act is Act.READ:
            raise ValueError("accountability is no reason to read")
        if (self.subject is None) != (self.looked_for is None):
            raise ValueError("say both what was looked for and what that is, or neither")

    @override
    def __repr__(self) -> str:
        """Show nothing of whom it is about: a dataclass would, in any error's text."""
        return f"Access({self.staff_id}, {self.reason}, {self.kind})"


class Reading:
    """An access under way; the reader says how many rows there were."""

    def __init__(self, access_id: UUID) -> None:
        """Begin without a number."""
        self.access_id = access_id
        self.n_rows: int | None = None

    def count(self, n_rows: int) -> None:
        """Say how many rows are about to be handed out."""
        assert n_rows >= 0
        self.n_rows = (self.n_rows or 0) + n_rows


class NotCountedError(RuntimeError):
    """Rows were read and nobody said how many: nothing is handed out."""


class AccessLog:
    """Records accesses in the service's database."""

    def __init__(self, transaction: Transaction, keys: DayKeys | None = None) -> None:
        """Take the parts; without keys, only what is about nobody in particular can be logged."""
        self._transaction = transaction
        self._keys = keys

    @asynccontextmanager
    async def accessing(self, access: Access) -> AsyncIterator[Reading]:
        """Let the caller read personal data, once the access is recorded.

        The caller reads inside, says how many rows with `count`, and answers after the end.

        Raises:
            ValueError: what was looked for is no number, address or id; nothing was recorded.
            NotCountedError: the number of rows was not said.
            Whatever the database raises: before the caller reads, or before they answer.
        """
        async with self._transaction() as ctx:
            entry = _Entry(ctx.ids.new(), ctx.now, access, self._hash(access, ctx.now))
            await _Store(ctx.connection).begin(entry)
        reading = Reading(entry.access_id)
        yield reading
        if reading.n_rows is None:
            raise NotCountedError("an access ended without a number of rows")
        async with self._transaction() as ctx:
            await _Store(ctx.connection).answer(entry, reading.n_rows, ctx.now)

    def _hash(self, access: Access, at: datetime) -> bytes | None:
        if access.subject is None or access.looked_for is None:
            return None
        assert self._keys is not None, "who looks for somebody needs the keys of the hash"
        return self._keys.hash_at(access.subject, access.looked_for, at)


@dataclass(frozen=True)
class _Entry:
    """What both rows of an access say."""

    access_id: UUID
    begun_at: datetime
    access: Access
    subject_hash: bytes | None


async def accesses(connection: db.Connection, since: datetime) -> list[dict[str, Any]]:
    """Return who of the staff read or did what, and why, newest first; nobody whom it was about.

    `n_rows` is None where an access did not come to its end; at most `ACCESSES_MAX`.
    """
    rows = await connection.fetch(
        """
        SELECT b.accessed_at, b.staff_id, b.act, b.reason, b.case_number, b.means, b.kind,
            b.subject, b.protection_id, a.n_rows
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


_INSERT = """
INSERT INTO access_log (accessed_on, access_id, staff_id, reason, case_number, kind, subject,
                        subject_hash, step, n_rows, accessed_at, protection_id, act, means)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""


class _Store:
    """The access log's SQL."""

    def __init__(self, connection: db.Connection) -> None:
        self._connection = connection

    async def begin(self, entry: _Entry) -> None:
        # here and not on a timer: staff reads seldom, and a new year must not refuse them
        await self._connection.execute("SELECT access_log_maintain($1)", entry.begun_at)
        await self._insert(entry, "begun", None, entry.begun_at)

    async def answer(self, entry: _Entry, n_rows: int, at: datetime) -> None:
        await self._insert(entry, "answered", n_rows, at)

    async def _insert(self, entry: _Entry, step: str, n_rows: int | None, at: datetime) -> None:
        access = entry.access
        await self._connection.execute(
            _INSERT,
            # both rows in one year, also where it turns between them
            berlin_date(entry.begun_at),
            entry.access_id,
            access.staff_id,
            access.reason,
            access.case_number,
            access.kind,
            access.subject,
            entry.subject_hash,
            step,
            n_rows,
            at,
            access.protection_id,
            access.act,
            ",".join(access.means) or None,
        )
