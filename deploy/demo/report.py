"""What came out, as data: `report.json`, the verdict and the exit status follow from it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.deletion import Deleted, Standing
from deploy.demo.evidence import Chain
from deploy.demo.invariants import Answer
from deploy.demo.search import Find
from deploy.demo.tables import FIGURES
from deploy.demo.view import Step
from services.retention.domain import KAFKA


@dataclass
class Report:
    """Filled as the story goes on; what never happened stays empty, and is no success.

    Attributes:
        is_played: the story came to its end, and can be judged.
        problems: sentences: steps that failed and figures that do not fit together.
    """

    n_visitors: int
    is_played: bool = False
    chains: Sequence[Chain] = ()
    deleted: Sequence[Deleted] = ()
    found_before: Sequence[Find] = ()
    left_over: Sequence[Find] | None = None
    left_on_disk: Sequence[Find] = ()
    standing: Sequence[Standing] = ()
    invariants: Sequence[Answer] = ()
    problems: list[str] = field(default_factory=list)
    steps: Sequence[Step] = ()
    wall_s: float = 0.0

    def judge(self) -> None:
        """Add to the problems what the figures say."""
        for chain in self.chains:
            self.problems += chain.gaps()
        if len(self.chains) != self.n_visitors:
            missing = self.n_visitors - len(self.chains)
            self.problems.append(f"{missing} of {self.n_visitors} visitors have no evidence")
        if len({chain.credited_ms for chain in self.chains}) > 1:
            self.problems.append("the same ad earned different credit (R-F5)")
        self.problems += [
            f"invariant {answer.service}.{answer.name} is violated or not exported"
            for answer in self.invariants
            if not answer.holds
        ]
        if not self.invariants:
            self.problems.append("the invariants were not asked")
        self.problems += self._about_deletion()

    def _about_deletion(self) -> list[str]:
        if self.left_over is None:
            return ["nobody looked for what is left over"]
        found = [*self.left_over, *self.left_on_disk]
        left = [f"left over: {find.what} in {find.place}" for find in found]
        left += [
            f"left over: {line.n_rows} rows of {line.service}.{line.table} without a rule"
            for line in self.standing
            if not line.rule
        ]
        return left + self._about_receipts() + self._about_search()

    def _about_receipts(self) -> list[str]:
        """Say which receipts count other rows than the evidence showed."""
        expected = {
            "ad_view": sum(len(chain.events) for chain in self.chains),
            "reservation": len(self.chains),
            "call": len(self.chains),
            "call_leg": sum(len(chain.legs) for chain in self.chains),
            "consent_subject": len(self.chains),
        }
        counted = {
            table: sum(
                # a topic may be called like a table
                line.n_rows
                for line in self.deleted
                if line.table == table and line.service != KAFKA
            )
            for table in expected
        }
        return [
            f"the receipts count {counted[table]} rows of {table}, the evidence {n}"
            for table, n in expected.items()
            if counted[table] != n
        ]

    def _about_search(self) -> list[str]:
        """Say what the search did not even find before the deletion: then it proves nothing."""
        sought = {"visitor id", "ticket id", "call id", "trace id", "view ticket", "address"}
        sought |= {"callback number", "destination number"}
        places = {"tables", "topics", "files"}
        found = {find.what for find in self.found_before}
        found_at = {find.place.split()[0] for find in self.found_before}
        return [
            *(f"the search could not find a {what} before" for what in sorted(sought - found)),
            *(f"the search found nothing in {p} before" for p in sorted(places - found_at)),
        ]

    @property
    def is_good(self) -> bool:
        """Whether everything came true."""
        return self.is_played and not self.problems

    def as_data(self) -> dict[str, Any]:
        """Return the report; durations in the unit of each name, no id and no number in it."""
        return {
            "is_good": self.is_good,
            "problems": self.problems,
            "visitors": self.n_visitors,
            **_totals(self.chains),
            "legs": _legs(self.chains),
            "per_visitor": [
                {"visitor": chain.visit.person.number, **_totals([chain]), "legs": _legs([chain])}
                for chain in self.chains
            ],
            "deleted": _deleted(self.deleted),
            "left_over": None if self.left_over is None else [asdict(f) for f in self.left_over],
            "left_on_disk": [asdict(find) for find in self.left_on_disk],
            "found_before": [asdict(find) for find in self.found_before],
            "standing": [asdict(line) for line in self.standing],
            "invariants": {
                f"{a.service}.{a.name}": {"by_sql": a.by_sql, "by_metric": a.by_metric}
                for a in self.invariants
            },
            "steps": [
                {"title": step.title, "state": step.state, "seconds": round(step.seconds, 2)}
                for step in self.steps
            ],
            "wall_s": round(self.wall_s, 2),
        }

    def write(self, path: Path) -> None:
        """Write the report, whole or not at all."""
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(self.as_data(), indent=2) + "\n", encoding="utf-8")
        scratch.replace(path)


def _totals(chains: Sequence[Chain]) -> dict[str, int]:
    return {name: sum(getattr(chain, name) for chain in chains) for name in FIGURES}


def _legs(chains: Iterable[Chain]) -> list[dict[str, Any]]:
    return [
        {"visitor": chain.visit.person.number, **asdict(leg)}
        for chain in chains
        for leg in chain.legs
    ]


def _deleted(lines: Sequence[Deleted]) -> dict[str, Any]:
    """Return what went by kind of data; a topic that carries two kinds counts in both."""
    kinds: dict[str, Any] = {}
    for line in lines:
        kind = kinds.setdefault(line.kind, {"n_partitions": 0, "n_rows": 0, "tables": {}})
        kind["n_partitions"] += line.n_partitions
        kind["n_rows"] += line.n_rows
        if line.n_rows:
            kind["tables"][f"{line.service}.{line.table}"] = line.n_rows
    return kinds
