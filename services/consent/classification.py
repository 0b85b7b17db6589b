"""What each column is (D5), and which tables age."""

from schemas.retention import DataKind
from services.privacy import access_log, erased
from services.privacy.declare import (
    Classification,
    LegalBasis,
    PartitionOf,
    PeriodStart,
    Purpose,
    Returning,
    Table,
    personal,
    plain,
)

TABLES = (
    Table(
        name="consent_subject",
        kind=DataKind.AD_USE,
        day_column="subject_day",
        subject_column="visitor_id",
        returning=Returning.ONE,
    ),
    Table(
        name="consent_record",
        kind=DataKind.CONSENT_RECORD,
        day_column="ends_on",
        partition_of=PartitionOf.YEAR,
        drop_function="consent_record_drop",
    ),
    Table(
        name="consent_transfer",
        kind=DataKind.TRANSFER_RECORD,
        day_column="transferred_on",
        partition_of=PartitionOf.YEAR,
        drop_function="consent_transfer_drop",
    ),
    Table(
        name="consent_transfer_visitor",
        kind=DataKind.AD_USE,
        day_column="transfer_day",
        subject_column="visitor_id",
        returning=Returning.EACH,
    ),
    Table(
        name="consent_disclosure",
        kind=DataKind.TRANSFER_RECORD,
        day_column="proposed_on",
        partition_of=PartitionOf.YEAR,
        drop_function="consent_transfer_drop",
    ),
    access_log.TABLE,
    erased.TABLE,
)

CLASSIFICATION: Classification = {
    "consent_subject": personal(
        "subject_day visitor_id proof_id",
        kind=DataKind.AD_USE,
        start=PeriodStart.EVENT,
        purpose=Purpose.CONSENT,
        basis=LegalBasis.LEGAL_OBLIGATION,
    ),
    "consent_record": personal(
        "ends_on decision_id purpose proof_id decision catalogue_version wording_version language"
        " method decided_at recipient page chain_part chain_seq salt",
        kind=DataKind.CONSENT_RECORD,
        start=PeriodStart.CONSENT_END,
    ),
    "consent_transfer": personal(
        "transferred_on transfer_id sender recipient purpose fields verdict reason basis"
        " country_ground consent country register_version asked_at",
        kind=DataKind.TRANSFER_RECORD,
        start=PeriodStart.EVENT,
    ),
    "consent_transfer_visitor": personal(
        "transfer_day transfer_id visitor_id transferred_on happened_at",
        kind=DataKind.AD_USE,
        start=PeriodStart.EVENT,
        purpose=Purpose.CONSENT,
        basis=LegalBasis.LEGAL_OBLIGATION,
    ),
    # of the staff; whom it is about stands in the authority's file only
    "consent_disclosure": personal(
        "proposed_on disclosure_id step staff_id authority legal_ground fields reference_salt"
        " reference_hash stated_at from_day to_day n_persons transfer_id key_id signature",
        kind=DataKind.TRANSFER_RECORD,
        start=PeriodStart.EVENT,
    ),
    # commitments whose salt goes with the record: of nobody once that is gone (K1, ADR 0022)
    "consent_chain": plain("part seq commitment hash"),
    "consent_chain_head": plain("part seq commitment hash"),
    # numbers of links and an order's id (D4)
    "consent_taking": plain("seq part order_id first_seqs last_seqs key_id signature"),
    "consent_anchor": plain("part anchored_on seq hash key_id signature"),
}
