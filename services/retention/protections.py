"""Rules of orders about persons and of legal holds: pure (R-D3, R-G3, R-G4).

Two distinct persons place a hold, and two lift it. A restriction, which the person asks for, needs
one. A hold pauses deletion and never lengthens anything by accident: it has a review date.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from uuid import UUID

PERSON_KINDS = ("ad_use", "ip_address", "traffic_data")
"""Kinds whose rows a visitor's id reaches; a consent proof names no visitor (ADR 0013)."""
REVIEW_MAX = timedelta(days=366)
"""No review date lies further ahead; an installation may want less (`Settings.review_max_days`)."""
RESTRICTION_REVIEW_AFTER = timedelta(days=90)
"""When a restriction is looked at again where nobody says another day."""
_STAFF_ID = re.compile(r"staff-[1-9][0-9]{0,5}")
_CASE_NUMBER = re.compile(r"[A-Z]{2,8}-20[0-9]{2}-[0-9]{1,5}")


class Ground(StrEnum):
    """The notice's grounds for a legal hold (section 5, R-D3). Closed."""

    CRIMINAL_COMPLAINT = "criminal_complaint"
    """A criminal complaint (Strafanzeige)."""
    PROSECUTION = "prosecution"
    """A prosecution (Strafverfolgung)."""
    CLAIM_AGAINST_VIOLATOR = "claim_against_violator"
    """Enforcing claims against violators (Rechtsverfolgung)."""
    SPECIAL_THREAT = "special_threat"
    """Addresses of a special threat, for as long as its assessment says (R-C3, R-D2)."""


class ReviewReason(StrEnum):
    """Why a hold or restriction goes on. Closed, so that nothing personal stands in it."""

    PROCEEDINGS_PENDING = "proceedings_pending"
    """Criminal or civil proceedings (Verfahren) go on."""
    CLAIM_OPEN = "claim_open"
    """The claim is neither settled nor lapsed."""
    AUTHORITY_ASKED = "authority_asked"
    """An authority or court (Behörde, Gericht) asked for it in writing."""
    ACCURACY_DISPUTED = "accuracy_disputed"
    """Art. 18(1)(a) GDPR: accuracy is still being verified."""
    ERASURE_OPPOSED = "erasure_opposed"
    """Art. 18(1)(b): unlawful, and the person wants it restricted, not erased."""
    PERSON_NEEDS_IT = "person_needs_it"
    """Art. 18(1)(c): the person needs it for legal claims."""
    OBJECTION_PENDING = "objection_pending"
    """Art. 18(1)(d): whose interests prevail is not decided yet."""


class WaiverReason(StrEnum):
    """Why an answer will never come. Closed, so that nothing personal stands in it."""

    DECOMMISSIONED = "decommissioned"
    """Service or system are no longer, and their data with them."""
    HOLDER_SILENT = "holder_silent"
    """The system outside does not answer, and was asked by other ways."""
    DEAD_LETTER = "dead_letter"
    """The order or its answer cannot be processed."""
    ANSWERED_OTHERWISE = "answered_otherwise"
    """Done, and told by another way than the topic."""


REASONS_OF_RESTRICTIONS = frozenset(
    {
        ReviewReason.ACCURACY_DISPUTED,
        ReviewReason.ERASURE_OPPOSED,
        ReviewReason.PERSON_NEEDS_IT,
        ReviewReason.OBJECTION_PENDING,
    }
)
"""The others are reasons of holds."""


class Step(StrEnum):
    """What was done about a protection, in the order in which it can be."""

    PROPOSED = "proposed"
    PLACED = "placed"
    RELEASE_PROPOSED = "release_proposed"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"


class Refusal(StrEnum):
    """Why it is not done."""

    STAFF_ID_MALFORMED = "staff_id_malformed"
    CASE_NUMBER_MALFORMED = "case_number_malformed"
    NOBODY_NAMED = "nobody_named"
    NOT_FOUND = "not_found"
    SAME_PERSON = "same_person"
    OUT_OF_TURN = "out_of_turn"
    NOTHING_TO_HOLD = "nothing_to_hold"
    KIND_UNKNOWN = "kind_unknown"
    KEPT_ELSEWHERE = "kept_elsewhere"
    """Another system keeps it, whose holder tells of the hold (topic `record`)."""
    DAYS_REVERSED = "days_reversed"
    REVIEW_NOT_AHEAD = "review_not_ahead"
    REVIEW_TOO_FAR = "review_too_far"
    REVIEW_NOT_LATER = "review_not_later"
    REVIEW_DIFFERS = "review_differs"
    NOTHING_PROPOSED = "nothing_proposed"
    REASON_UNFIT = "reason_unfit"
    DAYS_PAST_REVIEW = "days_past_review"
    NOT_EXPECTED = "not_expected"
    ANSWERED_ALREADY = "answered_already"
    NOT_OVERDUE = "not_overdue"
    CASE_DIFFERS = "case_differs"
    NOT_ASSESSED = "not_assessed"
    """No assessment of a special threat in force names the case."""
    ADDRESSES_ONLY = "addresses_only"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a hold covers.

    Attributes:
        kinds: kinds of data, at least one.
        from_day: first day (UTC); None = from the beginning.
        before_day: first day that it does not cover.
        names_visitors: whether it is about some visitors, not about everybody.
    """

    kinds: tuple[str, ...]
    from_day: date | None
    before_day: date
    names_visitors: bool


@dataclass(frozen=True, kw_only=True)
class ProposedReview:
    """A later review date that somebody has proposed and nobody has confirmed."""

    review_id: UUID
    review_on: date
    reason: str
    staff_id: str


@dataclass(frozen=True, kw_only=True)
class Protection:
    """A hold or restriction as it stands; `steps` says who took each."""

    protection_id: UUID
    is_hold: bool
    case_number: str
    ground: str | None
    scope: Scope
    review_on: date | None
    steps: Mapping[Step, str]

    @property
    def is_in_force(self) -> bool:
        """Whether it keeps anything now."""
        return Step.PLACED in self.steps and Step.RELEASED not in self.steps


def refuse_author(staff_id: str, case_number: str) -> Refusal | None:
    """Say what is wrong with who asks, or with the case: a form in which nothing personal hides."""
    if _STAFF_ID.fullmatch(staff_id) is None:
        return Refusal.STAFF_ID_MALFORMED
    if _CASE_NUMBER.fullmatch(case_number) is None:
        return Refusal.CASE_NUMBER_MALFORMED
    return None


def refuse_scope(
    scope: Scope, known_kinds: frozenset[str], holdable: frozenset[str]
) -> Refusal | None:
    """Say what is wrong with what a hold would cover.

    Args:
        holdable: what services keep, and whose rule knows holds.
    """
    if not scope.kinds:
        return Refusal.NOTHING_TO_HOLD
    if not known_kinds.issuperset(scope.kinds):
        return Refusal.KIND_UNKNOWN
    if not holdable.issuperset(scope.kinds):
        return Refusal.KEPT_ELSEWHERE
    if scope.names_visitors and not set(scope.kinds) <= set(PERSON_KINDS):
        # a proof names no visitor: the hold would promise what nobody can do
        return Refusal.NOTHING_TO_HOLD
    if scope.from_day is not None and scope.from_day >= scope.before_day:
        return Refusal.DAYS_REVERSED
    return None


def refuse_threat(
    ground: str, scope: Scope, case_number: str, cases: frozenset[str]
) -> Refusal | None:
    """Say why a hold may not rest on a special threat; None where it may, or does not.

    Args:
        cases: cases of the assessments that are in force.
    """
    if ground != Ground.SPECIAL_THREAT:
        return None
    if scope.kinds != ("ip_address",) or not scope.names_visitors:
        return Refusal.ADDRESSES_ONLY
    return None if case_number in cases else Refusal.NOT_ASSESSED


def refuse_review(
    review_on: date, today: date, review_max: timedelta = REVIEW_MAX
) -> Refusal | None:
    """Say what is wrong with a review date (Berlin): ahead, and within a year."""
    if review_on <= today:
        return Refusal.REVIEW_NOT_AHEAD
    return Refusal.REVIEW_TOO_FAR if review_on - today > review_max else None


def refuse_reach(scope: Scope, review_on: date) -> Refusal | None:
    """Say whether days are covered that come after the review: nobody has looked at those yet."""
    last_day = scope.before_day - timedelta(days=1)
    return Refusal.DAYS_PAST_REVIEW if last_day > review_on else None


def refuse_later_review(
    found: Protection | None,
    review_on: date,
    reason: str,
    today: date,
    review_max: timedelta = REVIEW_MAX,
) -> Refusal | None:
    """Say why a hold or restriction may not get a later review date for a reason."""
    if found is None:
        return Refusal.NOT_FOUND
    if not found.is_in_force:
        return Refusal.OUT_OF_TURN
    if (reason in REASONS_OF_RESTRICTIONS) == found.is_hold:
        return Refusal.REASON_UNFIT
    if found.review_on is not None and review_on <= found.review_on:
        return Refusal.REVIEW_NOT_LATER
    return refuse_review(review_on, today, review_max)


def refuse_confirmation(
    proposed: ProposedReview | None, review_on: date, staff_id: str
) -> Refusal | None:
    """Say why a person may not confirm a proposed review date, as they believe it to be."""
    if proposed is None:
        return Refusal.NOTHING_PROPOSED
    if proposed.staff_id == staff_id:
        return Refusal.SAME_PERSON
    return None if proposed.review_on == review_on else Refusal.REVIEW_DIFFERS


_BEFORE: Mapping[Step, tuple[frozenset[Step], frozenset[Step]]] = {
    # step -> (steps that must have been taken, steps that must not)
    Step.PLACED: (
        frozenset({Step.PROPOSED}),
        frozenset({Step.PLACED, Step.WITHDRAWN}),
    ),
    Step.WITHDRAWN: (
        frozenset({Step.PROPOSED}),
        frozenset({Step.PLACED, Step.WITHDRAWN}),
    ),
    Step.RELEASE_PROPOSED: (
        frozenset({Step.PLACED}),
        frozenset({Step.RELEASE_PROPOSED, Step.RELEASED}),
    ),
    Step.RELEASED: (
        frozenset({Step.RELEASE_PROPOSED}),
        frozenset({Step.RELEASED}),
    ),
}
_OTHER_PERSON = {Step.PLACED: Step.PROPOSED, Step.RELEASED: Step.RELEASE_PROPOSED}


def refuse_step(hold: Protection | None, step: Step, staff_id: str) -> Refusal | None:
    """Say why a person may not take a step with a hold; None where they may."""
    if hold is None or not hold.is_hold:
        return Refusal.NOT_FOUND
    needed, excluded = _BEFORE[step]
    if not needed <= hold.steps.keys() or excluded & hold.steps.keys():
        return Refusal.OUT_OF_TURN
    if step in _OTHER_PERSON and hold.steps[_OTHER_PERSON[step]] == staff_id:
        return Refusal.SAME_PERSON
    return None


def refuse_unrestrict(restriction: Protection | None, case_number: str) -> Refusal | None:
    """Say why a restriction may not be lifted; None where it may."""
    if restriction is None or restriction.is_hold:
        return Refusal.NOT_FOUND
    if not restriction.is_in_force:
        return Refusal.OUT_OF_TURN
    return None if restriction.case_number == case_number else Refusal.CASE_DIFFERS
