"""Staff of the tests: a register with their keys, and the one way to type as one of them."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from deploy.local import staff
from services.privacy.identify import read_key
from services.privacy.staff import PrivateKey

COLLEAGUES = tuple(f"staff-{number}" for number in (1, 2, 3, 7, 12))
"""All with every role; a test that wants others makes a register of its own."""
STRANGER = "staff-9"
"""Not in the register."""


@cache
def folder() -> Path:
    """Return the folder with register and keys, of this process and gone with it."""
    found = Path(tempfile.mkdtemp(prefix="staff-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    staff.prepare(found, COLLEAGUES)
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


def key_of(staff_id: str) -> PrivateKey:
    """Return a colleague's private key."""
    return read_key(staff.key_path(folder(), staff_id))
