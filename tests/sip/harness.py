"""The back end as a subprocess, and SIPp far ends: what the tests of this folder share."""

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.call_control.backend import (
    Answered,
    Command,
    Dial,
    DialogState,
    Ended,
    Event,
    Leg,
    Persisted,
    event_from_dict,
)

ROOT = Path(__file__).parents[2]
SCENARIOS = Path(__file__).parent / "scenarios"
HOST = "127.0.0.1"
NUMBER_A = "+493012345601"
NUMBER_B = "+493012345602"
CALLER = "+498001234567"
LATE_MS_MAX = 500
"""What a cut may be late on a test machine that others keep busy; alone it is 0 (perf figures)."""
PORT_FIRST = 26_000
PORTS_PER_PROCESS = 600
PROCESSES_MAX = 10


def _port_candidates() -> Iterator[int]:
    """Yield ports below the ephemeral ones, apart for each test process.

    A port that the kernel picks may be taken by someone's next speech socket before we use it.
    """
    worker_name = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    first = PORT_FIRST + PORTS_PER_PROCESS * (int(worker_name[2:]) % PROCESSES_MAX)
    offset = os.getpid() * 7
    while True:
        yield first + offset % PORTS_PER_PROCESS
        offset += 1


_CANDIDATES = _port_candidates()


def free_ports(n_ports: int) -> list[int]:
    """Return free UDP ports; none is given twice before the range is used up."""
    ports: list[int] = []
    while len(ports) < n_ports:
        port = next(_CANDIDATES)
        if not _is_held(port):
            ports.append(port)
    return ports


def _is_held(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
        return False


@dataclass
class Worker:
    """A process that holds calls; the test is its controller."""

    process: asyncio.subprocess.Process
    local: tuple[str, int]
    persists: bool = True
    events: list[Event] = field(default_factory=list)
    dialogs: dict[UUID, dict[Leg, DialogState]] = field(default_factory=dict)
    """What a controller would have stored: all that is left after a kill."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    reading: asyncio.Task[None] | None = None

    def send(self, command: Command | Dial) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command.to_dict()).encode() + b"\n")

    def dial(self, talk_limit_ms: int = 2_000, **more: Any) -> UUID:
        call_id = more.pop("call_id", None) or uuid4()
        order: dict[str, Any] = {
            "number_a": NUMBER_A,
            "number_b": NUMBER_B,
            "ring_a_timeout_ms": 30_000,
            "ring_b_timeout_ms": 30_000,
        }
        self.send(Dial(call_id=call_id, talk_limit_ms=talk_limit_ms, **(order | more)))
        return call_id

    def send_stop(self) -> None:
        """Ask the process to drain and stop; commands may still follow."""
        assert self.process.stdin is not None
        self.process.stdin.write(b'{"type": "Stop"}\n')

    async def dial_many(self, n_calls: int, per_s: float, **order: Any) -> list[UUID]:
        calls = []
        for _ in range(n_calls):
            calls.append(self.dial(**order))
            await asyncio.sleep(1 / per_s)
        return calls

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            event = event_from_dict(json.loads(line))
            if isinstance(event, Answered):
                self.dialogs.setdefault(event.call_id, {})[event.leg] = event.dialog
                if self.persists:
                    self.send(Persisted(call_id=event.call_id, leg=event.leg))
            async with self.changed:
                self.events.append(event)
                self.changed.notify_all()

    async def wait(self, matches: Callable[[Event], bool], limit_s: float = 20.0) -> Event:
        try:
            async with asyncio.timeout(limit_s), self.changed:
                await self.changed.wait_for(lambda: any(map(matches, self.events)))
        except TimeoutError:
            told = {event.call_id: self.story(event.call_id) for event in self.events}
            unfinished = [story for story in told.values() if "ended" not in story[-1]]
            pytest.fail(f"awaited event did not come; unfinished: {unfinished}")
        return next(event for event in self.events if matches(event))

    async def ended(self, call_id: UUID, limit_s: float = 20.0) -> Ended:
        event = await self.wait(
            lambda e: isinstance(e, Ended) and e.call_id == call_id, limit_s=limit_s
        )
        assert isinstance(event, Ended)
        return event

    def story(self, call_id: UUID) -> list[str]:
        """Return a call's events in short: kind and leg."""
        told = [event for event in self.events if event.call_id == call_id]
        return [e.kind.value + (f":{e.leg.value}" if e.leg else "") for e in told]

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        if self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            async with asyncio.timeout(20):
                await self.process.wait()
        if self.reading is not None:
            await self.reading


@asynccontextmanager
async def worker(local_port: int, next_hop_port: int, **settings: Any) -> AsyncIterator[Worker]:
    """Run a worker; at the end it must have stopped cleanly (or been killed by the test)."""
    persists = settings.pop("persists", True)
    may_fail = settings.pop("may_fail", False)
    fields = {"local": [HOST, local_port], "next_hop": [HOST, next_hop_port], "caller_id": CALLER}
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed below
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.sip.driver",
        json.dumps(fields | settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        limit=1 << 20,
    )
    assert process.stdout is not None
    held = Worker(process=process, local=(HOST, local_port), persists=persists)
    try:
        async with asyncio.timeout(20):
            ready = await process.stdout.readline()
            assert ready, "the worker did not start"
            assert json.loads(ready) == {"type": "Ready"}
        held.reading = asyncio.create_task(held.read())
        yield held
        await held.stop()
        log.seek(0)
        logged = log.read()
        assert process.returncode in {0, -9}, f"the worker crashed: {logged}"
        assert may_fail or "sip failure" not in logged, logged
        assert NUMBER_A[-8:] not in logged, "a telephone number in the log"
    finally:
        log.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


def sipp_path() -> str:
    """Return where SIPp is; the bootstrap may have unpacked it into the checkout."""
    own = ROOT / ".tools" / "sipp" / "usr" / "bin" / "sipp"
    found = str(own) if own.exists() else shutil.which("sipp")
    assert found, "SIPp is missing: sudo apt-get install sip-tester"
    return found


@dataclass
class FarEnd:
    """A SIPp process playing one scenario."""

    scenario: str
    port: int
    process: asyncio.subprocess.Process
    folder: Path

    def messages(self) -> str:
        """Return what it received and sent, as text."""
        texts = [path.read_text() for path in self.folder.glob(f"{self.scenario}_*_messages.log")]
        return "\n".join(texts)

    async def check(self, expected: int = 0) -> None:
        """Wait for its exit; 0 = the whole scenario was played as written."""
        async with asyncio.timeout(45):
            await self.process.wait()
        code = self.process.returncode
        assert code == expected, f"{self.scenario}: exit {code}\n{self.messages()[-4000:]}"


@asynccontextmanager
async def far_end(
    scenario: str,
    port: int,
    folder: Path,
    *,
    n_calls: int = 1,
    limit_s: int = 40,
    trace: bool = True,
) -> AsyncIterator[FarEnd]:
    """Run a SIPp far end; it is listening when this is entered."""
    source = SCENARIOS / f"{scenario}.xml"
    arguments = ["-sf", str(source), "-i", HOST, "-p", str(port), "-m", str(n_calls)]
    arguments += ["-nostdin", "-timeout", f"{limit_s}s", "-timeout_error"]
    if n_calls > 1:
        # SIPp takes a retransmitted INVITE for an error; on a busy machine there are some
        arguments += ["-default_behaviors", "all,-abortunexp"]
    media = free_ports(1)[0]
    process = await asyncio.create_subprocess_exec(
        sipp_path(),
        *arguments,
        *(["-trace_msg"] if trace else ["-trace_err"]),
        "-mp",
        str(media),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        await _listening(port)
        yield FarEnd(scenario, port, process, folder)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _listening(port: int) -> None:
    """Wait until someone holds the UDP port."""
    async with asyncio.timeout(10):
        while not _is_held(port):
            await asyncio.sleep(0.02)
