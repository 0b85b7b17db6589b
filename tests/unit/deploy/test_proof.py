"""The search of `make prove-deletion` finds what is there, in every form (R-D9)."""

import base64
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.proof import forms
from deploy.proof.scan import compiled, look_through, scan

NUMBER = forms.number("callback number", "+493023125001", "+49 30 23125 001")
ADDRESS = forms.address("address", "203.0.113.77")
VISITOR = forms.identifier("visitor id", "a3c5f0e2-5a3c-4f1e-9b7d-0123456789ab")
ADDRESS_6 = forms.address("IPv6 address", "2001:db8:5a3c::4e1f")
NAME = forms.name("name", "Ännchen Müßig-Øre")
CANARIES = (NUMBER, ADDRESS, VISITOR, ADDRESS_6, NAME)
WANTED = compiled(CANARIES)
ALPHABETS = (base64.b64encode, base64.urlsafe_b64encode)


def labels(content: bytes) -> set[str]:
    return {label for label, _ in look_through([content], WANTED)}


@pytest.mark.parametrize(
    ("planted", "label"),
    [
        (b'{"callback_number":"+493023125001"}', "callback number"),
        (b"callback=030 23125 001 and 03023125001", "callback number"),
        (b"+49 30 23125 001", "callback number"),
        ("3023125001".encode("utf-16-le"), "callback number"),
        ("3023125001".encode("utf-16-be"), "callback number"),
        (b"1005213203", "callback number"),
        (b"3023125001".hex().encode(), "callback number"),
        (b"3023125001".hex().upper().encode(), "callback number"),
        (bytes.fromhex("493023125001"), "callback number"),
        (bytes.fromhex("940332210510"), "callback number"),
        (bytes.fromhex("3023125001"), "callback number"),
        (b"address 203.0.113.77.", "address"),
        (b"\x00\x02\x20\xcb\x00\x71\x4d", "address"),
        (b"203.0.113.77".hex().encode(), "address"),
        (b"from 2001:db8:5a3c::4e1f/128", "IPv6 address"),
        (b"2001:DB8:5A3C::4E1F", "IPv6 address"),
        (b"2001:0db8:5a3c:0000:0000:0000:0000:4e1f", "IPv6 address"),
        (bytes.fromhex("038020010db85a3c00000000000000004e1f"), "IPv6 address"),
        ("Ännchen Müßig-Øre".encode(), "name"),
        ("A\u0308nnchen Mu\u0308ßig-Øre".encode(), "name"),
        (b'{"name": "\\u00c4nnchen M\\u00fc\\u00dfig-\\u00d8re"}', "name"),
        (b"?name=%C3%84nnchen+M%C3%BC%C3%9Fig-%C3%98re", "name"),
        ("Ännchen Müßig-Øre".encode("latin-1"), "name"),
        ("Ännchen Müßig-Øre".encode("utf-16-le"), "name"),
        (b"A3C5F0E2-5A3C-4F1E-9B7D-0123456789AB", "visitor id"),
        (b"a3c5f0e25a3c4f1e9b7d0123456789ab", "visitor id"),
        (uuid.UUID("a3c5f0e2-5a3c-4f1e-9b7d-0123456789ab").bytes, "visitor id"),
    ],
)
def test_each_form_is_found(planted: bytes, label: str) -> None:
    """R-D9: a search that can find nothing proves nothing."""
    assert labels(b"\xffbefore " + planted + b" after\x00") == {label}


@given(
    st.binary(max_size=30),
    st.binary(max_size=30),
    st.sampled_from(CANARIES),
    st.sampled_from(ALPHABETS),
)
def test_base64_is_found_wherever_the_text_stands_in_it(
    before: bytes, after: bytes, canary: forms.Canary, encode: Callable[[bytes], bytes]
) -> None:
    """R-D9: all three alignments, both alphabets."""
    assert canary.label in labels(encode(before + canary.texts[0].encode() + after))


@given(st.integers(1, 40), st.sampled_from(WANTED))
def test_a_find_across_two_pieces_of_a_file_is_found(
    cut: int, wanted: tuple[bytes, str, str]
) -> None:
    """R-D9: whatever the size of the pieces."""
    pattern, label, form = wanted
    content = b"\x01" * 7 + pattern + b"\x02" * 7
    pieces = [content[i : i + cut] for i in range(0, len(content), cut)]
    assert (label, form) in look_through(pieces, WANTED)


def test_no_pattern_is_so_short_that_chance_would_find_it() -> None:
    """R-D9: a false alarm would be believed away."""
    assert all(len(pattern) >= forms.BYTES_MIN for pattern, _, _ in WANTED)
    assert labels(bytes(range(256)) * 64) == set()


def test_every_file_of_a_stack_is_looked_through(tmp_path: Path) -> None:
    """R-D9: files of any name, the log of the database apart from its pages."""
    for name in (
        "postgres/data/base/5/1",
        "postgres/data/pg_wal/0001",
        "kafka/data/ad-view-3/0.log",
        "logs/gateway.log",
        "secrets/x/y",
        "strange",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"203.0.113.77")
    (tmp_path / "kafka/data/ad-view-3/0.index").write_bytes(b"203.0.113.77")
    found = scan(tmp_path, CANARIES, exports=[b"metric 203.0.113.77"])
    assert {find.place for find in found.finds} == {
        "postgres data", "postgres write-ahead log", "kafka ad-view", "logs", "secrets", "strange",
        "metrics",
    }  # fmt: skip
    assert {find.label for find in found.finds} == {"address"}
    assert found.n_files == 6
