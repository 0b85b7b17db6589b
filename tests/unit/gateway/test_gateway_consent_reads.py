"""What the gateway reads from consent (R-F1, R-F3)."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from services.gateway.metrics import Metrics
from services.gateway.reads import AwayError, Reads

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def reads(status: int, url: str | None = "http://consent") -> Reads:
    def answer(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://consent/v1/catalogue?language=de"
        return httpx.Response(status, content=b'{"b":1, "a":2}')

    return Reads(
        httpx.AsyncClient(transport=httpx.MockTransport(answer)),
        ad_ledger_url="http://ledger",
        call_control_url="http://calls",
        consent_url=url,
        metrics=Metrics(CollectorRegistry()),
    )


async def test_the_very_bytes_come_through() -> None:
    """R-F3: receipts are signed over bytes, so none may change on the way."""
    found = await reads(200).consent("/v1/catalogue", {"language": "de"}, TRACE)
    assert found == b'{"b":1, "a":2}'


@pytest.mark.parametrize(("status", "url"), [(503, "http://consent"), (200, None)])
async def test_away_is_said(status: int, url: str | None) -> None:
    """R-F3: without consent nothing is made up."""
    with pytest.raises(AwayError):
        await reads(status, url).consent("/v1/catalogue", {"language": "de"}, TRACE)
