"""The chassis' small rules: which error is which, what may be printed, what fits on a topic."""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest
import structlog
from aiokafka import errors as kafka_errors
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from schemas import envelope
from schemas.topics import MESSAGE_BYTES_MAX, Topic
from schemas.wire import WireModel
from services.chassis import errors, logs, trace
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox, OutboxRow, decode_headers, encode_headers, fits
from services.chassis.settings import ServiceSettings
from services.consent.settings import Settings as ConsentSettings

CANARY = "+4930123456789"


@pytest.mark.parametrize(
    "error",
    [
        errors.Transient("away"),
        TimeoutError(),
        ConnectionResetError(),
        asyncpg.ConnectionDoesNotExistError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.DeadlockDetectedError(),
        asyncpg.SerializationError(),
        asyncpg.LockNotAvailableError(),
        asyncpg.AdminShutdownError(),
        asyncpg.CannotConnectNowError(),
        asyncpg.TooManyConnectionsError(),
        asyncpg.IdleInTransactionSessionTimeoutError(),
        asyncpg.ReadOnlySQLTransactionError(),
        kafka_errors.KafkaTimeoutError(),
        kafka_errors.NotLeaderForPartitionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_weather_is_worth_another_try(error: BaseException) -> None:
    assert errors.is_transient(error)
    assert not errors.is_data_error(error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.Poison("a_word"), "a_word"),
        (asyncpg.UniqueViolationError(CANARY), "database_23505"),
        (asyncpg.CheckViolationError(CANARY), "database_23514"),
        (asyncpg.NumericValueOutOfRangeError(CANARY), "database_22003"),
        (asyncpg.CharacterNotInRepertoireError(CANARY), "database_22021"),
        (asyncpg.DataError(f"invalid input for query argument $1: {CANARY}"), "database_22000"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_data_error_is_poison_with_a_closed_word(error: BaseException, reason: str) -> None:
    assert errors.is_data_error(error)
    assert not errors.is_transient(error)
    assert errors.reason_of(error) == reason


@pytest.mark.parametrize(
    "error",
    [AssertionError(), KeyError("x"), asyncpg.UndefinedTableError(), errors.Fatal("stop"),
     kafka_errors.MessageSizeTooLargeError(), kafka_errors.TopicAuthorizationFailedError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_everything_else_is_a_bug(error: BaseException) -> None:
    assert not errors.is_transient(error)
    assert not errors.is_data_error(error)


@pytest.fixture
def printed() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the log says, as the process would print it."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        logs.configure("test", "0", "DEBUG")
        yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers[:], root.level = kept
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_only_allowed_fields_are_printed(printed: Any) -> None:
    """R-C5: a field nobody thought of does not leak."""
    logs.get().info("call ended", number=CANARY, visitor_id=CANARY, reason="answered")
    (line,) = printed()
    assert line["reason"] == "answered"
    assert line["service"] == "test"
    assert not set(line) - logs.ALLOWED_FIELDS
    assert CANARY not in json.dumps(line)


def test_an_error_is_printed_by_type_and_place(printed: Any) -> None:
    """A database error's text quotes the row, a validation error's the input."""
    with pytest.raises(ValueError, match="4930123456789x") as raised:
        int(CANARY + "x")
    logs.get().error("failed", **logs.describe(raised.value))
    (line,) = printed()
    assert line["error"] == "ValueError"
    assert line["where"].startswith("test_small_parts.py:")
    assert CANARY not in json.dumps(line)


def test_libraries_are_printed_without_their_arguments(printed: Any) -> None:
    """Also asyncio's, which appends the lost exception's text to its own message."""
    logging.getLogger("library").warning("row %s refused", CANARY)
    lost = f"Task exception was never retrieved\nfuture: ValueError('{CANARY}')"
    logging.getLogger("asyncio").error(lost)
    first, second = printed()
    assert first["reason"] == "row %s refused"
    assert second["reason"] == "Task exception was never retrieved"
    assert CANARY not in json.dumps([first, second])


def test_settings_are_frozen_and_redacted() -> None:
    """Read once; a secret is stars wherever the settings are printed."""
    settings = ServiceSettings(
        kafka_bootstrap="k:9",
        kafka_username="a",
        kafka_password=SecretStr("secret-word"),
        admin_port=1,
        database_url=SecretStr("postgresql://a:secret-word@h/d"),
    )
    assert "secret-word" not in f"{settings!r} {settings.redacted()}"
    assert settings.redacted()["kafka_bootstrap"] == "k:9"
    with pytest.raises(ValueError, match="frozen"):
        settings.admin_port = 2  # type: ignore[misc]


@given(st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=64)), max_size=8))
def test_any_header_survives_the_outbox(headers: list[tuple[str, bytes | None]]) -> None:
    """A dead letter keeps null and broken bytes."""
    assert decode_headers(encode_headers(headers)) == headers


class _Big(WireModel):
    name: str
    text: str


BIG = Topic(
    name="big", description="", model=_Big, key="name", producers=("test",), consumers=(),
    age_max_ms=10**9, segment_ms=10**6,
)  # fmt: skip


def test_an_event_that_the_broker_would_refuse_is_refused_at_the_door() -> None:
    """Headers count too; a refused record would stop the relay for good (hot-path.md 3)."""
    outbox = Outbox("test", TimeOrderedIds(), SystemClock().now())
    frame = len(_Big(name="k", text="").model_dump_json())
    with pytest.raises(AssertionError, match="too large"):
        outbox.add(BIG, _Big(name="k", text="x" * (MESSAGE_BYTES_MAX - frame - 10)))
    assert outbox.rows == []
    outbox.add(BIG, _Big(name="k", text="x" * (MESSAGE_BYTES_MAX - frame - 1000)))
    assert fits(outbox.rows[0])
    assert not fits(OutboxRow("big", None, [("h", b"x" * MESSAGE_BYTES_MAX)], None))


def test_a_service_may_not_write_a_foreign_topic() -> None:
    """The registry decides who writes."""
    outbox = Outbox("somebody", TimeOrderedIds(), SystemClock().now())
    with pytest.raises(AssertionError, match="may not write"):
        outbox.add(BIG, _Big(name="k", text=""))


def test_a_trace_goes_on_with_a_new_span() -> None:
    first = trace.new()
    second = trace.child(first)
    assert envelope.is_traceparent(first)
    assert envelope.is_traceparent(second)
    assert trace.trace_id(first) == trace.trace_id(second)
    assert first != second
    assert trace.trace_id(trace.child(None)) != trace.trace_id(first)


def test_ids_sort_by_time() -> None:
    ids = [TimeOrderedIds().new() for _ in range(100)]
    assert {found.version for found in ids} == {7}
    assert ids == sorted(ids)


def test_a_variable_wins_over_a_file_and_is_not_replaced_by_it(tmp_path, monkeypatch) -> None:
    """What came from the environment stays; only what came from a file follows it."""
    for name in ("kafka_password", "database_url"):
        (tmp_path / f"consent_{name}").write_text("of-the-file", encoding="utf-8")
    for name, text in {
        "KAFKA_BOOTSTRAP": "k:9",
        "KAFKA_USERNAME": "a",
        "KAFKA_PASSWORD": "of-the-variable",
        "ADMIN_PORT": "0",
        "RECEIPT_KEYS": f'{{"k1": "{"11" * 32}"}}',
        "ANCHOR_KEYS": f'{{"k1": "{"22" * 32}"}}',
        "PROOF_KEYS": f'{{"k1": "{"33" * 32}"}}',
        "SECRETS_FOLDER": str(tmp_path),
    }.items():
        monkeypatch.setenv(f"CONSENT_{name}", text)
    settings = ConsentSettings.load()
    assert settings.secret("kafka_password").read() == "of-the-variable"
    assert settings.secret("database_url").read() == "of-the-file"
    (tmp_path / "consent_database_url").write_text("replaced", encoding="utf-8")
    assert settings.secret("database_url").read() == "replaced"
