"""What was in force is never changed: rules and assessments are only added to (R-D9)."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from schemas.retention import DataKind
from services.retention.releases import of_version, released, rewritten
from services.retention.schedule import Schedule, ScheduleError, load
from services.retention.settings import DEFAULT_SCHEDULE

Document = dict[str, Any]
Change = Callable[[Document], None]


def rule(document: Document, kind: str) -> Document:
    return next(entry for entry in document["rules"] if entry["kind"] == kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the last release alone."""
    last = released()[-1]
    (tmp_path / f"{last.version}.json").write_text(last.model_dump_json(), "utf-8")
    return tmp_path


def next_one(change: Change) -> Schedule:
    """Return a schedule that follows the last release a month later."""
    document = json.loads(released()[-1].model_dump_json(exclude_none=True))
    document |= {"version": "2099.1", "released_on": "2026-12-24"}
    change(document)
    return Schedule.model_validate_json(json.dumps(document))


def test_the_schedule_is_released_and_changes_nothing_of_the_past():
    """R-D9: whoever changes the schedule gives it a version and releases it (README)."""
    assert released()[-1] == load(DEFAULT_SCHEDULE)
    assert rewritten(load(DEFAULT_SCHEDULE)) == []
    assert of_version(load(DEFAULT_SCHEDULE).version) == load(DEFAULT_SCHEDULE)
    assert of_version("0") is None


def shorten(document: Document) -> None:
    old = rule(document, "ad_use")
    new = json.loads(json.dumps(old))
    new["period"]["hours"], new["valid_from"] = 96, "2027-01-01"
    old["valid_until"] = "2027-01-01"
    document["rules"].append(new)


def confirm(document: Document) -> None:
    rule(document, "access_log")["is_controller_confirmed"] = True


def assess(document: Document) -> None:
    document["threat_assessments"].append(
        {"assessed_on": "2026-12-20", "level": "normal", "author": "a", "reason": "r"}
    )


@pytest.mark.parametrize("change", [lambda _: None, shorten, confirm, assess])
def test_what_begins_from_now_on_may_be_added(folder: Path, change: Change):
    """R-D9, R-C3: a rule from a day to come, the old one's end, the controller's word."""
    assert rewritten(next_one(change), folder) == []


def period(document: Document) -> None:
    rule(document, "ad_use")["period"]["hours"] = 96


def text(document: Document) -> None:
    rule(document, "contact")["texts"]["de"]["purpose"] = "Werbung"


def start(document: Document) -> None:
    rule(document, "ad_use")["valid_from"] = "2021-11-01"


def end_in_the_past(document: Document) -> None:
    shorten(document)
    rule(document, "ad_use")["valid_until"] = "2026-12-01"
    document["rules"][-1]["valid_from"] = "2026-12-01"


def open_an_end(document: Document) -> None:
    rule(document, "contract")["valid_until"] = "2027-01-01"
    document["rules"] = [
        entry | ({"valid_from": "2027-01-01"} if entry.get("valid_from") == "2025-01-01" else {})
        for entry in document["rules"]
    ]


def unconfirm(document: Document) -> None:
    rule(document, "ad_use")["is_controller_confirmed"] = False


def reassess(document: Document) -> None:
    document["threat_assessments"][0]["reason"] = "another"


def backdate(document: Document) -> None:
    document["threat_assessments"].append(
        {"assessed_on": "2026-11-22", "level": "none", "author": "a", "reason": "r"}
    )


def same_version(document: Document) -> None:
    document["version"] = released()[-1].version


def earlier(document: Document) -> None:
    document["released_on"] = "2026-11-01"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (period, "ad_use has another rule of 2021-12-01"),
        (text, "contact has another rule of 2021-12-01"),
        (start, "ad_use has lost its rule of 2021-12-01"),
        (end_in_the_past, "ad_use has another rule of 2021-12-01"),
        (open_an_end, "contract has another rule of 2021-12-01"),
        (unconfirm, "ad_use has another rule of 2021-12-01"),
        (reassess, "the threat assessment of 2026-01-05 is another"),
        (backdate, "the threat assessment of 2026-11-22 is backdated"),
        (same_version, "the version is the same, the schedule is not"),
        (earlier, "which is before"),
    ],
)
def test_the_past_is_not_rewritten(folder: Path, change: Change, says: str):
    """R-D9: what applied on a past day is told by the releases alone."""
    assert any(says in problem for problem in rewritten(next_one(change), folder))


def test_a_release_is_named_by_its_version(folder: Path):
    """R-D9: an order's version leads to the rules by which it was issued."""
    last = released()[-1]
    (folder / "other.json").write_text(last.model_dump_json(), "utf-8")
    with pytest.raises(ScheduleError, match=f"holds version {last.version}"):
        released(folder)


def test_the_rule_of_a_past_day_is_found():
    """R-D9: vouchers by the law of their day, in one schedule."""
    schedule = load(DEFAULT_SCHEDULE)
    old, new = (schedule.rule_on(DataKind.CONTRACT, date(y, 6, 1)) for y in (2024, 2026))
    assert (old.valid_until, new.valid_from) == (date(2025, 1, 1), date(2025, 1, 1))
