"""PostgreSQL and Kafka in containers of the official images, reached by TLS only (R-C5).

Goal: nothing between a service and its servers can be read or answered by somebody else, and no run
leaves a container behind. Method: a real service's sessions are looked at in the server; then the
same logins are tried without TLS, against another authority and under a name not in the
certificate. Tests marked `containers` need STACK=containers (`make test-containers`).
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import KafkaException
from docker.models.containers import Container
from testcontainers.core.docker_client import DockerClient

from deploy.access import AccessProvisioner
from deploy.local.identity import ProcessIdentity
from deploy.local.layout import ROOT, read_document
from services.chassis.kafka import KafkaLogin
from tests.support.containers import (
    LABEL,
    POSTGRES_IMAGE,
    remove_left_over,
    watcher_name,
)
from tests.support.eventually import eventually
from tests.support.running import ready
from tests.support.stack import World, infrastructure

pytestmark = pytest.mark.integration
containers = pytest.mark.containers
WORLD_SERVICES = ["consent"]
# in a certificate, and what a client checks, is a name: this one leads to the same server
OTHER_NAME = "127.0.0.2"
DEAD = ProcessIdentity(pid=2**22 + 1, started_ticks=1)
"""No process: the number is above the kernel's highest."""


@pytest.fixture
def other_authority(tmp_path: Path) -> Path:
    path = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


@asynccontextmanager
async def also_at_another_name(address: str) -> AsyncIterator[str]:
    """Lead a port of `OTHER_NAME` to a server; yield host:port."""
    host, _, port = address.rpartition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # either end may hang up
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(serve, OTHER_NAME, 0)
    async with server:
        yield f"{OTHER_NAME}:{server.sockets[0].getsockname()[1]}"


async def brokers(login: KafkaLogin) -> int:
    """Log in to Kafka and count its brokers."""
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=5000)
    try:
        await admin.start()
        return len((await admin.describe_cluster())["brokers"])
    finally:
        await admin.close()


def changed(url: str, old: str, new: str) -> str:
    """Return a URL with one part exchanged, which must be there."""
    assert url.count(old) == 1
    return url.replace(old, new)


# --- PostgreSQL


@containers
async def test_every_session_of_a_service_is_encrypted(world: World) -> None:
    world.start("consent")
    await ready(world, "consent")
    admin = await asyncpg.connect(world.infrastructure.postgres_admin_dsn)
    try:
        rows = await admin.fetch(
            "SELECT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE usename = $1",
            world.databases["consent"].name,
        )
    finally:
        await admin.close()
    assert len(rows) >= 2
    assert {(row["ssl"], row["version"]) for row in rows} == {(True, "TLSv1.3")}


@containers
async def test_postgres_refuses_a_login_without_tls(world: World) -> None:
    for url in (world.database_url("consent"), world.infrastructure.postgres_admin_dsn):
        plain = changed(url, "sslmode=verify-full", "sslmode=disable")
        with pytest.raises(
            asyncpg.InvalidAuthorizationSpecificationError, match=r"no pg_hba\.conf entry"
        ):
            await asyncpg.connect(plain)


@containers
async def test_postgres_of_another_authority_is_refused(
    world: World, other_authority: Path
) -> None:
    ca_file = world.kafka.ca_file
    assert ca_file is not None
    url = world.database_url("consent").partition("&sslrootcert=")[0]
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncpg.connect(f"{url}&sslrootcert={other_authority}")
    conn = await asyncpg.connect(f"{url}&sslrootcert={ca_file}")
    await conn.close()


@containers
async def test_postgres_under_a_name_not_in_its_certificate_is_refused(world: World) -> None:
    url = world.database_url("consent")
    address = url.partition("@")[2].partition("/")[0]
    async with also_at_another_name(address) as other:
        with pytest.raises(OSError, match="not valid for"):
            await asyncpg.connect(changed(url, address, other))
        # it is the name alone: who checks the signature only gets through
        signature_only = changed(url, "verify-full", "verify-ca")
        conn = await asyncpg.connect(changed(signature_only, address, other))
        await conn.close()


@containers
async def test_postgres_runs_with_the_settings_of_the_local_stack(world: World) -> None:
    admin = await asyncpg.connect(world.infrastructure.postgres_admin_dsn)
    try:
        rows = await admin.fetch(
            "SELECT name, setting FROM pg_settings WHERE name = ANY($1)",
            ["wal_recycle", "wal_init_zero", "password_encryption", "log_statement", "ssl"],
        )
        version = await admin.fetchval("SHOW server_version_num")
    finally:
        await admin.close()
    found = {row["name"]: row["setting"] for row in rows}
    assert found == {
        "wal_recycle": "off",
        "wal_init_zero": "off",
        "password_encryption": "scram-sha-256",
        "log_statement": "none",
        "ssl": "on",
    }
    assert version.startswith("18")


# --- Kafka


@containers
async def test_kafka_refuses_a_login_without_tls(world: World) -> None:
    assert await brokers(world.kafka) == 1
    with pytest.raises(KafkaConnectionError):
        await brokers(replace(world.kafka, ca_file=None))


@containers
async def test_kafka_of_another_authority_is_refused(world: World, other_authority: Path) -> None:
    with pytest.raises(KafkaConnectionError):
        await brokers(replace(world.kafka, ca_file=other_authority))


@containers
async def test_kafka_under_a_name_not_in_its_certificate_is_refused(world: World) -> None:
    async with also_at_another_name(world.kafka.bootstrap) as other:
        with pytest.raises(KafkaConnectionError):
            await brokers(replace(world.kafka, bootstrap=other))


@containers
async def test_whoever_sets_rights_refuses_kafka_of_another_authority(
    world: World, other_authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rights are set by another client library, with settings of its own."""
    monkeypatch.setattr("deploy.access.ANSWER_TIMEOUT_S", 3.0)

    def users(login: KafkaLogin) -> None:
        AccessProvisioner(login).rights_of(["nobody"])

    await asyncio.to_thread(users, world.kafka)
    with pytest.raises((KafkaException, TimeoutError)):
        await asyncio.to_thread(users, replace(world.kafka, ca_file=other_authority))


# --- what is left


def containers_of(name: str) -> list[Container]:
    found: list[Container] = DockerClient().client.containers.list(
        all=True, filters={"label": f"{LABEL}={name}"}, ignore_removed=True
    )
    return found


@containers
async def test_what_a_killed_watcher_left_goes_and_what_runs_stays(world: World) -> None:
    client = DockerClient()
    for name in (watcher_name(DEAD), "another-machine/boot/1/1"):
        client.create(POSTGRES_IMAGE, labels={LABEL: name})
    try:
        await asyncio.to_thread(remove_left_over)
        assert not containers_of(watcher_name(DEAD))
        assert len(containers_of("another-machine/boot/1/1")) == 1
        # this run's own servers
        assert await brokers(world.kafka) == 1
    finally:
        for container in containers_of("another-machine/boot/1/1"):
            container.remove(force=True, v=True)


RUN = """
import time
from tests.support.stack import infrastructure
infrastructure()
print("ready", flush=True)
time.sleep(600)
"""


@containers
@pytest.mark.timeout(300)
async def test_a_killed_run_leaves_no_container_and_no_file() -> None:
    # a run of its own, not another worker of this one
    own = {name: text for name, text in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN), cwd=ROOT, env=own, stdout=subprocess.PIPE
    )
    folder = ROOT / "var" / f"tests-{run.pid}"
    try:
        assert run.stdout is not None
        assert await run.stdout.readline() == b"ready\n"
        watcher = read_document(folder / "state.json")["watcher"]
        assert len(containers_of(watcher)) == 2
    finally:
        run.kill()
        await run.wait()

    async def is_gone() -> bool:
        return not await asyncio.to_thread(containers_of, watcher) and not folder.exists()

    await eventually(is_gone, within_s=60, what="the removal of containers and folder")


# --- without an engine, in every run


async def ends(folder: Path, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.containers", str(folder), str(os.getpid())),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


async def test_without_an_engine_one_sentence_says_so(tmp_path: Path) -> None:
    status, said = await ends(tmp_path / "run", DOCKER_HOST=f"unix://{tmp_path}/no.sock")
    assert status == 1
    assert said.startswith("STACK=containers needs a Docker engine, and none answers at unix://")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"STACK": "container"}, "STACK=container: set it to `containers`, or leave it out"),
        (
            {"STACK": "containers", "STACK_KAFKA": "a:b@c:1", "STACK_POSTGRES": "postgresql://c"},
            "not both",
        ),
    ],
)
def test_a_wrong_choice_of_servers_starts_nothing(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STACK", "STACK_KAFKA", "STACK_POSTGRES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tests.support.stack._start_servers", None)
    with pytest.raises(RuntimeError, match=message):
        infrastructure()
