"""Builds the ledger: the only place that knows its concrete parts."""

from prometheus_client import CollectorRegistry

from schemas import topics
from schemas.view_ticket import KeyRing
from services.ad_ledger.classification import TABLES
from services.ad_ledger.declaration import DECLARATION
from services.ad_ledger.handlers import SWEEP_MAX, Handlers
from services.ad_ledger.http import build_http
from services.ad_ledger.metrics import LedgerMetrics
from services.ad_ledger.settings import Settings
from services.ad_ledger.store import DAY_INVARIANTS, EVERY_ROUND, Store
from services.chassis.clock import sleep
from services.chassis.db import DayTable
from services.chassis.service import Service
from services.privacy.chain import SigningKeys
from services.privacy.declare import by_day
from services.privacy.erased import unless_erased
from services.privacy.executor import Executor, Hooks
from services.privacy.waiting import retry_waiting_orders


def build(settings: Settings | None = None) -> Service[Store]:
    """Return the service, ready to run."""
    settings = settings or Settings.load()
    registry = CollectorRegistry()
    service: Service[Store] = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=registry,
        store=Store,
        day_tables=[DayTable(name) for name in by_day(TABLES)],
        invariants=EVERY_ROUND,
        day_invariants=DAY_INVARIANTS,
    )
    keys = KeyRing.from_json(settings.view_ticket_keys.get_secret_value())
    service.on_secret("view_ticket_keys", keys.replace)
    handlers = Handlers(keys, LedgerMetrics(registry))
    receipt_keys = SigningKeys.from_json(settings.receipt_keys.get_secret_value())
    service.on_secret("receipt_keys", receipt_keys.replace)
    executor = Executor(
        TABLES,
        simulation=settings.simulation,
        keys=receipt_keys,
        hooks=Hooks(
            before_drop=handlers.close_before_drop,
            busy=handlers.with_held_reservation,
            settle=handlers.close_of_visitors,
        ),
    )
    service.consume(
        {
            topics.AD_VIEW: unless_erased(handlers.on_ad_views),
            topics.CREDIT_REQUEST: unless_erased(handlers.on_credit_requests),
            topics.CALL_START: unless_erased(handlers.on_call_starts),
            topics.CALL_END: unless_erased(handlers.on_call_ends),
            topics.RETENTION_ORDER: executor.on_orders,
        },
        first=topics.RETENTION_ORDER,
    )
    retry_waiting_orders(service, executor)
    service.serve(build_http(service))

    async def expire_for_ever() -> None:
        while True:
            async with service.transaction() as ctx:
                n_ended = await handlers.expire(ctx)
            if n_ended < SWEEP_MAX:
                await sleep(settings.expiry_interval_s)

    service.task("expiry", lambda: service.weatherproof("expiry", expire_for_ever))
    return service
