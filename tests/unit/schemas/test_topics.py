"""What the registry computes for each topic."""

from uuid import UUID

import pytest

from schemas import topics
from schemas.call import CallCommand, CallCommandV1
from schemas.topics import ALL_TOPICS, BY_NAME, SWEEP_MARGIN_MS, Topic

VISITOR = UUID("8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01")


def test_key_is_the_text_of_the_key_field() -> None:
    """The visitor's pseudonym and nothing else decides the partition."""
    event = CallCommandV1(
        call_id=UUID("019aabcd-1234-7abc-8def-0123456789ab"),
        visitor_id=VISITOR,
        command=CallCommand.HANG_UP,
    )
    assert topics.CALL_COMMAND.key_of(event) == str(VISITOR)


@pytest.mark.parametrize("topic", ALL_TOPICS, ids=[t.name for t in ALL_TOPICS])
def test_everything_that_delays_deletion_fits_into_the_rule(topic: Topic) -> None:
    """D1: retention + segment + what the broker takes to look and to delete = the rule."""
    configs = topic.configs()
    delays_ms = int(configs["segment.ms"]) + SWEEP_MARGIN_MS
    assert int(configs["retention.ms"]) + delays_ms == topic.age_max_ms
    assert int(configs["max.compaction.lag.ms"]) <= topic.segment_ms


def test_a_topic_is_found_by_its_name() -> None:
    """Names and types agree."""
    assert all(BY_NAME[topic.name] is topic for topic in ALL_TOPICS)
    assert topics.AD_VIEW.type == "de.callpartner.ad-view.v1"


def test_what_carries_no_kind_of_data_is_not_personal() -> None:
    """Orders and receipts hold opaque ids and counts only (D4)."""
    assert not topics.RETENTION_RECEIPT.personal
    assert topics.AD_VIEW.personal
