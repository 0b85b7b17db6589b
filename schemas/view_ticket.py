"""The view ticket: signed leave to watch one ad once, handed out by the gateway.

`<base64url claims>.<key id>.<base64url HMAC-SHA-256>`; verified again by the ledger, so that an
event that reached Kafka by any other way counts nothing. HMAC, not Ed25519: a microsecond an
event against 70 (architecture.md). Key ids rotate; all known keys verify, the first signs.
"""

import base64
import hmac
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from schemas.wire import read_uuid

TICKET_LIFE_S = 3600


class TicketError(ValueError):
    """The ticket is not one of ours; the message is a closed word."""


@dataclass(frozen=True, kw_only=True)
class ViewTicket:
    """Claims of a ticket. Times are whole milliseconds since the epoch on the wire."""

    ticket_id: UUID
    visitor_id: UUID
    ad_id: str
    duration_ms: int
    issued_at: datetime
    expires_at: datetime


class KeyRing:
    """HMAC keys by key id; the first signs, all verify."""

    def __init__(self, keys: dict[str, str]) -> None:
        """Take `{key id: 64 hex digits}`; at least one."""
        self._keys = _checked(keys)
        self._signing_kid = next(iter(self._keys))

    @classmethod
    def from_json(cls, text: str) -> "KeyRing":
        """Read `{"<kid>": "<hex>"}` as it stands in settings."""
        return cls(_parsed(text))

    def replace(self, text: str) -> None:
        """Take other keys while in use, as `from_json` reads them.

        Raises:
            ValueError: they are none; the old ones stay in force.
        """
        keys = _checked(_parsed(text))
        self._keys, self._signing_kid = keys, next(iter(keys))

    def sign(self, payload: bytes) -> tuple[str, bytes]:
        """Return (key id, MAC) of the payload."""
        return self._signing_kid, _mac(self._keys[self._signing_kid], payload)

    def verify(self, kid: str, payload: bytes, mac: bytes) -> bool:
        """Whether `mac` is the payload's under the named key."""
        key = self._keys.get(kid)
        return key is not None and hmac.compare_digest(_mac(key, payload), mac)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("keys must be JSON") from None


def _checked(keys: object) -> dict[str, bytes]:
    if not isinstance(keys, dict) or not keys:
        raise ValueError("a key ring is a JSON object {key id: hex digits}, at least one")
    found = {}
    for kid, text in keys.items():
        # a key id stands between two dots of a token
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", kid):
            raise ValueError("a key id is 1..32 letters, digits, - or _")
        if not isinstance(text, str) or not re.fullmatch(r"(?:[0-9a-f]{2}){32,64}", text):
            raise ValueError("a key has 256 bits (64 hex digits) or up to 512")
        found[kid] = bytes.fromhex(text)
    return found


def sign_token(keys: KeyRing, payload: bytes) -> str:
    """Return `payload.kid.mac`, base64url where bytes."""
    kid, mac = keys.sign(payload)
    return f"{_to_text(payload)}.{kid}.{_to_text(mac)}"


def read_token(keys: KeyRing, token: str) -> bytes:
    """Return the payload of a token made by `sign_token`.

    Raises:
        TicketError: `malformed` or `signature_invalid`.
    """
    try:
        body, kid, mac = token.split(".")
        payload, given = _to_bytes(body), _to_bytes(mac)
    except ValueError:
        raise TicketError("malformed") from None
    if not keys.verify(kid, payload, given):
        raise TicketError("signature_invalid")
    return payload


def issue(keys: KeyRing, ticket: ViewTicket) -> str:
    """Return the signed text of a ticket."""
    claims = {
        "tid": str(ticket.ticket_id),
        "vid": str(ticket.visitor_id),
        "ad": ticket.ad_id,
        "dur": ticket.duration_ms,
        "iat": _to_ms(ticket.issued_at),
        "exp": _to_ms(ticket.expires_at),
    }
    return sign_token(keys, json.dumps(claims, separators=(",", ":")).encode())


def read(keys: KeyRing, text: str) -> ViewTicket:
    """Verify a ticket's signature and return its claims; whether it expired is the caller's rule.

    Raises:
        TicketError: `malformed` or `signature_invalid`.
    """
    payload = read_token(keys, text)
    try:
        claims = json.loads(payload)
        return ViewTicket(
            ticket_id=read_uuid(claims["tid"]),
            visitor_id=read_uuid(claims["vid"]),
            ad_id=str(claims["ad"]),
            duration_ms=int(claims["dur"]),
            issued_at=_from_ms(claims["iat"]),
            expires_at=_from_ms(claims["exp"]),
        )
    except (AttributeError, KeyError, OverflowError, OSError, TypeError, ValueError):
        # a claim of another type or an instant beyond the calendar
        raise TicketError("malformed") from None


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")


def _to_text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _to_bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _to_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _from_ms(value: int) -> datetime:
    return datetime.fromtimestamp(value / 1000, UTC)
