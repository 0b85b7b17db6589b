"""`python -m services.retention explain <kind|id>`: which rule, when due, what happened.

Answers from the schedule and from the evidence alone; what was deleted is not needed for it (R-D9).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any
from uuid import UUID

from schemas.retention import DataKind, DocumentClass
from services.chassis import db
from services.chassis.clock import Clock, SystemClock
from services.privacy import calendar
from services.retention import record_rules, records, releases, schedule, words
from services.retention.domain import Standing
from services.retention.record_rules import History
from services.retention.schedule import (
    DocumentsPeriod,
    Language,
    Rule,
    Schedule,
    ScheduleError,
    ThreatPeriod,
)
from services.retention.settings import Settings
from services.retention.store import Store
from services.retention.wire import describe

EXIT_REFUSED = 2
EXIT_UNKNOWN = 4
ORDERS_SHOWN = 5
BY_SCHEDULE = "schedule"

Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked for on the command line.

    Attributes:
        what: a kind of data, or the id of an order, a record, a hold or restriction.
        on: the Berlin date whose rule is asked for; None = today.
        event: when the period of an item of the kind began.
    """

    what: DataKind | UUID
    on: date | None
    event: datetime | None
    json: bool


def parse(arguments: Sequence[str]) -> Question:
    """Read the arguments of `explain`; a wrong one ends the process with status 2."""
    parser = argparse.ArgumentParser(prog="python -m services.retention explain")
    parser.add_argument(
        "what",
        type=_what,
        help="a kind of data, or the id of an order, record, hold or restriction",
    )
    parser.add_argument("--on", type=date.fromisoformat, help="the rule of that day: 2026-11-30")
    parser.add_argument(
        "--event", type=_instant, help="begin of an item's period: 2026-11-22T18:00:00Z, or a day"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not lines")
    found = parser.parse_args(arguments)
    if found.event is not None and isinstance(found.what, UUID):
        parser.error("--event belongs to a kind of data")
    return Question(what=found.what, on=found.on, event=found.event, json=found.json)


def _what(text: str) -> DataKind | UUID:
    if text in list(DataKind):
        return DataKind(text)
    try:
        return UUID(text)
    except ValueError:
        kinds = ", ".join(DataKind)
        raise argparse.ArgumentTypeError(f"neither an id nor one of {kinds}") from None


def _instant(text: str) -> datetime:
    """Read an instant, or a day in Berlin, which begins at its midnight."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=calendar.BERLIN) if found.tzinfo is None else found


async def explain(arguments: Sequence[str]) -> int:
    """Answer one question; see `Explainer.run`."""
    question = parse(arguments)
    settings = Settings.load()
    connection = await db.connect(settings.database_url.get_secret_value())
    try:
        async with connection.transaction(readonly=True):
            rules = schedule.load(settings.schedule_path)
            return await Explainer(Store(connection), rules, SystemClock()).run(question)
    finally:
        await connection.close()


class Explainer:
    """Answers from the rules and from what is written about orders and records."""

    def __init__(self, store: Store, rules: Schedule, clock: Clock) -> None:
        """Take the parts."""
        self._store = store
        self._rules = rules
        self._clock = clock

    async def run(self, question: Question) -> int:
        """Print the answer and return the exit status: 0, 2 no rule that day, 4 id unknown."""
        try:
            answer = await self.answer(question)
        except ScheduleError as error:
            sys.stderr.write(f"retention: {error}\n")
            return EXIT_REFUSED
        if answer is None:
            sys.stderr.write(
                f"retention: no order, record, hold or restriction has the id {question.what}\n"
            )
            return EXIT_UNKNOWN
        sys.stdout.write(f"{json.dumps(answer) if question.json else _lines(answer)}\n")
        return 0

    async def answer(self, question: Question) -> Answer | None:
        """Return the answer as JSON data; None where nothing has the id."""
        day = question.on or calendar.berlin_date(self._clock.now())
        if isinstance(question.what, DataKind):
            return await self._of_kind(question.what, day, question.event)
        return (
            await self._of_order(question.what)
            or await self._of_record(question.what, day)
            or await self._of_protection(question.what, day)
        )

    async def _of_kind(self, kind: DataKind, day: date, event: datetime | None) -> Answer:
        rule = self._rules.rule_on(kind, day)
        answer: Answer = {"kind": kind.value, "on": day.isoformat(), **self._rule(rule)}
        if isinstance(rule.period, ThreatPeriod):
            answer["threat"] = self._threat(day)
        if event is not None:
            answer["item"] = {"event": event.isoformat(), **self._due(rule, day, event)}
        until = datetime.combine(day + calendar.DAY, time(), calendar.BERLIN)
        ids = await self._store.last_orders(kind.value, until, ORDERS_SHOWN)
        answer["last_sweep"] = _sweep(await self._store.last_sweep(until))
        answer["orders"] = await self._orders(ids)
        answer["orders_about_persons"] = await self._store.person_orders_of_kind(kind.value, until)
        return answer

    async def _of_order(self, order_id: UUID) -> Answer | None:
        standing = (await self._store.standings([order_id])).get(order_id)
        if standing is None:
            return None
        about = await self._store.person_order(order_id)
        version = await self._store.version_of_order(order_id)
        if about is not None:
            version = str(about["schedule_version"]) if about["schedule_version"] else None
        # by what was in force when it was issued, whatever the schedule says today
        rules = (releases.of_version(version) if version else None) or self._rules
        day = calendar.berlin_date(standing.order.as_of)
        rule = rules.rule_on(DataKind(standing.order.kind), day)
        deeds = await self._store.records.count_of_order(order_id)
        answer: Answer = {"order": describe(standing), **self._rule(rule, rules)}
        if deeds:
            answer["order"]["deeds"] = deeds
        answer["order"] |= await self._more_of_order(order_id, standing, about)
        return answer

    async def _more_of_order(
        self, order_id: UUID, standing: Standing, about: Mapping[str, object] | None
    ) -> Answer:
        """Return who ordered it and from whom an answer is expected; of persons only how many."""
        found: Answer = {
            "expected": list(standing.order.expected),
            "schedule_version_when_made": None,
            "sent_again_at": [at.isoformat() for at in await self._store.sent_again_at(order_id)],
            "waivers_proposed": [
                {name: _plain(value) for name, value in one.items()}
                for one in await self._store.open_waivers(order_id)
            ],
        }
        if about is None:
            found["schedule_version_when_made"] = await self._store.version_of_order(order_id)
            return found | {"ordered_by": BY_SCHEDULE}
        found["schedule_version_when_made"] = about["schedule_version"]
        return found | {
            name: _plain(value) for name, value in about.items() if name != "schedule_version"
        }

    async def _of_record(self, record_id: UUID, day: date) -> Answer | None:
        found = records.histories_of(
            await self._store.records.known([record_id]),
            await self._store.records.events([record_id]),
        )
        if not found:
            return None
        (history,) = found
        rule = self._rules.rule_on(history.record.kind, day)
        deeds = await self._store.records.orders_of(record_id)
        orders = await self._orders([order_id for order_id, _ in deeds])
        for order, (_, deed) in zip(orders, deeds, strict=True):
            order["deed"] = deed
        return {
            "record": _record(history),
            "on": day.isoformat(),
            **self._rule(rule),
            "due": {
                entry.deed.value: entry.due_at.isoformat()
                for entry in record_rules.deeds(self._rules, history, day)
            },
            "open_exceptions": [name.value for name in record_rules.open_exceptions(rule, history)],
            "orders": orders,
        }

    async def _of_protection(self, protection_id: UUID, day: date) -> Answer | None:
        found = await self._store.protections.protection(protection_id)
        if found is None:
            return None
        scope = found.scope
        rules = [self._rules.rule_on(DataKind(kind), day) for kind in scope.kinds]
        return {
            "protection": {
                "protection_id": str(protection_id),
                "is": "hold" if found.is_hold else "restriction",
                "is_in_force": found.is_in_force,
                "case_number": found.case_number,
                "ground": found.ground,
                "kinds": list(scope.kinds),
                "from_day": scope.from_day and scope.from_day.isoformat(),
                "before_day": scope.before_day.isoformat(),
                "names_visitors": scope.names_visitors,
                "review_on": found.review_on and found.review_on.isoformat(),
            },
            "steps": [
                {"step": step, "by": staff_id, "done_at": done_at.isoformat()}
                for step, staff_id, done_at in await self._store.steps_of_protection(protection_id)
            ],
            "reviews": [
                {name: _plain(value) for name, value in review.items()}
                for review in await self._store.protections.reviews(protection_id)
            ],
            "on": day.isoformat(),
            # what it keeps from going, and what is due again when it is over
            "rules": [self._rule(rule)["rule"] for rule in rules],
            "orders": await self._orders(await self._store.orders_of_protection(protection_id)),
        }

    async def _orders(self, order_ids: Sequence[UUID]) -> list[Answer]:
        standings = await self._store.standings(order_ids)
        return [describe(standings[order_id]) for order_id in order_ids]

    def _rule(self, rule: Rule, rules: Schedule | None = None) -> Answer:
        rules = rules or self._rules
        return {
            "schedule_version": rules.version,
            "rule": {
                "requirement": rule.requirement,
                "data": rule.texts[Language.EN].data,
                "purpose": rule.purpose,
                "legal_basis": rule.legal_basis,
                "period": words.period(rule, rules, Language.EN),
                "action": rule.action.value,
                "deleted_by": rule.deleted_by.value,
                "exceptions": [name.value for name in rule.exceptions],
                "ground": rule.ground,
                "is_controller_confirmed": rule.is_controller_confirmed,
                "valid_from": rule.valid_from.isoformat(),
                "valid_until": rule.valid_until and rule.valid_until.isoformat(),
            },
        }

    def _threat(self, day: date) -> Answer:
        return {
            "level": self._rules.level_on(day).value,
            "assessments": [
                {
                    "level": assessment.level.value,
                    "assessed_on": assessment.assessed_on.isoformat(),
                    "ends_on": self._rules.end_of(assessment).isoformat(),
                    "author": assessment.author,
                    "reason": assessment.reason,
                    **({"case_id": assessment.case_id} if assessment.case_id else {}),
                }
                for assessment in self._rules.assessments_on(day)
            ],
        }

    def _due(self, rule: Rule, day: date, event: datetime) -> Answer:
        """Return when an item is due: by the rule of a day, without any exception."""
        arithmetic = self._rules.arithmetic(rule, day)
        if arithmetic is None:
            return {"due_at": None}
        due_at = calendar.due_at(arithmetic, event)
        if isinstance(rule.period, DocumentsPeriod):
            kept = _kept(rule.period, event)
            return {
                "blocked_at": due_at.isoformat(),
                "due_at": {name: max(due_at, at).isoformat() for name, at in kept.items()},
            }
        if rule.action in (schedule.RuleAction.DROP, schedule.RuleAction.ANONYMISE):
            goes_at = calendar.goes_at(arithmetic, event)
            return {"due_at": due_at.isoformat(), "ordered_from": goes_at.isoformat()}
        return {"due_at": due_at.isoformat()}


def _kept(period: DocumentsPeriod, event: datetime) -> dict[str, datetime]:
    """Return until when each class is kept, of a document made when the contract ended."""
    return {
        name.value: calendar.due_at(
            calendar.CalendarYears(years=period.keep_calendar_years[name]), event
        )
        for name in DocumentClass
    }


def _sweep(found: tuple[UUID, datetime, datetime, str] | None) -> Answer | None:
    if found is None:
        return None
    sweep_id, as_of, swept_at, version = found
    return {
        "sweep_id": str(sweep_id),
        "as_of": as_of.isoformat(),
        "swept_at": swept_at.isoformat(),
        "schedule_version": version,
    }


def _plain(value: object) -> object:
    if isinstance(value, UUID):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value


def _record(history: History) -> Answer:
    record = history.record
    return {
        "record_id": str(record.record_id),
        "kind": record.kind.value,
        "document_class": record.document_class and record.document_class.value,
        "holder": record.holder,
        "told": [
            {"happened": event.happened.value, "happened_on": event.happened_on.isoformat()}
            for event in history.events
        ],
    }


# ------------------------------------------------------------------ lines


def _lines(answer: Answer) -> str:
    """Return an answer as lines of text: name, value; what is inside stands below, indented."""
    return "\n".join(_of_mapping(answer, ""))


def _of_mapping(value: Mapping[str, Any], margin: str) -> list[str]:
    found: list[str] = []
    for name, entry in value.items():
        title = f"{margin}{name.replace('_', ' ')}:"
        if isinstance(entry, Mapping):
            found += [title, *_of_mapping(entry, margin + "  ")]
        elif isinstance(entry, list) and any(isinstance(one, Mapping) for one in entry):
            found.append(title)
            for one in entry:
                inner = _of_mapping(one, margin + "    ")
                found += [f"{margin}  - {inner[0].strip()}", *inner[1:]]
        else:
            found.append(f"{title} {_of_plain(entry)}")
    return found


def _of_plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
