"""No line of a local log gets too old, whoever writes, sleeps or was down (R-D5)."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.errors import StackError
from deploy.local.log_files import LIMITS, LogLimits, keep_short, rotate, tidy
from deploy.local.stack import LocalStack
from tests.support.eventually import eventually

DAY_S = 24 * 3600.0
SHORT = LogLimits(span_max_s=0.5, age_max_s=2.0, every_s=0.05)
SLACK_S = 1.5
"""For a machine that is busy; what nobody looks after grows older than this at once."""
WRITER = """
import sys, time
with open(sys.argv[1], "ab", buffering=0) as log:
    while True:
        log.write(f"{time.time()}\\n".encode())
        time.sleep(0.02)
"""


def begun_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.begun")


def ago(path: Path, age_s: float) -> None:
    path.touch()
    at_s = time.time() - age_s
    os.utime(path, (at_s, at_s))


def test_a_long_log_is_moved_aside_and_the_writer_goes_on(tmp_path: Path) -> None:
    path, limits = tmp_path / "kafka.log", LogLimits(bytes_max=100)
    with path.open("ab", buffering=0) as writer:
        for number in range(limits.files_max + 2):
            writer.write(f"round {number} {'x' * 100}\n".encode())
            assert rotate(path, limits)
        writer.write(b"the end\n")
    assert path.read_bytes() == b"the end\n"
    kept = sorted(tmp_path.glob("kafka.log.*"))
    assert [file.name for file in kept] == [
        f"kafka.log.{number}" for number in range(1, limits.files_max + 1)
    ]
    assert kept[0].read_text(encoding="ascii").startswith(f"round {limits.files_max + 1} ")
    assert not rotate(path, limits)


def test_a_log_goes_by_the_age_of_its_first_line(tmp_path: Path) -> None:
    """R-D5: quiet or not, each line is gone before it is 7 x 24 h old, whoever restarts what."""
    path = tmp_path / "ad_ledger.log"
    path.write_text("first\n", encoding="ascii")
    tidy(tmp_path)
    ago(begun_of(path), LIMITS.span_max_s - 60)
    tidy(tmp_path)
    assert path.read_text("ascii") == "first\n"
    ago(begun_of(path), LIMITS.span_max_s + 60)
    tidy(tmp_path)
    aside = path.with_suffix(".log.1")
    assert (path.read_text("ascii"), aside.read_text("ascii")) == ("", "first\n")
    # from its first line on: not from its last one, nor from when it was moved
    assert time.time() - aside.stat().st_mtime == pytest.approx(LIMITS.span_max_s + 60, abs=30)
    # what is empty does not age: the next line begins anew
    ago(begun_of(path), LIMITS.span_max_s + 60)
    tidy(tmp_path)
    path.write_text("second\n", encoding="ascii")
    ago(aside, LIMITS.age_max_s - 60)
    tidy(tmp_path)
    assert aside.exists()
    ago(aside, LIMITS.age_max_s + 60)
    tidy(tmp_path)
    assert not aside.exists()
    assert path.read_text("ascii") == "second\n"
    assert LIMITS.age_max_s + LIMITS.every_s < 7 * DAY_S - 3600
    assert LIMITS.span_max_s < LIMITS.age_max_s


def test_lines_after_a_long_sleep_do_not_make_the_old_ones_young(tmp_path: Path) -> None:
    """R-D5: a machine slept for three days and wrote a line before anybody looked."""
    path = tmp_path / "gateway.log"
    path.write_text("before\nafter\n", encoding="ascii")
    ago(begun_of(path), 3 * DAY_S)
    tidy(tmp_path)
    aside = path.with_suffix(".log.1")
    assert time.time() - aside.stat().st_mtime == pytest.approx(3 * DAY_S, abs=30)
    # after one of seven days there is nothing left to keep
    path.write_text("again\n", encoding="ascii")
    ago(begun_of(path), 7 * DAY_S)
    tidy(tmp_path)
    assert path.read_text("ascii") == ""
    assert aside.read_text("ascii") == "before\nafter\n"


def test_a_file_that_cannot_be_moved_keeps_no_other_from_it(tmp_path: Path) -> None:
    """R-D5: and what a killed copy left behind goes."""
    (tmp_path / "a.log").mkdir()
    ago(begun_of(tmp_path / "a.log"), 2 * DAY_S)
    (tmp_path / ".b.log.copy").write_text("half", encoding="ascii")
    path = tmp_path / "b.log"
    path.write_text("first\n", encoding="ascii")
    ago(begun_of(path), 2 * DAY_S)
    ago(tmp_path / "c.log.2", 7 * DAY_S)
    tidy(tmp_path)
    assert path.with_suffix(".log.1").exists()
    assert not (tmp_path / "c.log.2").exists()
    assert not (tmp_path / ".b.log.copy").exists()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let a process write the time into a log, fifty lines a second."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) as writer:
        try:
            yield
        finally:
            writer.kill()


def ages_s(folder: Path) -> list[float]:
    """Return how old each line of each file is, those of hidden files too."""
    found: list[float] = []
    for path in folder.iterdir():
        # it may go while it is looked at
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_bytes().split(b"\n")[:-1]
            found += [time.time() - float(line) for line in lines]
    return found


async def test_the_loop_keeps_all_lines_young_and_ends_with_none(tmp_path: Path) -> None:
    """R-D5: for real, with a shorter age; once the writer is quiet its last lines go as well."""
    path, oldest_s = tmp_path / "call_control.log", 0.0
    names: set[str] = set()
    loop = asyncio.create_task(keep_short(tmp_path, SHORT))
    try:
        with writing(path):
            until_s = time.monotonic() + 3 * SHORT.age_max_s
            while time.monotonic() < until_s:
                await asyncio.sleep(0.05)
                oldest_s = max([oldest_s, *await asyncio.to_thread(ages_s, tmp_path)])
                names |= set(await asyncio.to_thread(os.listdir, tmp_path))

        async def is_nothing_left() -> bool:
            return not ages_s(tmp_path)

        await eventually(is_nothing_left, within_s=SHORT.age_max_s + 2 * SLACK_S)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    # it had something to do: lines were kept beyond one file, and no longer than they may be
    assert names >= {"call_control.log.1", "call_control.log.2"}
    assert SHORT.span_max_s < oldest_s < SHORT.age_max_s + SLACK_S


async def test_a_start_removes_old_logs_before_anything_else(tmp_path: Path) -> None:
    """R-D5: a stack was down for nine days; nothing of it starts, and the logs are gone already."""
    stack = LocalStack(tmp_path / "stack", services=[], ports={"postgres": 70_000})
    stack.layout.prepare()
    logs = stack.layout.logs
    old = ("gateway.log", "supervisor.log", "gateway.log.1")
    for name in old:
        (logs / name).write_text("of before\n", encoding="ascii")
        ago(logs / name, 9 * DAY_S)
    ago(begun_of(logs / "gateway.log"), 9.5 * DAY_S)
    # the day it went down: too old to go on with, too young to go
    (logs / "consent.log").write_text("of late\n", encoding="ascii")
    ago(begun_of(logs / "consent.log"), 3 * DAY_S)
    with pytest.raises(StackError):
        await stack.start()
    left = {
        path.name: path.read_text("ascii") for path in logs.glob("[!.]*") if path.stat().st_size
    }
    assert left == {"consent.log.1": "of late\n"}
