"""The rows from which the register of processing activities is printed (R-C1, R-H1)."""

import pytest

from schemas.retention import DataKind
from schemas.topics import ALL_TOPICS
from services.chassis.declaration import SERVICES
from services.gateway import classification as of_the_gateway
from services.privacy import register
from services.privacy.declare import USUALLY, LegalBasis, PeriodStart, Purpose, personal
from services.privacy.register import Place, Row, rows
from services.retention.schedule import load
from services.retention.settings import DEFAULT_SCHEDULE


def test_the_register_has_every_place_once():
    """R-C1."""
    found = list(rows())
    places = [(row.place, row.where, row.name) for row in found]
    assert len(places) == len(set(places))
    assert {row.place for row in found} == set(Place)
    tables = {row.where.split(".")[0] for row in found if row.place is Place.TABLE}
    assert tables == set(SERVICES) - {"gateway"}
    assert {row.where for row in found if row.place is Place.EVENT} == {t.name for t in ALL_TOPICS}
    keys = [row for row in found if row.place is Place.RECORD_KEY]
    assert {(row.where, row.name) for row in keys} == {(t.name, t.key) for t in ALL_TOPICS}


def test_a_number_is_found_with_its_purpose_and_basis():
    """R-C1, R-A1."""
    (row,) = (r for r in rows() if r.where == "call_control.call" and r.name == "callback_number")
    assert row == Row(
        place=Place.TABLE,
        where="call_control.call",
        name="callback_number",
        kind=DataKind.TRAFFIC_DATA,
        start=PeriodStart.CALL_END,
        purpose=Purpose.CALL,
        basis=LegalBasis.CONTRACT,
    )


def test_what_the_schedule_says_of_a_kind_is_what_its_items_usually_rest_on():
    """R-C1, R-H1: one truth about the legal basis, in the schedule and beside the data."""
    by_kind = {rule.kind: rule.legal_basis for rule in load(DEFAULT_SCHEDULE).rules}
    for kind, (_, basis) in USUALLY.items():
        assert by_kind[kind].startswith(basis), kind


def test_a_personal_label_written_past_the_declaration_is_stopped(monkeypatch):
    """R-D5: a metric outlives every period."""
    bad = personal("visitor", kind=DataKind.AD_USE, start=PeriodStart.EVENT)
    monkeypatch.setitem(of_the_gateway.METRICS, "requests", bad)
    with pytest.raises(AssertionError):
        register.metrics("gateway")
    with pytest.raises(AssertionError):
        list(rows())
