"""Settings of call control (`CALL_CONTROL_…`)."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings


class Settings(ServiceSettings):
    """The chassis' settings and call control's own; durations in the unit that the name says."""

    model_config = SettingsConfigDict(env_prefix="CALL_CONTROL_", frozen=True, extra="ignore")

    sip_host: str = "127.0.0.1"
    sip_port: int = Field(ge=1, le=65535)
    trunk_host: str = "127.0.0.1"
    trunk_port: int = Field(ge=1, le=65535)
    trunk_username: str | None = None
    trunk_password: SecretStr | None = None
    trunk_routes: tuple[str, ...] = ()
    """Other next hops by number or prefix: `["+4930=127.0.0.1:5071"]`; the longest match wins."""
    caller_number: str = Field(default="+493023125000", pattern=r"^\+[1-9][0-9]{5,14}$")
    """Shown to both ends: a number that the platform has the right to use (§ 120 TKG)."""
    ring_a_timeout_s: int = Field(default=30, ge=1, le=120)
    ring_b_timeout_s: int = Field(default=45, ge=1, le=120)
    no_reply_timeout_ms: int = Field(default=5000, ge=1, le=31_000)
    ack_guard_ms: int = Field(default=3000, ge=1, le=20_000)
    session_expires_s: int = Field(default=180, ge=0, le=7200)
    calls_max: int = Field(default=2000, ge=1)
    request_age_max_s: int = Field(default=60, ge=5, le=600)
    """A request that was not dialled for so long is given up: nobody waits for it any more."""
    talk_max_ms: int = Field(default=3_600_000, ge=1000, le=4 * 3_600_000)
    """The longest talk that a call may reserve, whatever credit there is."""
    outage_margin_s: int = Field(default=3600, ge=600, le=12 * 3600)
    """How long a reservation outlives ring limits and talk: the longest outage that is settled.

    At least the age that a request may reach before it is dialled. With the longest talk it stays
    under the 22 hours between the end of a credit's life and the drop of its day.
    """
    holder_lease_s: float = Field(default=8.0, gt=2)
    """A process silent for so long has lost its calls to its peers, and must have ended itself."""
    drain_s: float = Field(default=2.0, ge=0)
    """How long calls may go on after SIGTERM before they are ended."""
    hash_keys_folder: Path | None = None
    """Of the keys under which the access log hashes whom staff looked for; mode 0700."""
    receipt_keys: SecretStr
    """JSON `{"<key id>": "<64 hex digits>"}`, Ed25519; the first signs retention's receipts."""
