"""Every example is judged alike by the model and by the exported JSON Schema."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from schemas.export import FOLDER
from schemas.topics import BY_NAME, MESSAGE_BYTES_MAX, REGISTRY, Topic

EXAMPLES = FOLDER / "examples"
GOOD_NAMES = ("minimal", "typical", "largest")
ALSO = {
    topic.name: sorted(path.stem for path in (EXAMPLES / topic.name).glob("v*/also-*.json"))
    for topic in REGISTRY
}
"""Further good examples, where fields exclude each other and no single event has them all."""
GOOD = [(topic, name) for topic in REGISTRY for name in (*GOOD_NAMES, *ALSO[topic.name])]
INVALID = sorted(EXAMPLES.glob("*/v*/invalid/*.json"))


def _folder(topic: Topic) -> Path:
    return EXAMPLES / topic.name / f"v{topic.version}"


def _validator(topic: Topic) -> Draft202012Validator:
    text = (FOLDER / "json" / f"{topic.name}.v{topic.version}.json").read_text()
    return Draft202012Validator(
        json.loads(text), format_checker=Draft202012Validator.FORMAT_CHECKER
    )


@pytest.mark.parametrize(("topic", "name"), GOOD, ids=[f"{t.name}-{n}" for t, n in GOOD])
def test_example_is_good_by_model_and_by_schema(topic: Topic, name: str) -> None:
    """Both readers of the contract, Python's and everybody else's, take what we say is good."""
    text = (_folder(topic) / f"{name}.json").read_text()
    event = topic.model.model_validate_json(text)
    _validator(topic).validate(json.loads(text))
    sent = event.model_dump_json(exclude_none=True)
    assert topic.model.model_validate_json(sent) == event, "what we send, we read back"
    _validator(topic).validate(json.loads(sent))
    assert len(sent) < MESSAGE_BYTES_MAX


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_minimal_has_required_fields_only_and_largest_has_all(topic: Topic) -> None:
    """The three examples span what a reader must expect."""
    minimal = json.loads((_folder(topic) / "minimal.json").read_text())
    typical = json.loads((_folder(topic) / "typical.json").read_text())
    largest = json.loads((_folder(topic) / "largest.json").read_text())
    fields = topic.model.model_fields
    assert set(minimal) == {name for name, field in fields.items() if field.is_required()}
    also = [json.loads((_folder(topic) / f"{name}.json").read_text()) for name in ALSO[topic.name]]
    assert set(largest).union(*also) == set(fields)
    assert len(json.dumps(minimal)) <= len(json.dumps(typical)) <= len(json.dumps(largest))


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_unknown_field_is_tolerated(topic: Topic) -> None:
    """A reader of this version reads what a newer producer adds."""
    event = json.loads((_folder(topic) / "typical.json").read_text()) | {"added_later": [1]}
    topic.model.model_validate_json(json.dumps(event))
    _validator(topic).validate(event)


@pytest.mark.parametrize("path", INVALID, ids=[f"{p.parts[-4]}-{p.stem}" for p in INVALID])
def test_invalid_example_is_refused_by_both_with_the_expected_error(path: Path) -> None:
    """The model names place and kind of the error; the schema its keyword, at the same place."""
    topic = BY_NAME[path.parts[-4]]
    case = json.loads(path.read_text())
    expected = case["expected"]
    with pytest.raises(ValidationError) as caught:
        topic.model.model_validate_json(json.dumps(case["event"]))
    # the first error is the cause; pydantic may add that a list lost its bad item
    error = caught.value.errors(include_url=False)[0]
    assert [*error["loc"]] == expected["location"]
    assert error["type"] == expected["type"]
    found = {(_place(e), e.validator) for e in _validator(topic).iter_errors(case["event"])}
    assert (tuple(expected["location"]), expected["keyword"]) in found


def _place(error: Any) -> tuple[str | int, ...]:
    """Where a schema error is, as pydantic says it: a missing field is at its own name."""
    place = tuple(error.absolute_path)
    if error.validator == "required":
        (missing,) = (name for name in error.validator_value if name not in error.instance)
        return (*place, missing)
    return place


def test_each_topic_has_examples_and_none_is_an_orphan() -> None:
    """A topic without examples, and an example or schema without a topic, both fail."""
    good = {path for path in EXAMPLES.rglob("*.json") if path.parent.name != "invalid"}
    assert good == {_folder(topic) / f"{name}.json" for topic, name in GOOD}
    assert {path.parents[1] for path in INVALID} == {_folder(topic) for topic in REGISTRY}
    assert set(INVALID) == set(EXAMPLES.rglob("invalid/*"))
    schemas = {path.name for path in (FOLDER / "json").iterdir()}
    assert schemas == {f"{topic.name}.v{topic.version}.json" for topic in REGISTRY}


def test_numbers_in_examples_are_reserved_for_fiction() -> None:
    """No example may ring at someone's home: BNetzA keeps +49 30 23125 xxx for fiction."""
    for path in (EXAMPLES / "call-request").rglob("*.json"):
        case = json.loads(path.read_text())
        event = case.get("event", case)
        for field in ("callback_number", "destination_number"):
            digits = "".join(filter(str.isdigit, str(event[field])))
            assert "3023125" in digits or not digits
