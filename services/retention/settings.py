"""Settings of this service; the environment's names begin with `RETENTION_`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings

DEFAULT_SCHEDULE = Path(__file__).with_name("schedule.json")


class Settings(ServiceSettings):
    """Where the schedule is and how often it is acted upon."""

    model_config = SettingsConfigDict(env_prefix="RETENTION_", frozen=True, extra="ignore")

    schedule_path: Path = DEFAULT_SCHEDULE
    holders_path: Path | None = None
    """Register of systems outside that keep records (`holders.py`); None = there are none."""
    sweep_interval_s: float = Field(default=3600.0, gt=0, le=3600)
    """At most an hour: the rules' margin has room for no more."""
    order_overdue_after_s: float = Field(default=900.0, gt=0)
    """Silence for longer than this is an alarm (D3)."""
    order_watch_interval_s: float = Field(default=15.0, gt=0)
    review_max_days: int = Field(default=366, ge=1, le=366)
    """No review date of a hold or restriction lies further ahead; the database has 366 too."""
    topic_age_interval_s: float = Field(default=60.0, gt=0)
    receipt_public_keys: SecretStr
    """JSON, who may sign receipts: `services/privacy/receipts.py`. Replaced like a secret."""
    anchor_keys: SecretStr
    """JSON `{"<key id>": "<64 hex digits>"}`, Ed25519; the first signs the evidence's anchors."""
