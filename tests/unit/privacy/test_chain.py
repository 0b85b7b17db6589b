"""Chains attacked: edited, dropped, inserted, swapped, cut, made anew (K1, R-D9)."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy import chain
from services.privacy.chain import Entry, Fault, Finding, SigningKeys, VerifyKeys

DAY = date(2026, 11, 23)
KEYS = SigningKeys({"k1": "11" * 32})
PUBLIC = VerifyKeys(KEYS.public())
SALTS = [bytes([n]) * 32 for n in range(40)]


def made(n: int) -> list[Entry]:
    commitments = [chain.commitment(SALTS[i], str(i).encode()) for i in range(n)]
    return chain.append(None, commitments)


def by_seq(entries: list[Entry]) -> dict[int, Entry]:
    return {entry.seq: entry for entry in entries}


def anchored(entries: list[Entry]) -> chain.Anchor:
    return chain.anchor(KEYS, "orders", DAY, entries[-1])


@given(st.lists(st.integers(0, 7), max_size=6))
def test_a_chain_is_the_same_however_it_is_cut_into_transactions(sizes: list[int]) -> None:
    """K1."""
    entries: list[Entry] = []
    for size in sizes:
        start = len(entries)
        more = [chain.commitment(SALTS[start + i], b"%d" % (start + i)) for i in range(size)][:5]
        if start + len(more) > len(SALTS) - 8:
            break
        entries += chain.append(entries[-1] if entries else None, more)
    assert chain.verify(entries) == []
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))


def edited(entries: list[Entry], at: int) -> list[Entry]:
    other = chain.commitment(SALTS[39], b"forged")
    return [replace(e, commitment=other) if e.seq == at else e for e in entries]


def edited_with_its_hash(entries: list[Entry], at: int) -> list[Entry]:
    """The forger also mends the link's own hash: then the next one gives it away."""
    before = entries[at - 2].hash if at > 1 else chain.GENESIS
    other = chain.commitment(SALTS[39], b"forged")
    (entry,) = [
        replace(e, commitment=other, hash=chain.link(before, at, other))
        for e in entries
        if e.seq == at
    ]
    return [*entries[: at - 1], entry, *entries[at:]]


def dropped(entries: list[Entry], at: int) -> list[Entry]:
    return [e for e in entries if e.seq != at]


def swapped(entries: list[Entry], at: int) -> list[Entry]:
    one, two = entries[at - 1], entries[at]
    return [
        *entries[: at - 1],
        replace(two, seq=one.seq),
        replace(one, seq=two.seq),
        *entries[at + 1 :],
    ]


def inserted(entries: list[Entry], at: int) -> list[Entry]:
    false = chain.append(entries[at - 1], [chain.commitment(SALTS[39], b"false")])
    later = [replace(e, seq=e.seq + 1) for e in entries[at:]]
    return [*entries[:at], *false, *later]


@pytest.mark.parametrize(
    ("attack", "at", "found"),
    [
        (edited, 4, [(4, Fault.CHANGED)]),
        (edited_with_its_hash, 4, [(5, Fault.CHANGED)]),
        (dropped, 4, [(5, Fault.MISSING)]),
        (dropped, 1, [(2, Fault.MISSING)]),
        (swapped, 4, [(4, Fault.MOVED), (5, Fault.MOVED), (6, Fault.CHANGED)]),
        # what was put in follows well: the later links say that they were moved
        (inserted, 4, [(n, Fault.MOVED) for n in range(6, 11)]),
    ],
)
def test_an_attack_shows_where_it_was_made(
    attack: Callable[[list[Entry], int], list[Entry]], at: int, found: list[tuple[int, Fault]]
) -> None:
    """K1, R-D9."""
    expected = [Finding(seq=seq, fault=fault) for seq, fault in found]
    assert chain.verify(attack(made(9), at)) == expected


def test_a_cut_shows_against_an_anchor_and_only_there() -> None:
    """K1: what is left of a cut chain is a chain."""
    whole = made(9)
    cut = whole[:6]
    assert chain.verify(cut) == []
    found = chain.verify_anchors(by_seq(cut), [anchored(whole)], PUBLIC)
    assert found == [Finding(seq=9, fault=Fault.CUT)]
    assert chain.verify_anchors(by_seq(whole), [anchored(whole[:4]), anchored(whole)], PUBLIC) == []


def test_a_chain_made_anew_shows_against_an_anchor() -> None:
    """K1: a forger who computes every hash again has no key."""
    anew = chain.append(None, [chain.commitment(SALTS[39], b"%d" % n) for n in range(9)])
    assert chain.verify(anew) == []
    found = chain.verify_anchors(by_seq(anew), [anchored(made(9))], PUBLIC)
    assert found == [Finding(seq=9, fault=Fault.ANCHOR_DIFFERS)]


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"hash": bytes(32)},
        {"day": DAY + timedelta(days=1)},
        {"chain": "consents"},
        {"key_id": "k2"},
        {"signature": bytes(64)},
    ],
)
def test_a_forged_anchor_proves_nothing(change: dict[str, Any]) -> None:
    """K1: each part of it is signed."""
    entries = made(9)
    forged = replace(anchored(entries), **change)
    found = chain.verify_anchors(by_seq(entries), [forged], PUBLIC)
    assert found == [Finding(seq=forged.seq, fault=Fault.ANCHOR_FORGED)]


def test_after_a_rotation_the_new_key_signs_and_old_anchors_hold() -> None:
    """Rotation without downtime."""
    entries = made(3)
    old = anchored(entries)
    both = SigningKeys({"k2": "22" * 32, "k1": "11" * 32})
    new = chain.anchor(both, "orders", DAY, entries[-1])
    assert (old.key_id, new.key_id) == ("k1", "k2")
    assert chain.verify_anchors(by_seq(entries), [old, new], VerifyKeys(both.public())) == []


def test_content_and_salt_show_what_was_committed_to() -> None:
    """K1: neither alone; and a salt has one length, so that no two pairs meet."""
    (entry,) = chain.append(None, [chain.commitment(SALTS[0], b"content")])
    assert chain.is_content_of(entry, SALTS[0], b"content")
    assert not chain.is_content_of(entry, SALTS[1], b"content")
    assert not chain.is_content_of(entry, SALTS[0], b"contents")
    assert not chain.is_content_of(entry, SALTS[0] + b"c", b"ontent")


def test_one_content_has_one_text() -> None:
    """K1: whatever the order of names or the zone of an instant."""
    instant = datetime(2026, 11, 23, 1, 0, tzinfo=UTC)
    berlin = instant.astimezone(timezone(timedelta(hours=1)))
    one = chain.canonical({"b": [1, True, None], "a": instant, "c": UUID(int=1), "d": DAY})
    two = chain.canonical({"d": DAY, "c": UUID(int=1), "a": berlin, "b": (1, True, None)})
    assert one == two
    assert json.loads(one)["a"] == "2026-11-23T01:00:00.000000+00:00"
    with pytest.raises(TypeError, match="float"):
        chain.canonical({"a": 0.1})


@pytest.mark.parametrize("text", ["{}", "[]", '{"k1": 1}', '{"k1": "11"}', '{"k1": "zz"}', "x"])
def test_keys_that_are_none_are_refused(text: str) -> None:
    """A wrong secret is said at the start."""
    with pytest.raises(ValueError, match=r"."):
        SigningKeys.from_json(text)
