"""What each column is (D5): orders and receipts hold opaque ids and counts, nothing personal (D4).

Their period is R-D10's (until the end of the third calendar year), kind `deletion_receipt`.
"""

from services.privacy.declare import Classification, metrics, plain

CLASSIFICATION: Classification = {
    "retention_sweep": plain("sweep_id as_of swept_at schedule_version"),
    "retention_order": plain(
        "order_id kind requirement before_day attempt as_of issued_at overdue_at expected action"
    ),
    # Evidence: who of the staff asked, by a number that the personnel file resolves and nothing
    # here does; whom it is about stands in no column of these.
    "retention_person_order": plain(
        "order_id kinds from_day protection_id case_number n_visitors staff_id schedule_version "
        "key_id signature"
    ),
    "retention_names_gone": plain("order_id gone_at"),
    "retention_protection": plain(
        "protection_id is_hold case_number ground kinds from_day before_day names_visitors "
        "review_on"
    ),
    "retention_protection_step": plain("protection_id step staff_id done_at key_id signature"),
    "retention_protection_review": plain("protection_id staff_id review_on done_at"),
    "retention_review": plain(
        "review_id protection_id review_on reason staff_id proposed_at key_id signature"
    ),
    "retention_review_confirmation": plain("review_id staff_id confirmed_at key_id signature"),
    "retention_reissue": plain("order_id sent_at has_names"),
    "retention_waiver": plain(
        "waiver_id order_id holder reason staff_id proposed_at key_id signature"
    ),
    "retention_waiver_confirmation": plain("waiver_id staff_id confirmed_at key_id signature"),
    "retention_sweep_order": plain("sweep_id order_id is_new"),
    "retention_receipt": plain("order_id service kind counts done_at received_at"),
    "retention_completion": plain("order_id completed_at"),
    "retention_chain": plain("seq what ref service commitment hash"),
    "retention_chain_salt": plain("seq salt"),
    "retention_unchained": plain("what ref service"),
    "retention_refusal": plain("refusal_id what reason staff_id refused_at"),
    "retention_anchor": plain("anchor_day seq hash key_id signature"),
    # of documents at other systems: ids that their holders alone can resolve, words and dates
    "retention_record": plain("record_id kind document_class holder first_told_at"),
    "retention_record_event": plain("event_id record_id told happened happened_on told_at"),
    "retention_record_due": plain(
        "record_id block_at delete_at rule_from schedule_version computed_at"
    ),
    "retention_record_order": plain("order_id record_id deed"),
    "retention_topic_age": plain("topic part oldest_at age_max measured_at"),
}

METRICS: Classification = metrics(
    {"topic_oldest_record_age_seconds": "topic partition", "topic_bytes": "topic partition"}
)
