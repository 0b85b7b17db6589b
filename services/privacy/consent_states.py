"""What is in force for each visitor, in the memory of a process that sends (K2, R-F4).

Fed by `consent-state`, from nothing at each start. What it does not know is not in force. Consent
tells on `consent-progress` until when every choice that the broker had was told: when that is some
seconds ago, whoever stands still, all that is known here is stale.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from schemas import topics
from schemas.consent import ConsentDecision, ConsentStateV1, PurposeState
from schemas.consent_progress import ConsentProgressV1
from services.chassis.clock import Clock, sleep
from services.chassis.kafka import KafkaLogin
from services.chassis.received import Received
from services.chassis.replay import Replay
from services.privacy.rules import Change, ConsentFacts

STALE_AFTER = timedelta(seconds=5)
"""No withdrawal that the broker has had for longer is left out; the query for K3 says the same."""
_HEARD_MAX = 100
FORGET_EVERY_S = 600.0
_KEPT_FOR = timedelta(milliseconds=topics.CONSENT_STATE.age_max_ms)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What was said last of a visitor, and when."""

    at: datetime
    changes: Mapping[str, tuple[Change, ...]]
    of_recipients: Mapping[tuple[str, str], tuple[Change, ...]]


@dataclass(frozen=True, kw_only=True)
class _Progress:
    """Until when consent had told every choice, and when we heard of it, by our clock."""

    at: datetime
    until: datetime


class ConsentStates:
    """The consents of all visitors of the last days."""

    def __init__(
        self,
        login: KafkaLogin,
        *,
        prefix: str,
        clock: Clock,
        stale_after: timedelta = STALE_AFTER,
    ) -> None:
        """Take the login of the service, a consumer of `consent-state` and `consent-progress`."""
        self._clock = clock
        self._stale_after = stale_after
        self._known: dict[UUID, _Known] = {}
        self._heard: deque[_Progress] = deque(maxlen=_HEARD_MAX)
        self._known_until: datetime | None = None
        self._replay = Replay(
            login,
            prefix=prefix,
            topics=(topics.CONSENT_STATE, topics.CONSENT_PROGRESS),
            clock=clock,
            on_record=self.take,
            on_deleted=self.forget,
            # it may be a withdrawal
            on_unreadable=self.forget,
        )

    async def run(self) -> None:
        """Read for ever."""
        forgetting = asyncio.create_task(self._forget_for_ever())
        try:
            await self._replay.run()
        finally:
            forgetting.cancel()

    def is_fresh(self, now: datetime) -> bool:
        """Whether every choice is known that the broker had some seconds ago."""
        read_until = self._replay.read_until
        # what consent told before it said so was on the topic when we heard it
        while self._heard and read_until is not None and self._heard[0].at <= read_until:
            until = self._heard.popleft().until
            self._known_until = max(until, self._known_until or until)
        return self._known_until is not None and now - self._known_until <= self._stale_after

    def facts_of(self, visitor_id: UUID, now: datetime) -> ConsentFacts:
        """Return what is known of a visitor."""
        known = self._known.get(visitor_id)
        if known is None:
            return ConsentFacts(is_fresh=self.is_fresh(now))
        return ConsentFacts(
            is_fresh=self.is_fresh(now),
            changes=known.changes,
            of_recipients=known.of_recipients,
        )

    def take(self, received: Received[Any]) -> None:
        """Take a new state of a visitor in place of the old one, or how far consent got."""
        event = received.event
        if isinstance(event, ConsentProgressV1):
            # it was appended after the instant that it names, whatever consent's clock says
            until = min(event.until, received.appended_at or event.until)
            self._heard.append(_Progress(at=self._clock.now(), until=until))
            return
        assert isinstance(event, ConsentStateV1)
        self._known[event.visitor_id] = _Known(
            at=received.time,
            changes={
                state.purpose.value: _changes(state)
                for state in event.purposes
                if state.recipient is None
            },
            of_recipients={
                (state.purpose.value, recipient): _changes(state)
                for state in event.purposes
                for recipient in (state.reaches if state.recipient is None else (state.recipient,))
            },
        )

    def forget(self, key: bytes) -> None:
        """Forget a visitor whose state was deleted, or cannot be understood."""
        try:
            visitor_id = UUID(key.decode())
        except ValueError:  # nobody's, then
            return
        self._known.pop(visitor_id, None)

    def forget_before(self, instant: datetime) -> None:
        """Forget states that the topic no longer has either (R-D5)."""
        old = [visitor_id for visitor_id, known in self._known.items() if known.at < instant]
        for visitor_id in old:
            del self._known[visitor_id]

    async def _forget_for_ever(self) -> None:
        while True:
            await sleep(FORGET_EVERY_S)
            self.forget_before(self._clock.now() - _KEPT_FOR)


def _changes(state: PurposeState) -> tuple[Change, ...]:
    """Return the changes newest first; a state without any has one, its own."""
    found = [
        Change(at=change.at, in_force=change.decision is ConsentDecision.GIVEN)
        for change in state.changes
    ]
    return tuple(found) or (Change(at=state.since, in_force=state.in_force),)
