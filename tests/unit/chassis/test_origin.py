"""A copy says what it stems from, through every topic and dead letter (R-D5, D1)."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from schemas import envelope, topics
from schemas.call import CallCommand, CallCommandV1
from schemas.credit import CreditOperation, CreditRequestV1
from schemas.retention import DataKind, RetentionReceiptV1
from services.chassis.context import Context
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox, OutboxRow, is_too_old
from services.chassis.received import Received, decode
from tests.support.bench import new_visitor_id, received

IDS = TimeOrderedIds()
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=70)


def command() -> CallCommandV1:
    return CallCommandV1(
        call_id=IDS.new(), visitor_id=new_visitor_id(), command=CallCommand.HANG_UP
    )


def request() -> CreditRequestV1:
    return CreditRequestV1(
        reservation_id=IDS.new(),
        visitor_id=new_visitor_id(),
        operation=CreditOperation.RELEASE,
        wanted_ms=0,
        lease_ms=1000,
    )


def read_back(row: OutboxRow) -> Received[Any]:
    record = SimpleNamespace(
        headers=row.headers, value=row.payload, key=row.key, partition=0, offset=0, timestamp=0
    )
    return decode(topics.BY_NAME[row.topic], record)


def test_what_follows_from_a_record_is_as_old_as_what_that_one_stems_from() -> None:
    """R-D5: over two copies, in UTC; a record that follows from nothing is as old as itself."""
    first = received(topics.CALL_COMMAND, command(), EARLIER)
    assert first.origin == EARLIER
    outbox = Outbox("call_control", IDS, NOW)
    outbox.add(topics.CREDIT_REQUEST, request(), cause=first)
    second = read_back(outbox.rows[-1])
    assert (second.time, second.origin) == (NOW, EARLIER)
    outbox.add(topics.CREDIT_REQUEST, request(), cause=second)
    assert read_back(outbox.rows[-1]).origin == EARLIER
    outbox.add(topics.CREDIT_REQUEST, request())
    assert read_back(outbox.rows[-1]).origin == NOW
    outbox.add(topics.CREDIT_REQUEST, request(), origin=EARLIER)
    assert read_back(outbox.rows[-1]).origin == EARLIER


def test_what_is_not_personal_has_no_origin() -> None:
    """D4: a receipt says nothing of anybody, so it may live as long as its topic."""
    outbox = Outbox("consent", IDS, NOW)
    receipt = RetentionReceiptV1(
        order_id=IDS.new(), service="consent", kind=DataKind.AD_USE, counts=(), done_at=NOW
    )
    cause = received(topics.CONSENT, command(), EARLIER)
    outbox.add(topics.RETENTION_RECEIPT, receipt, cause=cause)
    assert envelope.ORIGIN not in dict(outbox.rows[-1].headers)


def test_a_dead_letter_keeps_the_origin() -> None:
    """R-D5: buried by a handler; what the chassis buries has the record's own headers."""
    copy = received(topics.CREDIT_REQUEST, request(), NOW)._replace(said_origin=EARLIER)
    outbox = Outbox("ad_ledger", IDS, NOW)
    ctx = Context(
        store=None,
        outbox=outbox,
        now=NOW,
        ids=IDS,
        connection=None,  # type: ignore[arg-type]  # nothing is flushed
        service="ad_ledger",
    )
    ctx.dead_letter(copy, "odd")
    (row,) = outbox.rows
    assert envelope.stems_from(row.headers) == EARLIER
    limit = timedelta(milliseconds=topics.CREDIT_REQUEST.dead_letter.origin_age_max_ms or 0)
    assert not is_too_old(row, created_at=NOW, now=EARLIER + limit)
    assert is_too_old(row, created_at=NOW, now=EARLIER + limit + timedelta(seconds=1))


@pytest.mark.parametrize("text", [b"yesterday", b"2026-11-22T10:00:00", b""])
def test_an_origin_that_is_no_instant_is_poison(text: bytes) -> None:
    """R-D5: what does not say how old it is must not live on."""
    outbox = Outbox("call_control", IDS, NOW)
    outbox.add(topics.CREDIT_REQUEST, request(), origin=EARLIER)
    (row,) = outbox.rows
    bad = [(name, text if name == envelope.ORIGIN else value) for name, value in row.headers]
    with pytest.raises(Poison, match="ce_id_or_time_invalid"):
        read_back(replace(row, headers=bad))
