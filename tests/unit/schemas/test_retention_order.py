"""What an order's action needs and may not carry: a misfit is refused at the door (R-D3, R-G3)."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.record import FITTING, Happening, RecordV1
from schemas.retention import RECORDS_MAX, VISITORS_MAX, DataKind, DocumentClass, RetentionOrderV1

VISITOR = "a0000000-5a3c-4f1e-9b7d-000000000000"
PROTECTION = "019aabce-0000-7000-8000-00000000000a"

RECORDS = {"record_ids": [PROTECTION], "holder": "crm", "kind": "contract"}


def order(action: str, **fields: Any) -> RetentionOrderV1:
    base = {
        "order_id": "019aabce-0000-7000-8000-000000000001",
        "kind": "ad_use",
        "action": action,
        "before_day": "2026-11-24",
        "as_of": "2026-11-22T18:00:00Z",
    }
    return RetentionOrderV1.model_validate_json(json.dumps(base | fields))


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("drop", {}),
        ("erase", {"visitor_ids": [VISITOR], "other_kinds": ["ip_address"]}),
        ("hold", {"protection_id": PROTECTION, "visitor_ids": [VISITOR]}),
        ("hold", {"protection_id": PROTECTION, "from_day": "2026-11-20", "kind": "consent_record"}),
        ("restrict", {"protection_id": PROTECTION, "visitor_ids": [VISITOR]}),
        ("release", {"protection_id": PROTECTION}),
        ("unrestrict", {"protection_id": PROTECTION}),
        ("drop", {"record_ids": [PROTECTION], "holder": "crm", "kind": "contact"}),
        ("restrict", {"record_ids": [PROTECTION], "holder": "crm", "kind": "contract"}),
    ],
)
def test_what_each_action_needs_is_enough(action: str, fields: dict[str, Any]) -> None:
    """R-D3, R-G3, R-G4."""
    found = order(action, **fields)
    assert order(action, **fields) == found
    assert RetentionOrderV1.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("action", "fields", "said"),
    [
        ("drop", {"visitor_ids": [VISITOR]}, "must not carry visitor_ids"),
        ("drop", {"protection_id": PROTECTION}, "protection_id belongs"),
        ("drop", {"other_kinds": ["ip_address"]}, "must not carry other_kinds"),
        ("drop", {"from_day": "2026-11-20"}, "must not carry from_day"),
        ("erase", {}, "needs visitor_ids"),
        ("erase", {"visitor_ids": [VISITOR], "protection_id": PROTECTION}, "protection_id belongs"),
        ("erase", {"visitor_ids": [VISITOR], "kind": "consent_record"}, "no consent_record"),
        (
            "erase",
            {"visitor_ids": [VISITOR], "other_kinds": ["consent_record"]},
            "no consent_record",
        ),
        ("erase", {"visitor_ids": [VISITOR], "from_day": "2026-11-20"}, "must not carry from_day"),
        ("hold", {"visitor_ids": [VISITOR]}, "protection_id belongs"),
        ("hold", {"protection_id": PROTECTION, "from_day": "2026-11-24"}, "must lie before"),
        ("restrict", {"protection_id": PROTECTION}, "needs visitor_ids"),
        ("release", {}, "protection_id belongs"),
        ("release", {"protection_id": PROTECTION, "visitor_ids": [VISITOR]}, "must not carry"),
        ("unrestrict", {"protection_id": PROTECTION, "other_kinds": ["web_use"]}, "must not carry"),
        ("drop", {"record_ids": [PROTECTION], "kind": "contact"}, "stand together"),
        ("drop", {"holder": "crm", "kind": "contact"}, "stand together"),
        ("erase", {**RECORDS, "visitor_ids": [VISITOR]}, "must not carry record_ids"),
        ("hold", {**RECORDS, "protection_id": PROTECTION}, "must not carry record_ids"),
        ("drop", {**RECORDS, "kind": "ad_use"}, "ad_use is not kept as records"),
        ("restrict", {**RECORDS, "visitor_ids": [VISITOR]}, "names no visitors"),
        ("restrict", {**RECORDS, "protection_id": PROTECTION}, "names no visitors"),
        ("restrict", {**RECORDS, "names_gone": True}, "names no visitors"),
        ("drop", {**RECORDS, "other_kinds": ["contact"]}, "names no visitors"),
    ],
)
def test_a_misfit_is_refused_and_says_why(action: str, fields: dict[str, Any], said: str) -> None:
    """R-D9: nobody has to guess what an order meant; an erasure of nobody would be all or none."""
    with pytest.raises(ValidationError, match=said):
        order(action, **fields)


def test_an_order_names_all_its_kinds_once() -> None:
    """R-G3."""
    found = order("erase", visitor_ids=[VISITOR], other_kinds=["ad_use", "ip_address"])
    assert found.kinds == {DataKind.AD_USE, DataKind.IP_ADDRESS}


def test_the_largest_order_fits_a_record_and_a_larger_one_is_refused() -> None:
    """R-G3: orders of more visitors are more orders."""
    with pytest.raises(ValidationError, match="too_long"):
        order("erase", visitor_ids=[VISITOR] * (VISITORS_MAX + 1))
    with pytest.raises(ValidationError, match="too_long"):
        order("drop", **{**RECORDS, "record_ids": [PROTECTION] * (RECORDS_MAX + 1)})


def record(kind: DataKind, happened: Happening, **fields: Any) -> RecordV1:
    base = {
        "record_id": PROTECTION,
        "kind": kind,
        "holder": "crm",
        "happened": happened,
        "happened_on": "2026-11-20",
    }
    return RecordV1.model_validate_json(json.dumps(base | fields))


@pytest.mark.parametrize("kind", DataKind)
@pytest.mark.parametrize("happened", Happening)
def test_a_record_is_told_only_what_can_happen_to_its_kind(
    kind: DataKind, happened: Happening
) -> None:
    """R-D5b to R-D8: a word that means nothing for a kind would never make it due."""
    fields: dict[str, Any] = {}
    if kind is DataKind.CONTRACT:
        fields = {"document_class": DocumentClass.BOOKS}
    if happened in FITTING.get(kind, frozenset()):
        assert record(kind, happened, **fields).happened is happened
    else:
        with pytest.raises(ValidationError, match=r"does not happen to|not kept as records"):
            record(kind, happened, **fields)


def test_exactly_a_contracts_record_has_a_class() -> None:
    """R-D6: without it nobody could say how long the law keeps it."""
    with pytest.raises(ValidationError, match="document_class belongs to contract"):
        record(DataKind.CONTRACT, Happening.CONTRACT_ENDED)
    with pytest.raises(ValidationError, match="document_class belongs to contract"):
        record(DataKind.CONTACT, Happening.PURPOSE_FULFILLED, document_class="books")
