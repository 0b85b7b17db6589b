"""What was proved: JSON for programs, a page of text for a data-protection officer."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from deploy.demo.deletion import Deleted
from deploy.proof.scan import Find, Scan

KEPT_IN = ("postgres data", "postgres write-ahead log")
"""Where what a hold names may be: the database, and its log."""
LANGUAGES = ("de", "en")


@dataclass(frozen=True, kw_only=True)
class Look:
    """One search through everything.

    Attributes:
        gone: labels of canaries that no hold names.
        held: labels of canaries that the hold names.
    """

    when: str
    scan: Scan
    gone: Sequence[str]
    held: Sequence[str]

    @property
    def finds_of_gone(self) -> list[Find]:
        """What was found of those whom no hold names."""
        return [find for find in self.scan.finds if find.label in self.gone]

    @property
    def finds_of_held(self) -> list[Find]:
        """What was found of those whom the hold names."""
        return [find for find in self.scan.finds if find.label in self.held]

    def missing(self, labels: Iterable[str]) -> list[str]:
        """Return the canaries that were found nowhere."""
        found = {find.label for find in self.scan.finds}
        return [label for label in labels if label not in found]


@dataclass(kw_only=True)
class Proof:
    """The proof as it comes about; no value of a canary stands in it."""

    say: Callable[[str], None]
    canaries: Sequence[str] = ()
    before: Look | None = None
    after: Look | None = None
    released: Look | None = None
    receipts: list[Deleted] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    is_played: bool = False
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def judge(self) -> list[str]:
        """Return in words what does not hold; empty = the deletion is proved."""
        if not self.is_played:
            return [*self.problems, "the proof was not played to its end"]
        assert self.before is not None
        assert self.after is not None
        assert self.released is not None
        return [
            *self.problems,
            *(
                f"{label} was not found before the deadline: the search shows nothing"
                for label in self.before.missing(self.canaries)
            ),
            *(f"after the deadline: {_words(find)}" for find in self.after.finds_of_gone),
            *(
                f"the hold does not keep {label}"
                for label in self.after.missing(self.after.held)
                if not label.endswith(("ticket id", "trace id"))
            ),
            *(
                f"of a held person, outside the database: {_words(find)}"
                for find in self.after.finds_of_held
                if find.place not in KEPT_IN
            ),
            *(f"after the release: {_words(find)}" for find in self.released.scan.finds),
        ]

    def document(self) -> dict[str, Any]:
        """Return the report for programs."""
        wrong = self.judge()
        return {
            "name": "prove-deletion",
            "made_at": self.made_at.isoformat(),
            "is_proved": not wrong,
            "wrong": wrong,
            "canaries": list(self.canaries),
            "looks": [
                {
                    "when": look.when,
                    "n_files": look.scan.n_files,
                    "n_bytes": look.scan.n_bytes,
                    "n_patterns": look.scan.n_patterns,
                    "finds": [asdict(find) for find in look.scan.finds],
                }
                for look in (self.before, self.after, self.released)
                if look is not None
            ],
            "receipts": [asdict(line) for line in self.receipts],
        }

    def page(self, language: str) -> str:
        """Return the page of text, German (`de`) or English (`en`)."""
        assert language in LANGUAGES
        return "\n".join(_page(self, _TEXTS[language]))


def _words(find: Find) -> str:
    return f"{find.label} is in {find.n_files} file(s) of {find.place}, as {find.form}"


_TEXTS: Mapping[str, Mapping[str, str]] = {
    "de": {
        "title": "Löschnachweis",
        "made": "Erstellt",
        "proved": "Ergebnis: Die Löschung ist nachgewiesen.",
        "not_proved": "Ergebnis: NICHT nachgewiesen.",
        "put_in": "Eingebracht wurden (Werte stehen in keinem Bericht):",
        "before": "Vor Ablauf der Frist wurde gefunden (die Suche sieht also etwas):",
        "after": "Nach Ablauf der Frist (alles ohne gesetzlichen Grund ist gelöscht):",
        "held": "Unter der Sperre wegen eines Strafverfahrens blieb erhalten:",
        "released": "Nach Aufhebung der Sperre:",
        "nothing": "nichts",
        "searched": "durchsucht: {n_files} Dateien, {mib} MiB, {n_patterns} Suchmuster",
        "receipts": "Quittungen der Dienste (nur Anzahlen):",
        "receipt": "{service} / {table}: {n_rows} Zeilen, {n_partitions} Partitionen ({rule})",
        "wrong": "Beanstandungen:",
        "forms": (
            "Gesucht wurde in UTF-8, UTF-16, hexadezimal, Base64 (drei Lagen, zwei Alphabete), "
            "BCD und TBCD, rückwärts und in den Binärformen der Datenbank, in allen Dateien der "
            "Datenbank mit Schreibprotokoll, von Kafka, allen Protokollen und Kennzahlen."
        ),
    },
    "en": {
        "title": "Proof of deletion",
        "made": "Made",
        "proved": "Result: the deletion is proved.",
        "not_proved": "Result: NOT proved.",
        "put_in": "Put in (no report holds a value):",
        "before": "Before the deadline this was found (so the search sees something):",
        "after": "After the deadline (all without a legal ground is deleted):",
        "held": "Under the hold for a criminal complaint this was kept:",
        "released": "After the release of the hold:",
        "nothing": "nothing",
        "searched": "searched: {n_files} files, {mib} MiB, {n_patterns} patterns",
        "receipts": "Receipts of the services (counts only):",
        "receipt": "{service} / {table}: {n_rows} rows, {n_partitions} partitions ({rule})",
        "wrong": "Objections:",
        "forms": (
            "Looked for in UTF-8, UTF-16, hexadecimal, base64 (three alignments, two alphabets), "
            "BCD and TBCD, reversed, and in the database's binary forms, in all files of the "
            "database with its write-ahead log, of Kafka, all logs and metrics."
        ),
    },
}


def _page(proof: Proof, words: Mapping[str, str]) -> list[str]:
    wrong = proof.judge()
    lines = [
        words["title"],
        "=" * len(words["title"]),
        f"{words['made']}: {proof.made_at:%Y-%m-%d %H:%M} UTC",
        words["not_proved"] if wrong else words["proved"],
        "",
        words["put_in"],
        *(f"  - {label}" for label in proof.canaries),
        "",
        words["forms"],
        "",
    ]
    if proof.before is not None:
        lines += [*_part(words, "before", proof.before, proof.before.scan.finds), ""]
    if proof.after is not None:
        lines += [
            *_part(words, "after", proof.after, proof.after.finds_of_gone),
            *_part(words, "held", proof.after, proof.after.finds_of_held)[:-1],
            "",
        ]
    if proof.released is not None:
        lines += [*_part(words, "released", proof.released, proof.released.scan.finds), ""]
    lines += [words["receipts"], *_receipts(words, proof.receipts)]
    if wrong:
        lines += ["", words["wrong"], *(f"  - {text}" for text in wrong)]
    return [*lines, ""]


def _part(words: Mapping[str, str], heading: str, look: Look, finds: Sequence[Find]) -> list[str]:
    by_place: dict[str, set[str]] = defaultdict(set)
    for find in finds:
        by_place[find.place].add(find.label)
    searched = words["searched"].format(
        n_files=look.scan.n_files,
        mib=look.scan.n_bytes // 2**20,
        n_patterns=look.scan.n_patterns,
    )
    return [
        words[heading],
        *(f"  - {place}: {', '.join(sorted(by_place[place]))}" for place in sorted(by_place)),
        *([] if finds else [f"  - {words['nothing']}"]),
        f"  ({searched})",
    ]


def _receipts(words: Mapping[str, str], receipts: Sequence[Deleted]) -> list[str]:
    return [f"  - {words['receipt'].format(**asdict(line))}" for line in receipts if line.n_rows]
