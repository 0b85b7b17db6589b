"""Staff of the tests: a register with their keys, and the one way to type as one of them."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from deploy.local import staff
from services.privacy.identify import read_key
from services.privacy.staff import (
    BY_SCHEDULE,
    PrivateKey,
    Signed,
    StaffRegister,
    load,
    sign_nothing,
)

COLLEAGUES = tuple(f"staff-{number}" for number in (1, 2, 3, 4, 7, 12))
"""All with every role; a test that wants others makes a register of its own."""
STRANGER = "staff-9"
"""Not in the register."""


@cache
def folder() -> Path:
    """Return the folder with register and keys, of this process and gone with it."""
    found = Path(tempfile.mkdtemp(prefix="staff-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    # tests work on past years too
    staff.prepare(found, COLLEAGUES, since="2000-01-01")
    return found


def shown(*arguments: str) -> tuple[str, ...]:
    """Return a command's arguments with the key of who types, where they say `--by`.

    Whoever is nobody in the register types with staff-1's key.
    """
    if "--by" not in arguments or "--key" in arguments:
        return arguments
    staff_id = arguments[arguments.index("--by") + 1]
    holder = staff_id if staff_id in COLLEAGUES else COLLEAGUES[0]
    return (*arguments, "--key", str(staff.key_path(folder(), holder)))


def sign(staff_id: str, what: str, content: Mapping[str, Any]) -> Signed:
    """Sign as whoever an act is of, without a command; a service's own acts stay unsigned."""
    if staff_id == BY_SCHEDULE:
        return sign_nothing(staff_id, what, content)
    return key_of(staff_id).sign(what, content)


@cache
def register() -> StaffRegister:
    """Return the register."""
    return load(staff.register_path(folder()))


@cache
def key_of(staff_id: str) -> PrivateKey:
    """Return a colleague's private key."""
    return read_key(staff.key_path(folder(), staff_id))
