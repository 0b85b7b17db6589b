"""Who may do what on Kafka: users and access rights, from the registry and the services' cards.

Nothing here is written by hand for one service: a topic's producers may write it, its consumers may
read it under their own group, and whoever has no right is refused by the broker (R-C5).
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)

from deploy.errors import ProvisionError
from schemas.topics import (
    ALL_TOPICS,
    OUTSIDE,
    RECORD_SOURCE,
    REGISTRY,
    RETENTION_ORDER,
    RETENTION_RECEIPT,
    Topic,
)
from services.chassis.declaration import Declaration
from services.chassis.kafka import MECHANISM, KafkaLogin

DEAD_LETTERS = "staff_dead_letters"
"""Whoever works on dead letters (`python -m deploy.dead_letters`); no service."""
STAFF = (DEAD_LETTERS,)

CLUSTER = "kafka-cluster"
"""Kafka's one name for itself, whatever prefix topics and users have."""

SCRAM_ITERATIONS = 4096
"""Kafka's least: the passwords are random and long, so that more would only delay each login."""
ANSWER_TIMEOUT_S = 30.0
_VISIBLE_POLL_S = 0.02


@dataclass(frozen=True, order=True)
class Right:
    """One thing that one user may do.

    Attributes:
        resource: `topic`, `group`, or `broker`: Kafka's cluster as a whole.
        name: of the topic or group, prefix included; `CLUSTER`.
        operation: `read`, `write`, `describe` or `alter_configs`; the first two include describe.
    """

    user: str
    resource: str
    name: str
    operation: str


def user_names(declarations: Iterable[Declaration], prefix: str = "") -> list[str]:
    """Return the users that need a password: every service, staff by task, systems outside."""
    return [f"{prefix}{name}" for name in (*(d.name for d in declarations), *STAFF, *OUTSIDE)]


def rights(
    declarations: Iterable[Declaration],
    *,
    topics: Sequence[Topic] = ALL_TOPICS,
    user_prefix: str = "",
    kafka_prefix: str = "",
    simulation: bool = False,
) -> set[Right]:
    """Return all rights of services, staff and systems outside; what is not here is refused.

    Args:
        topics: which exist; rights to others are left out.
        user_prefix: before users' names.
        kafka_prefix: before topics' and groups' names.
        simulation: whether who watches topics may also lower their retention.
    """
    there = {topic.name for topic in topics}
    wanted = {
        *(right for declared in declarations for right in _of_service(declared, simulation)),
        *_of_dead_letters(),
        *_of_record_source(),
    }
    return {
        Right(
            f"{user_prefix}{right.user}",
            right.resource,
            right.name if right.resource == "broker" else f"{kafka_prefix}{right.name}",
            right.operation,
        )
        for right in wanted
        if right.resource != "topic" or right.name in there
    }


def _of_service(declared: Declaration, simulation: bool) -> Iterable[Right]:  # noqa: FBT001 - internal
    name = declared.name
    for topic in ALL_TOPICS:
        if name in topic.producers:
            yield Right(name, "topic", topic.name, "write")
        if name in topic.consumers:
            yield Right(name, "topic", topic.name, "read")
        if declared.watches_topics:
            yield Right(name, "topic", topic.name, "describe")
        if declared.watches_topics and simulation and topic.personal:
            yield Right(name, "topic", topic.name, "alter_configs")
    if declared.watches_topics:
        # how many bytes lie on the disks is the cluster's to say, not a topic's; with it comes who
        # has which rights and which groups there are, but no record
        yield Right(name, "broker", CLUSTER, "describe")
    if declared.database and any(name in topic.consumers for topic in ALL_TOPICS):
        # whoever keeps no state reads without a group
        yield Right(name, "group", name, "read")


def _of_dead_letters() -> Iterable[Right]:
    for topic in REGISTRY:
        if topic.consumers:
            yield Right(DEAD_LETTERS, "topic", topic.dead_letter.name, "read")
            # a letter without its value is looked up at its origin, and is sent there again
            yield Right(DEAD_LETTERS, "topic", topic.name, "read")
            yield Right(DEAD_LETTERS, "topic", topic.name, "write")


def _of_record_source() -> Iterable[Right]:
    for topic in REGISTRY:
        if RECORD_SOURCE in topic.producers:
            yield Right(RECORD_SOURCE, "topic", topic.name, "write")
    # orders are for all; those that name a holder are carried out and answered by it
    yield Right(RECORD_SOURCE, "topic", RETENTION_ORDER.name, "read")
    yield Right(RECORD_SOURCE, "topic", RETENTION_RECEIPT.name, "write")
    yield Right(RECORD_SOURCE, "group", RECORD_SOURCE, "read")


class AccessProvisioner:
    """Users and rights of one cluster, made by an administrator; all calls block."""

    def __init__(self, login: KafkaLogin) -> None:
        """Take the administrator's login."""
        settings: dict[str, Any] = {
            "bootstrap.servers": login.bootstrap,
            "security.protocol": login.protocol,
            "sasl.mechanism": MECHANISM,
            "sasl.username": login.username,
            "sasl.password": login.password.read(),
            "log_level": 0,
        }
        if login.ca_file is not None:
            settings["ssl.ca.location"] = str(login.ca_file)
        # its words go nowhere: what matters is raised
        self._admin = AdminClient(settings, logger=None)

    def set_passwords(self, passwords: Mapping[str, str]) -> None:
        """Make users, or give them other passwords; logins that stand are not ended.

        Raises:
            KafkaException: refused.
        """
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, SCRAM_ITERATIONS)
        if passwords:
            self._wait(
                self._admin.alter_user_scram_credentials(
                    [
                        UserScramCredentialUpsertion(user, info, password.encode())
                        for user, password in passwords.items()
                    ],
                    request_timeout=ANSWER_TIMEOUT_S,
                )
            )

    def remove_users(self, users: Iterable[str]) -> None:
        """Remove users that exist; nobody logs in as them any more."""
        known = self._admin.describe_user_scram_credentials().result(ANSWER_TIMEOUT_S)
        gone = [
            UserScramCredentialDeletion(user, ScramMechanism.SCRAM_SHA_512)
            for user in users
            if user in known
        ]
        if gone:
            self._wait(self._admin.alter_user_scram_credentials(gone))

    def rights_of(self, users: Iterable[str]) -> set[Right]:
        """Return the rights that these users have now."""
        wanted = set(users)
        return {right for right in map(_right, self._bindings()) if right.user in wanted}

    def set_rights(self, users: Iterable[str], wanted: set[Right]) -> list[str]:
        """Give these users exactly the wanted rights, and take every other one from them.

        Returns:
            What was done, one sentence per change.
        """
        there = self.rights_of(users)
        missing, surplus = sorted(wanted - there), sorted(there - wanted)
        if missing:
            self._wait(self._admin.create_acls([_binding(right) for right in missing]))
        if surplus:
            self._wait(self._admin.delete_acls([_filter(right) for right in surplus]))
        return [
            *(f"gave {_words(right)}" for right in missing),
            *(f"took {_words(right)}" for right in surplus),
        ]

    def _bindings(self) -> list[AclBinding]:
        everything = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None,
            AclOperation.ANY, AclPermissionType.ANY,
        )  # fmt: skip
        found: list[AclBinding] = self._admin.describe_acls(everything).result(ANSWER_TIMEOUT_S)
        return found

    @staticmethod
    def _wait(futures: Mapping[Any, Any]) -> None:
        for future in futures.values():
            future.result(ANSWER_TIMEOUT_S)


async def provision_access(
    login: KafkaLogin,
    passwords: Mapping[str, str],
    wanted: set[Right],
) -> list[str]:
    """Make the users and give them exactly these rights; see `AccessProvisioner`.

    Args:
        login: the administrator's.
        passwords: by user; these users' rights are brought to what is wanted.

    Raises:
        ProvisionError: Kafka refuses or does not answer.
    """

    def apply() -> list[str]:
        provisioner = AccessProvisioner(login)
        provisioner.set_passwords(passwords)
        return provisioner.set_rights(passwords, wanted)

    try:
        done = await asyncio.to_thread(apply)
    except KafkaException as error:
        raise ProvisionError(
            f"Kafka at {login.bootstrap} does not set rights: {error.args[0].name()}"
        ) from error
    if done:
        await _until_visible(login, set(passwords), wanted)
    return done


async def remove_access(login: KafkaLogin, users: Iterable[str]) -> None:
    """Remove users and their rights (tests)."""
    names = list(users)

    def apply() -> None:
        provisioner = AccessProvisioner(login)
        provisioner.set_rights(names, set())
        provisioner.remove_users(names)

    await asyncio.to_thread(apply)


async def _until_visible(login: KafkaLogin, users: set[str], wanted: set[Right]) -> None:
    """The controller has agreed; the broker, which decides, hears of it a moment later."""
    provisioner = AccessProvisioner(login)
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        while await asyncio.to_thread(provisioner.rights_of, users) != wanted:
            await asyncio.sleep(_VISIBLE_POLL_S)


_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "broker": ResourceType.BROKER,
}
_OPERATIONS = {
    "read": AclOperation.READ,
    "write": AclOperation.WRITE,
    "describe": AclOperation.DESCRIBE,
    "alter_configs": AclOperation.ALTER_CONFIGS,
}


def _binding(right: Right) -> AclBinding:
    return AclBinding(
        _RESOURCES[right.resource], right.name, ResourcePatternType.LITERAL,
        f"User:{right.user}", "*", _OPERATIONS[right.operation], AclPermissionType.ALLOW,
    )  # fmt: skip


def _filter(right: Right) -> AclBindingFilter:
    return AclBindingFilter(
        _RESOURCES.get(right.resource, ResourceType.ANY), right.name, ResourcePatternType.ANY,
        f"User:{right.user}", None, AclOperation[right.operation.upper()], AclPermissionType.ANY,
    )  # fmt: skip


def _right(binding: AclBinding) -> Right:
    return Right(
        binding.principal.removeprefix("User:"),
        binding.restype.name.lower(),
        binding.name,
        binding.operation.name.lower(),
    )


def _words(right: Right) -> str:
    return f"{right.user} {right.operation} on {right.resource} {right.name}"
