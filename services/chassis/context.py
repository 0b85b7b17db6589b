"""What a handler gets: the open transaction as a store, the outbox, the instant, ids."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from schemas.envelope import Envelope
from schemas.topics import BY_NAME, Topic
from services.chassis import db
from services.chassis.ids import IdFactory
from services.chassis.outbox import Outbox, OutboxRow
from services.chassis.received import Received

S = TypeVar("S")


@dataclass(kw_only=True)
class Context(Generic[S]):
    """One open transaction; the chassis commits it.

    Attributes:
        store: the service's store on this transaction's connection.
        outbox: events to send if, and only if, the transaction commits.
        now: the transaction's instant, UTC.
        ids: UUIDv7 factory.
        connection: for the privacy package's executor only; services use their store.
    """

    store: S
    outbox: Outbox
    now: datetime
    ids: IdFactory
    connection: db.Connection
    service: str
    counts: "Counter[tuple[str, str]]" = field(default_factory=Counter)
    dead: "Counter[tuple[str, str]]" = field(default_factory=Counter)

    @asynccontextmanager
    async def part(self) -> AsyncIterator[None]:
        """Hold a part of the transaction that may fail by itself.

        What was written and enqueued in it goes with its error; the rest stands.
        """
        n_rows = len(self.outbox.rows)
        try:
            async with self.connection.transaction():
                yield
        except BaseException:
            del self.outbox.rows[n_rows:]
            raise

    def count(self, topic: Topic, outcome: str, n: int = 1) -> None:
        """Count `n` records of a topic by outcome; exported once the transaction has committed."""
        self.counts[topic.name, outcome] += n

    def dead_letter(self, received: Received[Any], reason: str) -> None:
        """Send one record to its dead-letter topic with a closed reason; the others go on."""
        topic, event = BY_NAME[received.topic], received.event
        key = topic.key_of(event)
        head = Envelope(
            id=received.id,
            type=topic.type,
            source=received.source,
            time=received.time,
            subject=key,
            traceparent=received.traceparent,
            origin=received.said_origin,
        )
        # whole, so that it can be replayed from here once its cause is mended
        self.bury(
            OutboxRow(
                topic.dead_letter.name,
                key.encode(),
                [*head.headers()],
                event.model_dump_json(exclude_none=True).encode(),
            ),
            topic=received.topic,
            partition=received.partition,
            offset=received.offset,
            reason=reason,
        )

    def bury(self, row: OutboxRow, *, topic: str, partition: int, offset: int, reason: str) -> None:
        """Enqueue a dead letter with where it came from and why."""
        facts = {
            "dead_letter_topic": topic,
            "dead_letter_partition": str(partition),
            "dead_letter_offset": str(offset),
            "dead_letter_reason": reason,
            "dead_letter_service": self.service,
        }
        headers = [*row.headers, *((name, text.encode()) for name, text in facts.items())]
        self.outbox.add_raw(OutboxRow(row.topic, row.key, headers, row.payload))
        self.dead[topic, reason] += 1
        self.counts[topic, "dead_letter"] += 1
