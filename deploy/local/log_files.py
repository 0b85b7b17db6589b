"""How long the logs of a stack live: by size, and by the age of their first line (R-D5)."""

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LogLimits:
    """When a log file is moved aside, and when what was moved aside goes.

    Attributes:
        bytes_max: length of a file.
        files_max: how many that were moved aside are kept of one log.
        span_max_s: age of a file's first line; then a new file begins.
        age_max_s: age of the first line of what was moved aside. The oldest line counts: a machine
            that slept, or a stack that was down, may have written the next one days later.
        every_s: pause between two looks.
    """

    bytes_max: int = 10 * 1024 * 1024
    files_max: int = 3
    span_max_s: float = 24 * 3600.0
    age_max_s: float = 6 * 24 * 3600.0
    every_s: float = 5.0


LIMITS = LogLimits()


async def keep_short(folder: Path, limits: LogLimits = LIMITS) -> None:
    """Look after the logs of a folder for ever."""
    while True:
        await asyncio.to_thread(tidy, folder, limits)
        await asyncio.sleep(limits.every_s)


def tidy(folder: Path, limits: LogLimits = LIMITS) -> None:
    """Move aside what is long or old, then remove what has lived as long as a log may.

    A full disk, for one, keeps a file from being moved aside: the others are looked after still.
    """
    for path in sorted(folder.glob("*.log")):
        with contextlib.suppress(OSError):
            rotate(path, limits)
    for path in folder.glob("*.log.[1-9]"):
        with contextlib.suppress(OSError):
            if _age_s(path) > limits.age_max_s:
                path.unlink()
    for path in folder.glob(".*.log.copy"):
        # of somebody who was killed while copying
        path.unlink(missing_ok=True)


def rotate(path: Path, limits: LogLimits = LIMITS) -> bool:
    """Move a log file's content aside once it is too long, or its first line too old.

    Copied and cut, not renamed: the process keeps its descriptor (opened for appending). Lines
    written between the two steps are lost, which a local log can bear.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    begun = path.with_name(f".{path.name}.begun")
    if found.st_size == 0:
        # an empty file has no age
        begun.touch()
    elif not begun.exists():
        # nobody has looked yet; at a start it is what is left of a stack that ended in seconds
        begun.touch()
        os.utime(begun, (found.st_mtime, found.st_mtime))
    is_long = found.st_size > limits.bytes_max
    if found.st_size == 0 or not (is_long or _age_s(begun) > limits.span_max_s):
        return False
    if _age_s(begun) <= limits.age_max_s:
        _move_aside(path, begun, limits.files_max)
    # what is too old to be kept aside goes here, whether the disk has room for a copy or not
    os.truncate(path, 0)
    begun.touch()
    return True


def _move_aside(path: Path, begun: Path, files_max: int) -> None:
    copy = path.with_name(f".{path.name}.copy")
    try:
        shutil.copy2(path, copy)
        # as old as its first line
        first_s = begun.stat().st_mtime
        os.utime(copy, (first_s, first_s))
    except OSError:
        copy.unlink(missing_ok=True)
        raise
    for number in range(files_max - 1, 0, -1):
        older = path.with_suffix(f".log.{number}")
        if older.exists():
            older.replace(path.with_suffix(f".log.{number + 1}"))
    copy.replace(path.with_suffix(".log.1"))


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
