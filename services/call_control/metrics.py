"""Metrics of call control besides the chassis'."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class CallMetrics:
    """Created once in `app.py`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create all metrics in the given registry."""
        # Moves with every call that was dialled and ends. Odd: trunk_* reasons; ask the carrier.
        self.ended = Counter(
            "calls_ended", "Calls by reason of their end.", ["reason"],
            namespace="call_control", registry=registry,
        )  # fmt: skip
        # Calls that this process holds.
        self.active = Gauge(
            "calls_active", "Calls whose legs this process holds.",
            namespace="call_control", registry=registry,
        )  # fmt: skip
        # Moves with every talk. Odd: anything over 0.1 s; is the process short of CPU? (C2)
        self.overrun = Histogram(
            "overrun_seconds", "Talk past what was reserved.",
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30),
            namespace="call_control", registry=registry,
        )  # fmt: skip
        # Moves with every talk: from dialling A to both connected.
        self.setup = Histogram(
            "setup_seconds", "From the first INVITE to both legs connected.",
            buckets=(0.5, 1, 2, 5, 10, 20, 40, 80),
            namespace="call_control", registry=registry,
        )  # fmt: skip
        # Moves when the process took over calls of a dead one (C3).
        self.orphans = Counter(
            "calls_orphaned", "Calls taken over from a process that died.",
            namespace="call_control", registry=registry,
        )  # fmt: skip
        # Moves when a far end did not confirm its end. Odd: any; a leg may still be billed.
        self.legs_unconfirmed = Counter(
            "legs_unconfirmed", "Answered legs whose end was not confirmed.",
            namespace="call_control", registry=registry,
        )  # fmt: skip
