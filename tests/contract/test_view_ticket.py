"""The signed token: nothing of it may be changed, and keys can be rotated (L3, R-A3)."""

import base64
import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import view_ticket
from schemas.view_ticket import KeyRing, TicketError, ViewTicket

OLD, NEW, FOREIGN = "11" * 32, "22" * 32, "33" * 32
RING = KeyRing({"new": NEW, "old": OLD})
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.="

instants = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001 - hypothesis wants them naive
    max_value=datetime(2090, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
).map(lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000))
tickets = st.builds(
    ViewTicket,
    ticket_id=st.uuids(),
    visitor_id=st.uuids(),
    ad_id=st.text(min_size=1, max_size=64),
    duration_ms=st.integers(1, 3_600_000),
    issued_at=instants,
    expires_at=instants,
)
TICKET = ViewTicket(
    ticket_id=UUID("019aabcd-1234-7abc-8def-0123456789ab"),
    visitor_id=UUID("8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01"),
    ad_id="minutes-15s",
    duration_ms=15_000,
    issued_at=datetime(2026, 11, 22, 18, tzinfo=UTC),
    expires_at=datetime(2026, 11, 22, 19, tzinfo=UTC),
)


@given(tickets)
def test_what_is_signed_is_read_back(ticket: ViewTicket) -> None:
    """All claims survive the wire."""
    assert view_ticket.read(RING, view_ticket.issue(RING, ticket)) == ticket


@given(st.data())
def test_a_changed_character_anywhere_is_refused(data: st.DataObject) -> None:
    """L3: whatever one character becomes, the ticket is not ours, or it means the very same."""
    text = view_ticket.issue(RING, TICKET)
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in ALPHABET if c != text[place]]))
    forged = text[:place] + other + text[place + 1 :]
    # base64's last character has spare bits: another spelling of the same bytes, same claims
    assert _read_or_word(forged) in (TICKET, "malformed", "signature_invalid")


def _read_or_word(text: str) -> ViewTicket | str:
    try:
        return view_ticket.read(RING, text)
    except TicketError as error:
        return str(error)


@given(tickets, tickets)
def test_claims_cannot_be_moved_under_another_signature(one: ViewTicket, two: ViewTicket) -> None:
    """L3: a signature holds for its claims only."""
    first, second = view_ticket.issue(RING, one), view_ticket.issue(RING, two)
    swapped = f"{first.split('.')[0]}.{second.split('.', 1)[1]}"
    if one == two:
        assert view_ticket.read(RING, swapped) == one
    else:
        with pytest.raises(TicketError, match="signature_invalid"):
            view_ticket.read(RING, swapped)


@given(st.text(max_size=200))
def test_any_text_at_all_is_refused_with_a_word(text: str) -> None:
    """Garbage never raises anything but TicketError."""
    with pytest.raises(TicketError):
        view_ticket.read(RING, text)


def test_keys_rotate() -> None:
    """Add the new key in front, wait a ticket's life, take the old one away."""
    before, during, after = KeyRing({"old": OLD}), RING, KeyRing({"new": NEW})
    old_ticket = view_ticket.issue(before, TICKET)
    new_ticket = view_ticket.issue(during, TICKET)
    assert view_ticket.read(during, old_ticket) == TICKET, "issued before the rotation"
    assert new_ticket.split(".")[1] == "new", "the first key signs"
    assert view_ticket.read(after, new_ticket) == TICKET
    with pytest.raises(TicketError, match="signature_invalid"):
        view_ticket.read(after, old_ticket)


def test_key_id_of_another_key_does_not_help() -> None:
    """A foreign key under a known name, and a known signature under another name, are refused."""
    foreign = view_ticket.issue(KeyRing({"new": FOREIGN}), TICKET)
    with pytest.raises(TicketError, match="signature_invalid"):
        view_ticket.read(RING, foreign)
    body, _, mac = view_ticket.issue(RING, TICKET).split(".")
    with pytest.raises(TicketError, match="signature_invalid"):
        view_ticket.read(RING, f"{body}.old.{mac}")


WELL_TYPED = {
    "tid": str(TICKET.ticket_id),
    "vid": str(TICKET.visitor_id),
    "ad": "a",
    "dur": 1,
    "iat": 0,
    "exp": 0,
}


@pytest.mark.parametrize(
    "claims",
    [
        {},
        [],
        None,
        {"tid": "x"},
        WELL_TYPED | {"tid": 5},
        WELL_TYPED | {"vid": []},
        WELL_TYPED | {"exp": 1e300},
    ],
    ids=["empty", "list", "null", "missing", "number-as-id", "list-as-id", "instant-out-of-range"],
)  # fmt: skip
def test_well_signed_nonsense_is_malformed(claims: object) -> None:
    """Even what is signed is read with care: another program may share the key one day."""
    text = view_ticket.sign_token(RING, json.dumps(claims).encode())
    with pytest.raises(TicketError, match="malformed"):
        view_ticket.read(RING, text)


@pytest.mark.parametrize(
    "keys", [{}, {"a": "11" * 31}, {"a": "xy" * 32}], ids=["none", "short", "not-hex"]
)
def test_weak_key_ring_is_refused(keys: dict[str, str]) -> None:
    """At least one key, each of 256 bits."""
    with pytest.raises(ValueError, match=r"key|hex"):
        KeyRing(keys)


def test_key_ring_is_read_from_settings_text() -> None:
    """As the settings carry it."""
    ring = KeyRing.from_json(json.dumps({"new": NEW}))
    assert view_ticket.read(ring, view_ticket.issue(ring, TICKET)) == TICKET
    assert base64.urlsafe_b64decode(view_ticket.issue(ring, TICKET).split(".")[0] + "==")
