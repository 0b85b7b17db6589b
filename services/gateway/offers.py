"""What can be agreed to, so that a choice that means nothing is refused at the door (R-F2).

Consent says what each published catalogue offers; it is asked each minute, and once more, but not
often, when somebody names a version that it did not have. Who never answered refuses nothing here:
consent itself judges every choice again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from schemas.consent import DENIALS, ConsentDecision, Purpose
from services.chassis import trace
from services.chassis.clock import Clock, sleep
from services.gateway.domain import Reason
from services.gateway.reads import AwayError, Offer, OffersView, Reads

ASK_EVERY_S = 60.0
ASK_AGAIN_AFTER_S = 5.0
"""A visitor who makes versions up must not make us ask for each of them."""
BELIEVED_FOR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One choice of a request."""

    purpose: Purpose
    decision: ConsentDecision
    recipient: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a visitor answers to."""

    catalogue_version: str
    wording_version: str
    language: str
    is_signal: bool = False


class Offers:
    """What consent said last."""

    def __init__(self, reads: Reads, clock: Clock) -> None:
        """Take how consent is read."""
        self._reads = reads
        self._clock = clock
        self._view: OffersView | None = None
        self._asked_at_s: float | None = None
        self._answered_at_s = 0.0

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self.ask()
            await sleep(ASK_EVERY_S)

    async def ask(self) -> None:
        """Ask once; without an answer what was known stays, for its time."""
        self._asked_at_s = self._clock.monotonic()
        try:
            self._view = await self._reads.offers(trace.new())
        except AwayError:
            return
        self._answered_at_s = self._clock.monotonic()

    async def refusal(self, shown: Shown, choices: Iterable[Chosen]) -> tuple[Reason, int] | None:
        """Return why a request cannot count, and by which of its choices; None = it may."""
        chosen = tuple(choices)
        found = self._refusal(shown, chosen)
        if found is None or not self._may_ask_again():
            return found
        # a version or recipient may be newer than the last answer
        await self.ask()
        return self._refusal(shown, chosen)

    def _may_ask_again(self) -> bool:
        asked_at_s = self._asked_at_s
        return asked_at_s is None or self._clock.monotonic() - asked_at_s > ASK_AGAIN_AFTER_S

    def _refusal(self, shown: Shown, chosen: tuple[Chosen, ...]) -> tuple[Reason, int] | None:
        view = self._view
        believed_s = BELIEVED_FOR.total_seconds()
        if view is None or self._clock.monotonic() - self._answered_at_s > believed_s:
            return None
        for index, choice in enumerate(chosen):
            reason = why_not(view, shown, choice)
            if reason is not None:
                return reason, index
        return None


def why_not(view: OffersView, shown: Shown, choice: Chosen) -> Reason | None:
    """Return why a choice cannot count (R-F2); the same rule as consent's `domain.judge`.

    A denial counts whatever was shown. An agreement counts only to what was offered: with an old
    version too, and then reaches whom that one named (ADR 0030).
    """
    purpose = choice.purpose.value
    among = view.recipients.get(purpose, frozenset())
    if choice.recipient is not None and choice.recipient not in among:
        return Reason.RECIPIENT_UNKNOWN
    if choice.decision in DENIALS:
        return Reason.PURPOSE_NECESSARY if choice.purpose is Purpose.NECESSARY else None
    if shown.is_signal:
        return Reason.SIGNAL_GIVES_NOTHING
    return _why_not_offered(view.versions.get(shown.catalogue_version), shown, choice)


def _why_not_offered(offer: Offer | None, shown: Shown, choice: Chosen) -> Reason | None:
    if offer is None or offer.wordings.get(shown.language) != shown.wording_version:
        return Reason.CATALOGUE_UNKNOWN
    named = offer.recipients.get(choice.purpose.value)
    if named is None:
        return Reason.PURPOSE_NOT_OFFERED
    if choice.recipient is not None and choice.recipient not in named:
        return Reason.RECIPIENT_NOT_OFFERED
    return None
