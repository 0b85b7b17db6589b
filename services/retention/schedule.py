"""The schedule: which kind of data is kept why and for how long, as dated data, and what is due.

A schedule that is wrong is refused at the start, in one sentence: nothing is guessed about periods.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.retention import DataKind
from services.chassis.errors import Fatal
from services.privacy import calendar
from services.privacy.declare import PeriodStart

WEEK_HOURS = 7 * 24
AD_FINANCED = (DataKind.AD_USE, DataKind.TRAFFIC_DATA)
"""R-D5: 7 x 24 h at the latest, and no threat level ever extends it."""


class ScheduleError(Fatal):
    """The schedule cannot be acted upon; the text says why in one sentence."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ThreatLevel(StrEnum):
    """How much threat there is to data security (R-C3)."""

    NONE = "none"
    NORMAL = "normal"
    SPECIAL = "special"


class ThreatAssessment(_Data):
    """A dated assessment; in force until the next one."""

    assessed_on: date
    level: ThreatLevel
    author: Annotated[str, Field(min_length=1)]
    reason: Annotated[str, Field(min_length=1)]


class UsePeriod(_Data):
    """Memory only: nothing is kept beyond the use's end, or so many idle minutes (R-D1)."""

    unit: Literal["use"]
    idle_minutes: Annotated[int, Field(gt=0, le=30)]


class HoursPeriod(_Data):
    """So many hours from the start; the drop is ordered `margin_hours` before."""

    unit: Literal["hours"]
    hours: Annotated[int, Field(gt=0)]
    margin_hours: Annotated[int, Field(ge=2)]


class ThreatPeriod(_Data):
    """As long as the threat makes it appropriate (R-D2)."""

    unit: Literal["threat"]
    normal_hours: Annotated[int, Field(gt=0, le=WEEK_HOURS)]
    margin_hours: Annotated[int, Field(ge=2)]


class YearsPeriod(_Data):
    """Until the end of the n-th calendar year (Berlin) after the start's."""

    unit: Literal["calendar_years"]
    years: Annotated[int, Field(gt=0, le=10)]


Period = Annotated[
    UsePeriod | HoursPeriod | ThreatPeriod | YearsPeriod, Field(discriminator="unit")
]


class RuleAction(StrEnum):
    """What happens when the period is over."""

    NEVER_STORE = "never_store"
    DROP = "drop"


class Rule(_Data):
    """One kind of data and its period, valid between two dates."""

    requirement: Annotated[str, Field(pattern=r"^R-D[0-9]+b?$")]
    kind: DataKind
    purpose: Annotated[str, Field(min_length=1)]
    legal_basis: Annotated[str, Field(min_length=1)]
    period_start: PeriodStart
    period: Period
    action: RuleAction
    ground: Annotated[str, Field(min_length=1)]
    is_controller_confirmed: bool
    valid_from: date
    valid_until: date | None = None
    """First day on which it is no longer valid."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.period, UsePeriod) != (self.action is RuleAction.NEVER_STORE):
            raise ValueError(f"{self.kind}: what lasts for the use only is never stored")
        if self.kind in AD_FINANCED and not (
            isinstance(self.period, HoursPeriod) and self.period.hours <= WEEK_HOURS
        ):
            raise ValueError(f"{self.kind}: R-D5 allows at most {WEEK_HOURS} hours, nothing else")
        if isinstance(self.period, HoursPeriod) and self.period.margin_hours >= self.period.hours:
            raise ValueError(f"{self.kind}: the margin is as long as the period")
        if self.valid_until is not None and self.valid_until <= self.valid_from:
            raise ValueError(f"{self.kind}: a rule ends before it begins")
        return self

    def is_valid_on(self, day: date) -> bool:
        """Whether the rule applies on a Berlin date."""
        return self.valid_from <= day and (self.valid_until is None or day < self.valid_until)


@dataclass(frozen=True, kw_only=True)
class Due:
    """What a sweep has to order for one kind: everything before a day."""

    kind: DataKind
    requirement: str
    before_day: date


class Schedule(_Data):
    """All rules and assessments of one version."""

    version: Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]
    threat_assessments: Annotated[tuple[ThreatAssessment, ...], Field(min_length=1)]
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind in DataKind:
            _check_seamless(kind, [rule for rule in self.rules if rule.kind is kind])
        days = [assessment.assessed_on for assessment in self.threat_assessments]
        if days != sorted(set(days)):
            raise ValueError("threat assessments are not in the order of their days")
        for assessment in self.threat_assessments:
            if assessment.level is not ThreatLevel.NORMAL:
                # `none` ends with the use, `special` holds the addresses concerned only: issue 5
                raise ValueError(
                    f"threat level {assessment.level} of {assessment.assessed_on} "
                    "cannot be carried out yet, only `normal` can"
                )
        return self

    def rule_on(self, kind: DataKind, day: date) -> Rule:
        """Return the rule that applies to a kind on a Berlin date.

        Raises:
            ScheduleError: none does.
        """
        for rule in self.rules:
            if rule.kind is kind and rule.is_valid_on(day):
                return rule
        raise ScheduleError(f"no rule for {kind} is in force on {day}")

    def assessment_on(self, day: date) -> ThreatAssessment:
        """Return the assessment that is in force on a Berlin date.

        Raises:
            ScheduleError: none is.
        """
        for assessment in reversed(self.threat_assessments):
            if assessment.assessed_on <= day:
                return assessment
        raise ScheduleError(f"no threat assessment is in force on {day}")

    def due(self, as_of: datetime) -> tuple[Due, ...]:
        """Return what must be gone at an instant, one entry per kind that is stored at all.

        Raises:
            ScheduleError: a kind has no rule, or addresses no assessment, on that day.
        """
        day = calendar.berlin_date(as_of)
        found = []
        for kind in DataKind:
            rule = self.rule_on(kind, day)
            arithmetic = self._arithmetic(rule, day)
            if arithmetic is not None:
                before_day = calendar.drop_before_day(arithmetic, as_of)
                found.append(Due(kind=kind, requirement=rule.requirement, before_day=before_day))
        return tuple(found)

    def _arithmetic(self, rule: Rule, day: date) -> calendar.Rule | None:
        match rule.period:
            case UsePeriod():
                return None
            case HoursPeriod(hours=hours, margin_hours=margin):
                return _rolling(hours, margin)
            case ThreatPeriod(normal_hours=hours, margin_hours=margin):
                assert self.assessment_on(day).level is ThreatLevel.NORMAL
                return _rolling(hours, margin)
            case YearsPeriod(years=years):
                return calendar.CalendarYears(years=years)


def _rolling(hours: int, margin_hours: int) -> calendar.Rolling:
    return calendar.Rolling(length=timedelta(hours=hours), margin=timedelta(hours=margin_hours))


def _check_seamless(kind: DataKind, rules: Sequence[Rule]) -> None:
    """Exactly one rule at a time, without gaps, the last one without end."""
    ordered = sorted(rules, key=lambda rule: rule.valid_from)
    if not ordered:
        raise ValueError(f"{kind} has no rule")
    for earlier, later in pairwise(ordered):
        if earlier.valid_until != later.valid_from:
            raise ValueError(f"{kind}: rules overlap or leave a gap before {later.valid_from}")
    if ordered[-1].valid_until is not None:
        raise ValueError(f"{kind} has no rule from {ordered[-1].valid_until} on")


def load(path: Path) -> Schedule:
    """Read and check a schedule.

    Raises:
        ScheduleError: naming the file and the first thing that is wrong with it.
    """
    try:
        return Schedule.model_validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise ScheduleError(f"schedule {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ScheduleError(
            f"schedule {path} is wrong{f' at {place}' if place else ''}: {first['msg']}"
        ) from error


def table(schedule: Schedule) -> list[tuple[str, ...]]:
    """Return the schedule as rows of text, the first one its heading."""
    heading = ("rule", "kind", "period", "from", "action", "legal basis", "valid from", "purpose")
    return [heading, *(_row(rule) for rule in schedule.rules)]


def _row(rule: Rule) -> tuple[str, ...]:
    return (
        rule.requirement,
        rule.kind.value,
        _in_words(rule.period) + ("" if rule.is_controller_confirmed else " (default)"),
        rule.period_start.value,
        rule.action.value,
        rule.legal_basis,
        rule.valid_from.isoformat(),
        rule.purpose,
    )


def _in_words(period: Period) -> str:
    match period:
        case UsePeriod(idle_minutes=minutes):
            return f"the use, or {minutes} idle minutes"
        case HoursPeriod(hours=hours, margin_hours=margin):
            return f"{hours} h, ordered {margin} h before"
        case ThreatPeriod(normal_hours=hours, margin_hours=margin):
            return f"{hours} h under a normal threat, ordered {margin} h before"
        case YearsPeriod(years=years):
            return f"end of calendar year + {years}"
