"""What a service declares about its data: tables that age, and what every single item is (D5).

Items are columns, fields of events, headers, log fields and metric labels. An item without an entry
fails a test, and so does an entry without its item.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.retention import DataKind


@dataclass(frozen=True, kw_only=True)
class Via:
    """How the rows of a table without a visitor's id hang on those of one that has it.

    Attributes:
        columns: own column -> column of the other table.
    """

    table: str
    columns: Mapping[str, str]


class Returning(StrEnum):
    """How rows that a restriction set aside come back beside what was written since."""

    TOGETHER = "together"
    """A visitor's rows refer to each other: where a newer row has the key of one, none returns."""
    EACH = "each"
    """A row gives way to a newer one of its key; nothing else refers to it."""
    ONE = "one"
    """The table has one row per visitor: the first returns, and only where there is none."""


class PartitionOf(StrEnum):
    """What a partition holds."""

    DAY = "day"
    YEAR = "year"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of personal data whose partitions go by age.

    The database has the same facts (`privacy_table`, written by the service's migration), because
    only its owner may say which rows an order may touch; a test holds the two together.

    Attributes:
        kind: the rule that governs it; one kind per table.
        day_column: the partition key, a date.
        subject_column: the visitor's id; None where rows hang on another table's (`via`), or name
            no visitor at all.
        drop_function: (table name, first day that stays) -> a row per partition that it dropped.
        has_figures: whether anonymised figures are made of a day before it goes (R-C2).
    """

    name: str
    kind: DataKind
    day_column: str
    subject_column: str | None = None
    via: Via | None = None
    returning: Returning = Returning.TOGETHER
    partition_of: PartitionOf = PartitionOf.DAY
    drop_function: str = "privacy_day_drop"
    has_figures: bool = False

    def __post_init__(self) -> None:
        assert self.subject_column is None or self.via is None

    @property
    def names_visitors(self) -> bool:
        """Whether an order by visitor reaches its rows."""
        return self.subject_column is not None or self.via is not None


def by_day(tables: Iterable[Table]) -> tuple[str, ...]:
    """Return the names of the tables whose partitions are days: the chassis keeps those ready."""
    return tuple(table.name for table in tables if table.partition_of is PartitionOf.DAY)


class PeriodStart(StrEnum):
    """The instant from which an item's period counts."""

    EVENT = "event"
    USE_END = "use_end"
    CALL_END = "call_end"
    CONSENT_END = "consent_end"
    CONTRACT_END = "contract_end"
    INVOICE_SENT = "invoice_sent"
    PURPOSE_FULFILLED = "purpose_fulfilled"
    REJECTION_ANNOUNCED = "rejection_announced"
    BLOCK_LIFTED = "block_lifted"


class Purpose(StrEnum):
    """What data is used for, and what it may be sent for. Closed: what has none is not stored."""

    PAGE = "page"
    """Answering the request of a page (R-B5)."""
    AD_FINANCED_USE = "ad_financed_use"
    """Earning and spending connection time (R-A1 to R-A3)."""
    CALL = "call"
    """Connecting a call and settling it (R-A5)."""
    AD_SETTLEMENT = "ad_settlement"
    """Placing ads with the ad partner and being paid for them (R-A4, R-E1)."""
    NETWORK_SETTLEMENT = "network_settlement"
    """Connecting and settling with other network operators (R-A6)."""
    PERSONALISED_ADVERTISING = "personalised_advertising"
    """Ads chosen by who the visitor is (R-E1): with consent only."""
    DATA_SECURITY = "data_security"
    """Fending off fraud and attacks, under a threat assessment (R-C3)."""
    FAULT_FINDING = "fault_finding"
    """Following one event or call through the services when something broke (R-C1)."""
    CONSENT = "consent"
    """Honouring what the visitor decided, and proving it (R-F2 to R-F4)."""
    ACCOUNTABILITY = "accountability"
    """Proving who looked at personal data, and why (R-C5); what left, and what was deleted."""
    PAID_SERVICE = "paid_service"
    """Paid contracts with a fixed term: carrying out, billing, collecting (R-B1, R-B2)."""
    CONTACT = "contact"
    """Answering enquiries, keeping up relations, advice (R-B3)."""
    APPLICATION = "application"
    """Deciding on job applications (R-B4)."""
    NUMBER_BLOCKING = "number_blocking"
    """Never calling a number again whose owner asked for that (R-G10)."""
    DISCLOSURE = "disclosure"
    """Informing a public authority under a legal obligation (R-C4)."""


class LegalBasis(StrEnum):
    """Why we may: the letters of Art. 6(1) GDPR that the notice relies on (R-C1)."""

    CONSENT = "Art. 6(1)(a)"
    CONTRACT = "Art. 6(1)(b)"
    LEGAL_OBLIGATION = "Art. 6(1)(c)"
    LEGITIMATE_INTEREST = "Art. 6(1)(f)"


USUALLY: Mapping[DataKind, tuple[Purpose, LegalBasis]] = {
    DataKind.WEB_USE: (Purpose.PAGE, LegalBasis.CONTRACT),
    DataKind.IP_ADDRESS: (Purpose.DATA_SECURITY, LegalBasis.LEGITIMATE_INTEREST),
    DataKind.AD_USE: (Purpose.AD_FINANCED_USE, LegalBasis.CONTRACT),
    DataKind.TRAFFIC_DATA: (Purpose.CALL, LegalBasis.CONTRACT),
    DataKind.CONSENT_RECORD: (Purpose.CONSENT, LegalBasis.LEGAL_OBLIGATION),
    DataKind.ACCESS_LOG: (Purpose.ACCOUNTABILITY, LegalBasis.LEGAL_OBLIGATION),
    DataKind.CONTRACT: (Purpose.PAID_SERVICE, LegalBasis.CONTRACT),
    DataKind.PAID_TRAFFIC: (Purpose.PAID_SERVICE, LegalBasis.CONTRACT),
    DataKind.CONTACT: (Purpose.CONTACT, LegalBasis.CONTRACT),
    DataKind.APPLICATION: (Purpose.APPLICATION, LegalBasis.CONTRACT),
    DataKind.BLOCK_LIST: (Purpose.NUMBER_BLOCKING, LegalBasis.LEGITIMATE_INTEREST),
    DataKind.TRANSFER_RECORD: (Purpose.ACCOUNTABILITY, LegalBasis.LEGAL_OBLIGATION),
    DataKind.DELETION_RECEIPT: (Purpose.ACCOUNTABILITY, LegalBasis.LEGAL_OBLIGATION),
}
"""Purpose and legal basis of a kind of data, where an item says nothing else."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """What a column, an event's field, a header, a log field or a metric's label is.

    All but `personal` are set exactly for personal ones.
    """

    personal: bool
    kind: DataKind | None = None
    start: PeriodStart | None = None
    purpose: Purpose | None = None
    basis: LegalBasis | None = None

    def __post_init__(self) -> None:
        assert self.personal == (self.kind is not None)
        assert self.personal == (self.start is not None)
        assert self.personal == (self.purpose is not None)
        assert self.personal == (self.basis is not None)


Items = Mapping[str, Item]
"""Name of a column, field, header or label -> what it is."""
Classification = Mapping[str, Items]
"""Name of what holds the items (a table, a topic, a metric) -> its items."""


def personal(
    names: str,
    *,
    kind: DataKind,
    start: PeriodStart,
    purpose: Purpose | None = None,
    basis: LegalBasis | None = None,
) -> dict[str, Item]:
    """Classify the named items (parted by spaces) as personal data of one kind.

    Args:
        purpose: where it is not the kind's usual one.
        basis: where it is not the kind's usual one.
    """
    usual_purpose, usual_basis = USUALLY[kind]
    item = Item(
        personal=True,
        kind=kind,
        start=start,
        purpose=purpose or usual_purpose,
        basis=basis or usual_basis,
    )
    return dict.fromkeys(names.split(), item)


def plain(names: str) -> dict[str, Item]:
    """Classify the named items (parted by spaces) as no personal data."""
    return dict.fromkeys(names.split(), Item(personal=False))


def metrics(labels_by_metric: Mapping[str, str]) -> Classification:
    """Classify the labels of metrics (name without the service's -> labels, parted by spaces).

    There is no way to say that one is personal: a metric outlives every period, and what scrapes
    it is not ours (R-D5). Every label is a closed word or a partition's number.
    """
    return {metric: plain(labels) for metric, labels in labels_by_metric.items()}


COLUMNS_SQL = """
SELECT c.relname AS "table", a.attname AS "column"
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
ORDER BY 1, a.attnum
"""
"""Every column of every table of a database; a partition has its parent's columns."""


def gaps(actual: Iterable[tuple[str, str]], classification: Classification) -> list[str]:
    """Return, in words, each thing that is not classified and each entry that is no thing.

    Args:
        actual: (holder, item) pairs as they are: of a database, as `COLUMNS_SQL` gives them, of the
            models of events, of registries of metrics.
        classification: for a database the service's own, with `SHARED` of
            `services.privacy.classification`.
    """
    existing = set(actual)
    declared = {(holder, item) for holder, items in classification.items() for item in items}
    return [
        *(f"{holder}.{item} is not classified" for holder, item in sorted(existing - declared)),
        *(f"{holder}.{item} does not exist" for holder, item in sorted(declared - existing)),
    ]


def undeclared(classification: Classification, tables: Iterable[Table]) -> list[str]:
    """Return the tables with personal columns that no order would reach, by name."""
    reached = {table.name for table in tables}
    holding = {
        name
        for name, columns in classification.items()
        if any(column.personal for column in columns.values())
    }
    return sorted(holding - reached)
