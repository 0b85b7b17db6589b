"""Certificates of a local stack that is asked to speak TLS: an authority of its own, one server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from deploy.local.layout import Layout, read_document, write_private_text


@dataclass(frozen=True)
class Certificates:
    """Files of one stack.

    Attributes:
        ca_file: what clients trust.
        server_file: key, certificate and authority of the servers (PEM); private.
    """

    ca_file: Path
    server_file: Path

    @classmethod
    def _at(cls, layout: Layout) -> "Certificates":
        folder = layout.folder / "certificates"
        return cls(folder / "ca.pem", folder / "server.pem")

    @classmethod
    def made(cls, layout: Layout) -> "Certificates | None":
        """Return the stack's certificates if it runs with TLS."""
        found = cls._at(layout)
        uses_tls = read_document(layout.state_path).get("kafka_tls", False)
        return found if uses_tls else None

    @classmethod
    def of(
        cls, layout: Layout, names: Sequence[str] = ("127.0.0.1", "localhost")
    ) -> "Certificates":
        """Return the stack's certificates, made at the first need.

        Args:
            layout: the stack's.
            names: the servers' names and addresses; later calls do not change them.
        """
        found = cls._at(layout)
        if not found.server_file.exists():
            found.ca_file.parent.mkdir(mode=0o700, exist_ok=True)
            authority = trustme.CA(organization_name="local stack")
            authority.cert_pem.write_to_path(str(found.ca_file))
            server = authority.issue_cert(*names)
            parts = [_pkcs8(server.private_key_pem.bytes())]
            parts += [part.bytes() for part in server.cert_chain_pems]
            parts.append(authority.cert_pem.bytes())
            write_private_text(found.server_file, b"".join(parts).decode("ascii"))
        return found


def _pkcs8(key: bytes) -> bytes:
    """Return a key as Java reads it."""
    return serialization.load_pem_private_key(key, password=None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
