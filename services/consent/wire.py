"""From the rules' types to the wire's."""

from collections.abc import Sequence
from uuid import UUID

from schemas.consent import (
    ConsentChange,
    ConsentDecision,
    ConsentStateV1,
    Purpose,
    PurposeState,
)
from services.consent.domain import State


def to_wire(visitor_id: UUID, states: Sequence[State]) -> ConsentStateV1:
    """Return what stands for a visitor as the event says it."""
    return ConsentStateV1(
        visitor_id=visitor_id,
        purposes=tuple(
            PurposeState(
                purpose=Purpose(state.purpose),
                recipient=state.recipient,
                reaches=tuple(sorted(state.reaches)),
                in_force=state.in_force,
                since=state.since,
                changes=tuple(
                    ConsentChange(decision=ConsentDecision(change.verdict.value), at=change.at)
                    for change in state.changes
                ),
            )
            for state in states
        ),
    )
