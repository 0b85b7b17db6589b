"""Reads from the services by GET (the gateway writes only by Kafka)."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, TypeVar
from uuid import UUID

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from schemas.call import CallStatus
from schemas.wire import Milliseconds, Reason
from services.chassis import logs, trace
from services.gateway.metrics import Metrics

M = TypeVar("M", bound=BaseModel)
_ANSWER_BYTES_MAX = 65_536
_CONSENT_BYTES_MAX = 1_048_576
"""256 signed receipts, or a catalogue."""


class Balance(BaseModel):
    """A visitor's credit in whole milliseconds of talk."""

    model_config = ConfigDict(frozen=True)

    available_ms: Milliseconds
    reserved_ms: Milliseconds


class CallView(BaseModel):
    """A call as its visitor may see it; no number in it."""

    model_config = ConfigDict(frozen=True)

    call_id: UUID
    status: CallStatus
    reason: Reason | None = None
    reserved_ms: Milliseconds | None = None
    talk_ms: Milliseconds | None = None
    connected_at: datetime | None = None
    ended_at: datetime | None = None


class ThreatView(BaseModel):
    """Until when full addresses may be kept; None = there is no threat."""

    model_config = ConfigDict(frozen=True)

    kept_until: AwareDatetime | None


class Offer(BaseModel):
    """One published version.

    Attributes:
        wordings: language -> version of its wording.
        recipients: purpose -> ids of who is named for it.
    """

    model_config = ConfigDict(frozen=True)

    wordings: Mapping[str, str]
    recipients: Mapping[str, frozenset[str]]


class OffersView(BaseModel):
    """What consent answers.

    Attributes:
        versions: by name, old ones too: who was shown one may still answer it.
        recipients: purpose -> everybody about whom something can be said by name.
    """

    model_config = ConfigDict(frozen=True)

    versions: Annotated[Mapping[str, Offer], Field(min_length=1)]
    recipients: Mapping[str, frozenset[str]]


class AwayError(Exception):
    """The service did not answer, or not as agreed."""


class Reads:
    """The read APIs of the ledger and of call control; each answer is bounded in time and size."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        ad_ledger_url: str,
        call_control_url: str,
        consent_url: str | None = None,
        retention_url: str | None = None,
        metrics: Metrics,
    ) -> None:
        """Take the client (with its time-outs) and where the services listen."""
        self._client = client
        self._ad_ledger_url = ad_ledger_url
        self._call_control_url = call_control_url
        self._consent_url = consent_url
        self._retention_url = retention_url
        self._metrics = metrics

    async def balance(self, visitor_id: UUID, traceparent: str) -> Balance:
        """Return a visitor's balance.

        Raises:
            AwayError: the ledger is away.
        """
        url = f"{self._ad_ledger_url}/v1/visitors/{visitor_id}/balance"
        found = await self._get("ad_ledger", url, {}, traceparent, Balance)
        # who never earned anything has nothing
        return found or Balance(available_ms=0, reserved_ms=0)

    async def call(self, call_id: UUID, visitor_id: UUID, traceparent: str) -> CallView | None:
        """Return a visitor's call; None when there is none of that id that is theirs.

        Raises:
            AwayError: call control is away.
        """
        url = f"{self._call_control_url}/v1/calls/{call_id}"
        owner = {"visitor_id": str(visitor_id)}
        return await self._get("call_control", url, owner, traceparent, CallView)

    async def consent(self, path: str, query: dict[str, str], traceparent: str) -> bytes | None:
        """Return what consent answers, in its very bytes: receipts are signed over them.

        None: it has no such thing.

        Raises:
            AwayError: consent is away.
        """
        if self._consent_url is None:
            self._metrics.reads.labels("consent", "away").inc()
            raise AwayError("consent")
        try:
            async with self._client.stream(
                "GET",
                f"{self._consent_url}{path}",
                params=query,
                headers={"traceparent": trace.child(traceparent)},
            ) as response:
                if response.status_code == httpx.codes.NOT_FOUND:
                    self._metrics.reads.labels("consent", "missing").inc()
                    return None
                response.raise_for_status()
                found = await _body(response, _CONSENT_BYTES_MAX)
        except (httpx.HTTPError, AwayError) as error:
            self._metrics.reads.labels("consent", "away").inc()
            logs.get().warning("read failed", name="consent", **logs.describe(error))
            raise AwayError("consent") from None
        self._metrics.reads.labels("consent", "found").inc()
        return found

    async def offers(self, traceparent: str) -> OffersView:
        """Return what each published catalogue offers.

        Raises:
            AwayError: consent is away.
        """
        content = await self.consent("/v1/offers", {}, traceparent)
        try:
            return OffersView.model_validate_json(content or b"")
        except ValidationError:
            raise AwayError("consent") from None

    async def threat(self, traceparent: str) -> ThreatView:
        """Return until when full addresses may be kept.

        Raises:
            AwayError: retention is away.
        """
        if self._retention_url is None:
            return ThreatView(kept_until=None)
        url = f"{self._retention_url}/v1/threat"
        found = await self._get("retention", url, {}, traceparent, ThreatView)
        return found or ThreatView(kept_until=None)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _get(
        self, service: str, url: str, query: dict[str, str], traceparent: str, model: type[M]
    ) -> M | None:
        try:
            async with self._client.stream(
                "GET", url, params=query, headers={"traceparent": trace.child(traceparent)}
            ) as response:
                if response.status_code == httpx.codes.NOT_FOUND:
                    self._metrics.reads.labels(service, "missing").inc()
                    return None
                response.raise_for_status()
                found = model.model_validate_json(await _body(response))
        except (httpx.HTTPError, ValidationError, AwayError) as error:
            self._metrics.reads.labels(service, "away").inc()
            logs.get().warning("read failed", name=service, **logs.describe(error))
            raise AwayError(service) from None
        self._metrics.reads.labels(service, "found").inc()
        return found


async def _body(response: httpx.Response, bytes_max: int = _ANSWER_BYTES_MAX) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > bytes_max:
            raise AwayError("answer too large")
    return bytes(body)
