"""Every classified item of the platform as rows: what the register of processing is printed from.

Services are found by their names, as whoever deploys them finds them: no import of one stands here.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType

from schemas.retention import DataKind
from schemas.topics import ALL_TOPICS
from services.chassis.declaration import SERVICES, load
from services.privacy import events, observed
from services.privacy.classification import SHARED
from services.privacy.declare import (
    Classification,
    Item,
    LegalBasis,
    PeriodStart,
    Purpose,
    Table,
)


class Place(StrEnum):
    """Where an item lives."""

    TABLE = "table"
    EVENT = "event"
    RECORD_KEY = "record_key"
    HEADER = "header"
    LOG = "log"
    METRIC = "metric"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One item; the last four are None exactly for what is no personal data.

    Attributes:
        where: of the place: `<service>.<table>`, a topic, `logs`, `<service>_<metric>`.
        name: column, dotted path of a field, header, log field or label.
    """

    place: Place
    where: str
    name: str
    kind: DataKind | None
    start: PeriodStart | None
    purpose: Purpose | None
    basis: LegalBasis | None


def rows() -> Iterator[Row]:
    """Yield every classified item, in the order: tables, events, logs, metrics."""
    for service in SERVICES:
        if load(service).database:
            yield from _all(Place.TABLE, f"{service}.", {**SHARED, **tables(service)})
    for topic in ALL_TOPICS:
        key = {topic.key: events.fields(topic)[topic.key]}
        yield from _all(Place.EVENT, "", {topic.name: events.fields(topic)})
        yield from _all(Place.RECORD_KEY, "", {topic.name: key})
        yield from _all(Place.HEADER, "", {topic.name: events.headers(topic)})
    yield from _all(Place.LOG, "", {"logs": observed.LOG_FIELDS})
    for service in SERVICES:
        yield from _all(Place.METRIC, f"{service}_", metrics(service))


def tables(service: str) -> Classification:
    """Return what a service says of its own tables."""
    found: Classification = _module(service).CLASSIFICATION
    return found


def ageing(service: str) -> tuple[Table, ...]:
    """Return the tables of a service whose partitions go by age; none where it has no database."""
    found: tuple[Table, ...] = getattr(_module(service), "TABLES", ())
    return found


def metrics(service: str) -> Classification:
    """Return what a service's metrics are, the chassis' among them."""
    own: Classification = getattr(_module(service), "METRICS", {})
    found = {**observed.CHASSIS_METRICS, **own}
    # whoever writes an entry past `declare.metrics` is stopped here
    assert not any(item.personal for labels in found.values() for item in labels.values())
    return found


def _module(service: str) -> ModuleType:
    return importlib.import_module(f"services.{service}.classification")


def _all(place: Place, before: str, classification: Classification) -> Iterator[Row]:
    for holder, items in classification.items():
        for name, item in items.items():
            yield _row(place, f"{before}{holder}", name, item)


def _row(place: Place, where: str, name: str, item: Item) -> Row:
    return Row(
        place=place,
        where=where,
        name=name,
        kind=item.kind,
        start=item.start,
        purpose=item.purpose,
        basis=item.basis,
    )
