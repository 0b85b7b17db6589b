"""How the gate's verdicts are kept: as `transfer` events, before anything is sent (R-E2, K3)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from schemas import topics
from schemas.topics import Topic
from schemas.transfer import TransferV1, TransferVerdict
from schemas.wire import WireModel
from services.chassis.clock import Clock
from services.chassis.context import Context
from services.chassis.ids import IdFactory
from services.privacy.gate import Permit, Verdict

Transaction = Callable[[], AbstractAsyncContextManager[Context[Any]]]
"""Opens a transaction of its own and commits it at the end: `Service.transaction`."""


def to_event(verdict: Verdict, transfer_id: UUID) -> TransferV1:
    """Return a verdict as the event says it: names of fields, no values."""
    question = verdict.question
    permit = verdict if isinstance(verdict, Permit) else None
    return TransferV1(
        transfer_id=transfer_id,
        recipient=question.recipient,
        purpose=question.purpose.value,
        fields=tuple(sorted(question.fields if permit is None else permit.fields)),
        verdict=TransferVerdict.REFUSED if permit is None else TransferVerdict.PERMITTED,
        register_version=verdict.register_version,
        happened_at=question.happened_at,
        asked_at=question.asked_at,
        reason=None if isinstance(verdict, Permit) else verdict.reason.value,
        basis=None if permit is None else permit.basis.value,
        country_ground=None if permit is None else permit.country.value,
        consent=None if permit is None else permit.consent,
        country=question.country,
        visitor_id=question.visitor_id,
    )


class OutboxRecorder:
    """Writes verdicts to the service's outbox, in a transaction that it commits."""

    def __init__(self, transaction: Transaction) -> None:
        """Take the way to a transaction."""
        self._transaction = transaction

    async def __call__(self, verdicts: Sequence[Verdict]) -> None:
        """Return once they are committed."""
        async with self._transaction() as ctx:
            for verdict in verdicts:
                ctx.outbox.add(topics.TRANSFER, to_event(verdict, ctx.ids.new()))


class Sender(Protocol):
    """The way to Kafka of a process without a database (`services.chassis.produce.Producer`)."""

    async def send_many(
        self,
        events: Sequence[tuple[Topic, WireModel, UUID]],
        *,
        time: datetime,
        traceparent: str | None = None,
    ) -> None:
        """Return when every event is acknowledged by all; raise errors.Transient if not in time."""
        ...


class KafkaRecorder:
    """Sends verdicts straight to Kafka, for the process that has no database: the gateway."""

    def __init__(self, sender: Sender, ids: IdFactory, clock: Clock) -> None:
        """Take the parts."""
        self._sender = sender
        self._ids = ids
        self._clock = clock

    async def __call__(self, verdicts: Sequence[Verdict]) -> None:
        """Return once all replicas have them."""
        events = [to_event(verdict, self._ids.new()) for verdict in verdicts]
        await self._sender.send_many(
            [(topics.TRANSFER, event, self._ids.new()) for event in events], time=self._clock.now()
        )
