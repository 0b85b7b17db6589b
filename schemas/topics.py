"""THE registry of topics: nothing else names a topic, its key, its readers or its rule.

Topics, access rights, exports and the deletion proof follow from this list.

A personal-data topic's age is bounded by `retention_ms` + `segment_ms` + the broker's check
interval + its file delete delay, with LogAppendTime (measured: hot-path.md 4a). Age counts through
every copy, from the event that all of them stem from (R-D5): `oldest_ms`.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from uuid import UUID

from pydantic_core import to_json

from schemas import (
    ad_view,
    call,
    consent,
    consent_progress,
    credit,
    record,
    register,
    retention,
    transfer,
)
from schemas.retention import DataKind
from schemas.wire import WireModel

TYPE_PREFIX = "de.callpartner"
VISITOR_PARTITIONS = 6
"""One fixed, equal count for every topic keyed by visitor: one process owns a visitor in all."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SWEEP_MARGIN_MS = 60_000
"""Room for the broker's check interval and file delete delay (both seconds in our settings)."""

MESSAGE_BYTES_MAX = 65_536
_DEAD_LETTER_SUM_MS = 7 * DAY_MS - 4 * HOUR_MS
COPIES_AGE_MAX_MS = 7 * DAY_MS - 2 * HOUR_MS
"""What is personal in the last of all copies is gone when its event is so old (R-D5), with room for
clocks and for a broker that starts."""
OUTBOX_WAIT_MAX_MS = 2 * HOUR_MS
"""What waits longer for Kafka is alerted on; where a record's age is not looked at, it counts."""

RECORD_SOURCE = "record_source"
"""The systems outside that keep contracts, enquiries, applications: they tell of their records,
read the orders and answer them. No service of ours."""
OUTSIDE = (RECORD_SOURCE,)
"""Who produces, but is no service of ours."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic of the platform.

    Attributes:
        name: also the stem of `ce_type` (`de.callpartner.<name>.v1`).
        key: field of the model whose text is the record key: a random or server-issued id, never
            typed text, a number or an address. A visitor's id is a pseudonym, and personal for as
            long as it lives (ADR 0014): `age_max_ms` bounds the keys as it bounds the values.
        age_max_ms: no record's bytes are older on disk; `retention_ms` leaves room below it.
        kinds: kinds of personal data carried; empty = none.
        personal_age_max_ms: where what is personal goes before the record: a copy without it takes
            its place under the same key, and compaction destroys the first one.
        copies: topics whose records are passed on here: an event that follows from one of those
            stems from what that one stems from. What has an instant of its own that its rule
            counts from (a call's end, a transfer) stems from nothing else.
    """

    name: str
    description: str
    model: type[WireModel]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    key: str = "visitor_id"
    age_max_ms: int = 72 * HOUR_MS
    segment_ms: int = 6 * HOUR_MS
    kinds: tuple[DataKind, ...] = ()
    personal_age_max_ms: int | None = None
    copies: tuple[str, ...] = ()
    partitions: int = VISITOR_PARTITIONS
    cleanup: str = "delete"
    version: int = 1
    is_dead_letter: bool = field(default=False)

    @cached_property
    def type(self) -> str:
        """`ce_type` of its events."""
        return f"{TYPE_PREFIX}.{self.name}.v{self.version}"

    @property
    def retention_ms(self) -> int:
        """Kafka's `retention.ms`: the rule less everything that may delay it."""
        return self.age_max_ms - self.segment_ms - SWEEP_MARGIN_MS

    @property
    def personal(self) -> bool:
        """Whether records carry personal data."""
        return bool(self.kinds)

    @property
    def dead_letter(self) -> "Topic":
        """Where its poison goes; same rule, written by its consumers, read by staff only."""
        return Topic(
            name=f"{self.name}-dlq",
            description=f"Records of {self.name} that can never be processed.",
            model=self.model,
            key=self.key,
            producers=self.consumers,
            consumers=(),
            age_max_ms=self._dead_letter_age_max_ms,
            segment_ms=self.segment_ms,
            kinds=self.kinds,
            copies=(self.name,),
            partitions=1,
            is_dead_letter=True,
        )

    @property
    def _dead_letter_age_max_ms(self) -> int:
        if self.personal_age_max_ms is None:
            return self.age_max_ms
        # what is personal may have lived on the topic for as long as it could
        return _DEAD_LETTER_SUM_MS - self.personal_age_max_ms

    @property
    def personal_limit_ms(self) -> int:
        """How old what is personal in a record can get."""
        return self.personal_age_max_ms or self.age_max_ms

    @cached_property
    def origin_age_max_ms(self) -> int | None:
        """How old what a record stems from may be when it is written; None = not looked at.

        Of a state nobody may leave out the last word: there the periods alone must do.
        """
        if not self.personal or "compact" in self.cleanup:
            return None
        return COPIES_AGE_MAX_MS - self.personal_limit_ms

    def key_of(self, event: WireModel) -> str:
        """Return the record key of an event: the text of its key field."""
        return str(getattr(event, self.key))

    def key_bytes_of(self, event: WireModel) -> bytes:
        """Return the record key of an event as it stands on Kafka."""
        value = getattr(event, self.key)
        # the same text as `str(uuid)` in a third of the time: every record of the busiest path
        return to_json(value)[1:-1] if isinstance(value, UUID) else str(value).encode()

    def configs(self) -> dict[str, str]:
        """Return the topic's settings at the broker, by Kafka's names."""
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            "segment.ms": str(self.segment_ms),
            "message.timestamp.type": "LogAppendTime",
            # a dead letter carries the original value and more headers
            "max.message.bytes": str(MESSAGE_BYTES_MAX * (2 if self.is_dead_letter else 1)),
            "file.delete.delay.ms": "1000",
            # compacted topics: a lag bound, so that an old value cannot hide in a segment
            "max.compaction.lag.ms": str(self.segment_ms),
            "delete.retention.ms": str(HOUR_MS),
        }


AD_VIEW = Topic(
    name="ad-view",
    description="What a visitor did with an ad: hit, start, quartiles, complete, click.",
    model=ad_view.AdViewV1,
    producers=("gateway",),
    consumers=("ad_ledger",),
    kinds=(DataKind.AD_USE, DataKind.IP_ADDRESS),
)
CONSENT = Topic(
    name="consent",
    description="What a visitor decided about the purposes of the consent catalogue.",
    model=consent.ConsentV1,
    producers=("gateway",),
    consumers=("consent",),
    age_max_ms=48 * HOUR_MS,
    kinds=(DataKind.AD_USE,),
)
CONSENT_STATE = Topic(
    name="consent-state",
    description="Per visitor and purpose: what is in force since when, and the last changes.",
    model=consent.ConsentStateV1,
    producers=("consent",),
    consumers=("gateway", "ad_ledger"),
    # with `consent` before it; who comes back later than that is asked again
    age_max_ms=116 * HOUR_MS,
    kinds=(DataKind.AD_USE,),
    copies=("consent",),
    cleanup="compact,delete",
)
REGISTER = Topic(
    name="register",
    description="The recipient register and the consent catalogue in force, told again each day.",
    model=register.RegisterV1,
    key="name",
    producers=("consent",),
    consumers=("gateway", "ad_ledger", "call_control"),
    age_max_ms=30 * DAY_MS,
    segment_ms=DAY_MS,
    cleanup="compact,delete",
    partitions=1,
)
CONSENT_PROGRESS = Topic(
    name="consent-progress",
    description="Until when every choice has been told on consent-state; about once a second.",
    model=consent_progress.ConsentProgressV1,
    key="name",
    producers=("consent",),
    consumers=("gateway", "ad_ledger"),
    # whoever starts reads all of it
    age_max_ms=2 * HOUR_MS,
    segment_ms=HOUR_MS // 2,
    partitions=1,
)
TRANSFER = Topic(
    name="transfer",
    description="What was sent to a recipient outside, or refused, and on which ground.",
    model=transfer.TransferV1,
    key="transfer_id",
    producers=("gateway", "ad_ledger", "call_control"),
    consumers=("consent",),
    kinds=(DataKind.AD_USE,),
)
CALL_REQUEST = Topic(
    name="call-request",
    description="A visitor asks to connect a callback number with a destination number.",
    model=call.CallRequestV1,
    producers=("gateway",),
    consumers=("call_control",),
    kinds=(DataKind.TRAFFIC_DATA, DataKind.IP_ADDRESS),
)
CREDIT_REQUEST = Topic(
    name="credit-request",
    description="Reserve or release talk time for a call.",
    model=credit.CreditRequestV1,
    copies=("call-request", "credit-decision"),
    producers=("call_control",),
    consumers=("ad_ledger",),
    kinds=(DataKind.AD_USE,),
)
CREDIT_DECISION = Topic(
    name="credit-decision",
    description="A reservation is granted, or refused with its reason.",
    model=credit.CreditDecisionV1,
    copies=("credit-request",),
    producers=("ad_ledger",),
    consumers=("call_control",),
    kinds=(DataKind.AD_USE,),
)
CREDIT = Topic(
    name="credit",
    description="A visitor's balance changed: granted, reserved, released, spent, expired.",
    model=credit.CreditV1,
    copies=("ad-view", "credit-request", "call-start", "call-end"),
    producers=("ad_ledger",),
    consumers=("gateway",),
    kinds=(DataKind.AD_USE,),
)
CALL_COMMAND = Topic(
    name="call-command",
    description="A visitor's order about a call of theirs: hang up.",
    model=call.CallCommandV1,
    producers=("gateway",),
    consumers=("call_control",),
    kinds=(DataKind.TRAFFIC_DATA,),
)
CALL_STATUS = Topic(
    name="call-status",
    description="Where a call stands, for the page: dialling, ringing, talking, ended.",
    model=call.CallStatusV1,
    copies=("call-request", "credit-decision", "call-command"),
    producers=("call_control",),
    consumers=("gateway",),
    kinds=(DataKind.TRAFFIC_DATA,),
)
CALL_START = Topic(
    name="call-start",
    description="Both legs are connected; charged talk begins.",
    model=call.CallStartV1,
    producers=("call_control",),
    consumers=("ad_ledger",),
    kinds=(DataKind.TRAFFIC_DATA,),
)
CALL_END = Topic(
    name="call-end",
    description="A call that held a reservation is over; the ledger settles it.",
    model=call.CallEndV1,
    producers=("call_control",),
    consumers=("ad_ledger",),
    kinds=(DataKind.TRAFFIC_DATA,),
)
RETENTION_ORDER = Topic(
    name="retention-order",
    description="Orders to drop, erase, hold, restrict; visitors' ids go days before they do.",
    model=retention.RetentionOrderV1,
    key="order_id",
    producers=("retention",),
    consumers=("ad_ledger", "call_control", "consent"),
    age_max_ms=30 * DAY_MS,
    segment_ms=6 * HOUR_MS,
    cleanup="compact,delete",
    kinds=(DataKind.AD_USE,),
    personal_age_max_ms=6 * DAY_MS,
    partitions=1,
)
RETENTION_RECEIPT = Topic(
    name="retention-receipt",
    description="What a service did about an order: counts only.",
    model=retention.RetentionReceiptV1,
    key="order_id",
    producers=("ad_ledger", "call_control", "consent"),
    consumers=("retention",),
    age_max_ms=30 * DAY_MS,
    segment_ms=DAY_MS,
    partitions=1,
)
RECORD = Topic(
    name="record",
    description="What happened to a record that another system keeps: opaque ids and dates only.",
    model=record.RecordV1,
    key="record_id",
    producers=OUTSIDE,
    consumers=("retention",),
    age_max_ms=30 * DAY_MS,
    segment_ms=DAY_MS,
    partitions=1,
)

REGISTRY: tuple[Topic, ...] = (
    AD_VIEW,
    CONSENT,
    CONSENT_STATE,
    CONSENT_PROGRESS,
    REGISTER,
    TRANSFER,
    CALL_REQUEST,
    CREDIT_REQUEST,
    CREDIT_DECISION,
    CREDIT,
    CALL_COMMAND,
    CALL_STATUS,
    CALL_START,
    CALL_END,
    RETENTION_ORDER,
    RETENTION_RECEIPT,
    RECORD,
)
ALL_TOPICS: tuple[Topic, ...] = REGISTRY + tuple(t.dead_letter for t in REGISTRY if t.consumers)
BY_NAME: dict[str, Topic] = {topic.name: topic for topic in ALL_TOPICS}


def written_ms(topic: Topic) -> int:
    """Return how old, at the most, what a record stems from is when it is written.

    The chassis leaves out what is older (`origin_age_max_ms`); where it does not look, all that
    the records before can have waited, and the outbox. Only the gateway writes without one.
    """
    if topic.origin_age_max_ms is not None:
        is_first = topic.producers == ("gateway",) and not topic.copies
        return 0 if is_first else topic.origin_age_max_ms
    before = max((oldest_ms(BY_NAME[name]) for name in topic.copies), default=0)
    return before + OUTBOX_WAIT_MAX_MS


def oldest_ms(topic: Topic) -> int:
    """Return the worst age of what is personal in a topic, through every copy before it."""
    return written_ms(topic) + topic.personal_limit_ms


assert all(re.fullmatch(r"[a-z][a-z0-9-]*", topic.name) for topic in ALL_TOPICS)
assert all(topic.retention_ms > 0 for topic in ALL_TOPICS)
