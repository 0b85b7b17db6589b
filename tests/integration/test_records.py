"""A system outside tells of a record, is ordered to delete it, and answers (R-D5b to R-D8, D3).

Goal: who knows the contract only (AsyncAPI, JSON Schema) can keep records under our schedule, by
its own login and rights. Method: the CNCF's library and librdkafka as `record_source`; retention
runs as a process; consent runs too, and must leave the order alone.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import uuid_utils
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.local.layout import ROOT
from deploy.provision import Infrastructure
from schemas.topics import RECORD_SOURCE
from tests.support.eventually import eventually
from tests.support.running import metric, ready
from tests.support.schedules import give_reviewed
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
WAIT_S = 30.0
HOLDER = "enquiries"
KEY = Ed25519PrivateKey.generate()
PUBLIC_KEY = KEY.public_key().public_bytes_raw()
REGISTER = {
    "holders": [
        {
            "name": HOLDER,
            "since": "2026-01-01",
            "contract_on": None,
            "kinds": ["contact"],
            "keys": [{"public_key": PUBLIC_KEY.hex(), "valid_from": "2026-01-01"}],
        }
    ]
}


@pytest.fixture
def world(infra: Infrastructure, tmp_path: Path) -> Iterator[World]:
    made = finish(make_world(new_prefix(), ["consent", "retention"]))
    give_reviewed(made, tmp_path)
    path = tmp_path / "holders.json"
    path.write_text(json.dumps(REGISTER), encoding="utf-8")
    environment = made.environments["retention"]
    assert isinstance(environment, dict)
    environment["RETENTION_HOLDERS_PATH"] = str(path)
    yield made
    finish(made.close())


def schema(name: str) -> Any:
    return json.loads((ROOT / "schemas" / "json" / f"{name}.v1.json").read_text(encoding="utf-8"))


def connection(world: World, **more: object) -> dict[str, Any]:
    login = world.kafka_login(RECORD_SOURCE)
    return {
        "bootstrap.servers": login.bootstrap,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": login.username,
        "sasl.password": login.password.read(),
        **more,
    }


def signed(prefix: bytes, data: dict[str, Any], **beside: str) -> dict[str, Any]:
    """Sign as the handbook says, with nothing of ours (services/retention/README.md)."""
    text = json.dumps(
        data | beside, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    key_id = hashlib.sha256(PUBLIC_KEY).hexdigest()[:16]
    return data | {"key_id": key_id, "signature": KEY.sign(prefix + b"\0" + text).hex()}


def write(
    world: World, topic: str, key: str, data: dict[str, Any], event_id: str | None = None
) -> None:
    jsonschema.validate(data, schema(topic))
    event = CloudEvent(
        attributes={
            "specversion": "1.0",
            "id": event_id or str(uuid_utils.uuid7()),
            "type": f"de.callpartner.{topic}.v1",
            "source": f"/services/{RECORD_SOURCE}",
            "time": datetime.now(UTC),
            "subject": key,
            "datacontenttype": "application/json",
        },
        data=data,
    )
    message = to_binary(event, JSONFormat(), key_mapper=lambda _: key)
    failures: list[Any] = []
    producer = Producer(connection(world, acks="all"))
    producer.produce(
        f"{world.kafka_prefix}{topic}",
        message.value,
        key.encode(),
        headers=message.headers,
        on_delivery=lambda error, _: failures.append(error) if error else None,
    )
    assert producer.flush(WAIT_S) == 0
    assert failures == []


def order_for(world: World, holder: str) -> dict[str, Any]:
    """Return the first order that names a holder; all others are for others."""
    settings = {"group.id": "unused", "enable.auto.commit": False}
    consumer = Consumer(connection(world, **settings))
    try:
        consumer.assign(
            [TopicPartition(f"{world.kafka_prefix}retention-order", 0, OFFSET_BEGINNING)]
        )
        while True:
            found = consumer.poll(WAIT_S)
            assert found is not None, "no order came"
            if found.error() is None:
                message = KafkaMessage(dict(found.headers()), found.key(), found.value())
                data = from_binary(message, JSONFormat()).get_data()
                assert isinstance(data, dict)
                if data.get("holder") == holder:
                    return data
    finally:
        consumer.close()


async def test_a_foreign_holder_is_ordered_and_its_receipt_completes_the_order(
    world: World,
) -> None:
    """R-D7, R-C5, D3: told, ordered by the next sweep, answered; by rights of its own."""
    world.start("consent")
    world.start(
        "retention", RETENTION_SWEEP_INTERVAL_S="0.5", RETENTION_ORDER_WATCH_INTERVAL_S="0.2"
    )
    await ready(world, "consent", "retention")
    record_id = str(uuid_utils.uuid7())
    told = {
        "record_id": record_id,
        "kind": "contact",
        "holder": HOLDER,
        "happened": "purpose_fulfilled",
        "happened_on": "2026-11-20",
    }
    event_id = str(uuid_utils.uuid7())
    write(world, "record", record_id, signed(b"record", told, event_id=event_id), event_id)
    # what nobody signed, or a holder that nobody knows, is dead-lettered and stops nobody
    write(world, "record", record_id, told)
    write(world, "record", record_id, told | {"holder": "another"})
    order = order_for(world, HOLDER)
    jsonschema.validate(order, schema("retention-order"))
    assert (order["action"], order["record_ids"]) == ("drop", [record_id])

    async def is_left_alone() -> bool:
        name = 'consent_events_total{outcome="not_ours",topic="retention-order"}'
        return await metric(world, "consent", name) == 1

    await eventually(is_left_alone, within_s=20)
    open_before = await metric(world, "retention", "retention_orders_open")
    receipt = {
        "order_id": order["order_id"],
        "service": HOLDER,
        "kind": "contact",
        "counts": [
            {"table": "enquiries", "n_partitions": 0, "n_rows": 1, "n_held": 0, "n_restricted": 0}
        ],
        "done_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    write(world, "retention-receipt", order["order_id"], receipt)
    write(world, "retention-receipt", order["order_id"], signed(b"receipt", receipt))

    async def is_complete() -> bool:
        assert open_before is not None
        now_open = await metric(world, "retention", "retention_orders_open")
        return now_open is not None and now_open < open_before

    await eventually(is_complete, within_s=20)
    for topic, reason in (
        ("record", "not_signed"), ("record", "holder_unknown"),
        ("retention-receipt", "receipt_not_signed"),
    ):  # fmt: skip
        dead = f'retention_dead_letters_total{{reason="{reason}",topic="{topic}"}}'
        assert await metric(world, "retention", dead) == 1
    assert uuid.UUID(order["order_id"]).version == 7
