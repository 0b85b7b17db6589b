"""Receipts that others can read and verify (R-F2, R-F3)."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent import receipts
from services.consent.domain import Verdict
from services.consent.receipts import Recorded
from services.privacy.chain import SigningKeys, VerifyKeys
from tests.support.issuing import issuer

KEYS = SigningKeys({"k1": bytes(range(32)).hex()})
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
ISSUER = issuer(KEYS)
TERMS_FILE = Path(__file__).with_name("dpv_terms.json")
TERMS = json.loads(TERMS_FILE.read_text(encoding="utf-8"))["terms"]
SCHEDULE = Path(__file__).parents[3] / "services" / "retention" / "schedule.json"


def recorded(n: int, verdict: Verdict = Verdict.GIVEN, purpose: str = "marketing") -> Recorded:
    return Recorded(
        decision_id=UUID(int=n),
        proof_id=UUID(int=99),
        purpose=purpose,
        verdict=verdict,
        catalogue_version="2026-11.1",
        wording_version="2026-11.1",
        language="de",
        method="banner",
        decided_at=AT + timedelta(minutes=n),
        ends_on=date(2026, 11, 29),
        named=frozenset({"adgrx-com", "stickyadstv-com"} if purpose == "marketing" else ()),
        shown_hash="ab" * 32,
    )


def record_of(signed: dict[str, Any]) -> dict[str, Any]:
    """Return the record in a receipt that was read back from its bytes."""
    record: dict[str, Any] = json.loads(receipts.as_json(signed))["receipt"][
        "dpv:hasRecordOfActivity"
    ]
    return record


def test_a_decision_has_one_receipt_with_all_its_purposes() -> None:
    """R-F2: who, what, when, how, by which version; what the contract needs is no consent."""
    rows = [
        recorded(1),
        recorded(1, Verdict.REFUSED, "statistics"),
        recorded(1, Verdict.GIVEN, "necessary"),
    ]
    (signed,) = receipts.receipts(rows, ISSUER, AT)
    said = json.loads(receipts.as_json(signed))["receipt"]
    assert said["@type"] == "dpv:ConsentReceipt"
    record = record_of(signed)
    assert record["dct:issued"]["@value"] == "2026-11-23T12:01:00.000000+00:00"
    assert record["dpv:hasDataSubject"] == {"@id": f"urn:uuid:{UUID(int=99)}"}
    assert record["dpv:hasNotice"]["dct:identifier"] == "2026-11.1"
    assert record["dpv:hasNotice"]["schema:sha256"] == "ab" * 32
    assert [
        (
            process["dct:title"],
            process.get("dpv:hasConsentStatus", {}).get("@type"),
            process["dpv:hasLegalBasis"]["@id"],
        )
        for process in record["dpv:hasProcess"]
    ] == [
        ("marketing", "dpv:ConsentGiven", "eu-gdpr:A6-1-a"),
        ("necessary", None, "eu-gdpr:A6-1-b"),
        ("statistics", "dpv:ConsentRefused", "eu-gdpr:A6-1-a"),
    ]


REQUIRED = {
    "record": (
        "@type dct:identifier dct:conformsTo dpv:hasDataSubject dpv:hasDataController"
        " dpv:hasConsentControl dpv:hasJurisdiction dpv:hasRight dpv:hasProcess"
        " dpv:hasStorageCondition"
    ),
    "process": (
        "@type dpv:hasPurpose dpv:hasPersonalData dpv:hasRecipient dpv:hasLegalBasis"
        " dpv:hasStorageCondition dpv:isIndicatedBy dpv:isIndicatedAtTime dpv:hasIndicationMethod"
    ),
}
"""What the guide says must be there, by where it stands here."""


def everything() -> list[dict[str, Any]]:
    """Return receipts of each verdict, purpose and kind of recipient, and of an old consent."""
    rows = []
    for n, (verdict, purpose) in enumerate(product(Verdict, receipts.PURPOSE)):
        one = recorded(n, verdict, purpose)
        rows += [one, replace(one, recipient="ad-partner"), replace(one, recipient="gone-one")]
    denied = replace(recorded(91, Verdict.WITHDRAWN), wording_version=None, shown_hash=None)
    rows.append(replace(denied, catalogue_version=None, language=None, page="/privacy"))
    old = replace(recorded(92), catalogue_version=None, named=frozenset(), method="paper")
    rows.append(replace(old, decided_at=datetime(2017, 3, 1, tzinfo=UTC), language=None))
    return receipts.receipts(rows, ISSUER, AT)


def test_each_receipt_has_what_the_profile_requires() -> None:
    """R-F2: recipients, data, periods, withdrawal, rights, contact; nothing is left empty."""
    for signed in everything():
        record = record_of(signed)
        assert set(REQUIRED["record"].split()) <= set(record)
        controller = record["dpv:hasDataController"]
        assert controller["dpv:hasContact"] == ISSUER.controller.contact
        assert record["dpv:hasConsentControl"]["dpv:isExercisedAt"]
        rights = {right["@type"][1] for right in record["dpv:hasRight"]}
        assert {"eu-gdpr:A7-3", "eu-gdpr:A15", "eu-gdpr:A17", "eu-gdpr:A77"} <= rights
        for process in record["dpv:hasProcess"]:
            assert set(REQUIRED["process"].split()) <= set(process)
            assert process["dpv:hasRecipient"]
            assert process["dpv:hasPersonalData"]
        for value in leaves(signed):
            assert value not in (None, "", [], {})


@pytest.mark.parametrize("contact", ["https://callpartner.de/", "mailto:office@example.org"])
def test_a_place_to_withdraw_is_named_once(contact: str) -> None:
    """R-F2: also where the page is the contact."""
    controller = replace(ISSUER.controller, contact=contact, page="https://callpartner.de/")
    (signed,) = receipts.receipts([recorded(1)], replace(ISSUER, controller=controller), AT)
    places = record_of(signed)["dpv:hasConsentControl"]["dpv:isExercisedAt"]
    assert sorted(places) == sorted({contact, "https://callpartner.de/"})


def leaves(value: Any) -> Iterator[Any]:
    """Return all values below a value."""
    yield value
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in below:
        yield from leaves(each)


def words(value: Any) -> Iterator[str]:
    """Return the names of a document that JSON-LD expands: keys, types, ids."""
    if isinstance(value, list):
        for each in value:
            yield from words(each)
    if not isinstance(value, dict):
        return
    for name, each in value.items():
        if name == "@context":
            continue
        yield name
        if name in ("@type", "@id"):
            yield from [each] if isinstance(each, str) else each
        yield from words(each)


def test_each_term_is_one_of_the_vocabulary() -> None:
    """R-F2: others can read it: terms of DPV 2.3, looked up there; and no list that says more."""
    used: dict[str, set[str]] = {}
    for signed in everything():
        for word in words(json.loads(receipts.as_json(signed))["receipt"]):
            prefix, is_name, name = word.partition(":")
            if is_name and prefix not in ("urn", "https", "tag"):
                assert prefix in receipts.CONTEXT, word
                used.setdefault(prefix, set()).add(name)
            elif word.startswith(receipts.PROFILE):
                used.setdefault("dpv-27560", set()).add(word.removeprefix(receipts.PROFILE))
    assert {prefix: sorted(names) for prefix, names in sorted(used.items()) if prefix in TERMS} == {
        prefix: sorted(names) for prefix, names in TERMS.items()
    }
    assert used.keys() - TERMS.keys() <= {"dct", "rdf", "schema", "xsd"}


def test_countries_of_recipients_are_terms_too() -> None:
    """R-E1: whoever the register names with a country."""
    countries = {one.country for one in ISSUER.register.recipients if one.country}
    assert countries <= set(json.loads(TERMS_FILE.read_text(encoding="utf-8"))["countries"])


def test_what_the_register_lets_anybody_have_is_told() -> None:
    """R-F1, R-E1: each field that rests on a consent is a category of that purpose's receipt."""
    for recipient in ISSUER.register.recipients:
        for permission in recipient.permissions:
            if permission.consent is not None:
                told = {receipts.DATA_OF_FIELD[name] for name in permission.fields}
                assert told <= set(receipts.DATA[permission.consent.value])


def test_the_periods_are_those_of_the_schedule() -> None:
    """R-D5, R-D10, R-H1: what a receipt promises is what is enforced."""
    rules = {r["kind"]: r for r in json.loads(SCHEDULE.read_text(encoding="utf-8"))["rules"]}
    assert rules["consent_record"]["period"] == {
        "unit": "calendar_years",
        "years": receipts.RECORD_KEPT_YEARS,
    }
    assert rules["ad_use"]["period"].items() >= {"unit": "hours", "hours": 7 * 24}.items()
    assert receipts.DATA_KEPT_FOR == "P7D"


def test_the_newest_receipts_come_as_far_as_there_is_room() -> None:
    """R-F2: the gateway hands on a megabyte; the oldest are left out, whole."""
    texts = [bytes([n]) * 300_000 for n in range(5)]
    assert receipts.newest(texts) == texts[2:]
    assert receipts.newest([]) == []


@pytest.mark.parametrize("verdict", Verdict)
def test_a_withdrawal_gets_a_termination_receipt(verdict: Verdict) -> None:
    """R-F3."""
    first, second = receipts.receipts([recorded(2, verdict), recorded(1)], ISSUER, AT)
    assert first["receipt"]["dct:type"] == "decision"
    ends = verdict in {Verdict.WITHDRAWN, Verdict.OBJECTED}
    assert second["receipt"]["dct:type"] == ("termination" if ends else "decision")


def test_a_receipt_verifies_as_it_was_handed_out_and_not_otherwise() -> None:
    """R-F2: read back from its JSON, without us; one word changed and it does not."""
    (signed,) = receipts.receipts([recorded(1)], ISSUER, AT)
    verify_keys = VerifyKeys(KEYS.public())
    text = receipts.as_json(signed).decode()
    assert receipts.verify(json.loads(text), verify_keys)
    for old, new in (("ConsentGiven", "ConsentRefused"), ("12:01", "12:02"), ("k1", "k2")):
        assert old in text
        assert not receipts.verify(json.loads(text.replace(old, new)), verify_keys)
    assert not receipts.verify({}, verify_keys)
    assert not receipts.verify({**json.loads(text), "signature": "zz"}, verify_keys)


@given(st.dictionaries(st.sampled_from(["marketing", "statistics", "preferences"]), st.booleans()))
def test_consent_mode_grants_only_what_is_in_force(in_force: dict[str, bool]) -> None:
    """R-F4: every key of version 2; undecided is denied."""
    keys = receipts.consent_mode(in_force)
    assert len(keys) == 7
    for name in ("ad_storage", "ad_user_data", "ad_personalization"):
        assert (keys[name] == "granted") == in_force.get("marketing", False)
    assert (keys["analytics_storage"] == "granted") == in_force.get("statistics", False)
    assert (keys["functionality_storage"] == "granted") == in_force.get("preferences", False)
