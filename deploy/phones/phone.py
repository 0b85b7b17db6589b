"""What a telephone does when called, and what it has seen of its calls."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

CALLS_KEPT_MAX = 1_000
"""Of a telephone in a long demo the oldest calls are forgotten."""
TONE_OF_CALLER_HZ = 440
TONE_OF_CALLED_HZ = 880


class Mode(StrEnum):
    """What a telephone does when called."""

    ANSWER = "answer"
    BUSY = "busy"
    NO_ANSWER = "no_answer"


class CallEnd(StrEnum):
    """Who ended a call."""

    PHONE = "phone"
    FAR_END = "far_end"
    NOT_ACKNOWLEDGED = "not_acknowledged"
    """Our answer was never acknowledged, for 32 s: the caller has died."""


@dataclass
class PhoneCall:
    """A call as the telephone saw it. Counters and instants; no number, no speech (R-C6).

    Attributes:
        was_offered: the call came with an offer (we are B); without one we make it (we are A).
        heard_hz: the tone heard most; None = silence.
    """

    was_offered: bool
    ringing_at: datetime | None = None
    answered_at: datetime | None = None
    acknowledged_at: datetime | None = None
    ended_at: datetime | None = None
    ended_by: CallEnd | None = None
    rtp_sent: int = 0
    rtp_received: int = 0
    heard_hz: int | None = None


@dataclass
class Phone:
    """A telephone, to be plugged into an exchange.

    Attributes:
        tone_hz: what it says; None = 440 Hz called back (A), 880 Hz as the destination (B).
        is_silent: it neither speaks nor listens, which many telephones at once cannot afford.
        hang_up_after_s: from the acknowledgement of its answer; None = never by itself.
    """

    number: str
    tone_hz: int | None = None
    answer_after_s: float = 1.0
    hang_up_after_s: float | None = None
    mode: Mode = Mode.ANSWER
    is_silent: bool = False
    calls: list[PhoneCall] = field(default_factory=list)

    def note(self, call: PhoneCall) -> None:
        """Remember a call."""
        self.calls.append(call)
        del self.calls[:-CALLS_KEPT_MAX]
