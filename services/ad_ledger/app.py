"""Builds the ledger: the only place that knows its concrete parts."""

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from schemas import topics
from schemas.ad_view import AdViewV1
from schemas.view_ticket import KeyRing
from services.ad_ledger.classification import TABLES
from services.ad_ledger.declaration import DECLARATION
from services.ad_ledger.handlers import SWEEP_MAX, Handlers
from services.ad_ledger.http import build_http
from services.ad_ledger.metrics import LedgerMetrics, PartnerMetrics
from services.ad_ledger.partner import Pace, PartnerClient, Reporter, enqueue
from services.ad_ledger.partner_store import LedgerStore
from services.ad_ledger.settings import Settings
from services.ad_ledger.store import DAY_INVARIANTS, EVERY_ROUND
from services.chassis.clock import sleep
from services.chassis.context import Context
from services.chassis.db import DayTable
from services.chassis.received import Received
from services.chassis.service import Service
from services.privacy.chain import SigningKeys
from services.privacy.consent_states import ConsentStates
from services.privacy.declare import by_day
from services.privacy.erased import unless_erased
from services.privacy.executor import Executor, Hooks
from services.privacy.gate import Gate
from services.privacy.recorder import OutboxRecorder
from services.privacy.registers import Registers
from services.privacy.rules import RuleBook
from services.privacy.waiting import retry_waiting_orders


def build(settings: Settings | None = None) -> Service[Any]:
    """Return the service, ready to run."""
    settings = settings or Settings.load()
    registry = CollectorRegistry()
    service: Service[Any] = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=registry,
        store=LedgerStore,
        day_tables=[DayTable(name) for name in by_day(TABLES)],
        invariants=EVERY_ROUND,
        day_invariants=DAY_INVARIANTS,
    )
    keys = KeyRing.from_json(settings.view_ticket_keys.get_secret_value())
    service.on_secret("view_ticket_keys", keys.replace)
    handlers = Handlers(keys, LedgerMetrics(registry))
    partner_metrics = PartnerMetrics(registry)
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
            figures=handlers.make_figures,
        ),
    )

    async def on_ad_views(ctx: Context[Any], batch: Sequence[Received[AdViewV1]]) -> None:
        await handlers.on_ad_views(ctx, batch)
        if settings.partner_url is not None:
            await enqueue(keys, ctx, batch)

    service.consume(
        {
            topics.AD_VIEW: unless_erased(on_ad_views),
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
    if settings.partner_url is not None:
        _report_to_partner(service, settings, settings.partner_url, partner_metrics)
    return service


def _report_to_partner(
    service: Service[Any], settings: Settings, url: str, metrics: PartnerMetrics
) -> None:
    """Tell the ad partner what happens to its ads, as far as the gate lets it through."""
    consents = ConsentStates(settings.kafka, prefix=settings.kafka_prefix, clock=service.clock)
    registers = Registers(settings.kafka, prefix=settings.kafka_prefix, clock=service.clock)
    gate = Gate(
        OutboxRecorder(service.transaction),
        service.clock,
        rules=RuleBook(registers.current, consents.facts_of),
    )
    client = PartnerClient(
        url,
        token=settings.partner_token.get_secret_value(),
        timeout_s=settings.partner_timeout_s,
        ca_file=settings.partner_ca_file,
        clock=service.clock,
    )
    pace = Pace(
        interval_s=settings.partner_interval_s,
        timeout_s=settings.partner_timeout_s,
        batch_max=settings.partner_batch_max,
    )
    reporter = Reporter(service.transaction, gate, client, metrics, pace)
    service.task("consents", consents.run)
    service.task("registers", registers.run)

    async def report_for_ever() -> None:
        try:
            await service.weatherproof("partner", reporter.run)
        finally:
            await client.close()

    service.task("partner", report_for_ever)
