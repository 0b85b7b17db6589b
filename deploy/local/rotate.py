"""Rotation of passwords and signing keys of a running stack; nothing stops meanwhile.

A password: the server learns the new one, then the service's file is replaced; connections that
stand stay, whoever connects next reads the file. A key: first every holder learns to verify with
the new one, then whoever signs signs with it; the old one stays until nothing signed with it can be
valid any more, and is then retired.
"""

import asyncio
import contextlib
import fcntl
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg

from deploy.access import AccessProvisioner
from deploy.local.control import State, kafka_login
from deploy.local.environment import KEYS_OF, RECEIPT_KEYS, key_text
from deploy.local.errors import StackError
from deploy.local.kafka import ADMINISTRATOR
from deploy.local.layout import KEY_KINDS, Layout, read_document, write_private, write_private_text
from deploy.local.probes import metric
from deploy.provision import Statements, with_role
from schemas.view_ticket import TICKET_LIFE_S
from services.chassis.declaration import load

_DAY_S = 24 * 3600
VALID_FOR_S = {
    "view_ticket_keys": TICKET_LIFE_S,
    "visit_cookie_keys": 6 * _DAY_S,
    # a receipt may be read for as long as its topic keeps it
    **dict.fromkeys(RECEIPT_KEYS.values(), 30 * _DAY_S),
    # an anchor must verify for as long as there is evidence (R-D10)
    "retention_anchor_keys": 4 * 366 * _DAY_S,
    # a receipt proves as long as its consent record stands
    "consent_proof_keys": 5 * 366 * _DAY_S,
    # and consent's chain stays for ever
    "consent_anchor_keys": 100 * 366 * _DAY_S,
}
"""How long something signed may be shown: so long an old key must verify."""
TAKEN_TIMEOUT_S = 30.0
_POLL_S = 0.1


class Rotation:
    """What can be rotated on the stack of one folder."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Find the running stack.

        Raises:
            StackError: none runs there.
        """
        self._layout = Layout(folder)
        self._say = say
        state = State.of(self._layout)
        if state.supervisor is None:
            raise StackError(f"No stack runs in {folder}: `make up` starts it.")
        self._processes: Mapping[str, Any] = state.document["processes"]

    async def passwords(self, service: str) -> None:
        """Give a service other passwords at Kafka and PostgreSQL."""
        declared = load(service)
        document = read_document(self._layout.secrets_path)
        await self._kafka_password(service, document)
        self._write(service, declared.env_prefix, "KAFKA_PASSWORD", document["kafka_passwords"])
        if declared.database:
            await self._database_password(service, document)
            url = self._database_url(service, document)
            self._write(service, declared.env_prefix, "DATABASE_URL", {service: url})
        self._say(f"{service} logs in with new passwords from now on")

    async def keys(self, kind: str) -> None:
        """Make a new signing key and sign with it once all holders know it."""
        document = read_document(self._layout.secrets_path)
        old = document[kind]
        kid = f"k{datetime.now(UTC):%Y%m%dT%H%M%S}"
        if kid in old:
            raise StackError("A key was made in this very second: try again.")
        new = {kid: secrets.token_hex(32)}
        await self._publish(kind, document, old | new)
        await self._publish(kind, document, new | old)
        document.setdefault("signs_since_s", {})[kind] = time.time()
        write_private(self._layout.secrets_path, document)
        hours = VALID_FOR_S[kind] / 3600
        self._say(f"{kind}: {kid} signs; retire the others in {hours:.0f} h")

    async def retire(self, kind: str) -> None:
        """Forget all keys but the one that signs.

        Raises:
            StackError: something signed with an older one may still be shown.
        """
        document = read_document(self._layout.secrets_path)
        since_s = document.get("signs_since_s", {}).get(kind)
        left_s = 0.0 if since_s is None else since_s + VALID_FOR_S[kind] - time.time()
        if left_s > 0:
            raise StackError(
                f"{kind}: what older keys signed is valid for {left_s / 3600:.1f} h more."
            )
        kid = next(iter(document[kind]))
        n_old = len(document[kind]) - 1
        await self._publish(kind, document, {kid: document[kind][kid]})
        self._say(f"{kind}: {n_old} old key(s) forgotten, {kid} remains")

    async def _kafka_password(self, service: str, document: dict[str, Any]) -> None:
        ports = [e["port"] for name, e in self._processes.items() if name.startswith("kafka")]
        administrator = kafka_login(self._layout, ADMINISTRATOR, ports)
        password = secrets.token_urlsafe(24)
        provisioner = AccessProvisioner(administrator)
        await asyncio.to_thread(provisioner.set_passwords, {service: password})
        document["kafka_passwords"][service] = password
        write_private(self._layout.secrets_path, document)

    async def _database_password(self, service: str, document: dict[str, Any]) -> None:
        password = secrets.token_urlsafe(24)
        connection = await asyncpg.connect(self._admin_dsn(document))
        try:
            statements = Statements(connection)
            await statements.run("ALTER ROLE %I PASSWORD %L", service, password)
        finally:
            await connection.close()
        document["passwords"][service] = password
        write_private(self._layout.secrets_path, document)

    def _admin_dsn(self, document: Mapping[str, Any]) -> str:
        port = self._processes["postgres"]["port"]
        password = document["passwords"]["postgres"]
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"

    def _database_url(self, service: str, document: Mapping[str, Any]) -> str:
        password = document["passwords"][service]
        return with_role(self._admin_dsn(document), service, password, service)

    def _write(self, service: str, prefix: str, name: str, values: Mapping[str, str]) -> None:
        folder = self._layout.folder / "secrets" / service
        write_private_text(folder / f"{prefix}{name}".lower(), values[service])

    async def _publish(self, kind: str, document: dict[str, Any], keys: Mapping[str, str]) -> None:
        """Let all holders know these keys and wait until they have said so."""
        document[kind] = dict(keys)
        write_private(self._layout.secrets_path, document)
        holders = {name: kinds[kind] for name, kinds in KEYS_OF.items() if kind in kinds}
        before = {name: await self._n_taken(name, holders[name]) for name in holders}
        for name, setting in holders.items():
            prefix = load(name).env_prefix
            self._write(name, prefix, setting.upper(), {name: key_text(document, kind, setting)})
        deadline_s = time.monotonic() + TAKEN_TIMEOUT_S
        for name, setting in holders.items():
            while await self._n_taken(name, setting) <= before[name]:
                if time.monotonic() > deadline_s:
                    raise StackError(
                        f"{name} has not taken {kind} after {TAKEN_TIMEOUT_S:.0f} s: it may be"
                        " down. The old key still signs; once it runs, rotate again."
                    )
                await asyncio.sleep(_POLL_S)

    async def _n_taken(self, service: str, setting: str) -> float:
        port = self._processes[service]["admin_port"]
        line = f'{service}_secret_reloads_total{{outcome="taken",secret="{setting}"}}'
        return await metric(port, line) or 0.0


async def rotate(folder: Path, what: str, say: Callable[[str], None]) -> None:
    """Rotate a service's passwords or a kind of key.

    Raises:
        StackError: no stack runs, or what is asked for cannot be rotated.
    """
    with _alone(folder):
        rotation = Rotation(folder, say)
        await (rotation.keys(what) if what in KEY_KINDS else rotation.passwords(what))


async def retire(folder: Path, kind: str, say: Callable[[str], None]) -> None:
    """Forget a kind's old keys; see `Rotation.retire`."""
    with _alone(folder):
        await Rotation(folder, say).retire(kind)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of rotations: two at once would forget what the other wrote."""
    if not folder.is_dir():
        raise StackError(f"There is no stack in {folder}: `make up` makes one.")
    with (folder / "rotation.lock").open("a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
