"""Who stands at the door: the visit cookie, the rate limits and the trace of a request."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from prometheus_client import Gauge

from schemas import envelope
from schemas.view_ticket import KeyRing, TicketError, read_token, sign_token
from services.chassis import trace
from services.chassis.clock import Clock
from services.gateway.domain import Bucket, Rate, Reason, Visit, check_visit, take_token

COOKIE = "visit"


def new_visitor_id() -> UUID:
    """Return a random UUIDv4, derived from nothing."""
    return UUID(bytes=secrets.token_bytes(16), version=4)


class Visits:
    """Signs and reads the visit cookie: `visitor id . issued at`, HMAC (R-D5: at most 6 days)."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        age_max_s: int,
        clock: Clock,
        new_id: Callable[[], UUID] = new_visitor_id,
    ) -> None:
        """Take the keys, the longest life in seconds and the clock."""
        self.age_max_s = age_max_s
        self._keys = keys
        self._clock = clock
        self._new_id = new_id

    def open(self) -> tuple[Visit, str]:
        """Return a new visit and its cookie's value."""
        visit = Visit(visitor_id=self._new_id(), issued_at=self._clock.now().replace(microsecond=0))
        payload = f"{visit.visitor_id}.{int(visit.issued_at.timestamp())}"
        return visit, sign_token(self._keys, payload.encode())

    def read(self, cookie: str | None) -> Visit | Reason:
        """Return the visit of a cookie, or why there is none."""
        if not cookie:
            return Reason.VISIT_MISSING
        try:
            visitor_id, issued_s = read_token(self._keys, cookie).decode().split(".")
            visit = Visit(
                visitor_id=UUID(visitor_id), issued_at=datetime.fromtimestamp(int(issued_s), UTC)
            )
        except (TicketError, ValueError, OverflowError, OSError):
            return Reason.VISIT_INVALID
        return check_visit(visit, now=self._clock.now(), age_max_s=self.age_max_s) or visit


class RateLimit:
    """Token buckets in memory, one per key; bounded, and forgotten when idle (R-D1)."""

    def __init__(self, rate: Rate, *, clock: Clock, keys_max: int, idle_s: float) -> None:
        """Take the rate, how many keys are kept at most and for how many idle seconds."""
        self._rate = rate
        self._clock = clock
        self._keys_max = keys_max
        self._idle_s = idle_s
        self._bucket_by_key: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._bucket_by_key)

    def wait_s(self, key: str) -> float:
        """Take a token of the key; return the seconds to wait, 0 = allowed."""
        now_s = self._clock.monotonic()
        bucket, wait_s = take_token(self._rate, self._bucket_by_key.pop(key, None), now_s=now_s)
        self._bucket_by_key[key] = bucket  # at the end: the order is by last use
        if len(self._bucket_by_key) > self._keys_max:
            self._bucket_by_key.popitem(last=False)
        return wait_s

    def forget_idle(self) -> None:
        """Drop keys not seen for the idle time."""
        oldest_s = self._clock.monotonic() - self._idle_s
        while self._bucket_by_key:
            key, bucket = next(iter(self._bucket_by_key.items()))
            if bucket.at_s > oldest_s:
                return
            del self._bucket_by_key[key]


class RateLimits:
    """The two rates of the gateway: per address and per visitor."""

    def __init__(self, *, address: RateLimit, visitor: RateLimit, remembered: Gauge) -> None:
        """Take both and the gauge that shows their size."""
        self.address = address
        self.visitor = visitor
        self._remembered = remembered

    def forget_idle(self) -> None:
        """Forget who has been idle, and show how many are left."""
        for kind, limit in (("address", self.address), ("visitor", self.visitor)):
            limit.forget_idle()
            self._remembered.labels(kind).set(len(limit))


def trace_of(header: str | None) -> str:
    """Return the request's trace context; a new one where it has none or a broken one."""
    return header if header is not None and envelope.is_traceparent(header) else trace.new()
