"""The story of the proof: visit, look, hold, wait out the deadline, look, release, look."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg

from deploy.demo import deletion, evidence
from deploy.demo.errors import DemoError
from deploy.demo.evidence import Chain
from deploy.demo.people import Person, e164, invite
from deploy.demo.stack import Stage, set_up
from deploy.demo.visitor import Browser
from deploy.local.stack import LocalStack
from deploy.local.staff import as_staff
from deploy.proof import forms
from deploy.proof.forms import Canary
from deploy.proof.report import KEPT_IN, Look, Proof
from deploy.proof.scan import exported, scan
from schemas import topics
from services.chassis.outbox import OutboxRow
from services.chassis.produce import KafkaSink

N_VISITORS = 3
"""The first and third are let go; the second one is named by a legal hold."""
HELD = 2
IPV6 = "2001:db8:5a3c::4e1f"
"""Where the third one comes from; of the range for documentation (RFC 3849)."""
NAME = "Ännchen Müßig-Øre"
"""Of nobody. The platform asks for no name: this one comes in a record that it cannot read."""
DEAD_LETTERS = f"kafka {topics.AD_VIEW.dead_letter.name}"
GONE_WITHIN_S = 20.0
"""Kafka removes a segment's files after its check interval and its delete delay."""
_PROPOSER, _DECIDER = "staff-1", "staff-2"
_CASE = "STRAF-2026-1"
_COLUMNS = 6
"""Of the table of receipts: order, service, table, gone, held, restricted."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What was put in: of those whom no hold names, and of the one whom it names."""

    gone: Sequence[Canary]
    held: Sequence[Canary]

    @property
    def all(self) -> list[Canary]:
        """Return both."""
        return [*self.gone, *self.held]


def canaries_of(chain: Chain) -> list[Canary]:
    """Return what a visit put into the platform."""
    visit, person = chain.visit, chain.visit.person
    who = f"visitor {person.number}"
    return [
        forms.number(
            f"{who}: callback number", e164(person.callback_number), person.callback_number
        ),
        forms.number(
            f"{who}: destination number",
            e164(person.destination_number),
            person.destination_number,
        ),
        forms.address(f"{who}: address", person.address),
        forms.identifier(f"{who}: visitor id", chain.visitor_id),
        forms.identifier(f"{who}: ticket id", visit.ticket_id),
        forms.identifier(f"{who}: call id", visit.call_id),
        forms.identifier(f"{who}: trace id", chain.trace_id),
    ]


def _people() -> tuple[Person, ...]:
    *others, last = invite(N_VISITORS)
    return (*others, replace(last, address=IPV6))


async def play(folder: Path, proof: Proof) -> None:
    """Play it and fill the proof; the stack is down afterwards, come what may.

    Raises:
        DemoError, StackError: a step failed; the proof holds what came before.
    """
    people = _people()
    async with set_up(folder, people, proof.say) as stage:
        stack = stage.stack
        proof.say("three visitors watch an ad and telephone")
        canaries = await _put_in(stage, people)
        proof.canaries = [canary.label for canary in canaries.all]
        await _flush(stack)
        proof.before = await _look_until(stack, "before the deadline", canaries, _is_all_there)

        proof.say("a legal hold names the second visitor: one proposes it, another one places it")
        hold_id = await _place_hold(stack, people[HELD - 1].callback_number)
        as_of = datetime.now(UTC) + deletion.LATER
        proof.say(f"the deadline passes: as of {as_of.date()}")
        proof.receipts = await _sweep(stack, as_of)
        proof.after = await _look_until(stack, "after the deadline", canaries, _is_as_held)

        proof.say("the hold is lifted, by two persons again")
        proof.receipts += await _release_hold(stack, hold_id)
        # the same cut again: its orders are those of before, and their receipts stand there already
        await _sweep(stack, as_of + timedelta(hours=1))
        proof.released = await _look_until(
            stack, "after the release", canaries, lambda look: not look.scan.finds
        )
    proof.is_played = True


async def _put_in(stage: Stage, people: Sequence[Person]) -> Canaries:
    browsers = [Browser(stage.stack.url("gateway"), person, lambda *_: None) for person in people]
    visits = await asyncio.gather(*(browser.run() for browser in browsers))
    chains = await evidence.gather(stage.stack, stage.exchange, visits)
    await _send_name(stage.stack)
    gone = [c for chain in chains if chain.visit.person.number != HELD for c in canaries_of(chain)]
    held = [c for chain in chains if chain.visit.person.number == HELD for c in canaries_of(chain)]
    return Canaries(gone=[*gone, forms.name("name in a dead letter", NAME)], held=held)


async def _send_name(stack: LocalStack) -> None:
    """Send an event as no front end of ours makes it; it ends as a dead letter."""
    raw = json.dumps({"name": NAME}, ensure_ascii=False).encode()
    sink = KafkaSink(stack.kafka_login("gateway"), prefix="", client_id="prove-deletion")
    try:
        await sink.send_rows([OutboxRow(topics.AD_VIEW.name, b"prove-deletion", [], raw)])
    finally:
        await sink.stop()


# ---------------------------------------------------------------------- orders


async def _place_hold(stack: LocalStack, callback_number: str) -> str:
    """Find the visitor by number, as staff do, and hold all that is theirs."""
    proposer = as_staff(stack.layout.staff, _PROPOSER)
    ids = await stack.run(
        "call_control",
        *("find", "number", *proposer, "--case", _CASE, "--reason", "legal_claim"),
        said=f"{e164(callback_number)}\n",
    )
    text = await stack.run(
        "retention",
        *("hold", "propose", *proposer, "--case", _CASE, "--visitors"),
        *("--ground", "criminal_complaint", "--kinds", "traffic_data,ad_use,ip_address"),
        *("--review-on", _review_on().isoformat()),
        said=_last_line(ids),
    )
    hold_id = _word_after(text, "hold")
    decider = as_staff(stack.layout.staff, _DECIDER)
    await stack.run("retention", "hold", "place", hold_id, *decider, "--wait")
    return hold_id


async def _release_hold(stack: LocalStack, hold_id: str) -> list[deletion.Deleted]:
    """Lift the hold, and return what went with it."""
    proposer, decider = (as_staff(stack.layout.staff, one) for one in (_DECIDER, _PROPOSER))
    await stack.run("retention", "hold", "propose-release", hold_id, *proposer)
    text = await stack.run("retention", "hold", "release", hold_id, *decider, "--wait")
    rows = [line.split() for line in text.splitlines()]
    return [
        deletion.Deleted(
            kind="",
            rule="R-D3",
            before_day="",
            service=row[1],
            table=row[2],
            n_partitions=0,
            n_rows=int(row[3]),
        )
        for row in rows
        if len(row) == _COLUMNS and row[3].isdecimal()
    ]


def _review_on() -> date:
    return datetime.now(UTC).date() + timedelta(days=90)


def _word_after(text: str, word: str) -> str:
    words = text.split()
    if word not in words:
        raise DemoError(f"The command did not say which {word} it made.")
    return words[words.index(word) + 1]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("{")]
    if not lines:
        raise DemoError("The number was not found.")
    return f"{lines[-1]}\n"


async def _sweep(stack: LocalStack, as_of: datetime) -> list[deletion.Deleted]:
    deleted = await deletion.sweep(stack, as_of)
    deleted += await deletion.age_outboxes(stack, as_of)
    await deletion.turn_write_ahead_log(stack)
    return deleted


# ---------------------------------------------------------------------- looking


async def _flush(stack: LocalStack) -> None:
    """Let the database write its pages, so that the first look finds them beside the log."""
    connection = await asyncpg.connect(stack.admin_dsn())
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _look(stack: LocalStack, when: str, canaries: Canaries) -> Look:
    exports = await exported(stack)
    found = await asyncio.to_thread(scan, stack.layout.folder, canaries.all, exports)
    return Look(
        when=when,
        scan=found,
        gone=[canary.label for canary in canaries.gone],
        held=[canary.label for canary in canaries.held],
    )


async def _look_until(
    stack: LocalStack, when: str, canaries: Canaries, is_good: Callable[[Look], bool]
) -> Look:
    """Look again until it is as it must be or the time has passed; return the last look."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + GONE_WITHIN_S
    while True:
        look = await _look(stack, when, canaries)
        if is_good(look) or loop.time() > deadline_s:
            return look
        await deletion.turn_write_ahead_log(stack)
        await asyncio.sleep(1.0)


def _is_all_there(look: Look) -> bool:
    dead = {find.place for find in look.finds_of_gone if find.label == "name in a dead letter"}
    return not look.missing([*look.gone, *look.held]) and DEAD_LETTERS in dead


def _is_as_held(look: Look) -> bool:
    return not look.finds_of_gone and {find.place for find in look.finds_of_held} <= set(KEPT_IN)
