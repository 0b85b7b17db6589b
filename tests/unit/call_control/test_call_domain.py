"""The rules of calls alone: which numbers are dialled, what a call may become."""

import string
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.call_control import backend, domain
from services.call_control.domain import (
    Accepted,
    AcceptedRequest,
    NumberReason,
    RefusalReason,
    RefusedNumber,
    RefusedRequest,
    Request,
    Talk,
    check_number,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
# numbers that the Bundesnetzagentur keeps for films, and none of anybody's
BERLIN, MOBILE = "+493023125001", "+4915228817386"


@pytest.mark.parametrize(
    ("typed", "e164"),
    [
        ("030 23125 001", BERLIN),
        ("030/23125-001", BERLIN),
        ("(030) 23125.001", BERLIN),
        ("+49 30 23125001", BERLIN),
        ("+49 (0)30 23125001", BERLIN),
        ("0049 30 23125001", BERLIN),
        (" 030 23125001 ", BERLIN),
        ("0152 28817386", MOBILE),
        ("0171 9925904", "+491719925904"),
        ("0160 1234567", "+491601234567"),
        ("0221 4661912", "+492214661912"),
    ],
)
def test_german_geographic_and_mobile_numbers_are_dialled(typed, e164):
    """R-A5, C5: however they are written."""
    assert check_number(typed) == Accepted(e164)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("110", NumberReason.EMERGENCY),
        ("112", NumberReason.EMERGENCY),
        ("1 1 2", NumberReason.EMERGENCY),
        ("+49 112", NumberReason.EMERGENCY),
        ("0049 110", NumberReason.EMERGENCY),
        ("0110", NumberReason.EMERGENCY),
        ("115", NumberReason.SHORT_CODE),
        ("116117", NumberReason.SHORT_CODE),
        ("11833", NumberReason.SHORT_CODE),
        ("+49 11833", NumberReason.PREMIUM),
        ("0900 1234567", NumberReason.PREMIUM),
        ("0137 1234567", NumberReason.PREMIUM),
        ("0138 1234567", NumberReason.PREMIUM),
        ("0180 5123456", NumberReason.SHARED_COST),
        ("0800 1234567", NumberReason.TOLL_FREE),
        ("0700 12345678", NumberReason.SERVICE),
        ("032 12345678", NumberReason.SERVICE),
        ("031 1", NumberReason.SERVICE),
        ("019 4123", NumberReason.SERVICE),
        ("0181 123456", NumberReason.SERVICE),
        ("012 345678", NumberReason.SERVICE),
        ("01033 030 23125001", NumberReason.CALL_BY_CALL),
        ("+33 1 23456789", NumberReason.FOREIGN),
        ("0033 1 23456789", NumberReason.FOREIGN),
        ("+881 612345678", NumberReason.FOREIGN),
        ("23125001", NumberReason.WITHOUT_AREA_CODE),
        ("0160 123", NumberReason.NOT_ASSIGNED),
        ("0164 1234567", NumberReason.NOT_ASSIGNED),
        ("0152 288173860000", NumberReason.NOT_ASSIGNED),
        ("030 1", NumberReason.NOT_ASSIGNED),
        ("0", NumberReason.NOT_ASSIGNED),
        ("", NumberReason.MALFORMED),
        ("030x23125001", NumberReason.MALFORMED),
        ("sip:030@host", NumberReason.MALFORMED),
        ("030\r\n23125001", NumberReason.MALFORMED),
        ("٠٣٠٢٣١٢٥٠٠١", NumberReason.MALFORMED),
    ],
)
def test_everything_else_is_refused_with_its_word(typed, reason):
    """C5: strict; 110 and 112 with the advice to dial them directly."""
    assert check_number(typed) == RefusedNumber(reason)


@given(st.text(alphabet=string.digits + "+ ()-/.", max_size=24))
def test_whatever_is_typed_only_germany_is_dialled_and_never_a_special_number(typed):
    """C5, R-C1: property over all that passes for a number."""
    judged = check_number(typed)
    if isinstance(judged, Accepted):
        assert judged.e164.startswith(("+4915", "+4916", "+4917")) or judged.e164[3] in "23456789"
        assert not judged.e164.startswith(("+4932", "+4931", "+49700", "+49800", "+49900"))
        assert backend.E164.fullmatch(judged.e164)
        assert check_number(judged.e164) == judged


def request(callback: str, destination: str) -> Request:
    return Request(
        call_id=UUID(int=7),
        visitor_id=UUID(int=1),
        callback_number=callback,
        destination_number=destination,
        at=NOON,
    )


def test_a_good_request_is_accepted_in_e164():
    decision = domain.decide_request(
        request("030 23125 001", "0152 28817386"), has_active_call=False
    )
    assert decision == AcceptedRequest(callback_number=BERLIN, destination_number=MOBILE)


def test_an_emergency_goes_before_every_other_reason():
    decision = domain.decide_request(request("nonsense", "112"), has_active_call=True)
    assert decision == RefusedRequest(reason=NumberReason.EMERGENCY)


def test_nobody_is_connected_with_themselves_or_twice_at_once():
    same = domain.decide_request(request(BERLIN, "030 23125001"), has_active_call=False)
    assert same == RefusedRequest(reason=RefusalReason.NUMBERS_EQUAL)
    busy = domain.decide_request(request(BERLIN, MOBILE), has_active_call=True)
    assert busy == RefusedRequest(reason=RefusalReason.CALL_IN_PROGRESS)


def test_the_talk_of_an_orphan_is_counted_to_its_bye_and_the_overrun_is_told():
    """C2, C3."""
    assert domain.talk_between(None, NOON, 5_000) == Talk(talk_ms=0, overrun_ms=0)
    later = NOON + timedelta(seconds=7)
    assert domain.talk_between(NOON, later, 5_000) == Talk(talk_ms=7_000, overrun_ms=2_000)
    assert domain.talk_between(later, NOON, 5_000) == Talk(talk_ms=0, overrun_ms=0)


@given(st.text(alphabet="0123456789", min_size=1, max_size=20))
def test_whatever_is_accepted_can_be_dialled(digits):
    """C5: a number that the back end would not take must never get as far as an order."""
    found = check_number("0" + digits)
    if isinstance(found, Accepted):
        assert backend.E164.fullmatch(found.e164), found


@pytest.mark.parametrize("digits", [13, 14, 16])
def test_a_number_longer_than_any_is_not_assigned(digits):
    """C5: E.164 ends at 15 digits; the library would go on to 17."""
    assert check_number("030" + "2" * digits) == RefusedNumber(NumberReason.NOT_ASSIGNED)


def test_an_id_from_beyond_the_calendar_has_a_day_that_no_table_has():
    """Security: a browser may make up a call's id."""
    assert domain.day_of(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")).year == 9999


def test_age_comes_after_the_advice_to_dial_directly():
    """C5: whoever needs help gets the advice, late or not."""
    late = Request(
        call_id=UUID(int=1), visitor_id=UUID(int=2), callback_number=BERLIN,
        destination_number="110", at=NOON,
    )  # fmt: skip
    refused = domain.decide_request(late, has_active_call=True, is_old=True)
    assert refused == RefusedRequest(reason=NumberReason.EMERGENCY)
