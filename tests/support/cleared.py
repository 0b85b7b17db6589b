"""Numbers that the gate cleared, for tests of what dials them."""

from collections.abc import Sequence
from datetime import UTC, datetime

from services.call_control.backend import NUMBER_A, NUMBER_B, RECIPIENT
from services.chassis.clock import SystemClock
from services.privacy.declare import LegalBasis, Purpose
from services.privacy.gate import Cleared, Gate, Permit, Question, ThirdCountryGround, Verdict


async def _permit(question: Question) -> Verdict:
    return Permit(
        question=question,
        fields=question.fields,
        basis=LegalBasis.CONTRACT,
        country=ThirdCountryGround.NOT_A_THIRD_COUNTRY,
    )


async def _forget(verdicts: Sequence[Verdict]) -> None:
    """Keep nothing: these tests are about the dialling."""


async def cleared_numbers(number_a: str, number_b: str, recipient: str = RECIPIENT) -> Cleared:
    """Return two numbers as a gate that permits everything clears them."""
    found = await Gate(_forget, SystemClock(), rules=_permit).clear(
        {NUMBER_A: number_a, NUMBER_B: number_b},
        recipient=recipient,
        purpose=Purpose.CALL,
        visitor_id=None,
        happened_at=datetime.now(UTC),
    )
    assert isinstance(found, Cleared)
    return found
