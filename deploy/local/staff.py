"""Staff of a local stack: three colleagues with every role, their keys, and the register."""

import json
from collections.abc import Iterable
from pathlib import Path

from deploy.local.layout import write_private_text
from services.privacy.identify import make_key, read_key
from services.privacy.staff import Duty

COLLEAGUES = ("staff-1", "staff-2", "staff-3")
BOUND_SINCE = "2026-01-01"


def register_path(folder: Path) -> Path:
    """Return where the register stands."""
    return folder / "register.json"


def key_path(folder: Path, staff_id: str) -> Path:
    """Return where somebody has their private key."""
    return folder / f"{staff_id}.key"


def as_staff(folder: Path, staff_id: str) -> tuple[str, ...]:
    """Return the arguments by which somebody says and shows who they are."""
    return "--by", staff_id, "--key", str(key_path(folder, staff_id))


def prepare(folder: Path, staff_ids: Iterable[str] = COLLEAGUES, since: str = BOUND_SINCE) -> None:
    """Make keys that are not there, and a register if there is none; an edited one stays."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    people = []
    for staff_id in staff_ids:
        path = key_path(folder, staff_id)
        key = read_key(path) if path.exists() else make_key(path)
        people.append(
            {
                "staff_id": staff_id,
                "bound_since": since,
                "roles": [duty.value for duty in Duty],
                "keys": [{"public_key": key.public_key, "valid_from": since}],
            }
        )
    if not register_path(folder).exists():
        text = json.dumps({"staff": people}, indent=2) + "\n"
        write_private_text(register_path(folder), text)
