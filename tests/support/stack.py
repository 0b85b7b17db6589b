"""The tests' stack: PostgreSQL and Kafka once per run, a world of its own for each who asks.

The first worker that needs the servers starts them in a process of their own, which ends, data and
all, when the run does (it watches the pid of pytest, or of the process that commands xdist's
workers). `STACK=containers` takes both from the official images instead, by TLS, where a Docker
engine answers (`tests.support.containers`). `STACK_KAFKA` (an administrator's
user:password@host:port) and `STACK_POSTGRES` (an administrator's URL), set together, name servers
from outside.
"""

import asyncio
import fcntl
import hashlib
import itertools
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from deploy.access import provision_access, remove_access, rights, user_names
from deploy.local.certificates import Certificates
from deploy.local.control import kafka_login
from deploy.local.environment import Surroundings, port_names
from deploy.local.kafka import ADMINISTRATOR
from deploy.local.layout import KEY_KINDS, ROOT, SLOTS, Layout, choose_ports, read_document, slot_of
from deploy.local.process import log_tail
from deploy.provision import (
    Infrastructure,
    ServiceDatabase,
    drop_databases,
    drop_topics,
    provision_databases,
    provision_topics,
    role_names,
)
from schemas.topics import ALL_TOPICS, Topic
from services.chassis import db
from services.chassis.declaration import Declaration, load, load_all
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret
from tests.support import identities

START_TIMEOUT_S = 90.0
CONTAINERS_START_TIMEOUT_S = 600.0
"""The images may have to be pulled first."""
_numbers = itertools.count(1)
_slots = itertools.count()

T = TypeVar("T")


def run_pid() -> int:
    """Return the pid of the process that this test run begins and ends with."""
    # a worker of xdist is a child of the process that commands all of them
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def infrastructure() -> Infrastructure:
    """Return the servers of this run; the first call starts them (about 5 s)."""
    kafka, postgres = os.environ.get("STACK_KAFKA"), os.environ.get("STACK_POSTGRES")
    if bool(kafka) != bool(postgres):
        raise RuntimeError("Set both STACK_KAFKA and STACK_POSTGRES, or neither.")
    in_containers = _asks_for_containers()
    if in_containers and kafka:
        raise RuntimeError("Set STACK=containers, or STACK_KAFKA and STACK_POSTGRES, not both.")
    if kafka and postgres:
        user, _, password = kafka.rpartition("@")[0].partition(":")
        login = KafkaLogin(
            bootstrap=kafka.rpartition("@")[2], username=user, password=Secret(password)
        )
        return Infrastructure(kafka=login, postgres_admin_dsn=postgres)
    layout = Layout(ROOT / "var" / f"tests-{run_pid()}")
    layout.folder.parent.mkdir(exist_ok=True)
    with (layout.folder.parent / "tests.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_document(layout.state_path).get("phase") != "ready":
            if in_containers:
                command = ["tests.support.containers", str(layout.folder), str(run_pid())]
                _start_servers(layout, command, CONTAINERS_START_TIMEOUT_S)
            else:
                command = ["deploy.local", "run", "--folder", str(layout.folder)]
                command += ["--servers-only", "--disposable", "--while-pid", str(run_pid())]
                _start_servers(layout, command, START_TIMEOUT_S)
    if in_containers:
        return infrastructure_of(layout)
    ports = read_document(layout.folder / "stack.json")["ports"]
    password = read_document(layout.secrets_path)["passwords"]["postgres"]
    return Infrastructure(
        kafka=kafka_login(layout, ADMINISTRATOR, [ports["kafka"]]),
        postgres_admin_dsn=f"postgresql://postgres:{password}@127.0.0.1:{ports['postgres']}/postgres",
    )


def infrastructure_of(layout: Layout) -> Infrastructure:
    """Return the servers that `tests.support.containers` runs for this folder."""
    state = read_document(layout.state_path)
    passwords = read_document(layout.secrets_path)
    ca_file = Certificates.of(layout).ca_file
    password = quote(passwords["passwords"]["postgres"], safe="")
    # the host's name is checked too, not only who signed
    tls = urlencode({"sslmode": "verify-full", "sslrootcert": str(ca_file)})
    return Infrastructure(
        kafka=KafkaLogin(
            bootstrap=state["kafka"],
            username=ADMINISTRATOR,
            password=Secret(passwords["kafka_passwords"][ADMINISTRATOR]),
            ca_file=ca_file,
        ),
        postgres_admin_dsn=f"postgresql://postgres:{password}@{state['postgres']}/postgres?{tls}",
    )


def _asks_for_containers() -> bool:
    kind = os.environ.get("STACK", "")
    if kind not in {"", "containers"}:
        raise RuntimeError(f"STACK={kind}: set it to `containers`, or leave it out.")
    return kind == "containers"


def _start_servers(layout: Layout, command: Sequence[str], timeout_s: float) -> None:
    layout.prepare()
    layout.state_path.unlink(missing_ok=True)
    log_path = layout.logs / "supervisor.log"
    with log_path.open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + timeout_s
    while (state := read_document(layout.state_path)).get("phase") != "ready":
        if supervisor.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(
                f"The tests' servers did not start: {state.get('error', '')}\n{log_tail(log_path)}"
            )
        time.sleep(0.05)
    # it outlives this object on purpose; pytest would otherwise warn of a running child
    supervisor.returncode = 0


@dataclass(kw_only=True)
class World:
    """Databases, roles and topics of nobody else, migrated and ready for services.

    Attributes:
        prefix: before the names of databases and roles (`<prefix>_<service>`).
        kafka_prefix: before the names of topics and groups.
        databases: by service name.
        environments: by service name: all a service needs, e.g. for a subprocess.
        ports: free ports, by name (`deploy.local.environment.port_names`).
        keys: signing keys by kind (`deploy.local.layout.KEY_KINDS`), also of services not run here.
    """

    infrastructure: Infrastructure
    prefix: str
    kafka_prefix: str
    declarations: Sequence[Declaration]
    databases: Mapping[str, ServiceDatabase]
    environments: Mapping[str, Mapping[str, str]]
    ports: Mapping[str, int]
    kafka_passwords: Mapping[str, str]
    keys: Mapping[str, Mapping[str, str]]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def kafka(self) -> KafkaLogin:
        """An administrator's login, for arranging and looking."""
        return self.infrastructure.kafka

    def kafka_login(self, user: str) -> KafkaLogin:
        """Return the login of a service, or of staff (`deploy.access.STAFF`), of this world."""
        name = f"{self.prefix}_{user}"
        password = Secret(self.kafka_passwords[name])
        return replace(self.kafka, username=name, password=password)

    def topic(self, topic: Topic) -> str:
        """Return a topic's name in this world."""
        return self.kafka_prefix + topic.name

    def database_url(self, service: str) -> str:
        """Return the runtime role's URL."""
        return self.databases[service].url

    def owner_url(self, service: str) -> str:
        """Return the owner's URL, for looking and arranging."""
        return self.databases[service].migrate_url

    def duty_url(self, service: str) -> str:
        """Return the URL of the role that may read what is blocked."""
        return self.databases[service].duty_url

    def settings(self, service: str, **overrides: object) -> dict[str, Any]:
        """Return the settings of a service as keyword arguments of its settings class.

        Values are the texts that the environment holds: pass them through `model_validate`, or
        give the class its environment.
        """
        start = f"{service.upper()}_"
        environment = self.environments[service]
        found: dict[str, Any] = {
            name.removeprefix(start).lower(): value
            for name, value in environment.items()
            if name.startswith(start)
        }
        return found | overrides

    def start(self, service: str, *arguments: str, **overrides: str) -> "subprocess.Popen[bytes]":
        """Run a service as a process (`python -m services.<name>`); `close` ends it.

        Args:
            service: its name.
            arguments: a subcommand of its own.
            overrides: further environment.
        """
        folder = ROOT / "var" / "test-logs"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.prefix}-{service}.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(ROOT / "deploy/local/launch.py")),
                    *(str(os.getpid()), "9", "-"),
                    *(sys.executable, "-m", f"services.{service}", *arguments),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environments[service], **overrides},
            )
        self.processes.append(process)
        return process

    async def close(self) -> None:
        """End the processes started here, drop the databases and delete the topics."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        await drop_databases(
            self.infrastructure.postgres_admin_dsn, self.declarations, f"{self.prefix}_"
        )
        await drop_topics(self.kafka, self.kafka_prefix)
        await remove_access(self.kafka, self.kafka_passwords)


def new_prefix() -> str:
    """Return a prefix that no other world of this or another run has."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()} {secrets.token_hex(4)}")
    digest = hashlib.sha256(run.encode()).hexdigest()[:6]
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"t{digest}{worker}n{next(_numbers)}"


def _next_slot() -> int:
    """Return where the next world's ports begin: no worker of a run takes another one's.

    Worlds choose while their ports are free and listen later: two of one slot would both believe
    that it is theirs.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = SLOTS // max(1, n_workers)
    return slot_of(run) + worker * share + next(_slots) % max(1, share)


async def make_world(
    prefix: str,
    services: Sequence[str] | None = None,
    *,
    topics: Sequence[Topic] = ALL_TOPICS,
    simulation: bool = False,
    migrated: bool = True,
) -> World:
    """Make a world; about a second for all services. `await world.close()` removes it.

    Args:
        prefix: lower-case letters and digits, see `new_prefix`.
        services: which services' databases; None = all.
        topics: which topics.
        simulation: marks the services' settings as a simulation.
        migrated: whether the migrations are applied.
    """
    servers = infrastructure()
    declarations = load_all() if services is None else tuple(load(name) for name in services)
    passwords = {role: secrets.token_urlsafe(12) for role in role_names(declarations, f"{prefix}_")}
    users = user_names(declarations, f"{prefix}_")
    kafka_passwords = {user: secrets.token_urlsafe(12) for user in users}
    wanted = rights(
        declarations,
        topics=topics,
        user_prefix=f"{prefix}_",
        kafka_prefix=f"{prefix}-",
        simulation=simulation,
    )
    databases, *_ = await asyncio.gather(
        provision_databases(servers.postgres_admin_dsn, declarations, passwords, f"{prefix}_"),
        provision_topics(servers.kafka, topics, f"{prefix}-"),
        provision_access(servers.kafka, kafka_passwords, wanted),
    )
    if migrated:
        for declared in declarations:
            if declared.database:
                url = databases[declared.name].migrate_url
                await db.migrate(url, declared.migration_folders)
    ports = choose_ports(port_names(declarations), {}, {}, slot=_next_slot())
    keys = {kind: {"k1": secrets.token_hex(32)} for kind in KEY_KINDS}
    surroundings = Surroundings(
        declarations=declarations,
        kafka_bootstrap=servers.kafka.bootstrap,
        kafka_prefix=f"{prefix}-",
        user_prefix=f"{prefix}_",
        kafka_ca_file=servers.kafka.ca_file,
        databases=databases,
        ports=ports,
        secrets={"kafka_passwords": kafka_passwords, **keys},
        simulation=simulation,
        overrides={},
        source=ROOT,
        staff_folder=identities.folder(),
    )
    return World(
        infrastructure=servers,
        prefix=prefix,
        kafka_prefix=f"{prefix}-",
        declarations=declarations,
        databases=databases,
        environments={declared.name: surroundings.of(declared) for declared in declarations},
        ports=ports,
        kafka_passwords=kafka_passwords,
        keys=keys,
    )


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from code that is not async, whatever loop a test will use."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
