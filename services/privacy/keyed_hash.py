"""Hashes of telephone numbers, addresses and visitors, for look-ups, under keys that die.

A number has few possible values: a plain hash of one is undone by trying them all. HMAC-SHA-256
under a random key is not, for as long as the key is secret, and by nobody once the key is gone. So
each day (UTC) has a key of its own, which dies when that day's rows do (R-D5), and a hash that
stays somewhere says nothing after that. The block list (R-D10) lives until the person lifts it, so
its key does not rotate; it can be replaced.

Keys are files in a folder outside the databases: a backup of one holds no key. Several processes
share the folder. The file is the key: it is looked at on every use, so that a key that one process
destroyed is not used by another one from memory.
"""

import hmac
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from services.chassis.clock import Clock
from services.chassis.errors import Fatal
from services.privacy import calendar

KEY_BYTES = 32
LIFE = calendar.Rolling(length=timedelta(days=7), margin=timedelta(hours=2))
"""R-D5, with the margin of the schedule: a day's key goes when the day's rows go."""
AHEAD_MAX = timedelta(minutes=5)
"""How far the clock of who made an instant may be ahead of ours."""

_E164 = re.compile(r"\+[1-9][0-9]{5,14}")
_DAY_FILE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_OTHERS = 0o077
_TRIES_MAX = 8
"""To make a key that another process may destroy in the same moment; a file of zeros is none."""


class KeyFolderError(Fatal):
    """The folder of keys, or a file in it, is not what it must be; the text says what mends it."""


class KeyGoneError(LookupError):
    """There is no key for that day: it was destroyed, or the day has not come."""


class Subject(StrEnum):
    """What is hashed. The same text as a number and as something else has two hashes."""

    NUMBER = "number"
    """A telephone number, in E.164 text."""
    ADDRESS = "address"
    """An IP address."""
    VISITOR = "visitor"
    """A visitor's id."""


def normalised(subject: Subject, value: str) -> str:
    """Return the one text of what may be written in many.

    Raises:
        ValueError: it is none; the text never quotes it.
    """
    match subject:
        case Subject.NUMBER:
            if _E164.fullmatch(value) is None:
                raise ValueError("a number must be E.164: a plus sign and 6 to 15 digits")
            return value
        case Subject.ADDRESS:
            return _address(value)
        case Subject.VISITOR:
            try:
                return str(UUID(value))
            except ValueError:
                raise ValueError("a visitor's id must be a UUID") from None


def _address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError("an address must be one of IPv4 or IPv6") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address must have no zone")
        # the same caller, whether a dual-stack socket or a plain one saw them
        address = address.ipv4_mapped or address
    return address.compressed


def _message(subject: Subject, value: str) -> bytes:
    return f"{subject}\0{normalised(subject, value)}".encode("ascii")


def _hash(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


@dataclass(frozen=True)
class _Loaded:
    """A key in memory, and the file as it was when the key was read."""

    key: bytes
    file: tuple[int, int, int]


class _Folder:
    """Files of keys: made whole or not at all, read as they are now, destroyed for good."""

    def __init__(self, path: Path) -> None:
        """Take the folder.

        Raises:
            KeyFolderError: others may look into it, or it is no folder of ours.
        """
        self.path, self._text = path, str(path)
        self._loaded: dict[str, _Loaded] = {}
        try:
            found = path.lstat()
        except OSError as error:
            raise KeyFolderError(f"the folder of keys {path}: {error.strerror}") from None
        if not stat.S_ISDIR(found.st_mode):
            raise KeyFolderError(f"the folder of keys {path} is no folder")
        _check_owner(path, found, "chmod 700")

    def key(self, name: str) -> bytes | None:
        """Return a key as its file has it now; None where there is none.

        Raises:
            KeyFolderError: the file is not a key of ours.
        """
        # a plain text, because this is done on every use and a Path costs as much as the hash
        path = f"{self._text}/{name}"
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            self._loaded.pop(name, None)
            return None
        file = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        loaded = self._loaded.get(name)
        if loaded is None or loaded.file != file:
            key = _read(Path(path))
            if key is None:
                self._loaded.pop(name, None)
                return None
            loaded = self._loaded[name] = _Loaded(key, file)
        return loaded.key

    def key_or_new(self, name: str) -> bytes:
        """Return a key; where there is none make one, of which all processes see the same."""
        for _ in range(_TRIES_MAX):
            key = self.key(name)
            if key is not None:
                return key
            self._make(name, _link_if_absent)
        raise KeyFolderError(f"{self.path / name} holds no key: remove it")

    def _make(self, name: str, put: Callable[[Path, Path], None]) -> None:
        """Write a new key under a name of its own and put it in its place when it is whole."""
        draft = self.path / f".{name}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        put(draft, self.path / name)
        draft.unlink(missing_ok=True)
        self._sync()

    def replace(self, name: str) -> None:
        """Put a new key in the place of one, at once."""
        self._make(name, _move_over)

    def destroy(self, name: str) -> bool:
        """Overwrite and remove a key with what a crash may have left of it.

        Returns:
            Whether it was this call that took the key away.
        """
        self._loaded.pop(name, None)
        # whoever renames it destroys it; a reader finds no key from here on
        dying = self.path / f".{name}.{secrets.token_hex(8)}"
        try:
            (self.path / name).rename(dying)
        except FileNotFoundError:
            is_ours = False
        else:
            is_ours = True
        for path in self.path.glob(f".{name}.*"):
            with suppress(FileNotFoundError):
                _overwrite(path)
                path.unlink()
        self._sync()
        return is_ours

    def _sync(self) -> None:
        """Write the folder itself to disk: a name may otherwise come back after a crash."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_owner(path: Path, found: os.stat_result, remedy: str) -> None:
    if found.st_uid != os.geteuid():
        raise KeyFolderError(f"{path} must belong to the user that runs this")
    if found.st_mode & _OTHERS:
        raise KeyFolderError(f"{path} is open to others: {remedy} it, and replace its keys")


def _read(path: Path) -> bytes | None:
    """Read a key; None where it went away, or is being overwritten, in this moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFolderError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise KeyFolderError(f"{path} is no file")
        _check_owner(path, found, "chmod 600")
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise KeyFolderError(f"{path} is not a key of {KEY_BYTES} bytes: remove it")
    return key if any(key) else None


def _link_if_absent(draft: Path, path: Path) -> None:
    # another process may have been first: then its key is the key; or has swept our draft away
    with suppress(FileExistsError, FileNotFoundError):
        path.hardlink_to(draft)


def _move_over(draft: Path, path: Path) -> None:
    draft.rename(path)


def _overwrite(path: Path) -> None:
    """Fill a file with zeros, on disk. Copy-on-write file systems keep the old blocks a while."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.write(descriptor, bytes(KEY_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DayKeys:
    """Hashes under the key of a day (UTC), which dies with the day's rows (R-D5)."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Take the folder, which must exist, mode 0700.

        Raises:
            KeyFolderError: it must not be used.
        """
        self._folder = _Folder(folder)
        self._clock = clock

    def hash_at(self, subject: Subject, value: str, at: datetime) -> bytes:
        """Return the hash (32 bytes) of a value as that day's rows have it.

        Args:
            at: aware instant of what the row is about; its day's key is made where there is none.

        Raises:
            ValueError: the value is none of its subject.
            KeyGoneError: the day is dead, or has not come.
        """
        day, now = calendar.utc_date(at), self._clock.now()
        if day < calendar.drop_before_day(LIFE, now):
            raise KeyGoneError("the key of that day has been destroyed")
        if at > now + AHEAD_MAX:
            raise KeyGoneError("that day has not come")
        message = _message(subject, value)
        return _hash(self._folder.key_or_new(day.isoformat()), message)

    def candidates(self, subject: Subject, value: str) -> tuple[bytes, ...]:
        """Return the hashes of a value under all living keys, the newest day's first.

        Days without a key have no rows, and no hash.

        Raises:
            ValueError: the value is none of its subject.
        """
        message = _message(subject, value)
        now = self._clock.now()
        first, last = calendar.drop_before_day(LIFE, now), calendar.utc_date(now + AHEAD_MAX)
        days = (last - n * calendar.DAY for n in range((last - first).days + 1))
        keys = (self._folder.key(day.isoformat()) for day in days)
        return tuple(_hash(key, message) for key in keys if key is not None)

    def expire(self, as_of: datetime) -> int:
        """Destroy the keys that are dead at an instant, and return how many this call destroyed.

        From then on nobody can compute, or check, a hash of those days.
        """
        first = calendar.drop_before_day(LIFE, as_of)
        return sum(self._folder.destroy(day.isoformat()) for day in self._days() if day < first)

    def _days(self) -> set[date]:
        """Return the days that have a key, or what a crash left of one."""
        names = {path.name.lstrip(".").partition(".")[0] for path in self._folder.path.iterdir()}
        return {date.fromisoformat(name) for name in names if _DAY_FILE.fullmatch(name)}


class BlockListKey:
    """Hashes of blocked numbers (R-D10): one key, for as long as the list lives.

    A replaced key stays beside the new one, so that an entry under it is still found and can be
    written anew when its number is next seen; `forget_replaced` then ends it.
    """

    _NAME = "block-list"
    _REPLACED = "block-list-replaced"

    def __init__(self, folder: Path) -> None:
        """Take the folder, which must exist, mode 0700.

        Raises:
            KeyFolderError: it must not be used.
        """
        self._folder = _Folder(folder)

    def hash(self, number: str) -> bytes:
        """Return the hash (32 bytes) under which a number enters the list.

        Raises:
            ValueError: it is no E.164 number.
        """
        message = _message(Subject.NUMBER, number)
        return _hash(self._folder.key_or_new(self._NAME), message)

    def candidates(self, number: str) -> tuple[bytes, ...]:
        """Return the hashes under which a number may stand in the list, the present key's first.

        Raises:
            ValueError: it is no E.164 number.
        """
        replaced = self._folder.key(self._REPLACED)
        found = [self.hash(number)]
        if replaced is not None:
            found.append(_hash(replaced, _message(Subject.NUMBER, number)))
        return tuple(dict.fromkeys(found))

    def replace(self) -> None:
        """Put a new key in the place of the present one, which stays for looking up.

        Raises:
            KeyFolderError: the one replaced before has not been forgotten yet.
        """
        self._folder.key_or_new(self._NAME)
        try:
            self._path(self._REPLACED).hardlink_to(self._path(self._NAME))
        except FileExistsError:
            raise KeyFolderError(
                "the block list's replaced key is still there: write its entries anew, forget it"
            ) from None
        self._folder.replace(self._NAME)

    def forget_replaced(self) -> bool:
        """Destroy the replaced key; what still stands under it is never found again.

        Not while another process replaces: both are acts of one administrator.

        Returns:
            Whether there was one.
        """
        replaced = self._path(self._REPLACED)
        with suppress(FileNotFoundError):
            if replaced.samefile(self._path(self._NAME)):
                # a crash between the two steps of a replacement: it is the present key's other name
                replaced.unlink()
                return True
        return self._folder.destroy(self._REPLACED)

    def _path(self, name: str) -> Path:
        return self._folder.path / name
