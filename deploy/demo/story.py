"""The story from the first process to the last: who does what when. No figure is made here."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from deploy.demo import deletion, evidence, invariants, search, tables
from deploy.demo.errors import DemoError
from deploy.demo.people import Person, invite
from deploy.demo.report import Report
from deploy.demo.stack import Stage, set_up
from deploy.demo.view import View
from deploy.demo.visitor import Browser, Visit


async def play(folder: Path, n_visitors: int, view: View, report: Report) -> None:
    """Play the whole story and fill the report; the stack is down afterwards, come what may.

    Raises:
        DemoError, StackError: a step failed; the report holds what came before.
    """
    people = invite(n_visitors)
    async with contextlib.AsyncExitStack() as going_down:
        with view.step("The stack comes up"):
            stage = await going_down.enter_async_context(set_up(folder, people, view.note))
        with view.step("Watch, earn, talk"):
            visits = await _visit(stage, people, view, report)
        with view.step("The evidence is read"):
            report.chains = await evidence.gather(stage.stack, stage.exchange, visits)
            view.show(tables.chain(report.chains[0]))
            if len(report.chains) > 1:
                view.show(tables.visitors(report.chains))
        await _before(stage, view, report)
        await _eight_days_later(stage, view, report)
        with view.step("The stack goes down"):
            report.problems += _restarts(stage)
            await going_down.aclose()
    report.is_played = True


async def _visit(
    stage: Stage, people: Sequence[Person], view: View, report: Report
) -> list[Visit]:  # fmt: skip
    """Let all visitors in at once; who fails is a problem, the others go on."""
    browsers = [Browser(stage.stack.url("gateway"), person, view.tell) for person in people]
    view.people = [browser.progress for browser in browsers]
    results = await asyncio.gather(*(browser.run() for browser in browsers), return_exceptions=True)
    visits = []
    for result in results:
        if isinstance(result, Visit):
            visits.append(result)
        elif isinstance(result, DemoError):
            report.problems.append(str(result))
        else:
            raise result
    if not visits:
        raise DemoError("No visitor came through.")
    return visits


async def _before(stage: Stage, view: View, report: Report) -> None:
    """Ask the invariants while the rows are there, and let the search show that it can find."""
    with view.step("The invariants are asked, and the search is tried"):
        answers = await invariants.check(stage.stack)
        report.problems += [
            f"invariant {answer.service}.{answer.name} is violated before the deletion"
            for answer in answers
            if not answer.holds
        ]
        needles = search.needles_of(report.chains)
        report.found_before = [
            *await search.everywhere(stage.stack, needles),
            *await search.on_disk(stage.stack, needles),
        ]


async def _eight_days_later(stage: Stage, view: View, report: Report) -> None:
    stack = stage.stack
    with view.step(f"{deletion.LATER.days} days later: the sweep"):
        as_of = datetime.now(UTC) + deletion.LATER
        report.deleted = await deletion.sweep(stack, as_of)
        report.deleted = [*report.deleted, *await deletion.age_outboxes(stack, as_of)]
        await deletion.turn_write_ahead_log(stack)
        view.show(tables.deleted(report.deleted))
    with view.step("Is anything left? Tables, topics, files, disk, logs, metrics"):
        needles = search.needles_of(report.chains)
        report.left_over = await search.until_gone(stack, needles)
        report.left_on_disk = await search.on_disk(stack, needles)
        report.standing = await deletion.standing(stack)
        view.show(tables.finds(report.found_before, [*report.left_over, *report.left_on_disk]))
        view.show(tables.standing(report.standing))
    with view.step("The invariants are asked again"):
        report.invariants = await invariants.check(stack)
        view.show(tables.invariants(report.invariants))


def _restarts(stage: Stage) -> list[str]:
    """Say which process ended by itself: it was started again, but that is no success."""
    return [
        f"{name} had to be started again {n} times"
        for name in stage.stack.names
        if (n := stage.stack.n_restarts(name))
    ]
