"""Classification of the tables that every service has: the chassis', the executor's, pogo's."""

from schemas.retention import DataKind
from services.privacy.declare import Classification, LegalBasis, PeriodStart, personal, plain

SHARED: Classification = {
    "consumer_offset": plain("topic part next_offset"),
    # An event on its way: its hour's partition goes two hours after the relay has passed it. Of
    # the kinds that a payload may hold, ad use has the shortest period that starts with an event.
    "outbox": {
        **plain("id txid created_at topic"),
        **personal("key headers payload", kind=DataKind.AD_USE, start=PeriodStart.EVENT),
    },
    "outbox_cursor": plain("single txid id"),
    "retention_done": plain("order_id kind before_day counts done_at action"),
    "retention_later": plain("order_id content received_at is_unseen"),
    "privacy_table": plain(
        "name kind day_column subject_column via own_columns via_columns returning_rows "
        "partition_of drop_function"
    ),
    "privacy_protection": plain(
        "protection_id is_restriction kinds from_day before_day names_visitors placed_at "
        "released_at lacks_copies"
    ),
    # These two go with the hold or restriction that a case file names (R-D3, R-G4), or with the
    # order that waits. Of the kinds that a kept row may have, the one with the shortest period.
    "privacy_visitor": {
        **plain("list_id"),
        **personal("visitor_id", kind=DataKind.AD_USE, start=PeriodStart.EVENT),
    },
    "privacy_kept": {
        **plain("protection_id source is_due order_id"),
        **personal(
            "row_key row_day visitor_id content", kind=DataKind.AD_USE, start=PeriodStart.EVENT
        ),
    },
    "privacy_erased": personal(
        "erased_day visitor_id erased_at",
        kind=DataKind.AD_USE,
        start=PeriodStart.EVENT,
        basis=LegalBasis.LEGAL_OBLIGATION,
    ),
    # Of the staff, and as a hash of whom it was about: a pseudonym until the day's key is gone.
    "access_log": personal(
        "accessed_on access_id step staff_id reason case_number kind subject subject_hash n_rows "
        "accessed_at protection_id act means",
        kind=DataKind.ACCESS_LOG, start=PeriodStart.EVENT,
    ),
    "_pogo_migration": plain("migration_id migration_hash schema_name applied"),
    "_pogo_version": plain("version installed"),
}  # fmt: skip
