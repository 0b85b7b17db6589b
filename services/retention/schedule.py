"""The schedule: which kind of data is kept why and for how long, as dated data, and what is due.

A schedule that is wrong is refused at the start, in one sentence: nothing is guessed about periods.
Rules have dates of validity and are never changed once released (`releases.py`), so that what
applied on a past day can still be told (R-D9).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Literal, Self, assert_never

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schemas.retention import RECORD_KINDS, DataKind, DocumentClass, RetentionAction
from services.chassis.errors import Fatal
from services.privacy import calendar
from services.privacy.declare import LegalBasis, PeriodStart, Purpose

WEEK_HOURS = 7 * 24
SPECIAL_MONTHS_MAX = 3
AD_FINANCED = (DataKind.AD_USE, DataKind.TRAFFIC_DATA)
"""R-D5: 7 x 24 h at the latest, and no threat level ever extends it."""
ANONYMISABLE = frozenset({DataKind.IP_ADDRESS})
"""Kinds of which every service that keeps them makes figures; the compiler asks the services."""
MONTHS_MAX = {DataKind.PAID_TRAFFIC: 6, DataKind.APPLICATION: 3}
"""R-D5b, R-D8."""


class ScheduleError(Fatal):
    """The schedule cannot be acted upon; the text says why in one sentence."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Text = Annotated[str, Field(min_length=1)]


class Language(StrEnum):
    """In which the notice is published."""

    DE = "de"
    EN = "en"


class ThreatLevel(StrEnum):
    """How much threat there is to data security (R-C3)."""

    NONE = "none"
    """No full address outlives the use."""
    NORMAL = "normal"
    SPECIAL = "special"
    """The addresses concerned stay longer, by a hold that the case places; all others do not."""


class ThreatAssessment(_Data):
    """A dated assessment; it ends by itself, at its end or when nobody has reviewed it.

    Attributes:
        ends_on: first day on which it is over; a special one must have it.
        case_id: exactly of a special one: the case number of the hold that names the addresses.
    """

    assessed_on: date
    level: ThreatLevel
    author: Text
    reason: Text
    ends_on: date | None = None
    case_id: Annotated[str, Field(pattern=r"^[A-Z]{2,8}-20[0-9]{2}-[0-9]{1,5}$")] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_special = self.level is ThreatLevel.SPECIAL
        what = f"threat assessment of {self.assessed_on}"
        if (self.case_id is not None) != is_special:
            raise ValueError(f"{what}: a case belongs to a special threat, and to no other")
        if is_special and self.ends_on is None:
            raise ValueError(f"{what}: a special threat needs its end")
        if self.ends_on is not None and self.ends_on <= self.assessed_on:
            raise ValueError(f"{what} ends before it begins")
        return self


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
    special_months: Annotated[int, Field(gt=0, le=SPECIAL_MONTHS_MAX)]
    """A special threat ends no later; for the addresses of its case only."""


class YearsPeriod(_Data):
    """Until the end of the n-th calendar year (Berlin) after the start's."""

    unit: Literal["calendar_years"]
    years: Annotated[int, Field(gt=0, le=10)]


class MonthsPeriod(_Data):
    """So many calendar months (Berlin) at the most (R-D5b, R-D8)."""

    unit: Literal["months"]
    months: Annotated[int, Field(gt=0)]


class AtOncePeriod(_Data):
    """Until the start, and not a day more (R-D7)."""

    unit: Literal["at_once"]


class DocumentsPeriod(_Data):
    """Until a calendar year's end after the start, then blocked as long as the law says (R-D6).

    Attributes:
        block_after_calendar_years: after that of the contract's end.
        keep_calendar_years: by class, after that in which the document was made.
    """

    unit: Literal["documents"]
    block_after_calendar_years: Annotated[int, Field(gt=0, le=1)]
    keep_calendar_years: Mapping[DocumentClass, Annotated[int, Field(gt=0, le=10)]]


Period = Annotated[
    UsePeriod
    | HoursPeriod
    | ThreatPeriod
    | YearsPeriod
    | MonthsPeriod
    | AtOncePeriod
    | DocumentsPeriod,
    Field(discriminator="unit"),
]


class RuleAction(StrEnum):
    """What happens when the period is over."""

    NEVER_STORE = "never_store"
    DROP = "drop"
    """Whole partitions go."""
    ANONYMISE = "anonymise"
    """The same, once what may be known of nobody in particular was counted (R-C2)."""
    DELETE = "delete"
    """Single records go."""
    BLOCK_THEN_DELETE = "block_then_delete"


class DeletedBy(StrEnum):
    """Who carries the rule out."""

    NOBODY = "nobody"
    """Nothing is ever stored."""
    SERVICES = "services"
    """Each of our services, its day and year partitions, by an order of each sweep."""
    HOLDERS = "holders"
    """The system outside that keeps the record, by an order for the single record."""
    RETENTION = "retention"
    """This service, in its own tables."""


_ACTIONS = {
    DeletedBy.NOBODY: {RuleAction.NEVER_STORE},
    DeletedBy.SERVICES: {RuleAction.DROP, RuleAction.ANONYMISE},
    DeletedBy.HOLDERS: {RuleAction.DELETE, RuleAction.BLOCK_THEN_DELETE},
    DeletedBy.RETENTION: {RuleAction.DROP},
}


class ExceptionName(StrEnum):
    """Why a single item may outlive its period. Closed: what has no name here goes."""

    LEGAL_HOLD = "legal_hold"
    RESTRICTION = "restriction"
    OBJECTION_OPEN = "objection_open"
    PROCEEDING_OPEN = "proceeding_open"
    TAX_ASSESSMENT_OPEN = "tax_assessment_open"


class ExceptionGround(_Data):
    """An exception and its ground in words."""

    name: ExceptionName
    texts: Mapping[Language, Text]


class RuleTexts(_Data):
    """What the notice says of a rule in one language; the period's words follow from the data."""

    data: Text
    purpose: Text
    basis: Text
    ground: Text


class Rule(_Data):
    """One kind of data and its period, valid between two dates.

    Attributes:
        purposes: for which items of the kind may be stored; the first is the usual one.
        legal_bases: on which they may rest; the first is the usual one.
        valid_until: first day on which it is no longer valid.
    """

    requirement: Annotated[str, Field(pattern=r"^R-D[0-9]+b?$")]
    kind: DataKind
    purposes: Annotated[tuple[Purpose, ...], Field(min_length=1)]
    legal_bases: Annotated[tuple[LegalBasis, ...], Field(min_length=1)]
    period_start: PeriodStart
    period: Period
    action: RuleAction
    deleted_by: DeletedBy
    exceptions: tuple[ExceptionName, ...]
    is_controller_confirmed: bool
    valid_from: date
    valid_until: date | None = None
    texts: Mapping[Language, RuleTexts]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in (*_misfits(self), *_misfits_of_kind(self)):
            raise ValueError(f"{self.kind}: {problem}")
        return self

    @property
    def purpose(self) -> str:
        """The controller's purpose, in English."""
        return self.texts[Language.EN].purpose

    @property
    def legal_basis(self) -> str:
        """The legal basis, in English."""
        return self.texts[Language.EN].basis

    @property
    def ground(self) -> str:
        """Where the period comes from, in English."""
        return self.texts[Language.EN].ground

    def is_valid_on(self, day: date) -> bool:
        """Whether the rule applies on a Berlin date."""
        return self.valid_from <= day and (self.valid_until is None or day < self.valid_until)


def _misfits(rule: Rule) -> Iterator[str]:
    """Yield what in a rule contradicts itself, whatever its kind."""
    period, action = rule.period, rule.action
    if isinstance(period, UsePeriod) != (action is RuleAction.NEVER_STORE):
        yield "what lasts for the use only is never stored"
    if isinstance(period, DocumentsPeriod) != (action is RuleAction.BLOCK_THEN_DELETE):
        yield "exactly documents are blocked before they are deleted"
    if action not in _ACTIONS[rule.deleted_by]:
        yield f"{rule.deleted_by} cannot {action}"
    if action is RuleAction.ANONYMISE and rule.kind not in ANONYMISABLE:
        yield "no service can anonymise it"
    if isinstance(period, HoursPeriod) and period.margin_hours >= period.hours:
        yield "the margin is as long as the period"
    if rule.valid_until is not None and rule.valid_until <= rule.valid_from:
        yield "a rule ends before it begins"
    if set(rule.texts) != set(Language):
        yield "texts are missing in a language of the notice"


def _misfits_of_kind(rule: Rule) -> Iterator[str]:
    """Yield what a rule allows beyond section D."""
    kind, period = rule.kind, rule.period
    if kind in AD_FINANCED and not (isinstance(period, HoursPeriod) and period.hours <= WEEK_HOURS):
        yield f"R-D5 allows at most {WEEK_HOURS} hours, nothing else"
    months = MONTHS_MAX.get(kind)
    if months and not (isinstance(period, MonthsPeriod) and period.months <= months):
        yield f"at most {months} months are allowed, nothing else"
    if (kind is DataKind.IP_ADDRESS) != isinstance(period, ThreatPeriod):
        yield "exactly addresses depend on the threat"
    if (kind is DataKind.CONTRACT) != isinstance(period, DocumentsPeriod):
        yield "exactly contracts have classes of documents"
    if isinstance(period, DocumentsPeriod) and set(period.keep_calendar_years) != set(
        DocumentClass
    ):
        yield "a class of documents has no period"
    if (kind is DataKind.DELETION_RECEIPT) != (rule.deleted_by is DeletedBy.RETENTION):
        yield "exactly the evidence is deleted by retention itself"
    if (kind in RECORD_KINDS) != (rule.deleted_by is DeletedBy.HOLDERS):
        yield "exactly what others keep as records is deleted by its holder"


@dataclass(frozen=True, kw_only=True)
class Due:
    """What a sweep has to order for one kind: everything before a day.

    Attributes:
        action: what is ordered, drop or anonymise.
        is_repeated: the day under way goes too, so that each sweep orders the same cut again.
    """

    kind: DataKind
    requirement: str
    before_day: date
    action: RetentionAction = RetentionAction.DROP
    is_repeated: bool = False


class Schedule(_Data):
    """All rules and assessments of one version.

    Attributes:
        released_on: what the notice and the alerts are compiled for.
        threat_review_months: an assessment that nobody renewed for so long is over.
    """

    version: Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]
    released_on: date
    threat_review_months: Annotated[int, Field(gt=0, le=24)]
    threat_assessments: Annotated[tuple[ThreatAssessment, ...], Field(min_length=1)]
    exceptions: tuple[ExceptionGround, ...]
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for kind in DataKind:
            _check_seamless(kind, [rule for rule in self.rules if rule.kind is kind])
        if [entry.name for entry in self.exceptions] != list(ExceptionName):
            raise ValueError("not every exception has its ground, in the order of their names")
        if any(set(entry.texts) != set(Language) for entry in self.exceptions):
            raise ValueError("an exception has no text in a language of the notice")
        self._check_assessments()
        return self

    def _check_assessments(self) -> None:
        days = [assessment.assessed_on for assessment in self.threat_assessments]
        if days != sorted(days):
            raise ValueError("threat assessments are not in the order of their days")
        general = [a.assessed_on for a in self.threat_assessments if a.case_id is None]
        if len(set(general)) != len(general):
            raise ValueError("two threat assessments of one day contradict each other")
        for case_id, assessments in self._cases():
            first = assessments[0].assessed_on
            for assessment in assessments:
                rule = self.rule_on(DataKind.IP_ADDRESS, assessment.assessed_on)
                assert isinstance(rule.period, ThreatPeriod)
                latest = calendar.add_months(first, rule.period.special_months)
                if self.end_of(assessment) > latest:
                    raise ValueError(
                        f"the special threat of case {case_id} may not last beyond {latest}"
                    )

    def _cases(self) -> list[tuple[str, list[ThreatAssessment]]]:
        """Return the special assessments by case, each in the order of days."""
        special = [(a.case_id, a) for a in self.threat_assessments if a.case_id is not None]
        special.sort(key=lambda entry: entry[0])
        return [
            (case_id, [assessment for _, assessment in found])
            for case_id, found in groupby(special, key=lambda entry: entry[0])
        ]

    def rule_on(self, kind: DataKind, day: date) -> Rule:
        """Return the rule that applies to a kind on a Berlin date.

        Raises:
            ScheduleError: none does.
        """
        for rule in self.rules:
            if rule.kind is kind and rule.is_valid_on(day):
                return rule
        raise ScheduleError(f"no rule for {kind} is in force on {day}")

    def end_of(self, assessment: ThreatAssessment) -> date:
        """Return the first day on which an assessment is over, reviewed or not."""
        review = calendar.add_months(assessment.assessed_on, self.threat_review_months)
        return review if assessment.ends_on is None else min(assessment.ends_on, review)

    def assessments_on(self, day: date) -> tuple[ThreatAssessment, ...]:
        """Return the assessments that are in force on a Berlin date, oldest first."""
        return tuple(
            assessment
            for assessment in self.threat_assessments
            if assessment.assessed_on <= day < self.end_of(assessment)
        )

    def level_on(self, day: date) -> ThreatLevel:
        """Return the level that counts for addresses in general on a Berlin date.

        That of the latest assessment in force; when it has ended, of the one before. A special
        threat is normal for all addresses but those of its case. Without assessment there is no
        threat, and so no ground to keep an address (R-C3).
        """
        found = self.assessments_on(day)
        general = [assessment.level for assessment in found if assessment.case_id is None]
        if general:
            return general[-1]
        return ThreatLevel.NORMAL if found else ThreatLevel.NONE

    def level_ends_on(self, day: date) -> date:
        """Return the first day, from a Berlin date on, on which no address may be kept.

        There is always one: each assessment lapses when nobody reviews it.
        """
        if self.level_on(day) is ThreatLevel.NONE:
            return day
        changes = {self.end_of(a) for a in self.threat_assessments}
        changes |= {a.assessed_on for a in self.threat_assessments}
        return next(
            change
            for change in sorted(changes)
            if change > day and self.level_on(change) is ThreatLevel.NONE
        )

    def holdable_on(self, day: date) -> frozenset[str]:
        """Return the kinds that services keep and a hold can keep longer, on a Berlin date."""
        return frozenset(
            rule.kind.value
            for rule in self.rules
            if rule.is_valid_on(day)
            and rule.deleted_by is DeletedBy.SERVICES
            and ExceptionName.LEGAL_HOLD in rule.exceptions
        )

    def special_cases_on(self, day: date) -> frozenset[str]:
        """Return the cases of special threats that are in force on a Berlin date."""
        return frozenset(
            assessment.case_id
            for assessment in self.assessments_on(day)
            if assessment.case_id is not None
        )

    def special_holds_due(self, as_of: datetime) -> tuple[str, ...]:
        """Return the cases whose special threat is over at an instant: their holds are to go.

        All that ever were, in their order: to release a hold a second time changes nothing.
        """
        day = calendar.berlin_date(as_of)
        return tuple(
            case_id
            for case_id, assessments in self._cases()
            if all(self.end_of(assessment) <= day for assessment in assessments)
        )

    def due(self, as_of: datetime) -> tuple[Due, ...]:
        """Return what our services must have dropped at an instant, one entry per kind.

        Raises:
            ScheduleError: a kind has no rule on that day.
        """
        day = calendar.berlin_date(as_of)
        found = []
        for kind in DataKind:
            rule = self.rule_on(kind, day)
            if rule.deleted_by is DeletedBy.SERVICES:
                arithmetic = self.arithmetic(rule, day)
                assert arithmetic is not None
                found.append(
                    Due(
                        kind=kind,
                        requirement=rule.requirement,
                        before_day=calendar.drop_before_day(arithmetic, as_of),
                        action=RetentionAction(rule.action),
                        is_repeated=isinstance(arithmetic, calendar.AtOnce),
                    )
                )
        return tuple(found)

    def evidence_before(self, as_of: datetime) -> date:
        """Return the first day whose orders and receipts stay: what we delete ourselves (R-D10).

        Raises:
            ScheduleError: there is no rule on that day.
        """
        day = calendar.berlin_date(as_of)
        arithmetic = self.arithmetic(self.rule_on(DataKind.DELETION_RECEIPT, day), day)
        assert arithmetic is not None
        return calendar.drop_before_day(arithmetic, as_of)

    def arithmetic(self, rule: Rule, day: date) -> calendar.Rule | None:
        """Return how a rule counts on a Berlin date; None where nothing is ever stored.

        Of documents: until they are blocked. How long they stay depends on their class.
        """
        match rule.period:
            case UsePeriod():
                return None
            case HoursPeriod(hours=hours, margin_hours=margin):
                return _rolling(hours, margin)
            case ThreatPeriod(normal_hours=hours, margin_hours=margin):
                is_none = self.level_on(day) is ThreatLevel.NONE
                return calendar.AtOnce() if is_none else _rolling(hours, margin)
            case YearsPeriod(years=years) | DocumentsPeriod(block_after_calendar_years=years):
                return calendar.CalendarYears(years=years)
            case MonthsPeriod(months=months):
                return calendar.Months(months=months, bound=calendar.Bound.AT_MOST)
            case AtOncePeriod():
                return calendar.AtOnce()


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
        in_words(rule.period) + ("" if rule.is_controller_confirmed else " (default)"),
        rule.period_start.value,
        rule.action.value,
        rule.legal_basis,
        rule.valid_from.isoformat(),
        rule.purpose,
    )


def in_words(period: Period) -> str:
    """Return a period in a few words, for a table."""
    match period:
        case UsePeriod(idle_minutes=minutes):
            words = f"the use, or {minutes} idle minutes"
        case HoursPeriod(hours=hours, margin_hours=margin):
            words = f"{hours} h, ordered {margin} h before"
        case ThreatPeriod(normal_hours=hours, margin_hours=margin):
            words = f"{hours} h under a normal threat, ordered {margin} h before"
        case YearsPeriod(years=years):
            words = f"end of calendar year + {years}"
        case MonthsPeriod(months=months):
            words = f"{months} months at the most"
        case AtOncePeriod():
            words = "at once"
        case DocumentsPeriod(block_after_calendar_years=years, keep_calendar_years=keep):
            classes = ", ".join(f"{name} {n}" for name, n in keep.items())
            words = f"end of calendar year + {years}, then blocked; years of {classes}"
        case _:
            assert_never(period)
    return words
