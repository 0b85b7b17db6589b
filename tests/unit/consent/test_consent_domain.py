"""Rules of consent (R-F2, R-F3, K2)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.consent.domain import (
    AHEAD_MAX,
    CHANGES_MAX,
    DENIALS,
    NO_ANSWER,
    Choice,
    Decision,
    Judged,
    Novelty,
    Offer,
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

OFFER = Offer(
    recipients={
        "necessary": frozenset(),
        "marketing": frozenset({"stickyadstv-com"}),
        "statistics": frozenset(),
    }
)

DECISIONS = st.lists(
    st.builds(
        Decision,
        decision_id=st.integers(0, 2**32).map(lambda n: UUID(int=ID.int + n)),
        purpose=st.sampled_from(["marketing", "statistics", "preferences"]),
        verdict=st.sampled_from(sorted(set(Verdict) - NO_ANSWER)),
        # few instants, so that some decisions fall on the same one
        decided_at=st.integers(0, 5).map(lambda n: NOW + timedelta(seconds=n)),
    ),
    unique_by=lambda decision: decision.key,
    max_size=30,
)


def judged(
    *choices: tuple[str, Verdict], at: datetime = NOW, offer: Offer | None = OFFER
) -> Judged:
    return judge(
        ID,
        [Choice(purpose=purpose, verdict=verdict) for purpose, verdict in choices],
        decided_at=at,
        received_at=NOW,
        now=NOW,
        offer=offer,
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
    found = judged(("necessary", verdict), ("marketing", REFUSED))
    assert found.refusals == (Refusal.PURPOSE_NECESSARY,)
    assert [(d.purpose, d.verdict) for d in found.decisions] == [("marketing", REFUSED)]


def test_a_purpose_both_given_and_denied_is_not_decided():
    """R-F4: when in doubt, nothing is in force."""
    found = judged(("marketing", GIVEN), ("marketing", REFUSED))
    assert found.refusals == (Refusal.PURPOSE_CONTRADICTED,)
    assert found.decisions == ()


def test_the_same_purpose_twice_with_the_same_word_is_one_decision():
    """R-F2."""
    found = judged(*[("marketing", GIVEN)] * 2)
    assert (len(found.decisions), found.refusals) == (1, ())


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
    assert judged(("marketing", GIVEN), at=NOW - age).refusals == refusals


@pytest.mark.parametrize(
    ("choice", "offer", "is_signal", "refusal"),
    [
        (Choice(purpose="marketing", verdict=GIVEN), None, False, Refusal.CATALOGUE_UNKNOWN),
        (
            Choice(purpose="marketing", verdict=Verdict.SERVED),
            None,
            False,
            Refusal.CATALOGUE_UNKNOWN,
        ),
        (Choice(purpose="preferences", verdict=GIVEN), OFFER, False, Refusal.PURPOSE_NOT_OFFERED),
        (
            Choice(purpose="marketing", verdict=GIVEN, recipient="adgrx-com"),
            OFFER,
            False,
            Refusal.RECIPIENT_NOT_OFFERED,
        ),
        (
            Choice(purpose="marketing", verdict=REFUSED, recipient="nobody"),
            OFFER,
            False,
            Refusal.RECIPIENT_UNKNOWN,
        ),
        (Choice(purpose="marketing", verdict=GIVEN), OFFER, True, Refusal.SIGNAL_GIVES_NOTHING),
        # a denial counts whatever was shown
        *((Choice(purpose="marketing", verdict=verdict), None, False, None) for verdict in DENIALS),
        (Choice(purpose="preferences", verdict=WITHDRAWN), OFFER, False, None),
        (Choice(purpose="marketing", verdict=Verdict.OBJECTED), None, True, None),
        (
            Choice(purpose="marketing", verdict=REFUSED, recipient="adgrx-com"),
            OFFER,
            False,
            None,
        ),
        (
            Choice(purpose="marketing", verdict=GIVEN, recipient="stickyadstv-com"),
            OFFER,
            False,
            None,
        ),
    ],
)
def test_what_can_be_recorded(choice, offer, is_signal, refusal):
    """R-F1, R-F2, R-F4: an agreement to what was offered only; a denial in any case."""
    known = frozenset({("marketing", "stickyadstv-com"), ("marketing", "adgrx-com")})
    found = judge(
        ID,
        [choice],
        decided_at=NOW,
        received_at=NOW,
        now=NOW,
        offer=offer,
        known_recipients=known,
        is_signal=is_signal,
    )
    assert found.refusals == (() if refusal is None else (refusal,))
    assert len(found.decisions) == (refusal is None)


@pytest.mark.parametrize("verdict", sorted(NO_ANSWER))
def test_a_question_without_an_answer_changes_nothing(verdict):
    """R-F2: who closes the question that is asked again has not withdrawn."""
    given = decision(1, GIVEN)
    assert states_of([given, decision(2, verdict)]) == states_of([given])
    assert states_of([decision(2, verdict)]) == ()


def test_a_signal_gives_way_to_the_visitors_own_answer():
    """R-F3, R-G6: the browser objects on every page; who agreed themselves has agreed."""
    signals = [replace(decision(n, Verdict.OBJECTED), is_signal=True) for n in (1, 3)]
    (state,) = states_of(signals)
    assert not state.in_force
    (state,) = states_of([*signals, decision(2, GIVEN)])
    assert state.in_force
    assert [change.verdict for change in state.changes] == [GIVEN, Verdict.OBJECTED]


def test_one_recipient_can_be_left_out():
    """R-F2, R-E2: agreed to the purpose, not to that one; and the other way round."""
    alone = replace(decision(2, REFUSED), recipient="adgrx-com")
    named = frozenset({"adgrx-com"})
    states = states_of([replace(decision(1, GIVEN), named=named), alone])
    assert [(s.recipient, s.in_force) for s in states] == [(None, True), ("adgrx-com", False)]
    states = states_of([decision(1, REFUSED), replace(alone, verdict=GIVEN)])
    assert [(s.recipient, s.in_force) for s in states] == [(None, False), ("adgrx-com", True)]
    # the last word about all is about that one too
    again = replace(decision(3, GIVEN), named=named)
    states = states_of([decision(1, GIVEN), alone, again])
    assert [(s.recipient, s.in_force) for s in states] == [(None, True), ("adgrx-com", True)]


@pytest.mark.parametrize("verdict", sorted(DENIALS))
def test_within_one_decision_the_named_recipient_and_the_denial_win(verdict):
    """R-F2, K3: whatever stands first in the event, and in the database."""
    general = replace(decision(1, GIVEN), named=frozenset({"adgrx-com", "other"}))
    alone = replace(general, recipient="adgrx-com", verdict=verdict)
    expected = [(None, True), ("adgrx-com", False), ("other", True)]
    for order in ([general, alone], [alone, general]):
        assert [(s.recipient, s.in_force) for s in states_of(order)] == expected


def test_who_was_not_named_gets_nothing():
    """R-F1, R-F2: a new recipient in a new version asks again; of a version unknown, nobody."""
    old = replace(decision(1, GIVEN), named=frozenset({"exchange"}))
    (state,) = states_of([old])
    assert (state.recipient, state.in_force, state.reaches) == (None, True, frozenset({"exchange"}))
    both = replace(decision(2, GIVEN), named=frozenset({"exchange", "new-exchange"}))
    found = {state.recipient: state for state in states_of([old, both])}
    assert found["new-exchange"].in_force
    assert not in_force_at(found["new-exchange"], old.decided_at)
    assert in_force_at(found["exchange"], old.decided_at)
    (state,) = states_of([decision(1, GIVEN)])
    assert state.reaches == set()


def test_the_same_key_with_another_content_contradicts():
    """R-F2."""
    first = decision(1, GIVEN)
    known = {first.key: first}
    assert compare({}, first) is Novelty.NEW
    assert compare(known, decision(1, GIVEN)) is Novelty.KNOWN
    assert compare(known, decision(1, REFUSED)) is Novelty.CONTRADICTS
    for moved_by in (-timedelta(seconds=1), AHEAD_MAX + timedelta(seconds=1)):
        moved = replace(first, decided_at=first.decided_at + moved_by)
        assert compare(known, moved) is Novelty.CONTRADICTS, "an agreement has one instant"
    # told ahead of its receipt, by no more than that: the same one
    assert compare(known, replace(first, decided_at=NOW + AHEAD_MAX)) is Novelty.KNOWN


WITHIN = st.timedeltas(timedelta(0), AHEAD_MAX)


@given(ahead=WITHIN, later=WITHIN, waited=WITHIN, again=WITHIN)
def test_no_agreement_told_ahead_outlasts_the_withdrawal_after_it(ahead, later, waited, again):
    """K2, R-F3: each counts from its receipt at the latest, delivered again or processed late."""

    def told(n: int, verdict: Verdict, at: datetime, received_at: datetime) -> Decision:
        (found,) = judge(
            UUID(int=n),
            [Choice(purpose="marketing", verdict=verdict)],
            decided_at=at,
            received_at=received_at,
            now=received_at + waited,
            offer=OFFER,
        ).decisions
        return found

    withdrawn_at = NOW + later + timedelta(microseconds=1)
    given_ = told(2, GIVEN, NOW + ahead, NOW)
    withdrawn = told(1, WITHDRAWN, withdrawn_at, withdrawn_at)
    known = {each.key: each for each in (given_, withdrawn)}
    # the gateway was not answered, and sends it again
    assert compare(known, told(2, GIVEN, NOW + ahead, withdrawn_at + again)) is Novelty.KNOWN
    (state,) = states_of(known.values())
    assert not state.in_force
    assert in_force_at(state, NOW), "it was in force from its receipt"


@given(ahead=st.timedeltas(timedelta(0), timedelta(days=400)))
def test_a_denial_told_ahead_counts_at_once(ahead):
    """K2, R-F3: nobody waits for its clock."""
    found = judge(
        UUID(int=2),
        [Choice(purpose="marketing", verdict=REFUSED)],
        decided_at=NOW + ahead,
        received_at=NOW,
        now=NOW,
        offer=None,
    ).decisions
    (state,) = states_of([*found, replace(decision(1, GIVEN), decided_at=NOW - timedelta(hours=1))])
    assert not in_force_at(state, NOW)


def test_a_denial_told_later_than_it_was_taken_is_the_same_one():
    """R-F3: it was taken as of its receipt; one told earlier than that contradicts."""
    first = decision(1, REFUSED)
    known = {first.key: first}
    second = timedelta(seconds=1)
    later, earlier = (replace(first, decided_at=first.decided_at + d) for d in (second, -second))
    assert compare(known, later) is Novelty.KNOWN
    assert compare(known, earlier) is Novelty.CONTRADICTS
    assert compare(known, replace(earlier, is_as_of_receipt=True)) is Novelty.KNOWN
