"""The outbox: events leave with their effect or not at all.

Rows are written in the effect's transaction; the relay, one per service by advisory lock, reads
them after a cursor (txid, id) behind the xmin fence, sends them, and moves the cursor. A relay that
dies repeats at most the rows since its cursor; consumers' natural keys absorb them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import asyncpg
from pydantic_core import from_json, to_json

from schemas import envelope
from schemas.topics import BY_NAME, MESSAGE_BYTES_MAX, Topic
from schemas.wire import WireModel
from services.chassis import db, errors, logs, trace
from services.chassis.clock import Clock
from services.chassis.ids import IdFactory
from services.chassis.metrics import ChassisMetrics
from services.chassis.received import Received
from services.chassis.secret import Secret

RELAY_ROWS_MAX = 2000
RECORD_BYTES_ADDED = 128
"""What Kafka's record format adds to key, headers and value, and room to spare."""
_RELAY_LOCK = 7_411_002
_IDLE_POLL_S = 0.2
_TAKE_OVER_POLL_S = 0.25
_BUSY_POLL_S = 0.005
_BACK_OFF_MAX_S = 5.0
_SESSION_IDLE_MAX_S = 120.0
"""A frozen process must lose the relay's lock; longer than a broker's restart, which costs none."""


class Cause(Protocol):
    """What an event may be caused by: a received record with its trace."""

    @property
    def traceparent(self) -> str:
        """W3C trace context of the span that led here."""
        ...


RawHeaders = list[tuple[str, bytes | None]]


def encode_headers(headers: RawHeaders) -> bytes:
    """Return headers as JSON bytes; latin-1 keeps any byte, a null stays a null."""
    return to_json(
        [(name, None if value is None else value.decode("latin-1")) for name, value in headers]
    )


def decode_headers(raw: bytes) -> RawHeaders:
    """Return what `encode_headers` was given."""
    return [
        (name, None if text is None else text.encode("latin-1")) for name, text in from_json(raw)
    ]


@dataclass(frozen=True)
class OutboxRow:
    """One record to send: registry name of the topic, key, headers, value."""

    topic: str
    key: bytes | None
    headers: RawHeaders
    payload: bytes | None

    @property
    def n_bytes(self) -> int:
        """At most so many bytes on the topic."""
        headers = sum(
            # a name of a foreign record may have letters of several bytes
            [
                (len(name) if name.isascii() else len(name.encode())) + len(value or b"") + 4
                for name, value in self.headers
            ]
        )
        return RECORD_BYTES_ADDED + headers + len(self.key or b"") + len(self.payload or b"")


def fits(row: OutboxRow) -> bool:
    """Whether the broker will take it: a refused record stops an idempotent producer (3)."""
    return row.n_bytes <= MESSAGE_BYTES_MAX


class Outbox:
    """Collects one transaction's events; the chassis writes them just before the commit."""

    def __init__(self, service: str, ids: IdFactory, now: datetime) -> None:
        """Take who sends, where ids come from, and the transaction's instant."""
        self._service = service
        self._ids = ids
        self._now = now
        self.rows: list[OutboxRow] = []

    def add(
        self,
        topic: Topic,
        event: WireModel,
        *,
        cause: Cause | None = None,
        time: datetime | None = None,
        origin: datetime | None = None,
    ) -> None:
        """Enqueue an event.

        Args:
            topic: where to; this service must be one of its producers in the registry.
            event: of the topic's model.
            cause: what led to it; its trace goes on. What follows from a record is as old as what
                that one stems from, where both are personal.
            time: `ce_time`; the transaction's instant where not given.
            origin: instant of what it stems from, where that is no record.
        """
        assert isinstance(event, topic.model), f"{type(event).__name__} is not of {topic.name}"
        assert self._service in topic.producers, f"{self._service} may not write {topic.name}"
        key = topic.key_of(event)
        payload = event.model_dump_json(exclude_none=True).encode()
        head = envelope.for_event(
            topic,
            event_id=self._ids.new(),
            source=self._service,
            time=time or self._now,
            key=key,
            traceparent=trace.child(cause.traceparent if cause else None),
            origin=origin or _origin(topic, cause),
        )
        row = OutboxRow(topic.name, key.encode(), [*head.headers()], payload)
        assert fits(row), f"event for {topic.name} is too large"
        self.rows.append(row)

    def add_raw(self, row: OutboxRow) -> None:
        """Enqueue a record as it is: a dead letter."""
        self.rows.append(row)

    async def flush(self, connection: db.Connection) -> None:
        """Write the collected rows in one statement."""
        if not self.rows:
            return
        await connection.execute(
            """
            INSERT INTO outbox (topic, key, headers, payload)
            SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[], $4::bytea[])
            """,
            [row.topic for row in self.rows],
            [row.key for row in self.rows],
            [encode_headers(row.headers) for row in self.rows],
            [row.payload for row in self.rows],
        )
        self.rows.clear()


def _origin(topic: Topic, cause: Cause | None) -> datetime | None:
    if isinstance(cause, Received) and topic.personal and BY_NAME[cause.topic].personal:
        return cause.origin
    return None


def is_too_old(row: OutboxRow, *, created_at: datetime, now: datetime) -> bool:
    """Whether a copy would outlive the rule of what it stems from (R-D5).

    Args:
        created_at: when the row was written: nothing stems from what comes later.
    """
    limit_ms = BY_NAME[row.topic].origin_age_max_ms
    if limit_ms is None:
        return False
    origin = min(envelope.stems_from(row.headers) or created_at, created_at)
    return now - origin > timedelta(milliseconds=limit_ms)


class Sink(Protocol):
    """Where rows go: Kafka, by the registry's names."""

    async def send_rows(self, rows: list[OutboxRow]) -> None:
        """Return when all are acknowledged by all replicas in sync."""
        ...


# transaction ids begin anew in a dump that is restored elsewhere: every row would look sent
_CURSOR_AHEAD = """
SELECT txid >= pg_snapshot_xmax(pg_current_snapshot()) FROM outbox_cursor
"""

UNSENT = """
SELECT o.txid::text AS txid, o.id, o.topic, o.key, o.headers, o.payload, o.created_at
FROM outbox o
WHERE (o.txid, o.id) > ((SELECT txid FROM outbox_cursor), (SELECT id FROM outbox_cursor))
  AND o.txid < (
    SELECT coalesce(min(running.txid), pg_snapshot_xmax(pg_current_snapshot()))
    FROM pg_snapshot_xip(pg_current_snapshot()) AS running (txid)
    WHERE running.txid::xid NOT IN (
        SELECT l.transactionid FROM pg_locks l
        JOIN pg_stat_activity a ON a.pid = l.pid
        JOIN pg_database d ON d.oid = a.datid AND d.datname <> current_database()
        WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
    )
  )
ORDER BY o.txid, o.id
LIMIT $1
"""
"""What a round sends: after the cursor, behind the oldest transaction open in this database.

The cursor's values stand there one by one: joined to it, all that the hour has sent so far was read
again in each round (14,000 rows: 16 ms). What runs in another database of the server (a service
that erases much) writes nothing here; whatever is not known to run there holds the fence.
"""


_OLDEST = """
SELECT o.created_at FROM outbox o
WHERE (o.txid, o.id) > ((SELECT txid FROM outbox_cursor), (SELECT id FROM outbox_cursor))
ORDER BY o.txid, o.id LIMIT 1
"""
_STUCK_AFTER = timedelta(seconds=60)
"""Between two looks; what is younger is on its way."""
_BLIND_AFTER = timedelta(minutes=5)


class Relay:
    """Moves a service's outbox to Kafka; runs as a task of the service."""

    def __init__(
        self, database_url: Secret, sink: Sink, metrics: ChassisMetrics, clock: Clock
    ) -> None:
        """Take the database, the way to Kafka, metrics and clock; nothing is opened yet."""
        self._url = database_url
        self._sink = sink
        self._metrics = metrics
        self._clock = clock
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._connection: asyncpg.Connection[Any] | None = None
        self._oldest_at: datetime | None = None
        self._stuck_since: datetime | None = None
        self._looked_at = clock.now()
        metrics.outbox_age.set_function(self._age_s)

    def wake(self) -> None:
        """Say that a transaction has committed rows."""
        self._idle.clear()
        self._wake.set()

    async def drained(self) -> None:
        """Wait until a round has found nothing to send."""
        await self._idle.wait()

    async def run(self) -> None:
        """Relay for ever; weather is waited out with back-off, nothing is ever dropped."""
        failures = 0
        while True:
            try:
                connection = await self._connected()
                n_sent = await self._round(connection)
                failures = 0
            except Exception as error:
                if not errors.is_transient(error):
                    raise
                failures += 1
                self._metrics.retries.labels("relay").inc()
                logs.get().warning("relay waits", attempt=failures, **logs.describe(error))
                await self._close()
                await asyncio.sleep(min(_BACK_OFF_MAX_S, 0.1 * 2**failures))
                continue
            if n_sent == 0:
                await self._rest()

    async def close(self) -> None:
        """Give the advisory lock back by closing the connection."""
        await self._close()

    async def look(self, connection: db.Connection) -> None:
        """See for how long events wait, also those that a round does not see.

        A transaction that does not end hides from it all that was written since it began.
        """
        now = self._clock.now()
        oldest_at = await connection.fetchval(_OLDEST)
        is_stuck = oldest_at is not None and now - oldest_at > _STUCK_AFTER
        self._stuck_since = oldest_at if is_stuck else None
        self._looked_at = now

    def _age_s(self) -> float:
        # asked for at each scrape: a round that waits for a broker does not come to an end
        now = self._clock.now()
        known = [at for at in (self._oldest_at, self._stuck_since) if at is not None]
        if now - self._looked_at > _BLIND_AFTER:
            # nobody can tell what waits in a database that cannot be read
            known.append(self._looked_at)
        return max((max(0.0, (now - at).total_seconds()) for at in known), default=0.0)

    async def _rest(self) -> None:
        # A row may still hide behind the xmin fence just after its commit: look again soon.
        woken = self._wake.is_set()
        self._wake.clear()
        if woken:
            await asyncio.sleep(_BUSY_POLL_S)
            return
        self._idle.set()
        try:
            await asyncio.wait_for(self._wake.wait(), _IDLE_POLL_S)
        except TimeoutError:
            return

    async def _connected(self) -> asyncpg.Connection[Any]:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection = await db.connect(
            self._url.read(),
            idle_max_s=_SESSION_IDLE_MAX_S,
            # it moves the cursor only: what a crash of the server takes back is sent once more
            waits_for_disk=False,
        )
        try:
            await self._take_over(connection)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        return connection

    async def _take_over(self, connection: asyncpg.Connection[Any]) -> None:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _RELAY_LOCK):
            await asyncio.sleep(
                _TAKE_OVER_POLL_S
            )  # another process of the service relays; stand by
        if await connection.fetchval(_CURSOR_AHEAD):
            raise errors.Fatal(
                "outbox_cursor is ahead of the server's transactions: the database came from "
                "another server; set its txid to 0 to send again what the outbox holds"
            )

    async def _close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _round(self, connection: asyncpg.Connection[Any]) -> int:
        rows = await connection.fetch(UNSENT, RELAY_ROWS_MAX)
        if not rows:
            self._oldest_at = None
            return 0
        self._oldest_at = rows[0]["created_at"]
        sent = self._young(rows)
        if sent:
            await self._sink.send_rows(sent)
        await connection.execute(
            "UPDATE outbox_cursor SET txid = $1::text::xid8, id = $2",
            rows[-1]["txid"],
            rows[-1]["id"],
        )
        for topic, n_sent in Counter(row.topic for row in sent).items():
            self._metrics.outbox_sent.labels(topic).inc(n_sent)
        return len(rows)

    def _young(self, rows: Sequence[asyncpg.Record]) -> list[OutboxRow]:
        """Return what may be sent; the rest would outlive its rule there, and is only counted."""
        now = self._clock.now()
        young, too_old = [], Counter[str]()
        for r in rows:
            assert r["topic"] in BY_NAME
            row = OutboxRow(r["topic"], r["key"], decode_headers(r["headers"]), r["payload"])
            if is_too_old(row, created_at=r["created_at"], now=now):
                too_old[row.topic] += 1
            else:
                young.append(row)
        for topic, n in too_old.items():
            self._metrics.outbox_too_old.labels(topic).inc(n)
            logs.get().error("too old to be sent", topic=topic, n=n)
        return young
