"""CloudEvents 1.0, Kafka binary mode: attributes as `ce_` headers, the value is plain JSON.

Own codec, in a few lines, because the busiest path decodes every record one by one and must never
raise on a header that is null or not UTF-8 (such a header is poison, not a crash).
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from schemas.topics import TYPE_PREFIX, Topic
from schemas.wire import read_uuid

CONTENT_TYPE = "application/json"
ORIGIN = "ce_origintime"
SPEC_VERSION = "1.0"
_OTHER_NAMES = frozenset({"content-type", "traceparent"})
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")

Headers = list[tuple[str, bytes]]
_SPEC_VERSION_HEADER = ("ce_specversion", SPEC_VERSION.encode())
_CONTENT_TYPE_HEADER = ("content-type", CONTENT_TYPE.encode())


class EnvelopeError(ValueError):
    """The record is not a CloudEvent of ours; the message is a closed word, never the content."""


class Envelope(NamedTuple):
    """The CloudEvents attributes that we use, and the W3C trace context."""

    id: UUID
    type: str
    source: str
    time: datetime
    subject: str
    traceparent: str | None = None
    origin: datetime | None = None
    """Instant of the event that this one stems from, where it is another."""

    def headers(self) -> Headers:
        """Return the record's headers: ids and instants, nothing that a person typed."""
        headers = [
            _SPEC_VERSION_HEADER,
            ("ce_id", str(self.id).encode()),
            ("ce_type", self.type.encode()),
            ("ce_source", self.source.encode()),
            ("ce_time", self.time.astimezone(UTC).isoformat().encode()),
            ("ce_subject", self.subject.encode()),
            _CONTENT_TYPE_HEADER,
        ]
        if self.traceparent is not None:
            headers.append(("traceparent", self.traceparent.encode()))
        if self.origin is not None:
            headers.append((ORIGIN, self.origin.astimezone(UTC).isoformat().encode()))
        return headers


def is_traceparent(text: str) -> bool:
    """Whether `text` is a W3C trace context of version 00."""
    return _TRACEPARENT.fullmatch(text) is not None


def for_event(
    topic: Topic,
    *,
    event_id: UUID,
    source: str,
    time: datetime,
    key: str,
    traceparent: str | None,
    origin: datetime | None = None,
) -> Envelope:
    """Return the envelope of an event for a topic."""
    return Envelope(
        id=event_id,
        type=topic.type,
        source=f"/services/{source}",
        time=time,
        subject=key,
        traceparent=traceparent,
        origin=origin,
    )


def stems_from(headers: Iterable[tuple[str, bytes | None]]) -> datetime | None:
    """Return the instant of the event that a record stems from; None where it says none."""
    found = dict(headers)
    try:
        text = (found.get(ORIGIN) or found.get("ce_time") or b"").decode()
        origin = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if origin.tzinfo is None else origin


def read(topic: Topic, raw: Iterable[tuple[str, bytes | None]]) -> Envelope:
    """Read a record's headers.

    Args:
        topic: what the record must be of; another type is refused.
        raw: headers as the Kafka client gives them; values may be null or no UTF-8.

    Raises:
        EnvelopeError: with a closed word saying what is wrong.
    """
    try:
        found = {
            name: value.decode()  # type: ignore[union-attr]  # a null has its own word, below
            for name, value in raw
            if name.startswith("ce_") or name in _OTHER_NAMES
        }
    except AttributeError:
        raise EnvelopeError("header_null") from None
    except UnicodeDecodeError:
        raise EnvelopeError("header_not_utf8") from None
    _check(topic, found)
    try:
        event_id = read_uuid(found["ce_id"])
        time = datetime.fromisoformat(found["ce_time"])
        origin = datetime.fromisoformat(found[ORIGIN]) if ORIGIN in found else None
    except (KeyError, ValueError):
        raise EnvelopeError("ce_id_or_time_invalid") from None
    if time.tzinfo is None or (origin is not None and origin.tzinfo is None):
        raise EnvelopeError("ce_id_or_time_invalid")
    traceparent = found.get("traceparent")
    return Envelope(
        event_id,
        found["ce_type"],
        found.get("ce_source", ""),
        time.astimezone(UTC),
        found.get("ce_subject", ""),
        # a broken trace context costs the trace, never the event
        traceparent if traceparent and is_traceparent(traceparent) else None,
        origin,
    )


def _check(topic: Topic, found: dict[str, str]) -> None:
    if found.get("ce_specversion") != SPEC_VERSION:
        raise EnvelopeError("specversion_unknown")
    event_type = found.get("ce_type", "")
    if event_type != topic.type:
        is_ours = event_type.startswith(f"{TYPE_PREFIX}.")
        raise EnvelopeError("type_unexpected" if is_ours else "type_foreign")
    if not found.get("content-type", CONTENT_TYPE).startswith(CONTENT_TYPE):
        raise EnvelopeError("content_type_unknown")
