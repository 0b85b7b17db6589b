"""Who takes part: fictional people with numbers and addresses that belong to nobody.

Numbers: the Bundesnetzagentur's range for fiction, (0)30 23125 000 to 999; 000 is the platform's
own. Addresses: 203.0.113.0/24, set aside for documentation (RFC 5737).
"""

import re
from dataclasses import dataclass

FICTION = "+49 30 23125"
PEOPLE_MAX = 99
"""Callback numbers are 001 to 099, destinations 101 upwards."""
_DESTINATION_FIRST = 100


@dataclass(frozen=True, kw_only=True)
class Person:
    """One visitor. Numbers as typed on the page; `address` is where the browser comes from."""

    number: int
    callback_number: str
    destination_number: str
    address: str

    @property
    def accepts_all(self) -> bool:
        """Whether every purpose is agreed to; who refuses earns the same minutes (R-F5)."""
        return self.number % 2 == 0


def invite(n_people: int) -> tuple[Person, ...]:
    """Return so many people, numbered from 1."""
    assert 1 <= n_people <= PEOPLE_MAX
    return tuple(
        Person(
            number=number,
            callback_number=f"{FICTION} {number:03}",
            destination_number=f"{FICTION} {_DESTINATION_FIRST + number}",
            address=f"203.0.113.{number}",
        )
        for number in range(1, n_people + 1)
    )


def e164(typed: str) -> str:
    """Return an international number without its blanks."""
    return "+" + re.sub(r"\D", "", typed)


def national_digits(typed: str) -> str:
    """Return the national significant number: it is in `+49…`, `0049…` and `0…` alike."""
    return e164(typed).removeprefix("+49")
