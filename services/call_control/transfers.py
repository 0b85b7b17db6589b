"""The numbers of a call go to network operators through the gate (R-E1, R-E2, K3).

The verdict is recorded in the transaction that takes the call, so it is committed before anything
is dialled; what is dialled is what the gate cleared. A call rests on the contract, so no consent is
asked for.
"""

import json
from collections.abc import Sequence

from schemas import topics
from services.call_control import domain
from services.call_control.store import Call, Store
from services.chassis.clock import Clock
from services.chassis.context import Context
from services.privacy.declare import Purpose
from services.privacy.gate import Cleared, Gate, Request, Rules, StaleError, Verdict
from services.privacy.recorder import to_event

RECIPIENT = "network-operators"
REASON_NOT_PERMITTED = "transfer_not_permitted"
"""Why a call ended that the register of recipients does not allow to be dialled."""


class NumberGate:
    """Clears the numbers of calls."""

    def __init__(self, rules: Rules, clock: Clock) -> None:
        """Take the rules of the gate."""
        self._rules = rules
        self._clock = clock

    async def clear(self, ctx: Context[Store], call: Call) -> tuple[str, str] | None:
        """Return the callback and the destination number to dial once `ctx` is committed.

        Returns:
            Both in E.164; None = they may not go, and nothing is dialled.
        """

        async def record(verdicts: Sequence[Verdict]) -> None:
            for verdict in verdicts:
                event = to_event(verdict, ctx.ids.new())
                ctx.outbox.add(topics.TRANSFER, event, cause=call)

        assert call.callback_number is not None
        assert call.destination_number is not None
        request = Request(
            payload={
                "callback_number": call.callback_number,
                "destination_number": call.destination_number,
            },
            recipient=RECIPIENT,
            purpose=Purpose.CALL,
            visitor_id=call.visitor_id,
            happened_at=call.requested_at,
            country=domain.COUNTRY,
        )
        (found,) = await Gate(record, self._clock, rules=self._rules).clear_many([request])
        if not isinstance(found, Cleared):
            return None
        try:
            numbers = json.loads(await found.take(RECIPIENT, self._clock.now()))
        except StaleError:
            return None  # the register has changed this moment
        if numbers.keys() != request.payload.keys():
            return None  # a call needs both: one of them alone reaches nobody
        return numbers["callback_number"], numbers["destination_number"]
