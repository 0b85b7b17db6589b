"""Events about connection time as credit: reserve and release, the decision, the balance (R-A3)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, Milliseconds, Reason, ServerId, VisitorId, WireModel


class CreditOperation(StrEnum):
    """What call control asks of the ledger."""

    RESERVE = "reserve"
    RELEASE = "release"


class CreditRequestV1(WireModel):
    """Ask for, or give back, a reservation. Natural key: (`reservation_id`, `operation`).

    `reservation_id` is the call's id. `wanted_ms` is the most talk the call may use; the ledger
    grants what is available up to it. `lease_ms` bounds the reservation's life from `ce_time`.
    """

    reservation_id: ServerId
    visitor_id: VisitorId
    operation: CreditOperation
    wanted_ms: Milliseconds
    lease_ms: Milliseconds


class CreditDecisionV1(WireModel):
    """The ledger's answer to a reserve: granted with its talk time, or refused with its reason."""

    reservation_id: ServerId
    visitor_id: VisitorId
    granted: bool
    reserved_ms: Milliseconds
    lease_until: Instant | None = None
    reason: Reason | None = None


class CreditChange(StrEnum):
    """Why a balance changed."""

    GRANTED = "granted"
    RESERVED = "reserved"
    RELEASED = "released"
    SPENT = "spent"
    EXPIRED = "expired"
    CLAWED_BACK = "clawed_back"


class CreditV1(WireModel):
    """A visitor's balance after a change; `amount_ms` is the size of the change."""

    visitor_id: VisitorId
    change: CreditChange
    amount_ms: Milliseconds
    available_ms: Milliseconds
    reserved_ms: Milliseconds
    reservation_id: Annotated[ServerId | None, Field()] = None
