"""Metrics of this service besides the chassis'."""

from prometheus_client import CollectorRegistry, Gauge


class Metrics:
    """What retention exports about orders and topics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create all metrics in the given registry."""
        # Moves with each sweep that orders something, and back with the receipts.
        self.orders_open = Gauge(
            "orders_open", "Orders that not all services have answered.",
            namespace="retention", registry=registry,
        )  # fmt: skip
        # Odd: anything but 0; a service is silent, see its lag and its log (D3).
        self.orders_overdue = Gauge(
            "orders_overdue", "Orders unanswered for longer than the set time.",
            namespace="retention", registry=registry,
        )  # fmt: skip
        # Moves when two persons waive one; falls when the evidence goes. Odd: it grows often.
        self.answers_waived = Gauge(
            "answers_waived", "Answers to orders that two persons wait for no longer.",
            namespace="retention", registry=registry,
        )  # fmt: skip
        # Odd: towards the topic's own rule; the broker does not delete (D1).
        self.topic_oldest_record_age = Gauge(
            "topic_oldest_record_age_seconds", "Age of the oldest record on disk.",
            ["topic", "partition"], namespace="retention", registry=registry,
        )  # fmt: skip
        # Odd: above 0 for longer than a segment lives, while the age says that nothing is readable:
        # bytes that no reader sees and no rule removes (D1).
        self.topic_bytes = Gauge(
            "topic_bytes", "Bytes of a partition's segments on all brokers' disks.",
            ["topic", "partition"], namespace="retention", registry=registry,
        )  # fmt: skip
        # Instant of the last sweep by timer, seconds since the epoch. Odd: over an hour ago.
        self.last_sweep = Gauge(
            "last_sweep_timestamp_seconds", "When the timer last swept.",
            namespace="retention", registry=registry,
        )  # fmt: skip
        # Instant from which no address may be kept, unless somebody assesses the threat anew; 0:
        # that is so already (R-C3). Odd: two weeks ahead, and nobody is at it.
        self.threat_level_ends = Gauge(
            "threat_level_ends_timestamp_seconds", "When the threat assessment in force lapses.",
            namespace="retention", registry=registry,
        )  # fmt: skip
