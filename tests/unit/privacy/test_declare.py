"""The classification's own arithmetic (D5)."""

from typing import Any

import pytest

from schemas.retention import DataKind
from services.privacy.declare import (
    USUALLY,
    Item,
    LegalBasis,
    PeriodStart,
    Purpose,
    Table,
    gaps,
    metrics,
    personal,
    plain,
    undeclared,
)

ACTUAL = [("ad_view", "view_id"), ("ad_view", "address")]
ADDRESS = personal("address", kind=DataKind.IP_ADDRESS, start=PeriodStart.EVENT)


def test_a_complete_classification_has_no_gaps():
    """D5."""
    assert gaps(ACTUAL, {"ad_view": {**plain("view_id"), **ADDRESS}}) == []


def test_a_column_nobody_classified_is_named():
    """D5."""
    assert gaps(ACTUAL, {"ad_view": plain("view_id")}) == ["ad_view.address is not classified"]


def test_an_entry_without_its_column_is_named():
    """D5: a classification that describes what is gone hides what is there."""
    classification = {"ad_view": {**plain("view_id old"), **ADDRESS}}
    assert gaps(ACTUAL, classification) == ["ad_view.old does not exist"]


def test_a_personal_table_that_no_order_reaches_is_named():
    """D1."""
    classification = {"ad_view": ADDRESS, "tariff": plain("version")}
    assert undeclared(classification, []) == ["ad_view"]
    reached = Table(name="ad_view", kind=DataKind.AD_USE, day_column="view_day")
    assert undeclared(classification, [reached]) == []


WHOLE: dict[str, Any] = {
    "kind": DataKind.AD_USE,
    "start": PeriodStart.EVENT,
    "purpose": Purpose.AD_FINANCED_USE,
    "basis": LegalBasis.CONTRACT,
}


@pytest.mark.parametrize("fact", WHOLE)
def test_an_item_has_all_four_facts_exactly_if_it_is_personal(fact):
    """D5, R-C1: what has no purpose or no legal basis is not stored, so it cannot be declared."""
    Item(personal=True, **WHOLE)
    Item(personal=False)
    with pytest.raises(AssertionError):
        Item(personal=True, **{name: value for name, value in WHOLE.items() if name != fact})
    with pytest.raises(AssertionError):
        Item(personal=False, **{fact: WHOLE[fact]})


def test_every_kind_of_data_has_its_usual_purpose_and_basis():
    """R-C1."""
    assert set(USUALLY) == set(DataKind)


def test_an_entry_may_have_another_purpose_than_its_kind():
    """R-C1."""
    item = personal(
        "visitor_id", kind=DataKind.AD_USE, start=PeriodStart.EVENT, purpose=Purpose.CONSENT
    )["visitor_id"]
    assert (item.purpose, item.basis) == (Purpose.CONSENT, LegalBasis.CONTRACT)


def test_a_label_is_never_personal():
    """R-D5: a metric outlives every period."""
    (labels,) = metrics({"calls_ended": "reason outcome"}).values()
    assert labels == plain("reason outcome")
