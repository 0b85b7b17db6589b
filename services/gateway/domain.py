"""The gateway's rules: who may come in, how often, with which ticket. No I/O, no clock."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID


class Reason(StrEnum):
    """Why the gateway says no: the same word in problem, metric and page."""

    BODY_TOO_LARGE = "body_too_large"
    CALL_CONTROL_AWAY = "call_control_away"
    CALL_UNKNOWN = "call_unknown"
    CATALOGUE_UNKNOWN = "catalogue_unknown"
    CONSENT_AWAY = "consent_away"
    CLIENT_GONE = "client_gone"
    INTERNAL_ERROR = "internal_error"
    INVALID_REQUEST = "invalid_request"
    KAFKA_AWAY = "kafka_away"
    LEDGER_AWAY = "ledger_away"
    MEDIA_TYPE_UNSUPPORTED = "media_type_unsupported"
    MEDIA_UNKNOWN = "media_unknown"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    ORIGIN_FOREIGN = "origin_foreign"
    PURPOSE_NECESSARY = "purpose_necessary"
    PURPOSE_NOT_OFFERED = "purpose_not_offered"
    PURPOSE_TWICE = "purpose_twice"
    RANGE_NOT_SATISFIABLE = "range_not_satisfiable"
    RATE_EXCEEDED = "rate_exceeded"
    RECIPIENT_NOT_OFFERED = "recipient_not_offered"
    RECIPIENT_UNKNOWN = "recipient_unknown"
    REQUEST_TOO_SLOW = "request_too_slow"
    ROUTE_UNKNOWN = "route_unknown"
    SIGNAL_GIVES_NOTHING = "signal_gives_nothing"
    TICKET_EXPIRED = "ticket_expired"
    TICKET_FOREIGN = "ticket_foreign"
    TICKET_MALFORMED = "ticket_malformed"
    TICKET_SIGNATURE_INVALID = "ticket_signature_invalid"
    TIME_EXCEEDED = "time_exceeded"
    VISIT_EXPIRED = "visit_expired"
    VISIT_INVALID = "visit_invalid"
    VISIT_MISSING = "visit_missing"


class Closing(StrEnum):
    """Why a live connection ends."""

    CLIENT_LEFT = "client_left"
    IDLE = "idle"
    MESSAGE_INVALID = "message_invalid"
    MESSAGE_TOO_LARGE = "message_too_large"
    RATE_EXCEEDED = "rate_exceeded"
    SLOW_CLIENT = "slow_client"
    SOCKETS_TOO_MANY = "sockets_too_many"
    VISIT_EXPIRED = "visit_expired"
    VISIT_MISSING = "visit_missing"


@dataclass(frozen=True, kw_only=True)
class Ad:
    """An advertisement of our own; nothing goes to a partner (R-F4)."""

    ad_id: str
    title: str
    media: str
    duration_ms: int


def choose_ad(ads: Sequence[Ad], ticket_id: UUID) -> Ad:
    """Return the ad for a ticket: spread evenly by the id's random part."""
    assert ads
    return ads[ticket_id.int % len(ads)]


# ---------------------------------------------------------------------- visit


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A visitor's pseudonym, random, and when it was given out (whole seconds, UTC)."""

    visitor_id: UUID
    issued_at: datetime

    def expires_at(self, age_max_s: int) -> datetime:
        """Return when the pseudonym ends; it is never prolonged."""
        return self.issued_at + timedelta(seconds=age_max_s)


def check_visit(visit: Visit, *, now: datetime, age_max_s: int) -> Reason | None:
    """Return why a well-signed visit does not count, or None."""
    assert now.tzinfo is not None
    if now >= visit.expires_at(age_max_s):
        return Reason.VISIT_EXPIRED
    # an instant ahead of ours would outlive the six days
    if visit.issued_at > now + timedelta(minutes=5):
        return Reason.VISIT_INVALID
    return None


# ---------------------------------------------------------------------- ticket


def check_ticket(
    *, owner: UUID, visitor_id: UUID, expires_at: datetime, now: datetime
) -> Reason | None:
    """Return why a well-signed ticket does not count at the door, or None.

    Single use, order and speed are the ledger's rules: it alone has state.
    """
    assert now.tzinfo is not None
    if owner != visitor_id:
        return Reason.TICKET_FOREIGN
    return Reason.TICKET_EXPIRED if now >= expires_at else None


# ---------------------------------------------------------------------- rate


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A token bucket's size and how fast it fills."""

    per_s: float
    burst: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Tokens left at an instant of the monotonic clock."""

    tokens: float
    at_s: float


def take_token(rate: Rate, bucket: Bucket | None, *, now_s: float) -> tuple[Bucket, float]:
    """Take a token if there is one.

    Returns:
        The bucket as it is now, and the seconds to wait: 0 = allowed.
    """
    assert rate.per_s > 0
    before = bucket or Bucket(tokens=float(rate.burst), at_s=now_s)
    elapsed_s = max(0.0, now_s - before.at_s)
    tokens = min(float(rate.burst), before.tokens + elapsed_s * rate.per_s)
    if tokens < 1.0:
        return Bucket(tokens=tokens, at_s=now_s), (1.0 - tokens) / rate.per_s
    return Bucket(tokens=tokens - 1.0, at_s=now_s), 0.0


# ---------------------------------------------------------------------- address and origin


def is_origin_allowed(origin: str | None, public_origin: str) -> bool:
    """Whether a request may come from this page (CSRF); no Origin means no foreign page."""
    return origin is None or origin == public_origin


def client_address(peer: str, forwarded_for: str | None, proxies: Sequence[str]) -> str:
    """Return the visitor's address, in its shortest form, at most 45 characters.

    Args:
        peer: who holds the connection.
        forwarded_for: X-Forwarded-For as it came; anyone can write one, so that it is read from
            the right and only as far as trusted proxies wrote it.
        proxies: networks of trusted proxies; empty = the header is not looked at.
    """
    address = _parse(peer)
    if address is None:
        return "unknown"
    hops = [part.strip() for part in (forwarded_for or "").split(",")]
    while hops and _is_within(address, proxies):
        previous = _parse(hops.pop())
        if previous is None:
            break
        address = previous
    return str(address)


def rate_key(address: str) -> str:
    """Return what an address is counted under: an IPv6 customer owns a /64."""
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(parsed), 64), strict=False).network_address)
    return address


def network_of(address: str) -> str:
    """Return an address without what tells its customers apart; what is none as it is."""
    parsed = _parse(address)
    if parsed is None:
        return address
    prefix = 24 if isinstance(parsed, ipaddress.IPv4Address) else 48
    return str(ipaddress.ip_network(f"{parsed}/{prefix}", strict=False).network_address)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_within(address: _Address, networks: Sequence[str]) -> bool:
    return any(address in ipaddress.ip_network(network) for network in networks)
