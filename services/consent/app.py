"""Builds the process; nothing else does."""

from typing import Any

from prometheus_client import CollectorRegistry

from schemas import topics
from services.chassis.clock import sleep
from services.chassis.db import DayTable
from services.chassis.service import Service
from services.consent import catalogues, handlers, transfer_store, transfers
from services.consent.classification import TABLES
from services.consent.declaration import DECLARATION
from services.consent.http import build_http
from services.consent.progress import tell_progress
from services.consent.receipts import Controller, Issuer
from services.consent.registers import Teller
from services.consent.settings import Settings, replace_apart
from services.consent.store import INVARIANTS
from services.consent.takings import EVERY_S, Takings
from services.consent.transfer_store import ConsentStore
from services.privacy import calendar, recipients
from services.privacy.chain import SigningKeys
from services.privacy.declare import by_day
from services.privacy.erased import unless_erased
from services.privacy.executor import Executor, Hooks
from services.privacy.waiting import retry_waiting_orders

_YEARS_EVERY_S = 3600.0
_ANCHORS_EVERY_S = 600.0
_REGISTERS_EVERY_S = 30.0


def build(settings: Settings | None = None) -> Service[Any]:
    """Return the service, not yet started."""
    settings = settings or Settings.load()
    # one that was changed after its publication stops the start
    teller = Teller(catalogues.known())
    registry = CollectorRegistry()
    service: Service[Any] = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=registry,
        store=ConsentStore,
        day_tables=[DayTable(name) for name in by_day(TABLES)],
        invariants={**INVARIANTS, **transfer_store.INVARIANTS},
    )
    anchor_keys = SigningKeys.from_json(settings.anchor_keys.get_secret_value())
    proof_keys = SigningKeys.from_json(settings.proof_keys.get_secret_value())
    service.on_secret("anchor_keys", lambda text: replace_apart(anchor_keys, text, proof_keys))
    receipt_keys = SigningKeys.from_json(settings.receipt_keys.get_secret_value())
    service.on_secret("receipt_keys", receipt_keys.replace)
    takings = Takings(anchor_keys)
    executor = Executor(
        TABLES,
        simulation=settings.simulation,
        keys=receipt_keys,
        hooks=Hooks(before_drop=takings.before_drop, settle=handlers.forget_states),
    )
    service.consume(
        {
            topics.CONSENT: unless_erased(handlers.on_consents),
            topics.TRANSFER: transfers.on_transfers,
            topics.RETENTION_ORDER: executor.on_orders,
        },
        first=topics.RETENTION_ORDER,
    )
    retry_waiting_orders(service, executor)
    service.on_secret("proof_keys", lambda text: replace_apart(proof_keys, text, anchor_keys))
    issuer = Issuer(controller=Controller.of(settings), register=recipients.load(), keys=proof_keys)
    service.serve(build_http(service.transaction, issuer))
    service.task(
        "anchors", lambda: service.weatherproof("anchors", lambda: _anchor(service, anchor_keys))
    )
    service.task(
        "takings", lambda: service.weatherproof("takings", lambda: _look(service, takings))
    )
    service.task("years", lambda: service.weatherproof("years", lambda: _maintain_years(service)))
    service.task(
        "registers", lambda: service.weatherproof("registers", lambda: _tell(service, teller))
    )
    service.task(
        "progress", lambda: service.weatherproof("progress", lambda: tell_progress(service))
    )
    return service


async def _tell(service: Service[Any], teller: Teller) -> None:
    while True:
        async with service.transaction() as ctx:
            told = teller.tell(ctx)
        teller.has_told(told, ctx.now)
        await sleep(_REGISTERS_EVERY_S)


async def _look(service: Service[Any], takings: Takings) -> None:
    while True:
        if not await takings.look_through(service.transaction):
            await sleep(EVERY_S)


async def _maintain_years(service: Service[Any]) -> None:
    while True:
        async with service.transaction() as ctx:
            await ctx.store.maintain_years()
        await sleep(_YEARS_EVERY_S)


async def _anchor(service: Service[Any], keys: SigningKeys) -> None:
    """Sign each chain's end once a day, as soon as there is one."""
    while True:
        async with service.transaction() as ctx:
            await ctx.store.anchor(keys, calendar.utc_date(ctx.now))
        await sleep(_ANCHORS_EVERY_S)
