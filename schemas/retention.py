"""Events about deletion: the order, and the receipt that holds counts only (R-D9, D4)."""

from datetime import date
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.wire import Instant, ServerId, VisitorId, WireModel

VISITORS_MAX = 1000
"""Of one order: 40 kB of the 64 kB that a record may have; more visitors are more orders."""
RECORDS_MAX = 1000
"""Of one order, as for visitors."""
HOLDER_PATTERN = r"^[a-z][a-z0-9_]{0,30}$"
"""Name of who answers an order: a service of ours, or a system outside that keeps records."""
KEY_ID_PATTERN = r"^[A-Za-z0-9]{1,32}$"
SIGNATURE_PATTERN = r"^[0-9a-f]{128}$"
"""Ed25519, in hex."""


class DataKind(StrEnum):
    """Kinds of data (Datenarten), one retention rule each."""

    WEB_USE = "web_use"
    IP_ADDRESS = "ip_address"
    AD_USE = "ad_use"
    TRAFFIC_DATA = "traffic_data"
    CONSENT_RECORD = "consent_record"
    ACCESS_LOG = "access_log"
    CONTRACT = "contract"
    PAID_TRAFFIC = "paid_traffic"
    CONTACT = "contact"
    APPLICATION = "application"
    BLOCK_LIST = "block_list"
    TRANSFER_RECORD = "transfer_record"
    DELETION_RECEIPT = "deletion_receipt"


RECORD_KINDS = frozenset(
    {
        DataKind.CONTRACT,
        DataKind.PAID_TRAFFIC,
        DataKind.CONTACT,
        DataKind.APPLICATION,
        DataKind.BLOCK_LIST,
    }
)
"""Kinds that fall due record by record, by what other systems tell on the topic `record`."""


class DocumentClass(StrEnum):
    """Classes of documents that commercial and tax law keep for so many years (R-D6)."""

    BOOKING_VOUCHER = "booking_voucher"
    """Booking vouchers (Buchungsbelege), invoices among them."""
    BOOKS = "books"
    """Books, accounts, inventories (Bücher, Abschlüsse, Inventare)."""
    BUSINESS_LETTER = "business_letter"
    """Commercial and business letters (Handels- und Geschäftsbriefe)."""


class RetentionAction(StrEnum):
    """What an order tells a service to do."""

    DROP = "drop"
    ERASE = "erase"
    HOLD = "hold"
    RELEASE = "release"
    RESTRICT = "restrict"
    UNRESTRICT = "unrestrict"
    ANONYMISE = "anonymise"


_NAMES_VISITORS = frozenset({RetentionAction.ERASE, RetentionAction.RESTRICT})
_MAY_NAME_VISITORS = _NAMES_VISITORS | {RetentionAction.HOLD}
_MAY_NAME_RECORDS = frozenset({RetentionAction.DROP, RetentionAction.RESTRICT})
_PROTECTS = frozenset(
    {
        RetentionAction.HOLD,
        RetentionAction.RELEASE,
        RetentionAction.RESTRICT,
        RetentionAction.UNRESTRICT,
    }
)


class RetentionOrderV1(WireModel):
    """What to do with the rows of days before a day (UTC). Natural key: `order_id`.

    An order lives 30 days on its topic, the visitors whom it names do not: once all services have
    answered, and after five days at the latest, a copy without them takes its place under the same
    key (`names_gone`). What each action needs, and may carry:

    - drop: every day of the kind before `before_day`.
    - anonymise: the same, but what may be known of nobody in particular is counted first (R-C2);
      who keeps the kind and cannot count it refuses, and nothing goes.
    - erase: `visitor_ids`; their rows of the kinds, of days before `before_day`.
    - hold: `protection_id`; whose rows (`visitor_ids`, or everybody's), which days (`from_day`).
    - restrict: `protection_id` and `visitor_ids`; their rows leave the live tables.
    - release, unrestrict: `protection_id`; what it kept of days before `before_day` is due.

    Whoever reads an order whose names are gone has nothing left to do: what they stood for was
    done, or is due by age.

    `other_kinds` stands beside `kind` where an order is about more than one.

    With `record_ids` an order goes to the system that keeps these records, the `holder`, and to
    nobody else: drop means delete them, restrict means block them (R-D6). `before_day` is then the
    day after the one on which they were due at the latest, and says nothing of rows.
    """

    order_id: ServerId
    kind: DataKind
    action: RetentionAction
    before_day: date
    as_of: Instant
    other_kinds: Annotated[tuple[DataKind, ...], Field(max_length=8)] = ()
    visitor_ids: Annotated[tuple[VisitorId, ...], Field(max_length=VISITORS_MAX)] = ()
    from_day: date | None = None
    protection_id: ServerId | None = None
    record_ids: Annotated[tuple[ServerId, ...], Field(max_length=RECORDS_MAX)] = ()
    holder: Annotated[str, Field(pattern=HOLDER_PATTERN)] | None = None
    names_gone: bool = False

    @property
    def kinds(self) -> frozenset[DataKind]:
        """All kinds that the order is about."""
        return frozenset({self.kind, *self.other_kinds})

    @model_validator(mode="after")
    def _action_fits_its_fields(self) -> Self:
        problem = _misfit(self)
        if problem is not None:
            raise ValueError(problem)
        return self


def _misfit(order: RetentionOrderV1) -> str | None:
    """Say what an order lacks, or carries in vain; a reader must not guess what was meant."""
    if order.record_ids or order.holder is not None:
        return _misfit_of_records(order)
    if order.names_gone:
        may_be = not order.visitor_ids and order.action in _MAY_NAME_VISITORS
        return None if may_be else f"{order.action} has no names that could be gone"
    return _misfit_of_names(order)


def _misfit_of_names(order: RetentionOrderV1) -> str | None:
    action = order.action
    if action in _NAMES_VISITORS and not order.visitor_ids:
        return f"{action} needs visitor_ids"
    if order.visitor_ids and action not in _MAY_NAME_VISITORS:
        return f"{action} must not carry visitor_ids"
    if (order.protection_id is not None) != (action in _PROTECTS):
        return "protection_id belongs to hold, release, restrict and unrestrict, and to no other"
    if order.other_kinds and action not in _MAY_NAME_VISITORS:
        return f"{action} must not carry other_kinds"
    return _misfit_of_range(order)


def _misfit_of_records(order: RetentionOrderV1) -> str | None:
    if not order.record_ids or order.holder is None:
        return "record_ids and holder stand together"
    if order.action not in _MAY_NAME_RECORDS:
        return f"{order.action} must not carry record_ids"
    if order.kind not in RECORD_KINDS:
        return f"{order.kind} is not kept as records"
    others = (order.visitor_ids, order.other_kinds, order.from_day, order.protection_id)
    if any(others) or order.names_gone:
        return "an order with record_ids names no visitors, days, protection or other kinds"
    return None


def _misfit_of_range(order: RetentionOrderV1) -> str | None:
    if order.from_day is not None:
        if order.action is not RetentionAction.HOLD:
            return f"{order.action} must not carry from_day"
        if order.from_day >= order.before_day:
            return "from_day must lie before before_day"
    if order.visitor_ids and DataKind.CONSENT_RECORD in order.kinds:
        # a proof names no visitor (ADR 0013): the order would promise what nobody can do
        return "visitor_ids reach no consent_record"
    return None


class TableCount(WireModel):
    """What became of one table's rows.

    Attributes:
        n_partitions: day partitions that went.
        n_rows: rows that are gone for good.
        n_held: rows that the order met and a hold spared; for a hold or release, that live on.
        n_restricted: the same for restrictions; a row under both counts in both.
        n_figures: of an anonymise order: figures made of its rows before they went.
    """

    table: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    n_partitions: Annotated[int, Field(ge=0)]
    n_rows: Annotated[int, Field(ge=0)]
    n_held: Annotated[int, Field(ge=0)] = 0
    n_restricted: Annotated[int, Field(ge=0)] = 0
    n_figures: Annotated[int, Field(ge=0)] = 0


class RetentionReceiptV1(WireModel):
    """What one service did about one order: counts, never data. Natural key: (order, service).

    Signed (Ed25519) by the service or the system outside that it names: `signature` in hex, over
    all other fields but `key_id` (`services/privacy/receipts.py`; services/retention/README.md).
    """

    order_id: ServerId
    service: Annotated[str, Field(pattern=HOLDER_PATTERN)]
    kind: DataKind
    counts: Annotated[tuple[TableCount, ...], Field(max_length=64)]
    done_at: Instant
    key_id: Annotated[str, Field(pattern=KEY_ID_PATTERN)] | None = None
    signature: Annotated[str, Field(pattern=SIGNATURE_PATTERN)] | None = None
