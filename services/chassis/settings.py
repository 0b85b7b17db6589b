"""Settings: read once at the start from the environment, frozen, redacted when printed."""

from typing import Any, Self

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What every service can be told; a service adds its own in a subclass with its prefix."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    instance: str = Field(default="0", pattern=r"^[a-z0-9\-]{1,32}$")
    kafka_bootstrap: str
    kafka_prefix: str = ""
    database_url: SecretStr = SecretStr("")
    database_pool_max: int = Field(default=8, ge=3, le=64)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(ge=0, le=65535)
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=0, ge=0, le=65535)
    simulation: bool = False
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    batch_records_max: int = Field(default=1000, ge=1, le=2000)
    batch_wait_ms: int = Field(default=50, ge=1, le=1000)
    retry_budget_s: float = Field(default=60.0, gt=0, le=140)
    """Under half of Kafka's max.poll.interval (300 s), so that retrying never costs the group."""
    stall_timeout_s: float = Field(default=30.0, gt=0)
    session_timeout_ms: int = Field(default=10_000, ge=6_000)
    poison_run_max: int = Field(default=20, ge=1)
    invariant_interval_s: float = Field(default=15.0, gt=0)
    stop_timeout_s: float = Field(default=10.0, gt=0)
    transaction_idle_max_s: float = Field(default=20.0, gt=0)
    """A handler computes between two statements for less; a frozen process must lose its locks."""

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            pydantic.ValidationError: naming each setting that is missing or wrong.
        """
        return cls()

    def redacted(self) -> dict[str, Any]:
        """Return all settings for the log; secrets are stars."""
        return self.model_dump(mode="json")
