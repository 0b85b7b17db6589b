"""Released schedules: what was in force is never changed, so that a past day can be explained.

A release is a copy of the schedule in `released/`, named by its version (README). Rules and
assessments of the past stay as they were released; a rule may get its end in the future, the
controller may confirm a default, and new ones are added. Nothing is backdated.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from services.retention.schedule import Rule, Schedule, ScheduleError, ThreatAssessment, load

FOLDER = Path(__file__).with_name("released")


def released(folder: Path = FOLDER) -> list[Schedule]:
    """Return all released schedules, oldest first.

    Raises:
        ScheduleError: one is wrong, or is not named by its version.
    """
    found = []
    for path in folder.glob("*.json"):
        schedule = load(path)
        if path.stem != schedule.version:
            raise ScheduleError(f"{path} holds version {schedule.version}")
        found.append(schedule)
    return sorted(found, key=lambda schedule: (schedule.released_on, schedule.version))


def of_version(version: str, folder: Path = FOLDER) -> Schedule | None:
    """Return the released schedule of a version, if there is one."""
    return next((found for found in released(folder) if found.version == version), None)


def rewritten(current: Schedule, folder: Path = FOLDER) -> list[str]:
    """Return, in words, what a schedule and the releases before it change of the past."""
    history = released(folder)
    if not history or history[-1] != current:
        history.append(current)
    return [
        f"{later.version} against {earlier.version}: {problem}"
        for earlier, later in pairwise(history)
        for problem in _rewritten(earlier, later)
    ]


def _rewritten(earlier: Schedule, later: Schedule) -> Iterator[str]:
    if later.version == earlier.version:
        yield "the version is the same, the schedule is not"
    if later.released_on < earlier.released_on:
        yield f"it is released on {later.released_on}, which is before"
    yield from _rewritten_rules(earlier, later)
    yield from _rewritten_assessments(earlier, later)


def _rewritten_rules(earlier: Schedule, later: Schedule) -> Iterator[str]:
    rules = {(rule.kind, rule.valid_from): rule for rule in later.rules}
    known = {(rule.kind, rule.valid_from) for rule in earlier.rules}
    for rule in earlier.rules:
        # what was announced for a day still to come may be withdrawn
        if rule.valid_from < later.released_on:
            same = rules.get((rule.kind, rule.valid_from))
            if same is None:
                yield f"{rule.kind} has lost its rule of {rule.valid_from}"
            elif not _is_kept(rule, same, later):
                yield f"{rule.kind} has another rule of {rule.valid_from}"
    for kind, valid_from in rules.keys() - known:
        if valid_from < later.released_on:
            yield f"{kind} has a new rule of {valid_from}, which is over"


def _is_kept(rule: Rule, same: Rule, later: Schedule) -> bool:
    """Whether a rule is the same but for what may change: an end to come, its confirmation."""
    was_open = rule.valid_until is None or rule.valid_until > later.released_on
    is_open = same.valid_until is None or same.valid_until >= later.released_on
    if same.valid_until != rule.valid_until and not (was_open and is_open):
        return False
    if rule.is_controller_confirmed and not same.is_controller_confirmed:
        return False
    may_change = {
        "valid_until": rule.valid_until,
        "is_controller_confirmed": rule.is_controller_confirmed,
    }
    return same.model_copy(update=may_change) == rule


def _rewritten_assessments(earlier: Schedule, later: Schedule) -> Iterator[str]:
    kept: list[ThreatAssessment] = list(later.threat_assessments)
    for assessment in earlier.threat_assessments:
        if assessment in kept:
            kept.remove(assessment)
        else:
            yield f"the threat assessment of {assessment.assessed_on} is another"
    for assessment in kept:
        if assessment.assessed_on < earlier.released_on:
            yield f"the threat assessment of {assessment.assessed_on} is backdated"
