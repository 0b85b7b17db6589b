"""The numbers of a call go to network operators through the gate (R-E1, R-E2, K3).

The verdict is recorded in the transaction that takes the call, so it is committed before anything
is dialled; what is dialled is what the gate cleared. A call rests on the contract, so no consent is
asked for.
"""

from collections.abc import Sequence

from schemas import topics
from services.call_control import domain
from services.call_control.backend import NUMBER_A, NUMBER_B, RECIPIENT
from services.call_control.store import Call, Store
from services.chassis.clock import Clock
from services.chassis.context import Context
from services.privacy.declare import Purpose
from services.privacy.gate import Cleared, Gate, Recorder, Request, Rules, Verdict
from services.privacy.recorder import to_event

REASON_NOT_PERMITTED = "transfer_not_permitted"
"""Why a call ended that the register of recipients does not allow to be dialled."""


class NumberGate:
    """Clears the numbers of calls."""

    def __init__(self, rules: Rules, clock: Clock, late: Recorder) -> None:
        """Take the rules of the gate, and what keeps refusals after the call was taken."""
        self._late = late
        self._rules = rules
        self._clock = clock

    async def clear(self, ctx: Context[Store], call: Call) -> Cleared | None:
        """Return what the back end may dial once `ctx` is committed.

        Returns:
            Both numbers, in E.164; None = they may not go, and nothing is dialled.
        """

        async def record(verdicts: Sequence[Verdict]) -> None:
            for verdict in verdicts:
                event = to_event(verdict, ctx.ids.new())
                ctx.outbox.add(topics.TRANSFER, event, cause=call)

        assert call.callback_number is not None
        assert call.destination_number is not None
        request = Request(
            payload={
                NUMBER_A: call.callback_number,
                NUMBER_B: call.destination_number,
            },
            recipient=RECIPIENT,
            purpose=Purpose.CALL,
            visitor_id=call.visitor_id,
            happened_at=call.requested_at,
            country=domain.COUNTRY,
        )
        gate = Gate(record, self._clock, rules=self._rules, late=self._late)
        (found,) = await gate.clear_many([request])
        # a call needs both: one of them alone reaches nobody
        if not isinstance(found, Cleared) or found.fields != request.payload.keys():
            return None
        return found
