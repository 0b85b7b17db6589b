"""Where a stack keeps its things, and what it remembers: folder, ports, secrets, state."""

import json
import os
import secrets
import socket
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.local.errors import StackError

ROOT = Path(__file__).resolve().parents[2]
PORT_MIN = 20_000
PORT_CHOSEN_MIN = 1024
PORT_MAX = 32_767
"""Linux gives out ephemeral ports from 32768 up: a server there may find its port taken."""
SLOTS = 120
"""Places at which a stack's ports may begin."""
_SLOT_PORTS = 100

KEY_KINDS = (
    "view_ticket_keys",
    "visit_cookie_keys",
    "ad_ledger_receipt_keys",
    "call_control_receipt_keys",
    "consent_receipt_keys",
    "consent_anchor_keys",
    "consent_proof_keys",
    "retention_anchor_keys",
)
"""Signing keys: by key id, the first signs, all verify."""

UDP_NAMES = frozenset({"call_control_sip", "trunk"})


def write_private(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON that only this user can read, whole or not at all."""
    write_private_text(path, json.dumps(document, indent=2) + "\n")


def write_private_text(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    scratch = path.with_name(f"{path.name}.new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    scratch.replace(path)


def read_document(path: Path) -> dict[str, Any]:
    """Return a JSON object written by `write_private`; empty when there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StackError(f"{path} is damaged ({error}): remove it.") from error
    assert isinstance(document, dict)
    return document


def is_free(port: int, *, udp: bool) -> bool:
    """Tell whether nobody listens on the port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as probe:
        if not udp:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            if not udp:
                probe.listen(1)
        except OSError:
            return False
    return True


def slot_of(seed: str) -> int:
    """Return where a stack begins that knows of no other."""
    return zlib.crc32(seed.encode()) % SLOTS


def choose_ports(
    names: Iterable[str],
    chosen: Mapping[str, int],
    remembered: Mapping[str, int],
    *,
    slot: int,
    taken: Iterable[int] = (),
) -> dict[str, int]:
    """Return a port per name: the chosen one, the one of last time, or a free one.

    A remembered port that somebody else took meanwhile is replaced.

    Args:
        names: what needs a port.
        chosen: ports from settings; these are never replaced.
        remembered: ports of last time.
        taken: ports that are somebody's, whether or not he listens just now.
        slot: where to begin, modulo `SLOTS`: stacks that start at once must not race for ports.

    Raises:
        StackError: a chosen port is out of range or taken.
    """
    result: dict[str, int] = {}
    candidate = PORT_MIN + slot % SLOTS * _SLOT_PORTS
    for name in names:
        udp = name in UDP_NAMES
        port = chosen.get(name)
        if port is not None:
            _check_chosen(name, port, udp=udp)
        else:
            port = remembered.get(name)
            given = {*result.values(), *chosen.values(), *taken}
            while port is None or port in given or not is_free(port, udp=udp):
                port = candidate
                candidate = candidate + 1 if candidate < PORT_MAX else PORT_MIN
        result[name] = port
    return result


def _check_chosen(name: str, port: int, *, udp: bool) -> None:
    setting = f"STACK_PORT_{name.upper()}"
    if not PORT_CHOSEN_MIN <= port <= PORT_MAX:
        raise StackError(f"{setting}={port} is not between {PORT_CHOSEN_MIN} and {PORT_MAX}.")
    if not is_free(port, udp=udp):
        raise StackError(f"Port {port} for {name} is taken: set {setting} to a free one.")


class Layout:
    """The folder of one stack.

    Attributes:
        folder: everything below belongs to this stack; kept over `down`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def logs(self) -> Path:
        """Folder of one log file per process."""
        return self.folder / "logs"

    @property
    def staff(self) -> Path:
        """Folder of the register of staff and of their keys."""
        return self.folder / "staff"

    @property
    def state_path(self) -> Path:
        """What runs now, written by the supervisor."""
        return self.folder / "state.json"

    @property
    def lock_path(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.folder / "supervisor.lock"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            StackError: the folder belongs to another user.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except PermissionError as error:
            raise StackError(
                f"{error.filename} cannot be made: work in a checkout of yours."
            ) from error
        owner = self.folder.stat().st_uid
        if owner != os.geteuid():
            raise StackError(
                f"{self.folder} belongs to user id {owner}, this is {os.geteuid()}:"
                " go on as that user, or remove the folder as that user with `make clean`."
            )

    def ports(self, names: Iterable[str], chosen: Mapping[str, int]) -> dict[str, int]:
        """Return a port per name, the same ones as last time where that is possible.

        Raises:
            StackError: a chosen port is out of range or taken.
        """
        path = self.folder / "stack.json"
        document = read_document(path)
        remembered: dict[str, int] = document.get("ports", {})
        result = choose_ports(names, chosen, remembered, slot=slot_of(str(self.folder)))
        write_private(path, document | {"ports": remembered | result})
        return result

    @property
    def secrets_path(self) -> Path:
        """All secrets of this stack; what a service gets of them is below `secrets/<service>`."""
        return self.folder / "secrets.json"

    def secrets(
        self, passwords: Iterable[str], kafka_passwords: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return this stack's secrets, made at the first need and readable by this user only.

        Args:
            passwords: names of the database's roles that need one.
            kafka_passwords: names of Kafka's users that need one.

        Returns:
            `passwords` by role, `kafka_passwords` by user; of `KEY_KINDS` 256-bit keys by key id,
            of which the first signs.
        """
        document = read_document(self.secrets_path)
        for kind, names in (("passwords", passwords), ("kafka_passwords", kafka_passwords)):
            kept = document.setdefault(kind, {})
            for name in names:
                kept.setdefault(name, secrets.token_urlsafe(24))
        for kind in KEY_KINDS:
            document.setdefault(kind, {"k1": secrets.token_hex(32)})
        write_private(self.secrets_path, document)
        return document
