"""What staff types about transfers: disclosures to authorities, and who received what.

`disclose propose|approve|list`, `transfers`. A disclosure needs two persons (R-C4):
what one proposes another approves, and the database refuses the same one. What is told itself is
taken from the services that have it; here stand its extent, its ground and who answers for it.
"""

import argparse
import hashlib
import json
import secrets
import sys
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from pydantic_settings import SettingsConfigDict

from schemas.retention import DataKind
from services.chassis import command
from services.chassis.clock import SystemClock
from services.chassis.context import Context
from services.chassis.settings import ServiceSettings
from services.consent.declaration import DECLARATION
from services.consent.transfer_store import ConsentStore, Proposal
from services.consent.transfers import to_row
from services.privacy import recipients
from services.privacy.access_log import Access, AccessLog, Reason
from services.privacy.calendar import berlin_date
from services.privacy.declare import Purpose
from services.privacy.gate import Permit, Question, Verdict
from services.privacy.identify import add_staff, identify
from services.privacy.keyed_hash import DayKeys, Subject
from services.privacy.recorder import to_event
from services.privacy.rules import NOTHING_KNOWN, decide
from services.privacy.staff import DUTY_OF, Duty, Identity

EXIT_REFUSED = 2
AUTHORITIES = "authorities"
_TEXT_MAX = 200


class StaffSettings(ServiceSettings):
    """What the commands of staff need besides the service's settings."""

    model_config = SettingsConfigDict(env_prefix="CONSENT_", frozen=True, extra="ignore")

    hash_keys_folder: Path | None = None
    """Where the access log's day keys are (`services/privacy/README.md`)."""


class RefusedError(Exception):
    """The command is refused; the text says why in one sentence."""


async def disclose(arguments: Sequence[str]) -> int:
    """`disclose propose|approve|list`."""
    return await guarded(_disclose(Desk.load(), _parse_disclose(arguments)))


async def transfers(arguments: Sequence[str]) -> int:
    """`transfers --visitor …`: to whom a visitor's data went; logged as an access (R-C5)."""
    return await guarded(_transfers(Desk.load(), _parse_transfers(arguments)))


async def guarded(act: Awaitable[Any]) -> int:
    """Print what a command found as JSON; 2 and one sentence where it is refused."""
    try:
        found = await act
    except (RefusedError, ValueError) as error:
        sys.stderr.write(f"consent: refused: {error}\n")
        return EXIT_REFUSED
    sys.stdout.write(json.dumps(found, indent=2, default=_text, ensure_ascii=False) + "\n")
    return 0


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def _parse_disclose(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.consent disclose")
    steps = parser.add_subparsers(dest="step", required=True)
    propose = steps.add_parser("propose", help="what an authority is to be told, and why")
    add_staff(propose)
    propose.add_argument("--authority", required=True, help="its name and seat")
    propose.add_argument("--ground", required=True, help="the law: § 100g StPO, § 174 TKG")
    propose.add_argument("--fields", required=True, help="address,viewed_at")
    propose.add_argument("--from-day", required=True, type=date.fromisoformat, help="2026-11-20")
    propose.add_argument("--to-day", required=True, type=date.fromisoformat)
    propose.add_argument("--persons", dest="n_persons", required=True, type=int, help="how many")
    propose.add_argument("--reference", required=True, help="the authority's; kept as a hash")
    approve = steps.add_parser("approve", help="by a second person")
    add_staff(approve)
    approve.add_argument("--id", dest="disclosure_id", required=True, type=UUID)
    steps.add_parser("list")
    return parser.parse_args(arguments)


def _parse_transfers(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.consent transfers")
    parser.add_argument("--visitor", dest="visitor_id", required=True, type=UUID)
    add_staff(parser)
    parser.add_argument("--reason", required=True, type=Reason, choices=list(Reason))
    parser.add_argument("--case", dest="case_number", help="AUSK-2026-17")
    return parser.parse_args(arguments)


class Desk:
    """Where staff works: the service's database, beside the running service or without it."""

    def __init__(self, settings: StaffSettings) -> None:
        """Take the settings."""
        self.clock = SystemClock()
        self._url = settings.secret("database_url")
        self._keys_folder = settings.hash_keys_folder

    @classmethod
    def load(cls) -> "Desk":
        """Read the environment."""
        return cls(StaffSettings.load())

    def identify(self, asked: argparse.Namespace, duty: Duty) -> Identity:
        """Return who types.

        Raises:
            StaffError: it is nobody who may do it.
        """
        return identify(DECLARATION.name, asked, duty, self.clock.now())

    def access_log(self) -> AccessLog:
        """Return the log that every reading goes through."""
        if self._keys_folder is None:
            raise RefusedError("set CONSENT_HASH_KEYS_FOLDER: without it no access can be logged")
        return AccessLog(self.transaction, DayKeys(self._keys_folder, self.clock))

    def transaction(self) -> AbstractAsyncContextManager[Context[ConsentStore]]:
        """Open a transaction as the service does, on a connection of its own."""
        return command.transaction(self._url, DECLARATION.name, ConsentStore, self.clock)


async def _disclose(desk: Desk, asked: argparse.Namespace) -> Any:
    match asked.step:
        case "propose":
            return await _propose(desk, asked)
        case "approve":
            return await _approve(desk, asked)
        case _:
            async with desk.transaction() as ctx:
                return await ctx.store.transfers.disclosures()


async def _propose(desk: Desk, asked: argparse.Namespace) -> Any:
    who = desk.identify(asked, Duty.AUTHORITIES)
    fields = tuple(sorted({part.strip() for part in asked.fields.split(",") if part.strip()}))
    for text in (asked.authority, asked.ground, asked.reference):
        if not 1 <= len(text.strip()) <= _TEXT_MAX:
            raise RefusedError(f"authority, ground and reference have 1 to {_TEXT_MAX} characters")
    if asked.n_persons < 1:
        raise RefusedError("--persons is 1 at least: a disclosure is about somebody")
    if not asked.from_day <= asked.to_day <= berlin_date(desk.clock.now()):
        raise RefusedError("--from-day is not after --to-day, and that is not after today")
    async with desk.transaction() as ctx:
        _permit(_judge(fields, ctx.now))
        salt = secrets.token_bytes(16)
        proposal = Proposal(
            disclosure_id=ctx.ids.new(),
            proposed_on=berlin_date(ctx.now),
            staff_id=who.staff_id,
            authority=asked.authority.strip(),
            legal_ground=asked.ground.strip(),
            fields=fields,
            from_day=asked.from_day,
            to_day=asked.to_day,
            n_persons=asked.n_persons,
            reference_salt=salt,
            reference_hash=hashlib.sha256(salt + asked.reference.strip().encode()).digest(),
            stated_at=ctx.now,
        )
        await ctx.store.transfers.maintain()
        await ctx.store.transfers.propose(proposal, who.sign)
    return {"disclosure_id": proposal.disclosure_id, "step": "proposed"}


async def _approve(desk: Desk, asked: argparse.Namespace) -> Any:
    """Record the second person's word and, in the same transaction, the transfer (R-C4, K3)."""
    who, disclosure_id = desk.identify(asked, Duty.AUTHORITIES), asked.disclosure_id
    async with desk.transaction() as ctx:
        store = ctx.store.transfers
        proposal = await store.proposal(disclosure_id)
        if proposal is None:
            raise RefusedError("nobody has proposed that")
        if await store.is_approved(disclosure_id):
            raise RefusedError("it is approved already")
        permit = _permit(_judge(proposal.fields, ctx.now))
        event = to_event(permit, ctx.ids.new())
        try:
            await store.approve(proposal, who.staff_id, ctx.now, event.transfer_id, who.sign)
        except asyncpg.CheckViolationError:
            raise RefusedError("a second person must approve it, not who proposed it") from None
        await store.save([to_row(event, DECLARATION.name, ctx.now)])
    return {
        "disclosure_id": disclosure_id,
        "step": "approved",
        "transfer_id": event.transfer_id,
        "fields": list(event.fields),
        "from_day": proposal.from_day,
        "to_day": proposal.to_day,
        "n_persons": proposal.n_persons,
    }


def _judge(fields: Sequence[str], now: datetime) -> Verdict:
    question = Question(
        recipient=AUTHORITIES,
        purpose=Purpose.DISCLOSURE,
        fields=frozenset(fields),
        visitor_id=None,
        happened_at=now,
        asked_at=now,
    )
    return decide(question, recipients.load(), NOTHING_KNOWN)


def _permit(verdict: Verdict) -> Permit:
    if not isinstance(verdict, Permit):
        raise RefusedError(verdict.reason.value)
    if rest := sorted(verdict.question.fields - verdict.fields):
        raise RefusedError(f"the register allows no disclosure of: {', '.join(rest)}")
    return verdict


async def _transfers(desk: Desk, asked: argparse.Namespace) -> Any:
    who = desk.identify(asked, DUTY_OF[asked.reason])
    access = Access(
        staff_id=who.staff_id,
        reason=asked.reason,
        case_number=asked.case_number,
        kind=DataKind.AD_USE,
        subject=Subject.VISITOR,
        looked_for=str(asked.visitor_id),
    )
    async with desk.access_log().accessing(access) as reading, desk.transaction() as ctx:
        found = await ctx.store.transfers.of_visitor(asked.visitor_id)
        reading.count(len(found))
    return found
