"""The ad partner's stand-in: a real HTTPS server that can fail, hang, and remembers what came."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.eventually import eventually

TOKEN = "partner-token"


@dataclass(frozen=True)
class Delivery:
    """One request as it came."""

    key: str
    body: dict[str, Any]
    authorization: str | None


@dataclass
class Partner:
    """What came, and how it answers.

    Attributes:
        status: of the answers; 0 = none comes, though the request was taken.
    """

    url: str
    ca_file: Path
    status: int = 200
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a ledger is told so that it reports here."""
        return {
            "AD_LEDGER_PARTNER_URL": self.url,
            "AD_LEDGER_PARTNER_CA_FILE": str(self.ca_file),
            "AD_LEDGER_PARTNER_TOKEN": TOKEN,
            "AD_LEDGER_PARTNER_INTERVAL_S": "0.2",
            "AD_LEDGER_PARTNER_TIMEOUT_S": "2",
        }

    @property
    def batches(self) -> dict[str, dict[str, Any]]:
        """What is left after removing doubles by their key: the last of each counts."""
        return {delivery.key: delivery.body for delivery in self.deliveries}

    @property
    def steps(self) -> list[tuple[str, str]]:
        """(ticket, kind) of all batches, doubles removed."""
        return [
            (usage["ticket_id"], event["kind"])
            for body in self.batches.values()
            for usage in body["usages"]
            for event in usage["events"]
        ]

    @property
    def signals(self) -> list[dict[str, str]]:
        """The signals of all batches, doubles removed."""
        return [s["signal"] for body in self.batches.values() for s in body["signals"]]

    async def take(self, request: Request) -> Response:
        """Answer as told."""
        content = await request.body()
        self.deliveries.append(
            Delivery(
                request.headers["idempotency-key"],
                json.loads(content),
                request.headers.get("authorization"),
            )
        )
        if self.status == 0:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        return Response(status_code=self.status or 503)


@contextlib.asynccontextmanager
async def open_partner(folder: Path) -> AsyncIterator[Partner]:
    """Serve on a free port, in a thread, with a certificate of an authority of its own."""
    authority = trustme.CA(organization_name="ad partner's stand-in")
    ca_file, server_file = folder / "partner-ca.pem", folder / "partner.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server_file))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    partner = Partner(f"https://127.0.0.1:{listening.getsockname()[1]}/usage", ca_file)
    server = uvicorn.Server(
        uvicorn.Config(
            Starlette(routes=[Route("/usage", partner.take, methods=["POST"])]),
            ssl_certfile=str(server_file),
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
    )

    async def serve() -> None:
        await server.serve(sockets=[listening])
        await asyncio.sleep(0.5)  # TLS takes leave of whoever is still connected

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()

    async def serves() -> bool:
        return server.started

    try:
        await eventually(serves, within_s=10)
        yield partner
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 10)
        listening.close()
