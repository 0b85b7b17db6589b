"""The local stack: real PostgreSQL and Kafka, and a tiny service in place of ours.

Each test starts a stack of its own in a temporary folder, because it kills parts of it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from deploy.errors import ProvisionError
from deploy.local.errors import StackError
from deploy.local.identity import ProcessIdentity
from deploy.local.layout import ROOT, Layout, read_document
from deploy.local.process import LOG_AGE_MAX_S, LOG_SPAN_MAX_S
from deploy.local.stack import LocalStack
from deploy.provision import (
    Infrastructure,
    drop_databases,
    drop_topics,
    provision_databases,
    provision_topics,
    role_names,
    set_topic_configs,
    with_database,
)
from schemas import topics
from services.chassis.declaration import Declaration
from tests.support.eventually import eventually
from tests.support.stack import finish, new_prefix

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ECHO = Declaration(name="echo", database=True, http=False)
ECHO_CODE = """
import asyncio, os, pathlib, sys
import asyncpg

async def migrate():
    conn = await asyncpg.connect(os.environ["ECHO_MIGRATE_DATABASE_URL"])
    await conn.execute("CREATE TABLE IF NOT EXISTS heard (word text)")
    await conn.close()

async def serve():
    assert "ECHO_DATABASE_URL" not in os.environ
    url = pathlib.Path(os.environ["ECHO_SECRETS_FOLDER"], "echo_database_url")
    assert "ECHO_MIGRATE_DATABASE_URL" not in os.environ
    if os.path.exists(os.environ["ECHO_CRASH_FILE"]):
        sys.exit("echo has lost its voice")
    conn = await asyncpg.connect(url.read_text())
    await conn.execute("INSERT INTO heard VALUES ('hello')")
    await conn.close()
    async def answer(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        writer.close()
    print("listening", flush=True)
    server = await asyncio.start_server(answer, "127.0.0.1", int(os.environ["ECHO_ADMIN_PORT"]))
    await server.serve_forever()

asyncio.run(migrate() if sys.argv[1:] == ["migrate"] else serve())
"""


@pytest.fixture
def echo_stack(tmp_path: Path) -> Callable[[], LocalStack]:
    package = tmp_path / "source" / "parts" / "echo"
    package.mkdir(parents=True)
    (package / "__main__.py").write_text(ECHO_CODE, encoding="utf-8")
    return lambda: LocalStack(
        tmp_path / "stack",
        declarations=[ECHO],
        package="parts",
        source=tmp_path / "source",
        overrides={"ECHO_CRASH_FILE": str(tmp_path / "crash")},
    )


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy.local",
            arguments[0],
            "--folder",
            str(folder),
            *arguments[1:],
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def children_of(pid: int) -> set[ProcessIdentity]:
    """Return the direct children: theirs may be of the tests' own servers, which come and go."""
    found: set[ProcessIdentity] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in tasks.read_text(encoding="ascii").split():
            identity = ProcessIdentity.of(int(child))
            if identity is not None:
                found.add(identity)
    return found


def descendants_of(pid: int) -> set[ProcessIdentity]:
    """Return the children, theirs, and so on."""
    children = children_of(pid)
    return children.union(*(descendants_of(child.pid) for child in children))


async def has_another_pid(stack: LocalStack, name: str, before: int | None) -> None:
    async def was_started_again() -> bool:
        return stack.pid(name) not in {before, None}

    await eventually(was_started_again, within_s=20)


def command_lines(pid: int) -> list[str]:
    return [
        Path(f"/proc/{identity.pid}/cmdline").read_text(encoding="utf-8")
        for identity in descendants_of(pid)
        if identity.is_alive
    ]


async def n_heard(stack: LocalStack) -> int:
    conn = await asyncpg.connect(stack.admin_dsn("echo"))
    count: int = await conn.fetchval("SELECT count(*) FROM heard")
    await conn.close()
    return count


async def test_a_second_start_finds_the_same_ports_and_the_data(
    echo_stack: Callable[[], LocalStack],
) -> None:
    """Start, stop, start again: rows and topics are kept, the ports are those of the first time."""
    async with echo_stack() as stack:
        ports = {name: stack.port(name) for name in ("postgres", "kafka", "echo_admin")}
        assert await n_heard(stack) == 1
    async with echo_stack() as stack:
        assert all(stack.port(name) == port for name, port in ports.items())
        assert await n_heard(stack) == 2
        assert await provision_topics(stack.kafka) == []


async def test_what_a_stack_wrote_before_a_long_stop_goes_at_its_start(
    echo_stack: Callable[[], LocalStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-D5: by the age of its own last line, before anybody writes behind it."""
    # not by the loop, which may come before the first line or after it
    monkeypatch.setattr("deploy.local.process.LOGS_TIDIED_EVERY_S", 3600)
    stack = echo_stack()
    stack.layout.prepare()
    log = stack.layout.logs / "echo.log"
    log.write_text("long ago\n", encoding="ascii")
    begun_s = time.time() - LOG_AGE_MAX_S - LOG_SPAN_MAX_S
    begun = log.with_name(".echo.log.begun")
    begun.touch()
    os.utime(begun, (begun_s, begun_s))
    os.utime(log, (begun_s + LOG_SPAN_MAX_S - 60, begun_s + LOG_SPAN_MAX_S - 60))
    async with stack:
        assert log.exists()
        found = b"".join(path.read_bytes() for path in stack.layout.logs.iterdir())
    assert b"long ago" not in found
    assert b"listening" in found


async def test_whatever_is_killed_is_started_again(echo_stack: Callable[[], LocalStack]) -> None:
    """SIGKILL to the service and to both servers, one after the other; each comes back."""
    async with echo_stack() as stack:
        for name in ("echo", "postgres", "kafka"):
            before = stack.pid(name)
            stack.kill(name)
            await has_another_pid(stack, name, before)
            await stack.wait_ready(name)
            assert stack.n_restarts(name) == 1
        assert await n_heard(stack) == 2


async def test_a_running_stack_obeys_hides_its_secrets_and_is_the_only_one(
    echo_stack: Callable[[], LocalStack],
) -> None:
    """One start, three things: stop and start by order; no password to be seen; no second stack."""
    async with echo_stack() as stack:
        await stack.stop("echo")
        assert stack.pid("echo") is None
        await stack.start_again("echo")
        first = stack.pid("echo")
        await stack.restart("echo")
        assert stack.pid("echo") not in {first, None}
        assert stack.n_restarts("echo") == 0

        passwords = read_document(stack.layout.folder / "secrets.json")["passwords"].values()
        lines = command_lines(os.getpid())
        assert any("kafka.Kafka" in line for line in lines)
        assert not any(password in line for password in passwords for line in lines)

        with pytest.raises(StackError, match="runs already"):
            await echo_stack().start()
        assert stack.pid("kafka") is not None


async def test_a_service_that_keeps_ending_gives_the_stack_up_and_leaves_nothing(
    echo_stack: Callable[[], LocalStack], tmp_path: Path
) -> None:
    (tmp_path / "crash").touch()
    before = children_of(os.getpid())
    with pytest.raises(StackError, match=r"(?s)echo ended 3 times.*lost its voice"):
        await echo_stack().start()
    assert not {identity for identity in children_of(os.getpid()) - before if identity.is_alive}


def test_up_status_down_as_a_person_types_them(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    assert command(folder, "status").returncode == 1
    assert "does not run" in command(folder, "down").stdout
    up = command(folder, "up", "--servers-only")
    assert up.returncode == 0, up.stderr + up.stdout
    assert up.stdout.count("ready") >= 2
    twice = command(folder, "up", "--servers-only")
    assert twice.returncode == 1
    assert "runs already" in twice.stderr
    assert command(folder, "status").returncode == 0
    shown = command(folder, "logs", "postgres", "--no-follow")
    assert "ready to accept connections" in shown.stdout
    assert "There is no log of nobody" in command(folder, "logs", "nobody").stderr
    state = read_document(Layout(folder).state_path)
    supervisor = ProcessIdentity.of(state["supervisor"]["pid"])
    assert supervisor is not None
    everybody = {supervisor} | descendants_of(supervisor.pid)
    assert len(everybody) > 4
    down = command(folder, "down")
    assert down.returncode == 0
    assert "its data is kept" in down.stdout
    assert not {identity for identity in everybody if identity.is_alive}
    again = command(folder, "down")
    assert again.returncode == 0
    assert "does not run" in again.stdout


def test_a_killed_supervisor_leaves_nothing_running(tmp_path: Path) -> None:
    """SIGKILL to the supervisor; all servers and PostgreSQL's children end; `up` works again."""
    folder = tmp_path / "stack"
    assert command(folder, "up", "--servers-only").returncode == 0
    pid = read_document(Layout(folder).state_path)["supervisor"]["pid"]
    everybody = descendants_of(pid)
    assert len(everybody) > 4
    os.kill(pid, signal.SIGKILL)

    async def all_have_ended() -> bool:
        return not any(one.is_alive for one in everybody)

    finish(eventually(all_have_ended, within_s=15))
    status = command(folder, "status")
    assert status.returncode == 1
    assert "supervisor died" in status.stdout
    assert command(folder, "up", "--servers-only").returncode == 0
    assert command(folder, "down").returncode == 0


async def test_rights_end_at_the_own_database(infra: Infrastructure) -> None:
    """Two services' databases: the runtime role changes rows, not tables, and no other database."""
    prefix = f"{new_prefix()}_"
    both = [ECHO, replace(ECHO, name="other")]
    passwords = dict.fromkeys(role_names(both, prefix), "p@ss/word")
    made = await provision_databases(infra.postgres_admin_dsn, both, passwords, prefix)
    assert await provision_databases(infra.postgres_admin_dsn, both, passwords, prefix) == made
    owner = await asyncpg.connect(made["echo"].migrate_url)
    await owner.execute("CREATE TABLE word (id bigint GENERATED ALWAYS AS IDENTITY, text text)")
    await owner.execute("CREATE FUNCTION answer() RETURNS int LANGUAGE sql RETURN 42")
    runtime = await asyncpg.connect(made["echo"].url)
    await runtime.execute("INSERT INTO word (text) VALUES ('yes')")
    assert await runtime.fetchval("UPDATE word SET text = 'no' RETURNING id") == 1
    assert await runtime.fetchval("SELECT answer()") == 42
    for forbidden in ("CREATE TABLE own (id int)", "DROP TABLE word", "TRUNCATE word"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await runtime.execute(forbidden)
    await runtime.close()
    await owner.close()
    elsewhere = with_database(made["other"].url, f"{prefix}echo")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(elsewhere)
    await drop_databases(infra.postgres_admin_dsn, both, prefix)


async def test_topics_follow_the_registry(infra: Infrastructure) -> None:
    """Made once; a changed setting is brought back; another partition count stops everything."""
    prefix = f"{new_prefix()}-"
    wanted = (topics.AD_VIEW, topics.RETENTION_ORDER)
    bootstrap = infra.kafka
    assert len(await provision_topics(bootstrap, wanted, prefix)) == 2
    assert await provision_topics(bootstrap, wanted, prefix) == []
    lowered = topics.AD_VIEW.configs() | {"retention.ms": "1000"}
    await set_topic_configs(bootstrap, {topics.AD_VIEW: lowered}, prefix)
    changed = await provision_topics(bootstrap, wanted, prefix)
    assert changed == [f"changed settings of topic {prefix}ad-view"]
    more = replace(topics.AD_VIEW, partitions=topics.AD_VIEW.partitions + 1)
    with pytest.raises(ProvisionError, match="has 6 partitions, the registry says 7"):
        await provision_topics(bootstrap, [more], prefix)
    await drop_topics(bootstrap, prefix)
