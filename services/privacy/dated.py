"""Entries of registers that are data: unknown fields refused, valid on some days."""

from datetime import date
from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class RegisterError(ValueError):
    """A register is wrong; the text says in one sentence where and why."""


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


R = TypeVar("R", bound=Entry)


def read_register(path: Path, form: type[R], of: str) -> R:
    """Read a register of some things from JSON.

    Args:
        of: what it is a register of, for the text of an error.

    Raises:
        RegisterError: it cannot be read, or is wrong; what it says is not repeated.
    """
    try:
        return form.model_validate_json(path.read_bytes())
    except OSError:
        raise RegisterError(f"the register of {of} cannot be read") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # the name of a field that nobody knows may be anything, a name of a person too
        known = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]
        place = ".".join(map(str, known)) or "as a whole"
        raise RegisterError(f"the register of {of}, {place}: {first['msg']}") from None
