"""Events `consent` and `consent-state`: what a visitor decided, and what is in force (R-F2)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, ServerId, VisitorId, WireModel


class Purpose(StrEnum):
    """Categories of the consent catalogue (R-F1)."""

    NECESSARY = "necessary"
    PREFERENCES = "preferences"
    STATISTICS = "statistics"
    MARKETING = "marketing"


class ConsentDecision(StrEnum):
    """What the visitor did about one purpose."""

    GIVEN = "given"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    OBJECTED = "objected"


class ConsentMethod(StrEnum):
    """By what means the decision reached us."""

    BANNER = "banner"
    PAGE = "page"
    EMAIL = "email"
    SIGNAL = "signal"


class ConsentChoice(WireModel):
    """One purpose and what was decided about it."""

    purpose: Purpose
    decision: ConsentDecision


class ConsentV1(WireModel):
    """A visitor's decision. Natural key: `decision_id`; decided at `ce_time`."""

    decision_id: ServerId
    visitor_id: VisitorId
    choices: Annotated[tuple[ConsentChoice, ...], Field(min_length=1, max_length=8)]
    catalogue_version: Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]
    wording_version: Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]
    language: Annotated[str, Field(pattern=r"^[a-z]{2}$")]
    method: ConsentMethod


class ConsentChange(WireModel):
    """A change of state and its instant; kept some days, so that a late event is judged rightly."""

    decision: ConsentDecision
    at: Instant


class PurposeState(WireModel):
    """What is in force for one purpose, since when, and the last days' changes, newest first."""

    purpose: Purpose
    in_force: bool
    since: Instant
    changes: Annotated[tuple[ConsentChange, ...], Field(max_length=64)] = ()


class ConsentStateV1(WireModel):
    """All of a visitor's purposes as they stand; the last record per visitor wins."""

    visitor_id: VisitorId
    purposes: Annotated[tuple[PurposeState, ...], Field(max_length=8)]
