"""Who we are to Kafka: the one place that knows how a client logs in (SASL/SCRAM, TLS)."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from faststream.security import SASLScram512
from typing_extensions import override

from services.chassis.secret import Secret

MECHANISM = "SCRAM-SHA-512"
FETCH_WAIT_MAX_MS = 50
"""How long a broker may sit on a fetch that finds nothing; aiokafka's 500 cost half a second.

aiokafka has one fetch under way for each broker. While a poll of more than 200 ms is worked off it
fetches the partitions of which nothing waits: those of quiet topics, that is. Until that comes back
empty nothing else is fetched, so the next poll is as long, and each one after it (ADR 0041).
"""


class _CurrentPassword(str):
    """A password that aiokafka reads anew at each login: it encodes it just then, and only then."""

    __slots__ = ("_secret",)
    _secret: Secret

    def __new__(cls, secret: Secret) -> Self:
        # the text itself is a mask: whatever prints the client's settings prints this
        made = super().__new__(cls, "**********")
        made._secret = secret
        return made

    @override
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self._secret.read().encode(encoding, errors)


@dataclass(frozen=True, kw_only=True)
class KafkaLogin:
    """Where Kafka is and as whom to log in.

    Attributes:
        bootstrap: host:port, several with commas.
        ca_file: certificates of the authority that signed the brokers'; None = no TLS, which is
            for a loopback only.
    """

    bootstrap: str
    username: str
    password: Secret
    ca_file: Path | None = None

    @property
    def protocol(self) -> str:
        """Kafka's word for how we speak to it."""
        return "SASL_PLAINTEXT" if self.ca_file is None else "SASL_SSL"

    def options(self) -> dict[str, Any]:
        """Return the keywords of every aiokafka client: producer, consumer, admin."""
        return {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.protocol,
            "sasl_mechanism": MECHANISM,
            "sasl_plain_username": self.username,
            "sasl_plain_password": _CurrentPassword(self.password),
            "ssl_context": self._ssl_context(),
        }

    def security(self) -> SASLScram512:
        """Return the same for FastStream."""
        context = self._ssl_context()
        return SASLScram512(
            username=self.username,
            password=_CurrentPassword(self.password),
            ssl_context=context,
            use_ssl=context is not None,
        )

    def _ssl_context(self) -> ssl.SSLContext | None:
        return None if self.ca_file is None else ssl.create_default_context(cafile=self.ca_file)
