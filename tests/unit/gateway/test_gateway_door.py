"""The visit cookie and what the rate limits remember."""

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from schemas.view_ticket import KeyRing, sign_token
from services.gateway.ads import load_ads, make_jingle, make_media
from services.gateway.domain import Rate, Reason, Visit
from services.gateway.door import RateLimit, Visits, new_visitor_id, trace_of
from services.gateway.metrics import Metrics
from services.gateway.settings import Settings
from tests.unit.gateway.support import COOKIE_KEYS, TICKET_KEYS, FakeClock, Gateway

RING = KeyRing(COOKIE_KEYS)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _visits(clock: FakeClock) -> Visits:
    return Visits(RING, age_max_s=3600, clock=clock)


def test_cookie_is_read_back() -> None:
    """What was signed is the same visit."""
    visits = _visits(FakeClock())
    visit, cookie = visits.open()
    assert visits.read(cookie) == visit


def test_visitor_ids_are_random_and_of_version_4() -> None:
    """R-D5: a pseudonym is derived from nothing."""
    ids = {new_visitor_id() for _ in range(100)}
    assert len(ids) == 100
    assert {visitor_id.version for visitor_id in ids} == {4}


def test_cookie_ends_with_its_visit() -> None:
    """Signed for ever, good for its time only."""
    clock = FakeClock()
    visits = _visits(clock)
    _, cookie = visits.open()
    clock.advance(3599)
    assert isinstance(visits.read(cookie), Visit)
    clock.advance(1)
    assert visits.read(cookie) is Reason.VISIT_EXPIRED


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", Reason.VISIT_INVALID),
        (b"x.1", Reason.VISIT_INVALID),
        (b"8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01", Reason.VISIT_INVALID),
        (b"8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01.x", Reason.VISIT_INVALID),
        (b"8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01.99999999999999999999", Reason.VISIT_INVALID),
        (b"8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01.1.1", Reason.VISIT_INVALID),
        (b"\xff.1", Reason.VISIT_INVALID),
    ],
)
def test_well_signed_nonsense_is_no_visit(payload: bytes, reason: Reason) -> None:
    """A signature alone opens nothing."""
    assert _visits(FakeClock()).read(sign_token(RING, payload)) is reason


def test_a_view_ticket_is_no_cookie_even_under_the_same_keys() -> None:
    """Two kinds of token never pass for one another."""
    gateway = Gateway()
    ticket = gateway.ticket(new_visitor_id())
    assert Visits(KeyRing(TICKET_KEYS), age_max_s=60, clock=FakeClock()).read(ticket) is (
        Reason.VISIT_INVALID
    )


@pytest.mark.parametrize("cookie", [None, "", "x", "a.b.c", "é.c1.é"])
def test_no_cookie_and_no_signature_are_no_visit(cookie: str | None) -> None:
    """Missing is missing, forged is invalid."""
    expected = Reason.VISIT_INVALID if cookie else Reason.VISIT_MISSING
    assert _visits(FakeClock()).read(cookie) is expected


def test_addresses_are_forgotten_after_thirty_idle_minutes() -> None:
    """R-D1, R-D4: the address of web use is kept for the use, which ends after 30 idle minutes."""
    gateway = Gateway()
    assert gateway.settings.idle_s == 1800
    gateway.limits.address.wait_s("203.0.113.7")
    gateway.clock.advance(900)
    gateway.limits.address.wait_s("203.0.113.8")
    gateway.clock.advance(900)
    gateway.limits.forget_idle()
    assert len(gateway.limits.address) == 1, "the older one is gone, the younger is in use"
    assert gateway.metric("gateway_remembered_keys", kind="address") == 1
    gateway.clock.advance(900)
    gateway.limits.forget_idle()
    assert len(gateway.limits.address) == 0
    assert gateway.metric("gateway_remembered_keys", kind="address") == 0


def test_memory_of_the_rate_limit_is_bounded() -> None:
    """A flood of addresses pushes the oldest out, and costs no more memory."""
    limit = RateLimit(Rate(per_s=1, burst=1), clock=FakeClock(), keys_max=10, idle_s=60)
    for number in range(1000):
        limit.wait_s(str(number))
    assert len(limit) == 10


@pytest.mark.parametrize("header", [None, "", "nonsense", TRACE.upper(), f"{TRACE}-more"])
def test_trace_is_made_where_none_came(header: str | None) -> None:
    """traceparent: taken if valid, else made."""
    assert trace_of(header) not in (header, trace_of(header))
    assert trace_of(TRACE) == TRACE


@pytest.mark.parametrize(
    "changed",
    [
        {"view_ticket_keys": "not json"},
        {"view_ticket_keys": "{}"},
        {"visit_cookie_keys": '{"a.b": "' + "11" * 32 + '"}'},
        {"visit_cookie_keys": '{"a": "11"}'},
        {"visit_age_max_s": 6 * 24 * 3600 + 1},
        {"idle_s": 1801},
        {"public_origin": "https://minutes.example/page"},
        {"trusted_proxies": "10.0.0.0/8,nonsense"},
    ],
    ids="-".join,
)
def test_settings_that_break_a_duty_are_refused(changed: dict[str, object]) -> None:
    """R-D1, R-D5: no setting can make a visit or an idle memory last longer than the rule."""
    good = Gateway().settings.model_dump()
    good["view_ticket_keys"] = good["visit_cookie_keys"] = '{"a": "' + "11" * 32 + '"}'
    Settings.model_validate(good)
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(good | changed)
    assert {error["loc"][0] for error in caught.value.errors()} == set(changed)


def test_secrets_are_not_printed() -> None:
    """Settings are logged at the start; keys are stars."""
    text = str(Gateway().settings.redacted())
    assert "11" * 32 not in text
    assert "22" * 32 not in text


def test_each_ad_has_real_media_of_its_length() -> None:
    """A real 15-second file of our own, playable, at most 300 kB; no ad partner (R-F4)."""
    import io  # noqa: PLC0415
    import wave  # noqa: PLC0415

    ads = load_ads()
    media = make_media(ads)
    for ad in ads:
        with wave.open(io.BytesIO(media[ad.media].content)) as reader:
            length_ms = reader.getnframes() * 1000 / reader.getframerate()
            samples = reader.readframes(reader.getnframes())
        assert length_ms == ad.duration_ms
        assert len(media[ad.media].content) <= 300_000
        assert len(set(samples)) > 100, "not silence"
    assert [ad.duration_ms for ad in ads] == [15_000]


def test_media_is_the_same_on_every_instance() -> None:
    """Two instances answer with the same ETag."""
    assert make_jingle(1000) == make_jingle(1000)


def test_metrics_belong_to_the_gateway() -> None:
    """One namespace, no clash with the chassis' own."""
    registry = CollectorRegistry()
    Metrics(registry)
    assert all(family.name.startswith("gateway_") for family in registry.collect())
