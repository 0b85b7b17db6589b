"""Who may do what (issue 4, section 1; R-C5): every pair of user and thing, at the real servers.

Goal: a service that reads, writes or deletes what its card does not name is refused by broker or
server. Method: every user logs in to this world's Kafka as itself and tries everything, without the
platform's own code between (librdkafka, or the protocol's own requests); every database role tries
every other database.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from deploy.access import CLUSTER, DEAD_LETTERS, STAFF, AccessProvisioner, Right, rights
from deploy.provision import with_database
from schemas.topics import (
    ALL_TOPICS,
    BY_NAME,
    OUTSIDE,
    RECORD_SOURCE,
    RETENTION_ORDER,
    RETENTION_RECEIPT,
)
from services.chassis.declaration import SERVICES, load_all
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret
from tests.support.stack import World, finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
USERS = (*SERVICES, *STAFF, *OUTSIDE)
WATCHERS = tuple(declared.name for declared in load_all() if declared.watches_topics)
REFUSED = KafkaError.TOPIC_AUTHORIZATION_FAILED
GROUP_REFUSED = KafkaError.GROUP_AUTHORIZATION_FAILED
WAIT_S = 30.0


def settings(login: KafkaLogin, **more: object) -> dict[str, Any]:
    """Return a login as librdkafka wants it."""
    return {
        "bootstrap.servers": login.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": login.username,
        "sasl.password": login.password.read(),
        "log_level": 0,
        **more,
    }


def may_write(user: str) -> set[str]:
    """Read the registry: what the card of a user lets it write."""
    if user == DEAD_LETTERS:
        return {topic.name for topic in ALL_TOPICS if topic.consumers}
    answers = {RETENTION_RECEIPT.name} if user == RECORD_SOURCE else set()
    return answers | {topic.name for topic in ALL_TOPICS if user in topic.producers}


def may_read(user: str) -> set[str]:
    """Read the registry: what the card of a user lets it read."""
    if user == DEAD_LETTERS:
        return {topic.name for topic in ALL_TOPICS if topic.is_dead_letter or topic.consumers}
    if user == RECORD_SOURCE:
        return {RETENTION_ORDER.name}
    return {topic.name for topic in ALL_TOPICS if user in topic.consumers}


def full_names(world: World) -> dict[str, str]:
    return {world.topic(topic): topic.name for topic in ALL_TOPICS}


@pytest.mark.parametrize("user", USERS)
def test_a_user_writes_what_its_card_names_and_nothing_else(world: World, user: str) -> None:
    taken: set[str] = set()
    codes: dict[str, int] = {}
    producer = Producer(settings(world.kafka_login(user), acks="all"), logger=None)

    def tell(error: Any, message: Any) -> None:
        name = full_names(world)[message.topic()]
        if error is None:
            taken.add(name)
        else:
            codes[name] = error.code()

    for full_name in full_names(world):
        producer.produce(full_name, b"{}", b"key", on_delivery=tell)
    assert producer.flush(WAIT_S) == 0
    assert taken == may_write(user)
    assert codes == dict.fromkeys(set(BY_NAME) - taken, REFUSED)


async def ask(login: KafkaLogin, *requests: Any) -> list[Any]:
    """Put requests of the protocol to the broker as a user, without any client's own rules."""
    client = AIOKafkaClient(**login.options())
    await client.bootstrap()
    try:
        (broker,) = client.cluster.brokers()
        return [await client.send(broker.nodeId, request) for request in requests]
    finally:
        await client.close()


@pytest.mark.parametrize("user", USERS)
async def test_a_user_reads_what_its_card_names_and_nothing_else(world: World, user: str) -> None:
    names = full_names(world)
    wanted = [(full_name, [(0, 0, 1000)]) for full_name in names]
    (answer,) = await ask(world.kafka_login(user), FetchRequest(100, 0, 1_000_000, 0, wanted))
    codes = {names[name]: parts[0][1] for name, parts in answer.topics}
    assert codes.keys() == BY_NAME.keys()
    readable = {name for name, code in codes.items() if code == 0}
    assert readable == may_read(user)
    # dead letters are looked up at their origins, so that staff's card names every topic
    assert {codes[name] for name in codes.keys() - readable} <= {REFUSED}


def outcomes(futures: dict[Any, Any]) -> set[int]:
    """Return the codes with which everything was refused; 0 = something was done."""
    codes = set()
    for future in futures.values():
        try:
            future.result(WAIT_S)
        except KafkaException as error:
            codes.add(error.args[0].code())
        else:
            codes.add(0)
    return codes


def every_deed(world: World, admin: Any) -> Iterable[tuple[str, Callable[[], dict[Any, Any]], int]]:
    """Everything else that could be done to topics and rights, and how it is refused."""
    names = list(full_names(world))
    lowered = ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)
    resources = [
        ConfigResource(ResourceType.TOPIC, name, incremental_configs=[lowered]) for name in names
    ]
    yield (
        "delete records",
        lambda: admin.delete_records([TopicPartition(name, 0, 1) for name in names]),
        REFUSED,
    )
    yield "delete topics", lambda: admin.delete_topics(names), REFUSED
    yield "alter settings", lambda: admin.incremental_alter_configs(resources), REFUSED
    yield (
        "make a topic",
        lambda: admin.create_topics([NewTopic(f"{world.kafka_prefix}new", 1, 1)]),
        REFUSED,
    )


@pytest.mark.parametrize("user", USERS)
def test_nobody_deletes_alters_or_makes(world: World, user: str) -> None:
    admin = AdminClient(settings(world.kafka_login(user)), logger=None)
    for what, act, code in every_deed(world, admin):
        assert outcomes(act()) == {code}, f"{user} may {what}"
    login = world.kafka_login(user)
    provisioner = AccessProvisioner(login)
    more = {Right(login.username, "topic", f"{world.kafka_prefix}ad-view", "alter_configs")}
    told = {right.resource for right in provisioner.rights_of([login.username])}
    # who asks for bytes on the disks is told of rights too; everybody else of nothing
    assert told == ({"topic", "group", "broker"} if user in WATCHERS else set())
    with pytest.raises(KafkaException, match="CLUSTER_AUTHORIZATION_FAILED"):
        provisioner.set_rights([login.username], more)
    with pytest.raises(KafkaException, match="CLUSTER_AUTHORIZATION_FAILED"):
        provisioner.set_passwords({login.username: "mine"})


@pytest.mark.parametrize("user", USERS)
async def test_a_group_is_its_services_own(world: World, user: str) -> None:
    """Nobody else may move a service's offsets or take its partitions; no group is free."""
    groups = [*SERVICES, *OUTSIDE, "other"]
    full = [f"{world.kafka_prefix}{group}" for group in groups]
    answers = await ask(
        world.kafka_login(user), *(FindCoordinatorRequest(group, 0) for group in full)
    )
    own = {g for g, a in zip(groups, answers, strict=True) if a.error_code != GROUP_REFUSED}
    # whoever keeps no state reads without a group
    assert own == ({user} if user in {*world.databases, *OUTSIDE} else set())


def test_who_watches_topics_learns_their_ages_and_no_more(world: World) -> None:
    """R-D5: retention asks for offsets by time everywhere; that it cannot read is tested above."""
    described = {
        right.name
        for right in rights(load_all())
        if right.user == "retention" and right.operation == "describe"
    }
    assert described == {*BY_NAME, CLUSTER}
    others = {
        right.user
        for right in rights(load_all(), simulation=True)
        if right.operation in {"describe", "alter_configs"} or right.resource == "broker"
    }
    assert others == {"retention"}


def test_rights_that_are_no_more_declared_are_taken_back(world: World) -> None:
    """A second provisioning changes nothing; one with a smaller card takes the rest away."""
    user = f"{world.prefix}_consent"
    provisioner = AccessProvisioner(world.kafka)
    before = provisioner.rights_of([user])
    assert before
    assert provisioner.set_rights([user], before) == []
    kept = set(sorted(before)[:1])
    try:
        assert len(provisioner.set_rights([user], kept)) == len(before) - 1
        wait_for(lambda: provisioner.rights_of([user]) == kept)
    finally:
        provisioner.set_rights([user], before)
    wait_for(lambda: provisioner.rights_of([user]) == before)


def wait_for(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.05)

    finish(wait())


@pytest.mark.parametrize(
    ("username", "password"),
    [("", "x"), ("nobody", "x"), ("own", "wrong")],
    ids=["no name", "unknown", "wrong password"],
)
async def test_a_wrong_login_is_refused(world: World, username: str, password: str) -> None:
    login = world.kafka_login("consent")
    name = login.username if username == "own" else username or "x"
    options = KafkaLogin(
        bootstrap=login.bootstrap, username=name, password=Secret(password)
    ).options()
    producer = AIOKafkaProducer(**options)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()


async def test_who_does_not_log_in_is_refused(world: World) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.kafka.bootstrap, request_timeout_ms=3000)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()


# ------------------------------------------------------------------ PostgreSQL


async def test_a_role_enters_its_own_database_and_no_other(world: World) -> None:
    with_one = [name for name in SERVICES if name in world.databases]
    for service, other in itertools.product(with_one, with_one):
        url = with_database(world.database_url(service), world.databases[other].name)
        if service == other:
            await (await asyncpg.connect(url)).close()
            continue
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(url)
    for service in with_one:
        for database in ("postgres", "template1"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(with_database(world.database_url(service), database))


@pytest.mark.parametrize("service", [s for s in SERVICES if s != "gateway"])
async def test_a_role_changes_rows_only(world: World, service: str) -> None:
    """No table made, altered or emptied; no other role taken on; nothing of the server read."""
    connection = await asyncpg.connect(world.database_url(service))
    try:
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace ="
            " 'public'::regnamespace AND NOT relispartition ORDER BY 1"
        )
        assert len(tables) > 5
        forbidden = [
            "CREATE TABLE own (id int)",
            "CREATE SCHEMA own",
            "SELECT passwd FROM pg_shadow",
            "SELECT pg_read_file('postgresql.conf')",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "ALTER SYSTEM SET fsync = off",
            f"SET ROLE {world.prefix}_{service}_owner",
            "CREATE ROLE own LOGIN",
            *(f"{deed} {row['relname']}" for row in tables for deed in ("TRUNCATE", "DROP TABLE")),
            *(f"ALTER TABLE {row['relname']} ADD COLUMN own int" for row in tables),
        ]
        for statement in forbidden:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_wrong_password_is_refused_by_the_database(world: World) -> None:
    wrong = asyncpg.connect(world.database_url("consent"), password="wrong")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await wrong


async def test_the_database_keeps_scram_verifiers_only(world: World) -> None:
    connection = await asyncpg.connect(world.infrastructure.postgres_admin_dsn)
    try:
        kinds = await connection.fetch(
            "SELECT DISTINCT left(rolpassword, 14) AS kind FROM pg_authid WHERE rolname LIKE $1",
            f"{world.prefix}%",
        )
    finally:
        await connection.close()
    assert [row["kind"] for row in kinds] == ["SCRAM-SHA-256$"]
