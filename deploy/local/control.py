"""What the commands do: up, down, status, logs, run."""

import asyncio
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.local.certificates import Certificates
from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity
from deploy.local.kafka import ADMINISTRATOR
from deploy.local.layout import ROOT, Layout, read_document
from deploy.local.probes import http_status, is_kafka_ready
from deploy.local.process import log_tail
from deploy.local.stack import LocalStack
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret

UP_TIMEOUT_S = 180.0
DOWN_TIMEOUT_S = 60.0
FINAL_PHASES = frozenset({"ready", "degraded", "failed", "stopped"})


@dataclass(frozen=True)
class State:
    """What the supervisor wrote last, and whether it still lives."""

    document: Mapping[str, Any]

    @classmethod
    def of(cls, layout: Layout) -> "State":
        """Read it; an empty one when the stack never ran."""
        return cls(read_document(layout.state_path))

    @property
    def phase(self) -> str:
        """The phase as written; `stopped` when there is no stack."""
        return str(self.document.get("phase", "stopped"))

    @property
    def error(self) -> str:
        """Why it failed."""
        return str(self.document.get("error", ""))

    @property
    def supervisor(self) -> ProcessIdentity | None:
        """The supervisor, if it lives."""
        return self._alive(self.document.get("supervisor", {}))

    @property
    def survivors(self) -> dict[str, ProcessIdentity]:
        """The processes of the stack that live."""
        found = {
            name: self._alive(entry) for name, entry in self.document.get("processes", {}).items()
        }
        return {name: identity for name, identity in found.items() if identity is not None}

    @staticmethod
    def _alive(entry: Mapping[str, Any]) -> ProcessIdentity | None:
        if not entry.get("pid"):
            return None
        identity = ProcessIdentity(entry["pid"], entry["started_ticks"])
        return identity if identity.is_alive else None


def up(folder: Path, console: Console, arguments: Sequence[str]) -> int:
    """Start the stack as a daemon, `run` with these arguments, and wait until it is ready."""
    layout = Layout(folder)
    layout.prepare()
    if (state := State.of(layout)).supervisor is not None:
        raise StackError(
            f"The stack runs already (phase {state.phase}): `make status` shows it, `make down`"
            " ends it."
        )
    _end_survivors(state, console)
    layout.state_path.unlink(missing_ok=True)
    log_path = layout.logs / "supervisor.log"
    command = [sys.executable, "-m", "deploy.local", "run", "--folder", str(layout.folder)]
    with log_path.open("ab") as log:
        supervisor = subprocess.Popen(
            [*command, *arguments, "--patient"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with console.status("starting the stack"):
        state = _wait_until_settled(layout, supervisor)
    if state.phase == "ready":
        return status(folder, console)
    console.print(state.error or log_tail(log_path), markup=False, highlight=False)
    if state.phase == "degraded":
        status(folder, console)
    return 1


def _wait_until_settled(layout: Layout, supervisor: "subprocess.Popen[bytes]") -> State:
    deadline_s = time.monotonic() + UP_TIMEOUT_S
    while True:
        ended = supervisor.poll() is not None
        state = State.of(layout)
        if ended or state.phase in FINAL_PHASES - {"stopped"}:
            return state
        if time.monotonic() > deadline_s:
            raise StackError(
                f"The stack is not ready after {UP_TIMEOUT_S:.0f} s: see {layout.logs}."
            )
        time.sleep(0.1)


def down(folder: Path, console: Console) -> int:
    """End what `up` started, and nothing else."""
    layout = Layout(folder)
    state = State.of(layout)
    supervisor = state.supervisor
    if supervisor is None:
        n_ended = _end_survivors(state, console)
        if state.phase not in {"stopped", "failed"}:
            console.print("The supervisor was gone without a goodbye.")
            layout.state_path.unlink(missing_ok=True)
        elif not n_ended:
            console.print("The stack does not run.")
        return 0
    supervisor.send(signal.SIGTERM)
    deadline_s = time.monotonic() + DOWN_TIMEOUT_S
    with console.status("stopping the stack"):
        while supervisor.is_alive and time.monotonic() < deadline_s:
            time.sleep(0.05)
    if supervisor.is_alive:
        console.print(f"The supervisor did not stop within {DOWN_TIMEOUT_S:.0f} s: killed.")
        supervisor.send(signal.SIGKILL)
    _end_survivors(State.of(layout), console)
    console.print("The stack is down; its data is kept.")
    return 0


def _end_survivors(state: State, console: Console) -> int:
    survivors = state.survivors
    for name, identity in survivors.items():
        console.print(f"{name} (pid {identity.pid}) still ran: ended.")
        identity.send(signal.SIGQUIT if name == "postgres" else signal.SIGKILL)
    deadline_s = time.monotonic() + 10
    while any(identity.is_alive for identity in survivors.values()):
        if time.monotonic() > deadline_s:
            raise StackError("A process of the stack does not end: see `make status`.")
        time.sleep(0.05)
    return len(survivors)


def status(folder: Path, console: Console) -> int:
    """Print what runs; 0 when all is well."""
    layout = Layout(folder)
    state = State.of(layout)
    processes = state.document.get("processes", {})
    if state.supervisor is None or not processes:
        if state.phase in {"stopped", "failed"}:
            console.print("The stack does not run: `make up` starts it.")
        else:
            console.print("The stack's supervisor died: `make up` starts it again.")
        if state.phase == "failed":
            console.print(state.error, markup=False, highlight=False)
        return 1
    health = asyncio.run(_health(layout, processes))
    table = Table("process", "health", "pid", "port", "admin", "restarts", "up since")
    alive = state.survivors
    for name, entry in processes.items():
        is_up = name in alive
        table.add_row(
            name,
            _styled(health[name] if is_up else f"down (exit {entry['exit_code']})"),
            str(entry["pid"]) if is_up else "-",
            str(entry["port"]),
            str(entry["admin_port"] or "-"),
            str(entry["n_restarts"]),
            _duration(time.time() - entry["since_s"]) if is_up else "-",
        )
    console.print(table)
    marked = " · simulation" if state.document.get("simulation") else ""
    console.print(f"phase {state.phase}{marked} · {layout.folder}", highlight=False, soft_wrap=True)
    if "gateway" in processes:
        port = processes["gateway"]["port"]
        console.print(f"gateway http://127.0.0.1:{port}", highlight=False)
    trunk = read_document(layout.folder / "stack.json").get("ports", {}).get("trunk")
    if "call_control" in processes and trunk is not None:
        answer = f"telephones that answer: .venv/bin/python -m deploy.phones --port {trunk}"
        console.print(f"trunk udp 127.0.0.1:{trunk} · {answer}", highlight=False, soft_wrap=True)
    well = all(name in alive and health[name] == "ready" for name in processes)
    return 0 if well else 1


def _styled(health: str) -> str:
    return f"[{'green' if health == 'ready' else 'red'}]{health}[/]"


def _duration(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:d}:{minutes:02d}:{rest_s:02d}"


def kafka_login(layout: Layout, user: str, ports: Sequence[int]) -> KafkaLogin:
    """Return a user's login to the Kafka of a stack that another process runs.

    Raises:
        StackError: the stack has no such user.
    """
    passwords = read_document(layout.secrets_path).get("kafka_passwords", {})
    if user not in passwords:
        raise StackError(f"The stack in {layout.folder} has no Kafka user {user}.")
    certificates = Certificates.made(layout)
    return KafkaLogin(
        bootstrap=",".join(f"127.0.0.1:{port}" for port in ports),
        username=user,
        password=Secret(passwords[user]),
        ca_file=certificates.ca_file if certificates else None,
    )


async def _health(layout: Layout, processes: Mapping[str, Any]) -> dict[str, str]:
    async def of(name: str, entry: Mapping[str, Any]) -> str:
        if name.startswith("kafka"):
            login = kafka_login(layout, ADMINISTRATOR, [entry["port"]])
            return "ready" if await is_kafka_ready(login) else "no answer"
        if name == "postgres":
            return await _postgres_health(entry["port"])
        code = await http_status(entry["admin_port"], "/readyz")
        if code is None:
            return "no answer"
        return "ready" if code == 200 else f"not ready ({code})"  # noqa: PLR2004 - HTTP

    results = await asyncio.gather(*(of(name, entry) for name, entry in processes.items()))
    return dict(zip(processes, results, strict=True))


async def _postgres_health(port: int) -> str:
    """Ask without a password: the server's request for one shows that it takes connections."""
    import asyncpg  # noqa: PLC0415 - only the status needs it

    wrong = "-"
    try:
        conn = await asyncpg.connect(
            host="127.0.0.1", port=port, user="postgres", password=wrong, timeout=3
        )
        await conn.close()
    except asyncpg.InvalidPasswordError:
        return "ready"
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        return f"no answer ({type(error).__name__})"
    return "ready"


def logs(folder: Path, console: Console, service: str | None, *, follow: bool) -> int:
    """Print the logs' ends, and what is added until Ctrl-C."""
    layout = Layout(folder)
    paths = sorted(layout.logs.glob("*.log"))
    if service is not None:
        paths = [path for path in paths if path.stem == service]
    if not paths:
        known = ", ".join(sorted(path.stem for path in layout.logs.glob("*.log"))) or "none yet"
        raise StackError(f"There is no log of {service or 'the stack'}; there are: {known}.")
    width = max(len(path.stem) for path in paths)
    n_lines = 50 if service else 10
    positions = {path: path.stat().st_size for path in paths}
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:]:
            _print_line(console, path, width, line)
    while follow:
        for path, line in _added(positions):
            _print_line(console, path, width, line)
        time.sleep(0.25)
    return 0


def _added(positions: dict[Path, int]) -> Iterator[tuple[Path, str]]:
    for path, position in positions.items():
        size = path.stat().st_size
        # shorter than before: it was rotated
        start = position if size >= position else 0
        with path.open("rb") as file:
            file.seek(start)
            chunk = file.read()
        # a line that is not complete yet waits for the next round
        whole = chunk[: chunk.rfind(b"\n") + 1]
        positions[path] = start + len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            yield path, line


def _print_line(console: Console, path: Path, width: int, line: str) -> None:
    console.print(f"{path.stem:<{width}} │ {line}", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How `run` behaves.

    Attributes:
        standby: a second process of each service with a database waits to take its place.
        patient: stay up although a service does not get ready.
        servers_only: no services.
        disposable: at the end kill everything and remove the folder (tests).
        while_pid: end when that process does.
    """

    simulation: bool = False
    kafka_nodes: int = 1
    kafka_tls: bool = False
    standby: bool = False
    patient: bool = False
    servers_only: bool = False
    disposable: bool = False
    while_pid: int | None = None


def run(folder: Path, options: RunOptions) -> int:
    """Run the stack in the foreground until SIGTERM or Ctrl-C."""
    return asyncio.run(_run(folder, options))


async def _run(folder: Path, options: RunOptions) -> int:
    # a refused connection is told by the probes; the client's own words would fill the log
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    if options.while_pid is not None:
        _when_gone(options.while_pid, asked)
    stack = LocalStack(
        folder,
        services=[] if options.servers_only else None,
        simulation=options.simulation,
        kafka_nodes=options.kafka_nodes,
        kafka_tls=options.kafka_tls,
        standby=options.standby,
        progress=lambda what: print(what, flush=True),
    )
    starting = asyncio.create_task(stack.start(patient=options.patient))
    asking = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({starting, asking}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
        try:
            await starting
        except asyncio.CancelledError:
            return 0
        await asking
    finally:
        asking.cancel()
        if options.disposable:
            stack.kill_all()
        await stack.stop_all()
        if options.disposable:
            await asyncio.to_thread(shutil.rmtree, stack.layout.folder, ignore_errors=True)
    return 0


def _when_gone(pid: int, event: asyncio.Event) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        event.set()
        return
    if select.select([descriptor], [], [], 0)[0]:
        event.set()

    def gone() -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        event.set()

    asyncio.get_running_loop().add_reader(descriptor, gone)
