"""Server-issued ids: UUIDv7, so that they sort by time and indexes stay warm."""

from typing import Protocol
from uuid import UUID

import uuid_utils


class IdFactory(Protocol):
    """Where new ids come from."""

    def new(self) -> UUID:
        """Return a new UUIDv7."""
        ...


class TimeOrderedIds:
    """UUIDv7 of the machine's clock and its source of randomness."""

    def new(self) -> UUID:
        """Return a new UUIDv7."""
        return UUID(bytes=uuid_utils.uuid7().bytes)
