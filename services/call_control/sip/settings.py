"""What the SIP back end must know of its trunk."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.call_control.backend import E164

NO_REPLY_MS_MAX = 31_000
"""sippy ignores a longer limit: the INVITE's own timer B (32 s) would end it first."""
ACK_GUARD_MS_MAX = 20_000
"""A far end gives up an unacknowledged answer after 32 s (RFC 3261 13.3.1.4): stay far below."""
SESSION_EXPIRES_S_MIN = 90
"""RFC 4028 allows nothing shorter."""

Address = tuple[str, int]
"""Host and UDP port."""


@dataclass(frozen=True, kw_only=True)
class TrunkSettings:
    """One trunk and our address on it.

    Attributes:
        local: our UDP address; it goes into Via and Contact, so it must be one the trunk reaches.
            The process after a crash must use the same, else the far ends' packets miss it.
        next_hop: where every call goes, the dialled number being the user part of the address.
        caller_id: number shown to A and B, E.164: the platform's own.
        routes: number or prefix of a number -> other next hop; the longest match wins.
        username: for digest challenges (INVITE, re-INVITE, BYE); None = the trunk knows us by IP.
        no_reply_ms: no answer at all, not even 100 Trying: the trunk is out of reach.
        ack_guard_ms: how long A's answer may stay unacknowledged while B rings. Then A is
            acknowledged without media, and invited again with B's media when B answers.
        persist_timeout_ms: a leg whose state is not confirmed durable by then is taken down.
        session_expires_s: RFC 4028: if we die, a far end that supports it ends the leg after this
            time. 0 = off. Refreshed at half of it.
        teardown_wait_ms: a far end that does not answer our BYE or CANCEL is waited for this long
            (its own timer is 32 s).
        calls_max: more calls at once are refused.
    """

    local: Address
    next_hop: Address
    caller_id: str
    routes: Mapping[str, Address] = field(default_factory=dict)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    no_reply_ms: int = 5_000
    ack_guard_ms: int = 3_000
    persist_timeout_ms: int = 5_000
    session_expires_s: int = 180
    teardown_wait_ms: int = 33_000
    calls_max: int = 500

    def __post_init__(self) -> None:
        if not E164.fullmatch(self.caller_id):
            raise ValueError("caller_id must be E.164")
        if not 0 < self.no_reply_ms <= NO_REPLY_MS_MAX:
            raise ValueError(f"no_reply_ms must be 1..{NO_REPLY_MS_MAX}")
        if not 0 < self.ack_guard_ms <= ACK_GUARD_MS_MAX:
            raise ValueError(f"ack_guard_ms must be 1..{ACK_GUARD_MS_MAX}")
        if not 0 < self.persist_timeout_ms <= ACK_GUARD_MS_MAX:
            raise ValueError(f"persist_timeout_ms must be 1..{ACK_GUARD_MS_MAX}")
        if 0 < self.session_expires_s < SESSION_EXPIRES_S_MIN:
            raise ValueError(f"session_expires_s must be 0 or at least {SESSION_EXPIRES_S_MIN}")

    def route(self, number: str) -> Address:
        """Return the next hop for a dialled number."""
        matching = [prefix for prefix in self.routes if number.startswith(prefix)]
        return self.routes[max(matching, key=len)] if matching else self.next_hop
