"""Serving bytes from memory with ETag and one Range, as media players need (RFC 9110)."""

import re
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.ads import Media
from services.gateway.domain import Reason
from services.gateway.http.problems import ProblemError

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_CACHE = "public, max-age=86400, immutable"


def partial(request: Request, media: Media) -> Response:
    """Return the file, the part asked for, or that the client has it already."""
    headers = {"Accept-Ranges": "bytes", "ETag": media.etag, "Cache-Control": _CACHE}
    if media.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        # no Range, or one that we do not serve in parts: the whole file
        return Response(media.content, media_type=media.content_type, headers=headers)
    first, last = _span(asked[1], asked[2], len(media.content))
    if first > last:
        unit = {"Content-Range": f"bytes */{len(media.content)}"}
        raise ProblemError(Reason.RANGE_NOT_SATISFIABLE, headers=unit)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(media.content)}"
    return Response(
        media.content[first : last + 1],
        status_code=HTTPStatus.PARTIAL_CONTENT,
        media_type=media.content_type,
        headers=headers,
    )


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    """Return the first and last byte; first > last = none."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last or size - 1), size - 1)
