"""A choice that cannot count is refused at the door, for the reason that consent would have (R-F2).

Method: consent's own answer, its own rule beside the door's, and the routes with a fake Kafka.
"""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.consent import ConsentDecision, Purpose
from services.chassis.ids import TimeOrderedIds
from services.consent import catalogues, domain
from services.consent.handlers import known_recipients
from services.consent.http import build_http
from services.gateway.domain import Reason
from services.gateway.offers import ASK_AGAIN_AFTER_S, BELIEVED_FOR, Chosen, Shown, why_not
from services.gateway.reads import OffersView
from tests.unit.gateway.support import Gateway

NOW = datetime(2026, 11, 22, 18, tzinfo=UTC)
VERSIONS = sorted(catalogues.known().by_version)
NAMES = sorted({name for _, name in known_recipients()})


async def consents_answer() -> Any:
    """Return what consent says: it needs no database for that."""
    app = build_http(None, None)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
        return (await client.get("http://consent/v1/offers")).json()


async def gateway_that_knows() -> Gateway:
    gateway = Gateway()
    gateway.services.offers = await consents_answer()
    await gateway.offers.ask()
    return gateway


@pytest.fixture(scope="module")
def view() -> OffersView:
    known = catalogues.known().by_version
    recipients: dict[str, set[str]] = {}
    for purpose, name in known_recipients():
        recipients.setdefault(purpose, set()).add(name)
    return OffersView.model_validate(
        {
            "versions": {
                name: {"wordings": one.wordings, "recipients": one.recipients}
                for name, one in known.items()
            },
            "recipients": recipients,
        }
    )


async def test_what_consent_answers_is_what_it_knows(view: OffersView) -> None:
    """R-F1: every published version with its wordings and whom it names."""
    assert OffersView.model_validate(await consents_answer()) == view


@given(
    shown=st.builds(
        Shown,
        catalogue_version=st.sampled_from([*VERSIONS, "2020-1"]),
        wording_version=st.sampled_from(["2026-11.1", "2026-11.2", "2020-1"]),
        language=st.sampled_from(["de", "en", "fr"]),
        is_signal=st.booleans(),
    ),
    chosen=st.builds(
        Chosen,
        purpose=st.sampled_from(Purpose),
        decision=st.sampled_from(ConsentDecision),
        recipient=st.sampled_from([None, "nobody", *NAMES]),
    ),
)
def test_the_door_says_what_consent_would_say(
    view: OffersView, shown: Shown, chosen: Chosen
) -> None:
    """R-F2, K2: neither refuses what the other takes."""
    known = catalogues.known()
    published = known.by_version.get(shown.catalogue_version)
    is_worded = published is not None and published.is_worded(shown.wording_version, shown.language)
    judged = domain.judge(
        TimeOrderedIds().new(),
        [
            domain.Choice(
                purpose=chosen.purpose.value,
                verdict=domain.Verdict(chosen.decision.value),
                recipient=chosen.recipient,
            )
        ],
        decided_at=NOW,
        received_at=NOW,
        now=NOW,
        offer=known.offer(shown.catalogue_version) if is_worded else None,
        known_recipients=known_recipients(),
        is_signal=shown.is_signal,
    )
    refused = why_not(view, shown, chosen)
    said = [refused.value] if refused else []
    assert said == [one.value for one in judged.refusals]
    assert (refused is None) is bool(judged.decisions)


def body(*choices: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "choices": list(choices), "catalogue_version": "2026-11.2", "wording_version": "2026-11.1",
        "language": "de", "method": "banner",
    } | changed  # fmt: skip


GIVEN = {"purpose": "marketing", "decision": "given"}
REFUSED = {"purpose": "marketing", "decision": "refused"}


@pytest.mark.parametrize(
    ("asked", "reason", "index"),
    [
        (body(GIVEN, catalogue_version="2026-13.1"), Reason.CATALOGUE_UNKNOWN, 0),
        (body(GIVEN, wording_version="2026-13.1"), Reason.CATALOGUE_UNKNOWN, 0),
        (body(GIVEN, language="fr"), Reason.CATALOGUE_UNKNOWN, 0),
        (body(GIVEN, method="signal"), Reason.SIGNAL_GIVES_NOTHING, 0),
        (
            body(GIVEN, {"purpose": "necessary", "decision": "refused"}),
            Reason.PURPOSE_NECESSARY,
            1,
        ),
        (
            body(GIVEN, {"purpose": "statistics", "decision": "given"}),
            Reason.PURPOSE_NOT_OFFERED,
            1,
        ),
        (body(REFUSED | {"recipient": "nobody-at-all"}), Reason.RECIPIENT_UNKNOWN, 0),
        # named since the second version
        (
            body(GIVEN | {"recipient": "ad-partner"}, catalogue_version="2026-11.1"),
            Reason.RECIPIENT_NOT_OFFERED,
            0,
        ),
    ],
)
async def test_what_cannot_count_is_refused_and_sends_nothing(
    asked: dict[str, Any], reason: Reason, index: int
) -> None:
    """R-F2: a clear error at the door, by choice; it was taken and vanished before."""
    gateway = await gateway_that_knows()
    client, _ = gateway.visitor()
    response = await client.post("/v1/consents", json=asked)
    assert (response.status_code, response.json()["reason"]) == (422, reason.value)
    assert response.json()["index"] == index
    assert gateway.sender.sent == []


@pytest.mark.parametrize(
    "asked",
    [
        body(GIVEN),
        # who was shown an older version may answer it: it reaches whom that one named (ADR 0030)
        body(GIVEN, catalogue_version="2026-11.1"),
        # a denial counts whatever was shown (R-F3)
        body(REFUSED, catalogue_version="2026-13.1"),
        body(REFUSED, method="signal"),
    ],
)
async def test_what_can_count_is_taken(asked: dict[str, Any]) -> None:
    """R-F2, R-F3."""
    gateway = await gateway_that_knows()
    client, _ = gateway.visitor()
    assert (await client.post("/v1/consents", json=asked)).status_code == 202
    assert len(gateway.sender.events) == 1


async def test_a_version_published_a_moment_ago_is_asked_for_before_it_is_refused() -> None:
    """R-F2: consent is rolled out first; a visitor who makes versions up costs one question."""
    gateway = await gateway_that_knows()
    new = gateway.services.offers["versions"]["2026-11.2"]
    client, _ = gateway.visitor()
    asked = body(GIVEN, catalogue_version="2026-12.1")
    n_asked = len(gateway.services.seen)
    assert (await client.post("/v1/consents", json=asked)).status_code == 422
    assert len(gateway.services.seen) == n_asked, "it had asked a moment ago"
    gateway.services.offers["versions"]["2026-12.1"] = new
    gateway.clock.advance(ASK_AGAIN_AFTER_S + 1)
    assert (await client.post("/v1/consents", json=asked)).status_code == 202
    assert len(gateway.services.seen) == n_asked + 1


async def test_without_consent_nothing_is_refused_that_it_may_take() -> None:
    """Nothing accepted is lost and nothing refused by guess: consent judges again."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    asked = body(GIVEN, catalogue_version="2026-13.1")
    await gateway.offers.ask()
    assert (await client.post("/v1/consents", json=asked)).status_code == 202
    gateway = await gateway_that_knows()
    client, _ = gateway.visitor()
    gateway.services.status = 503
    assert (await client.post("/v1/consents", json=asked)).status_code == 422
    gateway.clock.advance(BELIEVED_FOR.total_seconds() + 1)
    client, _ = gateway.visitor()
    assert (await client.post("/v1/consents", json=asked)).status_code == 202
