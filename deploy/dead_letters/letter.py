"""One dead letter: what may be told of it, and whether it may be sent again.

Pure. What is told never holds a value, a key or a header's text of the record: only names and types
that the contract knows, and closed words of the chassis.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from schemas import envelope
from schemas.topics import BY_NAME, DAY_MS, Topic
from services.chassis.outbox import OutboxRow, RawHeaders

MARK = "dead_letter_"
UNREADABLE = "(unreadable)"
AGE_MAX_MS = 7 * DAY_MS
"""R-D5: no copy of personal data is older, counted from the event."""

KNOWN_HEADERS = frozenset(
    {
        "ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "ce_subject",
        "content-type", "traceparent",
    }
)  # fmt: skip
WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,19}")
_LINES_MAX = 200
_DEPTH_MAX = 8


class DeadLetterError(RuntimeError):
    """What was asked cannot be done; the message says why and what mends it."""


class NotReplayableError(DeadLetterError):
    """This letter must not, or cannot, be sent again."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record as it lies on a topic.

    Attributes:
        topic: of the registry.
        written_at: the broker's instant (LogAppendTime), UTC.
    """

    topic: Topic
    partition: int
    offset: int
    written_at: datetime
    key: bytes | None
    headers: RawHeaders
    value: bytes | None

    @property
    def id(self) -> str:
        """`<topic>/<partition>/<offset>`, as commands name it."""
        return f"{self.topic.name}/{self.partition}/{self.offset}"

    def header(self, name: str) -> bytes | None:
        """Return the last header of a name: what the chassis added comes after the record's own."""
        return next((value for found, value in reversed(self.headers) if found == name), None)


@dataclass(frozen=True)
class Letter:
    """A record of a dead-letter topic."""

    record: Record

    @property
    def id(self) -> str:
        """Of the dead letter, not of its origin."""
        return self.record.id

    @property
    def source(self) -> Topic:
        """The topic it was buried from: the dead-letter topic knows, whatever a header says."""
        return BY_NAME[self.record.topic.name.removesuffix("-dlq")]

    @property
    def reason(self) -> str:
        """The chassis's closed word."""
        return self._said("reason", WORD)

    @property
    def service(self) -> str:
        """Who refused it."""
        return self._said("service", WORD)

    @property
    def origin(self) -> tuple[int, int] | None:
        """Partition and offset on its source; None when they are unreadable."""
        partition, offset = self._said("partition", _NUMBER), self._said("offset", _NUMBER)
        if UNREADABLE in (partition, offset):
            return None
        return int(partition), int(offset)

    @property
    def origin_text(self) -> str:
        """`<topic>/<partition>/<offset>` on its source."""
        if self.origin is None:
            return f"{self.source.name}/{UNREADABLE}"
        return f"{self.source.name}/{self.origin[0]}/{self.origin[1]}"

    @property
    def is_whole(self) -> bool:
        """Whether it holds the envelope; what a handler buries keeps `ce_id` and trace only."""
        return self.record.header("ce_specversion") is not None

    def _said(self, name: str, pattern: re.Pattern[str]) -> str:
        raw = self.record.header(MARK + name) or b""
        text = raw.decode("ascii", errors="replace")
        return text if pattern.fullmatch(text) else UNREADABLE


def age_max(topic: Topic) -> timedelta | None:
    """Return how old an event may be when it is sent to its topic again; None = any age.

    A replayed record begins a new life there, and may be buried once more (R-D5, D1: age counts
    through every copy).
    """
    if not topic.personal:
        return None
    lived_ms = topic.personal_limit_ms + topic.dead_letter.age_max_ms
    return timedelta(milliseconds=AGE_MAX_MS - lived_ms)


def happened_at(record: Record) -> datetime | None:
    """Return the instant of what the event stems from by its envelope, None when it says none."""
    found = envelope.stems_from(record.headers)
    return None if found is None else found.astimezone(UTC)


def resend(letter: Letter, original: Record | None, now: datetime) -> OutboxRow:
    """Return the record to send to the letter's source, as it once came.

    Args:
        original: the record at the letter's origin, while its topic still has it.

    Raises:
        NotReplayableError: too old, or not whole and no longer at its origin.
    """
    record = letter.record
    if not letter.is_whole:
        if original is None or not _is_same(letter, original):
            raise NotReplayableError(
                f"{letter.id}: its envelope was not kept, and {letter.origin_text} does not hold"
                " the record any more; it can only be discarded."
            )
        record = original
    _check_age(letter, record, now)
    headers = [(name, value) for name, value in record.headers if not name.startswith(MARK)]
    return OutboxRow(letter.source.name, record.key, headers, record.value)


def _is_same(letter: Letter, original: Record) -> bool:
    # a topic that was made anew has other records at the same offsets
    event_id = letter.record.header("ce_id")
    if event_id is None:
        return original.value == letter.record.value
    return event_id == original.header("ce_id")


def _check_age(letter: Letter, record: Record, now: datetime) -> None:
    limit = age_max(letter.source)
    if limit is None:
        return
    said = happened_at(record)
    if said is None:
        raise NotReplayableError(
            f"{letter.id}: nobody knows how old its event is (no ce_time); as it may be personal"
            " data, it can only be discarded."
        )
    # a producer's clock may be ahead: the event was there before its dead letter
    age = now - min(said, letter.record.written_at)
    if age > limit:
        raise NotReplayableError(
            f"{letter.id}: its event is {duration(age)} old, and records of {letter.source.name}"
            f" may be sent again for {duration(max(limit, timedelta()))} only, so that no copy"
            " passes 7 x 24 h (R-D5); it can only be discarded."
        )


def duration(age: timedelta) -> str:
    """Return an age for people."""
    minutes = max(0, int(age.total_seconds()) // 60)
    days, minutes = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes, 60)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02d} min"


# ---------------------------------------------------------------------- what may be told


def redacted(letter: Letter) -> list[str]:
    """Return the record in words without any value: headers' names, structure, what is wrong."""
    names = [name for name, _ in letter.record.headers if not name.startswith(MARK)]
    known = sorted(KNOWN_HEADERS.intersection(names))
    n_unknown = sum(name not in KNOWN_HEADERS for name in names)
    headers = ", ".join(known) or "none of ours"
    return [
        f"key      {'none' if letter.record.key is None else 'present'}",
        f"headers  {headers}" + (f", {n_unknown} unknown" if n_unknown else ""),
        "value",
        *(f"  {line}" for line in structure(letter.record.value, field_names(letter.source))),
        "model",
        *(f"  {line}" for line in problems(letter.source, letter.record.value)),
    ]


def field_names(topic: Topic) -> frozenset[str]:
    """Return every field name of a topic's events: the only names of a value that are shown."""
    schema = topic.model.model_json_schema()
    shapes = [schema, *schema.get("$defs", {}).values()]
    return frozenset(name for shape in shapes for name in shape.get("properties", {}))


def structure(value: bytes | None, known: frozenset[str]) -> list[str]:
    """Return a value's structure: names that are `known`, types, nothing else."""
    if value is None:
        return ["null"]
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return ["not JSON"]
    lines = list(_lines(document, known, "", 0))
    if len(lines) > _LINES_MAX:
        lines = [*lines[:_LINES_MAX], f"... and {len(lines) - _LINES_MAX} more"]
    return lines


def _lines(value: Any, known: frozenset[str], name: str, depth: int) -> Iterator[str]:
    head = f"{'  ' * depth}{name}: " if name else ""
    match value:
        case dict() | list() if depth >= _DEPTH_MAX:
            yield f"{head}nested deeper"
        case dict():
            yield f"{head}object"
            for key, item in value.items():
                # what a foreign record uses as a name may be a number or an address
                shown = key if key in known else "(unknown name)"
                yield from _lines(item, known, shown, depth + 1)
        case list():
            yield f"{head}array of {len(value)}"
            for item in value:
                yield from _lines(item, known, "-", depth + 1)
        case _:
            yield f"{head}{_type_of(value)}"


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            return "string"


def problems(topic: Topic, value: bytes | None) -> list[str]:
    """Return place and kind of each error that today's model finds; no inputs."""
    if value is None:
        return ["no value to read"]
    known = field_names(topic)
    try:
        topic.model.model_validate_json(value)
    except ValidationError as error:
        return [
            f"{_place(found['loc'], known)}: {found['type']}"
            for found in error.errors(include_input=False, include_context=False)[:20]
        ]
    return ["takes it as it is"]


def _place(parts: tuple[int | str, ...], known: frozenset[str]) -> str:
    shown = [str(p) if isinstance(p, int) or p in known else "(unknown name)" for p in parts]
    return ".".join(shown) or "value"
