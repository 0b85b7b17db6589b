"""The four kinds of error, and no others.

Refusal            the business says no: a value from `domain`, counted by reason; not here
MinutesError
├── Poison         one record that can never succeed: dead-lettered with its reason
├── Transient      database or broker away: bounded retry with back-off, then give up
└── Fatal          the process cannot go on and says why in one sentence (exit 1)
anything else      a bug: roll back, exit non-zero, the supervisor restarts from the offsets
"""

import asyncpg
from aiokafka import errors as kafka_errors


class MinutesError(Exception):
    """Base of the errors below."""


class Poison(MinutesError):  # noqa: N818 - the word of the architecture
    """One record can never be processed; `reason` is a closed word without personal data."""

    def __init__(self, reason: str) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.reason = reason


class Transient(MinutesError):  # noqa: N818
    """Something outside is away or busy: worth another try."""


class Fatal(MinutesError):  # noqa: N818
    """The process must stop; the text says why and what mends it."""


_TRANSIENT_DATABASE: tuple[type[BaseException], ...] = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    # a session killed between two messages confuses asyncpg's state machine (seen)
    asyncpg.InternalClientError,
    # a process that stood still lost its session; a standby was asked in the middle of a fail-over
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    # between the two steps of a rotation the server knows another password than the file
    asyncpg.InvalidPasswordError,
)
_DATA_ERRORS: tuple[type[BaseException], ...] = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, kafka_errors.KafkaError):
        return bool(error.retriable) or isinstance(error, kafka_errors.KafkaTimeoutError)
    if isinstance(error, _DATA_ERRORS):
        return False
    return isinstance(error, (Transient, OSError, TimeoutError, *_TRANSIENT_DATABASE))


def is_data_error(error: BaseException) -> bool:
    """Whether one record of a batch broke a rule of the database, or a handler called it poison."""
    return isinstance(error, (Poison, *_DATA_ERRORS))


def reason_of(error: BaseException) -> str:
    """Return a closed word for a dead letter: the poison's reason or the constraint's kind."""
    if isinstance(error, Poison):
        return error.reason
    if isinstance(error, asyncpg.PostgresError):
        return f"database_{(error.sqlstate or 'unknown').lower()}"
    return "data_error"
