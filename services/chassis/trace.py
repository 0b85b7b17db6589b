"""W3C trace context: one trace from the browser's request through topics and outbox."""

import secrets


def new() -> str:
    """Return the traceparent of a new, sampled trace."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def child(traceparent: str | None) -> str:
    """Return a new span of the same trace; a new trace where there is none."""
    if traceparent is None:
        return new()
    version, trace_id, _, flags = traceparent.split("-")
    return f"{version}-{trace_id}-{secrets.token_hex(8)}-{flags}"


def trace_id(traceparent: str) -> str:
    """Return the 32 hex digits that name the trace."""
    return traceparent.split("-")[1]
