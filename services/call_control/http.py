"""Read API of call control, for the gateway."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from schemas.call import CallStatus
from services.call_control.domain import State
from services.call_control.store import Call, LegProgress, Store
from services.chassis.service import Service


class CallView(BaseModel):
    """A call as its visitor may see it; durations in milliseconds.

    Its status is the one that was told last on `call-status`, in the same words.
    """

    call_id: UUID
    status: CallStatus
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
            legs = await ctx.store.progress(call_id)
        if found is None or found.visitor_id != visitor_id:
            raise HTTPException(status_code=404)
        return _view(found, status_of(found.state, legs))

    return app


def status_of(state: State, legs: Sequence[LegProgress]) -> CallStatus:
    """Return the status that the page was told; while dialling, the legs say how far it is.

    Args:
        legs: those dialled, leg A first.
    """
    match state:
        case State.DIALLING:
            return _dialling(legs)
        case State.ENDING:  # the visitor's talk is over; what lasts is taking the legs down
            return CallStatus.ENDED
        case _:
            return CallStatus(state.value)


def _dialling(legs: Sequence[LegProgress]) -> CallStatus:
    match legs:
        case []:  # ours to dial, and not yet dialled
            return CallStatus.RESERVED
        case [LegProgress(is_answered=True)]:
            return CallStatus.CALLBACK_ANSWERED
        case [LegProgress(is_ringing=True)]:
            return CallStatus.CALLBACK_RINGING
        case [_]:
            return CallStatus.CALLBACK_DIALLING
        case [*_, LegProgress(is_ringing=True)]:
            return CallStatus.DESTINATION_RINGING
        case _:
            return CallStatus.DESTINATION_DIALLING


def _view(call: Call, status: CallStatus) -> CallView:
    return CallView(
        call_id=call.call_id,
        status=status,
        reason=call.reason,
        reserved_ms=call.reserved_ms,
        talk_ms=call.talk_ms,
        connected_at=call.connected_at,
        ended_at=call.ended_at,
    )
