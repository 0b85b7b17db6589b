"""Metrics of the ledger besides the chassis'."""

from prometheus_client import CollectorRegistry, Counter


class LedgerMetrics:
    """Created once in `app.py`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create all metrics in the given registry."""
        # Moves with every posting. Odd: grants without spends for hours; is call control up?
        self.moved = Counter(
            "credit_seconds", "Talk time moved between accounts.", ["operation"],
            namespace="ad_ledger", registry=registry,
        )  # fmt: skip
        # Moves when a lease runs out. Odd: any; a call's end did not arrive in time.
        self.lapsed_reservations = Counter(
            "lapsed_reservations", "Reservations ended by their lease.",
            namespace="ad_ledger", registry=registry,
        )  # fmt: skip
        # Moves when a call's end comes after its lease: the platform's loss.
        self.unbilled_talk = Counter(
            "unbilled_talk_seconds", "Talk that ended after its reservation had lapsed.",
            namespace="ad_ledger", registry=registry,
        )  # fmt: skip


class PartnerMetrics:
    """Of the ad partner's feed; created once in `app.py`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Create all metrics in the given registry."""
        # Moves with each batch for the ad partner. Odd: put_off for minutes; is the partner away?
        self.batches = Counter(
            "partner_batches", "Batches for the ad partner by outcome.", ["outcome"],
            namespace="ad_ledger", registry=registry,
        )  # fmt: skip
