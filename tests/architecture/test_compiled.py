"""Schedule, topics, classification and generated files agree (R-H1, R-C1, R-D5, D1)."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from schemas import topics
from schemas.retention import DataKind
from schemas.topics import ALL_TOPICS, DAY_MS, HOUR_MS
from services.chassis.declaration import SERVICES
from services.chassis.metrics import ChassisMetrics
from services.privacy import register
from services.privacy.classification import SHARED
from services.privacy.declare import (
    LegalBasis,
    PartitionOf,
    PeriodStart,
    Purpose,
    Table,
    personal,
    plain,
)
from services.privacy.register import Place, Row
from services.retention import alerts, compiler, notice, words
from services.retention.compiler import CompileError
from services.retention.metrics import Metrics
from services.retention.schedule import DeletedBy, Language, RuleAction, Schedule, load
from services.retention.settings import DEFAULT_SCHEDULE

SCHEDULE = load(DEFAULT_SCHEDULE)
ROWS = tuple(register.rows())
PERSONAL = [row for row in ROWS if row.kind is not None]


def changed(kind: str, **fields: Any) -> Schedule:
    """Return the schedule with other facts in the rule of a kind."""
    document = SCHEDULE.model_dump(mode="json")
    for rule in document["rules"]:
        if rule["kind"] == kind:
            rule.update(fields)
    return Schedule.model_validate({**document, "version": "test"}, strict=False)


# ------------------------------------------------------------------ fresh


def test_what_is_generated_is_fresh() -> None:
    """R-H1: whoever changes a rule, topic or column writes anew (services.retention compile)."""
    assert compiler.stale(compiler.files(SCHEDULE)) == []
    assert compiler.main(["--check"]) == 0


@pytest.mark.parametrize("path", compiler.files(SCHEDULE), ids=lambda path: path.name)
def test_a_stale_or_missing_file_is_seen(path: Path, tmp_path: Path) -> None:
    """R-H1: each of them."""
    text = compiler.files(SCHEDULE)[path]
    copy = tmp_path / path.name
    assert compiler.stale({copy: text}) == [copy]
    copy.write_text(text.replace("168", "169").replace("24", "25") + " ", "utf-8")
    assert compiler.stale({copy: text}) == [copy]
    copy.write_text(text, "utf-8")
    assert compiler.stale({copy: text}) == []


def test_another_period_changes_each_text_that_names_it() -> None:
    """R-H1: notice, register, drops and alerts follow from the rule, none from hand."""
    shorter = changed("ad_use", period={"unit": "hours", "hours": 96, "margin_hours": 2})
    before, after = compiler.files(SCHEDULE), compiler.files(shorter)
    unchanged = {path.name for path in before if before[path] == after[path]}
    assert unchanged == set()
    german = next(text for path, text in after.items() if path.name == "retention.de.md")
    assert "höchstens 4 x 24 Stunden nach dem Ereignis" in german


# ------------------------------------------------------------------ classification and rules


def test_every_personal_item_is_covered_by_the_rule_of_its_kind() -> None:
    """R-C1, D5: its start, its purpose and its legal basis are those that the rule names."""
    assert compiler.misfits(SCHEDULE, ROWS) == []
    assert compiler.problems(SCHEDULE) == []
    assert len(PERSONAL) > 300


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"start": PeriodStart.CONSENT_END}, "counts from consent_end"),
        ({"purpose": Purpose.PERSONALISED_ADVERTISING}, "may not be stored for"),
        ({"basis": LegalBasis.CONSENT}, r"may not rest on Art. 6\(1\)\(a\)"),
        ({"kind": DataKind.WEB_USE}, "web_use is never stored"),
    ],
)
def test_an_item_beyond_its_rule_is_named(fields: dict[str, Any], says: str) -> None:
    """R-C1, R-D1: each of the four facts, of whichever item."""
    row = Row(
        place=Place.TABLE,
        where="ad_ledger.lot",
        name="visitor_id",
        kind=DataKind.AD_USE,
        start=PeriodStart.EVENT,
        purpose=Purpose.AD_FINANCED_USE,
        basis=LegalBasis.CONTRACT,
    )
    assert compiler.misfits(SCHEDULE, [row]) == []
    found = compiler.misfits(SCHEDULE, [replace(row, **fields)])
    assert any(re.search(f"ad_ledger.lot.visitor_id: .*{says}", line) for line in found)


def test_every_kind_that_our_tables_hold_is_ordered_by_sweeps() -> None:
    """D1: and every kind that sweeps order is one whose partitions go by age."""
    held = {table.kind for service in SERVICES for table in register.ageing(service)}
    ordered = {
        kind
        for kind in DataKind
        if SCHEDULE.rule_on(kind, SCHEDULE.released_on).deleted_by is DeletedBy.SERVICES
    }
    assert held <= ordered
    # transfers are not recorded in a table yet
    assert ordered - held <= {DataKind.TRANSFER_RECORD}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (Table(name="x", kind=DataKind.CONTACT, day_column="d"), "deleted by holders"),
        (Table(name="x", kind=DataKind.ACCESS_LOG, day_column="d"), "do not fit the rule"),
        (Table(name="x", kind=DataKind.IP_ADDRESS, day_column="d"), "nobody makes figures"),
        (
            Table(name="x", kind=DataKind.AD_USE, day_column="d", partition_of=PartitionOf.YEAR),
            "do not fit the rule",
        ),
    ],
)
def test_a_table_that_no_sweep_can_drop_in_time_is_named(
    monkeypatch: pytest.MonkeyPatch, table: Table, says: str
) -> None:
    """D1, R-C2: nobody orders it, a year's partition for a week's rule, nobody counts it."""
    monkeypatch.setattr(register, "ageing", lambda _: (table,))
    found = compiler.problems(SCHEDULE)
    assert any(line.startswith("ad_ledger.x: ") and says in line for line in found)
    # who reads no orders must hold nothing
    assert any(line == "gateway.x: gateway reads no orders" for line in found)


def test_a_shared_table_that_nobody_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: in the concept each table has its line."""
    kept = personal("x", kind=DataKind.AD_USE, start=PeriodStart.EVENT)
    shared = {**SHARED, "forgotten": kept, "harmless": plain("x")}
    monkeypatch.setattr(compiler, "SHARED", shared)
    with pytest.raises(CompileError, match="nobody has said how forgotten ends"):
        compiler.drops(SCHEDULE)


# ------------------------------------------------------------------ topics


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (
            changed("ad_use", period={"unit": "hours", "hours": 143, "margin_hours": 2}),
            "topic ad-view-dlq: what it copies becomes 166 h old, ad_use may become 143 h",
        ),
        (
            changed(
                "ip_address",
                period={
                    "unit": "threat", "normal_hours": 71, "margin_hours": 2, "special_months": 1,
                },
            ),
            "topic call-request: what it copies becomes 72 h old, ip_address may become 71 h",
        ),
    ],
    ids=["through_the_dead_letter", "the_topic_alone"],
)  # fmt: skip
def test_a_topic_that_keeps_longer_than_a_rule_is_an_error(schedule: Schedule, says: str) -> None:
    """D1, R-D5: also of a rule that comes into force later."""
    assert says in compiler.problems(schedule)


def test_a_rule_to_come_binds_topics_now() -> None:
    """D1: records of today are there when it comes into force."""
    document = SCHEDULE.model_dump(mode="json")
    old = next(rule for rule in document["rules"] if rule["kind"] == "ad_use")
    new = {**old, "valid_from": "2027-01-01", "period": {**old["period"], "hours": 48}}
    old["valid_until"] = "2027-01-01"
    document["rules"].append(new)
    schedule = Schedule.model_validate(document, strict=False)
    assert compiler.limits_ms(schedule)[DataKind.AD_USE] == 48 * HOUR_MS
    assert any("topic credit:" in line for line in compiler.problems(schedule))


@pytest.mark.parametrize(
    ("configs", "says"),
    [
        ({"message.timestamp.type": "CreateTime"}, "its producers decide how old"),
        ({"cleanup.policy": "compact"}, "nothing is ever deleted"),
    ],
)
def test_a_topic_whose_settings_prove_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, configs: dict[str, str], says: str
) -> None:
    """D1: the age of a record is the broker's word; compaction alone keeps for ever."""
    of_registry = topics.Topic.configs
    monkeypatch.setattr(topics.Topic, "configs", lambda topic: of_registry(topic) | configs)
    assert f"topic credit: {says}" in "\n".join(compiler.problems(SCHEDULE))


def test_each_topic_has_its_line_of_settings() -> None:
    """D1: as the registry gives them to the broker."""
    text = compiler.topic_settings(SCHEDULE)
    for topic in ALL_TOPICS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{topic.name}` |")]
        assert f"| {topic.retention_ms} | {topic.segment_ms} |" in line
        assert line.endswith("| LogAppendTime |")


# ------------------------------------------------------------------ alerts


def rules() -> dict[str, list[dict[str, Any]]]:
    """Return the alerts as Prometheus reads the file, by group."""
    path = compiler.ROOT / "deploy/prometheus/retention.rules.yml"
    document = yaml.safe_load(path.read_text("utf-8"))
    assert set(document) == {"groups"}
    return {group["name"]: group["rules"] for group in document["groups"]}


def test_the_alerts_are_rules_of_prometheus() -> None:
    """D1, D3: each has an expression, a time, a severity and a word for whoever is woken."""
    for group in rules().values():
        assert group
        for rule in group:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"Retention[A-Za-z]+", rule["alert"])
            assert re.fullmatch(r"[0-9]+[mh]", rule["for"])
            assert rule["labels"]["severity"] == "page"
            assert rule["annotations"]["summary"].endswith(".")
            for bracket in ("()", "[]", "{}"):
                assert rule["expr"].count(bracket[0]) == rule["expr"].count(bracket[1])


def test_every_topic_is_alerted_on_at_its_limit() -> None:
    """D1: at the age at which its bytes must be gone; dead letters too; quiet ones a minute ago."""
    found = rules()
    limits = {rule["labels"]["topic"]: rule["expr"] for rule in found["retention-topics"]}
    assert limits.keys() == {topic.name for topic in ALL_TOPICS}
    quiet = {rule["labels"]["topic"]: rule["expr"] for rule in found["retention-quiet"]}
    assert quiet.keys() == {topic.name for topic in ALL_TOPICS if topic.personal}
    for topic in ALL_TOPICS:
        assert limits[topic.name].endswith(f'{{topic="{topic.name}"}} > {topic.age_max_ms // 1000}')
        if topic.personal:
            assert int(quiet[topic.name].split(" > ")[1]) == topic.age_max_ms // 1000 - 60


def test_every_kind_on_a_topic_is_alerted_on_at_its_rule() -> None:
    """D1, R-D5: whatever the topic's own limit."""
    found = {rule["labels"]["kind"]: rule["expr"] for rule in rules()["retention-kinds"]}
    carried = {kind for topic in ALL_TOPICS for kind in topic.kinds}
    assert found.keys() == carried
    assert all(expression.endswith(f" > {7 * DAY_MS // 1000}") for expression in found.values())
    assert '=~"call-request|call-request-dlq"' not in found["ad_use"]
    assert "call-request" in found["ip_address"]


def test_alerts_name_metrics_that_services_export() -> None:
    """D3: a metric that was renamed would never wake anybody."""
    registry = CollectorRegistry()
    ChassisMetrics("retention", registry)
    Metrics(registry)
    exported = {metric.name for metric in registry.collect()}
    exported |= {f"{name}_total" for name in exported}
    for group in rules().values():
        for rule in group:
            for name in re.findall(r"\bretention_[a-z_]+", rule["expr"]):
                assert name in exported, name
            # those of several services, by the ends of their names
            for end in re.findall(r"\)(_[a-z_]+)\"", rule["expr"]):
                assert f"retention{end}" in exported, end


def test_the_writer_writes_what_a_reader_of_yaml_reads() -> None:
    """D1: quotes, colons, lists in maps in lists."""
    value: alerts.Json = {"a": [{"b": 'x: "y" # z', "c": [1, "2"], "d": {"e": "ü\n"}}, {"b": "{}"}]}
    assert yaml.safe_load(alerts._yaml(value)) == value


# ------------------------------------------------------------------ notice and register


@pytest.mark.parametrize("language", Language)
def test_the_notice_has_a_row_for_each_kind_and_says_what_is_unconfirmed(
    language: Language,
) -> None:
    """R-H1, R-D10: all kinds, the never stored one too; defaults are marked."""
    text = notice.periods(SCHEDULE, language)
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == len(DataKind)
    for kind, line in zip(_kinds(), lines, strict=True):
        rule = SCHEDULE.rule_on(kind, SCHEDULE.released_on)
        assert line.startswith(f"| {rule.texts[language].data} | {rule.texts[language].purpose} |")
        word = "bestätigen" if language is Language.DE else "confirm"
        assert (word in line) == (not rule.is_controller_confirmed)
        assert line.count("|") == 8
    assert "R-D" not in text


def _kinds() -> list[DataKind]:
    rules = [rule for rule in SCHEDULE.rules if rule.is_valid_on(SCHEDULE.released_on)]
    return [rule.kind for rule in rules]


@pytest.mark.parametrize("language", Language)
def test_the_register_has_a_row_for_each_purpose_with_all_its_kinds(language: Language) -> None:
    """R-C1, Art. 30 GDPR: whatever is stored for a purpose, with basis and period."""
    text = notice.activities(SCHEDULE, ROWS, language)
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    stored = {row.purpose for row in PERSONAL}
    ruled = {rule.purposes[0] for rule in SCHEDULE.rules}
    assert len(lines) == len(stored | ruled)
    for row in PERSONAL:
        assert row.kind is not None
        assert row.purpose is not None
        rule = SCHEDULE.rule_on(row.kind, SCHEDULE.released_on)
        line = next(
            line
            for line in lines
            if line.startswith(f"| {words.PURPOSES[row.purpose][language]} |")
        )
        assert rule.texts[language].data in line
    assert all(line.count("|") == 8 for line in lines)
    recipients = "Empfängerverzeichnis" if language is Language.DE else "recipient register"
    assert all(recipients in line for line in lines)


def test_the_words_know_every_member_of_every_list() -> None:
    """R-H1: a new purpose or start without its words in both languages would break the notice."""
    for table, members in (
        (words.STARTS, PeriodStart),
        (words.ACTIONS, RuleAction),
        (words.PURPOSES, Purpose),
        (words.PERSONS, Purpose),
        (words.BASES, LegalBasis),
    ):
        assert set(table) == set(members)
        assert all(set(texts) == set(Language) for texts in table.values())
    assert words.BASES[LegalBasis.CONTRACT][Language.DE] == "Art. 6 Abs. 1 Buchst. b DSGVO"
