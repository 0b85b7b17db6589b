"""Which process is meant, and that it dies with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity
from deploy.local.process import (
    LAUNCH,
    ManagedProcess,
    ProcessSpecification,
    back_off_s,
    run_once,
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
