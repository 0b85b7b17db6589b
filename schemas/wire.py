"""What every event model shares."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
)

UUID_VERSION = 7
"""Of all server-issued ids."""


_UUID = TypeAdapter(UUID)


def read_uuid(text: str) -> UUID:
    """Return `UUID(text)`, in a fraction of its time: each record of the busiest path has one.

    Raises:
        ValueError: it is none.
    """
    found: UUID = _UUID.validate_strings(text)
    return found


class WireModel(BaseModel):
    """Base of all events: frozen, strict types, tolerant of fields it does not know.

    Strict on types and tolerant on unknown fields lets a consumer of the old version read what a
    producer of the new one writes (only optional fields may be added within a version).
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


def _is_version_7(value: UUID) -> UUID:
    if value.version != UUID_VERSION:
        raise ValueError("must be a UUID of version 7 (server-issued)")
    return value


# The exported schema says in patterns what the validators say in code, so that both refuse alike.
_VERSION_7 = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_WITH_OFFSET = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"

ServerId = Annotated[
    UUID,
    AfterValidator(_is_version_7),
    WithJsonSchema({"type": "string", "format": "uuid", "pattern": _VERSION_7}),
]
"""A server-issued UUIDv7: sorts by time, so that indexes stay warm."""

VisitorId = Annotated[UUID, Field(description="Random pseudonym of a visitor (UUIDv4).")]
"""Random, never derived from anything; lives only in the visit cookie (<= 6 days)."""

Milliseconds = Annotated[int, Field(ge=0, le=7 * 24 * 3600 * 1000)]
"""A duration in whole milliseconds, at most a week."""

Instant = Annotated[
    datetime,
    AwareDatetime,
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": _WITH_OFFSET}),
]
"""An instant with an offset."""

Reason = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,63}$")]
"""A word of a service's closed enum of reasons; the same word in metric, problem and page."""
