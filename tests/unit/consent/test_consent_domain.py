"""Rules of consent (R-F2, R-F3, K2)."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent.domain import (
    CHANGES_MAX,
    Decision,
    Novelty,
    Refusal,
    Verdict,
    compare,
    in_force_at,
    judge,
    states_of,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ID = UUID("019ab000-0000-7000-8000-000000000001")
GIVEN, REFUSED, WITHDRAWN = Verdict.GIVEN, Verdict.REFUSED, Verdict.WITHDRAWN

DECISIONS = st.lists(
    st.builds(
        Decision,
        decision_id=st.integers(0, 2**32).map(lambda n: UUID(int=ID.int + n)),
        purpose=st.sampled_from(["marketing", "statistics", "preferences"]),
        verdict=st.sampled_from(Verdict),
        # few instants, so that some decisions fall on the same one
        decided_at=st.integers(0, 5).map(lambda n: NOW + timedelta(seconds=n)),
    ),
    unique_by=lambda decision: decision.key,
    max_size=30,
)


def decision(n: int, verdict: Verdict, purpose: str = "marketing") -> Decision:
    return Decision(
        decision_id=UUID(int=ID.int + n),
        purpose=purpose,
        verdict=verdict,
        decided_at=NOW + timedelta(minutes=n),
    )


@given(decisions=DECISIONS, data=st.data())
def test_any_order_and_repetition_of_decisions_comes_to_the_same_state(decisions, data):
    """R-F2: what is in force is a function of the set of decisions."""
    repeated = decisions + data.draw(st.lists(st.sampled_from(decisions or [None])))
    shuffled = data.draw(st.permutations([entry for entry in repeated if entry]))
    assert states_of(shuffled) == states_of(decisions)


@given(decisions=DECISIONS)
def test_the_last_word_about_each_purpose_is_in_force(decisions):
    """R-F2, R-F3: by a reading of the rule in three lines."""
    for state in states_of(decisions):
        mine = [entry for entry in decisions if entry.purpose == state.purpose]
        last = max(mine, key=lambda entry: (entry.decided_at, entry.decision_id.int))
        assert state.in_force == (last.verdict is GIVEN)
    assert {s.purpose for s in states_of(decisions)} == {d.purpose for d in decisions}


@given(decisions=DECISIONS, seconds=st.integers(-2, 8))
def test_what_was_in_force_at_an_instant_rests_on_earlier_decisions_only(decisions, seconds):
    """K2, R-F3: a withdrawal works for the future only."""
    instant = NOW + timedelta(seconds=seconds)
    then = states_of(entry for entry in decisions if entry.decided_at <= instant)
    in_force_then = {state.purpose for state in then if state.in_force}
    in_force = {state.purpose for state in states_of(decisions) if in_force_at(state, instant)}
    assert in_force == in_force_then


def test_no_decision_means_nothing_is_in_force():
    """R-F4."""
    assert states_of([]) == ()


def test_withdrawal_ends_what_was_given_and_keeps_both_instants():
    """R-F3."""
    (state,) = states_of([decision(1, GIVEN), decision(2, WITHDRAWN)])
    assert not state.in_force
    assert state.since == NOW + timedelta(minutes=2)
    assert [(change.verdict, change.at) for change in state.changes] == [
        (WITHDRAWN, NOW + timedelta(minutes=2)),
        (GIVEN, NOW + timedelta(minutes=1)),
    ]


def test_since_reaches_back_to_the_first_decision_to_the_same_effect():
    """R-F2: refused, then withdrawn to be sure: not in force since the refusal."""
    (state,) = states_of([decision(1, REFUSED), decision(2, WITHDRAWN), decision(3, WITHDRAWN)])
    assert state.since == NOW + timedelta(minutes=1)
    assert len(state.changes) == 2


def test_changes_are_bounded_by_the_newest():
    """The event has room for so many and no more."""
    many = [decision(n, GIVEN if n % 2 else REFUSED) for n in range(CHANGES_MAX + 10)]
    (state,) = states_of(many)
    assert len(state.changes) == CHANGES_MAX
    assert state.changes[0].at == many[-1].decided_at


@pytest.mark.parametrize("verdict", [REFUSED, WITHDRAWN, Verdict.OBJECTED])
def test_what_is_necessary_cannot_be_refused_and_the_rest_is_recorded(verdict):
    """R-F2: the refusal is a value; the other purposes of the same decision count."""
    judged = judge(ID, [("necessary", verdict), ("marketing", REFUSED)], decided_at=NOW, now=NOW)
    assert judged.refusals == (Refusal.PURPOSE_NECESSARY,)
    assert [(d.purpose, d.verdict) for d in judged.decisions] == [("marketing", REFUSED)]


def test_a_purpose_both_given_and_denied_is_not_decided():
    """R-F4: when in doubt, nothing is in force."""
    judged = judge(ID, [("marketing", GIVEN), ("marketing", REFUSED)], decided_at=NOW, now=NOW)
    assert judged.refusals == (Refusal.PURPOSE_CONTRADICTED,)
    assert judged.decisions == ()


def test_the_same_purpose_twice_with_the_same_word_is_one_decision():
    """R-F2."""
    judged = judge(ID, [("marketing", GIVEN)] * 2, decided_at=NOW, now=NOW)
    assert (len(judged.decisions), judged.refusals) == (1, ())


@pytest.mark.parametrize(
    ("age", "refusals"),
    [
        (timedelta(hours=72), ()),
        (timedelta(hours=72, seconds=1), (Refusal.TOO_OLD,)),
        (-timedelta(minutes=5), ()),
        (-timedelta(minutes=5, seconds=1), (Refusal.FROM_THE_FUTURE,)),
    ],
    ids=["oldest", "too_old", "within_clock_drift", "from_the_future"],
)
def test_a_decision_must_be_of_these_days(age, refusals):
    """R-D5: an older one would outlive its day's partition."""
    judged = judge(ID, [("marketing", GIVEN)], decided_at=NOW - age, now=NOW)
    assert judged.refusals == refusals


def test_the_same_key_with_another_content_contradicts():
    """R-F2."""
    first = decision(1, GIVEN)
    known = {first.key: first}
    assert compare({}, first) is Novelty.NEW
    assert compare(known, decision(1, GIVEN)) is Novelty.KNOWN
    assert compare(known, decision(1, REFUSED)) is Novelty.CONTRADICTS
