"""What a visitor's own browser may ask of the ad partner (R-E1, R-E2, R-F4).

The page asks nobody else by itself. When a visitor chooses to watch an ad, and not before, the gate
says whether the page may load the partner's tag, and which exchanges may get personalised-ad data
through it. Each answer is recorded before the page has it. Where it cannot be recorded, or the
gate refuses, the page shows an ad of ours and asks nobody.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import JsonValue

from services.chassis import errors
from services.chassis.clock import Clock
from services.privacy.declare import Purpose
from services.privacy.gate import Cleared, Gate, Refusal, Request, StaleError

TAG_LOADER = "s-vi-serve-com"
EXCHANGES = ("stickyadstv-com", "amazon-adsystem-com", "adgrx-com")


@dataclass(frozen=True, kw_only=True)
class Leave:
    """The page may load the tag.

    Attributes:
        personalised: exchanges that may get personalised-ad data; ids in the recipient register.
    """

    tag_url: str
    personalised: tuple[str, ...]


class PartnerAds:
    """Gives leave, or none."""

    def __init__(self, tag_url: str, gate: Gate, clock: Clock) -> None:
        """Take the tag's address and the gate."""
        self._clock = clock
        self._tag_url = tag_url
        self._gate = gate

    async def leave(self, visitor_id: UUID, address: str, now: datetime) -> Leave | None:
        """Return what the page may do; None = show an ad of ours.

        Args:
            address: of the visitor: whoever is asked by the browser gets it.
        """

        def request(recipient: str, purpose: Purpose) -> Request:
            payload: dict[str, JsonValue] = {"address": address}
            return Request(
                payload=payload,
                recipient=recipient,
                purpose=purpose,
                visitor_id=visitor_id,
                happened_at=now,
            )

        try:
            (tag,) = await self._gate.clear_many([request(TAG_LOADER, Purpose.AD_SETTLEMENT)])
            if not isinstance(tag, Cleared):
                return None
            found = await self._gate.clear_many(
                [request(name, Purpose.PERSONALISED_ADVERTISING) for name in EXCHANGES]
            )
            # recording takes a moment: who withdrew meanwhile is heard before the page is answered
            personalised = [
                name
                for name, answer in zip(EXCHANGES, found, strict=True)
                if await self._goes(name, answer)
            ]
            if not await self._goes(TAG_LOADER, tag):
                return None
        except errors.Transient:
            return None
        return Leave(tag_url=self._tag_url, personalised=tuple(personalised))

    async def _goes(self, recipient: str, answer: Cleared | Refusal) -> bool:
        if not isinstance(answer, Cleared):
            return False
        try:
            await answer.take(recipient, self._clock.now())
        except StaleError:
            return False
        return True
