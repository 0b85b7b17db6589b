"""Which process is meant, how its log is kept short, and that it dies with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity
from deploy.local.process import (
    LAUNCH,
    LOG_AGE_MAX_S,
    LOG_FILES_MAX,
    LOG_SPAN_MAX_S,
    LOGS_TIDIED_EVERY_S,
    ManagedProcess,
    ProcessSpecification,
    back_off_s,
    keep_logs_tidy,
    remove_old_logs,
    rotate,
    run_once,
    tidy_logs,
)
from tests.support.eventually import eventually
from tests.support.stack import finish

PARENT_CODE = f"""
import os, subprocess, sys, time
code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
launched = [sys.executable, "-I", "-S", {str(LAUNCH)!r}, str(os.getpid()), "9", "-"]
subprocess.Popen([*launched, sys.executable, "-c", code])
time.sleep(60)
"""


async def always() -> bool:
    return True


def specification(folder: Path, code: str) -> ProcessSpecification:
    return ProcessSpecification(
        name="child",
        command=[sys.executable, "-u", "-c", code],
        environment={"PATH": os.defpath},
        folder=folder,
        probe=always,
        stop_timeout_s=0.5,
    )


def test_a_pid_that_was_given_to_another_process_is_not_signalled() -> None:
    own = ProcessIdentity.of(os.getpid())
    assert own is not None
    assert own.is_alive
    earlier = ProcessIdentity(own.pid, own.started_ticks - 1)
    assert not earlier.is_alive
    assert not earlier.send(signal.SIGKILL)


def test_a_process_that_has_ended_is_nobody() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    assert not identity.is_alive
    assert not identity.send(signal.SIGTERM)


def test_a_long_log_is_moved_aside_and_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "kafka.log"
    with path.open("ab", buffering=0) as writer:
        for number in range(LOG_FILES_MAX + 2):
            writer.write(f"round {number} {'x' * 100}\n".encode())
            assert rotate(path, bytes_max=100)
        writer.write(b"the end\n")
    assert path.read_bytes() == b"the end\n"
    kept = sorted(tmp_path.glob("kafka.log.*"))
    assert [file.name for file in kept] == [
        f"kafka.log.{number}" for number in range(1, LOG_FILES_MAX + 1)
    ]
    assert kept[0].read_text(encoding="ascii").startswith(f"round {LOG_FILES_MAX + 1} ")
    assert not rotate(path, bytes_max=100)


def test_a_log_goes_by_its_age(tmp_path: Path) -> None:
    """R-D5: quiet or not, each line is gone before it is 7 x 24 h old, whoever restarts what."""
    path, begun = tmp_path / "ad_ledger.log", tmp_path / ".ad_ledger.log.begun"
    now_s = time.time()

    def ago(file: Path, age_s: float) -> None:
        os.utime(file, (now_s - age_s, now_s - age_s))

    path.write_text("first\n", encoding="ascii")
    assert not rotate(path)
    ago(begun, LOG_SPAN_MAX_S - 60)
    assert not rotate(path)
    ago(begun, LOG_SPAN_MAX_S + 60)
    ago(path, 7200)
    assert rotate(path)
    aside = path.with_suffix(".log.1")
    assert (path.read_text("ascii"), aside.read_text("ascii")) == ("", "first\n")
    # from its first line on: a machine that slept may have written the last one days later
    assert now_s - aside.stat().st_mtime == pytest.approx(LOG_SPAN_MAX_S + 60, abs=30)
    # what is empty does not age: the next line begins anew
    ago(begun, LOG_SPAN_MAX_S + 60)
    assert not rotate(path)
    path.write_text("second\n", encoding="ascii")
    assert not rotate(path)
    ago(aside, LOG_AGE_MAX_S - 60)
    remove_old_logs(tmp_path)
    assert aside.exists()
    ago(aside, LOG_AGE_MAX_S + 60)
    remove_old_logs(tmp_path)
    assert not aside.exists()
    assert path.read_text("ascii") == "second\n"
    # what nobody has looked at is as old as it looks; what was noted is not forgotten
    begun.unlink()
    ago(path, LOG_AGE_MAX_S + 60)
    tidy_logs(tmp_path)
    assert [path.read_text("ascii"), aside.exists()] == ["", False]
    ago(begun, LOG_AGE_MAX_S + 60)
    remove_old_logs(tmp_path)
    assert begun.exists()
    assert LOG_SPAN_MAX_S < LOG_AGE_MAX_S
    assert LOG_AGE_MAX_S + LOGS_TIDIED_EVERY_S < 7 * 24 * 3600 - 3600


async def test_a_line_goes_while_its_process_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-D5: the loop for real, days shortened; one log that cannot be moved holds up no other."""
    for name, value in (("LOGS_TIDIED_EVERY_S", 0.02), ("LOG_SPAN_MAX_S", 0.2)):
        monkeypatch.setattr(f"deploy.local.process.{name}", value)
    monkeypatch.setattr("deploy.local.process.LOG_AGE_MAX_S", 0.5)
    said: list[str] = []
    stuck = tmp_path / "broken.log"
    stuck.write_text("stuck\n", encoding="ascii")
    late_s = time.time() + 3600
    stuck.with_suffix(".log.2").touch()
    obstacle = stuck.with_suffix(".log.3")
    obstacle.mkdir()
    for path in (stuck.with_suffix(".log.2"), obstacle):
        os.utime(path, (late_s, late_s))

    def lines() -> str:
        return "".join(f.read_text("ascii") for f in tmp_path.glob("*.log*") if f.is_file())

    async def first_is_gone() -> bool:
        writer.write(b"another\n")
        return "first" not in lines()

    async def nothing_is_stuck() -> bool:
        return "stuck" not in lines()

    tidying = asyncio.create_task(keep_logs_tidy(tmp_path, said.append))
    try:
        with (tmp_path / "gateway.log").open("ab", buffering=0) as writer:
            writer.write(b"first\n")
            await asyncio.sleep(0.1)
            assert "first" in lines()
            await eventually(first_is_gone, within_s=20)
            writer.write(b"last\n")
            assert "last" in lines()
        assert len(said) == 1, "said once, however often it fails"
        assert "broken.log" in said[0]
        obstacle.rmdir()
        await eventually(nothing_is_stuck, within_s=20)
    finally:
        tidying.cancel()


def test_a_child_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A parent is killed outright; the kernel ends the program that it launched."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_CODE], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = ProcessIdentity.of(int(parent.stdout.readline()))
        assert child is not None
        parent.kill()

    async def child_has_ended() -> bool:
        return not child.is_alive

    finish(eventually(child_has_ended, within_s=5))


async def test_a_process_that_ends_is_started_again_later_each_time(tmp_path: Path) -> None:
    process = ManagedProcess(
        specification(tmp_path, "print('here')"), tmp_path / "child.log", lambda: None
    )
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    await process.start()

    async def was_restarted_twice() -> bool:
        return process.n_restarts == 2

    await eventually(was_restarted_twice, within_s=10)
    # 0.5 s, then 1 s
    assert loop.time() - start_s >= 1.5
    await process.stop()
    assert not process.is_wanted


async def test_a_process_that_was_killed_by_order_comes_back_at_once(tmp_path: Path) -> None:
    """It did not fail; a pause would be the longest part of its absence."""
    process = ManagedProcess(
        specification(tmp_path, "print('up'); import time; time.sleep(60)"),
        tmp_path / "child.log",
        lambda: None,
    )
    await process.start()
    for number in range(1, 4):
        n_up = number

        async def is_up(n_up: int = n_up) -> bool:
            return process.log_path.read_bytes().count(b"up") == n_up

        await eventually(is_up, within_s=10)
        process.kill(signal.SIGKILL)

        async def has_ended(n_up: int = n_up) -> bool:
            return process.n_restarts == n_up

        await eventually(has_ended, within_s=10)
        assert process.n_failures == 0
    await process.stop()


@pytest.mark.parametrize(
    ("n_failures", "wait_s"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (900, 30.0)]
)
def test_the_pause_grows_with_failures_only(n_failures: int, wait_s: float) -> None:
    assert back_off_s(n_failures) == wait_s


async def test_a_process_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    process = ManagedProcess(specification(tmp_path, code), tmp_path / "child.log", lambda: None)
    await process.start()

    async def ignores_the_signal() -> bool:
        return b"deaf" in process.log_path.read_bytes()

    await eventually(ignores_the_signal, within_s=10)
    await process.stop()
    assert process.exit_code == -signal.SIGKILL
    assert process.n_restarts == 0


async def test_a_command_that_fails_is_told_with_its_last_lines(tmp_path: Path) -> None:
    code = "raise SystemExit('no such column')"
    with pytest.raises(StackError, match=r"(?s)child ended with 1.*no such column"):
        await run_once(specification(tmp_path, code), tmp_path / "child.log")


async def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="longer than 1 s"):
        await run_once(
            specification(tmp_path, "import time; time.sleep(60)"), tmp_path / "child.log", 1.0
        )
