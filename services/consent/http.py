"""What the gateway may read."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import UUID

from fastapi import FastAPI

from schemas.consent import ConsentStateV1
from services.chassis.context import Context
from services.consent import domain
from services.consent.store import Store
from services.consent.wire import to_wire


def build_http(transaction: Callable[[], AbstractAsyncContextManager[Context[Store]]]) -> FastAPI:
    """Return the app; `transaction` opens one."""
    app = FastAPI(title="consent", docs_url=None, redoc_url=None)

    @app.get("/v1/visitors/{visitor_id}/consent")
    async def consent_of(visitor_id: UUID) -> ConsentStateV1:
        """Return what is in force for a visitor; no decision = nothing in force."""
        async with transaction() as ctx:
            return to_wire(visitor_id, domain.states_of(await ctx.store.decisions_of(visitor_id)))

    return app
