"""Builds the gateway: the only place that knows the concrete parts."""

import httpx
from prometheus_client import CollectorRegistry

from schemas.view_ticket import KeyRing
from services.chassis.clock import Clock, sleep
from services.chassis.produce import Producer, Tail
from services.chassis.service import Service
from services.gateway.ads import load_ads, make_media
from services.gateway.declaration import DECLARATION
from services.gateway.domain import Rate
from services.gateway.door import RateLimit, RateLimits, Visits
from services.gateway.http import Parts, build_http
from services.gateway.live import TOPICS, Live, LiveLimits
from services.gateway.metrics import Metrics
from services.gateway.offers import Offers
from services.gateway.partner import PartnerAds
from services.gateway.reads import Reads
from services.gateway.settings import Settings
from services.gateway.threat import Threat
from services.privacy.consent_states import ConsentStates
from services.privacy.gate import Gate
from services.privacy.recorder import KafkaRecorder
from services.privacy.registers import Registers
from services.privacy.rules import RuleBook

FORGET_EVERY_S = 30.0


def build() -> Service[None]:
    """Return the service, settings read from the environment."""
    settings = Settings.load()
    registry = CollectorRegistry()
    service: Service[None] = Service(declaration=DECLARATION, settings=settings, registry=registry)
    metrics = Metrics(registry)
    cookie_keys = KeyRing.from_json(settings.visit_cookie_keys.get_secret_value())
    ticket_keys = KeyRing.from_json(settings.view_ticket_keys.get_secret_value())
    service.on_secret("visit_cookie_keys", cookie_keys.replace)
    service.on_secret("view_ticket_keys", ticket_keys.replace)
    visits = Visits(
        cookie_keys,
        age_max_s=settings.visit_age_max_s,
        clock=service.clock,
    )
    reads = make_reads(settings, metrics)
    threat = Threat(reads, service.clock)
    offers = Offers(reads, service.clock)
    limits = make_limits(settings, service.clock, metrics)
    live = Live(
        limits=make_live_limits(settings),
        visits=visits,
        reads=reads,
        clock=service.clock,
        metrics=metrics,
    )
    ads = load_ads()
    producer = Producer(service.sink, service=DECLARATION.name, timeout_s=settings.kafka_timeout_s)
    service.serve(
        build_http(
            Parts(
                settings=settings,
                clock=service.clock,
                ids=service.ids,
                sender=producer,
                reads=reads,
                threat=threat,
                offers=offers,
                visits=visits,
                tickets=ticket_keys,
                limits=limits,
                serve_live=live.serve,
                metrics=metrics,
                ads=ads,
                media_by_name=make_media(ads),
                partner=_make_partner_ads(service, settings, producer),
            )
        )
    )
    _push(service, settings, live)
    service.task("threat", threat.run)
    service.task("offers", offers.run)
    service.ready_when(threat.problem)
    service.task("forget", lambda: _forget_for_ever(limits, reads))
    return service


def _push(service: Service[None], settings: Settings, live: Live) -> None:
    tail = Tail(
        settings.kafka,
        prefix=settings.kafka_prefix,
        topics=TOPICS,
        on_record=live.on_record,
    )
    service.task("tail", tail.run)
    service.ready_when(lambda: None if tail.ready.is_set() else "push side does not read yet")


def _make_partner_ads(
    service: Service[None], settings: Settings, producer: Producer
) -> PartnerAds | None:
    """Return who gives pages leave to ask the ad partner; None where there is no partner."""
    if settings.partner_tag_url is None:
        return None
    consents = ConsentStates(settings.kafka, prefix=settings.kafka_prefix, clock=service.clock)
    registers = Registers(settings.kafka, prefix=settings.kafka_prefix, clock=service.clock)
    service.task("consents", consents.run)
    service.task("registers", registers.run)
    gate = Gate(
        KafkaRecorder(producer, service.ids, service.clock),
        service.clock,
        rules=RuleBook(registers.current, consents.facts_of),
    )
    return PartnerAds(settings.partner_tag_url, gate, service.clock)


def make_reads(settings: Settings, metrics: Metrics) -> Reads:
    """Return the reads of other services, bounded in time and connections."""
    client = httpx.AsyncClient(
        timeout=settings.read_timeout_s,
        limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
        follow_redirects=False,
        trust_env=False,
    )
    return Reads(
        client,
        ad_ledger_url=settings.ad_ledger_url,
        call_control_url=settings.call_control_url,
        consent_url=settings.consent_url,
        retention_url=settings.retention_url,
        metrics=metrics,
    )


def make_limits(settings: Settings, clock: Clock, metrics: Metrics) -> RateLimits:
    """Return the rate limits as set."""

    def limit(per_s: float, burst: int) -> RateLimit:
        rate = Rate(per_s=per_s, burst=burst)
        return RateLimit(
            rate, clock=clock, keys_max=settings.remembered_max, idle_s=settings.idle_s
        )

    return RateLimits(
        address=limit(settings.address_rate_per_s, settings.address_burst),
        visitor=limit(settings.visitor_rate_per_s, settings.visitor_burst),
        remembered=metrics.remembered,
    )


def make_live_limits(settings: Settings) -> LiveLimits:
    """Return the bounds of the live connections as set."""
    return LiveLimits(
        sockets_max=settings.sockets_max,
        sockets_per_visitor_max=settings.sockets_per_visitor_max,
        queue_max=settings.socket_queue_max,
        message_bytes_max=settings.socket_message_bytes_max,
        rate=Rate(per_s=settings.socket_rate_per_s, burst=settings.socket_burst),
        idle_s=settings.idle_s,
    )


async def _forget_for_ever(limits: RateLimits, reads: Reads) -> None:
    try:
        while True:
            limits.forget_idle()
            await sleep(FORGET_EVERY_S)
    finally:
        await reads.close()
