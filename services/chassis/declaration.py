"""What a service says of itself to whoever deploys it: nothing else is configured by hand."""

import importlib
from dataclasses import dataclass
from pathlib import Path

SERVICES = ("ad_ledger", "call_control", "consent", "retention", "gateway")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A service's card for deployment.

    Attributes:
        name: package below `services`, database, role and prefix of its settings.
        database: whether it has one (with migrations beside its code).
        http: whether it serves HTTP besides its admin port.
        watches_topics: whether it asks how old the records of every topic are, without reading
            them; in a simulation it may also have them deleted.
    """

    name: str
    database: bool
    http: bool
    watches_topics: bool = False

    @property
    def env_prefix(self) -> str:
        """Prefix of its settings in the environment, e.g. `AD_LEDGER_`."""
        return f"{self.name.upper()}_"

    @property
    def migration_folders(self) -> tuple[Path, ...]:
        """Folders of SQL migrations in the order in which they are applied."""
        if not self.database:
            return ()
        services = Path(__file__).resolve().parent.parent
        folders = (services / package / "migrations" for package in ("chassis", "privacy"))
        return (*(f for f in folders if f.is_dir()), services / self.name / "migrations")


def load(name: str) -> Declaration:
    """Return the declaration of the service of that name."""
    module = importlib.import_module(f"services.{name}.declaration")
    declaration = module.DECLARATION
    assert isinstance(declaration, Declaration)
    return declaration


def load_all() -> tuple[Declaration, ...]:
    """Return all services' declarations, in the order in which they are started."""
    return tuple(load(name) for name in SERVICES)
