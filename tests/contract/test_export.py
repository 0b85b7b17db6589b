"""What is exported is fresh, and AsyncAPI 3.0 by the word of its own schema."""

import json
from pathlib import Path

import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from schemas import export
from schemas.topics import ALL_TOPICS, REGISTRY

VENDOR = Path(__file__).parent / "vendor"


def test_export_is_fresh() -> None:
    """Whoever changes a model or a topic exports again: `python -m schemas.export`."""
    assert export.stale(export.files()) == []
    assert export.main(["--check"]) == 0


def test_stale_missing_and_orphaned_files_are_seen(tmp_path: Path) -> None:
    """The check of freshness would fail: a changed and a missing file are named."""
    changed, missing, fresh = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    changed.write_text("old")
    fresh.write_text("same")
    found = export.stale({changed: "new", missing: "new", fresh: "same"})
    # every schema of ours is an orphan to a registry that does not name it
    orphans = sorted((export.FOLDER / "json").iterdir())
    assert found == [changed, missing, *orphans]


def test_asyncapi_document_is_valid_by_the_official_schema() -> None:
    """AsyncAPI Initiative's JSON Schema of 3.0.0 (vendor/README.md) accepts the document."""
    official = json.loads((VENDOR / "asyncapi-3.0.0.json").read_text())
    document = yaml.safe_load((export.FOLDER / "asyncapi.yaml").read_text())
    errors = [error.message[:300] for error in Draft7Validator(official).iter_errors(document)]
    assert errors == []
    # and it does refuse: the validator is not blind
    assert list(Draft7Validator(official).iter_errors(document | {"channels": [1]}))


def test_asyncapi_names_every_topic_reader_and_writer() -> None:
    """The document says of each topic who writes and who reads it, and what is personal."""
    document = yaml.safe_load((export.FOLDER / "asyncapi.yaml").read_text())
    assert list(document["channels"]) == [topic.name for topic in ALL_TOPICS]
    operations = document["operations"]
    for topic in ALL_TOPICS:
        channel = document["channels"][topic.name]
        assert channel["x-personal-data"] == [kind.value for kind in topic.kinds]
        assert channel["bindings"]["kafka"]["partitions"] == topic.partitions
        for service in topic.producers:
            assert operations[f"{service}-sends-{topic.name}"]["action"] == "send"
        for service in topic.consumers:
            assert operations[f"{service}-receives-{topic.name}"]["action"] == "receive"
    assert len(operations) == sum(len(t.producers) + len(t.consumers) for t in ALL_TOPICS)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    """`$ref`s into the document and to the schema files resolve."""
    text = (export.FOLDER / "asyncapi.yaml").read_text()
    document = yaml.safe_load(text)
    references = {
        line.split("$ref:")[1].strip().strip("'\"") for line in text.splitlines() if "$ref:" in line
    }
    assert references
    for reference in references:
        if reference.startswith("#/"):
            place = document
            for part in reference[2:].split("/"):
                place = place[part]
        else:
            assert (export.FOLDER / reference).is_file()


def test_exported_schemas_are_json_schema() -> None:
    """Each file is a valid schema of the dialect that it names."""
    for topic in REGISTRY:
        schema = export.json_schema(topic)
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == export.DIALECT
