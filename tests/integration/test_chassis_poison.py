"""Poison in the middle of a poll (architecture.md "The path of a message", style 3.5).

Goal: a record that can never succeed goes to its dead-letter topic with where it came from, and
costs no other record. Method: the counting service in this loop on real Kafka and PostgreSQL.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from deploy.provision import Infrastructure
from schemas import topics
from services.chassis.outbox import OutboxRow
from tests.support.counting import (
    Counting,
    event,
    make_counting,
    row_of,
    rows_of,
    with_header,
    word_of,
)
from tests.support.stack import finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]
DEAD = topics.CONSENT.dead_letter


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


def undecodable() -> list[tuple[str, OutboxRow]]:
    """Each way in which bytes can be wrong, with the word that the dead letter says."""
    good = row_of(event())
    return [
        ("invalid_json_invalid", replace(good, payload=b'{"visitor_id": "')),
        ("invalid_missing", replace(good, payload=b"{}")),
        ("value_null", replace(good, payload=None)),
        ("type_unexpected", with_header(good, "ce_type", b"de.callpartner.ad-view.v1")),
        ("type_foreign", with_header(good, "ce_type", b"com.example.thing")),
        ("header_null", with_header(good, "ce_id", None)),
        ("header_not_utf8", with_header(good, "ce_type", b"\xff\xfe")),
        ("ce_id_or_time_invalid", with_header(good, "ce_time", b"yesterday")),
        ("key_mismatch", replace(good, key=b"somebody-else")),
        ("key_mismatch", replace(good, key=None)),
    ]


async def test_undecodable_records_in_mid_poll_cost_no_other_record(counting):
    """F4, faststream#2458: one transaction for the poll, dead letters in it, order kept."""
    poison = undecodable()
    good = rows_of(len(poison) + 1)
    mixed = [good[0]]
    for (_, bad), after in zip(poison, good[1:], strict=True):
        mixed += [bad, after]
    await counting.send(*mixed, partition=2)
    async with counting.running() as run:
        await counting.has_seen(len(good))
        dead = await counting.records(DEAD, len(poison))
        for reason in {reason for reason, _ in poison}:
            n = sum(1 for word, _ in poison if word == reason)
            assert run.sample("dead_letters_total", topic="consent", reason=reason) == n
        assert run.sample("events_total", topic="consent", outcome="dead_letter") == len(poison)
        assert await run.stop() == 0
    await counting.exactly_once(good)
    offsets = await counting.fetch("SELECT record_offset FROM seen")
    assert [row[0] for row in offsets] == list(range(0, len(mixed), 2))
    assert len(dead) == len(poison)
    for index, ((reason, bad), record) in enumerate(zip(poison, dead, strict=True)):
        headers = dict(record.headers)
        assert headers["dead_letter_topic"] == b"consent"
        assert headers["dead_letter_partition"] == b"2"
        assert headers["dead_letter_offset"] == str(2 * index + 1).encode()
        assert headers["dead_letter_reason"] == reason.encode()
        assert headers["dead_letter_service"] == b"consent"
        # the record itself is kept as it was, null and broken bytes included
        assert (record.key, record.value) == (bad.key, bad.payload)
        assert [h for h in record.headers if not h[0].startswith("dead_letter")] == bad.headers


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        pytest.param("constraint", "database_23514", id="check constraint"),
        pytest.param("overflow", "database_22000", id="value out of range"),
        pytest.param("poison", "word_poison", id="handler says poison"),
    ],
)
async def test_a_data_error_is_found_by_replaying_one_by_one(counting, word, reason):
    """Style 3.5: the culprits are buried, all others of the same poll have their effect once."""
    good = rows_of(6)
    bad = [row_of(event(word)) for _ in range(2)]
    mixed = [*good[:2], bad[0], *good[2:4], bad[1], *good[4:]]
    await counting.send(*mixed, partition=1)
    async with counting.running() as run:
        await counting.has_seen(len(good))
        dead = await counting.records(DEAD, 2)
        assert run.sample("events_total", topic="consent", outcome="seen") == len(good)
        assert run.sample("dead_letters_total", topic="consent", reason=reason) == 2
    await counting.exactly_once(good)
    assert [record.value for record in dead] == [row.payload for row in bad]
    assert [dict(record.headers)["dead_letter_offset"] for record in dead] == [b"2", b"5"]
    assert {dict(record.headers)["dead_letter_reason"] for record in dead} == {reason.encode()}


async def test_one_record_by_itself_goes_on_through_a_dead_letter_of_a_handler(counting):
    """`ctx.dead_letter`: the handler buries one record of a batch without an exception."""
    rows = [row_of(event()), row_of(event("odd")), row_of(event())]

    async def bury_odd(ctx, batch):
        for received in batch:
            if word_of(received) == "odd":
                ctx.dead_letter(received, "odd_word")

    await counting.send(*rows, partition=0)
    async with counting.running(before_save=bury_odd) as run:
        (dead,) = await counting.records(DEAD, 1)
        assert run.sample("dead_letters_total", topic="consent", reason="odd_word") == 1
    headers = dict(dead.headers)
    assert headers["dead_letter_offset"] == b"1"
    assert headers["ce_id"] == dict(rows[1].headers)["ce_id"]


async def test_nothing_but_poison_stops_the_service_and_loses_nothing(counting):
    """A2: a wrong contract deployed must not empty a topic into the dead letters."""
    bad = [replace(row_of(event()), payload=b"{}") for _ in range(6)]
    good = rows_of(2)
    await counting.send(good[0], *bad, good[1], partition=0)
    async with counting.running(poison_run_max=5) as run:
        assert await run.exit_code() == 1
        assert "poison" in str(run.service._failure)
    assert await counting.read(DEAD) == []
    assert await counting.n_seen() == 0
    # the contract is put right (here: a higher limit), and the same records go on
    async with counting.running(poison_run_max=6) as run:
        await counting.has_seen(2)
        assert len(await counting.records(DEAD, 6)) == 6
        assert await run.stop() == 0
    await counting.exactly_once(good)


@pytest.mark.parametrize("word", ["constraint", "bytes"])
async def test_poison_between_good_records_is_no_run(counting, word):
    """The limit counts poison in a row; replayed good records end a run as decoded ones do."""
    bad = [
        row_of(event(word)) if word == "constraint" else replace(row_of(event()), payload=b"{}")
        for _ in range(6)
    ]
    good = rows_of(7)
    mixed = [good[0]]
    for row, after in zip(bad, good[1:], strict=True):
        mixed += [row, after]
    await counting.send(*mixed, partition=0)
    async with counting.running(poison_run_max=3) as run:
        await counting.has_seen(len(good))
        assert len(await counting.records(DEAD, 6)) == 6
        assert await run.stop() == 0
    await counting.exactly_once(good)


async def test_a_run_of_poison_found_by_replay_stops_the_service(counting):
    """The limit holds for what the database refuses, too; what was done stays done once."""
    bad = [row_of(event("constraint")) for _ in range(5)]
    good = rows_of(1)
    await counting.send(good[0], *bad, partition=0)
    async with counting.running(poison_run_max=3) as run:
        assert await run.exit_code() == 1
    assert len(await counting.fetch("SELECT FROM outbox WHERE topic = 'consent-dlq'")) == 3
    async with counting.running(poison_run_max=3):
        await counting.records(DEAD, 5)
    await counting.exactly_once(good)
    offsets = [dict(r.headers)["dead_letter_offset"] for r in await counting.read(DEAD)]
    assert sorted(set(offsets)) == [b"1", b"2", b"3", b"4", b"5"]
