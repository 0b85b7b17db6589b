"""Classification of the tables that every service has: the chassis', the executor's, pogo's."""

from schemas.retention import DataKind
from services.privacy.declare import Classification, PeriodStart, personal, plain

SHARED: Classification = {
    "consumer_offset": plain("topic part next_offset"),
    # An event on its way: its hour's partition goes two hours after the relay has passed it. Of
    # the kinds that a payload may hold, ad use has the shortest period that starts with an event.
    "outbox": {
        **plain("id txid created_at topic"),
        **personal("key headers payload", kind=DataKind.AD_USE, start=PeriodStart.EVENT),
    },
    "outbox_cursor": plain("single txid id"),
    # Of the staff, and as a hash of whom it was about: a pseudonym until the day's key is gone.
    "access_log": personal(
        "accessed_on access_id step staff_id reason case_number kind subject subject_hash n_rows "
        "accessed_at",
        kind=DataKind.ACCESS_LOG, start=PeriodStart.EVENT,
    ),
    "retention_done": plain("order_id kind before_day counts done_at"),
    "_pogo_migration": plain("migration_id migration_hash schema_name applied"),
    "_pogo_version": plain("version installed"),
}  # fmt: skip
