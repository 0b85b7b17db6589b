"""What every column of call control is (D5), and which tables age by which rule."""

from schemas.retention import DataKind
from services.privacy import access_log, erased
from services.privacy.declare import (
    Classification,
    PeriodStart,
    Table,
    Via,
    metrics,
    personal,
    plain,
)

_CALL = Via(table="call", columns={"call_day": "call_day", "call_id": "call_id"})
TABLES: tuple[Table, ...] = (
    # whichever of the calls and their addresses goes first: after it nobody could count
    Table(
        name="call",
        kind=DataKind.TRAFFIC_DATA,
        day_column="call_day",
        subject_column="visitor_id",
        has_figures=True,
    ),
    Table(name="call_leg", kind=DataKind.TRAFFIC_DATA, day_column="call_day", via=_CALL),
    Table(name="call_order", kind=DataKind.TRAFFIC_DATA, day_column="call_day", via=_CALL),
    Table(
        name="call_address",
        kind=DataKind.IP_ADDRESS,
        day_column="address_day",
        via=Via(table="call", columns={"address_day": "call_day", "call_id": "call_id"}),
        has_figures=True,
    ),
    access_log.TABLE,
    erased.TABLE,
)

CLASSIFICATION: Classification = {
    "call": {
        **personal(
            "call_day call_id visitor_id state reason callback_number destination_number "
            "reserved_ms lease_until requested_at connected_at ended_at ended_by talk_ms "
            "overrun_ms traceparent",
            kind=DataKind.TRAFFIC_DATA, start=PeriodStart.CALL_END,
        ),
        **plain("holder holder_epoch"),
    },
    "call_leg": personal(
        "call_day call_id leg dialled_at ringing_at answered_at ended_at duration_ms sip_status "
        "bye_status q850_cause answered_late is_down dialog",
        kind=DataKind.TRAFFIC_DATA, start=PeriodStart.CALL_END,
    ),
    "call_order": personal(
        "call_day call_id name ordered_at done_at",
        kind=DataKind.TRAFFIC_DATA, start=PeriodStart.CALL_END,
    ),
    "call_address": personal(
        "address_day call_id address", kind=DataKind.IP_ADDRESS, start=PeriodStart.EVENT
    ),
    # networks of many, counted; no address and nobody in particular (R-C2, ADR 0028)
    "call_statistics": plain("call_day network n_visitors n_calls n_connected"),
    "call_statistics_day": plain("call_day"),
    "holder": plain("holder epoch renewed_at"),
}  # fmt: skip

METRICS: Classification = metrics({"calls_ended": "reason"})
