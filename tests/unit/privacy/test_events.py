"""Every field, key and header of every event is classified (D5, R-C1)."""

from datetime import UTC, datetime

import pytest

from schemas import envelope, topics
from schemas.retention import DataKind
from schemas.topics import ALL_TOPICS, REGISTRY, Topic
from schemas.wire import WireModel
from services.chassis.context import Context
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox, OutboxRow
from services.privacy import events
from services.privacy.declare import Items, gaps, plain

IDS = TimeOrderedIds()
NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
ACTUAL = [(topic.name, path) for topic in REGISTRY for path in events.paths(topic.model)]
EACH = pytest.mark.parametrize("topic", ALL_TOPICS, ids=[topic.name for topic in ALL_TOPICS])


def test_every_field_is_classified_and_every_entry_is_a_field():
    """D5, R-C1."""
    assert gaps(ACTUAL, events.EVENTS) == []


@pytest.mark.parametrize(("topic", "path"), ACTUAL, ids=[".".join(pair) for pair in ACTUAL])
def test_a_field_nobody_classified_is_named(topic, path):
    """D5: each field, the nested ones too, is missed when its entry is taken away."""
    without = {name: item for name, item in events.EVENTS[topic].items() if name != path}
    found = gaps(ACTUAL, {**events.EVENTS, topic: without})
    assert found == [f"{topic}.{path} is not classified"]


def test_an_entry_without_its_field_is_named():
    """D5."""
    more = {**events.EVENTS[topics.CREDIT.name], **plain("colour")}
    found = gaps(ACTUAL, {**events.EVENTS, topics.CREDIT.name: more})
    assert found == [f"{topics.CREDIT.name}.colour does not exist"]


class Leaf(WireModel):
    number: str


class Branch(WireModel):
    leaf: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    by_name: dict[str, Leaf]
    count: int


def test_a_number_deep_inside_an_event_is_found():
    """D5: in an optional model, in a list of models, in a map of models."""
    assert list(events.paths(Branch)) == [
        "leaf.number",
        "leaves.number",
        "by_name.number",
        "count",
    ]


@EACH
def test_a_topic_carries_the_kinds_of_its_fields(topic: Topic):
    """D1, R-D5: its age is bounded by the kinds that the registry names."""
    assert kinds(events.fields(topic)) == set(topic.kinds)


def kinds(items: Items) -> set[DataKind]:
    return {item.kind for item in items.values() if item.kind is not None}


@EACH
def test_what_its_headers_and_key_say_is_as_personal_as_the_event(topic: Topic):
    """D1: a visitor's id, and the id of what went of theirs, go with the record's value."""
    assert topic.key in events.fields(topic)
    assert kinds(events.headers(topic)) <= set(topic.kinds)
    assert events.headers(topic)["ce_subject"] == events.fields(topic)[topic.key]
    is_personal = events.fields(topic)[topic.key].personal
    assert bool(kinds(events.headers(topic))) == is_personal
    assert is_personal == (topic.key in {"visitor_id", "transfer_id"})


@EACH
def test_every_header_is_classified_and_every_entry_is_a_header(topic: Topic):
    """D5: of the records as the outbox writes them, dead letters with what is added to them."""
    head = envelope.for_event(
        topic, event_id=IDS.new(), source="s", time=NOW, key="k", traceparent="t", origin=NOW
    )
    written: list[tuple[str, bytes | None]] = [*head.headers()]
    if topic.is_dead_letter:
        ctx = Context(
            store=None,
            outbox=Outbox("s", IDS, NOW),
            now=NOW,
            ids=IDS,
            connection=None,  # type: ignore[arg-type]  # nothing is flushed
            service="s",
        )
        row = OutboxRow(topic.name, b"k", [*head.headers()], b"{}")
        ctx.bury(row, topic="t", partition=0, offset=0, reason="r")
        written = ctx.outbox.rows[0].headers
    actual = [(topic.name, name) for name, _ in written]
    assert gaps(actual, {topic.name: events.headers(topic)}) == []
    more = [*actual, (topic.name, "x_number")]
    assert gaps(more, {topic.name: events.headers(topic)}) == [
        f"{topic.name}.x_number is not classified"
    ]
