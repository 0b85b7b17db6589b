"""What logs may hold is classified, and nothing personal but ids of short life (D5, R-D5)."""

import pytest

from schemas.retention import DataKind
from services.chassis.logs import ALLOWED_FIELDS
from services.privacy.declare import PeriodStart, gaps, personal, plain
from services.privacy.observed import LOG_FIELDS, SHORT_LIVED_IDS, log_fields

ACTUAL = [("logs", name) for name in ALLOWED_FIELDS]


def test_every_log_field_is_classified_and_every_entry_is_a_log_field():
    """D5, R-C1."""
    assert gaps(ACTUAL, {"logs": LOG_FIELDS}) == []


def test_a_log_field_nobody_classified_is_named():
    """D5."""
    assert gaps([*ACTUAL, ("logs", "number")], {"logs": LOG_FIELDS}) == [
        "logs.number is not classified"
    ]
    assert gaps(ACTUAL, {"logs": {**LOG_FIELDS, **plain("colour")}}) == [
        "logs.colour does not exist"
    ]


@pytest.mark.parametrize("name", ["address", "callback_number", "visitor_id"])
def test_a_personal_log_field_cannot_be_declared(name):
    """R-C5, R-D5: ids of short life are all that a line may be traced to a person by."""
    found = personal(name, kind=DataKind.AD_USE, start=PeriodStart.EVENT)
    with pytest.raises(AssertionError):
        log_fields({**LOG_FIELDS, **found})


def test_what_is_personal_in_a_log_has_a_rule_of_seven_days():
    """R-D5: logs are kept for as long as the kinds in them may be."""
    found = {name: item.kind for name, item in LOG_FIELDS.items() if item.personal}
    assert set(found) == SHORT_LIVED_IDS
    assert set(found.values()) <= {DataKind.AD_USE, DataKind.TRAFFIC_DATA}
