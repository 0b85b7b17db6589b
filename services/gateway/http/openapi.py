"""The OpenAPI document: what FastAPI gathers, and what it cannot know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.gateway.http.guard import BEACON_PATH
from services.gateway.http.problems import MEDIA_TYPE

DESCRIPTION = """
A visitor opens a visit, takes a view ticket, watches the ad and reports it, and asks for a call.

**Answers.** 202 means: Kafka has the event on all replicas in sync. Errors are
`application/problem+json` (RFC 9457) with a closed `reason`; nothing that was sent is repeated.

**Limits.** 64 kB a request, 10 s, a rate per visitor and per address (429 with `Retry-After`).
Requests from other pages are refused by their `Origin`.

**Live.** `GET /v1/live` upgrades to a WebSocket (same cookie). It sends JSON objects by `type`:
`balance` (at once, and with each change: `available_ms`, `reserved_ms`, `change`, `amount_ms`;
only `reason` when the ledger is away), `call` (`call_id`, `status`, `reason`, `reserved_ms`,
`talk_ms`, `connected_at`) and `consent` (`purposes`); each change with its instant `at`. The page
may send `{"type":"ping"}` and gets `{"type":"pong"}`. Codes at the end: 4401 no visit or visit
over, 4408 idle for 30 minutes, 4400 unknown message, 4429 too many messages, 1009 message too
large, 1013 too slow or too many connections (the text says which). What is missed while away is
read by GET.
"""

_RETRY = {"description": "Whole seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
_SET_COOKIE = {"description": "The visit: HttpOnly, SameSite=Lax.", "schema": {"type": "string"}}


def describe(app: FastAPI) -> None:
    """Give the app its document, made once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _build(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=DESCRIPTION,
        routes=app.routes,
    )
    for operations in schema["paths"].values():
        for operation in operations.values():
            _use_problem_type(operation)
    content = schema["paths"][BEACON_PATH]["post"]["requestBody"]["content"]
    content["text/plain"] = content["application/json"]
    opening = schema["paths"]["/v1/visits"]["post"]
    opening["security"] = [{}, *opening["security"]]  # a visit may be there, and need not
    created = opening["responses"]["201"]
    created["headers"] = {"Set-Cookie": _SET_COOKIE}
    return schema


def _use_problem_type(operation: dict[str, Any]) -> None:
    """Move each problem's schema under its real content type, and name its headers."""
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        # FastAPI puts it under the type of the route's good answer
        for other in [name for name in content if MEDIA_TYPE in content and name != MEDIA_TYPE]:
            content[MEDIA_TYPE]["schema"] = content.pop(other)["schema"]
        if status in ("429", "503"):
            response["headers"] = {"Retry-After": _RETRY}
