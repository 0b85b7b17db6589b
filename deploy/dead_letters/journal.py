"""The log of every use, and the memory of what is done: JSON lines in the stack's folder.

Only appended to. It names people of ours (who asked and why) and places of records, never what is
in them. A letter is known by its place *and* the broker's instant: a topic that was made anew
begins with the same offsets.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from deploy.dead_letters.letter import DeadLetterError, Letter

NAME = "dead-letters.jsonl"
_AUTHOR = re.compile(r"[a-z][a-z0-9._-]{1,62}")
_WHY_CHARACTERS_MIN, _WHY_CHARACTERS_MAX = 3, 200
_DATE = re.compile(r"\b\d{4}-\d\d-\d\d\b")
_PERSONAL = re.compile(
    r"@"
    r"|\d(?:[ ./()-]{0,2}\d){6,}"  # a telephone number, an IPv4 address
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-"  # a pseudonym
    r"|[0-9a-f]{1,4}(?::[0-9a-f]{0,4}){3,}",  # an IPv6 address
    re.IGNORECASE,
)


class Action(StrEnum):
    """What a person may do."""

    LIST = "list"
    SHOW = "show"
    REPLAY = "replay"
    DISCARD = "discard"


class Outcome(StrEnum):
    """How far it came. `BEGUN` without `DONE`: nobody knows whether the record was sent."""

    ASKED = "asked"
    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Use:
    """Who does what, and why; checked so that the log itself holds nobody's data."""

    author: str
    why: str
    action: Action

    def __post_init__(self) -> None:
        if not _AUTHOR.fullmatch(self.author):
            raise DeadLetterError(
                "--author is an account name: small letters, digits, dot, dash; no address."
            )
        if not (
            _WHY_CHARACTERS_MIN <= len(self.why) <= _WHY_CHARACTERS_MAX and self.why.isprintable()
        ):
            raise DeadLetterError(
                f"--why is one line of {_WHY_CHARACTERS_MIN} to {_WHY_CHARACTERS_MAX} characters."
            )
        if _PERSONAL.search(_DATE.sub("", self.why)):
            raise DeadLetterError(
                "--why looks as if it held a number, an address or an id of a person: the log is"
                " kept, so name the case (an issue) instead."
            )


Identity = tuple[str, int, int, int]
"""Full topic name, partition, offset, the broker's instant in milliseconds."""


class Journal:
    """The log of one stack."""

    def __init__(self, folder: Path, prefix: str) -> None:
        """Take the stack's folder and what stands before its topics' names."""
        self.path = folder.absolute() / NAME
        self._prefix = prefix

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from replaying or discarding at the same time.

        Raises:
            DeadLetterError: somebody is at it.
        """
        descriptor = self._open()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeadLetterError(
                    "Somebody else replays or discards at this moment: try again in a minute."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def note(
        self,
        use: Use,
        outcome: Outcome,
        at: datetime,
        *,
        letter: Letter | None = None,
        detail: str = "",
    ) -> None:
        """Append one line and return when it is on disk.

        Args:
            detail: closed words of ours: what was asked for, why it failed.
        """
        entry: dict[str, object] = {
            "at": at.isoformat(),
            "author": use.author,
            "why": use.why,
            "action": use.action.value,
            "outcome": outcome.value,
        }
        if detail:
            entry["detail"] = detail
        if letter is not None:
            topic, partition, offset, written_at_ms = self.identity(letter)
            entry |= {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "written_at_ms": written_at_ms,
                "reason": letter.reason,
            }
        self._append(json.dumps(entry, ensure_ascii=False).encode() + b"\n")

    def settled(self) -> dict[Identity, str]:
        """Return how each letter that is no longer open was closed, in words."""
        found: dict[Identity, str] = {}
        for number, entry in self._entries():
            if entry.get("outcome") != Outcome.DONE or "offset" not in entry:
                continue
            try:
                action = Action(str(entry["action"]))
                if action in (Action.REPLAY, Action.DISCARD):
                    words = f"{action.value} by {entry['author']} at {entry['at']}"
                    found[_identity_of(entry)] = words
            except (KeyError, TypeError, ValueError):
                raise self._damaged(number) from None
        return found

    def unconfirmed(self) -> set[Identity]:
        """Return letters whose replay began and was neither confirmed nor refused."""
        begun: set[Identity] = set()
        for number, entry in self._entries():
            try:
                match entry.get("outcome"):
                    case Outcome.BEGUN:
                        begun.add(_identity_of(entry))
                    case Outcome.DONE | Outcome.FAILED if "offset" in entry:
                        begun.discard(_identity_of(entry))
                    case _:
                        pass
            except (KeyError, TypeError, ValueError):
                raise self._damaged(number) from None
        return begun

    def identity(self, letter: Letter) -> Identity:
        """Return what a letter is known by."""
        record = letter.record
        written_at_ms = round(record.written_at.timestamp() * 1000)
        return self._prefix + record.topic.name, record.partition, record.offset, written_at_ms

    def _entries(self) -> Iterator[tuple[int, dict[str, object]]]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                raise self._damaged(number) from None
            if not isinstance(entry, dict):
                raise self._damaged(number)
            yield number, entry

    def _damaged(self, number: int) -> DeadLetterError:
        return DeadLetterError(
            f"{self.path} is damaged in line {number}: mend that line; without it nobody knows"
            " what was replayed."
        )

    def _append(self, line: bytes) -> None:
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) != len(line):
                os.ftruncate(descriptor, size)
                raise DeadLetterError(f"{self.path} cannot be written: the disk is full.")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise DeadLetterError(
                f"{self.path} cannot be written ({error.strerror}): no use without its log."
            ) from error


def _identity_of(entry: dict[str, object]) -> Identity:
    numbers = entry["partition"], entry["offset"], entry["written_at_ms"]
    partition, offset, written_at_ms = (int(str(number)) for number in numbers)
    return str(entry["topic"]), partition, offset, written_at_ms
