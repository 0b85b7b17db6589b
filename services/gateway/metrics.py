"""The gateway's metrics; labels are closed enums, never an id, a number or an address."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """All metrics of the gateway, in an injected registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create them."""
        # Moves with every request. Odd: reasons that grow (kafka_away, rate_exceeded), any 500.
        self.requests = Counter(
            "requests", "Requests by route, method, status and reason.",
            ["route", "method", "status", "reason"], namespace="gateway", registry=registry,
        )  # fmt: skip
        # One observation a request. Odd: p99 of /v1/ad-events > 0.5 s; Kafka is slow.
        self.request_seconds = Histogram(
            "request_seconds", "Time from the first byte to the end of the answer.", ["route"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            namespace="gateway", registry=registry,
        )  # fmt: skip
        # Moves with every event sent. Odd: outcome refused; the browser was told to try again.
        self.produced = Counter(
            "produced_events", "Events by topic and outcome (acknowledged, refused).",
            ["topic", "outcome"], namespace="gateway", registry=registry,
        )  # fmt: skip
        # One observation a batch sent. Odd: p99 > 0.5 s; look at the brokers.
        self.kafka_wait = Histogram(
            "kafka_wait_seconds", "How long a request waited for Kafka's acknowledgement.",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            namespace="gateway", registry=registry,
        )  # fmt: skip
        # Moves with each read from a service. Odd: outcome away.
        self.reads = Counter(
            "reads", "Reads from other services by outcome (found, missing, away).",
            ["service", "outcome"], namespace="gateway", registry=registry,
        )  # fmt: skip
        # Open live connections. Odd: near the limit; add an instance.
        self.sockets = Gauge(
            "sockets", "Open live connections.", namespace="gateway", registry=registry
        )
        # Moves when one ends. Odd: slow_client, rate_exceeded, sockets_too_many.
        self.sockets_closed = Counter(
            "sockets_closed", "Live connections ended, by reason.", ["reason"],
            namespace="gateway", registry=registry,
        )  # fmt: skip
        # Moves with every message pushed to a page.
        self.pushes = Counter(
            "pushes", "Messages pushed to pages by type.", ["type"],
            namespace="gateway", registry=registry,
        )  # fmt: skip
        # Addresses and visitors remembered for the rate limits. Odd: at its limit.
        self.remembered = Gauge(
            "remembered_keys", "Keys remembered by the rate limits.", ["kind"],
            namespace="gateway", registry=registry,
        )  # fmt: skip
