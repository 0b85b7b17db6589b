"""Rules of orders and receipts (D3, R-D9)."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.ids import TimeOrderedIds
from services.retention.domain import (
    KAFKA,
    Answer,
    Count,
    Order,
    Receipt,
    Refusal,
    answerers,
    is_overdue,
    judge,
    refuse_as_of,
    silent,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SERVICES = ("ad_ledger", "call_control", "consent")
IDS = TimeOrderedIds()
ORDER = Order(
    order_id=IDS.new(),
    kind="ad_use",
    requirement="R-D5",
    before_day=date(2026, 11, 16),
    attempt=0,
    as_of=NOW,
    issued_at=NOW,
    overdue_at=NOW + timedelta(minutes=15),
    expected=SERVICES,
)
RECEIPT = Receipt(
    order_id=ORDER.order_id,
    service="consent",
    kind="ad_use",
    counts=(Count(table="consent_subject", n_partitions=1, n_rows=3),),
    done_at=NOW,
)


def test_a_sweep_as_of_the_future_is_refused():
    """R-D5: what is not due yet is somebody's data."""
    ahead = NOW + timedelta(minutes=5, seconds=1)
    assert refuse_as_of(ahead, now=NOW, simulation=False) is Refusal.AS_OF_IN_THE_FUTURE


@pytest.mark.parametrize(
    ("as_of", "simulation"),
    [
        (NOW - timedelta(days=400), False),
        (NOW, False),
        (NOW + timedelta(minutes=5), False),
        (NOW + timedelta(days=8), True),
    ],
    ids=["long_ago", "now", "within_clock_drift", "simulated_future"],
)
def test_a_sweep_as_of_now_or_before_or_in_a_simulation_is_made(as_of, simulation):
    """R-D9."""
    assert refuse_as_of(as_of, now=NOW, simulation=simulation) is None


def test_an_instant_without_offset_is_refused():
    """R-D9: nobody can tell which day it means."""
    naive = NOW.replace(tzinfo=None)
    assert refuse_as_of(naive, now=NOW, simulation=True) is Refusal.AS_OF_WITHOUT_OFFSET


def test_only_an_order_that_looks_ahead_waits_for_kafka():
    """D3."""
    assert answerers(SERVICES, as_of=NOW, now=NOW) == SERVICES
    ahead = answerers(SERVICES, as_of=NOW + timedelta(days=8), now=NOW)
    assert ahead == (*SERVICES, KAFKA)


@given(answered=st.sets(st.sampled_from(SERVICES)))
def test_an_order_is_complete_only_when_every_service_has_answered(answered):
    """D3."""
    assert (silent(ORDER, answered) == ()) == (answered == set(SERVICES))
    assert set(silent(ORDER, answered)) == set(SERVICES) - answered


def test_silence_beyond_the_set_time_is_overdue():
    """D3."""
    assert not is_overdue(ORDER, {"consent"}, now=ORDER.overdue_at)
    late = ORDER.overdue_at + timedelta(seconds=1)
    assert is_overdue(ORDER, {"consent"}, now=late)
    assert not is_overdue(ORDER, SERVICES, now=late)


def test_a_receipt_is_new_once_and_then_repeated():
    """D3."""
    assert judge(ORDER, RECEIPT, None) is Answer.NEW
    assert judge(ORDER, RECEIPT, RECEIPT) is Answer.REPEATED


@pytest.mark.parametrize(
    ("order", "receipt", "earlier", "answer"),
    [
        (None, RECEIPT, None, Answer.ORDER_UNKNOWN),
        (ORDER, replace(RECEIPT, service="gateway"), None, Answer.SERVICE_UNEXPECTED),
        (ORDER, replace(RECEIPT, kind="web_use"), None, Answer.KIND_DIFFERS),
        (ORDER, replace(RECEIPT, counts=()), RECEIPT, Answer.DONE_AGAIN),
    ],
    ids=["unknown_order", "unexpected_service", "other_kind", "other_counts"],
)
def test_a_receipt_that_proves_nothing_is_not_taken(order, receipt, earlier, answer):
    """D3, R-D9."""
    assert judge(order, receipt, earlier) is answer
