"""Every route and every limit over ASGI; Kafka is a fake at the seam, the rest is real."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from schemas import topics, view_ticket
from schemas.view_ticket import KeyRing
from services.gateway.domain import Reason, Visit
from services.gateway.http.problems import KINDS
from tests.unit.gateway.support import MEDIA, NOW, ORIGIN, PEER, TICKET_KEYS, Gateway, ad_event

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALL_ID = "019aabcd-1234-7abc-8def-0123456789ab"
NUMBERS = {"callback_number": "+49 30 23125 011", "destination_number": "+49 30 23125 022"}
CONSENT: dict[str, Any] = {
    "choices": [{"purpose": "marketing", "decision": "refused"}],
    "catalogue_version": "2026-11.1",
    "wording_version": "2026-11.1",
    "language": "de",
    "method": "banner",
}


def problem_of(response: httpx.Response, status: int, reason: Reason) -> dict[str, Any]:
    """Check that an answer is this problem, in full, and return it."""
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["reason"]) == (status, reason.value)
    assert problem["status"] == status
    assert problem["title"] == KINDS[reason][1]
    assert problem["type"] == f"tag:callpartner.de,2026:problem/{reason.value}"
    return problem


# ---------------------------------------------------------------------- visits


async def test_visit_is_opened_with_a_guarded_cookie() -> None:
    """R-D5: HttpOnly, SameSite, Secure, six days at most; the body holds no pseudonym."""
    gateway = Gateway()
    async with gateway.client() as client:
        response = await client.post("/v1/visits")
    assert response.status_code == 201
    assert response.json() == {"expires_at": "2026-11-28T18:00:00Z"}
    cookie = response.headers["set-cookie"]
    for attribute in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=518400"):
        assert attribute in cookie
    value = cookie.partition("=")[2].partition(";")[0]
    assert gateway.visits.read(value) is not None


async def test_cookie_is_not_secure_only_where_the_page_has_no_tls() -> None:
    """The local demo runs on http://; everything else is Secure."""
    gateway = Gateway(public_origin="http://127.0.0.1:20000")
    async with gateway.client() as client:
        response = await client.post("/v1/visits")
    assert "Secure" not in response.headers["set-cookie"]


async def test_valid_visit_is_kept_and_not_prolonged() -> None:
    """R-D5: the end stays where it was."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    gateway.clock.advance(3600)
    response = await client.post("/v1/visits")
    assert response.status_code == 200
    assert response.json() == {"expires_at": "2026-11-28T18:00:00Z"}
    assert "set-cookie" not in response.headers


async def test_forged_or_ended_visit_is_replaced() -> None:
    """A new pseudonym, no error: the page only wants a visit."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    gateway.clock.advance(6 * 24 * 3600)
    assert (await client.post("/v1/visits")).status_code == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/view-tickets"),
        ("POST", "/v1/ad-events"),
        ("GET", "/v1/balance"),
        ("POST", "/v1/consents"),
        ("POST", "/v1/calls"),
        ("GET", f"/v1/calls/{CALL_ID}"),
        ("POST", f"/v1/calls/{CALL_ID}/hang-up"),
    ],
)
async def test_nothing_goes_without_a_visit(method: str, path: str) -> None:
    """Each route asks for the visit first: missing, forged and ended are told apart."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    good = client.cookies["visit"]
    cases = [(None, Reason.VISIT_MISSING), (good[:-4] + "AAAA", Reason.VISIT_INVALID)]
    for cookie, reason in cases:
        headers = {"cookie": f"visit={cookie}"} if cookie else {}
        async with gateway.client() as stranger:
            problem_of(await stranger.request(method, path, headers=headers), 401, reason)
    gateway.clock.advance(6 * 24 * 3600)
    problem_of(await client.request(method, path), 401, Reason.VISIT_EXPIRED)
    assert gateway.sender.sent == []


# ---------------------------------------------------------------------- tickets and ad events


async def test_ticket_is_signed_for_its_visitor_and_ad() -> None:
    """R-A2: single-use leave for one ad, for an hour; the id is the server's (UUIDv7)."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    response = await client.post("/v1/view-tickets")
    assert response.status_code == 201
    answer = response.json()
    ticket = view_ticket.read(KeyRing(TICKET_KEYS), answer["ticket"])
    assert ticket.visitor_id == visitor_id
    assert str(ticket.ticket_id) == answer["ticket_id"]
    assert ticket.ticket_id.version == 7
    assert (
        ticket.expires_at
        == NOW + timedelta(hours=1)
        == datetime.fromisoformat(answer["expires_at"])
    )
    assert ticket.duration_ms == answer["ad"]["duration_ms"] == 15_000
    other = (await client.post("/v1/view-tickets")).json()
    assert other["ticket_id"] != answer["ticket_id"]
    media = await client.get(answer["ad"]["media_url"])
    assert (media.status_code, media.headers["content-type"]) == (200, "audio/wav")
    assert gateway.sender.sent == []


async def test_ad_events_become_events_of_the_gateways_clock() -> None:
    """R-A1, R-A2: address, depth and position go on; the instant is ours, the claim a claim."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    ticket = gateway.ticket(visitor_id)
    events = [ad_event(ticket), ad_event(ticket, "midpoint", 7500)]
    events[1]["client_at"] = "2031-01-01T00:00:00+01:00"
    response = await client.post(
        "/v1/ad-events", json={"events": events}, headers={"traceparent": TRACE}
    )
    assert (response.status_code, response.json()) == (202, {"accepted": 2})
    (sent,) = gateway.sender.sent
    assert (sent.time, sent.traceparent) == (NOW, TRACE)
    assert [topic for topic, _, _ in sent.events] == [topics.AD_VIEW] * 2
    assert all(event_id.version == 7 for _, _, event_id in sent.events)
    first, second = gateway.sender.events
    assert (first.visitor_id, first.ticket, first.address) == (visitor_id, ticket, PEER)
    assert (first.kind.value, first.position_ms, first.client_at) == ("start", 0, None)
    assert (second.kind.value, second.position_ms) == ("midpoint", 7500)
    assert second.client_at == datetime(2030, 12, 31, 23, tzinfo=UTC)
    assert gateway.metric("gateway_produced_events_total", topic="ad-view",
                          outcome="acknowledged") == 2  # fmt: skip
    assert gateway.metric("gateway_kafka_wait_seconds_count") == 1


async def test_beacon_of_plain_text_is_taken() -> None:
    """navigator.sendBeacon("...", text) says text/plain;charset=UTF-8."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    body = json.dumps({"events": [ad_event(gateway.ticket(visitor_id))]})
    for kind in ("text/plain;charset=UTF-8", "application/json", "Application/JSON; charset=utf-8"):
        response = await client.post(
            "/v1/ad-events", content=body, headers={"content-type": kind, "origin": ORIGIN}
        )
        assert response.status_code == 202
    assert len(gateway.sender.events) == 3


async def test_202_waits_for_kafka() -> None:
    """No answer before the acknowledgement."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    gateway.sender.release = asyncio.Event()
    body = {"events": [ad_event(gateway.ticket(visitor_id))]}
    asking = asyncio.ensure_future(client.post("/v1/ad-events", json=body))
    done, _ = await asyncio.wait({asking}, timeout=0.2)
    assert not done
    gateway.sender.release.set()
    assert (await asyncio.wait_for(asking, 5)).status_code == 202


@pytest.mark.parametrize(
    ("path", "body", "topic"),
    [
        ("/v1/ad-events", None, "ad-view"),
        ("/v1/consents", CONSENT, "consent"),
        ("/v1/calls", NUMBERS, "call-request"),
        (f"/v1/calls/{CALL_ID}/hang-up", None, "call-command"),
    ],
)
async def test_without_kafka_nothing_is_accepted(path: str, body: Any, topic: str) -> None:
    """503 with Retry-After, counted; the same request succeeds once Kafka is back."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    if topic == "ad-view":
        body = {"events": [ad_event(gateway.ticket(visitor_id))]}
    gateway.sender.is_away = True
    response = await client.post(path, json=body)
    problem_of(response, 503, Reason.KAFKA_AWAY)
    assert int(response.headers["retry-after"]) >= 1
    assert gateway.metric("gateway_produced_events_total", topic=topic, outcome="refused") == 1
    gateway.sender.is_away = False
    assert (await client.post(path, json=body)).status_code == 202


async def test_one_bad_event_refuses_the_batch_and_is_named() -> None:
    """L3: signature, owner and expiry are checked at the door; nothing is half accepted."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    good = gateway.ticket(visitor_id)
    body, kid, mac = good.split(".")
    cases = [
        (f"{body}.{kid}.{mac[:-6]}AAAAAA", 422, Reason.TICKET_SIGNATURE_INVALID),
        (f"{body}.other.{mac}", 422, Reason.TICKET_SIGNATURE_INVALID),
        ("this is no ticket at all", 422, Reason.TICKET_MALFORMED),
        (gateway.ticket(uuid4()), 403, Reason.TICKET_FOREIGN),
        (gateway.ticket(visitor_id, expires_at=NOW), 422, Reason.TICKET_EXPIRED),
    ]
    for ticket, status, reason in cases:
        events = [ad_event(good), ad_event(good, "midpoint"), ad_event(ticket)]
        response = await client.post("/v1/ad-events", json={"events": events})
        assert problem_of(response, status, reason)["index"] == 2
        assert ticket not in response.text
    assert gateway.sender.sent == []


@pytest.mark.parametrize(
    ("events", "location", "kind"),
    [
        ([], ["body", "events"], "too_short"),
        ([{}] * 51, ["body", "events"], "too_long"),
        ([{"kind": "watched"}], ["body", "events", 0, "kind"], "enum"),
        ([{"position_ms": -1}], ["body", "events", 0, "position_ms"], "greater_than_equal"),
        ([{"position_ms": "7500"}], ["body", "events", 0, "position_ms"], "int_type"),
        ([{"position_ms": 1e12}], ["body", "events", 0, "position_ms"], None),
        ([{"client_at": "2026-11-22T18:00:00"}], ["body", "events", 0, "client_at"], None),
        ([{"ticket": "x" * 1025}], ["body", "events", 0, "ticket"], "string_too_long"),
        ([{"+49 30 23125 011": 1}], ["body", "events", 0], "extra_forbidden"),
    ],
    ids=[
        "none", "too-many", "kind", "negative", "text", "float", "no-offset", "long", "unknown"
    ],
)  # fmt: skip
async def test_bad_input_is_named_by_place_and_never_echoed(
    events: list[Any], location: list[Any], kind: str | None
) -> None:
    """Problem+json names the field and the kind of error; what was sent is not repeated."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    good = ad_event(gateway.ticket(visitor_id))
    batch = [good | event for event in events]
    response = await client.post("/v1/ad-events", json={"events": batch})
    problem = problem_of(response, 422, Reason.INVALID_REQUEST)
    (error,) = problem["errors"]
    assert error["location"] == location
    assert kind is None or error["kind"] == kind
    assert "23125" not in response.text
    assert good["ticket"] not in response.text
    assert gateway.sender.sent == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[" * 60_000, b'{"events": "\\ud800"}', b"\xff\xfe", b"1" * 5000,
     b"null"],
    ids=["empty", "open", "text", "deep", "surrogate", "bytes", "huge-number", "null"],
)  # fmt: skip
async def test_what_is_no_json_of_ours_is_a_problem(body: bytes) -> None:
    """Nothing a client sends makes a 500."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    for path in ("/v1/ad-events", "/v1/calls", "/v1/consents"):
        response = await client.post(
            path, content=body, headers={"content-type": "application/json"}
        )
        problem_of(response, 422, Reason.INVALID_REQUEST)


# ---------------------------------------------------------------------- media


async def test_media_is_served_in_parts() -> None:
    """Players seek with Range; ETag spares the second fetch."""
    gateway, whole = Gateway(), MEDIA["minutes-15s.wav"].content
    path = "/v1/media/minutes-15s.wav"
    async with gateway.client() as client:
        full = await client.get(path)
        assert (full.status_code, full.content) == (200, whole)
        for asked, first, last in [("0-99", 0, 99), ("1000-", 1000, len(whole) - 1),
                                   ("-44", len(whole) - 44, len(whole) - 1),
                                   (f"5-{len(whole) * 2}", 5, len(whole) - 1)]:  # fmt: skip
            part = await client.get(path, headers={"range": f"bytes={asked}"})
            assert part.status_code == 206
            assert part.content == whole[first : last + 1]
            assert part.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"
        for asked in (f"bytes={len(whole)}-", "bytes=9-5", "bytes=-0"):
            refused = await client.get(path, headers={"range": asked})
            problem_of(refused, 416, Reason.RANGE_NOT_SATISFIABLE)
            assert refused.headers["content-range"] == f"bytes */{len(whole)}"
        for asked in ("bytes=0-1,5-6", "lines=1-2", "bytes=-"):
            assert (await client.get(path, headers={"range": asked})).status_code == 200
        known = await client.get(path, headers={"if-none-match": full.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")
        head = await client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole)))
        problem_of(await client.get("/v1/media/other.wav"), 404, Reason.MEDIA_UNKNOWN)
        problem_of(await client.get("/v1/media/..%2Fads.json"), 404, Reason.ROUTE_UNKNOWN)


# ---------------------------------------------------------------------- balance, consent, calls


async def test_balance_comes_from_the_ledger() -> None:
    """The gateway owns no state: it asks, with the trace."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    gateway.services.balances[str(visitor_id)] = {"available_ms": 15_000, "reserved_ms": 0}
    response = await client.get("/v1/balance", headers={"traceparent": TRACE})
    assert (response.status_code, response.json()) == (
        200,
        {"available_ms": 15_000, "reserved_ms": 0},
    )
    (asked,) = gateway.services.seen
    assert asked.headers["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert gateway.metric("gateway_reads_total", service="ad_ledger", outcome="found") == 1


async def test_who_never_earned_has_nothing() -> None:
    """A visitor whom the ledger does not know has a balance of zero."""
    client, _ = Gateway().visitor()
    assert (await client.get("/v1/balance")).json() == {"available_ms": 0, "reserved_ms": 0}


@pytest.mark.parametrize(
    "broken",
    [{"status": 500}, {"raw": b"nonsense"}, {"raw": b"{}"}, {"raw": b"x" * 70_000}],
    ids=["error", "no-json", "other-json", "too-large"],
)
async def test_balance_is_a_problem_while_the_ledger_is_away(broken: dict[str, Any]) -> None:
    """503, never a wrong number."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    gateway.services.balances[str(visitor_id)] = {"available_ms": 1, "reserved_ms": 0}
    for name, value in broken.items():
        setattr(gateway.services, name, value)
    problem_of(await client.get("/v1/balance"), 503, Reason.LEDGER_AWAY)
    problem_of(
        await client.get(f"/v1/calls/{CALL_ID}"),
        503,
        Reason.CALL_CONTROL_AWAY,
    )
    assert gateway.metric("gateway_reads_total", service="ad_ledger", outcome="away") == 1


async def test_consent_goes_out_as_decided() -> None:
    """R-F2: purposes, versions, language and means; R-F3: withdrawing is the same request."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    for decision in ("given", "refused", "withdrawn", "objected"):
        choices = [{"purpose": "marketing", "decision": decision}]
        response = await client.post("/v1/consents", json=CONSENT | {"choices": choices})
        assert response.status_code == 202
        event = gateway.sender.events[-1]
        assert str(event.decision_id) == response.json()["decision_id"]
        assert (event.visitor_id, event.choices[0].decision.value) == (visitor_id, decision)
        assert (event.catalogue_version, event.wording_version) == ("2026-11.1", "2026-11.1")
    assert all(topic is topics.CONSENT for s in gateway.sender.sent for topic, _, _ in s.events)


async def test_a_choice_may_be_about_one_recipient_and_says_on_which_page() -> None:
    """R-F2: per purpose and recipient; a question without an answer is recorded too."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    choices = [
        {"purpose": "marketing", "decision": "given"},
        {"purpose": "marketing", "decision": "refused", "recipient": "adgrx-com"},
        {"purpose": "statistics", "decision": "dismissed"},
    ]
    asked = CONSENT | {"choices": choices, "page": "/minutes"}
    assert (await client.post("/v1/consents", json=asked)).status_code == 202
    event = gateway.sender.events[-1]
    assert [
        choice.model_dump(mode="json", exclude_none=True) for choice in event.choices
    ] == choices
    assert event.page == "/minutes"
    for wrong in ({"page": "/minutes?who=me"}, {"choices": [choices[1], choices[1]]}):
        assert (await client.post("/v1/consents", json=asked | wrong)).status_code == 422
    assert len(gateway.sender.sent) == 1


@pytest.mark.parametrize(
    ("body", "withdrawn"),
    [
        ({}, ["preferences", "statistics", "marketing"]),
        ({"purposes": ["marketing"], "page": "/privacy"}, ["marketing"]),
    ],
)
async def test_withdrawing_takes_one_step(body: dict[str, Any], withdrawn: list[str]) -> None:
    """R-F3, R-G7: nobody must know what they once agreed to."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    response = await client.post("/v1/consents/withdraw", json=body)
    assert response.status_code == 202
    (event,) = gateway.sender.events
    assert str(event.decision_id) == response.json()["decision_id"]
    assert event.visitor_id == visitor_id
    assert [(c.purpose.value, c.decision.value) for c in event.choices] == [
        (purpose, "withdrawn") for purpose in withdrawn
    ]
    assert (event.catalogue_version, event.page) == (None, body.get("page"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"purposes": ["marketing", "marketing"]}, Reason.PURPOSE_TWICE),
        ({"purposes": []}, Reason.INVALID_REQUEST),
        ({"purposes": ["necessary"]}, Reason.INVALID_REQUEST),
    ],
)
async def test_what_cannot_be_withdrawn_is_said(body: dict[str, Any], reason: Reason) -> None:
    """R-F3: what is necessary rests on the contract."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    problem_of(await client.post("/v1/consents/withdraw", json=body), 422, reason)
    assert gateway.sender.sent == []


@pytest.mark.parametrize(
    ("header", "n_events"), [({"Sec-GPC": "1"}, 1), ({"Sec-GPC": "0"}, 0), ({}, 0)]
)
async def test_global_privacy_control_is_an_objection(
    header: dict[str, str], n_events: int
) -> None:
    """R-G6, R-F4: recorded before the visit is opened, by its pseudonym, as a signal."""
    gateway = Gateway()
    async with gateway.client() as client:
        response = await client.post("/v1/visits", headers=header)
    assert response.status_code == 201
    value = response.headers["set-cookie"].partition("=")[2].partition(";")[0]
    visit = gateway.visits.read(value)
    assert isinstance(visit, Visit)
    assert len(gateway.sender.events) == n_events
    for event in gateway.sender.events:
        assert event.visitor_id == visit.visitor_id
        assert [(c.purpose.value, c.decision.value) for c in event.choices] == [
            ("marketing", "objected")
        ]
        assert (event.method.value, event.catalogue_version) == ("signal", None)


async def test_an_objection_that_cannot_be_recorded_opens_no_visit() -> None:
    """R-F4: nothing accepted is lost; the browser tries again."""
    gateway = Gateway()
    gateway.sender.is_away = True
    async with gateway.client() as client:
        response = await client.post("/v1/visits", headers={"Sec-GPC": "1"})
    problem_of(response, 503, Reason.KAFKA_AWAY)
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("path", "asked", "kind"),
    [
        ("/v1/consents", "/v1/visitors/{visitor}/consent", "application/json"),
        ("/v1/consents/receipts", "/v1/visitors/{visitor}/receipts", "application/ld+json"),
        ("/v1/consents/question", "/v1/visitors/{visitor}/question", "application/json"),
        ("/v1/consents/consent-mode", "/v1/visitors/{visitor}/consent-mode", "application/json"),
        ("/v1/consents/catalogue?language=de", "/v1/catalogue", "application/json"),
    ],
)
async def test_what_consent_knows_is_read_for_this_visitor(
    path: str, asked: str, kind: str
) -> None:
    """R-F1, R-F3: what I agreed to, my receipts; never somebody else's."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    gateway.services.consent = b'{"b":1, "a":2}'
    response = await client.get(path)
    assert (response.status_code, response.content) == (200, b'{"b":1, "a":2}')
    assert response.headers["content-type"] == kind
    assert [r.url.path for r in gateway.services.seen] == [asked.format(visitor=visitor_id)]


async def test_consent_away_is_said() -> None:
    """R-F3: 503, nothing made up."""
    client, _ = Gateway().visitor()
    problem_of(await client.get("/v1/consents"), 503, Reason.CONSENT_AWAY)
    problem_of(await client.get("/v1/consents/catalogue?language=fr"), 422, Reason.INVALID_REQUEST)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"choices": [{"purpose": "marketing", "decision": "given"}] * 2}, Reason.PURPOSE_TWICE),
        ({"choices": []}, Reason.INVALID_REQUEST),
        ({"method": "email"}, Reason.INVALID_REQUEST),
        ({"language": "deutsch"}, Reason.INVALID_REQUEST),
        ({"catalogue_version": "Version 1"}, Reason.INVALID_REQUEST),
    ],
    ids=["purpose-twice", "none", "by-email", "language", "version"],
)
async def test_unclear_consent_is_refused(changed: dict[str, Any], reason: Reason) -> None:
    """R-F2: what cannot be proved later is not taken."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    problem_of(await client.post("/v1/consents", json=CONSENT | changed), 422, reason)
    assert gateway.sender.sent == []


async def test_call_request_goes_out_as_typed() -> None:
    """R-A1: address and both numbers; the id is ours."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    response = await client.post("/v1/calls", json=NUMBERS)
    assert response.status_code == 202
    (event,) = gateway.sender.events
    assert str(event.call_id) == response.json()["call_id"]
    assert event.call_id.version == 7
    assert (event.visitor_id, event.address) == (visitor_id, PEER)
    assert event.callback_number == NUMBERS["callback_number"]
    assert event.destination_number == NUMBERS["destination_number"]
    assert "23125" not in response.text


@pytest.mark.parametrize("number", ["", "0" * 41, "030\x00", "030\n", 493023125011, None], ids=repr)
async def test_number_that_no_one_typed_is_refused_unrepeated(number: Any) -> None:
    """Only the form is checked here; the number policy is call_control's."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    response = await client.post("/v1/calls", json=NUMBERS | {"destination_number": number})
    problem = problem_of(response, 422, Reason.INVALID_REQUEST)
    assert problem["errors"][0]["location"] == ["body", "destination_number"]
    assert "23125" not in response.text
    assert gateway.sender.sent == []


async def test_call_status_is_for_its_visitor_only() -> None:
    """Someone else's call is as unknown as none."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    stranger, _ = gateway.visitor()
    gateway.services.calls[CALL_ID] = {
        "owner": str(visitor_id), "call_id": CALL_ID, "status": "talking", "reason": None,
        "reserved_ms": 15_000, "talk_ms": None, "connected_at": "2026-11-22T18:00:01Z",
        "ended_at": None,
    }  # fmt: skip
    mine = await client.get(f"/v1/calls/{CALL_ID}")
    assert mine.status_code == 200
    assert mine.json() == {k: v for k, v in gateway.services.calls[CALL_ID].items() if k != "owner"}
    problem_of(await stranger.get(f"/v1/calls/{CALL_ID}"), 404, Reason.CALL_UNKNOWN)
    problem_of(await client.get(f"/v1/calls/{uuid4()}"), 422, Reason.INVALID_REQUEST)
    problem_of(await client.get("/v1/calls/1"), 422, Reason.INVALID_REQUEST)


async def test_hang_up_is_an_order_about_ones_own_call() -> None:
    """The visitor goes with the order; call control ignores one about another's call."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    response = await client.post(f"/v1/calls/{CALL_ID}/hang-up")
    assert response.status_code == 202
    ((topic, event, _),) = gateway.sender.sent[0].events
    assert topic is topics.CALL_COMMAND
    assert (event.call_id, event.visitor_id) == (UUID(CALL_ID), visitor_id)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- limits


async def test_foreign_origin_is_refused_on_every_method() -> None:
    """CSRF: also for the beacon, which needs no preflight."""
    gateway = Gateway()
    client, visitor_id = gateway.visitor()
    body = json.dumps({"events": [ad_event(gateway.ticket(visitor_id))]})
    for origin in ("https://evil.example", "null"):
        headers = {"origin": origin, "content-type": "text/plain"}
        response = await client.post("/v1/ad-events", content=body, headers=headers)
        problem_of(response, 403, Reason.ORIGIN_FOREIGN)
        problem_of(await client.get("/v1/balance", headers=headers), 403, Reason.ORIGIN_FOREIGN)
    assert gateway.sender.sent == []


async def test_body_is_cut_off_while_it_is_read() -> None:
    """64 kB: refused by its declared length unread, and in the middle where none is declared."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    n_chunks = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal n_chunks
        while n_chunks < 1000:
            n_chunks += 1
            yield b"x" * 1024

    headers = {"content-type": "application/json"}
    response = await client.post("/v1/calls", content=endless(), headers=headers)
    problem_of(response, 413, Reason.BODY_TOO_LARGE)
    assert n_chunks <= 65 + 4 * 64, "read to the limit; a little more is thrown away, not kept"
    declared = await client.post("/v1/calls", content=b"x" * 65_537, headers=headers)
    problem_of(declared, 413, Reason.BODY_TOO_LARGE)
    largest = await client.post("/v1/calls", content=b" " * 65_536, headers=headers)
    problem_of(largest, 422, Reason.INVALID_REQUEST)


async def test_slow_body_and_slow_answer_are_cut_off() -> None:
    """10 s for a request: 408 when it does not arrive, 503 when it is not answered."""
    gateway = Gateway(request_timeout_s=0.2)
    client, _ = gateway.visitor()

    async def dripping() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    headers = {"content-type": "application/json"}
    slow = await client.post("/v1/calls", content=dripping(), headers=headers)
    problem_of(slow, 408, Reason.REQUEST_TOO_SLOW)
    gateway.sender.release = asyncio.Event()
    unanswered = await client.post("/v1/calls", json=NUMBERS)
    problem_of(unanswered, 503, Reason.TIME_EXCEEDED)


@pytest.mark.parametrize("kind", ["text/plain", "text/html", "multipart/form-data", ""])
async def test_other_content_types_are_refused(kind: str) -> None:
    """A form of another page cannot be taken for JSON."""
    client, _ = Gateway().visitor()
    response = await client.post("/v1/calls", content=b"{}", headers={"content-type": kind})
    problem_of(response, 415, Reason.MEDIA_TYPE_UNSUPPORTED)


async def test_rate_per_address_holds_over_all_visitors() -> None:
    """429 with a wait that is enough; another address is not held up."""
    gateway = Gateway(address_burst=3, address_rate_per_s=0.5)
    for _ in range(3):
        async with gateway.client() as client:
            assert (await client.post("/v1/visits")).status_code == 201
    async with gateway.client() as client, gateway.client("198.51.100.9") as neighbour:
        response = await client.post("/v1/visits")
        problem_of(response, 429, Reason.RATE_EXCEEDED)
        assert response.headers["retry-after"] == "2"
        assert (await neighbour.post("/v1/visits")).status_code == 201
        gateway.clock.advance(2)
        assert (await client.post("/v1/visits")).status_code == 201


async def test_rate_per_visitor_holds_over_all_addresses() -> None:
    """A pseudonym carried from address to address has one rate."""
    gateway = Gateway(visitor_burst=2, visitor_rate_per_s=0.5)
    client, _ = gateway.visitor()
    other = gateway.client("198.51.100.9")
    other.cookies.set("visit", client.cookies["visit"], domain="minutes.example")
    assert (await client.post("/v1/view-tickets")).status_code == 201
    assert (await other.post("/v1/view-tickets")).status_code == 201
    response = await client.post("/v1/view-tickets")
    problem_of(response, 429, Reason.RATE_EXCEEDED)
    gateway.clock.advance(int(response.headers["retry-after"]))
    assert (await client.post("/v1/view-tickets")).status_code == 201


async def test_forwarded_address_counts_only_behind_our_proxy() -> None:
    """R-A1: off by default."""
    # a visitor's own line first, the proxy's below it
    forged = [("x-forwarded-for", "192.0.2.66"), ("x-forwarded-for", "198.51.100.1")]
    for proxies, address in (("", PEER), ("203.0.113.0/24, 10.0.0.0/8", "198.51.100.1")):
        gateway = Gateway(trusted_proxies=proxies)
        client, _ = gateway.visitor()
        assert (await client.post("/v1/calls", json=NUMBERS, headers=forged)).status_code == 202
        assert gateway.sender.events[0].address == address


# ---------------------------------------------------------------------- the rest


async def test_unknown_route_and_method_are_problems() -> None:
    """Everything is problem+json, the framework's own refusals too."""
    client, _ = Gateway().visitor()
    problem_of(await client.get("/"), 404, Reason.ROUTE_UNKNOWN)
    problem_of(await client.get("/docs"), 404, Reason.ROUTE_UNKNOWN)
    response = await client.put("/v1/balance")
    problem_of(response, 405, Reason.METHOD_NOT_ALLOWED)
    assert response.headers["allow"] == "GET"


async def test_a_bug_is_a_problem_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """500 with a reason; nothing of the error goes out."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    gateway.sender.error = RuntimeError("+49 30 23125 011")
    response = await client.post("/v1/calls", json=NUMBERS)
    problem_of(response, 500, Reason.INTERNAL_ERROR)
    assert "23125" not in response.text + capsys.readouterr().out
    assert gateway.metric("gateway_requests_total", route="/v1/calls", method="POST",
                          status="500", reason="internal_error") == 1  # fmt: skip


async def test_metrics_count_by_route_and_never_by_path() -> None:
    """Labels are closed: a path that someone makes up is `unknown`."""
    gateway = Gateway()
    client, _ = gateway.visitor()
    await client.get(f"/v1/calls/{CALL_ID}")
    await client.get("/v1/+493023125011")
    await client.request("BREW", "/v1/balance")
    text = str([*gateway.registry.collect()])
    assert CALL_ID not in text
    assert "23125" not in text
    assert gateway.metric("gateway_requests_total", route="/v1/calls/{call_id}", method="GET",
                          status="404", reason="call_unknown") == 1  # fmt: skip
    assert gateway.metric("gateway_requests_total", route="unknown", method="GET",
                          status="404", reason="route_unknown") == 1  # fmt: skip
    assert gateway.metric("gateway_request_seconds_count", route="unknown") == 1
    assert "BREW" not in text


async def test_every_answer_forbids_what_a_browser_might_guess() -> None:
    """No caching, no sniffing, no referrer; also on refusals."""
    client, _ = Gateway().visitor()
    for response in (await client.get("/v1/balance"), await client.get("/nowhere")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["referrer-policy"] == "no-referrer"


async def test_openapi_describes_every_route_problem_and_example() -> None:
    """OpenAPI 3.1, served; each problem under its media type with an example of each reason."""
    gateway = Gateway()
    async with gateway.client() as client:
        document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert len(document["paths"]) == 16
    shown: set[str] = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            for status, response in operation["responses"].items():
                if int(status) < 400:
                    continue
                (kind, content), *others = response["content"].items()
                assert (kind, others) == ("application/problem+json", [])
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                for reason, example in content["examples"].items():
                    assert example["value"]["status"] == int(status)
                    shown.add(reason)
            assert {"403", "429", "500"} <= set(operation["responses"])
    assert "HTTPValidationError" not in document["components"]["schemas"]
    beacon = document["paths"]["/v1/ad-events"]["post"]["requestBody"]["content"]
    assert set(beacon) == {"application/json", "text/plain"}
    for path, operations in document["paths"].items():
        security = next(iter(operations.values())).get("security", [{}])
        assert ({} in security) is (path in {"/v1/visits", "/v1/media/{name}"}), path
    # what belongs to no route of the document
    assert {reason.value for reason in Reason} - shown == {
        "client_gone", "method_not_allowed",
    }  # fmt: skip


def test_every_reason_has_its_status_and_title() -> None:
    """The closed list is complete."""
    assert set(KINDS) == set(Reason)
