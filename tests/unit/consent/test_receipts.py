"""Receipts that others can read and verify (R-F2, R-F3)."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent import receipts
from services.consent.domain import Verdict
from services.consent.receipts import Recorded
from services.privacy.chain import SigningKeys, VerifyKeys

KEYS = SigningKeys({"k1": bytes(range(32)).hex()})
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
CONTROLLER = "https://callpartner.de/"


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
    )


def test_a_decision_has_one_receipt_with_all_its_purposes() -> None:
    """R-F2: who, what, when, how, by which version."""
    rows = [recorded(1), recorded(1, Verdict.REFUSED, "statistics")]
    (signed,) = receipts.receipts(rows, controller=CONTROLLER, keys=KEYS)
    said = json.loads(receipts.as_json(signed))["receipt"]
    assert said["@type"] == "dpv:ConsentReceipt"
    assert said["dct:issued"] == "2026-11-23T12:01:00.000000+00:00"
    assert said["dpv:hasDataSubject"] == {"@id": f"urn:uuid:{UUID(int=99)}"}
    assert said["dpv:hasNotice"]["dct:identifier"] == "2026-11.1"
    assert [(p["dct:title"], p["dpv:hasConsentStatus"]["@id"]) for p in said["dpv:hasProcess"]] == [
        ("marketing", "dpv:ConsentGiven"),
        ("statistics", "dpv:ConsentRefused"),
    ]


@pytest.mark.parametrize("verdict", Verdict)
def test_a_withdrawal_gets_a_termination_receipt(verdict: Verdict) -> None:
    """R-F3."""
    first, second = receipts.receipts(
        [recorded(2, verdict), recorded(1)], controller=CONTROLLER, keys=KEYS
    )
    assert first["receipt"]["dct:type"] == "decision"
    ends = verdict in {Verdict.WITHDRAWN, Verdict.OBJECTED}
    assert second["receipt"]["dct:type"] == ("termination" if ends else "decision")


def test_a_receipt_verifies_as_it_was_handed_out_and_not_otherwise() -> None:
    """R-F2: read back from its JSON, without us; one word changed and it does not."""
    (signed,) = receipts.receipts([recorded(1)], controller=CONTROLLER, keys=KEYS)
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
