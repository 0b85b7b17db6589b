"""What every field of every event is, its record key and its headers (D5).

A key and the header `ce_subject` repeat a field, mostly the visitor's id: random, of a life of
days, and personal for as long (ADR 0014). What else the headers say of an event (which one, when,
as part of which trace) is as personal as the event's key. A dead letter's record is its topic's.
"""

from collections.abc import Iterator
from typing import Any, get_args

from schemas import topics
from schemas.retention import DataKind
from schemas.topics import Topic
from schemas.wire import WireModel
from services.privacy.declare import (
    Classification,
    Items,
    LegalBasis,
    PeriodStart,
    Purpose,
    personal,
    plain,
)

_ADDRESS = personal("address", kind=DataKind.IP_ADDRESS, start=PeriodStart.EVENT)


def _ad_use(names: str) -> Items:
    return personal(names, kind=DataKind.AD_USE, start=PeriodStart.EVENT)


def _call(names: str) -> Items:
    return personal(names, kind=DataKind.TRAFFIC_DATA, start=PeriodStart.CALL_END)


def _consent(names: str) -> Items:
    # on its way, and as the visitor's present state, a decision goes with the use that it governs;
    # only the proof stays longer (consent_record)
    return personal(
        names,
        kind=DataKind.AD_USE,
        start=PeriodStart.EVENT,
        purpose=Purpose.CONSENT,
        basis=LegalBasis.LEGAL_OBLIGATION,
    )


EVENTS: Classification = {
    topics.AD_VIEW.name: {
        **_ad_use("visitor_id ticket kind position_ms client_at"),
        **_ADDRESS,
    },
    topics.CONSENT.name: _consent(
        "decision_id visitor_id choices.purpose choices.decision choices.recipient "
        "catalogue_version wording_version language method page"
    ),
    topics.CONSENT_STATE.name: _consent(
        "visitor_id purposes.purpose purposes.recipient purposes.reaches purposes.in_force "
        "purposes.since purposes.changes.decision purposes.changes.at"
    ),
    topics.CONSENT_PROGRESS.name: plain("name until"),
    topics.TRANSFER.name: _consent(
        "transfer_id recipient purpose fields verdict register_version happened_at asked_at reason "
        "basis country_ground consent country visitor_id"
    ),
    topics.CALL_REQUEST.name: {
        **_call("call_id visitor_id callback_number destination_number"),
        **_ADDRESS,
    },
    topics.CREDIT_REQUEST.name: _ad_use("reservation_id visitor_id operation wanted_ms lease_ms"),
    topics.CREDIT_DECISION.name: _ad_use(
        "reservation_id visitor_id granted reserved_ms lease_until reason"
    ),
    topics.CREDIT.name: _ad_use(
        "visitor_id change amount_ms available_ms reserved_ms reservation_id"
    ),
    topics.CALL_COMMAND.name: _call("call_id visitor_id command"),
    topics.CALL_STATUS.name: _call(
        "call_id visitor_id status reason reserved_ms talk_ms connected_at"
    ),
    topics.CALL_START.name: _call("call_id visitor_id connected_at reserved_ms"),
    topics.CALL_END.name: _call(
        "call_id visitor_id ended_at reason talk_ms overrun_ms connected_at"
    ),
    topics.RETENTION_ORDER.name: {
        **plain(
            "order_id kind action before_day as_of other_kinds from_day protection_id names_gone "
            "record_ids holder"
        ),
        # gone days before the order itself (schemas/retention.py)
        **personal(
            "visitor_ids",
            kind=DataKind.AD_USE,
            start=PeriodStart.EVENT,
            purpose=Purpose.ACCOUNTABILITY,
            basis=LegalBasis.LEGAL_OBLIGATION,
        ),
    },
    topics.RETENTION_RECEIPT.name: plain(
        "order_id service kind counts.table counts.n_partitions counts.n_rows counts.n_held "
        "counts.n_restricted counts.n_figures done_at key_id signature"
    ),
    # an id that the holder alone can resolve, of a document rather than of a person
    topics.REGISTER.name: plain("name version document sha256"),
    topics.RECORD.name: plain(
        "record_id kind holder happened happened_on document_class key_id signature"
    ),
}
"""Topic -> dotted path of a field -> what it is."""

_OF_THE_KIND_OF_EVENT = "ce_specversion ce_type ce_source content-type"
_OF_THE_EVENT = "ce_id ce_time ce_origintime ce_subject traceparent"
_OF_A_DEAD_LETTER = (
    "dead_letter_topic dead_letter_partition dead_letter_offset dead_letter_reason "
    "dead_letter_service"
)


def headers(topic: Topic) -> Items:
    """Classify the headers of a topic's records, or of its dead letters'."""
    key = EVENTS[_original(topic)][topic.key]
    found = {**plain(_OF_THE_KIND_OF_EVENT), **dict.fromkeys(_OF_THE_EVENT.split(), key)}
    return {**found, **plain(_OF_A_DEAD_LETTER)} if topic.is_dead_letter else found


def fields(topic: Topic) -> Items:
    """Classify the fields of a topic's events, or of its dead letters'."""
    return EVENTS[_original(topic)]


def _original(topic: Topic) -> str:
    """Return the name under which a topic's events are classified."""
    if not topic.is_dead_letter:
        return topic.name
    return next(t.name for t in topics.REGISTRY if t.dead_letter.name == topic.name)


def paths(model: type[WireModel], before: str = "") -> Iterator[str]:
    """Yield the dotted path of every field of a model that holds a value, nested ones too.

    A list's fields have one path each, whichever of its entries they stand in.
    """
    for name, field in model.model_fields.items():
        nested = list(_models_in(field.annotation))
        for inner in nested:
            yield from paths(inner, f"{before}{name}.")
        if not nested:
            yield f"{before}{name}"


def _models_in(annotation: Any) -> Iterator[type[WireModel]]:
    """Yield the models that an annotation names, at any depth (`tuple[X, ...] | None`)."""
    if isinstance(annotation, type) and issubclass(annotation, WireModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
