"""What every column of the ledger is (D5), and which tables age by which rule."""

from schemas.retention import DataKind
from services.privacy import access_log, erased
from services.privacy.declare import (
    Classification,
    LegalBasis,
    PeriodStart,
    Purpose,
    Returning,
    Table,
    Via,
    metrics,
    personal,
    plain,
)

_VISITOR = "visitor_id"
TABLES: tuple[Table, ...] = (
    # `lot` first: what is open in it is closed before any other table of the day goes
    Table(name="lot", kind=DataKind.AD_USE, day_column="lot_day", subject_column=_VISITOR),
    Table(name="posting", kind=DataKind.AD_USE, day_column="lot_day", subject_column=_VISITOR),
    # whichever of the views and their addresses goes first: after it nobody could count
    Table(
        name="ad_view",
        kind=DataKind.AD_USE,
        day_column="view_day",
        subject_column=_VISITOR,
        has_figures=True,
    ),
    Table(
        name="visitor_watch",
        kind=DataKind.AD_USE,
        day_column="watch_day",
        subject_column=_VISITOR,
        returning=Returning.EACH,
    ),
    Table(
        name="reservation_share",
        kind=DataKind.AD_USE,
        day_column="reservation_day",
        via=Via(
            table="reservation",
            columns={"reservation_day": "reservation_day", "reservation_id": "reservation_id"},
        ),
    ),
    Table(
        name="reservation",
        kind=DataKind.AD_USE,
        day_column="reservation_day",
        subject_column=_VISITOR,
    ),
    Table(
        name="ad_view_address",
        kind=DataKind.IP_ADDRESS,
        day_column="address_day",
        via=Via(table="ad_view", columns={"address_day": "view_day", "ticket_id": "ticket_id"}),
        has_figures=True,
    ),
    Table(
        name="partner_report",
        kind=DataKind.AD_USE,
        day_column="report_day",
        via=Via(table="ad_view", columns={"report_day": "view_day", "ticket_id": "ticket_id"}),
    ),
    Table(name="partner_batch", kind=DataKind.AD_USE, day_column="batch_day"),
    access_log.TABLE,
    erased.TABLE,
)

CLASSIFICATION: Classification = {
    "tariff": plain("version valid_from daily_cap_ms tolerance_ms"),
    "tariff_rule": plain("version kind credit_permille credit_flat_ms"),
    # networks of many, counted; no address and nobody in particular (R-C2, ADR 0028)
    "ad_statistics": plain("view_day network n_visitors n_views n_completed"),
    "ad_statistics_day": plain("view_day"),
    "platform_account": plain("account_day account balance_ms"),
    "ad_view": {
        **personal(
            "view_day ticket_id kind visitor_id viewed_at position_ms credit_ms is_capped",
            kind=DataKind.AD_USE, start=PeriodStart.EVENT,
        ),
        **plain("tariff_version"),
    },
    "ad_view_address": personal(
        "address_day ticket_id address", kind=DataKind.IP_ADDRESS, start=PeriodStart.EVENT
    ),
    "visitor_watch": personal(
        "watch_day visitor_id watched_until credited_ms",
        kind=DataKind.AD_USE, start=PeriodStart.EVENT,
    ),
    "lot": personal(
        "lot_day ticket_id visitor_id expires_at granted_ms available_ms reserved_ms spent_ms "
        "expired_ms clawed_back_ms",
        kind=DataKind.AD_USE, start=PeriodStart.EVENT,
    ),
    "posting": {
        **personal(
            "lot_day posting_id ticket_id visitor_id operation amount_ms posted_at reservation_id "
            "kind",
            kind=DataKind.AD_USE, start=PeriodStart.EVENT,
        ),
        **plain("debit_account credit_account tariff_version"),
    },
    "reservation": personal(
        "reservation_day reservation_id visitor_id state wanted_ms reserved_ms spent_ms "
        "lease_until requested_at connected_at ended_at",
        kind=DataKind.AD_USE, start=PeriodStart.EVENT,
    ),
    "reservation_share": personal(
        "reservation_day reservation_id lot_day ticket_id reserved_ms",
        kind=DataKind.AD_USE, start=PeriodStart.EVENT,
    ),
    "partner_report": personal(
        "report_day ticket_id kind ad_id state batch_id",
        kind=DataKind.AD_USE, start=PeriodStart.EVENT,
        purpose=Purpose.AD_SETTLEMENT, basis=LegalBasis.CONTRACT,
    ),
    # the partner has the key of a batch too: by it, one could ask which views were in it
    "partner_batch": personal(
        "batch_day batch_id is_open n_tries next_try_at ended_at",
        kind=DataKind.AD_USE, start=PeriodStart.EVENT,
        purpose=Purpose.AD_SETTLEMENT, basis=LegalBasis.CONTRACT,
    ),
}  # fmt: skip

METRICS: Classification = metrics({"credit_seconds": "operation", "partner_batches": "outcome"})
