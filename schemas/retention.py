"""Events about deletion: the order, and the receipt that holds counts only (R-D9, D4)."""

from datetime import date
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, ServerId, WireModel


class DataKind(StrEnum):
    """Kinds of data (Datenarten), one retention rule each."""

    WEB_USE = "web_use"
    IP_ADDRESS = "ip_address"
    AD_USE = "ad_use"
    TRAFFIC_DATA = "traffic_data"
    CONSENT_RECORD = "consent_record"
    ACCESS_LOG = "access_log"


class RetentionAction(StrEnum):
    """What an order tells a service to do."""

    DROP = "drop"


class RetentionOrderV1(WireModel):
    """Drop every day of a kind before a day (UTC). Natural key: `order_id`; opaque ids only."""

    order_id: ServerId
    kind: DataKind
    action: RetentionAction
    before_day: date
    as_of: Instant


class TableCount(WireModel):
    """How many rows and day partitions of one table went."""

    table: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    n_partitions: Annotated[int, Field(ge=0)]
    n_rows: Annotated[int, Field(ge=0)]


class RetentionReceiptV1(WireModel):
    """What one service did about one order: counts, never data. Natural key: (order, service)."""

    order_id: ServerId
    service: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
    kind: DataKind
    counts: Annotated[tuple[TableCount, ...], Field(max_length=64)]
    done_at: Instant
