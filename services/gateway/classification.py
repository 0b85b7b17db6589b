"""What the gateway's metrics hold (D5); it has no database."""

from services.privacy.declare import Classification, metrics

METRICS: Classification = metrics(
    {
        "requests": "route method status reason",
        "request_seconds": "route",
        "produced_events": "topic outcome",
        "reads": "service outcome",
        "sockets_closed": "reason",
        "pushes": "type",
        "remembered_keys": "kind",
    }
)
