"""What the page reads of a call in progress."""

import pytest

from schemas.call import CallStatus
from services.call_control.domain import State
from services.call_control.http import status_of
from services.call_control.store import LegProgress


def leg(name: str, *, is_ringing: bool = False, is_answered: bool = False) -> LegProgress:
    return LegProgress(leg=name, is_ringing=is_ringing, is_answered=is_answered)


@pytest.mark.parametrize(
    ("legs", "status"),
    [
        ([], CallStatus.RESERVED),
        ([leg("a")], CallStatus.CALLBACK_DIALLING),
        ([leg("a", is_ringing=True)], CallStatus.CALLBACK_RINGING),
        # early media or none: an answer without ringing
        ([leg("a", is_answered=True)], CallStatus.CALLBACK_ANSWERED),
        ([leg("a", is_ringing=True, is_answered=True)], CallStatus.CALLBACK_ANSWERED),
        ([leg("a", is_answered=True), leg("b")], CallStatus.DESTINATION_DIALLING),
        (
            [leg("a", is_ringing=True, is_answered=True), leg("b", is_ringing=True)],
            CallStatus.DESTINATION_RINGING,
        ),
        # answered and not yet connected: both dialogs are being written down
        (
            [leg("a", is_answered=True), leg("b", is_ringing=True, is_answered=True)],
            CallStatus.DESTINATION_RINGING,
        ),
    ],
)
def test_while_dialling_the_legs_say_how_far_it_is(legs, status):
    """R-A1."""
    assert status_of(State.DIALLING, legs) is status


@pytest.mark.parametrize("state", list(State))
def test_every_state_has_a_word_of_the_contract(state):
    """The gateway knows no other words: it would take call control for away."""
    assert isinstance(status_of(state, []), CallStatus)
    assert (status_of(state, []) is CallStatus.ENDED) is (state in {State.ENDING, State.ENDED})
