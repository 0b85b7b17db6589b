"""The transfer gate: nothing personal leaves the platform but through it (R-E2, K3).

A sender accepts only a `Cleared` payload, and only the gate makes one: it asks the rules, cuts the
payload to what they permit, and has the answer recorded, a refusal too, before it hands anything
out. Rules that cannot decide refuse. The rules are in `rules.py`, over the register of
`recipients.py` and the consents of `consent_states.py`; what stands here knows none of them.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NoReturn, Protocol, final
from uuid import UUID

from pydantic import JsonValue
from typing_extensions import override

from services.chassis.clock import Clock
from services.privacy.declare import LegalBasis, Purpose

CLEARED_AGE_MAX = timedelta(seconds=10)
"""What was cleared and not sent must ask anew: consent is needed at the moment of sending."""
_SEAL = object()


class ThirdCountryGround(StrEnum):
    """Why data may go where it goes, besides the legal basis (R-E2)."""

    NOT_A_THIRD_COUNTRY = "not_a_third_country"
    ADEQUACY = "adequacy"
    STANDARD_CLAUSES = "standard_clauses"
    CONTRACT_WITH_THE_PERSON = "contract_with_the_person"
    """Art. 49(1)(b): a call to a foreign number, a visit from outside the EU."""


class RefusalReason(StrEnum):
    """Why a transfer is not made. Closed: recorded and counted as it stands."""

    NOT_DECIDABLE = "not_decidable"
    """The rules lack a fact, or there are none."""
    RECIPIENT_UNKNOWN = "recipient_unknown"
    RECIPIENT_NOT_VALID = "recipient_not_valid"
    """Its entry in the register is of another time."""
    CONTRACT_MISSING = "contract_missing"
    """A processor without a contract on processing (R-C5)."""
    PURPOSE_NOT_ALLOWED = "purpose_not_allowed"
    COUNTRY_NOT_ALLOWED = "country_not_allowed"
    """A third country without adequacy or safeguards."""
    NO_CONSENT_THEN = "no_consent_then"
    """Not in force when the event happened."""
    NO_CONSENT_NOW = "no_consent_now"
    """Not in force when it would be sent."""
    CONSENT_STALE = "consent_stale"
    """What we know of it is too old to rely on."""
    NO_FIELD_ALLOWED = "no_field_allowed"


@dataclass(frozen=True, kw_only=True)
class Question:
    """May this go there?

    Attributes:
        recipient: id in the recipient register.
        fields: dotted paths of what would be sent.
        visitor_id: whose data; None where they are nobody's who visited (a called number).
        happened_at: instant of what the data are about, aware.
        asked_at: instant of sending, aware.
        country: where it would go, for recipients that are elsewhere each time (a called network);
            ISO 3166-1 alpha-2.
    """

    recipient: str
    purpose: Purpose
    fields: frozenset[str]
    visitor_id: UUID | None
    happened_at: datetime
    asked_at: datetime
    country: str | None = None

    def __post_init__(self) -> None:
        assert self.happened_at.tzinfo is not None
        assert self.asked_at.tzinfo is not None


NO_REGISTER = "none"


@dataclass(frozen=True, kw_only=True)
class Permit:
    """These fields may go, on these grounds; to nobody else and for nothing else.

    Attributes:
        consent: the purpose of the consent catalogue that was in force, where the basis is consent.
        register_version: of the register that it was decided by.
    """

    question: Question
    fields: frozenset[str]
    basis: LegalBasis
    country: ThirdCountryGround
    consent: str | None = None
    register_version: str = NO_REGISTER


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Nothing may go."""

    question: Question
    reason: RefusalReason
    register_version: str = NO_REGISTER


Verdict = Permit | Refusal


class Rules(Protocol):
    """Decide about a question. What is unknown, stale or undecidable is refused (R-F4)."""

    def __call__(self, question: Question) -> Awaitable[Verdict]:
        """Return the verdict; an error is none, and nothing is sent."""
        ...


class Recorder(Protocol):
    """Keep each verdict (R-E2)."""

    def __call__(self, verdicts: Sequence[Verdict]) -> Awaitable[None]:
        """Return when all of them are safe; after an error nothing is sent."""
        ...


async def refuse_everything(question: Question) -> Verdict:
    """Stand for the rules until there are any: what nobody can decide is refused."""
    return Refusal(question=question, reason=RefusalReason.NOT_DECIDABLE)


class StaleError(ValueError):
    """What was cleared was not sent in time: whoever still wants to send it asks the gate again."""


class NotPermittedError(StaleError):
    """What was cleared may not go any more; the refusal is recorded."""


AskAgain = Callable[[Permit, datetime], Awaitable[None]]
"""Asks the rules about a permit at the moment of sending; raises NotPermittedError."""


@final
class Cleared:
    """A payload that may be sent, once, now. Made by the gate only; senders accept nothing else."""

    __slots__ = ("_ask_again", "_body", "_is_taken", "_permit")

    def __init__(self, permit: Permit, body: bytes, ask_again: AskAgain, seal: object) -> None:
        """Take what the gate found; whoever has no seal is not the gate."""
        if seal is not _SEAL:
            raise TypeError("only the gate clears a payload")
        self._permit, self._body, self._is_taken = permit, body, False
        self._ask_again = ask_again

    @override
    def __init_subclass__(cls) -> None:
        raise TypeError("a cleared payload has one class, so that senders need to look at no other")

    @override
    def __reduce__(self) -> NoReturn:
        raise TypeError("a cleared payload is sent once: it cannot be copied")

    @property
    def fields(self) -> frozenset[str]:
        """Return the paths of what may go; no values."""
        return self._permit.fields

    async def take(self, recipient: str, now: datetime) -> bytes:
        """Return the JSON text to send, with the permitted fields and no others.

        The rules are asked once more, by what is known now: who has withdrawn since it was cleared
        is heard. What remains is the way of a withdrawal to this process, and of the text to the
        recipient: send it at once.

        Args:
            recipient: whom the sender is about to send it to.
            now: the sender's instant.

        Raises:
            StaleError: cleared too long ago.
            NotPermittedError: it may not go any more.
            ValueError: cleared for somebody else, or sent already.
            Whatever the rules or the recorder raise: nothing is handed out.
        """
        if recipient != self._permit.question.recipient:
            raise ValueError("cleared for another recipient")
        if not timedelta(0) <= now - self._permit.question.asked_at <= CLEARED_AGE_MAX:
            raise StaleError("cleared too long ago: ask the gate again")
        if self._is_taken:
            raise ValueError("sent already: ask the gate again")
        self._is_taken = True  # before anything is awaited: nobody takes it meanwhile
        await self._ask_again(self._permit, now)
        return self._body


@dataclass(frozen=True, kw_only=True)
class Request:
    """A payload (JSON), and what the gate has to know of it; see `Question`."""

    payload: Mapping[str, JsonValue]
    recipient: str
    purpose: Purpose
    visitor_id: UUID | None
    happened_at: datetime
    country: str | None = None

    def question(self, asked_at: datetime) -> Question:
        """Return what the rules are asked."""
        return Question(
            recipient=self.recipient,
            purpose=self.purpose,
            fields=paths(self.payload),
            visitor_id=self.visitor_id,
            happened_at=self.happened_at,
            asked_at=asked_at,
            country=self.country,
        )


class Gate:
    """Asks, cuts, records, and only then hands out."""

    def __init__(
        self,
        recorder: Recorder,
        clock: Clock,
        *,
        rules: Rules = refuse_everything,
        late: Recorder | None = None,
    ) -> None:
        """Take the parts.

        Args:
            late: keeps refusals at the moment of sending, where `recorder` can no longer.
        """
        self._recorder = recorder
        self._late = late or recorder
        self._clock = clock
        self._rules = rules

    async def clear(
        self,
        payload: Mapping[str, JsonValue],
        *,
        recipient: str,
        purpose: Purpose,
        visitor_id: UUID | None,
        happened_at: datetime,
    ) -> Cleared | Refusal:
        """Decide about a payload and record the verdict; see `clear_many`."""
        request = Request(
            payload=payload,
            recipient=recipient,
            purpose=purpose,
            visitor_id=visitor_id,
            happened_at=happened_at,
        )
        (found,) = await self.clear_many([request])
        return found

    async def clear_many(self, requests: Sequence[Request]) -> list[Cleared | Refusal]:
        """Decide about payloads, each for itself, and record all verdicts at once.

        What is not permitted of a payload is left out, at any depth.

        Returns:
            An answer for each request, in their order.

        Raises:
            ValueError: a name in a payload has a dot or is empty, a number is not finite.
            Whatever the rules or the recorder raise: then nothing was cleared.
        """
        asked_at = self._clock.now()
        judged = [await self._judge(request, asked_at) for request in requests]
        await self._recorder([verdict for verdict, _ in judged])
        return [
            Cleared(verdict, body, self._ask_again, _SEAL)
            if isinstance(verdict, Permit)
            else verdict
            for verdict, body in judged
        ]

    async def _ask_again(self, permit: Permit, now: datetime) -> None:
        question = replace(permit.question, fields=permit.fields, asked_at=now)
        verdict = await self._rules(question)
        assert verdict.question == question, "an answer to something else"
        if isinstance(verdict, Permit) and not permit.fields <= verdict.fields:
            verdict = Refusal(
                question=question,
                reason=RefusalReason.NO_FIELD_ALLOWED,
                register_version=verdict.register_version,
            )
        if isinstance(verdict, Refusal):
            await self._late([verdict])
            raise NotPermittedError("may not go any more: ask the gate again")

    async def _judge(self, request: Request, asked_at: datetime) -> tuple[Verdict, bytes]:
        question = request.question(asked_at)
        verdict = await self._rules(question)
        assert verdict.question == question, "an answer to something else"
        if isinstance(verdict, Permit):
            verdict = _of_what_was_asked(verdict)
        if isinstance(verdict, Refusal):
            return verdict, b""
        # cut before anything else is awaited: a caller could change the payload meanwhile
        return verdict, _ENCODE(cut(request.payload, verdict.fields)).encode()


def _of_what_was_asked(permit: Permit) -> Verdict:
    """Return the permit without fields that are not in question: what is recorded is what goes."""
    fields = permit.fields & permit.question.fields
    if not fields:
        return Refusal(
            question=permit.question,
            reason=RefusalReason.NO_FIELD_ALLOWED,
            register_version=permit.register_version,
        )
    return permit if fields == permit.fields else replace(permit, fields=fields)


def paths(payload: Mapping[str, JsonValue]) -> frozenset[str]:
    """Return the dotted path of every value in a payload; entries of a list share theirs.

    An empty object or list is a value: that there is nothing also says something.

    Raises:
        ValueError: a name has a dot, or is empty: its path would be another's.
    """
    found: set[str] = set()
    _collect(payload, "", found)
    return frozenset(found)


def _collect(value: Mapping[str, JsonValue] | JsonValue, path: str, found: set[str]) -> None:
    # exact types: asking an abstract class about every value costs more than the rest of it
    if type(value) is dict and value:
        before = f"{path}." if path else ""
        for name, inner in value.items():
            if not name or "." in name:
                raise ValueError("a name in a payload must not be empty nor have a dot")
            if type(inner) in _LEAVES:
                found.add(before + name)  # most values: a call of its own would cost more
            else:
                _collect(inner, before + name, found)
    elif type(value) is list and value:
        for entry in value:
            _collect(entry, path, found)
    else:
        assert type(value) in _PLAIN, "a payload is plain JSON"
        if path:
            found.add(path)


def cut(payload: Mapping[str, JsonValue], permitted: frozenset[str]) -> dict[str, JsonValue]:
    """Return a payload without what is not permitted; what is empty then goes as well."""
    kept = _cut_of(dict(payload), permitted, "")
    return kept if isinstance(kept, dict) else {}


_CUT: JsonValue = object()  # type: ignore[assignment]  # stands for "nothing of it", unlike null
_LEAVES = frozenset({str, int, float, bool, type(None)})
_PLAIN = _LEAVES | {dict, list}


def _cut_of(value: JsonValue, permitted: frozenset[str], path: str) -> JsonValue:
    if type(value) is dict and value:
        before = f"{path}." if path else ""
        kept: dict[str, JsonValue] = {}
        for name, inner in value.items():
            if type(inner) in _LEAVES:
                if before + name in permitted:
                    kept[name] = inner
            elif (found := _cut_of(inner, permitted, before + name)) is not _CUT:
                kept[name] = found
        return kept or _CUT
    if type(value) is list and value:
        entries = [_cut_of(entry, permitted, path) for entry in value]
        return [entry for entry in entries if entry is not _CUT] or _CUT
    return value if path in permitted else _CUT


_ENCODE = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode
