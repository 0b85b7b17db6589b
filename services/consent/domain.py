"""Rules of consent: pure.

What is in force is a function of the set of decisions, so that neither their order nor their
repetition can change it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from uuid import UUID

AGE_MAX = timedelta(hours=72)
"""The topic's own limit; older ones would find no day to stand in (R-D5)."""
AHEAD_MAX = timedelta(minutes=5)
VISIT_LIFE = timedelta(days=6)
"""Longest life of a visit cookie: nobody can be recognised later, so every consent ends by then."""
CHANGES_MAX = 64
NECESSARY = "necessary"


class Verdict(StrEnum):
    """What was decided about a purpose."""

    GIVEN = "given"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    OBJECTED = "objected"


class Refusal(StrEnum):
    """Why a choice was not recorded."""

    PURPOSE_NECESSARY = "purpose_necessary"
    PURPOSE_CONTRADICTED = "purpose_contradicted"
    TOO_OLD = "too_old"
    FROM_THE_FUTURE = "from_the_future"
    CATALOGUE_UNKNOWN = "catalogue_unknown"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One purpose of one decision. Natural key: (`decision_id`, `purpose`)."""

    decision_id: UUID
    purpose: str
    verdict: Verdict
    decided_at: datetime

    @property
    def key(self) -> tuple[UUID, str]:
        """Its natural key."""
        return self.decision_id, self.purpose

    @property
    def order(self) -> tuple[datetime, int]:
        """The later one wins; of the same instant, the one with the higher id."""
        return self.decided_at, self.decision_id.int


@dataclass(frozen=True, kw_only=True)
class Change:
    """From `at` on, `verdict` was the last word."""

    verdict: Verdict
    at: datetime


@dataclass(frozen=True, kw_only=True)
class State:
    """What stands for one purpose; `changes` newest first, at most `CHANGES_MAX`."""

    purpose: str
    in_force: bool
    since: datetime
    changes: tuple[Change, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What of an event is recorded, and why the rest is not."""

    decisions: tuple[Decision, ...] = ()
    refusals: tuple[Refusal, ...] = ()


def judge(
    decision_id: UUID,
    choices: Sequence[tuple[str, Verdict]],
    *,
    decided_at: datetime,
    now: datetime,
) -> Judged:
    """Say what of a visitor's choices can be recorded.

    What is necessary for the service rests on the contract, not on consent: it cannot be refused.
    A purpose that one event both gives and denies is not decided (in doubt, nothing is in force).
    """
    assert decided_at.tzinfo is not None
    if decided_at < now - AGE_MAX:
        return Judged(refusals=(Refusal.TOO_OLD,))
    if decided_at > now + AHEAD_MAX:
        return Judged(refusals=(Refusal.FROM_THE_FUTURE,))
    decisions: list[Decision] = []
    refusals: list[Refusal] = []
    for purpose in dict.fromkeys(purpose for purpose, _ in choices):
        verdicts = {verdict for other, verdict in choices if other == purpose}
        if len(verdicts) > 1:
            refusals.append(Refusal.PURPOSE_CONTRADICTED)
        elif purpose == NECESSARY and verdicts != {Verdict.GIVEN}:
            refusals.append(Refusal.PURPOSE_NECESSARY)
        else:
            decisions.append(
                Decision(
                    decision_id=decision_id,
                    purpose=purpose,
                    verdict=verdicts.pop(),
                    decided_at=decided_at,
                )
            )
    return Judged(decisions=tuple(decisions), refusals=tuple(refusals))


class Novelty(StrEnum):
    """What a decision is to the ones already known."""

    NEW = "new"
    KNOWN = "known"
    CONTRADICTS = "contradicts"


def compare(known: Mapping[tuple[UUID, str], Decision], decision: Decision) -> Novelty:
    """Say whether a decision is new; the same key with another content contradicts."""
    earlier = known.get(decision.key)
    if earlier is None:
        return Novelty.NEW
    return Novelty.KNOWN if earlier == decision else Novelty.CONTRADICTS


def states_of(decisions: Iterable[Decision]) -> tuple[State, ...]:
    """Return what stands for each purpose decided about, by name; no decision = nothing."""
    by_purpose: dict[str, dict[tuple[UUID, str], Decision]] = {}
    for decision in decisions:
        by_purpose.setdefault(decision.purpose, {})[decision.key] = decision
    return tuple(_state(purpose, by_purpose[purpose].values()) for purpose in sorted(by_purpose))


def _state(purpose: str, decisions: Iterable[Decision]) -> State:
    ordered = sorted(decisions, key=lambda decision: decision.order)
    assert ordered
    # a decision that only repeats the last word changes nothing
    changes = [
        Change(verdict=verdict, at=next(iter(run)).decided_at)
        for verdict, run in groupby(ordered, key=lambda decision: decision.verdict)
    ]
    runs = [
        (in_force, next(iter(run)).at)
        for in_force, run in groupby(changes, key=lambda change: change.verdict is Verdict.GIVEN)
    ]
    in_force, since = runs[-1]
    newest_first = tuple(reversed(changes))[:CHANGES_MAX]
    return State(purpose=purpose, in_force=in_force, since=since, changes=newest_first)


def in_force_at(state: State, instant: datetime) -> bool:
    """Whether consent was in force at an instant: a withdrawal works for the future only (K2)."""
    assert instant.tzinfo is not None
    for change in state.changes:
        if change.at <= instant:
            return change.verdict is Verdict.GIVEN
    return False
