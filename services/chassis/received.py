"""One record, decoded and checked: what a handler sees."""

from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from pydantic import ValidationError

from schemas import envelope
from schemas.topics import Topic
from schemas.wire import WireModel
from services.chassis import errors, trace

M = TypeVar("M", bound=WireModel)
_REST_OF_MILLISECOND = timedelta(microseconds=999)
"""Else what was told and appended within one would be told ahead of its receipt."""


class Received(NamedTuple, Generic[M]):
    """A good record.

    Attributes:
        event: the topic's model.
        id: `ce_id`.
        time: `ce_time`, the producer's instant, UTC.
        traceparent: of the event's span; made here where the event had none.
        topic: registry name, without the stack's prefix.
        appended_at: the broker's instant, whatever the producer's clock said; the end of its
            millisecond. None where it was not read from Kafka.
    """

    event: M
    id: UUID
    time: datetime
    source: str
    traceparent: str
    topic: str
    partition: int
    offset: int
    said_origin: datetime | None = None
    appended_at: datetime | None = None

    @property
    def origin(self) -> datetime:
        """Instant of the event that this one stems from, its own where it says no other, UTC."""
        return self.said_origin or self.time


def decode(topic: Topic, record: Any) -> Received[Any]:
    """Decode a raw record of the Kafka client.

    Raises:
        errors.Poison: with a closed word; never with content.
    """
    try:
        head = envelope.read(topic, record.headers)
    except envelope.EnvelopeError as error:
        raise errors.Poison(str(error)) from None
    if record.value is None:
        raise errors.Poison("value_null")
    try:
        event = topic.model.model_validate_json(record.value)
    except ValidationError as error:
        raise errors.Poison(f"invalid_{error.errors(include_input=False)[0]['type']}") from None
    if record.key != topic.key_bytes_of(event):
        # the key decides which process owns the visitor: a wrong one would break the row locks
        raise errors.Poison("key_mismatch")
    return Received(
        event,
        head.id,
        head.time,
        head.source,
        head.traceparent or trace.new(),
        topic.name,
        record.partition,
        record.offset,
        head.origin,
        datetime.fromtimestamp(record.timestamp / 1000, UTC) + _REST_OF_MILLISECOND,
    )
