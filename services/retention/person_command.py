"""`python -m services.retention erase|restrict|unrestrict|hold`: what a person types.

Whom it is about comes from the standard input, one visitor's id a line, as
`python -m services.call_control find` prints them: an id in an argument could be read by everybody
on the machine.
"""

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, timedelta
from enum import StrEnum
from uuid import UUID

from services.chassis.clock import SystemClock, sleep
from services.chassis.command import transaction
from services.chassis.context import Context
from services.privacy import calendar
from services.privacy.identify import NotIdentifiedError, add_staff, identify
from services.privacy.staff import Duty, StaffError
from services.retention import schedule
from services.retention.declaration import DECLARATION
from services.retention.person_orders import (
    PROPOSAL_LIFE,
    Author,
    PersonOrders,
    RefusedError,
)
from services.retention.protections import (
    Ground,
    ProposedReview,
    Protection,
    Refusal,
    ReviewReason,
    Scope,
    Step,
    WaiverReason,
)
from services.retention.settings import Settings
from services.retention.store import Store
from services.retention.wire import columns

EXIT_OK, EXIT_REFUSED, EXIT_NOT_COMPLETE = 0, 2, 3
_POLL_S = 0.2
_VISITORS_READ_MAX = 100_000

_WHY = {
    Refusal.SAME_PERSON: "another person than who proposed it decides",
    Refusal.REVIEW_NOT_AHEAD: "a review date lies ahead of today",
    Refusal.REVIEW_TOO_FAR: "no review date lies so far ahead",
    Refusal.REVIEW_NOT_LATER: "a review date never moves back, nor stays",
    Refusal.REVIEW_DIFFERS: "what is proposed is another date: see `hold list`",
    Refusal.NOTHING_PROPOSED: "nobody has proposed it, or too long ago: see `hold list`, `explain`",
    Refusal.NOT_EXPECTED: "the order does not wait for that holder",
    Refusal.ANSWERED_ALREADY: "that answer is there, or waived",
    Refusal.NOT_OVERDUE: "the holder still has time",
    Refusal.REASON_UNFIT: "a hold has other reasons than a restriction",
    Refusal.DAYS_PAST_REVIEW: "the last day lies after the review: nobody has looked at it by then",
}
"""What a word alone does not say."""

Deed = Callable[[PersonOrders], Awaitable[tuple[list[str], list[UUID]]]]
"""Does it and returns what to print, and the orders to wait for."""


async def erase(arguments: Sequence[str]) -> int:
    """Erase all rows of the visitors on the standard input."""
    found = _author_parser("erase").parse_args(arguments)
    author, visitors = _author(found), _read_visitors()

    async def deed(orders: PersonOrders) -> tuple[list[str], list[UUID]]:
        return [], await orders.erase(author, visitors)

    return await _carry_out(found, Duty.PERSON_REQUESTS, deed)


async def restrict(arguments: Sequence[str]) -> int:
    """Restrict the rows of the visitors on the standard input (R-G4)."""
    parser = _author_parser("restrict")
    parser.add_argument(
        "--review-on", type=date.fromisoformat, help="when to look at it again; else in 90 days"
    )
    found = parser.parse_args(arguments)
    author, visitors = _author(found), _read_visitors()

    async def deed(orders: PersonOrders) -> tuple[list[str], list[UUID]]:
        protection_id, issued = await orders.restrict(author, visitors, found.review_on)
        return [f"restriction {protection_id}"], issued

    return await _carry_out(found, Duty.PERSON_REQUESTS, deed)


async def unrestrict(arguments: Sequence[str]) -> int:
    """Lift a restriction."""
    parser = _author_parser("unrestrict")
    parser.add_argument("protection_id", type=UUID)
    found = parser.parse_args(arguments)

    async def deed(orders: PersonOrders) -> tuple[list[str], list[UUID]]:
        return [], [await orders.unrestrict(_author(found), found.protection_id)]

    return await _carry_out(found, Duty.PERSON_REQUESTS, deed)


async def hold(arguments: Sequence[str]) -> int:
    """Propose, place, review, lift or list legal holds (R-D3)."""
    found = _hold_parser().parse_args(arguments)
    match found.step:
        case "list":
            return await _list_holds()
        case "propose":
            return await _propose(found)
        case _:
            return await _carry_out(found, Duty.HOLDS, _step(found))


async def order(arguments: Sequence[str]) -> int:
    """Waive a holder's answer to an order (D3); two persons."""
    parser = argparse.ArgumentParser(prog="python -m services.retention order")
    steps = parser.add_subparsers(dest="step", required=True)
    waive = steps.add_parser("waive", help="wait no longer for an answer; a second person confirms")
    waive.add_argument("order_id", type=UUID)
    waive.add_argument("--holder", required=True, help="who will never answer: consent, billing")
    reasons = [reason.value for reason in WaiverReason]
    waive.add_argument("--reason", choices=reasons, help="proposes; without one it confirms")
    add_staff(waive)
    found = parser.parse_args(arguments)
    found.wait = False

    async def deed(orders: PersonOrders) -> tuple[list[str], list[UUID]]:
        is_waived = await orders.waive(found.by, found.order_id, found.holder, found.reason)
        word = "waived" if is_waived else "to be waived; another person confirms"
        return [f"answer of {found.holder} to {found.order_id}: {word}"], []

    return await _carry_out(found, Duty.EVIDENCE, deed)


# ---------------------------------------------------------------------- arguments


def _author_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m services.retention {name}")
    parser.set_defaults(command=name)
    add_staff(parser)
    parser.add_argument("--case", required=True, help="number of the case file: AUSK-2026-17")
    _add_wait(parser)
    return parser


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until all services have answered")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="how long --wait waits")


def _hold_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.retention hold")
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("list", help="what is proposed or in force, by review date")
    propose = steps.add_parser("propose", help="somebody else has to place it")
    add_staff(propose)
    propose.add_argument("--case", required=True, help="number of the case file: STRAF-2026-3")
    propose.add_argument("--ground", required=True, choices=[ground.value for ground in Ground])
    propose.add_argument("--kinds", required=True, help="parted by commas: traffic_data,ad_use")
    propose.add_argument("--from-day", type=date.fromisoformat, help="first day (UTC)")
    propose.add_argument("--to-day", type=date.fromisoformat, help="last day; today if not given")
    propose.add_argument("--review-on", required=True, type=date.fromisoformat)
    propose.add_argument("--visitors", action="store_true", help="ids on the standard input")
    for name, text in {
        "place": "put a proposed hold in force: another person than who proposed it",
        "withdraw": "give up a hold that was only proposed",
        "propose-release": "somebody else has to lift it",
        "release": "lift it; what fell due meanwhile is deleted",
        "send-again": "for a service whose database was restored",
        "propose-review": "a later review date, of a hold or restriction; somebody else sets it",
        "review": "set a later review date: another person than who proposed it, the same date",
    }.items():
        step = steps.add_parser(name, help=text)
        step.add_argument("protection_id", type=UUID)
        add_staff(step)
        _add_wait(step)
        if name in {"review", "propose-review"}:
            step.add_argument("--on", required=True, type=date.fromisoformat)
        if name == "propose-review":
            reasons = [reason.value for reason in ReviewReason]
            step.add_argument("--reason", required=True, choices=reasons)
    return parser


def _author(found: argparse.Namespace) -> Author:
    return Author(staff_id=found.by, case_number=found.case)


def _read_visitors() -> list[UUID]:
    """Read ids from the standard input.

    Raises:
        RefusedError: there are too many.
        SystemExit: a line is no id; it is not repeated.
    """
    found: list[UUID] = []
    for number, line in enumerate(sys.stdin, start=1):
        if not line.strip():
            continue
        try:
            found.append(UUID(line.strip()))
        except ValueError:
            raise SystemExit(f"retention: line {number} is no visitor's id") from None
        if len(found) > _VISITORS_READ_MAX:
            raise SystemExit(f"retention: more than {_VISITORS_READ_MAX} visitors at once")
    return found


# ---------------------------------------------------------------------- deeds


def _step(found: argparse.Namespace) -> Deed:
    staff_id, protection_id = found.by, found.protection_id

    async def deed(orders: PersonOrders) -> tuple[list[str], list[UUID]]:
        match found.step:
            case "place":
                return [], await orders.place_hold(staff_id, protection_id)
            case "release":
                return [], [await orders.release_hold(staff_id, protection_id)]
            case "send-again":
                return [], await orders.send_again(staff_id, protection_id)
            case _:
                await _record_step(orders, found)
        return [f"hold {protection_id}: {found.step}"], []

    return deed


async def _record_step(orders: PersonOrders, found: argparse.Namespace) -> None:
    """Do what orders nothing."""
    staff_id, protection_id = found.by, found.protection_id
    match found.step:
        case "withdraw":
            await orders.withdraw_hold(staff_id, protection_id)
        case "propose-release":
            await orders.propose_release(staff_id, protection_id)
        case "propose-review":
            await orders.propose_review(staff_id, protection_id, found.on, found.reason)
        case _:
            await orders.confirm_review(staff_id, protection_id, found.on)


async def _propose(found: argparse.Namespace) -> int:
    visitors = _read_visitors() if found.visitors else []
    last = found.to_day or calendar.utc_date(SystemClock().now())
    scope = Scope(
        kinds=tuple(kind.strip() for kind in found.kinds.split(",") if kind.strip()),
        from_day=found.from_day,
        before_day=last + timedelta(days=1),
        names_visitors=found.visitors,
    )

    async def deed(orders: PersonOrders) -> tuple[list[str], list[UUID]]:
        hold_id = await orders.propose_hold(
            _author(found),
            ground=found.ground,
            scope=scope,
            review_on=found.review_on,
            visitor_ids=visitors,
        )
        return [f"hold {hold_id} proposed; another person places it"], []

    found.wait = False
    return await _carry_out(found, Duty.HOLDS, deed)


async def _carry_out(found: argparse.Namespace, duty: Duty, deed: Deed) -> int:
    """Do it in one transaction, print what was ordered, wait where asked to."""
    settings = Settings.load()
    try:
        who = identify(DECLARATION.name, found, duty, SystemClock().now())
        rules = schedule.load(settings.schedule_path)
        async with _transaction(settings) as ctx:
            await ctx.store.prepare_outbox()
            silence = timedelta(seconds=settings.order_overdue_after_s)
            review_max = timedelta(days=settings.review_max_days)
            said, issued = await deed(PersonOrders(ctx, rules, silence, review_max, who.sign))
    except RefusedError as error:
        await _record_refusal(settings, found, error.refusal, found.by)
        why = _WHY.get(error.refusal)
        sys.stderr.write(f"retention: refused: {error}{f' ({why})' if why else ''}\n")
        return EXIT_REFUSED
    except NotIdentifiedError as error:
        await _record_refusal(settings, found, error.refusal, error.staff_id)
        sys.stderr.write(f"retention: refused: {error}\n")
        return EXIT_REFUSED
    except (schedule.ScheduleError, StaffError) as error:
        sys.stderr.write(f"retention: refused: {error}\n")
        return EXIT_REFUSED
    for line in (*said, *(f"order {order_id}" for order_id in issued)):
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    if not found.wait or not issued:
        return EXIT_OK
    return await _wait(settings, issued, found.timeout_s)


async def _record_refusal(
    settings: Settings, found: argparse.Namespace, reason: StrEnum, staff_id: str
) -> None:
    """Keep that somebody tried; who is not in the register of staff stands as unknown."""
    async with _transaction(settings) as ctx:
        await ctx.store.lock()
        await ctx.store.evidence.refuse(
            ctx.ids.new(),
            what=found.step if "step" in found else found.command,
            reason=reason.value,
            staff_id=staff_id,
            now=ctx.now,
        )


def _transaction(settings: Settings) -> AbstractAsyncContextManager[Context[Store]]:
    return transaction(settings.secret("database_url"), DECLARATION.name, Store)


async def _wait(settings: Settings, issued: Sequence[UUID], timeout_s: float) -> int:
    clock = SystemClock()
    deadline_s = clock.monotonic() + timeout_s
    while True:
        async with _transaction(settings) as ctx:
            standings = list((await ctx.store.standings(issued)).values())
        is_complete = all(standing.completed_at is not None for standing in standings)
        if is_complete or clock.monotonic() > deadline_s:
            break
        await sleep(_POLL_S)
    rows = [("order", "service", "table", "gone", "held", "restricted")]
    rows += [
        (
            str(standing.order.order_id),
            receipt.service,
            count.table,
            str(count.n_rows),
            str(count.n_held),
            str(count.n_restricted),
        )
        for standing in standings
        for receipt in standing.receipts
        for count in receipt.counts
    ]
    sys.stdout.write(f"{columns(rows)}\n")
    return EXIT_OK if is_complete else EXIT_NOT_COMPLETE


async def _list_holds() -> int:
    async with _transaction(Settings.load()) as ctx:
        store, since = ctx.store.protections, ctx.now - PROPOSAL_LIFE
        found = [
            (one, await store.proposed_review(one.protection_id, since))
            for one in await store.protections_in_force()
        ]
        today = calendar.berlin_date(ctx.now)
    rows: list[tuple[str, ...]] = [
        ("id", "what", "case", "ground", "kinds", "days", "review on", "steps", "proposed review")
    ]
    rows += [_row(protection, proposed, today) for protection, proposed in found]
    sys.stdout.write(f"{columns(rows)}\n")
    return EXIT_OK


def _row(found: Protection, proposed: ProposedReview | None, today: date) -> tuple[str, ...]:
    is_late = found.review_on is None or found.review_on < today
    review = "-" if found.review_on is None else found.review_on.isoformat()
    return (
        str(found.protection_id),
        "hold" if found.is_hold else "restriction",
        found.case_number,
        found.ground or "-",
        ",".join(found.scope.kinds),
        f"{found.scope.from_day or '...'} to before {found.scope.before_day}",
        review + (" LATE" if is_late else ""),
        ", ".join(f"{step.value} by {found.steps[step]}" for step in Step if step in found.steps),
        f"{proposed.review_on} by {proposed.staff_id}: {proposed.reason}" if proposed else "-",
    )
