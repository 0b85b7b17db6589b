"""The hash chain: every attack is found, erasure is none (K1)."""

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy import chain
from services.privacy.chain import Entry, Fault, Finding

DAY = date(2026, 11, 23)
KEYS = chain.SigningKeys({"a1": bytes(range(32))})
OTHER = chain.SigningKeys({"a1": bytes(range(1, 33))})


def _chain(n: int) -> list[Entry]:
    salts = [hashlib.sha256(bytes([i])).digest() for i in range(n)]
    return chain.extend(None, [chain.commitment(salt, b"x") for salt in salts])


CHAINS = st.integers(3, 12).map(_chain)


@given(CHAINS)
def test_an_untouched_chain_has_no_findings(entries: list[Entry]) -> None:
    """K1."""
    anchor = chain.sign_anchor(KEYS, chain="c/0", day=DAY, head=entries[1])
    assert chain.verify(entries, anchors=[anchor], keys=KEYS.verify_keys(), head=entries[-1]) == []


def test_the_first_hash_is_what_another_can_compute() -> None:
    """The construction, written out once more: others verify without our code."""
    salt = bytes(32)
    committed = hashlib.sha256(b"\0" * 7 + b"\x20" + salt + b"\0" * 7 + b"\x02" + b"{}").digest()
    assert chain.commitment(salt, b"{}") == committed
    one = hashlib.sha256(bytes(32) + b"\0" * 7 + b"\x01" + committed).digest()
    assert chain.extend(None, [committed]) == [Entry(seq=1, commitment=committed, hash=one)]


@given(CHAINS, st.data())
def test_an_edited_entry_is_found_where_it_is(entries: list[Entry], data: st.DataObject) -> None:
    """K1: edit."""
    at = data.draw(st.integers(0, len(entries) - 1))
    entries[at] = replace(entries[at], commitment=bytes(31) + b"\1")
    assert chain.verify(entries) == [Finding(seq=at + 1, fault=Fault.EDITED)]


@given(CHAINS, st.data())
def test_a_removed_entry_is_found(entries: list[Entry], data: st.DataObject) -> None:
    """K1: drop."""
    at = data.draw(st.integers(0, len(entries) - 2))
    del entries[at]
    assert chain.verify(entries) == [Finding(seq=at + 1, fault=Fault.REMOVED)]


@given(entries=CHAINS, data=st.data(), renumbered=st.booleans())
def test_an_inserted_entry_is_found(
    entries: list[Entry], data: st.DataObject, *, renumbered: bool
) -> None:
    """K1: insert, with the numbers behind it made anew or not."""
    at = data.draw(st.integers(0, len(entries) - 1))
    entries.insert(at, Entry(seq=at + 1, commitment=bytes(32), hash=bytes(32)))
    if renumbered:
        entries[at + 1 :] = [replace(entry, seq=entry.seq + 1) for entry in entries[at + 1 :]]
    assert chain.verify(entries) == [Finding(seq=at + 1, fault=Fault.INSERTED)]


@given(entries=CHAINS, data=st.data(), renumbered=st.booleans())
def test_swapped_entries_are_found(
    entries: list[Entry], data: st.DataObject, *, renumbered: bool
) -> None:
    """K1: swap."""
    at = data.draw(st.integers(0, len(entries) - 2))
    entries[at], entries[at + 1] = entries[at + 1], entries[at]
    if renumbered:
        entries = [replace(entry, seq=seq) for seq, entry in enumerate(entries, 1)]
    assert chain.verify(entries) == [Finding(seq=at + 1, fault=Fault.REORDERED)]


@given(CHAINS, st.data())
def test_a_cut_off_end_is_found_by_anchor_and_by_head(
    entries: list[Entry], data: st.DataObject
) -> None:
    """K1: truncation, which the chain itself cannot show."""
    n = data.draw(st.integers(0, len(entries) - 1))
    anchor = chain.sign_anchor(KEYS, chain="c/0", day=DAY, head=entries[-1])
    cut = entries[:n]
    expected = [Finding(seq=n + 1, fault=Fault.TRUNCATED)]
    assert chain.verify(cut) == []
    assert chain.verify(cut, anchors=[anchor], keys=KEYS.verify_keys()) == expected
    assert chain.verify(cut, head=entries[-1]) == expected


def test_a_chain_written_anew_is_found_by_its_anchor() -> None:
    """K1: who recomputes all hashes cannot sign."""
    entries = _chain(5)
    anchor = chain.sign_anchor(KEYS, chain="c/0", day=DAY, head=entries[3])
    forged = chain.extend(None, [bytes(32), *(entry.commitment for entry in entries[1:])])
    assert chain.verify(forged) == []
    assert chain.verify(forged, anchors=[anchor], keys=KEYS.verify_keys()) == [
        Finding(seq=4, fault=Fault.ANCHOR_MISMATCH)
    ]


def test_an_anchor_of_another_key_chain_day_or_place_is_forged() -> None:
    """The signature covers every field."""
    entries = _chain(3)
    good = chain.sign_anchor(KEYS, chain="c/0", day=DAY, head=entries[2])
    verify_keys = KEYS.verify_keys()
    for bad in (
        chain.sign_anchor(OTHER, chain="c/0", day=DAY, head=entries[2]),
        replace(good, chain="c/1"),
        replace(good, day=DAY + timedelta(days=1)),
        replace(good, seq=2),
        replace(good, hash=entries[1].hash),
        replace(good, key_id="b1"),
        replace(good, signature=bytes(64)),
    ):
        assert chain.verify(entries, anchors=[bad], keys=verify_keys) == [
            Finding(seq=bad.seq, fault=Fault.ANCHOR_FORGED)
        ]


def test_content_is_checked_where_it_is_left() -> None:
    """K1: an erased content is no finding; a forged one and one past the chain are."""
    salts = [bytes([i]) * 32 for i in range(3)]
    entries = chain.extend(None, [chain.commitment(salt, b"yes") for salt in salts])
    assert chain.verify_content(entries, {3: (salts[2], b"yes")}) == []
    assert chain.verify_content(entries, {2: (salts[1], b"no"), 4: (salts[0], b"yes")}) == [
        Finding(seq=2, fault=Fault.CONTENT_FORGED),
        Finding(seq=4, fault=Fault.INSERTED),
    ]


def test_canonical_bytes_are_one() -> None:
    """Key order and zone change nothing; floats, unknown types and bare instants are refused."""
    at = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    there = at.astimezone(timezone(timedelta(hours=1)))
    uuid = UUID(int=1)
    assert (
        chain.canonical({"b": at, "a": [uuid, None, True, "ü"]})
        == chain.canonical({"a": (uuid, None, True, "ü"), "b": there})
        == (
            '{"a":["00000000-0000-0000-0000-000000000001",null,true,"ü"],'
            '"b":"2026-11-23T12:00:00.000000Z"}'
        ).encode()
    )
    for value in (1.5, b"x", {1: 2}):
        with pytest.raises(TypeError):
            chain.canonical({"a": value})
    with pytest.raises(ValueError, match="zone"):
        chain.canonical({"a": datetime(2026, 11, 23)})  # noqa: DTZ001


def test_keys_rotate() -> None:
    """The first signs, all verify."""
    text = '{"new": "' + "11" * 32 + '", "a1": "' + bytes(range(32)).hex() + '"}'
    both = chain.SigningKeys.from_json(text)
    entries = _chain(1)
    old = chain.sign_anchor(KEYS, chain="c/0", day=DAY, head=entries[0])
    new = chain.sign_anchor(both, chain="c/0", day=DAY, head=entries[0])
    verify_keys = chain.VerifyKeys.from_json(both.verify_keys().to_json())
    assert new.key_id == "new"
    assert chain.verify_anchor(verify_keys, old)
    assert chain.verify_anchor(verify_keys, new)
    assert not chain.verify_anchor(KEYS.verify_keys(), new)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": "11"}', '{"a": 1}', '{"a b": "%s"}'])
def test_bad_keys_are_refused(text: str) -> None:
    """In one sentence, without the key."""
    with pytest.raises(ValueError, match="key"):
        chain.SigningKeys.from_json(text)
