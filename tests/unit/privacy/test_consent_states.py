"""What a sender knows of consents: each visitor's last state, and how old that knowledge is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from aiokafka.structs import ConsumerRecord

from schemas import topics
from schemas.consent import (
    ConsentChange,
    ConsentDecision,
    ConsentStateV1,
    Purpose,
    PurposeState,
)
from schemas.consent_progress import ConsentProgressV1, ProgressName
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret
from services.privacy.consent_states import STALE_AFTER, ConsentStates
from tests.support.bench import received

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
VISITOR = UUID("a0000000-5a3c-4f1e-9b7d-000000000000")
MARKETING = Purpose.MARKETING
MOMENT = timedelta(milliseconds=1)


class Clock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


def states() -> ConsentStates:
    login = KafkaLogin(bootstrap="127.0.0.1:1", username="u", password=Secret("p"))
    return ConsentStates(login, prefix="", clock=Clock())


def state(since: datetime, *, in_force: bool, changes: tuple[ConsentChange, ...] = ()):
    purposes = tuple(
        PurposeState(
            purpose=MARKETING, recipient=name, in_force=in_force, since=since, changes=changes
        )
        for name in (None, "adgrx-com")
    )
    return received(
        topics.CONSENT_STATE, ConsentStateV1(visitor_id=VISITOR, purposes=purposes), NOW
    )


def progress(until: datetime, appended_at: datetime | None = None):
    event = ConsentProgressV1(name=ProgressName.CHOICES, until=until)
    found = received(topics.CONSENT_PROGRESS, event, NOW)
    return found._replace(appended_at=appended_at)


def is_fresh_until(found: ConsentStates, until: datetime) -> bool:
    """Whether what is known is of an instant: fresh for as long, and no longer."""
    last = until + STALE_AFTER
    is_fresh = found.facts_of(VISITOR, last).is_fresh
    return is_fresh and not found.facts_of(VISITOR, last + MOMENT).is_fresh


def test_a_reader_that_has_not_read_all_is_stale():
    """K3: what was said meanwhile may be a withdrawal."""
    found = states()
    found._replay.read_until = NOW
    assert not found.facts_of(VISITOR, NOW).is_fresh, "consent may have more to say"
    found = states()
    found.take(progress(NOW))
    assert not found.facts_of(VISITOR, NOW).is_fresh, "nothing has been read"
    found._replay.read_until = NOW - MOMENT
    assert not found.facts_of(VISITOR, NOW).is_fresh, "what it speaks of may not have been read"
    found._replay.read_until = NOW
    assert is_fresh_until(found, NOW)


def test_what_is_known_is_as_old_as_consent_says():
    """K3: however far the topic was read; two processes tell it, and one of them may be late."""
    found = states()
    found._replay.read_until = NOW + timedelta(hours=1)
    found.take(progress(NOW - timedelta(seconds=3)))
    assert is_fresh_until(found, NOW - timedelta(seconds=3))
    found.take(progress(NOW - timedelta(seconds=1)))
    found.take(progress(NOW - timedelta(seconds=2)))
    assert is_fresh_until(found, NOW - timedelta(seconds=1))


def test_a_clock_of_consent_that_is_ahead_makes_nothing_younger():
    """K3: it was told when the broker had it."""
    found = states()
    found._replay.read_until = NOW
    found.take(progress(NOW + timedelta(hours=1), appended_at=NOW))
    assert is_fresh_until(found, NOW)


def test_the_last_state_counts_with_its_history():
    """K2: what was in force when the event happened."""
    found = states()
    found.take(state(NOW - timedelta(hours=3), in_force=True))
    changes = (
        ConsentChange(decision=ConsentDecision.WITHDRAWN, at=NOW),
        ConsentChange(decision=ConsentDecision.GIVEN, at=NOW - timedelta(hours=3)),
    )
    found.take(state(NOW, in_force=False, changes=changes))
    facts = found.facts_of(VISITOR, NOW)
    assert not facts.in_force_at("marketing", "adgrx-com", NOW)
    assert facts.in_force_at("marketing", "adgrx-com", NOW - timedelta(microseconds=1))
    assert not facts.in_force_at("marketing", "adgrx-com", NOW - timedelta(hours=4))
    assert not facts.in_force_at("statistics", "adgrx-com", NOW)


def test_a_state_without_changes_stands_since_its_instant():
    """K2: the changes are optional on the wire."""
    found = states()
    found.take(state(NOW - timedelta(hours=1), in_force=True))
    facts = found.facts_of(VISITOR, NOW)
    assert facts.in_force_at("marketing", "adgrx-com", NOW)
    assert not facts.in_force_at("marketing", "adgrx-com", NOW - timedelta(hours=2))


def test_nobody_gets_anything_who_was_not_named():
    """R-E2, R-F1, R-F2, K3: an agreement to a purpose reaches whom the version shown named."""
    found = states()
    since = NOW - timedelta(hours=1)
    both = (
        PurposeState(purpose=MARKETING, reaches=("amazon",), in_force=True, since=since),
        PurposeState(purpose=MARKETING, recipient="adgrx-com", in_force=False, since=since),
    )
    event = ConsentStateV1(visitor_id=VISITOR, purposes=both)
    found.take(received(topics.CONSENT_STATE, event, NOW))
    facts = found.facts_of(VISITOR, NOW)
    assert not facts.in_force_at("marketing", "adgrx-com", NOW)
    assert facts.in_force_at("marketing", "amazon", NOW)
    assert not facts.in_force_at("marketing", "stickyadstv-com", NOW)


def test_a_state_that_cannot_be_understood_is_known_no_more():
    """K3: it may be a withdrawal; a key that is nobody's is no visitor."""
    found = states()
    found.take(state(NOW - timedelta(hours=1), in_force=True))
    key = topics.CONSENT_STATE.key_bytes_of(state(NOW, in_force=True).event)
    record = ConsumerRecord(
        topics.CONSENT_STATE.name, 0, 7, 0, 0, key, b"{}", None, 0, 2, (("ce_id", b"?"),)
    )
    found._replay._take(record)
    assert not found.facts_of(VISITOR, NOW).of_recipients
    found._replay._take(replace(record, key=b"\xff"))


def test_what_is_deleted_or_old_is_forgotten():
    """R-D5, R-G3: nothing is in force for who is not known."""
    found = states()
    found.take(state(NOW - timedelta(hours=1), in_force=True))
    found.forget_before(NOW)
    assert found.facts_of(VISITOR, NOW).changes
    found.forget_before(NOW + timedelta(seconds=1))
    assert not found.facts_of(VISITOR, NOW).changes
    found.take(state(NOW - timedelta(hours=1), in_force=True))
    found.forget(topics.CONSENT_STATE.key_bytes_of(state(NOW, in_force=True).event))
    assert not found.facts_of(VISITOR, NOW).changes
