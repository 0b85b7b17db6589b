"""The gateway's HTTP: routes, request and answer models, problems, and the guard before them."""

from services.gateway.http.api import Parts, build_http

__all__ = ["Parts", "build_http"]
