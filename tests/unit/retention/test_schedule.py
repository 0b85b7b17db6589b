"""The schedule as data: what is refused, and what follows from it (R-D1..D10)."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas import topics
from schemas.retention import DataKind
from services.retention.schedule import ScheduleError, ThreatLevel, load, table
from services.retention.settings import DEFAULT_SCHEDULE

AS_OF = datetime(2026, 11, 30, tzinfo=UTC)


def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DEFAULT_SCHEDULE.read_text("utf-8"))
    return found


def rule(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(entry for entry in document["rules"] if entry["kind"] == kind)


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "schedule.json"
    path.write_text(json.dumps(document), "utf-8")
    return path


def test_the_schedule_orders_each_stored_kind_once():
    """R-D4, R-D5, R-D10; web use (R-D1) is never stored, so nothing is ordered for it."""
    due = {entry.kind: entry for entry in load(DEFAULT_SCHEDULE).due(AS_OF)}
    assert {kind: entry.before_day for kind, entry in due.items()} == {
        DataKind.IP_ADDRESS: date(2026, 11, 24),
        DataKind.AD_USE: date(2026, 11, 24),
        DataKind.TRAFFIC_DATA: date(2026, 11, 24),
        DataKind.CONSENT_RECORD: date(2023, 1, 1),
        DataKind.ACCESS_LOG: date(2023, 1, 1),
    }
    assert due[DataKind.TRAFFIC_DATA].requirement == "R-D5"


def test_topics_let_nothing_live_as_long_as_the_schedule_allows():
    """R-D5: a topic and its dead letter together stay under the week."""
    for topic in topics.REGISTRY:
        if topic.personal:
            dead_letter_ms = topic.dead_letter.age_max_ms if topic.consumers else 0
            is_state = topic.name == "consent-state"
            total_ms = topic.personal_limit_ms + (0 if is_state else dead_letter_ms)
            assert total_ms < 7 * topics.DAY_MS, topic.name


@pytest.mark.parametrize("kind", ["ad_use", "traffic_data"])
@pytest.mark.parametrize(
    "period",
    [
        {"unit": "hours", "hours": 169, "margin_hours": 2},
        {"unit": "threat", "normal_hours": 168, "margin_hours": 2},
        {"unit": "calendar_years", "years": 1},
    ],
    ids=["an_hour_more", "by_threat_level", "years"],
)
def test_ad_financed_use_is_never_kept_longer_than_a_week(tmp_path, kind, period):
    """R-D5: no threat level and no other period extends it."""
    document = data()
    rule(document, kind)["period"] = period
    with pytest.raises(ScheduleError, match="R-D5 allows at most 168 hours"):
        load(write(tmp_path, document))


def test_a_normal_threat_never_keeps_addresses_longer_than_a_week(tmp_path):
    """R-D2, R-D4."""
    document = data()
    rule(document, "ip_address")["period"]["normal_hours"] = 169
    with pytest.raises(ScheduleError, match="less than or equal to 168"):
        load(write(tmp_path, document))


@pytest.mark.parametrize("level", ["none", "special"])
def test_a_threat_level_that_cannot_be_carried_out_is_refused_at_the_start(tmp_path, level):
    """R-C3, R-D2: better no start than an address kept against its assessment."""
    document = data()
    document["threat_assessments"].append(
        {"assessed_on": "2026-11-20", "level": level, "author": "a", "reason": "r"}
    )
    with pytest.raises(ScheduleError, match=f"threat level {level} of 2026-11-20 cannot be"):
        load(write(tmp_path, document))


def test_an_assessment_is_dated_and_none_is_in_force_before_the_first():
    """R-C3."""
    schedule = load(DEFAULT_SCHEDULE)
    assert schedule.assessment_on(date(2026, 11, 22)).level is ThreatLevel.NORMAL
    with pytest.raises(ScheduleError, match="no threat assessment is in force on 2026-01-04"):
        schedule.due(datetime(2026, 1, 4, 12, tzinfo=UTC))


def test_every_kind_needs_a_rule(tmp_path):
    """R-C1, R-D9."""
    document = data()
    document["rules"].remove(rule(document, "consent_record"))
    with pytest.raises(ScheduleError, match="consent_record has no rule"):
        load(write(tmp_path, document))


def test_the_rule_of_the_day_is_found_by_its_dates(tmp_path):
    """R-D9: what applied on a past day can still be told."""
    document = data()
    old = rule(document, "ad_use")
    new = {**old, "valid_from": "2026-12-01", "ground": "shorter from December"}
    new["period"] = {"unit": "hours", "hours": 96, "margin_hours": 2}
    old["valid_until"] = "2026-12-01"
    document["rules"].append(new)
    schedule = load(write(tmp_path, document))
    assert schedule.rule_on(DataKind.AD_USE, date(2026, 11, 30)).ground == old["ground"]
    due = {e.kind: e.before_day for e in schedule.due(datetime(2026, 12, 1, 12, tzinfo=UTC))}
    assert due[DataKind.AD_USE] == date(2026, 11, 28)
    assert due[DataKind.TRAFFIC_DATA] == date(2026, 11, 25)


@pytest.mark.parametrize(
    ("until", "says"),
    [
        ("2026-11-30", "overlap or leave a gap before 2026-12-01"),
        ("2026-12-02", "overlap or leave a gap before 2026-12-01"),
    ],
    ids=["gap", "overlap"],
)
def test_rules_with_a_gap_or_an_overlap_are_refused(tmp_path, until, says):
    """R-D9."""
    document = data()
    old = rule(document, "ad_use")
    document["rules"].append({**old, "valid_from": "2026-12-01"})
    old["valid_until"] = until
    with pytest.raises(ScheduleError, match=says):
        load(write(tmp_path, document))


def test_a_rule_that_ends_without_a_successor_is_refused(tmp_path):
    """R-D9."""
    document = data()
    rule(document, "ad_use")["valid_until"] = "2030-01-01"
    with pytest.raises(ScheduleError, match="ad_use has no rule from 2030-01-01 on"):
        load(write(tmp_path, document))


def test_a_schedule_that_is_no_schedule_is_named(tmp_path):
    """R-D9."""
    path = tmp_path / "schedule.json"
    with pytest.raises(ScheduleError, match="cannot be read: No such file"):
        load(path)
    path.write_text("{}", "utf-8")
    with pytest.raises(ScheduleError, match="is wrong at version: Field required"):
        load(path)


def test_the_table_shows_every_rule_and_marks_what_the_controller_must_confirm():
    """R-D10."""
    rows = table(load(DEFAULT_SCHEDULE))
    assert [row[:2] for row in rows[1:]] == [
        ("R-D1", "web_use"),
        ("R-D4", "ip_address"),
        ("R-D5", "ad_use"),
        ("R-D5", "traffic_data"),
        ("R-D10", "consent_record"),
        ("R-D10", "access_log"),
    ]
    assert rows[-1][2] == "end of calendar year + 3 (default)"
