"""Rules of consent: pure.

What is in force is a function of the set of decisions, so that neither their order nor their
repetition can change it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from uuid import UUID

AGE_MAX = timedelta(hours=72)
"""The topic's own limit; older ones would find no day to stand in (R-D5)."""
AHEAD_MAX = timedelta(minutes=5)
VISIT_LIFE = timedelta(days=6)
"""Longest life of a visit cookie: nobody can be recognised later, so every consent ends by then."""
STATES_MAX = 24
CHANGES_MAX = 32
"""As many of each as a record of 64 kB has room for; before the oldest, nothing was in force."""
NECESSARY = "necessary"


class Verdict(StrEnum):
    """What was decided about a purpose."""

    GIVEN = "given"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    OBJECTED = "objected"
    DISMISSED = "dismissed"
    SERVED = "served"


DENIALS = frozenset({Verdict.REFUSED, Verdict.WITHDRAWN, Verdict.OBJECTED})
NO_ANSWER = frozenset({Verdict.DISMISSED, Verdict.SERVED})
"""Recorded, and without effect: who closes the question again has withdrawn nothing."""


class Refusal(StrEnum):
    """Why a choice was not recorded."""

    PURPOSE_NECESSARY = "purpose_necessary"
    PURPOSE_CONTRADICTED = "purpose_contradicted"
    TOO_OLD = "too_old"
    FROM_THE_FUTURE = "from_the_future"
    CATALOGUE_UNKNOWN = "catalogue_unknown"
    PURPOSE_NOT_OFFERED = "purpose_not_offered"
    RECIPIENT_NOT_OFFERED = "recipient_not_offered"
    RECIPIENT_UNKNOWN = "recipient_unknown"
    SIGNAL_GIVES_NOTHING = "signal_gives_nothing"


UNTIMELY = frozenset({Refusal.TOO_OLD, Refusal.FROM_THE_FUTURE})
"""What can be right once a clock is: such an event is kept as a dead letter."""

Key = tuple[UUID, str, str | None]
"""(`decision_id`, `purpose`, `recipient`)"""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One purpose and what was decided about it; no recipient = all that were named."""

    purpose: str
    verdict: Verdict
    recipient: str | None = None


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the version that somebody was shown offers.

    Attributes:
        recipients: purpose that can be consented to -> who would get something by it; an
            agreement reaches them and nobody else.
    """

    recipients: Mapping[str, frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One purpose of one decision; its natural key is `key`.

    Attributes:
        recipient: None = all that were named.
        is_signal: said by the browser for the visitor; an answer of their own goes before it.
        named: recipients whom the version shown named for the purpose; an agreement to the purpose
            as a whole reaches them.
        is_as_of_receipt: told with an instant that cannot be, as one ahead of its receipt; taken
            as of when it came.
    """

    decision_id: UUID
    purpose: str
    verdict: Verdict
    decided_at: datetime
    recipient: str | None = None
    is_signal: bool = False
    named: frozenset[str] = field(default=frozenset(), compare=False)
    is_as_of_receipt: bool = field(default=False, compare=False)

    @property
    def key(self) -> Key:
        """Its natural key."""
        return self.decision_id, self.purpose, self.recipient

    @property
    def order(self) -> tuple[datetime, int, bool, bool]:
        """The later one wins; of the same instant, the one with the higher id.

        Within one decision what names a recipient wins over what does not, and a denial.
        """
        return (
            self.decided_at,
            self.decision_id.int,
            self.recipient is not None,
            self.verdict in DENIALS,
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """From `at` on, `verdict` was the last word."""

    verdict: Verdict
    at: datetime


@dataclass(frozen=True, kw_only=True)
class State:
    """What stands for one purpose (of one recipient); at most `CHANGES_MAX`, newest first.

    Attributes:
        reaches: recipients for whom the purpose's own state stands, having been named.
    """

    purpose: str
    recipient: str | None = None
    reaches: frozenset[str] = frozenset()
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
    choices: Sequence[Choice],
    *,
    decided_at: datetime,
    received_at: datetime,
    now: datetime,
    offer: Offer | None,
    known_recipients: frozenset[tuple[str, str]] = frozenset(),
    is_signal: bool = False,
) -> Judged:
    """Say what of a visitor's choices can be recorded.

    What is necessary for the service rests on the contract, not on consent: it cannot be refused.
    What one event both gives and denies is not decided (in doubt, nothing is in force). A denial
    counts whatever was shown and whatever its clock said: with an instant that cannot be, it is
    taken as of its receipt, and nobody waits for it. An agreement counts only to what was offered,
    and with an instant that can be. Nothing counts from later than it came: by a clock that is a
    little ahead, an agreement would outlast the withdrawal that came after it.

    Args:
        received_at: when it came, by a clock that is not its teller's; not after `now`.
        offer: of the version and wording that were shown; None = nobody knows them.
        known_recipients: (purpose, recipient) of the register and of all catalogues.
        is_signal: said by the browser for the visitor.
    """
    assert decided_at.tzinfo is not None
    untimely = _untimely(decided_at, received_at, now)
    is_as_of_receipt = untimely is not None or decided_at > received_at
    decisions: list[Decision] = []
    refusals: list[Refusal] = []
    for purpose, recipient in dict.fromkeys((c.purpose, c.recipient) for c in choices):
        verdicts = {c.verdict for c in choices if (c.purpose, c.recipient) == (purpose, recipient)}
        choice = Choice(purpose=purpose, recipient=recipient, verdict=min(verdicts))
        if len(verdicts) > 1:
            refusal: Refusal | None = Refusal.PURPOSE_CONTRADICTED
        else:
            refusal = _refusal(choice, offer, known_recipients, is_signal=is_signal)
        if choice.verdict not in DENIALS:
            refusal = refusal or untimely
        if refusal is not None:
            refusals.append(refusal)
            continue
        decisions.append(
            Decision(
                decision_id=decision_id,
                purpose=purpose,
                verdict=choice.verdict,
                decided_at=received_at if is_as_of_receipt else decided_at,
                recipient=recipient,
                is_signal=is_signal,
                named=named(offer, choice),
                is_as_of_receipt=is_as_of_receipt,
            )
        )
    return Judged(decisions=tuple(decisions), refusals=tuple(refusals))


def _untimely(decided_at: datetime, received_at: datetime, now: datetime) -> Refusal | None:
    if decided_at < now - AGE_MAX:
        return Refusal.TOO_OLD
    return Refusal.FROM_THE_FUTURE if decided_at > received_at + AHEAD_MAX else None


def _refusal(
    choice: Choice,
    offer: Offer | None,
    known_recipients: frozenset[tuple[str, str]],
    *,
    is_signal: bool,
) -> Refusal | None:
    if choice.recipient and (choice.purpose, choice.recipient) not in known_recipients:
        return Refusal.RECIPIENT_UNKNOWN
    if choice.verdict in DENIALS:
        return Refusal.PURPOSE_NECESSARY if choice.purpose == NECESSARY else None
    if is_signal:
        return Refusal.SIGNAL_GIVES_NOTHING
    return _why_not_offered(choice, offer)


def _why_not_offered(choice: Choice, offer: Offer | None) -> Refusal | None:
    if offer is None:
        # nobody can say what was agreed to: no proof, so nothing in force (R-F2)
        return Refusal.CATALOGUE_UNKNOWN
    if choice.purpose not in offer.recipients:
        return Refusal.PURPOSE_NOT_OFFERED
    if choice.recipient not in {None, *offer.recipients[choice.purpose]}:
        return Refusal.RECIPIENT_NOT_OFFERED
    return None


def named(offer: Offer | None, choice: Choice) -> frozenset[str]:
    """Return whom the version shown names for a purpose; nobody where it is not known."""
    return frozenset() if offer is None else offer.recipients.get(choice.purpose, frozenset())


def as_last_word(decision: Decision, known: Iterable[Decision]) -> Decision:
    """Return a denial that was taken as of its receipt so that nothing before it outlasts it.

    Of one instant the higher id would win, which follows from the wrong clock too.
    """
    if not decision.is_as_of_receipt or decision.verdict not in DENIALS:
        return decision
    instants = [one.decided_at for one in known if one.purpose == decision.purpose]
    latest = max(instants, default=decision.decided_at - _TICK)
    return replace(decision, decided_at=max(decision.decided_at, latest + _TICK))


_TICK = timedelta(microseconds=1)


class Novelty(StrEnum):
    """What a decision is to the ones already known."""

    NEW = "new"
    KNOWN = "known"
    CONTRADICTS = "contradicts"


def compare(known: Mapping[Key, Decision], decision: Decision) -> Novelty:
    """Say whether a decision is new; the same key with another content contradicts.

    What was taken as of its receipt comes again with the instant that it was told with, or with
    that of another receipt: the first one stands. An agreement was told a little ahead at most.
    """
    earlier = known.get(decision.key)
    if earlier is None:
        return Novelty.NEW
    later_by = decision.decided_at - earlier.decided_at
    later_max = timedelta.max if decision.verdict in DENIALS else AHEAD_MAX
    if decision.is_as_of_receipt or timedelta(0) < later_by <= later_max:
        decision = replace(decision, decided_at=earlier.decided_at)
    return Novelty.KNOWN if earlier == decision else Novelty.CONTRADICTS


def states_of(decisions: Iterable[Decision]) -> tuple[State, ...]:
    """Return what stands for each purpose decided about, by name; no decision = nothing.

    A purpose comes first as a whole; it reaches whom the version shown named. Where that is not
    the same for all, each recipient that was named, by a version or by the visitor, comes by
    itself. Who is not among them was agreed to by nobody (R-F1, R-F2).
    """
    by_purpose: dict[str, dict[Key, Decision]] = {}
    for decision in decisions:
        if decision.verdict not in NO_ANSWER:
            by_purpose.setdefault(decision.purpose, {})[decision.key] = decision
    states = []
    for purpose in sorted(by_purpose):
        among = by_purpose[purpose].values()
        named = {one.named for one in among if one.verdict is Verdict.GIVEN}
        if len(named) <= 1 and all(one.recipient is None for one in among):
            states.append(_state(purpose, None, among, reaches=next(iter(named), frozenset())))
            continue
        recipients = {name for one in among for name in (one.recipient, *one.named) if name}
        of_all = [one for one in among if one.recipient is None]
        if of_all:
            states.append(_state(purpose, None, of_all))
        for recipient in sorted(recipients):
            mine = [one for one in among if _is_about(one, recipient)]
            if mine:
                states.append(_state(purpose, recipient, mine))
    # a cut could lose a denial; the register and all catalogues name far fewer (a test counts)
    assert len(states) <= STATES_MAX
    return tuple(states)


def _is_about(decision: Decision, recipient: str) -> bool:
    """Whether a decision says something of a recipient: a denial as a whole is about everybody."""
    if decision.recipient is not None:
        return decision.recipient == recipient
    return decision.verdict is not Verdict.GIVEN or recipient in decision.named


def _state(
    purpose: str,
    recipient: str | None,
    decisions: Iterable[Decision],
    reaches: frozenset[str] = frozenset(),
) -> State:
    ordered = _heard(sorted(decisions, key=lambda decision: decision.order))
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
    return State(
        purpose=purpose,
        recipient=recipient,
        reaches=reaches,
        in_force=in_force,
        since=since,
        changes=tuple(reversed(changes))[:CHANGES_MAX],
    )


def _heard(ordered: Sequence[Decision]) -> list[Decision]:
    """Return the decisions that count: a signal only until the visitor has answered themselves."""
    answered = next((n for n, one in enumerate(ordered) if not one.is_signal), len(ordered))
    return [one for n, one in enumerate(ordered) if n < answered or not one.is_signal]


def in_force_at(state: State, instant: datetime) -> bool:
    """Whether consent was in force at an instant: a withdrawal works for the future only (K2)."""
    assert instant.tzinfo is not None
    for change in state.changes:
        if change.at <= instant:
            return change.verdict is Verdict.GIVEN
    return False
