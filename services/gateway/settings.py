"""What the gateway can be told; the environment's names begin with `GATEWAY_`."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from schemas.view_ticket import KeyRing
from services.chassis.settings import ServiceSettings

VISIT_AGE_MAX_S = 6 * 24 * 3600
IDLE_MAX_S = 1800
"""R-D1: the use of the page ends after 30 idle minutes; nothing is remembered for longer."""


def _are_keys(value: SecretStr) -> SecretStr:
    KeyRing.from_json(value.get_secret_value())
    return value


def _are_networks(value: str) -> str:
    for part in filter(None, value.split(",")):
        ipaddress.ip_network(part.strip())
    return value


Keys = Annotated[SecretStr, AfterValidator(_are_keys)]
BaseUrl = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+$")]


class Settings(ServiceSettings):
    """Keys, neighbours and limits. Rates are per second, bursts are how many come at once."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="GATEWAY_")

    view_ticket_keys: Keys
    visit_cookie_keys: Keys
    ad_ledger_url: BaseUrl
    call_control_url: BaseUrl
    consent_url: BaseUrl | None = None
    """Not set = what is read from consent is answered by 503 `consent_away`."""
    retention_url: BaseUrl | None = None
    """Says whether a threat is assessed; not set = none is: no full address leaves the gateway."""
    public_origin: BaseUrl
    """Where browsers find us; any other Origin is refused, and http:// leaves `Secure` off."""
    trusted_proxies: Annotated[str, AfterValidator(_are_networks)] = ""
    """Networks, with commas, whose X-Forwarded-For is believed; none by default."""

    partner_tag_url: Annotated[str | None, Field(pattern=r"^https://[^\s@]+$")] = None
    """The ad partner's tag, for pages whose visitor chose an ad; not set = ads of ours only."""

    visit_age_max_s: int = Field(default=VISIT_AGE_MAX_S, ge=60, le=VISIT_AGE_MAX_S)
    kafka_timeout_s: float = Field(default=5.0, gt=0)
    read_timeout_s: float = Field(default=2.0, gt=0)
    request_timeout_s: float = Field(default=10.0, gt=0)
    media_timeout_s: float = Field(default=120.0, gt=0)
    body_bytes_max: int = Field(default=65_536, ge=1024)

    address_rate_per_s: float = Field(default=50.0, gt=0)
    address_burst: int = Field(default=500, ge=1)
    visitor_rate_per_s: float = Field(default=5.0, gt=0)
    visitor_burst: int = Field(default=50, ge=1)
    remembered_max: int = Field(default=100_000, ge=10)
    """How many addresses and visitors the rate limits remember at most; the oldest go first."""
    idle_s: float = Field(default=IDLE_MAX_S, gt=0, le=IDLE_MAX_S)

    sockets_max: int = Field(default=1000, ge=1)
    sockets_per_visitor_max: int = Field(default=5, ge=1)
    socket_queue_max: int = Field(default=64, ge=1)
    socket_message_bytes_max: int = Field(default=1024, ge=16)
    socket_rate_per_s: float = Field(default=2.0, gt=0)
    socket_burst: int = Field(default=20, ge=1)

    @property
    def cookie_is_secure(self) -> bool:
        """Whether the visit cookie is for TLS only; not when the page itself comes without."""
        return not self.public_origin.startswith("http://")

    @property
    def proxy_networks(self) -> tuple[str, ...]:
        """Networks of the proxies in front of us."""
        return tuple(part.strip() for part in self.trusted_proxies.split(",") if part.strip())
