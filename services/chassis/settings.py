"""Settings: read once at the start from the environment and the folder of secrets; frozen.

A secret is an environment variable (`AD_LEDGER_KAFKA_PASSWORD`) or a file of that name in small
letters below `<SERVICE>_SECRETS_FOLDER`, as orchestrators mount them; the variable wins. Only what
came from a file can be rotated while the process runs.
"""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chassis.kafka import KafkaLogin
from services.chassis.secret import Secret


class ServiceSettings(BaseSettings):
    """What every service can be told; a service adds its own in a subclass with its prefix."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    instance: str = Field(default="0", pattern=r"^[a-z0-9\-]{1,32}$")
    kafka_bootstrap: str
    kafka_prefix: str = ""
    kafka_username: str = Field(min_length=1)
    kafka_password: SecretStr
    kafka_ca_file: Path | None = None
    """Set where brokers are reached by TLS: the authority that signed their certificates."""
    secrets_folder: Path | None = None
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
        """Read the environment and the folder of secrets.

        Raises:
            pydantic.ValidationError: naming each setting that is missing or wrong.
        """
        folder = os.environ.get(f"{cls._env_prefix()}SECRETS_FOLDER")
        if folder and not Path(folder).is_dir():
            raise ValueError("the folder of secrets does not exist")
        return cls(_secrets_dir=folder or None)

    @classmethod
    def _env_prefix(cls) -> str:
        return cls.model_config.get("env_prefix", "")

    @property
    def kafka(self) -> KafkaLogin:
        """Where Kafka is and who we are to it."""
        return KafkaLogin(
            bootstrap=self.kafka_bootstrap,
            username=self.kafka_username,
            password=self.secret("kafka_password"),
            ca_file=self.kafka_ca_file,
        )

    def secret(self, name: str) -> Secret:
        """Return a secret setting that follows its file, if it came from one."""
        value: SecretStr = getattr(self, name)
        full_name = f"{self._env_prefix()}{name}"
        path = self.secrets_folder / full_name.lower() if self.secrets_folder else None
        came_from_file = path and full_name.upper() not in os.environ and path.is_file()
        return Secret(value.get_secret_value(), path if came_from_file else None)

    def redacted(self) -> dict[str, Any]:
        """Return all settings for the log; secrets are stars."""
        return self.model_dump(mode="json")
