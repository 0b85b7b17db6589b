"""Our envelope codec and the CloudEvents SDK understand each other, and bad headers are a word."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from schemas import envelope
from schemas.topics import AD_VIEW, CALL_END, REGISTRY, Topic

EVENT_ID = UUID("019aabcd-1234-7abc-8def-0123456789ab")
KEY = "8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01"
AT = datetime(2026, 11, 22, 18, 3, 31, 250_000, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def _envelope(
    topic: Topic = AD_VIEW, at: datetime = AT, trace: str | None = TRACE
) -> envelope.Envelope:
    return envelope.for_event(
        topic, event_id=EVENT_ID, source="gateway", time=at, key=KEY, traceparent=trace
    )


def _with(**changed: bytes | None) -> list[tuple[str, bytes | None]]:
    headers: dict[str, bytes | None] = dict(_envelope().headers())
    return [
        *(headers | {name.replace("__", "-"): value for name, value in changed.items()}).items()
    ]


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_the_sdk_reads_what_we_write(topic: Topic) -> None:
    """CloudEvents 1.0, Kafka binary mode, by the CNCF's own library."""
    message = KafkaMessage(dict(_envelope(topic).headers()), KEY.encode(), b'{"position_ms":0}')
    event = from_binary(message, JSONFormat())
    assert event.get_specversion() == "1.0"
    assert event.get_id() == str(EVENT_ID)
    assert event.get_type() == f"de.callpartner.{topic.name}.v1"
    assert event.get_source() == "/services/gateway"
    assert event.get_subject() == KEY
    assert event.get_time() == AT
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == {"position_ms": 0}


def test_we_read_what_the_sdk_writes() -> None:
    """And the other way: a producer with the library may write to our topics."""
    event = CloudEvent(
        attributes={
            "specversion": "1.0",
            "id": str(EVENT_ID),
            "type": AD_VIEW.type,
            "source": "/services/gateway",
            "subject": KEY,
            "time": AT,
            "datacontenttype": "application/json",
        },
        data={"position_ms": 0},
    )
    message = to_binary(event, JSONFormat())
    assert envelope.read(AD_VIEW, message.headers.items()) == _envelope(trace=None)


@given(
    seconds=st.integers(0, 4_000_000_000),
    microseconds=st.integers(0, 999_999),
    hours=st.integers(-14, 14),
)
def test_what_is_written_is_read_back(seconds: int, microseconds: int, hours: int) -> None:
    """Any instant in any offset comes back as the same instant in UTC."""
    at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
    elsewhere = at.astimezone(timezone(timedelta(hours=hours)))
    read = envelope.read(AD_VIEW, _envelope(at=elsewhere).headers())
    assert read == _envelope(at=at)
    assert read.time.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"ce_id": None}, "header_null"),
        ({"traceparent": None}, "header_null"),
        ({"ce_source": b"\xff\xfe"}, "header_not_utf8"),
        ({"content__type": b"\xc3"}, "header_not_utf8"),
        ({"ce_specversion": b"0.3"}, "specversion_unknown"),
        ({"ce_type": b"com.example.ad-view.v1"}, "type_foreign"),
        ({"ce_type": CALL_END.type.encode()}, "type_unexpected"),
        ({"ce_type": b"de.callpartner.ad-view.v2"}, "type_unexpected"),
        ({"content__type": b"application/avro"}, "content_type_unknown"),
        ({"ce_id": b"42"}, "ce_id_or_time_invalid"),
        ({"ce_time": b"yesterday"}, "ce_id_or_time_invalid"),
        ({"ce_time": b"2026-11-22T18:03:31"}, "ce_id_or_time_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_bad_header_is_refused_with_a_closed_word(
    changed: dict[str, bytes | None], word: str
) -> None:
    """Null and non-UTF-8 headers are poison with a reason, never a crash."""
    with pytest.raises(envelope.EnvelopeError) as caught:
        envelope.read(AD_VIEW, _with(**changed))
    assert str(caught.value) == word


@pytest.mark.parametrize("missing", ["ce_id", "ce_time", "ce_type", "ce_specversion"])
def test_missing_attribute_is_refused(missing: str) -> None:
    """What the standard requires, we require."""
    with pytest.raises(envelope.EnvelopeError):
        envelope.read(AD_VIEW, [h for h in _envelope().headers() if h[0] != missing])


def test_foreign_headers_are_passed_over_whatever_they_hold() -> None:
    """A header that is none of ours costs nothing, null or not UTF-8."""
    raw = [*_with(), ("x-null", None), ("x-bytes", b"\xff")]
    assert envelope.read(AD_VIEW, raw) == _envelope()


@given(st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=40)), max_size=10))
def test_any_headers_at_all_are_an_event_or_a_word(raw: list[tuple[str, bytes | None]]) -> None:
    """Whatever a record's headers hold, reading ends in EnvelopeError or an envelope."""
    with contextlib.suppress(envelope.EnvelopeError):
        assert envelope.read(AD_VIEW, [*_with(), *raw]).time.tzinfo is UTC


@pytest.mark.parametrize("text", ["", "00-0-0-00", TRACE.replace("00-", "ff-", 1), TRACE + "-x"])
def test_broken_trace_context_costs_the_trace_never_the_event(text: str) -> None:
    """The event is read; its trace is not."""
    assert envelope.read(AD_VIEW, _with(traceparent=text.encode())).traceparent is None
