"""Writing to Kafka: refused records and the producer that must be built anew (hot-path.md 3)."""

from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka import errors as kafka_errors

from deploy.provision import Infrastructure
from schemas import topics
from schemas.topics import MESSAGE_BYTES_MAX
from services.chassis.outbox import OutboxRow
from services.chassis.produce import KafkaSink
from tests.support.counting import Counting, make_counting
from tests.support.stack import finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]
TOPIC = topics.RETENTION_ORDER  # one partition: one sequence


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


@pytest.fixture
async def sink(counting: Counting) -> AsyncIterator[KafkaSink]:
    world = counting.world
    made = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test")
    yield made
    await made.stop()


def row(text: str, n_bytes: int = 0) -> OutboxRow:
    return OutboxRow(TOPIC.name, b"k", [], text.encode().ljust(n_bytes, b" "))


async def values(counting: Counting) -> list[str]:
    return [record.value.decode().strip() for record in await counting.read(TOPIC)]


async def test_a_refused_record_does_not_stop_the_ones_after_it(counting, sink):
    """One refused batch leaves a hole in an idempotent producer's sequence: a new one is needed."""
    await sink.send_rows([row("a")])
    before = sink._producer
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        await sink.send_rows([row("too large", MESSAGE_BYTES_MAX + 1)])
    await sink.send_rows([row("b"), row("c")])
    await sink.send_rows([row("d")])
    assert await values(counting) == ["a", "b", "c", "d"]
    assert sink._producer is not before, "the producer was not built anew"


async def test_a_refused_record_among_others_is_said_and_not_tried_for_ever(counting, sink):
    """The refusal comes out, not the out-of-order errors that it causes in those behind it."""
    rows = [row("a"), row("too large", MESSAGE_BYTES_MAX + 1), row("b")]
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        await sink.send_rows(rows)
    await sink.send_rows([row("c")])
    found = await values(counting)
    assert found[0] == "a"
    assert found[-1] == "c"
    assert len(found) == len(set(found))


async def test_a_record_larger_than_the_client_takes_is_said_after_the_others_were_sent(
    counting, sink
):
    """Refused before it leaves: those before it are acknowledged, not forgotten in the air."""
    rows = [row("a"), row("b"), row("too large", MESSAGE_BYTES_MAX * 5), row("c")]
    with pytest.raises(kafka_errors.MessageSizeTooLargeError):
        await sink.send_rows(rows)
    await sink.send_rows([row("d")])
    assert await values(counting) == ["a", "b", "d"]


async def test_one_sender_does_not_discard_the_producer_another_has_built(counting, sink):
    """Two senders see the same error: only the producer that failed is thrown away."""
    await sink.start()
    old = sink._producer
    await sink._discard(old)
    await sink.start()
    new = sink._producer
    await sink._discard(old)
    assert sink._producer is new
    await sink.send_rows([row("a")])
    assert await values(counting) == ["a"]
