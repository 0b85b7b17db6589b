"""Looks through every file of a stack, and through what its services export."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from deploy.local.stack import LocalStack
from deploy.proof.forms import Canary, patterns

CHUNK_BYTES = 32 * 1024 * 1024
_KAFKA_INDEXES = frozenset({".index", ".timeindex"})
"""Offsets and instants only, and made at their full size: a hundred megabytes of zeros."""


@dataclass(frozen=True, kw_only=True)
class Find:
    """A canary in a place, in a form; `n_files` = in how many files of the place."""

    place: str
    label: str
    form: str
    n_files: int


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a search has looked through, and what it found."""

    n_files: int
    n_bytes: int
    n_patterns: int
    finds: Sequence[Find]

    def of(self, label: str) -> list[Find]:
        """Return where a canary was found."""
        return [find for find in self.finds if find.label == label]


Pattern = tuple[bytes, str, str]
"""Bytes, the canary's label, the form."""


def compiled(canaries: Iterable[Canary]) -> list[Pattern]:
    """Return all patterns of canaries."""
    return [
        (pattern, canary.label, form)
        for canary in canaries
        for pattern, form in patterns(canary).items()
    ]


def look_through(chunks: Iterable[bytes], wanted: Sequence[Pattern]) -> set[tuple[str, str]]:
    """Return (label, form) of what stands in a file, also across two of its pieces."""
    overlap = max((len(pattern) for pattern, _, _ in wanted), default=1) - 1
    found: set[tuple[str, str]] = set()
    tail = b""
    for chunk in chunks:
        text = tail + chunk
        found |= {
            (label, form)
            for pattern, label, form in wanted
            if (label, form) not in found and pattern in text
        }
        tail = text[-overlap:] if overlap else b""
    return found


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every file below a stack's folder with its place: the part that it belongs to."""
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(root) / name
            if path.suffix not in _KAFKA_INDEXES and path.is_file() and not path.is_symlink():
                yield _place(path.relative_to(folder)), path


def _place(path: Path) -> str:
    """Return where a file belongs: PostgreSQL's log and pages apart, topics one by one."""
    parts = path.parts
    if parts[0] == "postgres":
        return "postgres write-ahead log" if "pg_wal" in parts else "postgres data"
    if parts[0].startswith("kafka") and len(parts) > 2:  # noqa: PLR2004 - <node>/data/<partition>
        return f"kafka {parts[2].rpartition('-')[0] or parts[2]}"
    return parts[0]


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:  # gone since it was listed
        return


def scan(folder: Path, canaries: Sequence[Canary], exports: Iterable[bytes] = ()) -> Scan:
    """Look for canaries in all forms in all files of a folder, and in what services export."""
    wanted = compiled(canaries)
    counts: Counter[tuple[str, str, str]] = Counter()
    n_files = n_bytes = 0
    for place, path in files(folder):
        size = path.stat().st_size if path.exists() else 0
        n_files, n_bytes = n_files + 1, n_bytes + size
        counts.update((place, *found) for found in look_through(_chunks(path), wanted))
    for export in exports:
        n_bytes += len(export)
        counts.update(("metrics", *found) for found in look_through([export], wanted))
    return Scan(
        n_files=n_files,
        n_bytes=n_bytes,
        n_patterns=len(wanted),
        finds=[
            Find(place=place, label=label, form=form, n_files=n)
            for (place, label, form), n in sorted(counts.items())
        ],
    )


async def exported(stack: LocalStack) -> list[bytes]:
    """Return the metrics of each service."""
    async with httpx.AsyncClient(trust_env=False) as http:
        return [
            (await http.get(f"{stack.admin_url(declared.name)}/metrics")).content
            for declared in stack.declarations
        ]
