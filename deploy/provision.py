"""Make databases, roles and topics from what the services declare and the topic registry lists.

Everything can be run again: what exists is brought to what is declared, nothing is dropped.
`python -m deploy.provision` takes its addresses and passwords from the environment, or from files
that it names (`KAFKA_PASSWORD_FILE`).
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from deploy.access import provision_access, rights, user_names
from deploy.errors import ProvisionError
from schemas.topics import ALL_TOPICS, Topic
from services.chassis.declaration import Declaration, load_all
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret

REPLICAS_MAX = 3
_SHARED_DATABASES_LOCK = 7_411_003
_OPEN_TO_ALL = """
SELECT datname FROM pg_database d
WHERE datname IN ('postgres', 'template1')
  AND EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0)
ORDER BY datname
"""
ADMIN_TIMEOUT_MS = 30_000


@dataclass(frozen=True, kw_only=True)
class Infrastructure:
    """Where the servers are.

    Attributes:
        kafka: an administrator's login.
        postgres_admin_dsn: URL of a role that may make databases and roles.
    """

    kafka: KafkaLogin
    postgres_admin_dsn: str


@dataclass(frozen=True, kw_only=True)
class ServiceDatabase:
    """One service's database.

    Attributes:
        name: of the database and of the runtime role.
        url: for the service: may read and write rows, not change tables.
        migrate_url: for its migrations: owns everything.
        duty_url: for whom the law obliges: may read what is blocked, and nothing else (R-D6).
    """

    name: str
    url: str
    migrate_url: str
    duty_url: str


def with_role(dsn: str, role: str, password: str, database: str) -> str:
    """Return the URL of another role and database on the same server."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(role)}:{quote(password, safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=netloc, path=f"/{quote(database)}"))


def with_database(dsn: str, database: str) -> str:
    """Return the URL of another database for the same role."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{quote(database)}"))


def role_names(declarations: Sequence[Declaration], prefix: str = "") -> list[str]:
    """Return the roles that need a password: three of each service's database."""
    names = [f"{prefix}{declared.name}" for declared in declarations if declared.database]
    return [role for name in names for role in _roles(name)]


def _roles(name: str) -> tuple[str, str, str]:
    """Return the roles of a database: of the service, its migrations, and the legal duty."""
    return name, f"{name}_owner", f"{name}_duty"


def databases(
    admin_dsn: str,
    declarations: Sequence[Declaration],
    passwords: Mapping[str, str],
    prefix: str = "",
) -> dict[str, ServiceDatabase]:
    """Return each service's database by the service's name; nothing is made."""
    result = {}
    for declared in declarations:
        if not declared.database:
            continue
        name = f"{prefix}{declared.name}"
        _, owner, duty = _roles(name)
        result[declared.name] = ServiceDatabase(
            name=name,
            url=with_role(admin_dsn, name, passwords[name], name),
            migrate_url=with_role(admin_dsn, owner, passwords[owner], name),
            duty_url=with_role(admin_dsn, duty, passwords[duty], name),
        )
    return result


class Statements:
    """Definition statements with quoted names: PostgreSQL takes no parameters in them."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def run(self, template: str, *arguments: str) -> None:
        """Run a template of PostgreSQL's `format()`: %I a name, %L a text."""
        marks = "".join(f", ${number}::text" for number in range(2, len(arguments) + 2))
        # the marks are only numbers; server-side format() does all the quoting
        statement = await self._conn.fetchval(f"SELECT format($1{marks})", template, *arguments)
        await self._conn.execute(statement)


async def provision_databases(
    admin_dsn: str,
    declarations: Sequence[Declaration],
    passwords: Mapping[str, str],
    prefix: str = "",
) -> dict[str, ServiceDatabase]:
    """Make each service's database and its three roles, and set their rights.

    Args:
        admin_dsn: URL of a role that may do so.
        declarations: the services; those without a database are passed over.
        passwords: by role name, see `role_names`.
        prefix: put before the names of databases and roles; isolates tests from each other.

    Returns:
        The databases by service name.
    """
    result = databases(admin_dsn, declarations, passwords, prefix)
    conn = await asyncpg.connect(admin_dsn)
    try:
        await _close_shared_databases(conn)
        for database in result.values():
            await _provision_cluster_part(conn, database.name, passwords)
    finally:
        await conn.close()
    await asyncio.gather(
        *(_provision_inside(admin_dsn, database.name) for database in result.values())
    )
    return result


async def _close_shared_databases(conn: asyncpg.Connection) -> None:
    """They hold nothing, but whoever may enter may look at the server's catalogue."""
    # one at a time: the server refuses two who change the same rights at once
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", _SHARED_DATABASES_LOCK)
        for row in await conn.fetch(_OPEN_TO_ALL):
            await Statements(conn).run("REVOKE ALL ON DATABASE %I FROM PUBLIC", row["datname"])


async def _provision_cluster_part(
    conn: asyncpg.Connection, name: str, passwords: Mapping[str, str]
) -> None:
    statements = Statements(conn)
    for role in _roles(name):
        exists = await conn.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role)
        template = (
            f"{'ALTER' if exists else 'CREATE'} ROLE %I LOGIN NOSUPERUSER NOCREATEDB"
            " NOCREATEROLE NOREPLICATION PASSWORD %L"
        )
        await statements.run(template, role, passwords[role])
    if not await conn.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
        await statements.run("CREATE DATABASE %I OWNER %I", name, f"{name}_owner")
    # each role sees its own database only
    await statements.run("REVOKE ALL ON DATABASE %I FROM PUBLIC", name)
    await statements.run("GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I", name, name)
    await statements.run("GRANT CONNECT ON DATABASE %I TO %I", name, f"{name}_duty")


async def _provision_inside(admin_dsn: str, name: str) -> None:
    owner = f"{name}_owner"
    conn = await asyncpg.connect(with_database(admin_dsn, name))
    try:
        statements = Statements(conn)
        await statements.run("ALTER SCHEMA public OWNER TO %I", owner)
        await statements.run("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        await statements.run("GRANT USAGE ON SCHEMA public TO %I, %I", name, f"{name}_duty")
        # a function that runs with its owner's rights must not be anybody's to call
        await statements.run(
            "ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC", owner
        )
        for right, kind in (
            ("SELECT, INSERT, UPDATE, DELETE", "TABLES"),
            ("USAGE", "SEQUENCES"),
            ("EXECUTE", "FUNCTIONS"),
        ):
            await statements.run(
                f"ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA public GRANT {right} ON {kind}"
                " TO %I",
                owner,
                name,
            )
    finally:
        await conn.close()


async def drop_databases(admin_dsn: str, declarations: Sequence[Declaration], prefix: str) -> None:
    """Drop what `provision_databases` made for a prefix; only ever with one (tests)."""
    assert prefix, "databases without a prefix are somebody's data"
    conn = await asyncpg.connect(admin_dsn)
    try:
        statements = Statements(conn)
        for declared in declarations:
            if declared.database:
                name = f"{prefix}{declared.name}"
                await statements.run("DROP DATABASE IF EXISTS %I WITH (FORCE)", name)
                for role in _roles(name):
                    await statements.run("DROP ROLE IF EXISTS %I", role)
    finally:
        await conn.close()


def _raise_for(code: int, text: str | None, what: str) -> None:
    if code != 0:
        raise ProvisionError(
            f"Kafka refused {what}: {for_code(code).__name__} {text or ''}".strip()
        )


class TopicProvisioner:
    """Topics of one cluster."""

    def __init__(self, admin: Any, prefix: str) -> None:
        self._admin = admin
        self._prefix = prefix

    async def apply(self, topics: Sequence[Topic]) -> list[str]:
        """Make the missing topics and bring the settings of the others up to date.

        Returns:
            What was done, one sentence per change; empty when nothing was to do.

        Raises:
            ProvisionError: a topic has another number of partitions than the registry says.
        """
        existing = await self._partition_counts()
        self._check_partitions(topics, existing)
        missing = [topic for topic in topics if self._prefix + topic.name not in existing]
        done = await self._create(missing)
        if missing:
            await self._wait_for_leaders(missing)
        return done + await self._align([topic for topic in topics if topic not in missing])

    async def _partition_counts(self) -> dict[str, int]:
        names = await self._admin.list_topics()
        wanted = [name for name in names if name.startswith(self._prefix)]
        found = await self._admin.describe_topics(wanted) if wanted else []
        return {entry["topic"]: len(entry["partitions"]) for entry in found}

    def _check_partitions(self, topics: Sequence[Topic], existing: Mapping[str, int]) -> None:
        for topic in topics:
            n_found = existing.get(self._prefix + topic.name, topic.partitions)
            if n_found != topic.partitions:
                raise ProvisionError(
                    f"Topic {self._prefix}{topic.name} has {n_found} partitions, the registry says"
                    f" {topic.partitions}: another number sends keys to other partitions, so move"
                    " to a new topic instead, or on a local stack begin anew with `make clean`."
                )

    async def _create(self, topics: Sequence[Topic]) -> list[str]:
        if not topics:
            return []
        n_brokers = len((await self._admin.describe_cluster())["brokers"])
        response = await self._admin.create_topics(
            [
                NewTopic(
                    self._prefix + topic.name,
                    num_partitions=topic.partitions,
                    replication_factor=min(n_brokers, REPLICAS_MAX),
                    topic_configs=topic.configs(),
                )
                for topic in topics
            ],
            timeout_ms=ADMIN_TIMEOUT_MS,
        )
        for name, code, *rest in response.topic_errors:
            # somebody else made it at the same moment
            if code != TopicAlreadyExistsError.errno:
                _raise_for(code, rest[0] if rest else None, f"to make topic {name}")
        return [f"made topic {self._prefix}{topic.name}" for topic in topics]

    async def _wait_for_leaders(self, topics: Sequence[Topic]) -> None:
        """A topic is made before its partitions have leaders: its first reader would fail."""
        names = [self._prefix + topic.name for topic in topics]
        async with asyncio.timeout(ADMIN_TIMEOUT_MS / 1000):
            while True:
                found = await self._admin.describe_topics(names)
                if all(
                    entry["error_code"] == 0
                    and entry["partitions"]
                    and all(part["leader"] >= 0 for part in entry["partitions"])
                    for entry in found
                ):
                    return
                await asyncio.sleep(0.05)

    async def _align(self, topics: Sequence[Topic]) -> list[str]:
        if not topics:
            return []
        current = await self._configs(topics)
        changed = [
            topic
            for topic in topics
            if topic.configs().items() - current[self._prefix + topic.name].items()
        ]
        await self.set_configs({topic: topic.configs() for topic in changed})
        return [f"changed settings of topic {self._prefix}{topic.name}" for topic in changed]

    async def _configs(self, topics: Iterable[Topic]) -> dict[str, dict[str, str]]:
        current: dict[str, dict[str, str]] = {}
        resources = [
            ConfigResource(ConfigResourceType.TOPIC, self._prefix + topic.name) for topic in topics
        ]
        for response in await self._admin.describe_configs(resources):
            for code, text, _, name, entries in response.resources:
                _raise_for(code, text, f"to show the settings of {name}")
                current[name] = {entry[0]: entry[1] for entry in entries}
        return current

    async def set_configs(self, configs: Mapping[Topic, Mapping[str, str]]) -> None:
        """Replace all the settings of topics that differ from the broker's defaults."""
        if not configs:
            return
        responses = await self._admin.alter_configs(
            [
                ConfigResource(ConfigResourceType.TOPIC, self._prefix + topic.name, dict(settings))
                for topic, settings in configs.items()
            ]
        )
        for response in responses:
            for code, text, _, name in response.resources:
                _raise_for(code, text, f"the settings of {name}")
        # the controller has agreed; the broker, which answers questions, hears of it a moment later
        async with asyncio.timeout(ADMIN_TIMEOUT_MS / 1000):
            while not self._in_force(configs, await self._configs(configs)):
                await asyncio.sleep(0.05)

    def _in_force(
        self, wanted: Mapping[Topic, Mapping[str, str]], current: Mapping[str, Mapping[str, str]]
    ) -> bool:
        return all(
            settings.items() <= current[self._prefix + topic.name].items()
            for topic, settings in wanted.items()
        )


async def provision_topics(
    login: KafkaLogin, topics: Sequence[Topic] = ALL_TOPICS, prefix: str = ""
) -> list[str]:
    """Make and update the topics; see `TopicProvisioner.apply`."""
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=ADMIN_TIMEOUT_MS)
    try:
        await admin.start()
        return await TopicProvisioner(admin, prefix).apply(topics)
    except KafkaError as error:
        raise ProvisionError(
            f"Kafka at {login.bootstrap} does not do as asked: {error!r}"
        ) from error
    finally:
        await admin.close()


async def set_topic_configs(
    login: KafkaLogin, configs: Mapping[Topic, Mapping[str, str]], prefix: str = ""
) -> None:
    """Replace topics' settings for a while (a simulation lowers `retention.ms`).

    `provision_topics` brings back what the registry says.
    """
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=ADMIN_TIMEOUT_MS)
    try:
        await admin.start()
        await TopicProvisioner(admin, prefix).set_configs(configs)
    finally:
        await admin.close()


async def drop_topics(login: KafkaLogin, prefix: str) -> None:
    """Delete every topic of a prefix; only ever with one (tests)."""
    assert prefix, "topics without a prefix are somebody's data"
    admin = AIOKafkaAdminClient(**login.options(), request_timeout_ms=ADMIN_TIMEOUT_MS)
    try:
        await admin.start()
        names = [name for name in await admin.list_topics() if name.startswith(prefix)]
        if names:
            await admin.delete_topics(names, timeout_ms=ADMIN_TIMEOUT_MS)
    finally:
        await admin.close()


async def _main() -> None:
    declarations = load_all()
    names = ("KAFKA_BOOTSTRAP", "KAFKA_USERNAME", "KAFKA_PASSWORD", "POSTGRES_ADMIN_DSN")
    given = {name: _setting(name) for name in (*names, "ROLE_PASSWORDS", "KAFKA_PASSWORDS")}
    if missing := [name for name, text in given.items() if text is None]:
        raise ProvisionError(
            f"Set {', '.join(missing)}, or each with _FILE behind it. ROLE_PASSWORDS is JSON, a"
            f" password for each of {', '.join(role_names(declarations))}; KAFKA_PASSWORDS for each"
            f" of {', '.join(user_names(declarations))}."
        )
    ca_file = os.environ.get("KAFKA_CA_FILE")
    kafka = KafkaLogin(
        bootstrap=str(given["KAFKA_BOOTSTRAP"]),
        username=str(given["KAFKA_USERNAME"]),
        password=Secret(str(given["KAFKA_PASSWORD"])),
        ca_file=Path(ca_file) if ca_file else None,
    )
    roles = _passwords("ROLE_PASSWORDS", given, role_names(declarations))
    users = _passwords("KAFKA_PASSWORDS", given, user_names(declarations))
    await provision_databases(str(given["POSTGRES_ADMIN_DSN"]), declarations, roles)
    done = await provision_topics(kafka)
    done += await provision_access(kafka, users, rights(declarations))
    for line in done:
        sys.stdout.write(f"{line}\n")


def _setting(name: str) -> str | None:
    """Return a setting from the environment, or from the file that `<name>_FILE` names."""
    if path := os.environ.get(f"{name}_FILE"):
        return Path(path).read_text(encoding="utf-8").strip()
    return os.environ.get(name)


def _passwords(
    setting: str, given: Mapping[str, str | None], names: Sequence[str]
) -> dict[str, str]:
    found = json.loads(given[setting] or "{}")
    if lacking := [name for name in names if name not in found]:
        raise ProvisionError(f"{setting} lacks {', '.join(lacking)}.")
    return {name: found[name] for name in names}


def main() -> int:
    """Provision the servers named in the environment; the exit status."""
    try:
        asyncio.run(_main())
    except (ProvisionError, OSError, asyncpg.PostgresError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
