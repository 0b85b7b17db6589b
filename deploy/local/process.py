"""One process of the stack: started through `launch.py`, watched, started again with back-off."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity

LAUNCH = Path(__file__).with_name("launch.py")
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_MAX = 3
LOG_SPAN_MAX_S = 24 * 3600.0
"""Age of a file's first line; then another one begins."""
LOG_AGE_MAX_S = 6 * 24 * 3600.0
"""Since the first line of a file: a day to spare, under 7 x 24 h (R-D5)."""
LOGS_TIDIED_EVERY_S = 5.0
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 30.0
HEALTHY_AFTER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ProcessSpecification:
    """What to run.

    Attributes:
        name: names the log file too.
        command: program and arguments; never a secret in it, everyone can read it.
        environment: the whole environment.
        folder: working directory.
        stop_signal: asks for a graceful end.
        death_signal: sent by the kernel when the supervisor dies.
        stop_timeout_s: after that it is killed.
        user: to become, when started by root.
        probe: whether it is ready; called again and again, must not raise.
        port: shown in the status.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    probe: Callable[[], Awaitable[bool]]
    port: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    stop_timeout_s: float = 15.0
    user: str | None = None


def launched(command: Sequence[str], death_signal: signal.Signals, user: str | None) -> list[str]:
    """Return the command that starts `command` bound to the life of this process."""
    return [
        *(sys.executable, "-I", "-S", str(LAUNCH)),
        *(str(os.getpid()), str(int(death_signal)), user or "-"),
        *command,
    ]


def log_tail(path: Path, n_lines: int = 15) -> str:
    """Return the last lines of a log file."""
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  | {line}" for line in lines[-n_lines:])
    return ""


def rotate(path: Path, bytes_max: int = LOG_BYTES_MAX) -> bool:
    """Move a log file's content aside once it is too long, or its first line a day old.

    Copied and cut, not renamed: the process keeps its descriptor (opened for appending). Lines
    written between the two steps are lost, which a local log can bear.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    begun = path.with_name(f".{path.name}.begun")
    if size == 0:
        # an empty file has no age
        begun.touch()
    elif not begun.exists():
        # nobody has looked at it yet, which happens every few seconds
        begun.touch()
        shutil.copystat(path, begun)
    if size == 0 or (size <= bytes_max and _age_s(begun) <= LOG_SPAN_MAX_S):
        return False
    for number in range(LOG_FILES_MAX - 1, 0, -1):
        older = path.with_suffix(f".log.{number}")
        if older.exists():
            older.replace(path.with_suffix(f".log.{number + 1}"))
    shutil.copy(path, path.with_suffix(".log.1"))
    # as old as its first line: a machine that slept may have written the last one days later
    shutil.copystat(begun, path.with_suffix(".log.1"))
    os.truncate(path, 0)
    begun.touch()
    return True


def remove_old_logs(folder: Path) -> None:
    """Remove what was moved aside and has lived as long as a log may (R-D5)."""
    for path in folder.glob("[!.]*.log.*"):
        with contextlib.suppress(FileNotFoundError):
            if _age_s(path) > LOG_AGE_MAX_S:
                path.unlink()


def tidy_logs(folder: Path) -> None:
    """Begin what is long or old anew, and remove what has lived as long as a log may.

    Raises:
        OSError: of one log; the others are tidied.
    """
    failed: OSError | None = None
    for path in folder.glob("*.log"):
        try:
            rotate(path)
        except OSError as error:
            failed = error
    remove_old_logs(folder)
    if failed is not None:
        raise failed


async def keep_logs_tidy(folder: Path, say: Callable[[str], None]) -> None:
    """Tidy for ever; say why not, where it cannot be done, and go on."""
    said = ""
    while True:
        await asyncio.sleep(LOGS_TIDIED_EVERY_S)
        try:
            await asyncio.to_thread(tidy_logs, folder)
        except OSError as error:
            if said != (said := f"logs stay longer than they may: {error}"):
                say(said)
        else:
            said = ""


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def back_off_s(n_failures: int) -> float:
    """Return how long to wait before a start, after so many failures in a row."""
    return min(BACKOFF_MIN_S * 2 ** (n_failures - 1), BACKOFF_MAX_S) if n_failures else 0.0


async def run_once(
    specification: ProcessSpecification,
    log_path: Path,
    timeout_s: float = 120.0,
    said: str = "",
) -> None:
    """Run a command to its end; `said` is its standard input.

    Raises:
        StackError: it failed; the message ends with its last lines.
    """
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *launched(specification.command, signal.SIGKILL, specification.user),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=specification.folder,
            env=dict(specification.environment),
            start_new_session=True,
        )
    try:
        await asyncio.wait_for(process.communicate(said.encode()), timeout_s)
        code = process.returncode
    except TimeoutError:
        code = None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        how = f"ended with {code}" if code is not None else f"took longer than {timeout_s:.0f} s"
        raise StackError(f"{specification.name} {how} ({log_path}):\n{log_tail(log_path)}")


@dataclass
class ManagedProcess:
    """A process that is to run until told otherwise.

    Attributes:
        n_restarts: how often it was started again after it ended by itself.
        n_failures: ends in a row without `HEALTHY_AFTER_S` of running in between; an end that was
            ordered by `kill` is none.
        exit_code: of the last end; negative = a signal.
    """

    specification: ProcessSpecification
    log_path: Path
    changed: Callable[[], None]
    identity: ProcessIdentity | None = None
    since_s: float = 0.0
    n_restarts: int = 0
    n_failures: int = 0
    exit_code: int | None = None
    _process: asyncio.subprocess.Process | None = None
    _watch: asyncio.Task[None] | None = None
    _stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    _was_killed: bool = False

    @property
    def name(self) -> str:
        """Its name in the stack."""
        return self.specification.name

    @property
    def is_wanted(self) -> bool:
        """Whether it is being kept alive."""
        return self._watch is not None

    async def start(self) -> None:
        """Start it and keep it alive from now on."""
        assert self._watch is None, f"{self.name} is started already"
        self._stop_asked.clear()
        self.n_failures = 0
        await self._spawn()
        self._watch = asyncio.create_task(self._keep_alive(), name=f"keep {self.name} alive")

    async def stop(self) -> None:
        """End it gracefully, by force after its time-out, and leave it ended."""
        if self._watch is None:
            return
        self._stop_asked.set()
        if self.identity is not None:
            self.identity.send(self.specification.stop_signal)
        done, _ = await asyncio.wait({self._watch}, timeout=self.specification.stop_timeout_s)
        if not done:
            self.kill(signal.SIGKILL)
        await self._watch
        self._watch = None

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the process.

        Raises:
            StackError: it does not run.
        """
        if self.identity is None or not self.identity.send(number):
            raise StackError(f"{self.name} does not run.")
        self._was_killed = number not in (signal.SIGSTOP, signal.SIGCONT)

    async def _spawn(self) -> None:
        specification = self.specification
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *launched(specification.command, specification.death_signal, specification.user),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=specification.folder,
                env=dict(specification.environment),
                start_new_session=True,
            )
        # the launcher becomes the program: pid and start time stay the same
        self.identity = ProcessIdentity.of(self._process.pid)
        self.since_s = time.time()
        self._was_killed = False
        self.changed()

    async def _keep_alive(self) -> None:
        while True:
            assert self._process is not None
            started_s = time.monotonic()
            self.exit_code = await self._process.wait()
            self.identity = None
            if self._stop_asked.is_set():
                self.changed()
                return
            was_well = time.monotonic() - started_s >= HEALTHY_AFTER_S or self._was_killed
            # it did not fail by itself, or not for long: callers wait for it, so no pause yet
            self.n_failures = 0 if was_well else self.n_failures + 1
            self.changed()
            delay_s = back_off_s(self.n_failures)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_asked.wait(), delay_s)
                return
            self.n_restarts += 1
            await self._spawn()
