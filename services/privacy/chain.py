"""Hash chains over salted commitments: evidence that outlives what it is about (K1, R-D9).

A link holds a commitment to a content, not the content. Who has the content and its salt can show
that it is what was committed to; once the salt is destroyed the commitment says nothing about it,
and the chain still verifies. An edit, a removal, an insertion or a swap breaks the chain where it
was done; a cut at its end shows against an anchor, a signed head.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GENESIS = bytes(32)
SALT_BYTES = 32
_MISFITS_MAX = 32
"""How many links that do not fit are looked at for their old place: a chain made anew has many."""
_SEED_BYTES = 32


def canonical(content: Mapping[str, Any]) -> bytes:
    """Return the one text of a content: sorted names, no spaces, instants in UTC.

    Raises:
        TypeError: a value is none of text, whole number, truth value, null, list, mapping, instant,
            day, UUID: a fraction, for one, has no one text.
    """
    if _has_fraction(content):
        raise TypeError("a float has no canonical text: it has many")
    return _ENCODE(content).encode()


def _has_fraction(value: Any) -> bool:
    # exact types first: this is asked of every value of every record
    kind = type(value)
    if kind is str or kind is datetime or kind is UUID or kind is int or value is None:
        return False
    if isinstance(value, Mapping):
        return any(map(_has_fraction, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_fraction, value))
    return isinstance(value, float)


def _text(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case date():
            return value.isoformat()
        case UUID():
            return str(value)
        case Mapping():
            return dict(value)
        case _:
            raise TypeError(f"a {type(value).__name__} has no canonical text")


_ENCODE = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_text
).encode


def new_salt() -> bytes:
    """Return a random salt: without it nobody can try contents against a commitment."""
    return secrets.token_bytes(SALT_BYTES)


def commitment(salt: bytes, content: bytes) -> bytes:
    """Return the commitment (32 bytes) to a content under a salt."""
    assert len(salt) == SALT_BYTES
    return hashlib.sha256(b"commitment\0" + salt + content).digest()


def link(previous: bytes, seq: int, committed: bytes) -> bytes:
    """Return the hash (32 bytes) of a link: of all links before it, its number, its commitment."""
    assert len(previous) == len(committed) == len(GENESIS)
    return hashlib.sha256(b"link\0" + previous + seq.to_bytes(8, "big") + committed).digest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One link as it is stored; the first one has number 1 and follows on `GENESIS`."""

    seq: int
    commitment: bytes
    hash: bytes


def append(head: Entry | None, commitments: Sequence[bytes]) -> list[Entry]:
    """Return the links that follow on a head (None = an empty chain)."""
    seq, previous = (head.seq, head.hash) if head is not None else (0, GENESIS)
    found = []
    for number, committed in enumerate(commitments, start=seq + 1):
        previous = link(previous, number, committed)
        found.append(Entry(seq=number, commitment=committed, hash=previous))
    return found


class Fault(StrEnum):
    """What is wrong with a chain at some link."""

    MISSING = "missing"
    """One or more links before it are not there."""
    CHANGED = "changed"
    """It does not follow from what stands before it: edited, or inserted."""
    MOVED = "moved"
    """It is a link of this chain, at another number than its own: reordered."""
    CUT = "cut"
    """An anchor tells of this link, and the chain ends before it."""
    ANCHOR_DIFFERS = "anchor_differs"
    """An anchor tells of this link with another hash: the whole chain was made anew."""
    ANCHOR_GONE = "anchor_gone"
    """An anchor that is kept elsewhere is not among those that are stored beside the chain."""
    ANCHOR_FORGED = "anchor_forged"
    """The anchor of this link has no valid signature."""
    FORGED = "forged"
    """A record that claims the place of another one, or a chain that is not its proof's."""
    CONTENT_CHANGED = "content_changed"
    """Content and salt are there, and are not what was committed to."""
    CONTENT_GONE = "content_gone"
    """Content and salt are not there, and no order is known that took them."""
    CONTENT_BACK = "content_back"
    """An order took the content, and it is there."""
    TAKING_FORGED = "taking_forged"
    """What says that an order took contents is not signed by us."""
    GONE_EARLY = "gone_early"
    """Its salt is gone, and with it what it said, before the rule of its year allowed it."""
    NOT_CHAINED = "not_chained"
    """A row that no link proves: put in, or put back after it had gone."""
    SIGNATURE_FORGED = "signature_forged"
    """Somebody of the staff is said to have signed it, and their key did not sign this."""
    KEY_UNKNOWN = "key_unknown"
    """Signed with a key that the register of staff does not have."""
    KEY_OF_ANOTHER = "key_of_another"
    """Signed with the key of somebody else than who it names."""
    KEY_NOT_VALID = "key_not_valid"
    """Signed by somebody who was not with us on that day, or with a key not valid then."""
    NOT_SIGNED = "not_signed"
    """A person's act that nobody signed, after acts were signed."""
    SAME_PERSON = "same_person"
    """Two persons decide this; both halves are signed with keys of one."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault, and the number of the link where it shows.

    Attributes:
        seq: 0 where there is no link.
        about: which row, where the number does not say it: its kind and ids.
    """

    seq: int
    fault: Fault
    about: str | None = None


def verify(entries: Iterable[Entry]) -> list[Finding]:
    """Return what is wrong with a chain, in the order of its links; empty = intact.

    Each fault shows once: verification goes on from what is stored.

    Args:
        entries: by number.
    """
    found = []
    misfits: list[tuple[bytes, bytes, Entry]] = []
    seq, earlier, previous = 0, GENESIS, GENESIS
    for entry in entries:
        if entry.seq != seq + 1:
            found.append(Finding(seq=entry.seq, fault=Fault.MISSING))
        elif entry.hash != link(previous, entry.seq, entry.commitment):
            found.append(Finding(seq=entry.seq, fault=Fault.CHANGED))
            misfits.append((earlier, previous, entry))
        seq, earlier, previous = entry.seq, previous, entry.hash
    moved = _moved(misfits[:_MISFITS_MAX])
    return [replace(one, fault=Fault.MOVED) if one.seq in moved else one for one in found]


def _moved(misfits: Sequence[tuple[bytes, bytes, Entry]]) -> set[int]:
    """Return the numbers of links that would fit where another one stands.

    What stood before it may have been moved as well, so every hash around counts.
    """
    hashes = {h for earlier, previous, entry in misfits for h in (earlier, previous, entry.hash)}
    numbers = {number for *_, entry in misfits for number in (entry.seq - 1, entry.seq)}
    return {
        entry.seq
        for *_, entry in misfits
        if any(
            link(known, number, entry.commitment) == entry.hash
            for number in numbers - {entry.seq}
            for known in hashes
        )
    }


def is_content_of(entry: Entry, salt: bytes, content: bytes) -> bool:
    """Whether a content is what a link committed to."""
    return len(salt) == SALT_BYTES and commitment(salt, content) == entry.commitment


# ---------------------------------------------------------------------- signatures


class SigningKeys:
    """Ed25519 keys by id; the first signs. JSON `{"<key id>": "<64 hex digits>"}`, of the seed."""

    def __init__(self, seeds: Mapping[str, str]) -> None:
        """Read the seeds.

        Raises:
            ValueError: there are none, or one is not 64 hex digits.
        """
        self._keys = _signing(seeds)

    @classmethod
    def from_json(cls, text: str) -> "SigningKeys":
        """Read a secret setting.

        Raises:
            ValueError: it is not of the form.
        """
        return cls(_mapping(text))

    def replace(self, text: str) -> None:
        """Take other keys in place of these; see `from_json`."""
        self._keys = _signing(_mapping(text))

    def sign(self, message: bytes) -> tuple[str, bytes]:
        """Return the id of the key and the signature (64 bytes)."""
        kid, key = next(iter(self._keys.items()))
        return kid, key.sign(message)

    def derived(self, message: bytes) -> list[bytes]:
        """Return 32 bytes that nobody can compute without a key, for each key, the first first.

        No signature and of no use as one: an id that is the same again as long as a key is known.
        """
        return [
            hmac.digest(key.private_bytes_raw(), b"derived\0" + message, "sha256")
            for key in self._keys.values()
        ]

    def public(self) -> dict[str, str]:
        """Return the public keys as `VerifyKeys` reads them."""
        return {kid: key.public_key().public_bytes_raw().hex() for kid, key in self._keys.items()}


class VerifyKeys:
    """Public Ed25519 keys by id."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """Read public keys of 64 hex digits.

        Raises:
            ValueError: one is not.
        """
        self._keys = {kid: _public(text) for kid, text in keys.items()}

    def is_valid(self, key_id: str, signature: bytes, message: bytes) -> bool:
        """Whether a signature is one of ours; an unknown key signs nothing."""
        key = self._keys.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


def _mapping(text: str) -> dict[str, str]:
    found = json.loads(text)
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("keys must be a JSON object of texts")
    return found


def _signing(seeds: Mapping[str, str]) -> dict[str, Ed25519PrivateKey]:
    if not seeds:
        raise ValueError("there is no signing key")
    return {kid: _private(seed) for kid, seed in seeds.items()}


def _private(seed: str) -> Ed25519PrivateKey:
    raw = bytes.fromhex(seed)
    if len(raw) != _SEED_BYTES:
        raise ValueError("a key must be 64 hex digits")
    return Ed25519PrivateKey.from_private_bytes(raw)


def _public(text: str) -> Ed25519PublicKey:
    raw = bytes.fromhex(text)
    if len(raw) != _SEED_BYTES:
        raise ValueError("a key must be 64 hex digits")
    return Ed25519PublicKey.from_public_bytes(raw)


# ---------------------------------------------------------------------- contents that were taken


Ranges = tuple[tuple[int, int], ...]
"""First and last numbers of runs of links, ascending."""


@dataclass(frozen=True, kw_only=True)
class Taking:
    """An order took contents and salts: numbers of links and the order's id, nobody's data (D4).

    It is a content of a chain of its own, under no salt: there is nothing to hide. The signature
    keeps those from writing one who may write the tables and do not have the key.

    Attributes:
        chain: whose contents were taken.
        seq: of its own link.
    """

    chain: str
    seq: int
    order_id: UUID
    ranges: Ranges
    key_id: str = ""
    signature: bytes = b""

    def content(self) -> bytes:
        """Return what its link commits to."""
        ranges = [list(each) for each in self.ranges]
        return canonical({"chain": self.chain, "order_id": self.order_id, "ranges": ranges})

    def _message(self) -> bytes:
        return b"taking\0" + self.seq.to_bytes(8, "big") + self.content()

    def signed(self, keys: SigningKeys) -> "Taking":
        """Return it with its signature."""
        key_id, signature = keys.sign(self._message())
        return replace(self, key_id=key_id, signature=signature)

    def is_signed(self, keys: VerifyKeys) -> bool:
        """Whether its signature is one of ours."""
        return keys.is_valid(self.key_id, self.signature, self._message())


NO_SALT = bytes(SALT_BYTES)
"""Of contents that are nobody's."""


def against_takings(
    chain: str, kept: Iterable[int], gone: Iterable[int], takings: Iterable[Taking]
) -> list[Finding]:
    """Return where contents are gone that nothing took, or there though something did.

    A run of numbers shows once, by its first.

    Args:
        kept: numbers whose content is there.
        gone: numbers whose content is not.
        takings: proven ones, of any chain.
    """
    taken = {
        seq
        for one in takings
        if one.chain == chain
        for first, last in one.ranges
        for seq in range(first, last + 1)
    }
    return [
        *_runs(set(gone) - taken, Fault.CONTENT_GONE),
        *_runs(set(kept) & taken, Fault.CONTENT_BACK),
    ]


def _runs(seqs: set[int], fault: Fault) -> list[Finding]:
    return [Finding(seq=seq, fault=fault) for seq in sorted(seqs) if seq - 1 not in seqs]


# ---------------------------------------------------------------------- anchors


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A signed head of a chain: kept elsewhere too, it shows a cut, or a chain made anew.

    Attributes:
        chain: the chain's name, so that no anchor serves for another one.
        day: of the anchor (UTC).
    """

    chain: str
    day: date
    seq: int
    hash: bytes
    key_id: str
    signature: bytes


def _anchor_message(chain: str, day: date, seq: int, head_hash: bytes) -> bytes:
    text = canonical({"chain": chain, "day": day, "seq": seq, "hash": head_hash.hex()})
    return b"anchor\0" + text


def anchor(keys: SigningKeys, chain: str, day: date, head: Entry) -> Anchor:
    """Sign a chain's head."""
    key_id, signature = keys.sign(_anchor_message(chain, day, head.seq, head.hash))
    return Anchor(
        chain=chain, day=day, seq=head.seq, hash=head.hash, key_id=key_id, signature=signature
    )


def anchor_text(one: Anchor) -> str:
    """Return an anchor as one line of JSON, to be kept elsewhere."""
    said = {
        "chain": one.chain,
        "day": one.day,
        "seq": one.seq,
        "hash": one.hash.hex(),
        "key_id": one.key_id,
        "signature": one.signature.hex(),
    }
    return canonical(said).decode()


def read_anchor(text: str) -> Anchor:
    """Read an anchor's line.

    Raises:
        ValueError: it is none.
    """
    try:
        said = json.loads(text)
        return Anchor(
            chain=str(said["chain"]),
            day=date.fromisoformat(said["day"]),
            seq=int(said["seq"]),
            hash=bytes.fromhex(said["hash"]),
            key_id=str(said["key_id"]),
            signature=bytes.fromhex(said["signature"]),
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError("that is no anchor") from None


def against_kept(
    stored: Iterable[Anchor], kept: Iterable[Anchor], keys: VerifyKeys
) -> list[Finding]:
    """Return which anchors kept elsewhere are not stored; forged ones are found by themselves."""
    known = set(stored)
    return [
        Finding(seq=one.seq, fault=Fault.ANCHOR_GONE)
        for one in kept
        if one not in known and _is_valid(one, keys)
    ]


def _is_valid(one: Anchor, keys: VerifyKeys) -> bool:
    message = _anchor_message(one.chain, one.day, one.seq, one.hash)
    return keys.is_valid(one.key_id, one.signature, message)


def verify_anchors(
    entries: Mapping[int, Entry], anchors: Iterable[Anchor], keys: VerifyKeys
) -> list[Finding]:
    """Return where a chain is not what its anchors say.

    Args:
        entries: by number; those that anchors tell of are enough, with the last one.
    """
    last = max(entries, default=0)
    found = []
    for one in anchors:
        entry = entries.get(one.seq)
        if not _is_valid(one, keys):
            found.append(Finding(seq=one.seq, fault=Fault.ANCHOR_FORGED))
        elif one.seq > last:
            found.append(Finding(seq=one.seq, fault=Fault.CUT))
        elif entry is not None and entry.hash != one.hash:
            found.append(Finding(seq=one.seq, fault=Fault.ANCHOR_DIFFERS))
    return found
