"""What goes wrong when: pure, and the same for the same seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Deed(StrEnum):
    """What is done to a process."""

    KILL = "kill"
    """kill -9; the supervisor starts it again."""
    FREEZE = "freeze"
    """SIGSTOP for longer than the session timeout, then SIGCONT: a zombie comes back."""
    RESTART = "restart"
    """PostgreSQL's fast shutdown: sessions are ended, open transactions rolled back."""
    CRASH = "crash"
    """PostgreSQL's immediate shutdown: recovery from its log at the next start."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        at_s: after the first visitor came.
        lasts_s: of a freeze; 0 otherwise.
    """

    at_s: float
    deed: Deed
    target: str
    lasts_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, wholly determined by its numbers.

    Attributes:
        gap_s: from one fault to the next, on average.
    """

    seed: int
    n_visitors: int
    at_once: int
    n_faults: int
    gap_s: float
    kafka_nodes: int
    faults: tuple[Fault, ...]

    @property
    def arrive_within_s(self) -> float:
        """How long a visitor takes to come: somebody is to be there when the last fault happens."""
        if self.n_visitors > self.at_once:
            return ARRIVE_S  # they queue for places: there are some at all times
        return max(ARRIVE_S, max((fault.at_s for fault in self.faults), default=0.0) - ARRIVE_S)


ARRIVE_S = 2.0
FREEZE_S = (7.0, 11.0)
"""The session timeout of a run is 6 s."""
FIRST_S = 4.0


def targets(services: Sequence[str], brokers: Sequence[str]) -> list[tuple[Deed, str, int]]:
    """Return what may happen, and how often in proportion."""
    return [
        *((Deed.KILL, name, 4) for name in services),
        *((Deed.FREEZE, name, 2) for name in services if name != "gateway"),
        *((Deed.KILL, name, 2) for name in brokers),
        *((Deed.FREEZE, name, 1) for name in brokers),
        (Deed.RESTART, "postgres", 3),
        (Deed.CRASH, "postgres", 2),
    ]


def make_plan(
    *,
    seed: int,
    n_visitors: int,
    at_once: int,
    n_faults: int,
    gap_s: float,
    kafka_nodes: int,
    services: Sequence[str],
    brokers: Sequence[str],
) -> Plan:
    """Return the plan of a seed.

    Args:
        services: names of processes, second instances included.
    """
    chance = random.Random(seed)
    kinds = targets(services, brokers)
    weights = [weight for *_, weight in kinds]
    faults, at_s = [], FIRST_S
    for _ in range(n_faults):
        deed, target, _ = chance.choices(kinds, weights)[0]
        lasts_s = round(chance.uniform(*FREEZE_S), 1) if deed is Deed.FREEZE else 0.0
        faults.append(Fault(at_s=round(at_s, 2), deed=deed, target=target, lasts_s=lasts_s))
        at_s += chance.uniform(0.5, 1.5) * gap_s
    return Plan(
        seed=seed,
        n_visitors=n_visitors,
        at_once=at_once,
        n_faults=n_faults,
        gap_s=gap_s,
        kafka_nodes=kafka_nodes,
        faults=tuple(faults),
    )
