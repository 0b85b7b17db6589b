"""The recipient register in force, in the memory of a process that sends (R-E1, K3).

Consent says on the topic `register` which one holds; so a recipient that has lost its permission
gets nothing more from any sender, whatever each of them was shipped with. Until consent has said
anything, the shipped one holds; one that cannot be understood permits nothing.
"""

import asyncio
import hashlib
from datetime import datetime, timedelta
from typing import Any

from schemas import topics
from schemas.register import RegisterName, RegisterV1
from services.chassis import logs
from services.chassis.clock import Clock, sleep
from services.chassis.kafka import KafkaLogin
from services.chassis.received import Received
from services.chassis.replay import Replay
from services.privacy import recipients
from services.privacy.recipients import RecipientsError, Register

STALE_AFTER = timedelta(seconds=60)
"""What is not told within it is not known: nothing goes. Rarer than consents, so longer."""
FIRST_READING_WITHIN_S = 5.0
"""Less than what is cleared stays valid."""
_POLL_S = 0.05


class Registers:
    """The register in force, as far as this process knows."""

    def __init__(
        self,
        login: KafkaLogin,
        *,
        prefix: str,
        clock: Clock,
        stale_after: timedelta = STALE_AFTER,
    ) -> None:
        """Take the login of the service, which must be a consumer of `register`."""
        self._stale_after = stale_after
        self._shipped = recipients.load()
        self._current: Register | None = self._shipped
        self._replay = Replay(
            login,
            prefix=prefix,
            topics=(topics.REGISTER,),
            clock=clock,
            on_record=self.take,
            on_deleted=self.forget,
            on_unreadable=self.lose,
        )

    async def run(self) -> None:
        """Read for ever."""
        await self._replay.run()

    async def current(self, now: datetime) -> Register | None:
        """Return the register in force; None where that is not known.

        A process that has just started waits for what is said: a call that came a moment too early
        must not be refused.
        """
        if self._replay.read_until is None:
            await self._first_reading()
        until = self._replay.read_until
        if until is None or now - until > self._stale_after:
            return None
        return self._current

    async def _first_reading(self) -> None:
        try:
            async with asyncio.timeout(FIRST_READING_WITHIN_S):
                while self._replay.read_until is None:
                    await sleep(_POLL_S)
        except TimeoutError:
            return

    def take(self, received: Received[Any]) -> None:
        """Take what consent says in place of what was known."""
        event = received.event
        assert isinstance(event, RegisterV1)
        if event.name is not RegisterName.RECIPIENTS:
            return
        self._current = _read(event)

    def lose(self, key: bytes) -> None:
        """Know no register any more where the one in force cannot be understood."""
        if key.decode(errors="replace") == RegisterName.RECIPIENTS:
            self._current = None

    def forget(self, key: bytes) -> None:
        """Fall back on the shipped register where the one that held was deleted."""
        if key.decode(errors="replace") == RegisterName.RECIPIENTS:
            self._current = self._shipped


def _read(event: RegisterV1) -> Register | None:
    """Return the register that an event carries.

    None where it cannot be understood, being damaged or of a version to come: in doubt nothing
    goes until a good one is told.
    """
    content = event.document.encode()
    try:
        if hashlib.sha256(content).hexdigest() == event.sha256:
            return recipients.parse(content)
    except RecipientsError:
        pass
    logs.get().error("register not understood", reason="register_unreadable")
    return None
