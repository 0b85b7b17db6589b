"""What the logs and the chassis' metrics hold (D5). The services' own metrics are beside them.

A log line is found, and joined with what the databases hold, by the ids in it: these are personal
and live no longer than the logs do, 7 x 24 h (R-D5). The other fields name nobody by themselves.
"""

from schemas.retention import DataKind
from services.privacy.declare import (
    Classification,
    Items,
    LegalBasis,
    PeriodStart,
    Purpose,
    metrics,
    personal,
    plain,
)

SHORT_LIVED_IDS = frozenset({"call_id", "event_id", "trace_id"})
"""Random or server-issued ids: the only personal fields that a log may have."""


def log_fields(items: Items) -> Items:
    """Return the classification of log fields.

    Nothing personal but `SHORT_LIVED_IDS` may be logged at all, so nothing else can be declared.
    """
    assert {name for name, item in items.items() if item.personal} <= SHORT_LIVED_IDS
    return items


LOG_FIELDS: Items = log_fields(
    {
        **personal(
            "event_id trace_id", kind=DataKind.AD_USE, start=PeriodStart.EVENT,
            purpose=Purpose.FAULT_FINDING, basis=LegalBasis.LEGITIMATE_INTEREST,
        ),
        # counted from the line, which is never after the call's end by more than its settlement
        **personal(
            "call_id", kind=DataKind.TRAFFIC_DATA, start=PeriodStart.EVENT,
            purpose=Purpose.FAULT_FINDING, basis=LegalBasis.LEGITIMATE_INTEREST,
        ),
        # `order_id` names an order of retention, which no person is named by (D4)
        **plain(
            "event level timestamp service instance topic partition partitions offset next_offset "
            "reason outcome error where n seconds attempt settings table before_day order_id kind "
            "leg status signal exit_code port invariant violations as_of name route method "
            "sip_status overrun_ms stack migration"
        ),
    }
)  # fmt: skip

CHASSIS_METRICS: Classification = metrics(
    {
        "events": "topic outcome",
        "consumer_lag_records": "topic partition",
        "consumer_lag_seconds": "topic partition",
        "outbox_sent": "topic",
        "outbox_too_old": "topic",
        "dead_letters": "topic reason",
        "invariant_violations": "invariant",
        "retries": "place",
        "fenced_records": "topic",
        "secret_reloads": "secret outcome",
    }
)
"""Metric without the service's name -> its labels; a metric without labels has no entry."""
