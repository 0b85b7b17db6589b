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


@pytest.mark.parametrize("topic", ALL_TOPICS, ids=[t.name for t in ALL_TOPICS])
def test_no_copy_outlives_the_rule_of_what_it_stems_from(topic: Topic) -> None:
    """R-D5, D1: topic, what is derived from it, outbox, dead letter: all of a chain together."""
    if topic.personal:
        assert topics.oldest_ms(topic) <= topics.COPIES_AGE_MAX_MS < 7 * topics.DAY_MS
    assert set(topic.copies) <= set(BY_NAME)


def test_periods_alone_would_not_do() -> None:
    """R-D5: what the chassis leaves out is what the sums of periods allow."""

    def sum_ms(topic: Topic, seen: frozenset[str] = frozenset()) -> int:
        before = [BY_NAME[name] for name in topic.copies if name not in seen]
        longest = max((sum_ms(one, seen | {topic.name}) for one in before), default=0)
        return longest + topic.personal_limit_ms

    too_long = {t.name for t in ALL_TOPICS if t.personal and sum_ms(t) > 7 * topics.DAY_MS}
    assert {"credit-dlq", "call-status", "credit-decision"} <= too_long
    assert all(BY_NAME[name].origin_age_max_ms is not None for name in too_long)
    # a state's last word is never left out: the periods before it must do
    assert "consent-state" not in too_long


def test_what_would_be_left_out_at_once_is_no_topic() -> None:
    """An outage of a topic's whole period loses nothing that the next one could still keep."""
    for topic in ALL_TOPICS:
        limit_ms = topic.origin_age_max_ms
        if limit_ms is not None and topic.is_dead_letter:
            (source,) = (BY_NAME[name] for name in topic.copies)
            first_ms = source.personal_limit_ms + topics.OUTBOX_WAIT_MAX_MS
            # a state is read by whoever keeps it in memory, who buries nothing
            assert first_ms <= limit_ms or source.name == "consent-state"


def test_a_topic_is_found_by_its_name() -> None:
    """Names and types agree."""
    assert all(BY_NAME[topic.name] is topic for topic in ALL_TOPICS)
    assert topics.AD_VIEW.type == "de.callpartner.ad-view.v1"


def test_what_carries_no_kind_of_data_is_not_personal() -> None:
    """Orders and receipts hold opaque ids and counts only (D4)."""
    assert not topics.RETENTION_RECEIPT.personal
    assert topics.AD_VIEW.personal
