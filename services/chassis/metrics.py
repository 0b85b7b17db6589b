"""Every metric of the chassis; one registry per service, injected, served on the admin port."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ChassisMetrics:
    """What each service exports about its path of a message; `<service>_` before each name."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        """Create all metrics in the given registry."""
        # Moves with every record handled. Odd: a refused_/dead_letter outcome that grows.
        self.events = Counter(
            "events", "Records by topic and outcome.", ["topic", "outcome"],
            namespace=service, registry=registry,
        )  # fmt: skip
        # Moves when records wait. Odd: above 0 for minutes; look at batch time, then scale out.
        self.lag_records = Gauge(
            "consumer_lag_records", "Records not yet handled.", ["topic", "partition"],
            namespace=service, registry=registry,
        )  # fmt: skip
        # Age of the newest handled record while others wait. Odd: towards a topic's rule = loss.
        self.lag_seconds = Gauge(
            "consumer_lag_seconds", "How far behind in time.", ["topic", "partition"],
            namespace=service, registry=registry,
        )  # fmt: skip
        # Age of the oldest row not yet on Kafka. Odd: > 5 s; the broker or the relay is away, or a
        # transaction that does not end hides what came after it.
        self.outbox_age = Gauge(
            "outbox_age_seconds", "Age of the oldest unsent event.",
            namespace=service, registry=registry,
        )  # fmt: skip
        self.outbox_sent = _outbox_sent(service, registry)
        self.outbox_too_old = _outbox_too_old(service, registry)
        # One observation a poll. Odd: p99 > 1 s; locks or a slow disk.
        self.batch_seconds = Histogram(
            "batch_seconds", "Time of one poll's transaction.",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60),
            namespace=service, registry=registry,
        )  # fmt: skip
        # Moves with each poison record. Odd: any; see the dead-letter topic.
        self.dead_letters = Counter(
            "dead_letters", "Poison records by topic and reason.", ["topic", "reason"],
            namespace=service, registry=registry,
        )  # fmt: skip
        # Rows that break an invariant. Odd: anything but 0 pages someone.
        self.invariant_violations = Gauge(
            "invariant_violations", "Rows that break an invariant.", ["invariant"],
            namespace=service, registry=registry,
        )  # fmt: skip
        # Moves with time between two checks of a day. Odd: two hours; a query fails or takes long.
        self.invariant_age = Gauge(
            "invariant_check_age_seconds", "Age of the oldest answer of an invariant.",
            namespace=service, registry=registry,
        )  # fmt: skip
        # Moves with each retry of a poll or a relay round. Odd: steady growth.
        self.retries = Counter(
            "retries", "Tries again after a transient error.", ["place"],
            namespace=service, registry=registry,
        )  # fmt: skip
        self.standing_by = _standing_by(service, registry)
        self.secret_reloads = _secret_reloads(service, registry)
        # Moves when the fence left records out: redelivery or a zombie. Harmless, but look why.
        self.fenced = Counter(
            "fenced_records", "Records left out by the offset fence.", ["topic"],
            namespace=service, registry=registry,
        )  # fmt: skip


def _outbox_sent(service: str, registry: CollectorRegistry) -> Counter:
    # Moves with every event that reached Kafka.
    return Counter(
        "outbox_sent", "Events relayed to Kafka.", ["topic"],
        namespace=service, registry=registry,
    )  # fmt: skip


def _outbox_too_old(service: str, registry: CollectorRegistry) -> Counter:
    # Moves with each copy left out because it would outlive its rule. Odd: any (R-D5).
    return Counter(
        "outbox_too_old", "Events not sent for their age.", ["topic"],
        namespace=service, registry=registry,
    )  # fmt: skip


def _secret_reloads(service: str, registry: CollectorRegistry) -> Counter:
    # Moves when a key's file was replaced. Odd: outcome refused; the old key is still in force.
    return Counter(
        "secret_reloads", "Secrets replaced while running.", ["secret", "outcome"],
        namespace=service, registry=registry,
    )  # fmt: skip


def _standing_by(service: str, registry: CollectorRegistry) -> Gauge:
    # 1 while another process of this instance works. Odd: on every process of an instance.
    return Gauge(
        "standing_by", "Whether this process waits for another one's place.",
        namespace=service, registry=registry,
    )  # fmt: skip
