"""The gateway's pure rules: visits, tickets, rates, addresses, origins."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain import (
    Ad,
    Bucket,
    Rate,
    Reason,
    Visit,
    check_ticket,
    check_visit,
    choose_ad,
    client_address,
    is_origin_allowed,
    rate_key,
    take_token,
)

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
SIX_DAYS_S = 6 * 24 * 3600
MINE = UUID("8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01")
THEIRS = UUID("8f14e45f-ceea-467f-a9c3-2b1d7e5a6c02")


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (timedelta(0), None),
        (timedelta(days=6) - timedelta(seconds=1), None),
        (timedelta(days=6), Reason.VISIT_EXPIRED),
        (timedelta(minutes=-5), None),
        (timedelta(minutes=-6), Reason.VISIT_INVALID),
    ],
    ids=["new", "last-second", "over", "clocks-apart", "from-the-future"],
)
def test_visit_lives_six_days_and_no_longer(age: timedelta, reason: Reason | None) -> None:
    """R-D5: the pseudonym ends after six days, whatever its bearer does."""
    visit = Visit(visitor_id=MINE, issued_at=NOW - age)
    assert check_visit(visit, now=NOW, age_max_s=SIX_DAYS_S) == reason


@pytest.mark.parametrize(
    ("owner", "left", "reason"),
    [
        (MINE, timedelta(seconds=1), None),
        (MINE, timedelta(0), Reason.TICKET_EXPIRED),
        (THEIRS, timedelta(hours=1), Reason.TICKET_FOREIGN),
        (THEIRS, timedelta(hours=-1), Reason.TICKET_FOREIGN),
    ],
    ids=["good", "over", "of-another", "of-another-and-over"],
)
def test_ticket_counts_for_its_owner_until_it_ends(
    owner: UUID, left: timedelta, reason: Reason | None
) -> None:
    """L3: a ticket handed to someone else is worth nothing."""
    found = check_ticket(owner=owner, visitor_id=MINE, expires_at=NOW + left, now=NOW)
    assert found == reason


@given(
    per_s=st.floats(0.1, 1000),
    burst=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_no_more_than_burst_plus_rate_pass(per_s: float, burst: int, gaps: list[float]) -> None:
    """In any pattern of arrival, what passes in t seconds is at most burst + t x rate."""
    rate, bucket, now_s, n_passed = Rate(per_s=per_s, burst=burst), None, 0.0, 0
    for gap_s in gaps:
        now_s += gap_s
        bucket, wait_s = take_token(rate, bucket, now_s=now_s)
        n_passed += wait_s == 0
        assert 0 <= bucket.tokens <= burst
    assert n_passed <= burst + now_s * per_s + 1e-6


def test_whoever_waits_as_told_is_let_in() -> None:
    """The wait that goes out as Retry-After is enough."""
    rate = Rate(per_s=0.5, burst=1)
    bucket, first = take_token(rate, None, now_s=0.0)
    bucket, wait_s = take_token(rate, bucket, now_s=0.5)
    assert (first, wait_s) == (0.0, 1.5)
    assert take_token(rate, bucket, now_s=0.5 + wait_s)[1] == 0.0


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    """A monotonic clock never does; a bucket survives it all the same."""
    before = Bucket(tokens=0.0, at_s=100.0)
    assert take_token(Rate(per_s=1.0, burst=5), before, now_s=50.0)[1] > 0


@pytest.mark.parametrize(
    ("peer", "header", "proxies", "address"),
    [
        ("203.0.113.7", None, (), "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", (), "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", ("10.0.0.0/8",), "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1", ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", "192.0.2.66, 198.51.100.1", ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", "192.0.2.66, 198.51.100.1, 10.0.0.2", ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", "nonsense", ("10.0.0.0/8",), "10.0.0.1"),
        ("10.0.0.1", "", ("10.0.0.0/8",), "10.0.0.1"),
        ("::ffff:203.0.113.7", None, (), "203.0.113.7"),
        ("fe80::1%eth0", None, (), "fe80::1"),
        ("2001:0db8:0:0:0:0:0:7", None, (), "2001:db8::7"),
        ("", None, (), "unknown"),
        ("testclient", None, (), "unknown"),
    ],
    ids=[
        "plain", "forged", "forged-past-foreign-proxy", "proxied", "forged-behind-proxy",
        "two-proxies", "proxy-says-nonsense", "proxy-says-nothing", "mapped", "zone", "long-form",
        "no-peer", "no-address",
    ],
)  # fmt: skip
def test_address_is_believed_from_trusted_proxies_only(
    peer: str, header: str | None, proxies: tuple[str, ...], address: str
) -> None:
    """R-A1: the address recorded is the visitor's own, not one that a visitor made up."""
    assert client_address(peer, header, proxies) == address


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_header_gives_an_address_that_fits(peer: str, header: str) -> None:
    """The event's address has 2..45 characters, whatever comes in."""
    assert 2 <= len(client_address(peer, header, ("0.0.0.0/0", "::/0"))) <= 45


def test_a_customer_of_ipv6_is_counted_as_one() -> None:
    """Whoever has a /64 has not 2^64 rates."""
    assert rate_key("2001:db8::1") == rate_key("2001:db8::ffff:1") != rate_key("2001:db8:0:1::1")
    assert rate_key("203.0.113.7") == "203.0.113.7"
    assert rate_key("unknown") == "unknown"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("https://minutes.example", True),
        ("https://minutes.example.evil.test", False),
        ("http://minutes.example", False),
        ("https://minutes.example:8443", False),
        ("null", False),
        ("", False),
    ],
    ids=["none", "own", "longer", "no-tls", "other-port", "null", "empty"],
)
def test_only_our_own_page_may_ask(*, origin: str | None, allowed: bool) -> None:
    """CSRF: an Origin, when there is one, is ours to the letter."""
    assert is_origin_allowed(origin, "https://minutes.example") is allowed


def test_ads_are_spread_over_tickets() -> None:
    """Each ad has its turn."""
    ads = [Ad(ad_id=str(n), title="t", media="m", duration_ms=1) for n in range(3)]
    assert {choose_ad(ads, UUID(int=n)).ad_id for n in range(3)} == {"0", "1", "2"}
