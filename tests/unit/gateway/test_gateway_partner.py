"""The page's own requests to the ad partner: only after the choice, permitted and recorded."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from schemas.transfer import TransferV1
from services.privacy.gate import Question, Verdict
from services.privacy.recipients import FILE, load, parse
from services.privacy.rules import Change, ConsentFacts, RuleBook, always
from tests.unit.gateway.support import NOW, PEER, Gateway

TAG = "https://s.vi-serve.example/tagLoader.js"
CLAUSES = [{"decision": "(EU) 2021/914", "valid_from": "2022-01-01", "valid_until": None}]


def rules(clauses_of: tuple[str, ...] = (), *, has_consent: bool = False) -> RuleBook:
    """Return the shipped rules, after some recipients have signed clauses."""
    data: dict[str, Any] = json.loads(FILE.read_bytes())
    for recipient in data["recipients"]:
        if recipient["recipient_id"] in clauses_of:
            recipient["clauses"] = CLAUSES
    changes = (Change(at=NOW - timedelta(hours=1), in_force=True),) if has_consent else ()

    def facts_of(visitor_id: UUID, now: datetime) -> ConsentFacts:
        named = [recipient["recipient_id"] for recipient in data["recipients"]]
        return ConsentFacts(
            is_fresh=True, of_recipients={("marketing", name): changes for name in named}
        )

    return RuleBook(always(parse(json.dumps(data).encode())), facts_of)


async def take(gateway: Gateway) -> tuple[Any, list[TransferV1], UUID]:
    client, visitor_id = gateway.visitor()
    response = await client.post("/v1/view-tickets")
    assert response.status_code == 201
    return response.json()["partner"], gateway.sender.events, visitor_id


def said(events: list[TransferV1]) -> Mapping[str, str]:
    return {e.recipient: e.reason or e.verdict.value for e in events}


async def test_as_shipped_the_tag_is_refused_and_the_refusal_recorded():
    """R-E2: the loader is in the USA, without clauses or certificate."""
    partner, events, visitor_id = await take(Gateway(rules=rules(), partner_tag_url=TAG))
    assert partner is None
    (event,) = events
    assert (event.recipient, event.reason) == ("s-vi-serve-com", "country_not_allowed")
    assert (event.visitor_id, event.fields) == (visitor_id, ("address",))
    assert PEER not in event.model_dump_json()
    assert event.register_version.split("+")[0] == load().version.split("+")[0]


async def test_without_consent_the_tag_may_be_loaded_and_no_exchange_be_told():
    """R-E1, R-F4, R-F5: the ad itself rests on the contract; who refuses marketing sees it too."""
    loader = rules(("s-vi-serve-com",))
    partner, events, _ = await take(Gateway(rules=loader, partner_tag_url=TAG))
    assert partner == {"tag_url": TAG, "personalised": []}
    assert said(events) == {
        "s-vi-serve-com": "permitted",
        "stickyadstv-com": "no_consent_then",
        "amazon-adsystem-com": "country_not_allowed",
        "adgrx-com": "country_not_allowed",
    }


async def test_with_consent_those_may_be_told_whose_country_allows_it():
    """R-E1: consent alone opens no third country."""
    opened = rules(("s-vi-serve-com", "adgrx-com"), has_consent=True)
    partner, events, _ = await take(Gateway(rules=opened, partner_tag_url=TAG))
    assert partner == {"tag_url": TAG, "personalised": ["stickyadstv-com", "adgrx-com"]}
    assert said(events)["amazon-adsystem-com"] == "country_not_allowed"


async def test_who_withdraws_while_it_is_recorded_is_heard():
    """K2, R-E2: the page has its answer only after the gate was asked once more."""
    consenting, withdrawn = (
        rules(("s-vi-serve-com",), has_consent=has_consent) for has_consent in (True, False)
    )
    n_asked = 0

    async def change(question: Question) -> Verdict:
        nonlocal n_asked
        n_asked += 1
        # the tag and three exchanges are asked about first
        return await (consenting if n_asked <= 4 else withdrawn)(question)

    partner, events, _ = await take(Gateway(rules=change, partner_tag_url=TAG))
    assert partner == {"tag_url": TAG, "personalised": []}
    of_one = [e.reason for e in events if e.recipient == "stickyadstv-com"]
    assert of_one == [None, "no_consent_then"]


async def test_what_cannot_be_recorded_is_not_allowed():
    """K3: no request without its record; the ad of ours is shown nevertheless."""
    gateway = Gateway(rules=rules(("s-vi-serve-com",)), partner_tag_url=TAG)
    gateway.sender.is_away = True
    partner, events, _ = await take(gateway)
    assert (partner, events) == (None, [])


async def test_without_a_partner_nothing_is_asked_or_recorded():
    """R-F4: the default."""
    partner, events, _ = await take(Gateway())
    assert (partner, events) == (None, [])
