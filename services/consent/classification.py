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
        " method decided_at chain_part chain_seq salt",
        kind=DataKind.CONSENT_RECORD,
        start=PeriodStart.CONSENT_END,
    ),
    # commitments whose salt goes with the record: of nobody once that is gone (K1, ADR 0022)
    "consent_chain": plain("part seq commitment hash"),
    "consent_chain_head": plain("part seq commitment hash"),
    "consent_anchor": plain("part anchored_on seq hash key_id signature"),
}
