"""Events about a call: request, command, status, start and end (R-A1, R-A5)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, Milliseconds, Reason, ServerId, VisitorId, WireModel

NumberAsTyped = Annotated[str, Field(min_length=1, max_length=40)]
"""A telephone number as the visitor typed it; the number policy decides what it is."""


class CallRequestV1(WireModel):
    """Connect the callback number with the destination number. Natural key: `call_id`."""

    call_id: ServerId
    visitor_id: VisitorId
    callback_number: NumberAsTyped
    destination_number: NumberAsTyped
    address: Annotated[str, Field(min_length=2, max_length=45)]


class CallCommand(StrEnum):
    """What a visitor may order about a call of theirs."""

    HANG_UP = "hang_up"


class CallCommandV1(WireModel):
    """An order about a call. Natural key: (`call_id`, `command`)."""

    call_id: ServerId
    visitor_id: VisitorId
    command: CallCommand


class CallStatus(StrEnum):
    """Where a call stands, in the order in which a good call passes through."""

    REQUESTED = "requested"
    REFUSED = "refused"
    RESERVED = "reserved"
    CALLBACK_DIALLING = "callback_dialling"
    CALLBACK_RINGING = "callback_ringing"
    CALLBACK_ANSWERED = "callback_answered"
    DESTINATION_DIALLING = "destination_dialling"
    DESTINATION_RINGING = "destination_ringing"
    TALKING = "talking"
    ENDED = "ended"


class CallStatusV1(WireModel):
    """The call's new status, for the page. `reserved_ms` is set from `reserved` on."""

    call_id: ServerId
    visitor_id: VisitorId
    status: CallStatus
    reason: Reason | None = None
    reserved_ms: Milliseconds | None = None
    talk_ms: Milliseconds | None = None
    connected_at: Instant | None = None


class CallStartV1(WireModel):
    """Both legs are connected: charged talk begins at `connected_at`."""

    call_id: ServerId
    visitor_id: VisitorId
    connected_at: Instant
    reserved_ms: Milliseconds


class CallEndV1(WireModel):
    """A call with a reservation is over, talked or not. Natural key: `call_id` (C3).

    `talk_ms` runs from `connected_at` to the first BYE; 0 where the legs never met.
    """

    call_id: ServerId
    visitor_id: VisitorId
    ended_at: Instant
    reason: Reason
    talk_ms: Milliseconds
    overrun_ms: Milliseconds
    connected_at: Instant | None = None
