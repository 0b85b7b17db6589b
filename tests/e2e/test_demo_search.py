"""The demo's search must find what it is for: a search that finds nothing would prove anything."""

from uuid import UUID

import pytest

from deploy.demo.people import invite, national_digits
from deploy.demo.search import Find, Needle, search

VISITOR = "1611b809-72a9-45f1-b293-98fe873e7618"
SPELLINGS = (
    "+493023125011",
    "00493023125011",
    "03023125011",
    "+49 30 23125 011",
    "+49 (0)30 23125-011",
    "030/23125011",
)


def find(needle: Needle, text: bytes) -> list[Find]:
    return search([("tables x", text)], [needle])


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_number_is_found_in_every_spelling(text: str) -> None:
    """R-D5."""
    needle = Needle(what="number", folded=national_digits("+49 30 23125 011").encode())
    assert find(needle, f'{{"typed":"{text}"}}'.encode()) == [
        Find(place="tables x", what="number", n=1)
    ]
    assert find(needle, b"+49 30 23125 012") == []


@pytest.mark.parametrize(
    "text",
    [VISITOR.encode(), VISITOR.upper().encode(), UUID(VISITOR).hex.encode(), UUID(VISITOR).bytes],
    ids=["text", "upper", "hex", "raw"],
)
def test_an_id_is_found_as_text_and_as_bytes(text: bytes) -> None:
    """R-D5."""
    plain = VISITOR.replace("-", "").encode()
    needle = Needle(what="id", folded=plain, raw=UUID(VISITOR).bytes)
    assert find(needle, b"\x00{" + text + b"}\xff")
    assert not find(needle, b"\x00{" + text[:-1] + b"}\xff")


def test_an_address_is_not_found_in_a_longer_one() -> None:
    """R-D4: visitor 1's address is no part of visitor 11's."""
    needle = Needle(what="address", address=b"203.0.113.1")
    assert find(needle, b"from 203.0.113.1/32")
    assert not find(needle, b"from 203.0.113.11")


def test_people_are_fictional_and_nobody_twice() -> None:
    """Numbers of the Bundesnetzagentur's range for fiction, addresses of RFC 5737."""
    people = invite(99)
    numbers = [n for p in people for n in (p.callback_number, p.destination_number)]
    assert len(set(numbers)) == len(numbers)
    assert len({p.address for p in people}) == len(people)
    assert all(n.startswith("+49 30 23125 ") and len(n) == 16 for n in numbers)
