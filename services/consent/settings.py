"""Settings of this service; the environment's names begin with `CONSENT_`."""

from typing import Annotated

from pydantic import AfterValidator, SecretStr
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings
from services.privacy.chain import SigningKeys


def _are_keys(value: SecretStr) -> SecretStr:
    SigningKeys.from_json(value.get_secret_value())
    return value


class Settings(ServiceSettings):
    """What signs the anchors of the chain of records (ADR 0022)."""

    model_config = SettingsConfigDict(env_prefix="CONSENT_", frozen=True, extra="ignore")

    anchor_keys: Annotated[SecretStr, AfterValidator(_are_keys)]
    """Ed25519 seeds, `{key id: 64 hex digits}`; the first signs, all verify."""

    receipt_keys: SecretStr
    """JSON `{"<key id>": "<64 hex digits>"}`, Ed25519; the first signs retention's receipts."""
