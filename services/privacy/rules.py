"""The gate's rules (R-E1, R-E2, R-F4, K2, K3): pure, over the recipient register and consents.

A transfer is permitted where the recipient is in the register and may get the fields for the
purpose, and
- the legal basis needs no consent, or the consent was in force both when the event happened and
  now, by what is known and not stale; and
- the country is of the European Economic Area, or has an adequacy decision that covers the
  recipient, or the recipient has signed standard clauses that are in force, or the transfer is the
  contract with the person itself (Art. 49(1)(b) GDPR).
Whatever is unknown, stale or cannot be decided is refused.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from uuid import UUID

from services.privacy.gate import (
    Permit,
    Question,
    Refusal,
    RefusalReason,
    ThirdCountryGround,
    Verdict,
)
from services.privacy.recipients import Permission, Recipient, RecipientKind, Register

CONSENT_LIFE = timedelta(days=6)
"""As long as a visitor lives; the proof says the same (`ends_on`)."""
AHEAD_MAX = timedelta(minutes=5)
"""How far the clock of who saw the event may be ahead of the sender's."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """From an instant on, a consent was in force, or not."""

    at: datetime
    in_force: bool


@dataclass(frozen=True, kw_only=True)
class ConsentFacts:
    """What is known of a visitor's consents.

    Attributes:
        is_fresh: whether nothing that was said some seconds ago can be missing.
        changes: purpose of the consent catalogue -> its changes as a whole, newest first.
        of_recipients: (purpose, recipient) -> its changes; who is not in it was never named.
    """

    is_fresh: bool
    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    of_recipients: Mapping[tuple[str, str], tuple[Change, ...]] = field(default_factory=dict)

    def in_force_at(self, purpose: str, recipient: str, instant: datetime) -> bool:
        """Whether a consent was in force at an instant; what nobody gave was not.

        Nor what was given without naming the recipient, or longer ago than a visitor lives.
        """
        for change in self.of_recipients.get((purpose, recipient), ()):
            if change.at <= instant:
                return change.in_force and instant - change.at < CONSENT_LIFE
        return False

    def is_last_word(self, purpose: str, recipient: str) -> bool:
        """Whether a consent is the last that was said, whatever clock its instant is of."""
        changes = self.of_recipients.get((purpose, recipient), ())
        return bool(changes) and changes[0].in_force


NOTHING_KNOWN = ConsentFacts(is_fresh=False)
FactsOf = Callable[[UUID, datetime], ConsentFacts]
"""(visitor, now) -> what is known."""
RegisterOf = Callable[[datetime], Awaitable[Register | None]]
"""Now -> the register in force; None = unknown."""


def decide(question: Question, register: Register, consents: ConsentFacts) -> Verdict:
    """Return the verdict, with the register's version.

    Args:
        consents: of the question's visitor.
    """
    day = register.day_of(question.asked_at)
    allowed = _permission(question, register, day)
    if isinstance(allowed, RefusalReason):
        return _refusal(question, register, allowed)
    recipient, permission = allowed
    fields = permission.field_set & question.fields
    if not fields:
        return _refusal(question, register, RefusalReason.NO_FIELD_ALLOWED)
    country = _country_ground(question, register, day, recipient, permission)
    if isinstance(country, RefusalReason):
        return _refusal(question, register, country)
    missing = _missing_consent(question, permission, consents)
    if missing is not None:
        return _refusal(question, register, missing)
    return Permit(
        question=question,
        fields=fields,
        basis=permission.basis,
        country=country,
        consent=None if permission.consent is None else permission.consent.value,
        register_version=register.version,
    )


def _refusal(question: Question, register: Register, reason: RefusalReason) -> Refusal:
    return Refusal(question=question, reason=reason, register_version=register.version)


def _permission(
    question: Question, register: Register, day: date
) -> tuple[Recipient, Permission] | RefusalReason:
    """Return who gets it and what it may get for the purpose, or why it gets nothing."""
    if question.happened_at > question.asked_at + AHEAD_MAX:
        return RefusalReason.NOT_DECIDABLE
    if question.recipient not in register.by_id:
        return RefusalReason.RECIPIENT_UNKNOWN
    recipient = register.recipient(question.recipient, day)
    if recipient is None:
        return RefusalReason.RECIPIENT_NOT_VALID
    is_processor = recipient.kind is RecipientKind.PROCESSOR
    if is_processor and (recipient.contract_on is None or recipient.contract_on > day):
        return RefusalReason.CONTRACT_MISSING
    permission = recipient.permission(question.purpose, day)
    return (recipient, permission) if permission else RefusalReason.PURPOSE_NOT_ALLOWED


def _country_ground(
    question: Question,
    register: Register,
    day: date,
    recipient: Recipient,
    permission: Permission,
) -> ThirdCountryGround | RefusalReason:
    # who is in the register with a country is there, whatever the caller says
    country = recipient.country or question.country
    if country is None:
        return RefusalReason.NOT_DECIDABLE
    if country in register.eea:
        return ThirdCountryGround.NOT_A_THIRD_COUNTRY
    if register.is_adequate(recipient, country, day):
        return ThirdCountryGround.ADEQUACY
    if register.has_clauses(recipient, day):
        return ThirdCountryGround.STANDARD_CLAUSES
    if permission.is_contract_with_person:
        return ThirdCountryGround.CONTRACT_WITH_THE_PERSON
    return RefusalReason.COUNTRY_NOT_ALLOWED


def _missing_consent(
    question: Question, permission: Permission, consents: ConsentFacts
) -> RefusalReason | None:
    if permission.consent is None:
        return None
    if question.visitor_id is None:
        return RefusalReason.NOT_DECIDABLE
    if not consents.is_fresh:
        return RefusalReason.CONSENT_STALE
    purpose = permission.consent.value
    if not consents.in_force_at(purpose, question.recipient, question.happened_at):
        return RefusalReason.NO_CONSENT_THEN
    if not (
        consents.is_last_word(purpose, question.recipient)
        and consents.in_force_at(purpose, question.recipient, question.asked_at)
    ):
        return RefusalReason.NO_CONSENT_NOW
    return None


def always(register: Register) -> RegisterOf:
    """Return a register as one that holds at any time."""

    async def of(_: datetime) -> Register:
        return register

    return of


class RuleBook:
    """The rules as the gate asks them."""

    def __init__(self, register_of: RegisterOf, facts_of: FactsOf) -> None:
        """Take where the register and consents are known from."""
        self._register_of = register_of
        self._facts_of = facts_of

    async def __call__(self, question: Question) -> Verdict:
        """Return the verdict."""
        register = await self._register_of(question.asked_at)
        if register is None:
            return Refusal(question=question, reason=RefusalReason.NOT_DECIDABLE)
        consents = NOTHING_KNOWN
        if question.visitor_id is not None:
            consents = self._facts_of(question.visitor_id, question.asked_at)
        return decide(question, register, consents)
