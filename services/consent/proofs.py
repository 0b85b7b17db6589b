"""What staff types about single proofs: `import`, `withdraw`, `proof`.

Consents from before 25 May 2018 hang on no visitor: they are imported with what is known of them,
each under a proof id of its own, and are withdrawn by it, as any other consent is by the proof id
of its receipt (R-F3). The reference that the controller knows a person by goes out again beside the
proof id and is kept nowhere here (ADR 0013). What staff does stands in the access log first (R-C5).
"""

import argparse
import hashlib
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from schemas import topics
from schemas.retention import DataKind
from services.chassis.context import Context
from services.consent import domain, receipts
from services.consent.disclosures import Desk, RefusedError, guarded
from services.consent.domain import Decision, Verdict
from services.consent.receipts import Controller, Issuer, Recorded
from services.consent.settings import Settings
from services.consent.store import Known, Proof
from services.consent.transfer_store import ConsentStore
from services.consent.wire import to_wire
from services.privacy import calendar, chain, recipients
from services.privacy.access_log import Access, AccessLog, Act, Reason
from services.privacy.chain import SigningKeys
from services.privacy.identify import add_staff
from services.privacy.staff import DUTY_OF, Duty

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


class StaffMethod(StrEnum):
    """By what means a person asked staff for a withdrawal."""

    EMAIL = "email"
    LETTER = "letter"
    TELEPHONE = "telephone"


class OldConsent(BaseModel):
    """One line of the file.

    Attributes:
        reference: by what the controller knows the person; printed again, never stored.
        valid_until: until when it is relied on at most (Berlin); the proof's period counts from it.
        wording: what was agreed to, as it stood there; its SHA-256 is kept.
        proof_id: of an earlier import: such a line is printed again and nothing else.
        did: what an earlier import did with it; of no effect, as is `receipt`.
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
    did: str | None = None
    receipt: dict[str, Any] | None = None


class Did(StrEnum):
    """What an import did with a line."""

    IMPORTED = "imported"
    KNOWN = "known"
    """It had been imported: nothing was done."""
    NOT_FOUND = "not_found"
    """It says a proof id of which nothing is recorded (any more): nothing was done."""


async def import_old(arguments: Sequence[str]) -> int:
    """`import <file>`: JSON lines in, the same with proof ids and receipts out; all or none.

    The same file again, after a crash say, imports nothing twice.
    """
    parser = argparse.ArgumentParser(prog="python -m services.consent import")
    parser.add_argument("file", type=Path, help="one JSON object a line; see proofs.py")
    add_staff(parser)
    parser.add_argument("--case", dest="case_number", help="EINW-2026-17")
    return await guarded(_import_old(Desk.load(), parser.parse_args(arguments)))


async def withdraw(arguments: Sequence[str]) -> int:
    """`withdraw --proof …`: end what was consented to, for whom no page can do it (R-F3, R-G7)."""
    parser = argparse.ArgumentParser(prog="python -m services.consent withdraw")
    parser.add_argument("--proof", dest="proof_id", required=True, type=UUID, help="of the receipt")
    add_staff(parser)
    parser.add_argument(
        "--method", type=StaffMethod, choices=list(StaffMethod), required=True, help="as asked for"
    )
    parser.add_argument(
        "--reason", type=Reason, choices=list(Reason), default=Reason.PERSON_REQUEST
    )
    parser.add_argument("--case", dest="case_number", help="EINW-2026-17")
    parser.add_argument("--purpose", type=OldPurpose, choices=list(OldPurpose), help="only this")
    return await guarded(_withdraw(Desk.load(), parser.parse_args(arguments)))


async def proof(arguments: Sequence[str]) -> int:
    """`proof --proof …`: what stands under a proof id; logged as an access (R-C5)."""
    parser = argparse.ArgumentParser(prog="python -m services.consent proof")
    parser.add_argument("--proof", dest="proof_id", required=True, type=UUID, help="of the receipt")
    add_staff(parser)
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
    who = desk.identify(asked, Duty.EVIDENCE)
    try:
        text = asked.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RefusedError("the file cannot be read as text") from None
    consents = read(text, calendar.berlin_date(desk.clock.now()))
    access = Access(
        staff_id=who.staff_id,
        reason=Reason.ACCOUNTABILITY,
        case_number=asked.case_number,
        kind=DataKind.CONSENT_RECORD,
        act=Act.IMPORT,
        means=tuple(sorted({old.method.value for old in consents})),
    )
    issuer = _issuer()
    async with AccessLog(desk.transaction).accessing(access) as acting, desk.transaction() as ctx:
        await ctx.store.import_alone()
        await ctx.store.maintain_years()
        importer = _Importer(ctx, issuer.keys)
        lines = await importer.take(consents)
        await ctx.store.save(importer.proofs, (), {})
        acting.count(len(importer.proofs))
        recorded = await ctx.store.recorded_under({line.proof_id for line in lines})
    shown = {
        one["receipt"]["dpv:hasRecordOfActivity"]["dct:identifier"]: one
        for one in _receipts([one for one in recorded if one.verdict is Verdict.GIVEN], issuer, ctx)
    }
    given_as = {one.proof_id: str(one.decision_id) for one in recorded if _is_old(one)}
    return [
        {
            **old.model_dump(mode="json", exclude_none=True, exclude={"did", "receipt"}),
            "proof_id": str(line.proof_id),
            "did": line.did.value,
            "receipt": shown.get(given_as.get(line.proof_id, "")),
        }
        for old, line in zip(consents, lines, strict=True)
    ]


def _is_old(one: Recorded) -> bool:
    return one.verdict is Verdict.GIVEN and one.decided_at < BEFORE


class _Line(NamedTuple):
    """What became of a line."""

    proof_id: UUID
    did: Did


class _Importer:
    """Takes lines into one transaction; what is recorded of them already is left as it is.

    Attributes:
        proofs: to be saved.
    """

    def __init__(self, ctx: Context[ConsentStore], keys: SigningKeys) -> None:
        """Take the transaction and the keys by which ids follow from lines."""
        self._ctx = ctx
        self._keys = keys
        self.proofs: list[Proof] = []
        self._known: dict[UUID, dict[str, Recorded]] = {}

    async def take(self, consents: Sequence[OldConsent]) -> list[_Line]:
        """Take all lines.

        Raises:
            RefusedError: a line says something else of a consent than what was imported.
        """
        ids = [ids_of(old, self._keys) for old in consents]
        given = {old.proof_id for old in consents if old.proof_id is not None}
        candidates = given.union(*ids)
        for one in await self._ctx.store.recorded_under(candidates):
            if one.verdict is Verdict.GIVEN:
                self._known.setdefault(one.proof_id, {})[one.purpose] = one
        return [
            self._take(number, old, among)
            for number, (old, among) in enumerate(zip(consents, ids, strict=True), start=1)
        ]

    def _take(self, number: int, old: OldConsent, ids: Sequence[UUID]) -> _Line:
        if old.proof_id is not None:
            return _Line(old.proof_id, Did.KNOWN if old.proof_id in self._known else Did.NOT_FOUND)
        proof_id = next((one for one in ids if one in self._known), ids[0])
        known = self._known.setdefault(proof_id, {})
        told = {one.decision.purpose: one for one in _proofs(old, proof_id)}
        new = [one for purpose, one in told.items() if purpose not in known]
        for purpose, one in told.items():
            before = known.setdefault(purpose, _as_recorded(one))
            if _facts(before) != _facts(_as_recorded(one)):
                raise RefusedError(f"line {number}: it was imported with other facts")
        self.proofs += new
        return _Line(proof_id, Did.IMPORTED if new else Did.KNOWN)


def ids_of(old: OldConsent, keys: SigningKeys) -> list[UUID]:
    """Return the proof ids that follow from whose consent it is and when it was given.

    The same line again has the same id, and nobody finds the person's by trying references
    without a key; after a rotation the older ones are looked for too.
    """
    natural = {"reference": old.reference, "given_at": old.given_at}
    derived = keys.derived(b"import\0" + chain.canonical(natural))
    return [UUID(bytes=each[:16], version=4) for each in derived]


def _proofs(old: OldConsent, proof_id: UUID) -> list[Proof]:
    wording = None if old.wording is None else hashlib.sha256(old.wording.encode()).hexdigest()
    # one decision a proof: it has no other id of its own
    decision_id = UUID(
        bytes=hashlib.sha256(b"decision\0" + proof_id.bytes).digest()[:16], version=4
    )
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


def _as_recorded(proof: Proof) -> Recorded:
    return Recorded(
        decision_id=proof.decision.decision_id,
        proof_id=proof.proof_id,
        purpose=proof.decision.purpose,
        verdict=proof.decision.verdict,
        method=proof.method,
        decided_at=proof.decision.decided_at,
        ends_on=proof.ends_on,
        wording_version=proof.wording_version,
        language=proof.language,
    )


def _facts(one: Recorded) -> tuple[object, ...]:
    return one.ends_on, one.method, one.wording_version, one.language, one.decided_at


def _issuer() -> Issuer:
    settings = Settings.load()
    keys = SigningKeys.from_json(settings.secret("proof_keys").read())
    return Issuer(controller=Controller.of(settings), register=recipients.load(), keys=keys)


def _receipts(
    recorded: Sequence[Recorded], issuer: Issuer, ctx: Context[ConsentStore]
) -> list[dict[str, Any]]:
    """Return signed receipts as JSON has them."""
    signed = receipts.receipts(recorded, issuer, ctx.now)
    return [json.loads(receipts.as_json(one)) for one in signed]


async def _withdraw(desk: Desk, asked: argparse.Namespace) -> dict[str, Any]:
    who = desk.identify(asked, Duty.PERSON_REQUESTS)
    access = Access(
        staff_id=who.staff_id,
        reason=asked.reason,
        case_number=asked.case_number,
        kind=DataKind.CONSENT_RECORD,
        act=Act.WITHDRAW,
        means=(asked.method.value,),
    )
    issuer = _issuer()
    async with AccessLog(desk.transaction).accessing(access) as acting, desk.transaction() as ctx:
        decisions = await _end(ctx, asked)
        acting.count(len(decisions))
        ended = await ctx.store.recorded_as({one.decision_id for one in decisions})
        (receipt,) = _receipts(ended, issuer, ctx)
    return {
        "proof_id": asked.proof_id,
        "withdrawn": [one.purpose for one in decisions],
        "at": decisions[0].decided_at,
        "receipt": receipt,
    }


async def _end(ctx: Context[ConsentStore], asked: argparse.Namespace) -> list[Decision]:
    """Record that what is in force under a proof id ends; tell senders where it has a visitor."""
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
    decision_id = ctx.ids.new()
    decisions = [
        Decision(
            decision_id=decision_id,
            purpose=purpose,
            verdict=Verdict.WITHDRAWN,
            decided_at=ctx.now,
        )
        for purpose in ending
    ]
    proofs = [_withdrawal(one, asked.proof_id, asked.method) for one in decisions]
    await ctx.store.save(proofs, (), {})
    if visitor_id is not None:
        states = domain.states_of([*(one.decision for one in known), *decisions])
        ctx.outbox.add(topics.CONSENT_STATE, to_wire(visitor_id, states))
    return decisions


def _withdrawal(decision: Decision, proof_id: UUID, method: StaffMethod) -> Proof:
    return Proof(
        decision=decision,
        proof_id=proof_id,
        ends_on=calendar.berlin_date(decision.decided_at + domain.VISIT_LIFE),
        method=method.value,
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
    who = desk.identify(asked, DUTY_OF[asked.reason])
    access = Access(
        staff_id=who.staff_id,
        reason=asked.reason,
        case_number=asked.case_number,
        kind=DataKind.CONSENT_RECORD,
    )
    async with desk.access_log().accessing(access) as reading, desk.transaction() as ctx:
        known = await ctx.store.known_of(asked.proof_id)
        recorded = await ctx.store.recorded_under({asked.proof_id})
        reading.count(len(known))
    return {
        "proof_id": asked.proof_id,
        "receipts": _receipts(recorded, _issuer(), ctx),
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
