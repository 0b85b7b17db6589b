"""Event `ad-view`: what a visitor did with an advertisement (R-A1, R-A2)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, Milliseconds, VisitorId, WireModel


class AdEventKind(StrEnum):
    """How deeply an ad was consumed, in the order in which a view may report it."""

    PAGE_HIT = "page_hit"
    START = "start"
    FIRST_QUARTILE = "first_quartile"
    MIDPOINT = "midpoint"
    THIRD_QUARTILE = "third_quartile"
    COMPLETE = "complete"
    CLICK = "click"
    CONVERSION = "conversion"


class AdViewV1(WireModel):
    """One step of one ad view. Natural key: (ticket id inside `ticket`, `kind`).

    The event's instant is the gateway's (`ce_time`); `client_at` is only a claim of the browser.
    """

    visitor_id: VisitorId
    ticket: Annotated[str, Field(min_length=16, max_length=1024)]
    kind: AdEventKind
    position_ms: Milliseconds
    address: Annotated[str, Field(min_length=2, max_length=45)]
    client_at: Instant | None = None
