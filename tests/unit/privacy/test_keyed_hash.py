"""Keyed hashes: what they tell apart, who agrees on a key, and that a destroyed one is gone (R-D5).

The folder is a real one: what is tested is files, modes, links and two processes at once.
"""

import hashlib
import hmac
import ipaddress
import multiprocessing
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import Fatal
from services.privacy.keyed_hash import (
    BlockListKey,
    DayKeys,
    KeyFolderError,
    KeyGoneError,
    Subject,
    normalised,
)

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
DAY = timedelta(days=1)
NUMBER = "+493023125000"
NUMBERS = st.from_regex(r"\+[1-9][0-9]{5,14}", fullmatch=True)


class Clock:
    def __init__(self, at: datetime = NOW) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture(scope="module")
def shared() -> Iterator[DayKeys]:
    """One set of keys for all the examples of a property."""
    with TemporaryDirectory() as path:
        yield DayKeys(Path(path), Clock())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- what is hashed


@given(number=NUMBERS, other=NUMBERS)
def test_numbers_have_one_hash_each(shared, number, other):
    """R-D10: the same number is found again, another one is not."""
    found = shared.hash_at(Subject.NUMBER, number, NOW)
    assert len(found) == 32
    assert found == shared.hash_at(Subject.NUMBER, number, NOW - timedelta(hours=17))
    assert (found == shared.hash_at(Subject.NUMBER, other, NOW)) == (number == other)


@given(address=st.ip_addresses())
def test_an_address_has_one_hash_however_it_is_written(shared, address):
    """R-D4: exploded, in capitals, or as a dual-stack socket shows it."""
    texts = {str(address), address.exploded, address.exploded.upper()}
    if isinstance(address, ipaddress.IPv4Address):
        texts |= {f"::ffff:{address}", ipaddress.IPv6Address(f"::ffff:{address}").exploded}
    assert len({shared.hash_at(Subject.ADDRESS, text, NOW) for text in texts}) == 1


@given(value=st.uuids())
def test_a_text_that_is_of_two_subjects_has_two_hashes(shared, value):
    """Domain separation: no list of one kind can be joined with a list of another."""
    found = shared.hash_at(Subject.VISITOR, str(value).upper(), NOW)
    key = (shared._folder.path / "2026-11-22").read_bytes()
    assert found == hmac.digest(key, f"visitor\0{value}".encode(), "sha256")
    assert found != hmac.digest(key, f"number\0{value}".encode(), "sha256")
    assert found != hmac.digest(key, str(value).encode(), "sha256")


@pytest.mark.parametrize(
    ("subject", "value"),
    [
        (Subject.NUMBER, "030 23125000"),
        (Subject.NUMBER, "+49 30 23125000"),
        (Subject.NUMBER, "+0123456789"),
        (Subject.NUMBER, "+49302312500\n"),
        (Subject.NUMBER, "+4930231250009999"),
        (Subject.NUMBER, "+\u0664\u0669302312500"),
        (Subject.ADDRESS, "203.0.113.7:443"),
        (Subject.ADDRESS, "fe80::1%eth0"),
        (Subject.ADDRESS, "203.0.113.007"),
        (Subject.VISITOR, "visitor one"),
    ],
)
def test_what_is_no_number_address_or_id_is_refused_and_not_quoted(folder, subject, value):
    """Bad input makes no key, and the error says nothing of it (logs hold no personal data)."""
    keys = DayKeys(folder, Clock())
    with pytest.raises(ValueError, match="must") as error:
        keys.hash_at(subject, value, NOW)
    with pytest.raises(ValueError, match="must"):
        keys.candidates(subject, value)
    assert value not in str(error.value)
    # nor does a traceback, by the library's error behind ours
    assert error.value.__context__ is None or error.value.__suppress_context__
    assert names(folder) == set()


def test_a_hash_cannot_be_made_without_the_key(folder):
    """A plain hash of a number is undone by trying all of them."""
    found = DayKeys(folder, Clock()).hash_at(Subject.NUMBER, NUMBER, NOW)
    message = b"number\0" + normalised(Subject.NUMBER, NUMBER).encode()
    assert found != hashlib.sha256(message).digest()
    assert found != hmac.digest(bytes(32), message, "sha256")


# ---------------------------------------------------------------- days


def test_each_day_has_a_key_of_its_own_and_a_look_up_goes_through_all(folder):
    """R-D5: what one number did is found through the days, by nothing but the live keys."""
    keys = DayKeys(folder, Clock())
    hashes = [keys.hash_at(Subject.NUMBER, NUMBER, NOW - n * DAY) for n in range(7)]
    assert len(set(hashes)) == 7
    assert keys.candidates(Subject.NUMBER, NUMBER) == tuple(hashes)
    assert not set(keys.candidates(Subject.NUMBER, "+493023125001")) & set(hashes)


def test_a_look_up_makes_no_keys(folder):
    assert DayKeys(folder, Clock()).candidates(Subject.NUMBER, NUMBER) == ()
    assert names(folder) == set()


def test_the_day_is_utc(folder):
    """R-D9: partitions are UTC days, and a key dies with its partition."""
    keys = DayKeys(folder, Clock())
    keys.hash_at(Subject.NUMBER, NUMBER, datetime.fromisoformat("2026-11-22T00:30:00+01:00"))
    assert names(folder) == {"2026-11-21"}


def test_a_key_dies_with_its_days_rows(folder):
    """R-D5: two hours before the first row of the day is 7 x 24 h old, as the schedule orders."""
    clock = Clock()
    keys = DayKeys(folder, clock)
    before = keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    dead_from = datetime(2026, 11, 28, 22, 0, tzinfo=UTC)

    clock.at = dead_from - timedelta(microseconds=1)
    assert keys.expire(clock.at) == 0
    assert keys.candidates(Subject.NUMBER, NUMBER) == (before,)

    clock.at = dead_from
    assert keys.candidates(Subject.NUMBER, NUMBER) == (), "dead even before it is destroyed"
    with pytest.raises(KeyGoneError):
        keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    assert keys.expire(clock.at) == 1
    assert keys.expire(clock.at) == 0
    assert names(folder) == set()


def test_a_day_that_has_not_come_has_no_key(folder):
    """A wrong clock somewhere must not make keys that outlive their period."""
    keys = DayKeys(folder, Clock())
    with pytest.raises(KeyGoneError):
        keys.hash_at(Subject.NUMBER, NUMBER, NOW + timedelta(hours=6, minutes=1))
    assert names(folder) == set()


@given(ages=st.sets(st.integers(0, 30), max_size=12), as_of_age=st.integers(-10, 10))
def test_expiring_destroys_exactly_the_dead(ages, as_of_age):
    """R-D5."""
    with TemporaryDirectory() as path:
        folder = Path(path)
        for age in ages:
            DayKeys(folder, Clock(NOW - age * DAY)).hash_at(Subject.NUMBER, NUMBER, NOW - age * DAY)
        # at 18:00 a day is dead when it began more than 6 days before the one of `as_of`
        dead = {age for age in ages if age - as_of_age > 6}
        assert DayKeys(folder, Clock()).expire(NOW - as_of_age * DAY) == len(dead)
        left = {(NOW - age * DAY).date().isoformat() for age in ages - dead}
        assert names(folder) == left


def test_nobody_computes_a_destroyed_days_hashes(folder):
    """R-D5: neither the process that destroyed the key, nor one that has used it before."""
    mine, other = DayKeys(folder, Clock()), DayKeys(folder, Clock())
    before = mine.hash_at(Subject.NUMBER, NUMBER, NOW)
    assert other.hash_at(Subject.NUMBER, NUMBER, NOW) == before
    # a simulation looks ahead: to the clock of `other` the day still lives
    assert mine.expire(NOW + 8 * DAY) == 1
    assert other.candidates(Subject.NUMBER, NUMBER) == ()
    assert other.hash_at(Subject.NUMBER, NUMBER, NOW) != before


def test_a_destroyed_key_is_overwritten(folder):
    """R-D5: the bytes go, not only the name: whoever holds the file open reads zeros."""
    keys = DayKeys(folder, Clock())
    keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    with (folder / "2026-11-22").open("rb") as file:
        assert any(file.read())
        keys.expire(NOW + 8 * DAY)
        file.seek(0)
        assert file.read() == bytes(32)


def test_what_a_crash_left_goes_with_its_day(folder):
    """A draft that became the key, one that never did, and a key that was about to die."""
    keys = DayKeys(folder, Clock())
    keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    (folder / ".2026-11-22.aa").hardlink_to(folder / "2026-11-22")
    for name in (".2026-11-22.bb", ".2026-11-21.cc"):
        (folder / name).write_bytes(secrets.token_bytes(32))
        (folder / name).chmod(0o600)
    kept = folder / ".2026-11-21.cc"
    with kept.open("rb") as file:
        assert keys.expire(NOW) == 0
        assert len(names(folder)) == 4
        assert len(keys.candidates(Subject.NUMBER, NUMBER)) == 1, "a draft is no key"
        assert keys.expire(NOW + 8 * DAY) == 1
        assert file.read() == bytes(32)
    assert names(folder) == set()


# ---------------------------------------------------------------- several processes


def _hash_in_a_process(folder: Path, barrier, results) -> None:
    keys = DayKeys(folder, Clock())
    for n in range(50):
        barrier.wait(timeout=20)
        at = NOW - (n % 5) * DAY
        results.put((n, keys.hash_at(Subject.NUMBER, NUMBER, at)))
        barrier.wait(timeout=20)
        if n % 5 == 4:
            # both destroy; each key is counted once
            results.put((-1, keys.expire(NOW + 30 * DAY)))


def test_two_processes_that_race_for_a_days_key_see_the_same(folder):
    """R-D5: fifty races for a key, and ten for destroying five."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_hash_in_a_process, args=(folder, barrier, results))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=30) for _ in range(2 * 60)]
    for worker in workers:
        worker.join(timeout=20)
        assert worker.exitcode == 0
    by_round = {n: {value for m, value in found if m == n} for n in range(50)}
    assert all(len(values) == 1 for values in by_round.values())
    assert sum(count for n, count in found if n == -1) == 50
    assert names(folder) == set()


# ---------------------------------------------------------------- the folder


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770, 0o711])
@pytest.mark.parametrize("kind", [lambda path: DayKeys(path, Clock()), BlockListKey])
def test_a_folder_that_is_open_to_others_is_refused(folder, mode, kind):
    """R-C5: the error says what mends it; it is the process's end."""
    folder.chmod(mode)
    with pytest.raises(KeyFolderError, match="chmod 700"):
        kind(folder)
    assert issubclass(KeyFolderError, Fatal)


def test_a_folder_that_is_none_is_refused(folder, tmp_path):
    with pytest.raises(KeyFolderError, match="No such file"):
        DayKeys(tmp_path / "absent", Clock())
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(KeyFolderError, match="no folder"):
        DayKeys(tmp_path / "link", Clock())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_folder_of_somebody_else_is_refused(folder):
    """R-C5."""
    os.chown(folder, 65534, -1)
    with pytest.raises(KeyFolderError, match="belong"):
        DayKeys(folder, Clock())


def test_a_key_is_for_its_owner_only_and_one_that_is_not_is_refused(folder):
    """R-C5."""
    keys = DayKeys(folder, Clock())
    keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    path = folder / "2026-11-22"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(KeyFolderError, match="chmod 600"):
        keys.hash_at(Subject.NUMBER, NUMBER, NOW)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)], ids=["empty", "short", "long"])
def test_a_file_that_is_no_key_is_refused_not_used(folder, content):
    """A truncated key would be one that can be tried out."""
    path = folder / "2026-11-22"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyFolderError, match="32 bytes"):
        DayKeys(folder, Clock()).hash_at(Subject.NUMBER, NUMBER, NOW)


def test_a_file_of_zeros_is_refused_not_used(folder):
    """What is being destroyed reads as zeros: no hash is made with it."""
    path = folder / "2026-11-22"
    path.write_bytes(bytes(32))
    path.chmod(0o600)
    keys = DayKeys(folder, Clock())
    with pytest.raises(KeyFolderError, match="no key"):
        keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    assert keys.candidates(Subject.NUMBER, NUMBER) == ()


def test_a_link_in_the_place_of_a_key_is_refused(folder, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_bytes(secrets.token_bytes(32))
    target.chmod(0o600)
    (folder / "2026-11-22").symlink_to(target)
    with pytest.raises(KeyFolderError):
        DayKeys(folder, Clock()).hash_at(Subject.NUMBER, NUMBER, NOW)


# ---------------------------------------------------------------- the block list


def test_the_block_lists_key_does_not_rotate(folder):
    """R-D10: a block is found until the person lifts it."""
    first = BlockListKey(folder).hash(NUMBER)
    keys = DayKeys(folder, Clock())
    keys.hash_at(Subject.NUMBER, NUMBER, NOW)
    assert keys.expire(NOW + 4000 * DAY) == 1
    assert BlockListKey(folder).hash(NUMBER) == first
    assert names(folder) == {"block-list"}


def test_an_entry_is_still_found_after_the_key_was_replaced(folder):
    """R-D10: by every process, at once; and not after the replaced key was forgotten."""
    mine, other = BlockListKey(folder), BlockListKey(folder)
    old = mine.hash(NUMBER)
    assert other.candidates(NUMBER) == (old,)
    mine.replace()
    new = mine.hash(NUMBER)
    assert new != old
    assert other.candidates(NUMBER) == (new, old)
    assert mine.forget_replaced()
    assert other.candidates(NUMBER) == (new,)
    assert not mine.forget_replaced()
    assert names(folder) == {"block-list"}


def test_a_key_is_not_replaced_while_entries_may_still_need_the_one_before(folder):
    """R-D10: a block must not be lost to two replacements."""
    keys = BlockListKey(folder)
    keys.replace()
    before = keys.candidates(NUMBER)
    with pytest.raises(KeyFolderError, match="still there"):
        keys.replace()
    assert keys.candidates(NUMBER) == before


def test_a_replacement_that_crashed_half_way_costs_no_key(folder):
    """The present key has a second name then; forgetting that one must not destroy it."""
    keys = BlockListKey(folder)
    before = keys.hash(NUMBER)
    (folder / "block-list-replaced").hardlink_to(folder / "block-list")
    assert keys.candidates(NUMBER) == (before,)
    assert keys.forget_replaced()
    assert keys.hash(NUMBER) == before
    keys.replace()
    assert keys.candidates(NUMBER) == (keys.hash(NUMBER), before)


def test_no_error_of_this_module_quotes_a_key(folder):
    """R-C5."""
    path = folder / "2026-11-22"
    path.write_bytes(b"k" * 31)
    path.chmod(0o600)
    with pytest.raises(KeyFolderError) as error:
        DayKeys(folder, Clock()).hash_at(Subject.NUMBER, NUMBER, NOW)
    assert not re.search("kkkk", str(error.value))
