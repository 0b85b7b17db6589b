"""The run's PostgreSQL and Kafka in containers of the official images, reached by TLS only.

`python -m tests.support.containers <folder> <pid>` starts them with the settings of the local
stack, writes to the folder where they are, and removes all of it when the process <pid> ends.
"""

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from docker.errors import APIError, DockerException
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.exceptions import ContainerStartException

from deploy.local import kafka, postgres
from deploy.local.certificates import Certificates
from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity
from deploy.local.layout import Layout, read_document, write_private
from deploy.local.probes import is_kafka_ready, is_postgres_ready
from deploy.provision import Infrastructure
from tests.support.stack import infrastructure_of

POSTGRES_IMAGE, POSTGRES_PORT = "postgres:18", 5432
KAFKA_IMAGE, KAFKA_PORT = "apache/kafka:4.3.0", 9092
READY_TIMEOUT_S = 180.0
LABEL = "minutes.tests.watcher"
"""On each container: the process that looks after it (`watcher_name`)."""
_FILES = "/stack"
_COMPLETE = f"{_FILES}/complete"


def watcher_name(identity: ProcessIdentity) -> str:
    """Return a process' name that no other has, also where machines share an engine."""
    return f"{_machine()}{identity.pid}/{identity.started_ticks}"


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    # containers of one host share its boot id, but not their names
    return f"{socket.gethostname()}/{boot}/"


def _settings_lines(settings: Mapping[str, str], template: str) -> str:
    return "".join(template.format(name, value) for name, value in settings.items())


def postgres_files(layout: Layout, certificates: Certificates) -> dict[str, str]:
    """Return the texts of the server's files by name."""
    settings = postgres.SETTINGS | {
        "listen_addresses": "*",
        # the image's first start makes its users by this socket
        "unix_socket_directories": "/var/run/postgresql",
        "hba_file": f"{_FILES}/pg_hba.conf",
        "ssl": "on",
        "ssl_cert_file": f"{_FILES}/server.pem",
        "ssl_key_file": f"{_FILES}/server.pem",
    }
    return {
        "postgresql.conf": _settings_lines(settings, "{} = '{}'\n"),
        # no line for a session without TLS: it is refused before any password is asked for
        "pg_hba.conf": "local all all scram-sha-256\nhostssl all all all scram-sha-256\n",
        "password": read_document(layout.secrets_path)["passwords"]["postgres"],
        "server.pem": certificates.server_file.read_text(encoding="ascii"),
    }


def kafka_files(layout: Layout, certificates: Certificates, address: str) -> dict[str, str]:
    """Return the texts of the node's files by name.

    Args:
        layout: has the passwords.
        certificates: what the node shows.
        address: host:port where clients reach the container.
    """
    passwords = read_document(layout.secrets_path)["kafka_passwords"]
    names = ("CLIENT", "INTERNAL", "CONTROLLER")
    settings = kafka.SETTINGS | {
        "node.id": "1",
        "controller.quorum.voters": "1@localhost:9094",
        "log.dirs": "/tmp/kafka",  # the only folder that is the image's user's in every image
        "listeners": (
            f"CLIENT://0.0.0.0:{KAFKA_PORT},INTERNAL://localhost:9093,CONTROLLER://localhost:9094"
        ),
        # the clients' address may mean something else inside the container
        "advertised.listeners": f"CLIENT://{address},INTERNAL://localhost:9093",
        "inter.broker.listener.name": "INTERNAL",
        "listener.security.protocol.map": ",".join(f"{name}:SASL_SSL" for name in names),
    }
    for listener in ("client", "internal"):
        settings |= kafka.login_settings(listener, passwords[kafka.BROKER])
    settings |= kafka.replica_settings(1)
    settings |= kafka.tls_settings(f"{_FILES}/server.pem", f"{_FILES}/ca.pem")
    arguments = kafka.format_arguments(kafka.new_id(), f"{_FILES}/server.properties", passwords)
    return {
        "server.properties": _settings_lines(settings, "{}={}\n"),
        "format.arguments": "".join(f"{line}\n" for line in arguments),
        "log4j2.properties": Path(kafka.__file__)
        .with_name("log4j2.properties")
        .read_text(encoding="utf-8"),
        "server.pem": certificates.server_file.read_text(encoding="ascii"),
        "ca.pem": certificates.ca_file.read_text(encoding="ascii"),
    }


POSTGRES_SCRIPT = (
    f"chown -R postgres {_FILES} && chmod 600 {_FILES}/*"
    f" && exec docker-entrypoint.sh postgres -c config_file={_FILES}/postgresql.conf"
)
KAFKA_SCRIPT = (
    # its output is what the passwords are checked against
    f"/opt/kafka/bin/kafka-storage.sh format @{_FILES}/format.arguments >/dev/null"
    f" && exec /opt/kafka/bin/kafka-server-start.sh {_FILES}/server.properties"
)


class Server(DockerContainer):
    """A container that waits for its files, because they name the address it gets at its start."""

    def __init__(
        self, image: str, port: int, script: str, *, watcher: str, **environment: str
    ) -> None:
        super().__init__(image, env=environment)
        self._inner_port = port
        self.with_exposed_ports(port)
        wait = f"until [ -e {_COMPLETE} ]; do sleep 0.1; done"
        self.with_command(["sh", "-c", f"{wait}; {script}"])
        self.with_kwargs(labels={LABEL: watcher})

    @property
    def address(self) -> str:
        """Where clients reach it: host:port."""
        host = self.get_container_host_ip()
        # the engine may give IPv6 another port, where this one may lead to another server
        host = "127.0.0.1" if host == "localhost" else host
        return f"{host}:{self.get_exposed_port(self._inner_port)}"

    def give(self, files: Mapping[str, str]) -> None:
        """Give it its files; it starts when all are there."""
        for name, text in files.items():
            self.copy_into_container(text.encode(), f"{_FILES}/{name}")
        self.copy_into_container(b"", _COMPLETE)

    def log_tail(self) -> str:
        """Return the last lines of what it wrote."""
        text = self.get_wrapped_container().logs(tail=100).decode(errors="replace")
        # Java's traces would hide their causes
        lines = [line for line in text.splitlines() if not line.startswith("\tat ")]
        return "".join(f"\n  | {line}" for line in lines[-15:])


def _check_engine() -> DockerClient:
    try:
        client = DockerClient()
        client.client.ping()
    except DockerException as error:
        raise StackError(
            "STACK=containers needs a Docker engine, and none answers at"
            f" {os.environ.get('DOCKER_HOST', '/var/run/docker.sock')}: start one, name it in"
            " DOCKER_HOST, or leave STACK out."
        ) from error
    return client


def remove_left_over() -> None:
    """Remove the containers of watchers of this machine that died without doing so."""
    machine = _machine()
    # one that goes while they are listed is gone, and no error
    for container in DockerClient().client.containers.list(
        all=True, filters={"label": LABEL}, ignore_removed=True
    ):
        name = container.labels[LABEL]
        pid, _, ticks = name.removeprefix(machine).partition("/")
        if name.startswith(machine) and not ProcessIdentity(int(pid), int(ticks)).is_alive:
            # somebody else may remove it in the same moment
            with contextlib.suppress(APIError):
                container.remove(force=True, v=True)


@contextlib.contextmanager
def servers(layout: Layout) -> Iterator[Infrastructure]:
    """Run both servers; they answer when this yields, and are gone when it ends.

    Raises:
        StackError: no engine answers, or a server does not.
    """
    _check_engine()
    remove_left_over()
    # this process removes them, and the next run what a killed one left: no third image is needed
    testcontainers_config.ryuk_disabled = True
    layout.secrets(["postgres"], kafka.USERS)
    own = ProcessIdentity.of(os.getpid())
    assert own is not None
    watcher = watcher_name(own)
    database = Server(
        POSTGRES_IMAGE,
        POSTGRES_PORT,
        POSTGRES_SCRIPT,
        watcher=watcher,
        POSTGRES_PASSWORD_FILE=f"{_FILES}/password",
        POSTGRES_INITDB_ARGS="--encoding UTF8 --locale-provider builtin --builtin-locale C.UTF-8"
        " --locale C",
    )
    broker = Server(
        KAFKA_IMAGE,
        KAFKA_PORT,
        KAFKA_SCRIPT,
        watcher=watcher,
        KAFKA_HEAP_OPTS="-Xmx512m",
        KAFKA_LOG4J_OPTS=f"-Dlog4j2.configurationFile={_FILES}/log4j2.properties",
    )
    with database, broker:
        addresses = {"postgres": database.address, "kafka": broker.address}
        hosts = {address.rpartition(":")[0] for address in addresses.values()}
        certificates = Certificates.of(layout, sorted({"localhost", *hosts}))
        database.give(postgres_files(layout, certificates))
        broker.give(kafka_files(layout, certificates, addresses["kafka"]))
        write_private(layout.state_path, {"phase": "starting", "watcher": watcher, **addresses})
        found = infrastructure_of(layout)
        asyncio.run(_until_ready(database, broker, found))
        yield found


async def _until_ready(database: Server, broker: Server, found: Infrastructure) -> None:
    await asyncio.gather(
        _until(database, lambda: is_postgres_ready(found.postgres_admin_dsn)),
        _until(broker, lambda: is_kafka_ready(found.kafka)),
    )


async def _until(server: Server, is_ready: Callable[[], Awaitable[bool]]) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while not await is_ready():
        await asyncio.to_thread(server.reload)
        if server.status != "running" or time.monotonic() > deadline_s:
            raise StackError(
                f"{server.image} is {server.status} and does not answer:{server.log_tail()}"
            )
        await asyncio.sleep(0.1)


def _wait_until_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])


def main(folder: Path, while_pid: int) -> int:
    """Run the servers as long as the process lives; the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    layout = Layout(folder)
    layout.prepare()
    try:
        with servers(layout):
            write_private(layout.state_path, read_document(layout.state_path) | {"phase": "ready"})
            _wait_until_gone(while_pid)
    except (StackError, DockerException, ContainerStartException, OSError) as error:
        write_private(layout.state_path, {"phase": "failed", "error": str(error)})
        sys.stderr.write(f"{error}\n")
        return 1
    except SystemExit:
        pass  # SIGTERM
    shutil.rmtree(layout.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
