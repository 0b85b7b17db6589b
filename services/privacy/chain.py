"""A hash chain over salted commitments, with signed anchors: proof that outlives erasure (K1).

Each entry commits to its content by a salt of its own. Content and salt are kept apart from the
chain: once they are erased, nothing of the person can be guessed from the commitment, and the
chain still verifies. What a chain cannot see by itself, its own cut-off end, an anchor or a head
kept elsewhere shows. Pure.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SALT_BYTES = 32
HASH_BYTES = 32
GENESIS = bytes(HASH_BYTES)
"""What the first entry of a chain (seq 1) follows."""


class Fault(StrEnum):
    """What is wrong with a chain."""

    EDITED = "edited"
    REMOVED = "removed"
    INSERTED = "inserted"
    REORDERED = "reordered"
    TRUNCATED = "truncated"
    ANCHOR_MISMATCH = "anchor_mismatch"
    ANCHOR_FORGED = "anchor_forged"
    CONTENT_FORGED = "content_forged"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One link; `hash` covers the one before, `seq` (from 1) and `commitment`, 32 bytes each."""

    seq: int
    commitment: bytes
    hash: bytes


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """What the chain's end was on a day, signed. `hash` is that of the entry `seq`.

    `chain` names the chain, so that the anchor of one cannot stand for another.
    """

    chain: str
    day: date
    seq: int
    hash: bytes
    key_id: str
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The first seq from which a fault shows, and its kind."""

    seq: int
    fault: Fault


def canonical(mapping: Mapping[str, Any]) -> bytes:
    """Return the only JSON bytes of a mapping: sorted keys, no spaces, instants in RFC 3339 UTC.

    Raises:
        TypeError: a float (its text is not one on all machines) or an unknown type.
        ValueError: an instant without its zone.
    """
    text = json.dumps(
        _plain(mapping), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return _plain(value.value)
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise TypeError("keys are text")
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return _scalar(value)


def _scalar(value: Any) -> bool | int | str | None:
    match value:
        case None | bool() | int() | str():
            return value
        case datetime():
            if value.tzinfo is None:
                raise ValueError("an instant needs its zone")
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case date() | UUID():
            return str(value)
        case _:
            raise TypeError(f"not canonical: {type(value).__name__}")


def commitment(salt: bytes, content: bytes) -> bytes:
    """Return SHA-256 over salt and content, each after its length (8 bytes, big endian)."""
    if len(salt) != SALT_BYTES:
        raise ValueError("a salt has 32 bytes")
    return hashlib.sha256(_with_length(salt) + _with_length(content)).digest()


def link(previous: bytes, seq: int, commitment: bytes) -> bytes:
    """Return the hash of an entry from that of the one before (`GENESIS` before seq 1)."""
    if seq < 1 or len(previous) != HASH_BYTES or len(commitment) != HASH_BYTES:
        raise ValueError("a link takes seq >= 1 and two hashes of 32 bytes")
    return hashlib.sha256(previous + seq.to_bytes(8, "big") + commitment).digest()


def extend(head: Entry | None, commitments: Iterable[bytes]) -> list[Entry]:
    """Return the entries that follow a head (None: a new chain), one per commitment."""
    previous, seq = (head.hash, head.seq) if head is not None else (GENESIS, 0)
    entries = []
    for each in commitments:
        seq += 1
        previous = link(previous, seq, each)
        entries.append(Entry(seq=seq, commitment=each, hash=previous))
    return entries


def _with_length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part


class SigningKeys:
    """Ed25519 seeds by key id; the first signs."""

    def __init__(self, seeds: Mapping[str, bytes]) -> None:
        """Take `{key id: 32 bytes}`; at least one."""
        self._take(seeds)

    @classmethod
    def from_json(cls, text: str) -> "SigningKeys":
        """Read `{"<kid>": "<64 hex digits>"}` as it stands in settings."""
        return cls(_parsed(text))

    def replace(self, text: str) -> None:
        """Take other keys while in use, as `from_json` reads them; the old ones stay on error."""
        self._take(_parsed(text))

    def _take(self, seeds: Mapping[str, bytes]) -> None:
        keys = {kid: Ed25519PrivateKey.from_private_bytes(seed) for kid, seed in seeds.items()}
        self._key_by_kid, self._signing_kid = keys, next(iter(keys))

    def sign(self, payload: bytes) -> tuple[str, bytes]:
        """Return (key id, signature of 64 bytes)."""
        return self._signing_kid, self._key_by_kid[self._signing_kid].sign(payload)

    def verify_keys(self) -> "VerifyKeys":
        """Return the public halves."""
        return VerifyKeys(
            {kid: key.public_key().public_bytes_raw() for kid, key in self._key_by_kid.items()}
        )


class VerifyKeys:
    """Ed25519 public keys by key id; all verify."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Take `{key id: 32 bytes}`; at least one."""
        self._key_by_kid = {
            kid: Ed25519PublicKey.from_public_bytes(key) for kid, key in keys.items()
        }

    @classmethod
    def from_json(cls, text: str) -> "VerifyKeys":
        """Read `{"<kid>": "<64 hex digits>"}`."""
        return cls(_parsed(text))

    def to_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(
            {kid: key.public_bytes_raw().hex() for kid, key in self._key_by_kid.items()}
        )

    def verify(self, kid: str, payload: bytes, signature: bytes) -> bool:
        """Whether the signature is the payload's under the named key."""
        key = self._key_by_kid.get(kid)
        if key is None:
            return False
        try:
            key.verify(signature, payload)
        except InvalidSignature:
            return False
        return True


def _parsed(text: str) -> dict[str, bytes]:
    try:
        keys = json.loads(text)
    except ValueError:
        raise ValueError("keys must be JSON") from None
    if not isinstance(keys, dict) or not keys:
        raise ValueError("keys are a JSON object {key id: 64 hex digits}, at least one")
    for kid, key in keys.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", kid):
            raise ValueError("a key id is 1..32 letters, digits, - or _")
        if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]{64}", key):
            raise ValueError("a key has 256 bits (64 hex digits)")
    return {kid: bytes.fromhex(key) for kid, key in keys.items()}


def sign_anchor(keys: SigningKeys, *, chain: str, day: date, head: Entry) -> Anchor:
    """Return the signed anchor of a chain's end on a day."""
    kid, signature = keys.sign(_anchored(chain, day, head.seq, head.hash))
    return Anchor(
        chain=chain, day=day, seq=head.seq, hash=head.hash, key_id=kid, signature=signature
    )


def verify_anchor(keys: VerifyKeys, anchor: Anchor) -> bool:
    """Whether the anchor is as it was signed, by a key we know."""
    payload = _anchored(anchor.chain, anchor.day, anchor.seq, anchor.hash)
    return keys.verify(anchor.key_id, payload, anchor.signature)


def _anchored(chain: str, day: date, seq: int, hash_: bytes) -> bytes:
    return canonical(
        {"chain": chain, "day": day, "hash": hash_.hex(), "seq": seq, "type": "anchor"}
    )


def verify(
    entries: Sequence[Entry],
    *,
    anchors: Sequence[Anchor] = (),
    keys: VerifyKeys | None = None,
    head: Entry | None = None,
) -> list[Finding]:
    """Return what is wrong with a whole chain; nothing = intact.

    Args:
        entries: as stored, in the order they are claimed to have.
        anchors: of this chain; one that `keys` does not verify is a finding and proves no more.
        keys: needed where there are anchors.
        head: the end as it is known from elsewhere.
    """
    findings: list[Finding] = []
    first = _first_break(entries)
    if first is not None:
        findings.append(first)
    for anchor in anchors:
        if keys is None or not verify_anchor(keys, anchor):
            findings.append(Finding(seq=anchor.seq, fault=Fault.ANCHOR_FORGED))
        elif (fault := _against(entries, anchor.seq, anchor.hash)) is not None:
            findings.append(Finding(seq=min(anchor.seq, len(entries) + 1), fault=fault))
    if head is not None:
        findings.extend(_against_head(entries, head))
    return list(dict.fromkeys(findings))


def _first_break(entries: Sequence[Entry]) -> Finding | None:
    previous = GENESIS
    for position, entry in enumerate(entries):
        seq = position + 1
        if entry.seq == seq and entry.hash == link(previous, seq, entry.commitment):
            previous = entry.hash
        else:
            return Finding(seq=seq, fault=_kind(entries, position))
    return None


def _kind(entries: Sequence[Entry], position: int) -> Fault:
    """Say what most likely happened at the first break."""
    entry, expected = entries[position], position + 1
    later = {other.seq for other in entries[position:]}
    if entry.seq > expected:
        return Fault.REORDERED if expected in later else Fault.REMOVED
    if entry.seq < expected:
        return Fault.INSERTED
    if sum(other.seq == expected for other in entries[position:]) > 1:
        return Fault.INSERTED
    return _kind_of_broken_link(entries, position)


def _kind_of_broken_link(entries: Sequence[Entry], position: int) -> Fault:
    """Tell apart, where numbers were kept or made anew, what became of the contents."""
    previous = entries[position - 1].hash if position else GENESIS
    seq = position + 1
    for other in entries[position + 1 :]:
        # what belongs here stands further on: behind one that was put in, or in its place
        if other.hash == link(previous, seq, other.commitment):
            shifted = other.seq == seq + 1 and len(entries) > seq
            return (
                Fault.INSERTED if shifted and not _swapped(entries, position) else Fault.REORDERED
            )
    return Fault.EDITED


def _swapped(entries: Sequence[Entry], position: int) -> bool:
    """Whether two neighbours changed places and were numbered anew."""
    previous = entries[position - 1].hash if position else GENESIS
    one, other = entries[position], entries[position + 1]
    seq = position + 1
    return one.hash == link(link(previous, seq, other.commitment), seq + 1, one.commitment)


def _against(entries: Sequence[Entry], seq: int, hash_: bytes) -> Fault | None:
    if len(entries) < seq:
        return Fault.TRUNCATED
    return None if entries[seq - 1].hash == hash_ else Fault.ANCHOR_MISMATCH


def _against_head(entries: Sequence[Entry], head: Entry) -> list[Finding]:
    if head.seq == 0:
        return [Finding(seq=1, fault=Fault.INSERTED)] if entries else []
    fault = _against(entries, head.seq, head.hash)
    if fault is not None:
        return [Finding(seq=min(head.seq, len(entries) + 1), fault=fault)]
    if len(entries) > head.seq:
        return [Finding(seq=head.seq + 1, fault=Fault.INSERTED)]
    return []


def verify_content(
    entries: Iterable[Entry], contents: Mapping[int, tuple[bytes, bytes]]
) -> list[Finding]:
    """Return the entries whose content is not what they committed to.

    Args:
        entries: of one chain.
        contents: seq -> (salt, content), for those that were not erased; a seq that the chain
            does not have was put in past it.
    """
    commitment_by_seq = {entry.seq: entry.commitment for entry in entries}
    findings = []
    for seq, (salt, content) in sorted(contents.items()):
        known = commitment_by_seq.get(seq)
        if known is None:
            findings.append(Finding(seq=seq, fault=Fault.INSERTED))
        elif len(salt) != SALT_BYTES or not hmac.compare_digest(known, commitment(salt, content)):
            findings.append(Finding(seq=seq, fault=Fault.CONTENT_FORGED))
    return findings
