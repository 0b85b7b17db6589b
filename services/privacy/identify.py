"""Who types a command: `--by` says it, a private key shows it, the register knows it (R-C5)."""

import argparse
import json
import os
import secrets
import stat
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic_settings import BaseSettings

from services.chassis.clock import SystemClock
from services.privacy import staff
from services.privacy.calendar import berlin_date
from services.privacy.staff import Duty, Identity, PrivateKey, Refusal, StaffError, StaffRegister

UNKNOWN = "unknown"
"""Stands for a staff id that the register does not have: what was typed is not kept."""
_OTHERS = 0o077
_FILE_BYTES_MAX = 4096
_WHY = {
    Refusal.IDENTITY_UNKNOWN: "the register of staff has no such id",
    Refusal.IDENTITY_UNPROVEN: "that key is another's",
    Refusal.NOT_BOUND: "the duty of confidence begins on a later day",
    Refusal.LEFT: "they are no longer with us",
    Refusal.KEY_EXPIRED: "that key is not valid today",
    Refusal.ROLE_MISSING: "the register gives them no role for this",
}


class RegisterSettings(BaseSettings):
    """Where the register of staff is; the name begins with the service's prefix."""

    staff_register_path: Path | None = None


class KeySettings(BaseSettings):
    """Where whoever types has their private key."""

    staff_key_file: Path | None = None


class NotIdentifiedError(StaffError):
    """Nobody who may do it is known to type; the text says why in one sentence."""

    def __init__(self, refusal: Refusal, staff_id: str, said: str) -> None:
        """Take the reason, and the staff id if the register has it, else `UNKNOWN`."""
        super().__init__(f"{refusal.value}: {said}")
        self.refusal = refusal
        self.staff_id = staff_id


def add_staff(parser: argparse.ArgumentParser) -> None:
    """Add the arguments by which every command is told who types."""
    parser.add_argument("--by", required=True, help="who you are: staff-12")
    parser.add_argument("--key", type=Path, help="your private key's file; else STAFF_KEY_FILE")


def register_of(service: str) -> StaffRegister:
    """Return the register that a service is told of.

    Raises:
        StaffError: there is none, or it is wrong.
    """
    prefix = f"{service.upper()}_"
    path = RegisterSettings(_env_prefix=prefix).staff_register_path
    if path is None:
        raise StaffError(f"set {prefix}STAFF_REGISTER_PATH: without a register nobody is known")
    return staff.load(path)


def identify(service: str, asked: argparse.Namespace, duty: Duty, now: datetime) -> Identity:
    """Return who types a command that has the arguments of `add_staff`.

    Raises:
        StaffError: no register, or a wrong one.
        NotIdentifiedError: it is nobody who may do it.
    """
    register = register_of(service)
    staff_id = asked.by if asked.by in register.by_id else UNKNOWN
    try:
        key = read_key(asked.key)
    except StaffError as error:
        raise NotIdentifiedError(Refusal.IDENTITY_UNPROVEN, staff_id, str(error)) from None
    refusal = staff.judge(register, key.public_key, asked.by, duty, now)
    if refusal is not None:
        raise NotIdentifiedError(refusal, staff_id, _WHY[refusal])
    return Identity(staff_id=staff_id, key=key)


def read_key(path: Path | None) -> PrivateKey:
    """Read a private key, of `STAFF_KEY_FILE` where no path is given.

    Raises:
        StaffError: there is none, others may read it, or it is no key.
    """
    path = path or KeySettings().staff_key_file
    if path is None:
        raise StaffError("say --key or set STAFF_KEY_FILE")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise StaffError("the key file cannot be read") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StaffError("the key file is no plain file")
        if found.st_mode & _OTHERS:
            raise StaffError("the key file can be read by others: chmod 600, or make a new key")
        return PrivateKey(file.read(_FILE_BYTES_MAX).decode("ascii", "replace").strip())


def make_key(path: Path) -> PrivateKey:
    """Make a private key in a new file that only this user can read.

    Raises:
        StaffError: there is a file already, or none can be made.
    """
    seed = secrets.token_hex(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise StaffError("there is a file of that name: a key is never overwritten") from None
    except OSError:
        raise StaffError("the key file cannot be made there") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{seed}\n")
    return PrivateKey(seed)


def staff_key(arguments: Sequence[str]) -> int:
    """Make a key and print the register's line; 2 where it is refused."""
    parser = argparse.ArgumentParser(prog="python -m services.privacy staff-key")
    parser.add_argument("file", type=Path, help="new file for the private key; mode 0600")
    found = parser.parse_args(arguments)
    try:
        key = make_key(found.file)
    except StaffError as error:
        sys.stderr.write(f"staff-key: refused: {error}\n")
        return 2
    today = berlin_date(SystemClock().now()).isoformat()
    line = {"public_key": key.public_key, "valid_from": today, "valid_until": None}
    sys.stdout.write(json.dumps(line) + "\n")
    return 0
