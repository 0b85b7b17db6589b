"""Read API of the ledger, for the gateway."""

from typing import Annotated
from uuid import UUID

from fastapi import FastAPI
from pydantic import BaseModel, Field

from services.ad_ledger.store import Store
from services.chassis.service import Service


class Balance(BaseModel):
    """A visitor's credit in whole milliseconds of talk."""

    available_ms: Annotated[int, Field(ge=0)]
    reserved_ms: Annotated[int, Field(ge=0)]


def build_http(service: Service[Store]) -> FastAPI:
    """Return the read API."""
    app = FastAPI(title="ad_ledger", docs_url=None, redoc_url=None)

    @app.get("/v1/visitors/{visitor_id}/balance")
    async def balance(visitor_id: UUID) -> Balance:
        """Return a visitor's credit; zeros for one who never earned any."""
        async with service.transaction() as ctx:
            found = await ctx.store.balances([visitor_id])
        available_ms, reserved_ms = found[visitor_id]
        return Balance(available_ms=available_ms, reserved_ms=reserved_ms)

    return app
