"""Full addresses leave the gateway under an assessed threat only (R-C3, R-D1, R-D2)."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from services.gateway.domain import network_of
from services.gateway.threat import (
    BELIEVED_FOR,
    FIRST_ANSWER_WITHIN_S,
    Threat,
)
from tests.unit.gateway.support import NOW, PEER, Gateway

HOUR = timedelta(hours=1)
NUMBERS = {"callback_number": "+493023125001", "destination_number": "+493023125101"}
ADDRESS, NETWORK = "203.0.113.77", "203.0.113.0"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        (ADDRESS, NETWORK),
        ("2001:db8:5a3c:17::4e1f", "2001:db8:5a3c::"),
        ("::1", "::"),
        ("unknown", "unknown"),
    ],
)
def test_a_network_has_many_customers(address: str, network: str) -> None:
    """R-C2: as the statistics have it."""
    assert network_of(address) == network


def answer(kept_until: datetime | None) -> dict[str, Any]:
    return {"level": "normal", "kept_until": kept_until and kept_until.isoformat()}


async def test_an_address_is_whole_while_a_threat_is_assessed_and_retention_says_so() -> None:
    """R-C3: the assessment ends by itself; the last word counts for an hour, and none is none."""
    gateway = Gateway()
    threat = Threat(gateway.reads, gateway.clock)
    assert threat.kept(ADDRESS) == NETWORK, "before it has heard anything"
    gateway.services.status = 503
    await threat.ask()
    assert threat.kept(ADDRESS) == NETWORK
    gateway.services.status = 200
    gateway.services.threat = answer(NOW + HOUR / 2)
    await threat.ask()
    assert threat.kept(ADDRESS) == ADDRESS
    gateway.services.status = 503
    await threat.ask()
    assert threat.kept(ADDRESS) == ADDRESS, "an answer counts for its time"
    gateway.clock.advance(HOUR.total_seconds() / 2)
    assert threat.kept(ADDRESS) == NETWORK, "the assessment has ended"
    gateway.services.status = 200
    gateway.services.threat = answer(NOW + 9 * HOUR)
    await threat.ask()
    gateway.clock.advance(BELIEVED_FOR.total_seconds() - 1)
    assert threat.kept(ADDRESS) == ADDRESS
    gateway.clock.advance(1)
    assert threat.kept(ADDRESS) == NETWORK, "nobody has said so for an hour"
    await threat.ask()
    assert threat.kept(ADDRESS) == ADDRESS
    gateway.services.threat = answer(None)
    await threat.ask()
    assert threat.kept(ADDRESS) == NETWORK


async def test_the_gateway_waits_for_the_first_answer_but_not_for_ever() -> None:
    """R-A1: a page that comes early is not recorded with less than may be."""
    gateway = Gateway()
    threat = Threat(gateway.reads, gateway.clock)
    assert threat.problem() is not None
    threat._asked_at_s = gateway.clock.monotonic() - FIRST_ANSWER_WITHIN_S - 1
    assert threat.problem() is None
    threat._asked_at_s = gateway.clock.monotonic()
    assert threat.problem() is not None
    gateway.services.threat = answer(None)
    await threat.ask()
    assert threat.problem() is None


async def test_without_a_threat_events_have_the_network_only() -> None:
    """R-D1: nothing that outlives the use has the full address."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    for kept_until, expected in ((NOW + HOUR, PEER), (None, "203.0.113.0")):
        gateway.threat.learn(kept_until)
        response = await client.post("/v1/calls", json=NUMBERS)
        assert response.status_code == 202, response.text
        assert gateway.sender.events[-1].address == expected
