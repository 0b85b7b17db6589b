"""Rules of orders and receipts: pure."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from uuid import UUID

AHEAD_MAX = timedelta(minutes=5)
KAFKA = "kafka"
"""Answers, in a simulation, for what the topics still held."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What all services have to do. Natural key of a cut: (`kind`, `before_day`, `attempt`).

    Attributes:
        action: drop or anonymise, or one that is about persons or holds (`protections.py`).
        expected: who has to answer; the order is complete when all have (D3).
        attempt: 0, or the number of the repetition that a person asked for.
    """

    order_id: UUID
    kind: str
    requirement: str
    before_day: date
    attempt: int
    as_of: datetime
    issued_at: datetime
    overdue_at: datetime
    expected: tuple[str, ...]
    action: str = "drop"


@dataclass(frozen=True, kw_only=True)
class Count:
    """How much of one table or topic went, what was spared of it, what figures were made of it."""

    table: str
    n_partitions: int
    n_rows: int
    n_held: int = 0
    n_restricted: int = 0
    n_figures: int = 0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one service did about an order. Natural key: (`order_id`, `service`)."""

    order_id: UUID
    service: str
    kind: str
    counts: tuple[Count, ...]
    done_at: datetime


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """An answer that two persons no longer wait for; it is not given by that."""

    holder: str
    reason: str
    proposed_by: str
    confirmed_by: str
    confirmed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An order as it stands."""

    order: Order
    receipts: tuple[Receipt, ...]
    completed_at: datetime | None
    waived: tuple[Waiver, ...] = ()

    @property
    def settled(self) -> set[str]:
        """Who has answered, or need not any more."""
        return {r.service for r in self.receipts} | {w.holder for w in self.waived}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep with its orders as they stand."""

    sweep_id: UUID
    as_of: datetime
    swept_at: datetime
    schedule_version: str
    orders: tuple[Standing, ...]


class Refusal(StrEnum):
    """Why a sweep is not made."""

    AS_OF_IN_THE_FUTURE = "as_of_in_the_future"
    AS_OF_WITHOUT_OFFSET = "as_of_without_offset"


def refuse_as_of(as_of: datetime, *, now: datetime, simulation: bool) -> Refusal | None:
    """Say why a sweep as of an instant must not be made; None where it may.

    What is not due yet is somebody's data: only a stack marked as a simulation may look ahead.
    """
    if as_of.tzinfo is None:
        return Refusal.AS_OF_WITHOUT_OFFSET
    if as_of > now + AHEAD_MAX and not simulation:
        return Refusal.AS_OF_IN_THE_FUTURE
    return None


def answerers(services: Collection[str], *, as_of: datetime, now: datetime) -> tuple[str, ...]:
    """Return who has to answer an order; one that looks ahead empties the topics as well."""
    assert services
    looks_ahead = as_of > now + AHEAD_MAX
    return (*sorted(services), *((KAFKA,) if looks_ahead else ()))


class Answer(StrEnum):
    """What a receipt is to its order."""

    NEW = "new"
    REPEATED = "repeated"
    ORDER_UNKNOWN = "order_unknown"
    SERVICE_UNEXPECTED = "service_unexpected"
    KIND_DIFFERS = "kind_differs"
    DONE_AGAIN = "done_again"
    """Carried out once more, by a service whose database was restored: the first receipt stands."""


def judge(order: Order | None, receipt: Receipt, earlier: Receipt | None) -> Answer:
    """Say what a receipt is."""
    if order is None:
        return Answer.ORDER_UNKNOWN
    assert order.order_id == receipt.order_id
    if receipt.service not in order.expected:
        return Answer.SERVICE_UNEXPECTED
    if receipt.kind != order.kind:
        return Answer.KIND_DIFFERS
    if earlier is None:
        return Answer.NEW
    return Answer.REPEATED if earlier == receipt else Answer.DONE_AGAIN


def silent(order: Order, answered: Collection[str]) -> tuple[str, ...]:
    """Return who has not answered yet; an order is complete when nobody is silent (D3)."""
    return tuple(service for service in order.expected if service not in answered)


def is_overdue(order: Order, answered: Collection[str], *, now: datetime) -> bool:
    """Whether somebody has been silent for longer than the set time."""
    return bool(silent(order, answered)) and now > order.overdue_at


def is_complete(sweep: Sweep) -> bool:
    """Whether every order of a sweep has all of its answers (D3)."""
    return all(standing.completed_at is not None for standing in sweep.orders)
