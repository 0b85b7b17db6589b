"""Builds call control: the only place that knows its concrete parts."""

from prometheus_client import CollectorRegistry

from schemas import topics
from services.call_control import domain
from services.call_control.backend import CallBackend
from services.call_control.classification import TABLES
from services.call_control.declaration import DECLARATION
from services.call_control.handlers import Handlers, Limits
from services.call_control.http import build_http
from services.call_control.metrics import CallMetrics
from services.call_control.settings import Settings
from services.call_control.sip.backend import SipBackend
from services.call_control.sip.settings import TrunkSettings
from services.call_control.store import INVARIANTS, Store
from services.call_control.switch import Switch
from services.call_control.transfers import NumberGate
from services.chassis.clock import SystemClock
from services.chassis.db import DayTable
from services.chassis.service import Service
from services.privacy.chain import SigningKeys
from services.privacy.declare import by_day
from services.privacy.erased import unless_erased
from services.privacy.executor import Executor, Hooks
from services.privacy.recorder import OutboxRecorder
from services.privacy.registers import Registers
from services.privacy.rules import NOTHING_KNOWN, RuleBook
from services.privacy.waiting import retry_waiting_orders


def build(settings: Settings | None = None, carrier: CallBackend | None = None) -> Service[Store]:
    """Return the service, ready to run.

    Args:
        carrier: what carries calls; the SIP trunk of the settings where not given.
    """
    settings = settings or Settings.load()
    registry = CollectorRegistry()
    service: Service[Store] = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=registry,
        store=Store,
        day_tables=[DayTable(name) for name in by_day(TABLES)],
        invariants=INVARIANTS,
    )
    handlers = Handlers(_limits(settings))
    receipt_keys = SigningKeys.from_json(settings.receipt_keys.get_secret_value())
    service.on_secret("receipt_keys", receipt_keys.replace)
    executor = Executor(
        TABLES,
        simulation=settings.simulation,
        keys=receipt_keys,
        hooks=Hooks(busy=handlers.with_active_call, figures=handlers.make_figures),
    )
    service.consume(
        {
            topics.CALL_REQUEST: unless_erased(handlers.on_call_requests),
            topics.CREDIT_DECISION: unless_erased(handlers.on_credit_decisions),
            topics.CALL_COMMAND: unless_erased(handlers.on_call_commands),
            topics.RETENTION_ORDER: executor.on_orders,
        },
        first=topics.RETENTION_ORDER,
    )
    retry_waiting_orders(service, executor)
    service.serve(build_http(service))
    clock = SystemClock()
    # a call rests on the contract: no consent is asked for, so none is known here
    registers = Registers(settings.kafka, prefix=settings.kafka_prefix, clock=clock)
    service.task("registers", registers.run)
    rules = RuleBook(registers.current, lambda _visitor_id, _now: NOTHING_KNOWN)
    switch = Switch(
        service,
        carrier or SipBackend(_trunk(settings), clock.now),
        settings,
        CallMetrics(registry),
        NumberGate(rules, clock, OutboxRecorder(service.transaction)),
    )
    service.task("switch", switch.run)
    service.task("orders", lambda: service.weatherproof("orders", switch.take_orders))
    service.task("lease", switch.keep_lease)
    service.task("orphans", lambda: service.weatherproof("orphans", switch.adopt_orphans))
    service.before_stop(switch.stop)
    return service


def _limits(settings: Settings) -> Limits:
    return Limits(
        talk_max_ms=settings.talk_max_ms,
        lease_ms=domain.lease_ms(
            ring_a_s=settings.ring_a_timeout_s,
            ring_b_s=settings.ring_b_timeout_s,
            talk_max_ms=settings.talk_max_ms,
            outage_margin_s=settings.outage_margin_s,
        ),
        request_age_max_s=settings.request_age_max_s,
    )


def _trunk(settings: Settings) -> TrunkSettings:
    password = settings.trunk_password
    return TrunkSettings(
        local=(settings.sip_host, settings.sip_port),
        next_hop=(settings.trunk_host, settings.trunk_port),
        caller_id=settings.caller_number,
        routes={
            prefix: (host, int(port))
            for prefix, _, address in (r.partition("=") for r in settings.trunk_routes)
            for host, _, port in (address.partition(":"),)
        },
        username=settings.trunk_username,
        password=None if password is None else password.get_secret_value(),
        no_reply_ms=settings.no_reply_timeout_ms,
        ack_guard_ms=settings.ack_guard_ms,
        session_expires_s=settings.session_expires_s,
        calls_max=settings.calls_max,
    )
