"""Anchors and public keys as commands print them, to be kept where no database owner writes."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from services.privacy import chain
from services.privacy.chain import Anchor, SigningKeys


def as_lines(anchors: Iterable[Anchor]) -> str:
    """Return anchors as JSON lines."""
    return "".join(f"{chain.anchor_text(one)}\n" for one in anchors)


def keys_as_text(keys: SigningKeys) -> str:
    """Return the public keys by which anchors verify, as JSON."""
    return json.dumps(keys.public(), indent=2) + "\n"


def read(path: Path, names: Collection[str]) -> list[Anchor]:
    """Read anchors that were kept elsewhere.

    Args:
        names: of the chains that there are.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no anchor of ours, or there is none; the text names the line.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            one = chain.read_anchor(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if one.chain not in names:
            raise ValueError(f"line {number}: there is no such chain")
        found.append(one)
    if not found:
        # what compares nothing must not say "intact"
        raise ValueError("the file has no anchor")
    return found
