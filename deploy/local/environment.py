"""The environment of each service on the local stack: all it is told, secrets included.

Secrets are passed by files that only this user can read (or by the environment, in tests) and never
on a command line, which every user of the machine can read.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local import kafka
from deploy.local.layout import write_private_text
from deploy.local.staff import register_path
from deploy.provision import ServiceDatabase
from services.chassis.declaration import Declaration
from services.privacy.chain import SigningKeys

HASHING = ("ad_ledger", "call_control")
"""Services whose staff look for numbers or addresses."""
RECEIPT_KEYS = {name: f"{name}_receipt_keys" for name in ("ad_ledger", "call_control", "consent")}
"""Service -> the kind of key that signs its receipts."""
KEYS_OF: Mapping[str, Mapping[str, str]] = {
    "ad_ledger": {
        "view_ticket_keys": "view_ticket_keys",
        RECEIPT_KEYS["ad_ledger"]: "receipt_keys",
    },
    "call_control": {RECEIPT_KEYS["call_control"]: "receipt_keys"},
    "consent": {
        RECEIPT_KEYS["consent"]: "receipt_keys",
        "consent_anchor_keys": "anchor_keys",
        "consent_proof_keys": "proof_keys",
    },
    "retention": {
        "retention_anchor_keys": "anchor_keys",
        **dict.fromkeys(RECEIPT_KEYS.values(), "receipt_public_keys"),
    },
    "gateway": {"view_ticket_keys": "view_ticket_keys", "visit_cookie_keys": "visit_cookie_keys"},
}
"""Service -> kind of signing key -> the setting by which it is told; nobody else knows them."""


def key_text(secrets: Mapping[str, Any], kind: str, setting: str) -> str:
    """Return the text of a setting that tells of keys: those of a kind, or all public ones."""
    if setting != "receipt_public_keys":
        return json.dumps(secrets[kind])
    public = {name: SigningKeys(secrets[kind]).public() for name, kind in RECEIPT_KEYS.items()}
    return json.dumps(public)


KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")


def port_names(declarations: Sequence[Declaration], n_kafka_nodes: int = 1) -> list[str]:
    """Return the names of the ports that a stack with these services needs."""
    names = ["postgres", *kafka.port_names(n_kafka_nodes)]
    for declared in declarations:
        if declared.http:
            names.append(declared.name)
        names.append(f"{declared.name}_admin")
        if declared.name == "call_control":
            names += ["call_control_sip", "trunk"]
    return names


def chosen_ports(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, int]:
    """Return the ports set by `STACK_PORT_<NAME>`.

    Raises:
        ValueError: one is no number.
    """
    result = {}
    for name in names:
        if text := environment.get(f"STACK_PORT_{name.upper()}"):
            result[name] = int(text)
    return result


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the services of one stack share.

    Attributes:
        user_prefix: before the names of Kafka's users.
        kafka_ca_file: set where Kafka speaks TLS.
        ports: by name, see `port_names`.
        secrets: see `Layout.secrets`.
        secrets_folder: has a folder of files for each service; None = secrets go by environment.
        hash_keys_folder: has a folder for each service that hashes (services/privacy).
        staff_folder: has the register of staff (`deploy.local.staff`).
        overrides: further settings by full name, e.g. `AD_LEDGER_LOG_LEVEL`; they win.
        source: folder whose packages the services are.
    """

    declarations: Sequence[Declaration]
    kafka_bootstrap: str
    kafka_prefix: str
    user_prefix: str = ""
    kafka_ca_file: Path | None = None
    databases: Mapping[str, ServiceDatabase]
    ports: Mapping[str, int]
    secrets: Mapping[str, Any]
    simulation: bool
    overrides: Mapping[str, str]
    source: Path
    secrets_folder: Path | None = None
    hash_keys_folder: Path | None = None
    staff_folder: Path | None = None

    def of(self, declared: Declaration) -> dict[str, str]:
        """Return the environment for serving; it holds no right to change tables."""
        settings = {
            "KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "KAFKA_PREFIX": self.kafka_prefix,
            "KAFKA_USERNAME": f"{self.user_prefix}{declared.name}",
            "ADMIN_PORT": str(self.ports[f"{declared.name}_admin"]),
            "SIMULATION": "true" if self.simulation else "false",
        }
        if declared.http:
            settings["HTTP_PORT"] = str(self.ports[declared.name])
        if self.kafka_ca_file is not None:
            settings["KAFKA_CA_FILE"] = str(self.kafka_ca_file)
        if self.secrets_folder is None:
            settings |= self.secrets_of(declared)
        else:
            settings["SECRETS_FOLDER"] = str(self.secrets_folder / declared.name)
        if self.hash_keys_folder is not None and declared.name in HASHING:
            settings["HASH_KEYS_FOLDER"] = str(self.hash_keys_folder / declared.name)
        if self.staff_folder is not None and declared.database:
            settings["STAFF_REGISTER_PATH"] = str(register_path(self.staff_folder))
        settings |= self._own(declared.name)
        return self._with_prefix(declared, settings)

    def secrets_of(self, declared: Declaration) -> dict[str, str]:
        """Return what this service alone may know, by the setting's name."""
        found = {
            "KAFKA_PASSWORD": self.secrets["kafka_passwords"][f"{self.user_prefix}{declared.name}"]
        }
        if declared.database:
            found["DATABASE_URL"] = self.databases[declared.name].url
        for kind, setting in KEYS_OF.get(declared.name, {}).items():
            found[setting.upper()] = key_text(self.secrets, kind, setting)
        return found

    def write_secrets(self) -> None:
        """Write each service's files; whoever runs reads them anew when it next needs them."""
        assert self.secrets_folder is not None
        for declared in self.declarations:
            folder = self.secrets_folder / declared.name
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, text in self.secrets_of(declared).items():
                write_private_text(folder / f"{declared.env_prefix}{name}".lower(), text)
            if declared.database:
                # for a person, and no process of the stack
                duties = self.secrets_folder / "legal_duty"
                duties.mkdir(mode=0o700, exist_ok=True)
                write_private_text(duties / declared.name, self.databases[declared.name].duty_url)
            if self.hash_keys_folder is not None and declared.name in HASHING:
                (self.hash_keys_folder / declared.name).mkdir(0o700, parents=True, exist_ok=True)

    def of_migration(self, declared: Declaration) -> dict[str, str]:
        """Return the environment for `python -m services.<name> migrate`."""
        url = self.databases[declared.name].migrate_url
        return self.of(declared) | {f"{declared.env_prefix}MIGRATE_DATABASE_URL": url}

    def _with_prefix(self, declared: Declaration, settings: Mapping[str, str]) -> dict[str, str]:
        named = {f"{declared.env_prefix}{name}": value for name, value in settings.items()}
        own = {
            name: value
            for name, value in self.overrides.items()
            if name.startswith(declared.env_prefix)
        }
        return base_environment(self.source) | named | own

    def _own(self, name: str) -> dict[str, str]:
        """Return what only this service is told."""
        ports = self.ports
        match name:
            case "gateway":
                addresses = {
                    f"{other.upper()}_URL": f"http://127.0.0.1:{ports[other]}"
                    for other in ("ad_ledger", "call_control", "consent", "retention")
                    if other in ports
                }
                return addresses | {"PUBLIC_ORIGIN": f"http://127.0.0.1:{ports['gateway']}"}
            case "call_control":
                return {
                    "SIP_HOST": "127.0.0.1",
                    "SIP_PORT": str(ports["call_control_sip"]),
                    "TRUNK_HOST": "127.0.0.1",
                    "TRUNK_PORT": str(ports["trunk"]),
                }
            case _:
                return {}


def base_environment(source: Path) -> dict[str, str]:
    """Return what any Python program of the stack needs, and nothing else of the user's."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {
        "PYTHONPATH": str(source),
        "PYTHONUNBUFFERED": "1",
        "TZ": "UTC",
        "VIRTUAL_ENV": sys.prefix,
    }
