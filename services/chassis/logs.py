"""structlog JSON on stdout. Personal data never gets in: only named fields from an allow-list do.

An allow-list, not a block-list, because a field nobody thought of must not leak (R-C5, D1).
"""

import logging
import sys
import traceback
from typing import Any

import structlog
from typing_extensions import override

ALLOWED_FIELDS = frozenset(
    {
        "event", "level", "timestamp", "service", "instance", "topic", "partition", "partitions",
        "offset", "next_offset", "event_id", "trace_id", "reason", "outcome", "error", "where",
        "n", "seconds", "attempt", "settings", "table", "before_day", "order_id", "kind", "call_id",
        "leg", "status", "signal", "exit_code", "port", "invariant", "violations", "as_of", "name",
        "route", "method", "sip_status", "overrun_ms", "stack", "migration",
    }
)  # fmt: skip


def _only_allowed(_: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {key: value for key, value in event.items() if key in ALLOWED_FIELDS}


def describe(error: BaseException) -> dict[str, str]:
    """Return an error for the log: its type and where it arose, never its text.

    A database error's text quotes the offending row, a validation error's the input.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in reversed(frames[-4:]))
    return {"error": type(error).__name__, "where": where}


def configure(service: str, instance: str, level: str) -> None:
    """Set up logging for the process; libraries' own logs pass by level and message template."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            structlog.processors.JSONRenderer(sort_keys=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(service=service, instance=instance)
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


class _LibraryHandler(logging.Handler):
    """Libraries' records: logger's name, level and the unfilled template; never the arguments.

    Its first line only: asyncio appends the lost exception's text to its own, on further lines.
    """

    @override
    def emit(self, record: logging.LogRecord) -> None:
        template = str(record.msg).partition("\n")[0][:200]
        structlog.get_logger().log(record.levelno, "library", name=record.name, reason=template)


def get() -> structlog.typing.FilteringBoundLogger:
    """Return the logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger
