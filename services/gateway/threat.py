"""Whether full addresses may outlive the use: only under an assessed threat (R-C3, R-D1, R-D2).

Retention says until when; it is asked each minute. While it does not know of a threat, or has never
answered, only an address's network leaves this process: with it, nothing outlives the use.
"""

from datetime import datetime, timedelta

from services.chassis import trace
from services.chassis.clock import Clock, sleep
from services.gateway.domain import network_of
from services.gateway.reads import AwayError, Reads

ASK_EVERY_S = 60.0
FIRST_ASK_EVERY_S = 0.25
FIRST_ANSWER_WITHIN_S = 15.0
BELIEVED_FOR = timedelta(hours=1)
"""How long the last answer counts while retention is away; the assessment's end counts always."""


class Threat:
    """Until when full addresses may be kept, as retention said last."""

    def __init__(self, reads: Reads, clock: Clock) -> None:
        """Take how retention is read."""
        self._reads = reads
        self._clock = clock
        self._kept_until: datetime | None = None
        self._asked_at_s: float | None = None
        self._is_answered = False

    def kept(self, address: str) -> str:
        """Return what of an address may leave this process: all of it, or its network."""
        until = self._kept_until
        return address if until is not None and self._clock.now() < until else network_of(address)

    def learn(self, kept_until: datetime | None) -> None:
        """Take until when addresses may be kept; None = not at all."""
        self._is_answered = True
        believed_until = self._clock.now() + BELIEVED_FOR
        self._kept_until = None if kept_until is None else min(kept_until, believed_until)

    def problem(self) -> str | None:
        """Return why not to begin yet; a retention that stays silent is not waited for."""
        if self._is_answered:
            return None
        asked_at_s = self._asked_at_s
        waited_s = 0.0 if asked_at_s is None else self._clock.monotonic() - asked_at_s
        return None if waited_s > FIRST_ANSWER_WITHIN_S else "threat level not known yet"

    async def run(self) -> None:
        """Ask for ever."""
        self._asked_at_s = self._clock.monotonic()
        while True:
            await self.ask()
            await sleep(ASK_EVERY_S if self._is_answered else FIRST_ASK_EVERY_S)

    async def ask(self) -> None:
        """Ask once; without an answer what was known stays, for its time."""
        try:
            found = await self._reads.threat(trace.new())
        except AwayError:
            return
        self.learn(found.kept_until)
