"""The local stack as a library: servers and services as child processes of this one.

async with LocalStack(folder) as stack:
    stack.url("gateway")
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import asyncpg

from deploy.access import provision_access, rights, user_names
from deploy.errors import ProvisionError
from deploy.local import staff
from deploy.local.certificates import Certificates
from deploy.local.environment import Surroundings, chosen_ports, port_names
from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity
from deploy.local.kafka import USERS, Cluster, node_names
from deploy.local.layout import ROOT, Layout, choose_ports, read_document, slot_of, write_private
from deploy.local.postgres import Postgres
from deploy.local.probes import is_service_ready
from deploy.local.process import (
    ManagedProcess,
    ProcessSpecification,
    keep_logs_tidy,
    log_tail,
    run_once,
    tidy_logs,
)
from deploy.provision import (
    Infrastructure,
    databases,
    provision_databases,
    provision_topics,
    role_names,
)
from services.chassis.declaration import Declaration, load, load_all
from services.chassis.kafka import KafkaLogin

READY_TIMEOUT_S = 60.0
POLL_S = 0.05
FAILURES_MAX = 3
"""A process that ends so often without ever having been ready will not be ready by waiting."""

Phase = Literal["starting", "ready", "degraded", "stopping", "stopped", "failed"]


class LocalStack:
    """PostgreSQL, Kafka and services, kept alive until the stack is stopped.

    Whatever ends by itself is started again with back-off. If this process dies, however, the
    kernel ends all its children. A stack must be started from the main thread: the children's
    lives are bound to the thread that started them.

    Args:
        folder: where this stack keeps its data, secrets and logs; one stack at a time.
        services: names of the services to run; None = all, empty = servers only.
        kafka_nodes: one or three.
        kafka_tls: whether Kafka's clients and nodes speak TLS.
        standby: whether a second process of each service with a database waits to take its place.
        simulation: marks the stack as a simulation: instants in the future are accepted.
        ports: chosen ports by name (`deploy.local.environment.port_names`); others are free ones.
        overrides: further settings by full name, e.g. `{"AD_LEDGER_LOG_LEVEL": "DEBUG"}`.
        declarations: instead of `services`, for a test with services of its own.
        package: package that holds the services.
        source: folder that holds the package.
        progress: told in half a sentence what is being done.
    """

    def __init__(
        self,
        folder: Path,
        *,
        services: Sequence[str] | None = None,
        kafka_nodes: int = 1,
        kafka_tls: bool = False,
        standby: bool = False,
        simulation: bool = False,
        ports: Mapping[str, int] | None = None,
        overrides: Mapping[str, str] | None = None,
        declarations: Sequence[Declaration] | None = None,
        package: str = "services",
        source: Path = ROOT,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        if declarations is None:
            declarations = load_all() if services is None else [load(name) for name in services]
        self.declarations = tuple(declarations)
        self.simulation = simulation
        self.layout = Layout(folder)
        self._kafka_names = node_names(kafka_nodes)
        self._kafka_tls = kafka_tls
        self._standby = standby
        self._chosen_ports = dict(ports or {})
        self._overrides = dict(overrides or {})
        self._package = package
        self._source = source
        self._progress = progress
        self._processes: dict[str, ManagedProcess] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lock: IO[str] | None = None
        self._phase: Phase = "stopped"
        self._error = ""
        self._since_s = 0.0
        self._ports: dict[str, int] = {}
        self._postgres: Postgres | None = None
        self._cluster: Cluster | None = None
        self._surroundings: Surroundings | None = None

    # --- life

    async def __aenter__(self) -> Self:
        """Start everything and wait until it is ready."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything; the data stays."""
        await self.stop_all()

    async def start(self, *, patient: bool = False) -> None:
        """Start servers, provision them, migrate, start the services.

        Args:
            patient: keep a stack whose services do not get ready, instead of giving it up.

        Raises:
            StackError: says what failed; nothing is left running.
        """
        self.layout.prepare()
        self._take_lock()
        try:
            self._set_phase("starting")
            # before anybody writes to them: what was written before a long stop goes by its own age
            await asyncio.to_thread(tidy_logs, self.layout.logs)
            tidying = keep_logs_tidy(self.layout.logs, self._progress)
            self._tasks.append(asyncio.create_task(tidying, name="tidy logs"))
            await self._start_servers()
            await self._start_services()
            await self._wait_until_ready(patient=patient)
            await self._start_standbys()
        except BaseException as error:
            self._error = str(error) or type(error).__name__
            await asyncio.shield(asyncio.ensure_future(self.stop_all(phase="failed")))
            if isinstance(error, (ProvisionError, OSError, asyncpg.PostgresError)):
                raise StackError(str(error)) from error
            raise

    async def stop_all(self, phase: Phase = "stopped") -> None:
        """Stop the services, then the servers."""
        if self._lock is None:
            return
        self._set_phase("stopping")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        servers = {"postgres", *self._kafka_names}
        for group in (self._processes.keys() - servers, self._processes.keys() & servers):
            await asyncio.gather(*(self._processes[name].stop() for name in group))
        self._set_phase(phase)
        self._processes.clear()
        self._lock.close()
        self._lock = None

    def kill_all(self) -> None:
        """End everything at once, without any shutdown; for data that nobody needs any more."""
        for process in self._processes.values():
            with contextlib.suppress(StackError):
                process.kill(
                    # PostgreSQL's own children have to go too
                    signal.SIGQUIT if process.name == "postgres" else signal.SIGKILL
                )

    def _take_lock(self) -> None:
        lock = self.layout.lock_path.open("a", encoding="ascii")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StackError(
                f"The stack in {self.layout.folder} runs already: `make status` shows it,"
                " `make down` ends it."
            ) from error
        self._lock = lock
        self._since_s = time.time()

    async def _start_servers(self) -> None:
        names = port_names(self.declarations, len(self._kafka_names))
        ports = chosen_ports(names, os.environ) | self._chosen_ports
        self._ports = self.layout.ports(names, ports)
        users = user_names(self.declarations)
        secrets = self.layout.secrets(
            ["postgres", *role_names(self.declarations)], [*USERS, *users]
        )
        postgres = Postgres(self.layout, self._ports["postgres"], secrets["passwords"]["postgres"])
        cluster = Cluster(
            layout=self.layout,
            ports=self._ports,
            passwords=secrets["kafka_passwords"],
            n_nodes=len(self._kafka_names),
            certificates=Certificates.of(self.layout) if self._kafka_tls else None,
        )
        self._postgres, self._cluster = postgres, cluster
        self._progress("starting PostgreSQL and Kafka")
        await _all(self._start_postgres(postgres), self._start_kafka(cluster))
        self._progress("making databases, topics, users and their rights")
        await _all(
            provision_databases(postgres.dsn(), self.declarations, secrets["passwords"]),
            self._provision_kafka(
                cluster, {user: secrets["kafka_passwords"][user] for user in users}
            ),
        )
        self._surroundings = Surroundings(
            declarations=self.declarations,
            kafka_bootstrap=cluster.bootstrap,
            kafka_prefix="",
            kafka_ca_file=cluster.administrator.ca_file,
            databases=databases(postgres.dsn(), self.declarations, secrets["passwords"]),
            ports=self._ports,
            secrets=secrets,
            simulation=self.simulation,
            overrides={**os.environ, **self._overrides},
            source=self._source,
            secrets_folder=self.layout.folder / "secrets",
            hash_keys_folder=self.layout.folder / "hash_keys",
            staff_folder=self.layout.staff,
        )
        self._surroundings.write_secrets()
        staff.prepare(self.layout.staff)

    async def _provision_kafka(self, cluster: Cluster, passwords: Mapping[str, str]) -> None:
        if self.declarations:
            wanted = rights(self.declarations, simulation=self.simulation)
            await _all(
                provision_topics(cluster.administrator),
                provision_access(cluster.administrator, passwords, wanted),
            )

    async def _start_postgres(self, postgres: Postgres) -> None:
        await postgres.prepare()
        await self._start_process(postgres.specification())
        await self.wait_ready("postgres")

    async def _start_kafka(self, cluster: Cluster) -> None:
        await cluster.prepare()
        for node in cluster.nodes():
            await self._start_process(node.specification())
        await _all(*(self.wait_ready(name) for name in cluster.names))

    async def _start_services(self) -> None:
        migrated = [declared for declared in self.declarations if declared.database]
        if migrated:
            self._progress("migrating databases")
            await _all(*(self._migrate(declared) for declared in migrated))
        if self.declarations:
            self._progress("starting services")
        await _all(*(self._start_service(declared) for declared in self.declarations))

    async def _start_standbys(self) -> None:
        if self._standby:
            self._progress("starting standbys")
            names = [declared.name for declared in self.declarations if declared.database]
            await _all(*(self.add_standby(name) for name in names))

    def _service(
        self, declared: Declaration, environment: Mapping[str, str], *arguments: str
    ) -> ProcessSpecification:
        admin_port = self._ports[f"{declared.name}_admin"]
        return ProcessSpecification(
            name=declared.name,
            command=[sys.executable, "-m", f"{self._package}.{declared.name}", *arguments],
            environment=environment,
            folder=self._source,
            probe=partial(is_service_ready, admin_port),
            port=self._ports[declared.name] if declared.http else admin_port,
        )

    async def _migrate(self, declared: Declaration) -> None:
        assert self._surroundings is not None
        environment = self._surroundings.of_migration(declared)
        specification = self._service(declared, environment, "migrate")
        await run_once(specification, self.layout.logs / f"{declared.name}.log")

    async def _start_service(self, declared: Declaration) -> None:
        assert self._surroundings is not None
        await self._start_process(self._service(declared, self._surroundings.of(declared)))

    async def add_instance(self, name: str, instance: str) -> str:
        """Run one more process of a service, beside the first; ready when this returns.

        Args:
            instance: its own name in the group, e.g. `1`.

        Returns:
            The process's name: `<service>-<instance>`.
        """
        own = {"ADMIN_PORT": "admin", "HTTP_PORT": "http", "SIP_PORT": "sip"}
        return await self._add_process(name, instance, own, {"INSTANCE": instance})

    async def add_standby(self, name: str) -> str:
        """Run a process that waits to take a service's place; waiting when this returns.

        Whichever of the two ends is started again and waits in its turn.

        Returns:
            The process's name: `<service>-standby`.
        """
        # all other ports are the place's: who takes it opens them
        return await self._add_process(name, "standby", {"ADMIN_PORT": "admin"}, {})

    async def _add_process(
        self, name: str, suffix: str, own: Mapping[str, str], changes: Mapping[str, str]
    ) -> str:
        assert self._surroundings is not None, "the stack is not started"
        declared = next(found for found in self.declarations if found.name == name)
        process = f"{name}-{suffix}"
        names = [f"{process}_{kind}" for kind in own.values()]
        free = choose_ports(names, {}, {}, slot=slot_of(process), taken=set(self._ports.values()))
        self._ports |= free
        settings = {key: str(free[f"{process}_{kind}"]) for key, kind in own.items()}
        environment = self._surroundings.of(declared) | {
            f"{declared.env_prefix}{key}": value for key, value in {**settings, **changes}.items()
        }
        specification = replace(
            self._service(declared, environment),
            name=process,
            probe=partial(is_service_ready, free[f"{process}_admin"]),
            port=free[f"{process}_admin"],
        )
        await self._start_process(specification)
        await self.wait_ready(process)
        return process

    async def _start_process(self, specification: ProcessSpecification) -> None:
        process = ManagedProcess(
            specification,
            self.layout.logs / f"{specification.name}.log",
            self._write_state,
        )
        self._processes[specification.name] = process
        await process.start()

    async def _wait_until_ready(self, *, patient: bool) -> None:
        try:
            await _all(*(self.wait_ready(declared.name) for declared in self.declarations))
        except StackError as error:
            if not patient:
                raise
            self._error = str(error)
            self._set_phase("degraded")
        else:
            self._set_phase("ready")

    def _set_phase(self, phase: Phase) -> None:
        self._phase = phase
        self._write_state()

    def _write_state(self) -> None:
        own = ProcessIdentity.of(os.getpid())
        assert own is not None
        document: dict[str, Any] = {
            "phase": self._phase,
            "error": self._error,
            "since_s": self._since_s,
            "simulation": self.simulation,
            "kafka_tls": self._kafka_tls,
            "supervisor": {"pid": own.pid, "started_ticks": own.started_ticks},
            "processes": {
                name: {
                    "pid": process.identity.pid if process.identity else None,
                    "started_ticks": process.identity.started_ticks if process.identity else None,
                    "since_s": process.since_s,
                    "n_restarts": process.n_restarts,
                    "exit_code": process.exit_code,
                    "port": process.specification.port,
                    "admin_port": self._ports.get(f"{name}_admin"),
                }
                for name, process in self._processes.items()
            },
        }
        write_private(self.layout.state_path, document)

    # --- what runs

    @property
    def infrastructure(self) -> Infrastructure:
        """Addresses of the servers."""
        return Infrastructure(kafka=self.kafka, postgres_admin_dsn=self.admin_dsn())

    @property
    def kafka(self) -> KafkaLogin:
        """Kafka's administrator: may read and write everything, which no service may."""
        assert self._cluster is not None, "the stack is not started"
        return self._cluster.administrator

    def kafka_login(self, user: str) -> KafkaLogin:
        """Return the login of a service or of staff, with the password of now."""
        assert self._cluster is not None, "the stack is not started"
        passwords = read_document(self.layout.secrets_path)["kafka_passwords"]
        return self._cluster.login(user, passwords[user])

    @property
    def kafka_names(self) -> list[str]:
        """Names of Kafka's processes."""
        return list(self._kafka_names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the processes."""
        return tuple(self._processes)

    def port(self, name: str) -> int:
        """Return a port by its name (`deploy.local.environment.port_names`)."""
        return self._ports[name]

    def admin_dsn(self, database: str = "postgres") -> str:
        """Return the database administrator's URL."""
        assert self._postgres is not None, "the stack is not started"
        return self._postgres.dsn(database)

    def url(self, name: str) -> str:
        """Return where a service serves HTTP."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def admin_url(self, name: str) -> str:
        """Return where a service serves /metrics, /livez and /readyz."""
        return f"http://127.0.0.1:{self._ports[f'{name}_admin']}"

    def env(self, name: str) -> dict[str, str]:
        """Return the environment a service is run with."""
        assert self._surroundings is not None, "the stack is not started"
        declared = next(found for found in self.declarations if found.name == name)
        return self._surroundings.of(declared)

    def log_path(self, name: str) -> Path:
        """Return the file a process writes its log to."""
        return self.layout.logs / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """Return the pid of a process; None while it does not run."""
        identity = self._process(name).identity
        return None if identity is None else identity.pid

    def n_restarts(self, name: str) -> int:
        """Return how often a process was started again after it had ended by itself."""
        return self._process(name).n_restarts

    def _process(self, name: str) -> ManagedProcess:
        try:
            return self._processes[name]
        except KeyError:
            known = ", ".join(self._processes)
            raise StackError(f"There is no process {name}; there are {known}.") from None

    # --- faults and orders

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process; if it ends by that, it is started again with back-off."""
        self._process(name).kill(number)

    async def stop(self, name: str) -> None:
        """End a process gracefully and leave it ended until `start_again`."""
        await self._process(name).stop()

    async def start_again(self, name: str, within_s: float = READY_TIMEOUT_S) -> None:
        """Start a process that `stop` ended, and wait until it is ready."""
        await self._process(name).start()
        await self.wait_ready(name, within_s)

    async def restart(self, name: str, within_s: float = READY_TIMEOUT_S) -> None:
        """Stop a process gracefully, start it, and wait until it is ready."""
        await self.stop(name)
        await self.start_again(name, within_s)

    async def wait_ready(self, name: str, within_s: float = READY_TIMEOUT_S) -> None:
        """Wait until a process says that it is ready.

        Raises:
            StackError: it is not in time, or it ends again and again; with its last lines.
        """
        process = self._process(name)
        n_before = process.n_failures
        deadline_s = time.monotonic() + within_s
        while process.identity is None or not await process.specification.probe():
            if process.n_failures - n_before >= FAILURES_MAX:
                raise StackError(
                    f"{name} ended {FAILURES_MAX} times, last with {process.exit_code}"
                    f" ({process.log_path}):\n{log_tail(process.log_path)}"
                )
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"{name} is not ready after {within_s:.0f} s"
                    f" ({process.log_path}):\n{log_tail(process.log_path)}"
                )
            await asyncio.sleep(POLL_S)

    async def run(self, name: str, *arguments: str, said: str = "", within_s: float = 120.0) -> str:
        """Run a service's own subcommand, e.g. `run("retention", "sweep", "--as-of", …)`.

        Args:
            said: its standard input.

        Returns:
            What it printed.

        Raises:
            StackError: it failed; with its last lines.
        """
        assert self._surroundings is not None, "the stack is not started"
        declared = next(found for found in self.declarations if found.name == name)
        specification = self._service(declared, self.env(name), *arguments)
        path = self.layout.logs / f"{name}-command-{os.getpid()}-{time.monotonic_ns()}.log"
        try:
            await run_once(specification, path, within_s, said)
            return path.read_text(encoding="utf-8")
        finally:
            path.unlink(missing_ok=True)


async def _all(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Run together; when one fails, end the others and raise its error alone."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
