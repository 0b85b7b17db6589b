"""Settings of the ledger (`AD_LEDGER_…`)."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """The chassis' settings and the ledger's own."""

    model_config = SettingsConfigDict(env_prefix="AD_LEDGER_", frozen=True, extra="ignore")

    view_ticket_keys: SecretStr
    """JSON `{"<key id>": "<64 hex digits>"}`; all verify."""
    expiry_interval_s: float = Field(default=5.0, gt=0)
    """How often lots past their life and reservations past their lease are ended."""
    hash_keys_folder: Path | None = None
    """Of the keys under which the access log hashes whom staff looked for; mode 0700."""
    receipt_keys: SecretStr
    """JSON `{"<key id>": "<64 hex digits>"}`, Ed25519; the first signs retention's receipts."""
