"""Somebody else's program on our topics (issue 4, section 4): CloudEvents without our code.

Goal: who knows the contract only (AsyncAPI, JSON Schema) can write what a service takes, and read
what it says. Method: the CNCF's library and librdkafka, with the gateway's login; the consent
service runs as a process between them.
"""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
import uuid_utils
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from deploy.local.layout import ROOT
from deploy.provision import Infrastructure
from tests.support.running import ready
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
N_PARTITIONS = 6
WAIT_S = 30.0


@pytest.fixture
def world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), ["consent", "gateway"]))
    yield made
    finish(made.close())


def schema(name: str) -> Any:
    return json.loads((ROOT / "schemas" / "json" / f"{name}.v1.json").read_text(encoding="utf-8"))


def connection(world: World, **more: object) -> dict[str, Any]:
    login = world.kafka_login("gateway")
    return {
        "bootstrap.servers": login.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": login.username,
        "sasl.password": login.password.read(),
        **more,
    }


def decision(visitor_id: str) -> dict[str, Any]:
    return {
        "decision_id": str(uuid_utils.uuid7()),
        "visitor_id": visitor_id,
        "choices": [{"purpose": "marketing", "decision": "refused"}],
        "catalogue_version": "2026-11.1",
        "wording_version": "2026-11.1",
        "language": "de",
        "method": "banner",
    }


async def test_a_foreign_program_writes_and_reads_our_topics(world: World) -> None:
    """R-F2: its decision is recorded, and it reads the state that follows from it."""
    world.start("consent")
    await ready(world, "consent")
    visitor_id = str(uuid.uuid4())
    write(world, visitor_id, decision(visitor_id))
    event = read(world, visitor_id)
    assert event.get_type() == "de.callpartner.consent-state.v1"
    assert event.get_source() == "/services/consent"
    assert event.get_subject() == visitor_id
    data = event.get_data()
    jsonschema.validate(data, schema("consent-state"))
    assert data["visitor_id"] == visitor_id
    assert {s["purpose"]: s["in_force"] for s in data["purposes"]}["marketing"] is False


def write(world: World, visitor_id: str, data: dict[str, Any]) -> None:
    jsonschema.validate(data, schema("consent"))
    event = CloudEvent(
        attributes={
            "specversion": "1.0",
            "id": str(uuid_utils.uuid7()),
            "type": "de.callpartner.consent.v1",
            "source": "/services/gateway",
            "time": datetime.now(UTC),
            "subject": visitor_id,
            "datacontenttype": "application/json",
        },
        data=data,
    )
    message = to_binary(event, JSONFormat(), key_mapper=lambda _: visitor_id)
    key = message.key.encode() if isinstance(message.key, str) else message.key
    failures: list[Any] = []
    producer = Producer(connection(world, acks="all"))
    producer.produce(
        f"{world.kafka_prefix}consent",
        message.value,
        key,
        headers=message.headers,
        on_delivery=lambda error, _: failures.append(error) if error else None,
    )
    assert producer.flush(WAIT_S) == 0
    assert failures == []


def read(world: World, visitor_id: str) -> Any:
    """Return the first event about a visitor."""
    settings = {"group.id": "unused", "enable.auto.commit": False}
    consumer = Consumer(connection(world, **settings))
    name = f"{world.kafka_prefix}consent-state"
    try:
        consumer.assign([TopicPartition(name, n, OFFSET_BEGINNING) for n in range(N_PARTITIONS)])
        while True:
            found = consumer.poll(WAIT_S)
            assert found is not None, "no state came"
            if found.error() is None and found.key() == visitor_id.encode():
                headers = dict(found.headers())
                return from_binary(KafkaMessage(headers, found.key(), found.value()), JSONFormat())
    finally:
        consumer.close()
