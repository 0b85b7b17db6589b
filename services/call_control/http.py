"""Read API of call control, for the gateway."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from services.call_control.domain import State
from services.call_control.store import Call, Store
from services.chassis.service import Service


class CallView(BaseModel):
    """A call as its visitor may see it; durations in milliseconds."""

    call_id: UUID
    status: State
    reason: str | None
    reserved_ms: Annotated[int, Field(ge=0)] | None
    talk_ms: Annotated[int, Field(ge=0)] | None
    connected_at: datetime | None
    ended_at: datetime | None


def build_http(service: Service[Store]) -> FastAPI:
    """Return the read API."""
    app = FastAPI(title="call_control", docs_url=None, redoc_url=None)

    @app.get("/v1/calls/{call_id}")
    async def call(call_id: UUID, visitor_id: UUID) -> CallView:
        """Return a visitor's own call; someone else's does not exist for them."""
        async with service.transaction() as ctx:
            found = await ctx.store.read_call(call_id)
        if found is None or found.visitor_id != visitor_id:
            raise HTTPException(status_code=404)
        return _view(found)

    return app


def _view(call: Call) -> CallView:
    return CallView(
        call_id=call.call_id,
        status=call.state,
        reason=call.reason,
        reserved_ms=call.reserved_ms,
        talk_ms=call.talk_ms,
        connected_at=call.connected_at,
        ended_at=call.ended_at,
    )
