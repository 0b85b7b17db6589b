"""Dead letters of real Kafka in a person's hands (issue 4, section 4; R-D5, D1).

Goal: they can be found, looked at without a value, replayed once their cause is mended, discarded,
and every use is in the log. Method: the ledger runs as a process; the commands run as a person runs
them, against this world's Kafka and a folder of the test's own.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.access import DEAD_LETTERS
from deploy.dead_letters import __main__ as command_line
from deploy.dead_letters.commands import AT_ONCE_MAX
from deploy.dead_letters.journal import NAME
from deploy.dead_letters.letter import DeadLetterError
from deploy.local.layout import ROOT
from deploy.provision import Infrastructure
from schemas import topics, view_ticket
from schemas.ad_view import AdEventKind, AdViewV1
from schemas.call import CallEndV1
from schemas.credit import CreditOperation, CreditRequestV1
from schemas.topics import Topic
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.chassis.outbox import Outbox, OutboxRow
from services.chassis.produce import KafkaSink
from tests.support.bench import new_visitor_id
from tests.support.eventually import eventually
from tests.support.running import ready, send
from tests.support.stack import World, finish, make_world, new_prefix

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
IDS = TimeOrderedIds()
CLOCK = SystemClock()
AD_MS = 16_000
TALK_MS = 5_000
CANARY = "+4930231250815"
WHY = "issue 4, the contract is mended"


@pytest.fixture
def world(infra: Infrastructure) -> Iterator[World]:
    made = finish(make_world(new_prefix(), ("ad_ledger",)))
    yield made
    finish(made.close())


class Person:
    """Somebody at a terminal; everything printed is kept."""

    def __init__(self, world: World, folder: Any, capsys: Any) -> None:
        self._common = (
            *("--author", "ann", "--why", WHY, "--folder", str(folder)),
            *("--bootstrap", world.kafka.bootstrap, "--prefix", world.kafka_prefix),
            *("--username", world.kafka_login(DEAD_LETTERS).username),
        )
        self._capsys = capsys
        self.journal_path = folder / NAME
        self.printed = ""

    async def does(self, *arguments: str, status: int = 0) -> str:
        """Run a command in this process; return what it printed."""
        parsed = command_line.parser().parse_args(self._line(arguments))
        assert await command_line.carry_out(parsed) == status
        out: str = self._capsys.readouterr().out
        self.printed += out
        return out

    async def types(self, *arguments: str) -> tuple[int, str]:
        """Run a command as a process; return status and both outputs."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.dead_letters", *self._line(arguments)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        self.printed += out.decode()
        assert process.returncode is not None
        return process.returncode, out.decode()

    def _line(self, arguments: tuple[str, ...]) -> list[str]:
        command, *rest = arguments
        return [command, *self._common, *rest]

    async def sees(self, n: int) -> str:
        """Wait until so many letters are listed as open."""

        async def listed() -> str:
            out = await self.does("list")
            return out if out.startswith(f"{n} open") else ""

        return await eventually(listed, within_s=30, what=f"{n} open dead letters")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The journal."""
        return [json.loads(line) for line in self.journal_path.read_text().splitlines()]


@pytest.fixture
def person(world: World, tmp_path, capsys, monkeypatch) -> Person:
    monkeypatch.setenv("KAFKA_PASSWORD", world.kafka_login(DEAD_LETTERS).password.read())
    return Person(world, tmp_path / "stack", capsys)


def poison_ad_view() -> OutboxRow:
    """Return an ad view without a ticket; address, an unknown name and a header are canaries."""
    visitor_id = new_visitor_id()
    event = ad_view(visitor_id, "x" * 16, AdEventKind.START)
    outbox = Outbox("gateway", IDS, CLOCK.now())
    outbox.add(topics.AD_VIEW, event)
    (row,) = outbox.rows
    body = {"visitor_id": str(visitor_id), "kind": "start", "position_ms": 0}
    body |= {"address": CANARY, CANARY: CANARY}
    headers = [*row.headers, ("x-note", CANARY.encode()), ("x-null", None)]
    return replace(row, payload=json.dumps(body).encode(), headers=headers)


def ad_view(visitor_id: Any, ticket: str, kind: AdEventKind) -> AdViewV1:
    return AdViewV1(
        visitor_id=visitor_id, ticket=ticket, kind=kind, position_ms=AD_MS, address="192.0.2.7"
    )


async def send_rows(world: World, *rows: OutboxRow) -> None:
    sink = KafkaSink(world.kafka, prefix=world.kafka_prefix, client_id="test-poison")
    try:
        await sink.send_rows(rows)
    finally:
        await sink.stop()


async def records(world: World, topic: Topic) -> list[Any]:
    """Return all records of a topic."""
    consumer = AIOKafkaConsumer(**world.kafka.options(), group_id=None)
    await consumer.start()
    try:
        tps = [TopicPartition(world.topic(topic), p) for p in range(topic.partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        found: list[Any] = []
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for polled in (await consumer.getmany(timeout_ms=200)).values():
                found += polled
        return found
    finally:
        await consumer.stop()


async def fetch(world: World, sql: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(world.database_url("ad_ledger"))
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()


async def earn_and_reserve(world: World, visitor_id: Any, call_id: Any) -> None:
    """Watch a whole ad and reserve its credit for a call, as gateway and call control do."""
    keys = json.loads(world.settings("ad_ledger")["view_ticket_keys"])
    issued_at = CLOCK.now() - timedelta(seconds=20)
    ticket = view_ticket.issue(
        view_ticket.KeyRing(keys),
        view_ticket.ViewTicket(
            ticket_id=IDS.new(),
            visitor_id=visitor_id,
            ad_id="house-1",
            duration_ms=AD_MS,
            issued_at=issued_at,
            expires_at=issued_at + timedelta(hours=1),
        ),
    )
    kinds = [
        kind for kind in AdEventKind if kind not in (AdEventKind.CLICK, AdEventKind.CONVERSION)
    ]
    await send(
        world, "gateway", *((topics.AD_VIEW, ad_view(visitor_id, ticket, kind)) for kind in kinds)
    )

    async def credited() -> bool:
        rows = await fetch(world, "SELECT credit_ms FROM ad_view WHERE visitor_id = $1", visitor_id)
        return sum(row["credit_ms"] for row in rows) >= TALK_MS

    await eventually(credited, within_s=30, what="the credit")
    request = CreditRequestV1(
        reservation_id=call_id,
        visitor_id=visitor_id,
        operation=CreditOperation.RESERVE,
        wanted_ms=AD_MS,
        lease_ms=3_600_000,
    )
    await send(world, "call_control", (topics.CREDIT_REQUEST, request))

    async def held() -> bool:
        return await state_of(world, call_id) == "held"

    await eventually(held, within_s=30, what="the reservation")


async def state_of(world: World, call_id: Any) -> str | None:
    rows = await fetch(world, "SELECT state FROM reservation WHERE reservation_id = $1", call_id)
    return rows[0]["state"] if rows else None


async def test_a_letter_whose_cause_is_mended_is_replayed_and_takes_effect(world, person):
    """A call ended whose reservation was unknown at first: after the replay it is settled, once."""
    world.start("ad_ledger")
    await ready(world, "ad_ledger")
    visitor_id, call_id = new_visitor_id(), IDS.new()
    ended = CallEndV1(
        call_id=call_id,
        visitor_id=visitor_id,
        ended_at=CLOCK.now(),
        reason="hung_up",
        talk_ms=TALK_MS,
        overrun_ms=0,
    )
    await send(world, "call_control", (topics.CALL_END, ended))
    listed = await person.sees(1)
    assert "reservation_unknown" in listed
    assert "possible until" in await person.does("show", "call-end-dlq/0/0")
    await earn_and_reserve(world, visitor_id, call_id)

    assert "replayed call-end-dlq/0/0" in await person.does("replay", "call-end-dlq/0/0")

    async def settled() -> bool:
        return await state_of(world, call_id) == "settled"

    await eventually(settled, within_s=30, what="the settlement")
    assert await person.does("list") == "no open dead letters\n"
    first, again = await records(world, topics.CALL_END)
    assert (again.key, again.headers, again.value) == (first.key, first.headers, first.value)
    assert again.partition == first.partition
    with pytest.raises(DeadLetterError, match="not open any more: replay by ann"):
        await person.does("replay", "call-end-dlq/0/0")
    assert "replay by ann" in await person.does("show", "call-end-dlq/0/0")
    for secret in (str(visitor_id), str(call_id)):
        assert secret not in person.printed + person.journal_path.read_text()


async def test_poison_is_found_shown_without_values_replayed_and_discarded(world, person):
    """A canary number in value, name and header reaches neither screen nor log (D1, R-C5)."""
    world.start("ad_ledger")
    await ready(world, "ad_ledger")
    assert await person.does("list") == "no open dead letters\n"
    poison = poison_ad_view()
    await send_rows(world, poison)
    await person.sees(1)

    status, listed = await person.types("list")
    assert status == 0
    count, group = listed.splitlines()[1:3]
    assert count.split() == ["count", "topic", "reason", "service"]
    assert group.split() == ["1", "ad-view", "invalid_missing", "ad_ledger"]
    (origin,) = await records(world, topics.AD_VIEW)
    line = listed.splitlines()[-1]
    assert line.startswith("ad-view-dlq/0/0  invalid_missing  ad_ledger")
    assert f"ad-view/{origin.partition}/{origin.offset}  0 h 0" in line
    status, shown = await person.types("show", "ad-view-dlq/0/0")
    assert status == 0
    for words in ("address: string", "(unknown name): string", "ticket: missing", "2 unknown"):
        assert words in shown

    # nothing is mended yet: it comes back as a letter of its own, and is as it was
    assert "1 replayed, 0 not" in await person.does("replay", "--reason", "invalid_missing")
    listed = await person.sees(1)
    assert "ad-view-dlq/0/1" in listed
    assert "ad-view-dlq/0/0" not in listed
    again = (await records(world, topics.AD_VIEW))[-1]
    assert (again.key, list(again.headers), again.value) == (
        poison.key,
        poison.headers,
        poison.payload,
    )
    await person.does("discard", "ad-view-dlq/0/1")
    assert await person.does("list") == "no open dead letters\n"
    status, said = await person.types("replay", "--reason", "invalid_missing")
    assert (status, said) == (1, "No open letter has this reason: `list` shows what there is.\n")

    assert CANARY.lstrip("+") not in person.printed + person.journal_path.read_text()
    assert {(entry["author"], entry["why"]) for entry in person.log} == {("ann", WHY)}
    done = [(e["action"], e["offset"]) for e in person.log if e["outcome"] == "done"]
    assert done == [("replay", 0), ("discard", 1)]
    asked = {entry["action"] for entry in person.log if entry["outcome"] == "asked"}
    assert asked == {"list", "show", "replay", "discard"}


async def test_many_letters_are_not_replayed_without_a_number(world, person):
    """A service stops at a run of poison (A2): whoever risks that has to say so."""
    dead = topics.AD_VIEW.dead_letter.name
    marks = {"topic": "ad-view", "partition": "0", "offset": "7", "reason": "odd", "service": "x"}
    headers = [(f"dead_letter_{name}", text.encode()) for name, text in marks.items()]
    poison = poison_ad_view()
    buried = replace(poison, topic=dead, headers=[*poison.headers, *headers])
    await send_rows(world, *[buried] * (AT_ONCE_MAX + 1))
    listed = await person.does("list", "--topic", "ad-view", "--limit", "3")
    assert listed.startswith(f"{AT_ONCE_MAX + 1} open")
    assert f"... and {AT_ONCE_MAX - 2} more" in listed
    with pytest.raises(DeadLetterError, match="--at-most 3"):
        await person.does("replay", "--reason", "odd")
    assert await records(world, topics.AD_VIEW) == []
    await person.does("replay", "--reason", "odd", "--at-most", "2", "--topic", "ad-view")
    assert len(await records(world, topics.AD_VIEW)) == 2
    await person.does("discard", "--reason", "odd")
    assert await person.does("list") == "no open dead letters\n"


async def test_letters_that_must_not_or_cannot_be_sent_are_told_apart(world, person):
    """An old event, and one whose envelope and origin are both gone: neither leaves, both stay."""
    poison = poison_ad_view()
    facts = {"topic": "ad-view", "partition": "2", "offset": "99", "reason": "odd", "service": "x"}
    marks = [(f"dead_letter_{name}", text.encode()) for name, text in facts.items()]
    old = (CLOCK.now() - timedelta(hours=30)).isoformat().encode()
    aged = [(name, old if name == "ce_time" else value) for name, value in poison.headers]
    torn = [(name, value) for name, value in poison.headers if name == "ce_id"]
    dead = topics.AD_VIEW.dead_letter.name
    await send_rows(
        world, *(replace(poison, topic=dead, headers=[*head, *marks]) for head in (aged, torn))
    )
    out = await person.does("replay", "--reason", "odd", status=1)
    assert "1 d 6 h old" in out
    assert "its envelope was not kept, and ad-view/2/99 does not hold" in out
    assert out.endswith("0 replayed, 2 not\n")
    assert (await person.does("list")).startswith("2 open")
    assert await records(world, topics.AD_VIEW) == []
    assert "impossible" in await person.does("show", "ad-view-dlq/0/1")
    assert [e["detail"] for e in person.log if e["outcome"] == "failed"] == [
        "NotReplayableError"
    ] * 2


async def test_what_cannot_be_done_is_said_in_a_sentence(world, person):
    """No trace, no guess."""
    with pytest.raises(DeadLetterError, match="never, or deleted by age"):
        await person.does("show", "ad-view-dlq/0/4711")
    with pytest.raises(DeadLetterError, match="no such dead-letter topic"):
        await person.does("list", "--topic", "nonsense")
    with pytest.raises(DeadLetterError, match="right stack and prefix"):
        await person.does("list", "--prefix", "nobody-")
    status, said = await person.types("list", "--bootstrap", "127.0.0.1:1")
    assert status == 1
    assert said.startswith("Kafka at 127.0.0.1:1 does not do as asked")
    assert len(said.splitlines()) == 1
