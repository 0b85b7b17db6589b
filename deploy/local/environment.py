"""The environment of each service on the local stack: all it is told, secrets included.

Passed by environment and never on a command line, which every user of the machine can read.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.provision import ServiceDatabase
from services.chassis.declaration import Declaration

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")


def port_names(declarations: Sequence[Declaration]) -> list[str]:
    """Return the names of the ports that a stack with these services needs."""
    names = ["postgres", "kafka", "kafka_controller"]
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
        ports: by name, see `port_names`.
        secrets: see `Layout.secrets`.
        overrides: further settings by full name, e.g. `AD_LEDGER_LOG_LEVEL`; they win.
        source: folder whose packages the services are.
    """

    kafka_bootstrap: str
    kafka_prefix: str
    databases: Mapping[str, ServiceDatabase]
    ports: Mapping[str, int]
    secrets: Mapping[str, Any]
    simulation: bool
    overrides: Mapping[str, str]
    source: Path

    def of(self, declared: Declaration) -> dict[str, str]:
        """Return the environment for serving; it holds no right to change tables."""
        settings = {
            "KAFKA_BOOTSTRAP": self.kafka_bootstrap,
            "KAFKA_PREFIX": self.kafka_prefix,
            "ADMIN_PORT": str(self.ports[f"{declared.name}_admin"]),
            "SIMULATION": "true" if self.simulation else "false",
        }
        if declared.http:
            settings["HTTP_PORT"] = str(self.ports[declared.name])
        if declared.database:
            settings["DATABASE_URL"] = self.databases[declared.name].url
        settings |= self._own(declared.name)
        return self._with_prefix(declared, settings)

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
            case "ad_ledger":
                return {"VIEW_TICKET_KEYS": json.dumps(self.secrets["view_ticket_keys"])}
            case "gateway":
                addresses = {
                    f"{other.upper()}_URL": f"http://127.0.0.1:{ports[other]}"
                    for other in ("ad_ledger", "call_control")
                    if other in ports
                }
                return addresses | {
                    "VIEW_TICKET_KEYS": json.dumps(self.secrets["view_ticket_keys"]),
                    "VISIT_COOKIE_KEYS": json.dumps(self.secrets["visit_cookie_keys"]),
                    "PUBLIC_ORIGIN": f"http://127.0.0.1:{ports['gateway']}",
                }
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
