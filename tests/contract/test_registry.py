"""Rules that the list of topics must keep (R-D5, D1; architecture.md "Topology")."""

import pytest

from schemas.topics import (
    ALL_TOPICS,
    DAY_MS,
    HOUR_MS,
    OUTSIDE,
    REGISTRY,
    VISITOR_PARTITIONS,
    Topic,
)
from services.chassis.declaration import SERVICES

NOT_KEYED_BY_VISITOR = {"order_id", "record_id", "transfer_id", "name"}
KEYS = {"visitor_id"} | NOT_KEYED_BY_VISITOR
"""Keys are random or server-issued ids, or a word of an enum (`name`): nothing a person typed, and
no number or address."""


@pytest.mark.parametrize("topic", ALL_TOPICS, ids=[t.name for t in ALL_TOPICS])
def test_topic_says_what_it_is_and_who_may_touch_it(topic: Topic) -> None:
    """Least privilege is derived from these names: services and known outsiders, none twice."""
    assert topic.description.endswith(".")
    assert topic.producers
    assert set(topic.producers) <= {*SERVICES, *OUTSIDE}
    assert set(topic.consumers) <= set(SERVICES)
    assert len(set(topic.producers)) == len(topic.producers)
    assert len(set(topic.consumers)) == len(topic.consumers)
    assert not set(topic.producers) & set(topic.consumers), "a service that talks to itself"


def test_names_are_unique() -> None:
    """One name, one topic."""
    names = [topic.name for topic in ALL_TOPICS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_record_key_is_a_random_or_server_issued_id(topic: Topic) -> None:
    """D1, security: a key says nothing by itself, and the field exists."""
    assert topic.key in topic.model.model_fields
    assert topic.key in KEYS


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_topics_of_a_visitor_have_equal_partitions(topic: Topic) -> None:
    """One process owns a visitor in all topics: the Range assignor needs equal counts."""
    if topic.key == "visitor_id":
        assert topic.partitions == VISITOR_PARTITIONS


@pytest.mark.parametrize("topic", ALL_TOPICS, ids=[t.name for t in ALL_TOPICS])
def test_personal_topics_are_short_lived(topic: Topic) -> None:
    """R-D5: <= 72 h (the state of consent <= 6 days, the life of a visit), every delay included."""
    if topic.personal:
        is_state = topic.name.startswith("consent-state") or topic.personal_age_max_ms is not None
        assert topic.personal_limit_ms <= (6 * DAY_MS if is_state else 72 * HOUR_MS)
        assert topic.personal_age_max_ms is None or "compact" in topic.cleanup
    assert "delete" in topic.cleanup.split(","), "compaction alone keeps for ever"
    assert 0 < topic.retention_ms < topic.age_max_ms - topic.segment_ms
    assert topic.configs()["message.timestamp.type"] == "LogAppendTime"


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_topic_and_dead_letter_together_stay_under_seven_days(topic: Topic) -> None:
    """R-D5: age counts through the copy. What sits in the topic to its end and is then buried."""
    if topic.personal and topic.consumers and topic.name != "consent-state":
        assert topic.personal_limit_ms + topic.dead_letter.age_max_ms < 7 * DAY_MS


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_dead_letter_takes_what_its_topic_takes(topic: Topic) -> None:
    """A dead letter is not smaller, not shorter-lived, as personal, and written by the readers."""
    dead, alive = topic.dead_letter.configs(), topic.configs()
    assert int(dead["max.message.bytes"]) > int(alive["max.message.bytes"]), "headers are added"
    if topic.personal_age_max_ms is None:
        assert int(dead["retention.ms"]) >= int(alive["retention.ms"])
    assert topic.dead_letter.kinds == topic.kinds
    assert topic.dead_letter.producers == topic.consumers
    assert topic.dead_letter.consumers == ()


def test_every_topic_read_has_a_dead_letter_in_the_list() -> None:
    """Deploy makes topics from the list only: a missing dead letter would stop its reader."""
    names = {topic.name for topic in ALL_TOPICS}
    assert {f"{topic.name}-dlq" for topic in REGISTRY if topic.consumers} <= names
