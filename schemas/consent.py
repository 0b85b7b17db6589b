"""Events `consent` and `consent-state`: what a visitor decided, and what is in force (R-F2)."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.transfer import RecipientId
from schemas.wire import Instant, ServerId, VisitorId, WireModel

CHOICES_MAX = 32
STATES_MAX = 24
PagePath = Annotated[str, Field(pattern=r"^/[^\s?#]{0,199}$")]
"""Of the page on which it was decided; no query, no fragment: they may name a person."""
Version = Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]


class Purpose(StrEnum):
    """Categories of the consent catalogue (R-F1)."""

    NECESSARY = "necessary"
    PREFERENCES = "preferences"
    STATISTICS = "statistics"
    MARKETING = "marketing"


class ConsentDecision(StrEnum):
    """What the visitor did about one purpose; the last two put nothing in force and end nothing."""

    GIVEN = "given"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    OBJECTED = "objected"
    DISMISSED = "dismissed"
    """Closed the question without an answer."""
    SERVED = "served"
    """Was shown the question; no answer so far."""


DENIALS = frozenset({ConsentDecision.REFUSED, ConsentDecision.WITHDRAWN, ConsentDecision.OBJECTED})
"""What needs no catalogue: who denies need not say what was shown."""


class ConsentMethod(StrEnum):
    """By what means the decision reached us."""

    BANNER = "banner"
    PAGE = "page"
    EMAIL = "email"
    SIGNAL = "signal"


class ConsentChoice(WireModel):
    """One purpose and what was decided about it; without a recipient, for all that were named."""

    purpose: Purpose
    decision: ConsentDecision
    recipient: RecipientId | None = None


class ConsentV1(WireModel):
    """A visitor's decision. Natural key: `decision_id`; decided at `ce_time`.

    What was shown (versions, language) may be left out where all choices are denials: a withdrawal
    in one step and a signal of the browser answer no question (R-F3).
    """

    decision_id: ServerId
    visitor_id: VisitorId
    choices: Annotated[tuple[ConsentChoice, ...], Field(min_length=1, max_length=CHOICES_MAX)]
    catalogue_version: Version | None = None
    wording_version: Version | None = None
    language: Annotated[str | None, Field(pattern=r"^[a-z]{2}$")] = None
    method: ConsentMethod
    page: PagePath | None = None

    @model_validator(mode="after")
    def _says_what_was_shown(self) -> Self:
        is_said = None not in {self.catalogue_version, self.wording_version, self.language}
        if not is_said and any(choice.decision not in DENIALS for choice in self.choices):
            raise ValueError("only denials need not say what was shown")
        return self


class ConsentChange(WireModel):
    """A change of state and its instant; kept some days, so that a late event is judged rightly."""

    decision: ConsentDecision
    at: Instant


class PurposeState(WireModel):
    """What is in force for one purpose, since when, and the last days' changes, newest first.

    With a recipient it is about that one alone; without, it is about those whom it `reaches`. Of a
    recipient in neither nothing is in force.
    """

    purpose: Purpose
    recipient: RecipientId | None = None
    reaches: Annotated[tuple[RecipientId, ...], Field(max_length=64)] = ()
    in_force: bool
    since: Instant
    changes: Annotated[tuple[ConsentChange, ...], Field(max_length=64)] = ()


class ConsentStateV1(WireModel):
    """All of a visitor's purposes as they stand; the last record per visitor wins."""

    visitor_id: VisitorId
    purposes: Annotated[tuple[PurposeState, ...], Field(max_length=STATES_MAX)]
