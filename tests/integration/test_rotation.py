"""A whole stack with three Kafka nodes that speak TLS; passwords and keys are rotated under way.

Goal (issue 4, sections 1 and 3): nothing stops and nothing is lost while every password and every
signing key is replaced, and a broker is killed; no secret stands in a log, a command line, an
environment or a report. Method: browsers choose their cookies all the while; each answer is kept
and compared with what the consent service has in its tables at the end (R-F2).
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError

from deploy.local.errors import StackError
from deploy.local.layout import KEY_KINDS, read_document
from deploy.local.rotate import retire, rotate
from deploy.local.stack import LocalStack
from schemas import topics
from services.chassis.declaration import SERVICES
from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret
from tests.support.eventually import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
NODES = ["kafka-1", "kafka-2", "kafka-3"]
CHOICE = {
    "choices": [{"purpose": "marketing", "decision": "refused"}],
    "catalogue_version": "2026-11.1",
    "wording_version": "2026-11.1",
    "language": "de",
    "method": "banner",
}


@dataclass
class Traffic:
    """What browsers were told; a refusal of the gateway ends the test."""

    origin: str
    decision_ids: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Choose again and again, each time as somebody new."""
        while not self.enough.is_set():
            async with self.browser() as http:
                await http.post("/v1/visits")
                answer = await http.post("/v1/consents", json=CHOICE)
                if answer.is_success:
                    self.decision_ids.append(answer.json()["decision_id"])
                else:
                    self.failures.append(answer.text)
            await asyncio.sleep(0.1)

    def browser(self) -> httpx.AsyncClient:
        """Return somebody's browser."""
        return httpx.AsyncClient(
            base_url=self.origin, headers={"Origin": self.origin}, timeout=20, trust_env=False
        )


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    async with LocalStack(
        tmp_path / "stack",
        kafka_nodes=3,
        kafka_tls=True,
        overrides={"GATEWAY_ADDRESS_RATE_PER_S": "1000"},
    ) as made:
        yield made


def all_secrets(stack: LocalStack) -> list[str]:
    """Return every secret text of the stack: passwords and keys, old ones not among them."""
    document = read_document(stack.layout.secrets_path)
    kinds = [found for found in document.values() if isinstance(found, dict)]
    texts = [text for found in kinds for text in found.values() if isinstance(text, str)]
    assert len(texts) > 15
    return texts


async def recorded(stack: LocalStack) -> set[str]:
    """Return the decisions in the consent service's tables."""
    connection = await asyncpg.connect(stack.admin_dsn("consent"))
    try:
        return {str(r["decision_id"]) for r in await connection.fetch("TABLE consent_record")}
    finally:
        await connection.close()


async def sessions(stack: LocalStack, service: str) -> None:
    """End a service's sessions at PostgreSQL: it must log in anew."""
    connection = await asyncpg.connect(stack.admin_dsn())
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", service
        )
    finally:
        await connection.close()


async def can_log_in(login: KafkaLogin) -> bool:
    producer = AIOKafkaProducer(**login.options(), request_timeout_ms=5000)
    try:
        await producer.start()
    except KafkaConnectionError:
        return False
    finally:
        await producer.stop()
    return True


async def new_ticket(traffic: Traffic) -> tuple[httpx.AsyncClient, str]:
    """Return a browser and its view ticket; the caller closes the browser."""
    http = traffic.browser()
    await http.post("/v1/visits")
    return http, (await http.post("/v1/view-tickets")).json()["ticket"]


async def shows(http: httpx.AsyncClient, ticket: str) -> int:
    """Return how the gateway answers to an event with this ticket and the browser's cookie."""
    event = {"ticket": ticket, "kind": "page_hit", "position_ms": 0}
    return (await http.post("/v1/ad-events", json={"events": [event]})).status_code


def key_id(ticket: str) -> str:
    return ticket.split(".")[1]


async def receipts_are_taken(stack: LocalStack) -> None:
    """Services sign with new keys, and retention knows them: an order is answered by all (R-D9)."""
    now = datetime.now(UTC).isoformat()
    await stack.run("retention", "sweep", "--as-of", now, "--again", "--wait", within_s=90)
    text = (stack.layout.folder / "logs" / "retention.log").read_text("utf-8")
    assert "receipt_not_signed" not in text


async def test_everything_is_rotated_while_it_runs(  # noqa: PLR0915 - one story, told in order
    stack: LocalStack,
) -> None:
    said: list[str] = []
    pids = {name: stack.pid(name) for name in stack.names}
    logins = [stack.kafka_login(service) for service in SERVICES]
    old_url = secret_file(stack, "consent", "consent_database_url")
    await replication_is_three(stack)
    await tls_is_asked_for(stack)
    traffic = Traffic(stack.url("gateway"))
    running = asyncio.create_task(traffic.run())
    http, old_ticket = await new_ticket(traffic)
    try:
        for service in SERVICES:
            await rotate(stack.layout.folder, service, said.append)
        for kind in KEY_KINDS:
            await rotate(stack.layout.folder, kind, said.append)
        await receipts_are_taken(stack)
        # whoever stands must log in anew: to the database, and to another broker
        for service in ("consent", "ad_ledger"):
            await sessions(stack, service)
        await eventually(lambda: has_more(traffic, 20), within_s=60)
        assert traffic.failures == [], "a rotation is not felt"
        stack.kill("kafka-2")
        await stack.wait_ready("kafka-2")
        # what was signed before is still good, what is signed now is signed anew
        assert await shows(http, old_ticket) == 202
        other, new_one = await new_ticket(traffic)
        assert key_id(new_one) != key_id(old_ticket) == "k1"
        assert await shows(other, new_one) == 202
        await other.aclose()
        with pytest.raises(StackError, match=r"valid for 1\.0 h more"):
            await retire(stack.layout.folder, "view_ticket_keys", said.append)
        n_before = len(traffic.decision_ids)
        await eventually(lambda: has_more(traffic, n_before + 10), within_s=30)
    finally:
        traffic.enough.set()
        await running
        await http.aclose()
    # a browser may be told to send again while the broken node's partitions move to another
    assert {json.loads(text)["reason"] for text in traffic.failures} <= {"kafka_away"}
    told = set(traffic.decision_ids)
    assert len(told) == len(traffic.decision_ids)

    async def all_are_recorded() -> bool:
        return told <= await recorded(stack)

    await eventually(all_are_recorded, within_s=30, what="all choices are recorded")
    assert len(await recorded(stack)) <= len(told) + len(traffic.failures)
    # nobody was restarted but the broker that was killed
    changed = {name for name in stack.names if stack.pid(name) != pids[name]}
    assert changed == {"kafka-2"}
    for login in logins:
        assert not await can_log_in(login), f"{login.username}: the old password still works"
        assert await can_log_in(stack.kafka_login(login.username))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(old_url)
    await an_old_key_is_retired(stack, traffic, old_ticket, said)
    no_secret_is_seen(stack, said, [old_url])


async def has_more(traffic: Traffic, n: int) -> bool:
    return len(traffic.decision_ids) >= n


def secret_file(stack: LocalStack, service: str, name: str) -> str:
    return (stack.layout.folder / "secrets" / service / name).read_text(encoding="utf-8")


async def replication_is_three(stack: LocalStack) -> None:
    """Every topic is on three nodes, and a write needs two (architecture.md, R-D5 bytes)."""
    assert stack.kafka_names == NODES
    admin = AIOKafkaAdminClient(**stack.kafka.options())
    await admin.start()
    try:
        described = await admin.describe_topics([topic.name for topic in topics.ALL_TOPICS])
        sizes = {len(part["replicas"]) for entry in described for part in entry["partitions"]}
        assert sizes == {3}
        resource = ConfigResource(ConfigResourceType.TOPIC, topics.AD_VIEW.name)
        (response,) = await admin.describe_configs([resource])
        settings = {entry[0]: entry[1] for entry in response.resources[0][4]}
        assert settings["min.insync.replicas"] == "2"
    finally:
        await admin.close()


async def an_old_key_is_retired(
    stack: LocalStack, traffic: Traffic, old_ticket: str, said: list[str]
) -> None:
    """Once nothing signed with it can be valid, the old key is forgotten: its tickets are void."""
    path = stack.layout.secrets_path
    document = read_document(path)
    document["signs_since_s"] = {}  # as if it were long ago
    path.write_text(json.dumps(document), encoding="utf-8")
    http, ticket = await new_ticket(traffic)
    await retire(stack.layout.folder, "view_ticket_keys", said.append)
    assert await shows(http, ticket) == 202
    assert await shows(http, old_ticket) == 422
    await http.aclose()


async def tls_is_asked_for(stack: LocalStack) -> None:
    """Who does not speak TLS, or trusts another authority, gets nowhere."""
    login = stack.kafka_login("consent")
    assert await can_log_in(login)
    assert not await can_log_in(replace(login, ca_file=None))
    assert login.ca_file is not None
    options = login.options() | {"ssl_context": ssl.create_default_context()}
    producer = AIOKafkaProducer(**options, request_timeout_ms=5000)
    with pytest.raises(KafkaConnectionError):
        await producer.start()
    await producer.stop()


def no_secret_is_seen(stack: LocalStack, said: list[str], old: list[str]) -> None:
    """R-C5: not in logs, in what was said, in the state, in command lines or environments."""
    places = {"said": "\n".join(said), "state": stack.layout.state_path.read_text("utf-8")}
    for path in stack.layout.logs.iterdir():
        places[path.name] = path.read_text(encoding="utf-8", errors="replace")
    for name in stack.names:
        for kind in ("cmdline", "environ"):
            found = Path(f"/proc/{stack.pid(name)}/{kind}").read_bytes()
            places[f"{kind} of {name}"] = found.decode(errors="replace")
    seen = [
        place
        for place, text in places.items()
        if any(secret in text for secret in [*all_secrets(stack), *old])
    ]
    assert seen == []
    private = [*stack.layout.folder.glob("secrets/*/*"), stack.layout.secrets_path]
    assert {oct(path.stat().st_mode & 0o077) for path in private} == {"0o0"}
    assert {path.stat().st_uid for path in private} == {os.geteuid()}


async def test_a_refused_key_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    """A file that is no key ring is said and counted, and changes nothing."""
    async with LocalStack(
        tmp_path / "stack", services=["gateway", "ad_ledger", "call_control"]
    ) as stack:
        traffic = Traffic(stack.url("gateway"))
        http, ticket = await new_ticket(traffic)
        path = stack.layout.folder / "secrets" / "gateway" / "gateway_view_ticket_keys"
        path.write_text('{"k2": "short"}', encoding="utf-8")

        async def is_refused() -> bool:
            answer = await http.get(f"{stack.admin_url('gateway')}/metrics")
            line = 'secret_reloads_total{outcome="refused",secret="view_ticket_keys"} 1.0'
            return line in answer.text

        await eventually(is_refused, within_s=20)
        assert await shows(http, ticket) == 202
        await http.aclose()
        assert '"short"' not in stack.log_path("gateway").read_text(encoding="utf-8")


async def test_a_stack_keeps_its_number_of_nodes(tmp_path: Path) -> None:
    """Data made with one node is not opened with three: a sentence, and nothing is changed."""
    async with LocalStack(tmp_path / "stack", services=[]):
        pass
    with pytest.raises(StackError, match=r"was made with 1 node\(s\), 3 are asked for"):
        await LocalStack(tmp_path / "stack", services=[], kafka_nodes=3).start()
    with pytest.raises(StackError, match="one node or three"):
        LocalStack(tmp_path / "other", services=[], kafka_nodes=2)
    async with LocalStack(tmp_path / "stack", services=[]) as stack:
        assert stack.kafka_names == ["kafka"]


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    """Neither by repr nor by what a client prints of its settings; yet it is what is sent."""
    path = tmp_path / "password"
    path.write_text("first-word\n", encoding="utf-8")
    login = KafkaLogin(bootstrap="k:1", username="u", password=Secret("", path))
    option = login.options()["sasl_plain_password"]
    assert "first-word" not in f"{login!r} {login.options()!r} {option} {option!r}"
    assert option.encode("utf-8") == b"first-word"
    path.write_text("second-word", encoding="utf-8")
    assert option.encode("utf-8") == b"second-word"
    path.unlink()
    assert option.encode("utf-8") == b"second-word"
