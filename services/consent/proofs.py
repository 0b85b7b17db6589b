"""What staff types about single proofs: `import`, `withdraw`, `proof`.

Consents from before 25 May 2018 hang on no visitor: they are imported with what is known of them,
each under a proof id of its own, and are withdrawn by it, as any other consent is by the proof id
of its receipt (R-F3). The reference that the controller knows a person by goes out again beside the
proof id and is kept nowhere here (ADR 0013).
"""

import argparse
import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from schemas import topics
from schemas.consent import ConsentMethod
from schemas.retention import DataKind
from services.chassis.context import Context
from services.consent import domain
from services.consent.disclosures import Desk, RefusedError, guarded
from services.consent.domain import Decision, Verdict
from services.consent.store import Known, Proof
from services.consent.transfer_store import ConsentStore
from services.consent.wire import to_wire
from services.privacy import calendar, chain
from services.privacy.access_log import Access, Reason

BEFORE = datetime(2018, 5, 24, 22, tzinfo=UTC)
"""The instant from which the GDPR applies: 25 May 2018, 0:00 in Berlin."""
LINES_MAX = 10_000


class OldPurpose(StrEnum):
    """What an old consent can be for."""

    PREFERENCES = "preferences"
    STATISTICS = "statistics"
    MARKETING = "marketing"


class OldMethod(StrEnum):
    """By what means an old consent was given, as far as that is known."""

    PAPER = "paper"
    EMAIL = "email"
    WEB = "web"
    TELEPHONE = "telephone"
    UNKNOWN = "unknown"


class OldConsent(BaseModel):
    """One line of the file.

    Attributes:
        reference: by what the controller knows the person; printed again, never stored.
        valid_until: until when it is relied on at most (Berlin); the proof's period counts from it.
        wording: what was agreed to, as it stood there; its SHA-256 is kept.
        proof_id: of an earlier import: such a line is printed again and nothing else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: Annotated[str, Field(min_length=1, max_length=200)]
    purposes: Annotated[tuple[OldPurpose, ...], Field(min_length=1)]
    given_at: AwareDatetime
    valid_until: date
    method: OldMethod
    language: Annotated[str | None, Field(pattern=r"^[a-z]{2}$")] = None
    wording: Annotated[str | None, Field(min_length=1, max_length=100_000)] = None
    proof_id: UUID | None = None


async def import_old(arguments: Sequence[str]) -> int:
    """`import <file>`: JSON lines in, the same with proof ids out; all of them or none."""
    parser = argparse.ArgumentParser(prog="python -m services.consent import")
    parser.add_argument("file", type=Path, help="one JSON object a line; see proofs.py")
    parser.add_argument("--as", dest="staff_id", required=True, help="staff-1")
    return await guarded(_import_old(Desk.load(), parser.parse_args(arguments)))


async def withdraw(arguments: Sequence[str]) -> int:
    """`withdraw --proof …`: end what was consented to, for whom no page can do it (R-F3, R-G7)."""
    parser = argparse.ArgumentParser(prog="python -m services.consent withdraw")
    parser.add_argument("--proof", dest="proof_id", required=True, type=UUID, help="of the receipt")
    parser.add_argument("--as", dest="staff_id", required=True)
    parser.add_argument("--purpose", type=OldPurpose, choices=list(OldPurpose), help="only this")
    return await guarded(_withdraw(Desk.load(), parser.parse_args(arguments)))


async def proof(arguments: Sequence[str]) -> int:
    """`proof --proof …`: what stands under a proof id; logged as an access (R-C5)."""
    parser = argparse.ArgumentParser(prog="python -m services.consent proof")
    parser.add_argument("--proof", dest="proof_id", required=True, type=UUID, help="of the receipt")
    parser.add_argument("--as", dest="staff_id", required=True)
    parser.add_argument("--reason", required=True, type=Reason, choices=list(Reason))
    parser.add_argument("--case", dest="case_number")
    return await guarded(_proof(Desk.load(), parser.parse_args(arguments)))


def read(text: str, today: date) -> list[OldConsent]:
    """Read a file of old consents.

    Raises:
        RefusedError: a line is none, or tells of something that cannot have been; its number is in
            the text, nothing of its content.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= LINES_MAX:
        raise RefusedError(f"the file has 1 to {LINES_MAX} lines")
    return [_read_line(number, line, today) for number, line in enumerate(lines, start=1)]


def _read_line(number: int, line: str, today: date) -> OldConsent:
    try:
        found = OldConsent.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # the name of a field that nobody knows is content of the file
        known = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]
        place = ".".join(map(str, known)) or "the line"
        raise RefusedError(f"line {number}: {place}: {first['msg']}") from None
    if found.given_at >= BEFORE:
        raise RefusedError(f"line {number}: given_at is not before 25 May 2018")
    if not today <= found.valid_until < date(today.year + 2, 1, 1):
        raise RefusedError(f"line {number}: valid_until is past, or later than next year")
    return found


async def _import_old(desk: Desk, asked: argparse.Namespace) -> list[dict[str, Any]]:
    desk.check(asked.staff_id)
    text = asked.file.read_text(encoding="utf-8")
    async with desk.transaction() as ctx:
        consents = read(text, calendar.berlin_date(ctx.now))
        await ctx.store.maintain_years()
        told = [(old, old.proof_id or ctx.ids.new()) for old in consents]
        proofs = [
            made for old, proof_id in told if old.proof_id is None
            for made in _proofs(ctx, old, proof_id)
        ]  # fmt: skip
        await ctx.store.save(proofs, (), {})
    return [
        {**old.model_dump(mode="json", exclude_none=True), "proof_id": str(proof_id)}
        for old, proof_id in told
    ]


def _proofs(ctx: Context[ConsentStore], old: OldConsent, proof_id: UUID) -> list[Proof]:
    wording = None if old.wording is None else hashlib.sha256(old.wording.encode()).hexdigest()
    decision_id = ctx.ids.new()
    return [
        Proof(
            decision=Decision(
                decision_id=decision_id,
                purpose=purpose.value,
                verdict=Verdict.GIVEN,
                decided_at=old.given_at,
            ),
            proof_id=proof_id,
            ends_on=old.valid_until,
            wording_version=wording,
            language=old.language,
            method=old.method.value,
            salt=secrets.token_bytes(chain.SALT_BYTES),
        )
        for purpose in dict.fromkeys(old.purposes)
    ]


async def _withdraw(desk: Desk, asked: argparse.Namespace) -> dict[str, Any]:
    desk.check(asked.staff_id)
    async with desk.transaction() as ctx:
        visitor_id = await ctx.store.visitor_of(asked.proof_id)
        if visitor_id is not None:
            # locked, as a decision by the page would: neither overlooks the other
            await ctx.store.load([visitor_id], ())
        known = await ctx.store.known_of(asked.proof_id)
        ending = [
            purpose for purpose in in_force(known, calendar.berlin_date(ctx.now))
            if asked.purpose in (None, purpose)
        ]  # fmt: skip
        if not ending:
            raise RefusedError("nothing of that is in force under this proof id")
        decisions = [
            Decision(
                decision_id=ctx.ids.new(),
                purpose=purpose,
                verdict=Verdict.WITHDRAWN,
                decided_at=ctx.now,
            )
            for purpose in ending
        ]
        await ctx.store.save([_withdrawal(one, asked.proof_id) for one in decisions], (), {})
        if visitor_id is not None:
            states = domain.states_of([*(one.decision for one in known), *decisions])
            ctx.outbox.add(topics.CONSENT_STATE, to_wire(visitor_id, states))
    return {"proof_id": asked.proof_id, "withdrawn": ending, "at": decisions[0].decided_at}


def _withdrawal(decision: Decision, proof_id: UUID) -> Proof:
    return Proof(
        decision=decision,
        proof_id=proof_id,
        ends_on=calendar.berlin_date(decision.decided_at + domain.VISIT_LIFE),
        method=ConsentMethod.EMAIL.value,
        salt=secrets.token_bytes(chain.SALT_BYTES),
    )


def in_force(known: Sequence[Known], today: date) -> list[str]:
    """Return the purposes of which anything is in force today under a proof id."""
    lasting = [one for one in known if one.decision.verdict is not Verdict.GIVEN]
    lasting += [
        one for one in known if one.decision.verdict is Verdict.GIVEN and one.ends_on >= today
    ]
    states = domain.states_of(one.decision for one in lasting)
    return sorted({state.purpose for state in states if state.in_force} - {domain.NECESSARY})


async def _proof(desk: Desk, asked: argparse.Namespace) -> dict[str, Any]:
    desk.check(asked.staff_id)
    access = Access(
        staff_id=asked.staff_id,
        reason=asked.reason,
        case_number=asked.case_number,
        kind=DataKind.CONSENT_RECORD,
    )
    async with desk.access_log().accessing(access) as reading, desk.transaction() as ctx:
        known = await ctx.store.known_of(asked.proof_id)
        reading.count(len(known))
    return {
        "proof_id": asked.proof_id,
        "in_force": in_force(known, calendar.berlin_date(ctx.now)),
        "records": [
            {
                "purpose": one.decision.purpose,
                "recipient": one.decision.recipient,
                "decision": one.decision.verdict.value,
                "decided_at": one.decision.decided_at,
                "method": one.method,
                "ends_on": one.ends_on.isoformat(),
            }
            for one in sorted(known, key=lambda one: one.decision.order)
        ],
    }
