"""The schedule as data: what is refused, and what follows from it (R-D1..D10)."""

import json
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import topics
from schemas.retention import DataKind, DocumentClass
from services.privacy.calendar import add_months
from services.privacy.invariants import D1_NO_YEAR_PARTITION_TOO_OLD, YEARS_KEPT
from services.retention.schedule import (
    DeletedBy,
    DocumentsPeriod,
    Schedule,
    ScheduleError,
    ThreatLevel,
    YearsPeriod,
    load,
    table,
)
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
        DataKind.TRANSFER_RECORD: date(2023, 1, 1),
    }
    assert due[DataKind.TRAFFIC_DATA].requirement == "R-D5"


def test_the_query_for_years_that_are_over_counts_as_the_rules_do():
    """D1, R-D10: services cannot read the schedule."""
    rules = [r for r in load(DEFAULT_SCHEDULE).rules if r.deleted_by is DeletedBy.SERVICES]
    years = {r.period.years for r in rules if isinstance(r.period, YearsPeriod)}
    assert years == {YEARS_KEPT}
    assert f"::int + {YEARS_KEPT} + 1, 1, 1, 0, 0, 0" in D1_NO_YEAR_PARTITION_TOO_OLD


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
        {"unit": "threat", "normal_hours": 168, "margin_hours": 2, "special_months": 3},
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
    texts = {"de": old["texts"]["de"], "en": {**old["texts"]["en"], "ground": "from December"}}
    new = {**old, "valid_from": "2026-12-01", "texts": texts}
    new["period"] = {"unit": "hours", "hours": 96, "margin_hours": 2}
    old["valid_until"] = "2026-12-01"
    document["rules"].append(new)
    schedule = load(write(tmp_path, document))
    assert schedule.rule_on(DataKind.AD_USE, date(2026, 11, 30)).ground != "from December"
    assert schedule.rule_on(DataKind.AD_USE, date(2026, 12, 1)).ground == "from December"
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
    assert {row[1] for row in rows[1:]} == set(DataKind)
    assert rows[1][:2] == ("R-D1", "web_use")
    marked = {row[1] for row in rows[1:] if row[2].endswith(" (default)")}
    assert marked == {row[1] for row in rows[1:] if row[0] == "R-D10"}
    by_kind = {row[1]: row[2] for row in rows[1:]}
    assert by_kind["access_log"] == "end of calendar year + 3 (default)"
    assert by_kind["contract"].startswith("end of calendar year + 1, then blocked")


# ------------------------------------------------------------------ section D, kind by kind


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("application", {"period": {"unit": "months", "months": 4}}, "at most 3 months"),
        ("paid_traffic", {"period": {"unit": "months", "months": 7}}, "at most 6 months"),
        ("paid_traffic", {"period": {"unit": "at_once"}}, "at most 6 months"),
        ("contact", {"deleted_by": "services"}, "services cannot delete"),
        ("ad_use", {"action": "anonymise"}, "no service can anonymise it"),
        ("contact", {"action": "anonymise"}, "holders cannot anonymise"),
        ("ad_use", {"deleted_by": "holders"}, "holders cannot drop"),
        ("transfer_record", {"deleted_by": "holders", "action": "delete"}, "exactly what others"),
        ("ad_use", {"action": "never_store", "deleted_by": "nobody"}, "never stored"),
        ("contact", {"action": "block_then_delete"}, "exactly documents are blocked"),
        (
            "access_log",
            {
                "period": {
                    "unit": "threat",
                    "normal_hours": 1,
                    "margin_hours": 2,
                    "special_months": 3,
                }
            },
            "exactly addresses depend on the threat",
        ),
        ("web_use", {"texts": {"de": None}}, "a language of the notice"),
    ],
)
def test_a_rule_beyond_section_d_is_refused(tmp_path, kind, change, says):
    """R-D1 to R-D10: what the notice does not allow cannot become data."""
    document = data()
    entry = rule(document, kind)
    if "texts" in change:
        change = {"texts": {"de": entry["texts"]["de"]}}
    entry.update(change)
    with pytest.raises(ScheduleError, match=says):
        load(write(tmp_path, document))


def test_documents_have_the_years_of_their_law_and_day(tmp_path):
    """R-D6: section 147 AO, section 257 HGB; vouchers 8 instead of 10 since 2025 (BEG IV)."""
    schedule = load(DEFAULT_SCHEDULE)

    def years(day: date) -> dict[DocumentClass, int]:
        period = schedule.rule_on(DataKind.CONTRACT, day).period
        assert isinstance(period, DocumentsPeriod)
        return dict(period.keep_calendar_years)

    letters = {DocumentClass.BOOKS: 10, DocumentClass.BUSINESS_LETTER: 6}
    assert years(date(2024, 12, 31)) == {DocumentClass.BOOKING_VOUCHER: 10, **letters}
    assert years(date(2025, 1, 1)) == {DocumentClass.BOOKING_VOUCHER: 8, **letters}
    document = data()
    for entry in document["rules"]:
        if entry["kind"] == "contract":
            entry["period"]["keep_calendar_years"].pop("books")
    with pytest.raises(ScheduleError, match="a class of documents has no period"):
        load(write(tmp_path, document))


# ------------------------------------------------------------------ threat


def assessed(*more: dict[str, Any]) -> dict[str, Any]:
    """Return the schedule with further assessments."""
    document = data()
    document["threat_assessments"] += [{"author": "a", "reason": "r", **entry} for entry in more]
    return document


def special(day: str, end: str, case: str = "SEC-2026-1") -> dict[str, Any]:
    return {"assessed_on": day, "level": "special", "ends_on": end, "case_id": case}


def test_without_assessment_no_address_outlives_its_use():
    """R-C3: before the first, and when nobody has reviewed the last for a year."""
    schedule = load(DEFAULT_SCHEDULE)
    assert schedule.level_on(date(2026, 1, 4)) is ThreatLevel.NONE
    assert schedule.level_on(date(2026, 1, 5)) is ThreatLevel.NORMAL
    assert schedule.level_on(date(2027, 1, 4)) is ThreatLevel.NORMAL
    assert schedule.level_on(date(2027, 1, 5)) is ThreatLevel.NONE
    # 23:30 UTC of the 4th is the 5th in Berlin
    for at, is_none in ((22, False), (23, True)):
        as_of = datetime(2027, 1, 4, at, 30, tzinfo=UTC)
        due = {entry.kind: entry for entry in schedule.due(as_of)}[DataKind.IP_ADDRESS]
        assert due.is_repeated is is_none
        assert due.before_day == (date(2027, 1, 5) if is_none else date(2026, 12, 30))


def test_when_the_last_assessment_lapses_is_known_ahead(tmp_path):
    """R-C3: so that somebody reviews it; a shorter or a special one moves the day."""
    assert load(DEFAULT_SCHEDULE).level_ends_on(date(2026, 11, 23)) == date(2027, 1, 5)
    assert load(DEFAULT_SCHEDULE).level_ends_on(date(2027, 1, 6)) == date(2027, 1, 6)
    longer = load(write(tmp_path, assessed(special("2026-12-20", "2027-02-20"))))
    assert longer.level_ends_on(date(2026, 11, 23)) == date(2027, 2, 20)
    none = {"assessed_on": "2026-11-25", "level": "none"}
    shorter = load(write(tmp_path, assessed(none)))
    assert shorter.level_ends_on(date(2026, 11, 23)) == date(2026, 11, 25)


def test_the_level_none_makes_addresses_due_at_once_and_nothing_else(tmp_path):
    """R-C3, R-D4: the day under way goes too, at each sweep; the other kinds keep their week."""
    none = {"assessed_on": "2026-11-20", "level": "none", "ends_on": "2026-12-01"}
    schedule = load(write(tmp_path, assessed(none)))
    due = {entry.kind: entry for entry in schedule.due(AS_OF)}
    assert due[DataKind.IP_ADDRESS].before_day == date(2026, 12, 1)
    assert [entry.kind for entry in due.values() if entry.is_repeated] == [DataKind.IP_ADDRESS]
    assert due[DataKind.AD_USE].before_day == date(2026, 11, 24)
    # it ends by itself: what was assessed before applies again
    assert schedule.level_on(date(2026, 12, 1)) is ThreatLevel.NORMAL


def test_a_special_threat_lengthens_nothing_in_general(tmp_path):
    """R-D2: the addresses of its case are held; all others go after 7 days as ever."""
    schedule = load(write(tmp_path, assessed(special("2026-11-20", "2027-02-20"))))
    assert schedule.due(AS_OF) == load(DEFAULT_SCHEDULE).due(AS_OF)
    assert schedule.level_on(date(2026, 12, 1)) is ThreatLevel.NORMAL
    # the normal one lapses in January: what the special one says for others stays the week
    assert schedule.level_on(date(2027, 2, 19)) is ThreatLevel.NORMAL
    assert schedule.level_on(date(2027, 2, 20)) is ThreatLevel.NONE


def test_the_holds_of_a_special_threat_are_due_when_it_ends(tmp_path):
    """R-D2, R-D3: by its date, also when another case goes on; renewed, with the last end."""
    document = assessed(
        special("2026-11-20", "2026-12-10", "SEC-2026-1"),
        special("2026-11-21", "2027-02-01", "SEC-2026-2"),
        special("2026-12-09", "2027-01-15", "SEC-2026-1"),
    )
    schedule = load(write(tmp_path, document))

    def cases(day: str) -> tuple[str, ...]:
        return schedule.special_holds_due(datetime.fromisoformat(day))

    assert cases("2026-12-10T12:00:00+01:00") == ()
    assert cases("2027-01-14T23:59:59+01:00") == ()
    assert cases("2027-01-15T00:00:00+01:00") == ("SEC-2026-1",)
    assert cases("2027-02-01T00:00:00+01:00") == ("SEC-2026-1", "SEC-2026-2")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([special("2026-11-30", "2027-03-01")], "case SEC-2026-1 may not last beyond 2027-02-28"),
        (
            [special("2026-11-20", "2026-12-20"), special("2026-12-20", "2027-03-20")],
            "case SEC-2026-1 may not last beyond 2027-02-20",
        ),
        (
            [{"assessed_on": "2026-11-20", "level": "special", "case_id": "SEC-2026-1"}],
            "needs its end",
        ),
        (
            [{"assessed_on": "2026-11-20", "level": "special", "ends_on": "2026-12-01"}],
            "a case belongs to a special threat",
        ),
        (
            [{"assessed_on": "2026-11-20", "level": "normal", "case_id": "SEC-2026-1"}],
            "a case belongs to a special threat",
        ),
        (
            [{"assessed_on": "2026-11-20", "level": "none", "ends_on": "2026-11-20"}],
            "ends before it begins",
        ),
        ([{"assessed_on": "2026-01-05", "level": "none"}], "of one day contradict"),
        ([{"assessed_on": "2026-01-04", "level": "none"}], "not in the order of their days"),
    ],
)
def test_an_assessment_that_means_too_much_is_refused(tmp_path, entries, says):
    """R-C3, R-D2: a special one ends within three months of its case's beginning."""
    with pytest.raises(ScheduleError, match=says):
        load(write(tmp_path, assessed(*entries)))


@given(
    length=st.integers(1, 92),
    start=st.dates(date(2026, 2, 1), date(2029, 12, 31)),
    asked=st.integers(-5, 500),
)
def test_no_assessment_outlives_its_end_or_its_review(length, start, asked):
    """R-C3: whatever its dates, a special threat is over within three months, any within a year."""
    end = start + timedelta(days=length)
    document = assessed(special(start.isoformat(), end.isoformat()))
    allowed = end <= add_months(start, 3)
    try:
        schedule = Schedule.model_validate_json(json.dumps(document))
    except ValidationError:
        assert not allowed
        return
    assert allowed
    day = start + timedelta(days=asked)
    for assessment in schedule.assessments_on(day):
        assert assessment.assessed_on <= day < add_months(assessment.assessed_on, 12)
    is_over = "SEC-2026-1" in schedule.special_holds_due(datetime.combine(day, time(12), UTC))
    assert is_over == (day >= end)
