"""What may be read about orders: counts only (D4)."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from services.chassis.clock import Clock
from services.chassis.context import Context
from services.privacy import calendar
from services.retention.schedule import Schedule
from services.retention.store import Store
from services.retention.wire import describe, describe_sweep


def build_http(
    transaction: Callable[[], AbstractAsyncContextManager[Context[Store]]],
    rules: Schedule,
    clock: Clock,
) -> FastAPI:
    """Return the app; `transaction` opens one."""
    app = FastAPI(title="retention", docs_url=None, redoc_url=None)

    @app.get("/v1/orders/{order_id}", response_model=None)
    async def order(order_id: UUID) -> dict[str, Any] | JSONResponse:
        """Return an order with its receipts and whether it is complete."""
        async with transaction() as ctx:
            standing = (await ctx.store.standings([order_id])).get(order_id)
        return _not_found() if standing is None else describe(standing)

    @app.get("/v1/sweeps/{sweep_id}", response_model=None)
    async def sweep(sweep_id: UUID) -> dict[str, Any] | JSONResponse:
        """Return a sweep with its orders and whether all of them are complete."""
        async with transaction() as ctx:
            found = await ctx.store.sweep(sweep_id)
        return _not_found() if found is None else describe_sweep(found)

    @app.get("/v1/threat")
    async def threat() -> dict[str, str | None]:
        """Return until when full addresses may be kept for data security; null = not at all."""
        today = calendar.berlin_date(clock.now())
        ends_on = rules.level_ends_on(today)
        kept_until = calendar.midnight_in_berlin(ends_on) if ends_on > today else None
        return {
            "level": rules.level_on(today).value,
            "kept_until": None if kept_until is None else kept_until.isoformat(),
        }

    return app


def _not_found() -> JSONResponse:
    return JSONResponse(
        {"type": "about:blank", "title": "Not Found", "status": 404, "reason": "not_found"},
        status_code=404,
        media_type="application/problem+json",
    )
