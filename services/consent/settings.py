"""Settings of this service; the environment's names begin with `CONSENT_`."""

from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """Nothing beyond what every service can be told."""

    model_config = SettingsConfigDict(env_prefix="CONSENT_", frozen=True, extra="ignore")
