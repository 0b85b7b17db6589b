"""RFC 9457 problems: one closed reason each, never echoing what the client sent."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.responses import Response

from services.gateway.domain import Reason

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "tag:callpartner.de,2026:problem/"
RETRY_AFTER_S = 2

_BAD, _NONE = HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_FOUND
_AWAY = HTTPStatus.SERVICE_UNAVAILABLE
KINDS: dict[Reason, tuple[HTTPStatus, str]] = {
    Reason.BODY_TOO_LARGE: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too large."),
    Reason.CALL_CONTROL_AWAY: (_AWAY, "Calls cannot be looked up right now; try again."),
    Reason.CALL_UNKNOWN: (_NONE, "There is no such call of yours."),
    Reason.CATALOGUE_UNKNOWN: (_BAD, "This version, wording and language were never published."),
    Reason.CONSENT_AWAY: (_AWAY, "Consents cannot be read right now; try again."),
    Reason.CLIENT_GONE: (HTTPStatus.BAD_REQUEST, "The request was not finished."),
    Reason.INTERNAL_ERROR: (HTTPStatus.INTERNAL_SERVER_ERROR, "Something broke on our side."),
    Reason.INVALID_REQUEST: (_BAD, "The request is not as described in /openapi.json."),
    Reason.KAFKA_AWAY: (_AWAY, "Nothing can be taken right now; send the same again."),
    Reason.LEDGER_AWAY: (_AWAY, "The balance cannot be read right now; try again."),
    Reason.MEDIA_TYPE_UNSUPPORTED: (
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The content type must be application/json.",
    ),
    Reason.MEDIA_UNKNOWN: (_NONE, "There is no such file."),
    Reason.METHOD_NOT_ALLOWED: (HTTPStatus.METHOD_NOT_ALLOWED, "This address has other methods."),
    Reason.ORIGIN_FOREIGN: (HTTPStatus.FORBIDDEN, "Requests from other pages are refused."),
    Reason.PURPOSE_NECESSARY: (_BAD, "What the service needs cannot be refused."),
    Reason.PURPOSE_NOT_OFFERED: (_BAD, "This version of the catalogue has no such purpose."),
    Reason.PURPOSE_TWICE: (_BAD, "A purpose may be decided once per request."),
    Reason.RANGE_NOT_SATISFIABLE: (
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The file has no such part.",
    ),
    Reason.RATE_EXCEEDED: (HTTPStatus.TOO_MANY_REQUESTS, "Too many requests; wait a little."),
    Reason.RECIPIENT_NOT_OFFERED: (_BAD, "This version names no such recipient for the purpose."),
    Reason.RECIPIENT_UNKNOWN: (_BAD, "There is no such recipient for the purpose."),
    Reason.REQUEST_TOO_SLOW: (HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive."),
    Reason.ROUTE_UNKNOWN: (_NONE, "There is nothing at this address."),
    Reason.SIGNAL_GIVES_NOTHING: (_BAD, "A browser's signal can object, not agree."),
    Reason.TICKET_EXPIRED: (_BAD, "The view ticket has expired; take a new one."),
    Reason.TICKET_FOREIGN: (HTTPStatus.FORBIDDEN, "The view ticket belongs to another visit."),
    Reason.TICKET_MALFORMED: (_BAD, "The view ticket cannot be read."),
    Reason.TICKET_SIGNATURE_INVALID: (_BAD, "The view ticket was not issued here."),
    Reason.TIME_EXCEEDED: (_AWAY, "The request took too long; try again."),
    Reason.VISIT_EXPIRED: (HTTPStatus.UNAUTHORIZED, "The visit has ended; open a new one."),
    Reason.VISIT_INVALID: (HTTPStatus.UNAUTHORIZED, "The visit was not opened here."),
    Reason.VISIT_MISSING: (HTTPStatus.UNAUTHORIZED, "Open a visit first: POST /v1/visits."),
}  # fmt: skip


class FieldError(BaseModel):
    """What is wrong at which place of the request; never the value."""

    location: Annotated[list[str | int], Field(examples=[["body", "events", 0, "position_ms"]])]
    kind: Annotated[str, Field(examples=["greater_than_equal"])]


class Problem(BaseModel):
    """A problem of RFC 9457. `reason` is the closed word to branch on; texts may change."""

    type: Annotated[str, Field(description="Identifies the kind of problem.")]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    reason: Reason
    detail: str | None = None
    index: Annotated[
        int | None, Field(ge=0, description="Which event of the batch is bad; none was taken.")
    ] = None
    errors: list[FieldError] | None = None


class ProblemError(Exception):
    """A route answers with this problem."""

    def __init__(
        self,
        reason: Reason,
        *,
        detail: str | None = None,
        index: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Take the reason; `detail` must hold nothing that the client sent."""
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail
        self.index = index
        self.headers = headers or {}


def respond(
    reason: Reason,
    *,
    detail: str | None = None,
    index: int | None = None,
    errors: list[FieldError] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return the answer for a reason, with Retry-After where trying again helps."""
    status, title = KINDS[reason]
    problem = Problem(
        type=TYPE_BASE + reason.value,
        title=title,
        status=status,
        reason=reason,
        detail=detail,
        index=index,
        errors=errors,
    )
    extra = dict(headers or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        extra.setdefault("Retry-After", str(RETRY_AFTER_S))
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers=extra,
    )


def field_errors(found: Sequence[Any]) -> list[FieldError]:
    """Return a validator's errors without any input: a place names our fields and indexes only."""
    errors: list[FieldError] = []
    for error in found[:20]:
        place = list(error["loc"])
        if error["type"] == "extra_forbidden":
            place = place[:-1]  # the client chose that name
        errors.append(FieldError(location=place, kind=error["type"]))
    return errors


def answered(model: Any) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI response of a route that hands on bytes: what they hold."""
    return {200: {"model": model}}


def documented(*reasons: Reason) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for these reasons, one example each."""
    answers: dict[int | str, dict[str, Any]] = {}
    for reason in reasons:
        status, title = KINDS[reason]
        answer = answers.setdefault(
            int(status),
            {
                "model": Problem,
                "description": f"{status.phrase}: `reason` says why.",
                "content": {MEDIA_TYPE: {"examples": {}}},
            },
        )
        example = json.loads(bytes(respond(reason).body))
        answer["content"][MEDIA_TYPE]["examples"][reason.value] = {
            "summary": title,
            "value": example,
        }
    return answers
