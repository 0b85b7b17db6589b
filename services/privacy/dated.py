"""Entries of registers that are data: unknown fields refused, valid on some days."""

from datetime import date
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator


class Entry(BaseModel):
    """What a register says of one thing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dated(Entry):
    """Valid from a day on, and until another one that is not part of it."""

    valid_from: date
    valid_until: date | None = None

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.valid_until is not None and self.valid_until <= self.valid_from:
            raise ValueError("ends before it begins")
        return self

    def covers(self, day: date) -> bool:
        """Whether it is valid on a day."""
        return self.valid_from <= day and (self.valid_until is None or day < self.valid_until)
