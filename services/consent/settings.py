"""Settings of this service; the environment's names begin with `CONSENT_`."""

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """Nothing beyond what every service can be told."""

    model_config = SettingsConfigDict(env_prefix="CONSENT_", frozen=True, extra="ignore")
    receipt_keys: SecretStr
    """JSON `{"<key id>": "<64 hex digits>"}`, Ed25519; the first signs retention's receipts."""
