"""The classification's own arithmetic (D5)."""

import pytest

from schemas.retention import DataKind
from services.privacy.declare import Column, PeriodStart, Table, gaps, personal, plain, undeclared

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


def test_a_personal_column_without_kind_or_start_cannot_be_written():
    """D5, R-C1."""
    with pytest.raises(AssertionError):
        Column(personal=True)
    with pytest.raises(AssertionError):
        Column(personal=False, kind=DataKind.AD_USE, start=PeriodStart.EVENT)
