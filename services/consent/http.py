"""What the gateway may read."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from fastapi import FastAPI, HTTPException, Response

from schemas.consent import ConsentStateV1
from services.chassis.context import Context
from services.consent import catalogues, domain, receipts
from services.consent.handlers import known_recipients
from services.consent.store import Store
from services.consent.wire import to_wire


def build_http(
    transaction: Callable[[], AbstractAsyncContextManager[Context[Store]]],
    issuer: receipts.Issuer,
) -> FastAPI:
    """Return the app; `transaction` opens one, `issuer` signs receipts."""
    app = FastAPI(title="consent", docs_url=None, redoc_url=None)

    @app.get("/v1/visitors/{visitor_id}/consent")
    async def consent_of(visitor_id: UUID) -> ConsentStateV1:
        """Return what is in force for a visitor; no decision = nothing in force."""
        async with transaction() as ctx:
            return to_wire(visitor_id, domain.states_of(await ctx.store.decisions_of(visitor_id)))

    @app.get("/v1/visitors/{visitor_id}/receipts")
    async def receipts_of(visitor_id: UUID) -> Response:
        """Return the signed receipts of a visitor's decisions; of a withdrawal a termination."""
        async with transaction() as ctx:
            recorded, now = await ctx.store.recorded_of(visitor_id), ctx.now
        # in the very bytes that were signed, so that others can verify without our code
        signed = map(receipts.as_json, receipts.receipts(recorded, issuer, now))
        content = b"[" + b",".join(receipts.newest(list(signed))) + b"]"
        return Response(content, media_type="application/ld+json")

    @app.get("/v1/visitors/{visitor_id}/consent-mode")
    async def consent_mode_of(visitor_id: UUID) -> dict[str, str]:
        """Return Google Consent Mode v2's keys as the visitor's choices have them."""
        async with transaction() as ctx:
            states = domain.states_of(await ctx.store.decisions_of(visitor_id))
        # Google's keys know no single recipients
        return receipts.consent_mode(
            {state.purpose: state.in_force for state in states if state.recipient is None}
        )

    @app.get("/v1/visitors/{visitor_id}/question")
    async def question_of(visitor_id: UUID) -> dict[str, Any]:
        """Return whether the visitor is to be asked, and about which version (R-F2).

        Who has answered is asked again only about what widens: a recipient, purpose or reach more.
        Who closed the question, or whose browser objects, has been heard.
        """
        async with transaction() as ctx:
            recorded, now = await ctx.store.recorded_of(visitor_id), ctx.now
        current = catalogues.known().in_force(now)
        heard = [one for one in recorded if one.verdict is not domain.Verdict.SERVED]
        return {"is_to_be_asked": _asks(heard, now), "catalogue_version": current.version}

    @app.get("/v1/receipt-keys")
    async def receipt_keys() -> dict[str, str]:
        """Return the public keys (Ed25519, hex) by which receipts verify."""
        return issuer.keys.public()

    _serve_catalogues(app, transaction)
    _serve_offers(app)
    return app


def _serve_catalogues(
    app: FastAPI, transaction: Callable[[], AbstractAsyncContextManager[Context[Store]]]
) -> None:
    @app.get("/v1/catalogue")
    async def catalogue_in_force(language: Literal["de", "en"]) -> dict[str, Any]:
        """Return the catalogue in force as it is shown in a language, with its hash."""
        async with transaction() as ctx:
            now = ctx.now
        return _shown(catalogues.known().in_force(now), language)

    @app.get("/v1/catalogues/{version}")
    async def catalogue_of(version: str, language: Literal["de", "en"]) -> dict[str, Any]:
        """Return a published version exactly as it was shown (R-F2)."""
        found = catalogues.known().by_version.get(version)
        if found is None:
            raise HTTPException(404, "no such catalogue was published")
        return _shown(found, language)


def _serve_offers(app: FastAPI) -> None:
    @app.get("/v1/offers")
    async def offers() -> dict[str, Any]:
        """Return what each published version offers to agree to, and who has a name (R-F2).

        For the door: what is not in here would be refused by `domain.judge`.
        """
        named: dict[str, list[str]] = {}
        for purpose, recipient in sorted(known_recipients()):
            named.setdefault(purpose, []).append(recipient)
        return {
            "versions": {
                version: {"wordings": one.wordings, "recipients": one.recipients}
                for version, one in catalogues.known().by_version.items()
            },
            "recipients": named,
        }


def _asks(heard: Sequence[receipts.Recorded], now: datetime) -> bool:
    """Whether to ask somebody; `heard`: what they said so far."""
    if not heard:
        return True
    known = catalogues.known()
    last = max(heard, key=lambda one: one.decided_at)
    # who said it without a question (a withdrawal in one step) knew what was in force
    answered = known.by_version.get(last.catalogue_version or "") or known.in_force(last.decided_at)
    return known.asks_again(answered, now)


def _shown(catalogue: catalogues.Catalogue, language: str) -> dict[str, Any]:
    return {**catalogue.shown(language), "hash": catalogue.hash(language)}
