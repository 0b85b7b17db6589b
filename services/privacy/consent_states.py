"""What is in force for each visitor, in the memory of a process that sends (K2, R-F4).

Fed by `consent-state`, from nothing at each start. What it does not know is not in force; when it
could not read for some seconds, all that it knows is stale.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from schemas import topics
from schemas.consent import ConsentDecision, ConsentStateV1, PurposeState
from services.chassis.clock import Clock, sleep
from services.chassis.kafka import KafkaLogin
from services.chassis.received import Received
from services.chassis.replay import Replay
from services.privacy.rules import Change, ConsentFacts

STALE_AFTER = timedelta(seconds=5)
FORGET_EVERY_S = 600.0
_KEPT_FOR = timedelta(milliseconds=topics.CONSENT_STATE.age_max_ms)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What was said last of a visitor, and when."""

    at: datetime
    changes: Mapping[str, tuple[Change, ...]]
    of_recipients: Mapping[tuple[str, str], tuple[Change, ...]]


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
        """Take the login of the service, which must be a consumer of `consent-state`."""
        self._clock = clock
        self._stale_after = stale_after
        self._known: dict[UUID, _Known] = {}
        self._replay = Replay(
            login,
            prefix=prefix,
            topics=(topics.CONSENT_STATE,),
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
        """Whether all that was said some seconds ago is known."""
        until = self._replay.read_until
        return until is not None and now - until <= self._stale_after

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
        """Take a new state of a visitor in place of the old one."""
        event = received.event
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
