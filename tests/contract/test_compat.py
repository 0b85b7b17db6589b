"""Two contracts held against each other: what breaks, what does not, and who rolls first (3.6)."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from schemas import compat, export
from schemas.compat import Contract, Kind

NEW = compat.current()
MODELS = compat.current_models()
HOUR_MS = 3_600_000

Edit = Callable[[Contract], Any]


def changed(edit: Edit) -> Contract:
    """Return a copy of today's contract with something else in it."""
    contract = copy.deepcopy(NEW)
    edit(contract)
    return contract


def properties(contract: Contract, name: str) -> dict[str, Any]:
    return contract.schemas[name]["properties"]


def channel(contract: Contract, name: str) -> dict[str, Any]:
    return contract.asyncapi["channels"][name]


def kafka(contract: Contract, name: str) -> dict[str, Any]:
    return channel(contract, name)["bindings"]["kafka"]


def found(old: Contract, new: Contract) -> set[tuple[str, Kind, str]]:
    """Return what is said of schemas and topics; examples have tests of their own."""
    changes = compat.compare(old, new, MODELS)
    return {
        (change.subject, change.kind, change.place)
        for change in changes
        if change.kind not in (Kind.OLD_EXAMPLE_REFUSED, Kind.NEW_EXAMPLE_REFUSED)
    }


def add_optional(contract: Contract) -> None:
    shape = {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    properties(contract, "call-end.v1")["cost_micros"] = shape


def add_required(contract: Contract) -> None:
    properties(contract, "call-end.v1")["cost_micros"] = {"type": "integer"}
    contract.schemas["call-end.v1"]["required"].append("cost_micros")


def rename(contract: Contract) -> None:
    fields = properties(contract, "call-end.v1")
    fields["surplus_ms"] = fields.pop("overrun_ms")
    contract.schemas["call-end.v1"]["required"].remove("overrun_ms")


def require_optional(contract: Contract) -> None:
    contract.schemas["call-end.v1"]["required"].append("connected_at")


def retype(contract: Contract) -> None:
    properties(contract, "call-end.v1")["talk_ms"] = {"type": "string"}


def lower_maximum(contract: Contract) -> None:
    properties(contract, "call-end.v1")["talk_ms"]["maximum"] = 1000


def raise_minimum(contract: Contract) -> None:
    properties(contract, "call-end.v1")["talk_ms"]["minimum"] = 1


def add_pattern(contract: Contract) -> None:
    properties(contract, "ad-view.v1")["ticket"]["pattern"] = "^a"


def change_pattern(contract: Contract) -> None:
    properties(contract, "call-end.v1")["reason"]["pattern"] = "^[a-z]+$"


def refuse_null(contract: Contract) -> None:
    shape = properties(contract, "call-end.v1")["connected_at"]
    del shape["anyOf"][1]


def narrow_enum(contract: Contract) -> None:
    contract.schemas["ad-view.v1"]["$defs"]["AdEventKind"]["enum"].remove("click")


def narrow_nested_enum(contract: Contract) -> None:
    contract.schemas["consent.v1"]["$defs"]["Purpose"]["enum"].remove("marketing")


def change_default(contract: Contract) -> None:
    state = contract.schemas["consent-state.v1"]["$defs"]["PurposeState"]
    state["properties"]["changes"]["default"] = ["other"]


def lengthen_items(contract: Contract) -> None:
    properties(contract, "consent.v1")["choices"]["maxItems"] += 1


WITHIN_A_VERSION = [
    pytest.param(add_optional, "call-end", Kind.FIELD_ADDED, "cost_micros", id="optional-added"),
    pytest.param(add_required, "call-end", Kind.FIELD_REQUIRED, "cost_micros", id="required-added"),
    pytest.param(rename, "call-end", Kind.FIELD_REMOVED, "overrun_ms", id="renamed"),
    pytest.param(
        require_optional, "call-end", Kind.FIELD_REQUIRED, "connected_at", id="newly-required"
    ),
    pytest.param(retype, "call-end", Kind.RETYPED, "talk_ms", id="retyped"),
    pytest.param(lower_maximum, "call-end", Kind.TIGHTENED, "talk_ms", id="maximum-lowered"),
    pytest.param(raise_minimum, "call-end", Kind.TIGHTENED, "talk_ms", id="minimum-raised"),
    pytest.param(add_pattern, "ad-view", Kind.TIGHTENED, "ticket", id="pattern-added"),
    pytest.param(change_pattern, "call-end", Kind.TIGHTENED, "reason", id="pattern-changed"),
    pytest.param(refuse_null, "call-end", Kind.TIGHTENED, "connected_at", id="null-refused"),
    pytest.param(narrow_enum, "ad-view", Kind.ENUM_NARROWED, "kind", id="enum-narrowed"),
    pytest.param(
        narrow_nested_enum, "consent", Kind.ENUM_NARROWED, "choices[].purpose", id="nested-enum"
    ),
    pytest.param(
        change_default,
        "consent-state",
        Kind.DEFAULT_CHANGED,
        "purposes[].changes",
        id="default-changed",
    ),
    pytest.param(lengthen_items, "consent", Kind.LOOSENED, "choices", id="more-items"),
]


def test_a_contract_is_compatible_with_itself() -> None:
    """Nothing changed, nothing said."""
    assert compat.compare(NEW, copy.deepcopy(NEW), MODELS) == []
    assert compat.roll_order([]) == []


@pytest.mark.parametrize(("edit", "topic", "kind", "place"), WITHIN_A_VERSION)
def test_a_change_within_a_version_is_named(edit, topic, kind, place) -> None:
    """Only the optional field with a default is benign."""
    assert (topic, kind, place) in found(NEW, changed(edit))
    (change,) = (
        c for c in compat.compare(NEW, changed(edit), MODELS) if (c.kind, c.place) == (kind, place)
    )
    assert change.is_breaking is (kind is not Kind.FIELD_ADDED)
    assert str(change).startswith("BREAKING" if change.is_breaking else "benign")


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        pytest.param(add_optional, Kind.FIELD_REMOVED, id="field-removed"),
        pytest.param(require_optional, Kind.LOOSENED, id="no-longer-required"),
        pytest.param(lower_maximum, Kind.LOOSENED, id="maximum-raised"),
        pytest.param(raise_minimum, Kind.LOOSENED, id="minimum-lowered"),
        pytest.param(add_pattern, Kind.LOOSENED, id="pattern-dropped"),
        pytest.param(refuse_null, Kind.LOOSENED, id="null-allowed"),
        pytest.param(narrow_enum, Kind.ENUM_WIDENED, id="enum-widened"),
    ],
)
def test_what_old_readers_would_refuse_is_breaking_too(edit, kind) -> None:
    """Both ways: a loosened rule lets new producers write what the last release cannot read."""
    changes = [c for c in compat.compare(changed(edit), NEW, MODELS) if c.kind is kind]
    assert changes
    assert all(change.is_breaking for change in changes)


def test_texts_and_places_of_definitions_are_no_change() -> None:
    """Words for people may change at any time, and so may where a shape is written down."""

    def reword(contract: Contract) -> None:
        schema = contract.schemas["ad-view.v1"]
        schema["description"] = "other words"
        schema["properties"]["kind"] = schema["$defs"].pop("AdEventKind") | {"title": "Kind"}

    assert found(NEW, changed(reword)) == set()


def test_a_rename_says_what_it_looks_like() -> None:
    """A removed field whose shape came back under another name is pointed out."""
    removed = [c for c in compat.compare(NEW, changed(rename), MODELS) if c.place == "overrun_ms"]
    assert [c.detail for c in removed] == ["renamed to surplus_ms?"]


def test_additions_roll_consumers_first_and_removals_producers_first() -> None:
    """`ad_ledger` reads call-end, `call_control` writes it."""
    (added,) = compat.compare(NEW, changed(add_optional), MODELS)
    assert (added.first, added.then) == (("ad_ledger",), ("call_control",))
    assert "roll first: ad_ledger; then: call_control" in str(added)
    assert compat.roll_order([added]) == ["ad_ledger", "call_control"]
    removals = [
        c for c in compat.compare(changed(add_optional), NEW, MODELS) if c.place == "cost_micros"
    ]
    assert [(c.first, c.then) for c in removals] == [(("call_control",), ("ad_ledger",))]
    assert compat.roll_order(removals) == ["call_control", "ad_ledger"]


def test_changes_that_demand_opposite_orders_are_said_to_contradict() -> None:
    """One release cannot add both ways between the same two services."""

    def both(contract: Contract) -> None:
        add_optional(contract)
        properties(contract, "credit-decision.v1")["note"] = {"type": "string", "default": ""}

    changes = compat.compare(NEW, changed(both), MODELS)
    assert {c.is_breaking for c in changes} == {False}
    assert compat.roll_order(changes) is None
    assert "contradict" in compat.report("old", changes)


def remove_topic(contract: Contract) -> None:
    for name in ("call-command", "call-command-dlq"):
        del contract.asyncapi["channels"][name]
    del contract.asyncapi["components"]["messages"]["call-command"]
    del contract.schemas["call-command.v1"]
    del contract.examples["call-command.v1"]


def rekey(contract: Contract) -> None:
    channel(contract, "call-end")["x-key"] = "call_id"


def repartition(contract: Contract) -> None:
    kafka(contract, "call-end")["partitions"] = 12


def keep_longer(contract: Contract) -> None:
    channel(contract, "call-end")["x-age-max-ms"] += HOUR_MS


def keep_shorter(contract: Contract) -> None:
    channel(contract, "call-end")["x-age-max-ms"] -= HOUR_MS


def keep_receipts_longer(contract: Contract) -> None:
    channel(contract, "retention-receipt")["x-age-max-ms"] += HOUR_MS


def personal_receipts(contract: Contract) -> None:
    channel(contract, "retention-receipt")["x-personal-data"] = ["ad_use"]


def another_kind(contract: Contract) -> None:
    channel(contract, "call-end")["x-personal-data"].append("ip_address")


def fewer_kinds(contract: Contract) -> None:
    channel(contract, "ad-view")["x-personal-data"].remove("ip_address")


def compact(contract: Contract) -> None:
    kafka(contract, "call-end")["topicConfiguration"]["cleanup.policy"] = ["compact", "delete"]


def smaller(contract: Contract) -> None:
    kafka(contract, "call-end")["topicConfiguration"]["max.message.bytes"] //= 2


def larger(contract: Contract) -> None:
    kafka(contract, "call-end")["topicConfiguration"]["max.message.bytes"] *= 2


def another_consumer(contract: Contract) -> None:
    channel(contract, "call-end")["x-consumers"].append("retention")


def another_producer(contract: Contract) -> None:
    channel(contract, "call-end")["x-producers"].append("gateway")


def no_consumer(contract: Contract) -> None:
    channel(contract, "call-end")["x-consumers"].clear()


def no_producer(contract: Contract) -> None:
    channel(contract, "call-end")["x-producers"].clear()


def second_version(contract: Contract) -> None:
    payload = contract.asyncapi["components"]["messages"]["call-end"]["payload"]
    payload["$ref"] = "./json/call-end.v2.json"


@pytest.mark.parametrize(
    ("edit", "topic", "kind", "is_breaking"),
    [
        pytest.param(remove_topic, "call-command", Kind.TOPIC_REMOVED, True, id="topic-removed"),
        pytest.param(rekey, "call-end", Kind.KEY_CHANGED, True, id="key"),
        pytest.param(repartition, "call-end", Kind.PARTITIONS_CHANGED, True, id="partitions"),
        pytest.param(keep_longer, "call-end", Kind.PERSONAL_AGE_LENGTHENED, True, id="kept-longer"),
        pytest.param(keep_shorter, "call-end", Kind.AGE_CHANGED, False, id="kept-shorter"),
        pytest.param(
            keep_receipts_longer, "retention-receipt", Kind.AGE_CHANGED, False, id="not-personal"
        ),
        pytest.param(
            personal_receipts, "retention-receipt", Kind.PERSONAL_NOW, True, id="personal-now"
        ),
        pytest.param(another_kind, "call-end", Kind.KIND_OF_DATA_ADDED, False, id="another-kind"),
        pytest.param(fewer_kinds, "ad-view", Kind.KIND_OF_DATA_REMOVED, False, id="fewer-kinds"),
        pytest.param(compact, "call-end", Kind.CLEANUP_CHANGED, True, id="cleanup"),
        pytest.param(smaller, "call-end", Kind.SIZE_LOWERED, True, id="smaller"),
        pytest.param(larger, "call-end", Kind.SIZE_RAISED, False, id="larger"),
        pytest.param(another_consumer, "call-end", Kind.CONSUMER_ADDED, False, id="consumer-added"),
        pytest.param(another_producer, "call-end", Kind.PRODUCER_ADDED, False, id="producer-added"),
        pytest.param(no_consumer, "call-end", Kind.CONSUMER_REMOVED, True, id="consumer-removed"),
        pytest.param(no_producer, "call-end", Kind.PRODUCER_REMOVED, True, id="producer-removed"),
        pytest.param(second_version, "call-end", Kind.VERSION_CHANGED, True, id="version"),
    ],
)
def test_a_change_of_a_topic_is_named_once(edit, topic, kind, is_breaking) -> None:
    """Keys and counts decide who owns a visitor; retention of personal data is law (R-D5, D1)."""
    changes = compat.compare(NEW, changed(edit), MODELS)
    assert [(c.subject, c.kind, c.is_breaking) for c in changes] == [(topic, kind, is_breaking)]


def test_a_topic_added_is_benign_and_its_readers_are_first() -> None:
    """The reverse of a removal, dead letter and all."""
    (change,) = compat.compare(changed(remove_topic), NEW, MODELS)
    assert (change.kind, change.is_breaking) == (Kind.TOPIC_ADDED, False)
    assert (change.first, change.then) == (("call_control",), ("gateway",))


def test_a_dead_letter_that_goes_while_its_topic_stays_is_breaking() -> None:
    """Its reader could not bury a thing."""
    old = changed(lambda contract: None)
    new = changed(lambda contract: contract.asyncapi["channels"].pop("call-end-dlq"))
    assert found(old, new) == {("call-end-dlq", Kind.TOPIC_REMOVED, "")}


def test_a_header_that_becomes_required_is_breaking() -> None:
    """The envelope is part of the contract of every topic."""

    def demand(contract: Contract) -> None:
        contract.asyncapi["components"]["schemas"]["cloudEventHeaders"]["required"].append(
            "traceparent"
        )

    assert found(NEW, changed(demand)) == {
        ("cloudEventHeaders", Kind.FIELD_REQUIRED, "traceparent")
    }


def test_an_old_example_that_new_readers_refuse_is_breaking() -> None:
    """Held against the models themselves, and against what is exported of them."""
    old = copy.deepcopy(NEW)
    old.examples["call-end.v1"]["typical"]["talk_ms"] = -4711
    changes = compat.compare(old, NEW, MODELS)
    assert {(c.kind, c.place, c.detail) for c in changes} == {
        (Kind.OLD_EXAMPLE_REFUSED, "typical", "model: talk_ms greater_than_equal"),
        (Kind.OLD_EXAMPLE_REFUSED, "typical", "schema: talk_ms minimum"),
    }
    assert {c.first for c in changes} == {("call_control",)}
    assert "4711" not in compat.report("old", changes), "values stay out"


def test_a_new_example_that_old_readers_refuse_is_breaking() -> None:
    """The new contract's examples span what its producers will write."""
    new = copy.deepcopy(NEW)
    new.examples["call-end.v1"]["longest"] = NEW.examples["call-end.v1"]["typical"] | {
        "talk_ms": 604_800_001
    }
    (change,) = compat.compare(NEW, new, MODELS)
    assert (change.kind, change.place) == (Kind.NEW_EXAMPLE_REFUSED, "longest")
    assert change.detail == "schema: talk_ms maximum"
    assert change.first == ("ad_ledger",)


def test_breaking_changes_come_first_in_the_report() -> None:
    """What stops a release is read first."""

    def both(contract: Contract) -> None:
        add_optional(contract)
        rekey(contract)

    lines = compat.report("v1", compat.compare(NEW, changed(both), MODELS)).splitlines()
    assert lines[0] == "contract of this tree against v1: 2 changes"
    assert lines[1].startswith("BREAKING call-end: key changed (visitor_id to call_id)")
    assert lines[2].startswith("benign   call-end cost_micros: field added")
    assert lines[-1].startswith("1 breaking")


# ---------------------------------------------------------------------- git


def git(folder: Any, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path):
    """A repository whose first commit holds today's contract in a folder `schemas`."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    for path, text in export.files().items():
        target = folder / path.relative_to(export.FOLDER)
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
    shutil.copytree(export.FOLDER / "examples", folder / "examples")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return folder


def commit_edited_schema(folder: Any) -> None:
    path = folder / "json" / "call-end.v1.json"
    schema = json.loads(path.read_text())
    schema["properties"]["gone_ms"] = {"type": "integer", "default": 0}
    path.write_text(json.dumps(schema))
    git(folder, "commit", "-qam", "another")


def test_a_commit_holds_the_contract_as_it_was(repository) -> None:
    """What is read from git equals what was exported, examples included, the invalid ones not."""
    read = compat.committed("HEAD", repository)
    assert read.schemas == NEW.schemas
    assert read.asyncapi == json.loads(json.dumps(NEW.asyncapi))
    assert read.examples == NEW.examples
    assert all({"minimal", "typical", "largest"} <= set(e) for e in read.examples.values())


def test_without_a_ref_the_newest_release_is_taken(repository, capsys) -> None:
    """The newest tag `contract-*`; where there is none, HEAD's parent."""
    assert compat.default_ref(repository) == "HEAD~1"
    git(repository, "tag", "contract-9")
    commit_edited_schema(repository)
    git(repository, "tag", "unrelated")
    git(repository, "tag", "contract-10")
    assert compat.default_ref(repository) == "contract-10"
    assert compat.main([], repository) == 1
    out = capsys.readouterr().out
    assert "against contract-10: 1 change\n" in out
    assert "BREAKING call-end gone_ms: field removed; roll first: call_control" in out
    assert compat.main(["contract-9"], repository) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["no-such-ref"], "no earlier contract at no-such-ref", id="unknown-ref"),
        pytest.param([], "no earlier contract at HEAD~1", id="first-commit"),
        pytest.param(["--output=x"], "usage", id="an-option-is-no-ref"),
        pytest.param(["a", "b"], "usage", id="two-refs"),
        pytest.param(["empty"], "older than the contract", id="no-contract-there"),
        pytest.param(["damaged"], "damaged", id="damaged-there"),
    ],
)
def test_nothing_to_compare_with_is_said_in_a_sentence(
    repository, capsys, arguments, words
) -> None:
    """Exit status 2: neither compatible nor not."""
    if arguments == ["empty"]:
        git(repository, "rm", "-q", "asyncapi.yaml")
    if arguments == ["damaged"]:
        (repository / "json" / "call-end.v1.json").write_text("{")
    if arguments in (["empty"], ["damaged"]):
        git(repository, "commit", "-qam", "worse")
        git(repository, "tag", arguments[0])
    assert compat.main(arguments, repository) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""


def test_without_git_the_check_says_so(tmp_path, monkeypatch, capsys) -> None:
    """An image without git cannot pass by accident."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compat.main([]) == 2
    assert "git is missing" in capsys.readouterr().err


def test_this_tree_against_its_own_head(capsys) -> None:
    """A real run on this repository: a change under way is told, and the verdict fits the words."""
    inside = subprocess.run(
        ["git", "-C", str(export.FOLDER), "rev-parse", "--verify", "HEAD:./asyncapi.yaml"],
        check=False,
        capture_output=True,
    )
    if inside.returncode:
        pytest.skip("not a checkout with a committed contract")
    status = compat.main(["HEAD"])
    out = capsys.readouterr().out
    assert out.startswith("contract of this tree against HEAD: ")
    assert status == ("BREAKING" in out)
    assert set(compat.committed("HEAD").schemas) & set(NEW.schemas)
