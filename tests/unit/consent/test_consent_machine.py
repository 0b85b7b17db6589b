"""Decisions in any order, twice, late, by wrong clocks, against a short model (R-F2, R-F3, K2)."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from services.consent.domain import (
    AGE_MAX,
    AHEAD_MAX,
    DENIALS,
    NO_ANSWER,
    Choice,
    Decision,
    Key,
    Novelty,
    Offer,
    State,
    Verdict,
    compare,
    in_force_at,
    judge,
    states_of,
)

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
PURPOSES = ("marketing", "statistics")
NAMED = {"v1": {"a"}, "v2": {"a", "b"}}
"""Version of the catalogue -> whom it names for marketing; statistics names nobody."""
RECIPIENTS = ("a", "b", "c")
"""All of the register; the last one stands in no catalogue."""
OFFERS = {
    "v1": Offer(recipients={"marketing": frozenset("a"), "statistics": frozenset()}),
    "v2": Offer(recipients={"marketing": frozenset("ab"), "statistics": frozenset()}),
}


@dataclass(frozen=True)
class Said:
    n: int
    purpose: str
    recipient: str | None
    verdict: Verdict
    at: datetime
    version: str | None
    is_signal: bool

    @property
    def can_be_recorded(self) -> bool:
        if self.verdict in DENIALS:
            return True
        if self.is_signal or self.version is None:
            return False
        named = NAMED[self.version] if self.purpose == "marketing" else set()
        return self.recipient is None or self.recipient in named

    def is_about(self, recipient: str | None) -> bool:
        if self.recipient is not None or recipient is None:
            return self.recipient == recipient
        if self.verdict is not Verdict.GIVEN:
            return True
        assert self.version is not None
        # an agreement reaches whom the version shown named, and nobody else
        return self.purpose == "marketing" and recipient in NAMED[self.version]


class Choices(RuleBasedStateMachine):
    """One visitor; `known` is folded as the service does it, `model` is all that counts."""

    sent = Bundle("sent")

    @initialize()
    def begin(self) -> None:
        self.now = START
        self.known: dict[Key, Decision] = {}
        self.model: set[Said] = set()
        self.taken: set[int] = set()
        self.n = 0

    @rule(
        target=sent,
        purpose=st.sampled_from(PURPOSES),
        recipient=st.sampled_from([None, None, *RECIPIENTS]),
        verdict=st.sampled_from(Verdict),
        version=st.sampled_from(["v1", "v2", None]),
        is_signal=st.booleans(),
        off_by_s=st.sampled_from([0, -1, 1, 300, 301, -72 * 3600, -72 * 3600 - 1]),
    )
    def decide(
        self,
        purpose: str,
        recipient: str | None,
        verdict: Verdict,
        version: str | None,
        is_signal: bool,  # noqa: FBT001 - hypothesis passes it by name
        off_by_s: int,
    ) -> Said:
        """A decision that is on its way; the page's clock may be off."""
        self.n += 1
        at = self.now + timedelta(seconds=off_by_s)
        return Said(self.n, purpose, recipient, verdict, at, version, is_signal)

    @rule(said=sent)
    def deliver(self, said: Said) -> None:
        """Any of them arrives, in any order and as often as it likes."""
        judged = judge(
            UUID(int=said.n),
            [Choice(purpose=said.purpose, verdict=said.verdict, recipient=said.recipient)],
            decided_at=said.at,
            received_at=self.now,
            now=self.now,
            offer=None if said.version is None else OFFERS[said.version],
            known_recipients=frozenset((p, r) for p in PURPOSES for r in RECIPIENTS),
            is_signal=said.is_signal,
        )
        for decision in judged.decisions:
            novelty = compare(self.known, decision)
            assert novelty is not Novelty.CONTRADICTS, "the same event again"
            if novelty is Novelty.NEW:
                self.known[decision.key] = decision
        is_in_time = self.now - AGE_MAX <= said.at <= self.now + AHEAD_MAX
        if said.n in self.taken or not said.can_be_recorded:
            return
        if is_in_time or said.verdict in DENIALS:
            # whatever its clock said, a denial counts; and nothing from later than it came
            self.taken.add(said.n)
            self.model.add(replace(said, at=min(said.at, self.now) if is_in_time else self.now))

    @rule(seconds=st.sampled_from([1, 300, 3600]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    def reading(self, purpose: str, recipient: str | None, instant: datetime) -> bool:
        """The rule, read slowly: the latest not after the instant; of two, the higher id."""
        about = sorted(
            (said.at, said.n, said)
            for said in self.model
            if said.purpose == purpose
            and said.verdict not in NO_ANSWER
            and said.is_about(recipient)
        )
        answers = [(at, n) for at, n, said in about if not said.is_signal]
        last = None
        for at, n, said in about:
            # a signal counts until the visitor has answered
            if at <= instant and not (said.is_signal and answers and (at, n) > answers[0]):
                last = said
        return last is not None and last.verdict is Verdict.GIVEN

    @invariant()
    def what_stands_is_what_the_rule_says(self) -> None:
        states = {
            (state.purpose, state.recipient): state for state in states_of(self.known.values())
        }
        end = START + timedelta(days=3650)
        instants = {end, *(said.at + timedelta(seconds=s) for said in self.model for s in (-1, 0))}
        for purpose in PURPOSES:
            for recipient in (None, *RECIPIENTS):
                whole = states.get((purpose, None))
                is_reached = whole is not None and recipient in whole.reaches
                found = whole if is_reached else states.get((purpose, recipient))
                for instant in instants:
                    expected = self.reading(purpose, recipient, instant)
                    assert _in_force(found, instant) == expected, (purpose, recipient)
                assert (found is not None and found.in_force) == self.reading(
                    purpose, recipient, end
                )

    @invariant()
    def every_repetition_is_the_same(self) -> None:
        decisions = list(self.known.values())
        assert states_of(decisions[::-1] + decisions) == states_of(decisions)


def _in_force(state: State | None, instant: datetime) -> bool:
    return state is not None and in_force_at(state, instant)


Choices.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestChoices = Choices.TestCase
