"""Decisions in any order, twice, late, by wrong clocks, against a short model (R-F2, R-F3, K2)."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from services.consent.domain import (
    AGE_MAX,
    AHEAD_MAX,
    Decision,
    Novelty,
    Verdict,
    compare,
    in_force_at,
    judge,
    states_of,
)

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
PURPOSES = ("marketing", "statistics")


class Choices(RuleBasedStateMachine):
    """One visitor; `known` is folded as the service does it, `sent` is all that was ever sent."""

    sent = Bundle("sent")

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.known: dict[tuple[UUID, str], Decision] = {}
        self.model: dict[tuple[int, str], tuple[datetime, bool]] = {}
        self.n = 0

    @rule(
        target=sent,
        purpose=st.sampled_from(PURPOSES),
        verdict=st.sampled_from(Verdict),
        off_by_s=st.sampled_from([0, -1, 300, 301, -72 * 3600, -72 * 3600 - 1]),
    )
    def decide(
        self, purpose: str, verdict: Verdict, off_by_s: int
    ) -> tuple[int, str, Verdict, datetime]:
        """A decision that is on its way; the page's clock may be off."""
        self.n += 1
        return self.n, purpose, verdict, self.now + timedelta(seconds=off_by_s)

    @rule(event=sent)
    def deliver(self, event: tuple[int, str, Verdict, datetime]) -> None:
        """Any of them arrives, in any order and as often as it likes."""
        n, purpose, verdict, at = event
        judged = judge(UUID(int=n), [(purpose, verdict)], decided_at=at, now=self.now)
        for decision in judged.decisions:
            if compare(self.known, decision) is Novelty.NEW:
                self.known[decision.key] = decision
        if self.now - AGE_MAX <= at <= self.now + AHEAD_MAX:
            self.model[n, purpose] = (at, verdict is Verdict.GIVEN)

    @rule(seconds=st.sampled_from([1, 300, 3600]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def reading(self, purpose: str, instant: datetime) -> bool:
        """The rule, read slowly: the latest not after the instant; of two, the higher id."""
        found = [
            (at, n, is_given)
            for (n, of), (at, is_given) in self.model.items()
            if of == purpose and at <= instant
        ]
        return max(found)[2] if found else False

    @invariant()
    def what_stands_is_what_the_rule_says(self) -> None:
        states = {state.purpose: state for state in states_of(self.known.values())}
        end = START + timedelta(days=3650)
        assert states.keys() == {purpose for _, purpose in self.model}
        for purpose, state in states.items():
            assert state.in_force == self.reading(purpose, end)
            instants = {at for (_, of), (at, _) in self.model.items() if of == purpose}
            for at in instants:
                for instant in (at - timedelta(microseconds=1), at):
                    assert in_force_at(state, instant) == self.reading(purpose, instant)


TestChoices = Choices.TestCase
TestChoices.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
