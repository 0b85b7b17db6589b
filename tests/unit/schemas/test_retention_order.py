"""What an order's action needs and may not carry: a misfit is refused at the door (R-D3, R-G3)."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.retention import VISITORS_MAX, DataKind, RetentionOrderV1

VISITOR = "a0000000-5a3c-4f1e-9b7d-000000000000"
PROTECTION = "019aabce-0000-7000-8000-00000000000a"


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
