"""The forms in which a text may stand in bytes: pure.

A form that a file could hold by chance is not looked for: every pattern has at least
`BYTES_MIN` bytes.
"""

import base64
import json
import unicodedata
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from uuid import UUID

BYTES_MIN = 5
_INET_HEADS = {4: b"\x02\x20", 6: b"\x03\x80"}
"""PostgreSQL's inet of one address: family and bits; four bytes alone would be noise."""


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Something personal that was put into the platform.

    Attributes:
        label: says what it is, never its value: all that a report shows.
        texts: its spellings; the first is the plain one, the others differ in separators.
        digits: of a number: what BCD forms are made of, each variant.
        raw: other bytes that stand for it: an id's sixteen, an address as the database has it.
    """

    label: str
    texts: tuple[str, ...]
    digits: tuple[str, ...] = ()
    raw: tuple[tuple[str, bytes], ...] = ()


def number(label: str, e164: str, typed: str) -> Canary:
    """Return the canary of a German telephone number, as it is kept and as it was typed."""
    international = e164.removeprefix("+")
    national = international.removeprefix("49")
    return Canary(
        label=label,
        texts=(national, typed, f"0{national}"),
        digits=(international, national, f"0{national}"),
    )


def address(label: str, text: str) -> Canary:
    """Return the canary of an IPv4 or IPv6 address."""
    found = ip_address(text)
    texts = [text]
    if isinstance(found, IPv6Address):
        texts = [found.compressed, found.exploded]
    return Canary(
        label=label,
        texts=tuple(texts),
        raw=(("inet", _INET_HEADS[found.version] + found.packed),),
    )


def name(label: str, text: str) -> Canary:
    """Return the canary of a person's name, best one with letters that have several spellings."""
    composed = unicodedata.normalize("NFC", text)
    texts = {
        composed: None,
        unicodedata.normalize("NFD", text): None,
        json.dumps(composed).strip('"'): None,
        urllib.parse.quote(composed): None,
        urllib.parse.quote_plus(composed): None,
    }
    latin = composed.encode("latin-1")
    return Canary(label=label, texts=tuple(texts), raw=(("latin-1", latin),))


def identifier(label: str, text: str) -> Canary:
    """Return the canary of an id that may stand with dashes, without, or as its bytes."""
    found = UUID(text)
    return Canary(label=label, texts=(str(found), found.hex), raw=(("uuid", found.bytes),))


def patterns(canary: Canary) -> dict[bytes, str]:
    """Return what to look for: bytes -> name of the form; each form once."""
    found: dict[bytes, str] = {}
    for form, pattern in _forms(canary):
        if len(pattern) >= BYTES_MIN:
            found.setdefault(pattern, form)
    return found


def _forms(canary: Canary) -> Iterator[tuple[str, bytes]]:
    for text in canary.texts:
        yield from _of_text(text)
    for digits in canary.digits:
        yield from _bcd(digits)
    for form, raw in canary.raw:
        yield form, raw
        yield f"{form} hex", raw.hex().encode()
        yield f"{form} HEX", raw.hex().upper().encode()


def _of_text(text: str) -> Iterator[tuple[str, bytes]]:
    plain = text.encode()
    yield "utf-8", plain
    yield "UTF-8", text.upper().encode()
    yield "utf-16le", text.encode("utf-16-le")
    yield "utf-16be", text.encode("utf-16-be")
    yield "reversed", plain[::-1]
    yield "hex", plain.hex().encode()
    yield "HEX", plain.hex().upper().encode()
    for offset in range(3):
        core = _base64_core(plain, offset)
        yield "base64", core
        yield "base64url", core.translate(bytes.maketrans(b"+/", b"-_"))


def _base64_core(plain: bytes, offset: int) -> bytes:
    """Return what a text's base64 has in common wherever it stands, `offset` past a group."""
    start = (3 - offset) % 3
    whole = plain[start : start + (len(plain) - start) // 3 * 3]
    return base64.b64encode(whole)


def _bcd(digits: str) -> Iterator[tuple[str, bytes]]:
    """Yield packed BCD, plain and with swapped nibbles (TBCD), padded with 0 or F where odd."""
    for filler in "0f" if len(digits) % 2 else ("",):
        padded = digits + filler
        yield "bcd", bytes.fromhex(padded)
        swapped = "".join(padded[i + 1] + padded[i] for i in range(0, len(padded), 2))
        yield "tbcd", bytes.fromhex(swapped)
    if len(digits) % 2:
        yield "bcd", bytes.fromhex("0" + digits)
