"""Builds the process; nothing else does."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from schemas import topics
from services.chassis import errors, logs
from services.chassis.clock import sleep
from services.chassis.service import Service
from services.privacy import calendar, chain
from services.privacy.chain import SigningKeys
from services.privacy.receipts import Signatories
from services.retention import domain, handlers, holders, kafka, log_dirs, records, schedule
from services.retention.declaration import DECLARATION
from services.retention.evidence import CHAIN
from services.retention.http import build_http
from services.retention.metrics import Metrics
from services.retention.person_orders import PersonOrders
from services.retention.settings import Settings
from services.retention.store import INVARIANTS, Store
from services.retention.sweep import issue


def build(settings: Settings | None = None) -> Service[Store]:
    """Return the service, not yet started.

    Raises:
        ScheduleError: the schedule is wrong.
        RegisterError: the register of holders is.
    """
    settings = settings or Settings.load()
    rules = schedule.load(settings.schedule_path)
    outside = holders.load(settings.holders_path)
    registry = CollectorRegistry()
    service = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=registry,
        store=Store,
        invariants=INVARIANTS,
    )
    signatories = Signatories(settings.receipt_public_keys.get_secret_value())
    service.on_secret("receipt_public_keys", signatories.replace)
    anchor_keys = SigningKeys.from_json(settings.anchor_keys.get_secret_value())
    service.on_secret("anchor_keys", anchor_keys.replace)
    service.consume(
        {
            topics.RECORD: records.Records(rules, outside).on_records,
            topics.RETENTION_RECEIPT: handlers.unless_forged(signatories, outside),
        }
    )
    service.serve(build_http(service.transaction, rules, service.clock))
    tasks = Tasks(service, settings, rules, Metrics(registry), anchor_keys)
    service.task("sweep", tasks.sweep_for_ever)
    service.task("orders", tasks.watch_orders_for_ever)
    service.task("names", tasks.take_names_away_for_ever)
    service.task("anchor", tasks.anchor_for_ever)
    service.task("topics", tasks.watch_topics_for_ever)
    return service


class Tasks:
    """What the service does by the clock."""

    def __init__(
        self,
        service: Service[Store],
        settings: Settings,
        rules: schedule.Schedule,
        metrics: Metrics,
        anchor_keys: SigningKeys,
    ) -> None:
        """Take the parts."""
        self._anchor_keys = anchor_keys
        self._service = service
        self._settings = settings
        self._rules = rules
        self._metrics = metrics

    async def sweep_for_ever(self) -> None:
        """Order what is due, at the start and then each hour."""
        while True:
            await self._unless_weather("sweep", self.sweep)
            await sleep(self._settings.sweep_interval_s)

    async def sweep(self) -> None:
        """Order what is due now; lift what ends by itself."""
        silence = timedelta(seconds=self._settings.order_overdue_after_s)
        async with self._service.transaction() as ctx:
            # before the drops, so that what a hold kept is due with the rest
            await PersonOrders(ctx, self._rules, silence).release_ended_threats()
            await issue(ctx, self._rules, ctx.now, overdue_after=silence)
        now = self._service.clock.now()
        self._metrics.last_sweep.set(now.timestamp())
        today = calendar.berlin_date(now)
        ends_on = self._rules.level_ends_on(today)
        ends_at_s = calendar.midnight_in_berlin(ends_on).timestamp() if ends_on > today else 0
        self._metrics.threat_level_ends.set(ends_at_s)

    async def watch_orders_for_ever(self) -> None:
        """Export how many orders are open and overdue (D3)."""
        while True:
            await self._unless_weather("orders", self.watch_orders)
            await sleep(self._settings.order_watch_interval_s)

    async def watch_orders(self) -> None:
        """Count open and overdue orders once."""
        async with self._service.transaction() as ctx:
            found = await ctx.store.open_orders()
            overdue = [
                standing
                for standing in found
                if domain.is_overdue(standing.order, standing.settled, now=ctx.now)
            ]
            waived = await ctx.store.count_waived()
        self._metrics.answers_waived.set(waived)
        self._metrics.orders_open.set(len(found))
        self._metrics.orders_overdue.set(len(overdue))
        if overdue:
            logs.get().error("orders overdue", n=len(overdue))

    async def anchor_for_ever(self) -> None:
        """Sign the head of the chain of evidence once a day."""
        while True:
            await self._unless_weather("anchor", self.anchor)
            await sleep(self._settings.sweep_interval_s)

    async def anchor(self) -> None:
        """Sign it now, where the day (UTC) has no anchor yet."""
        async with self._service.transaction() as ctx:
            await ctx.store.lock()
            head, day = await ctx.store.evidence.head(), ctx.now.date()
            if head is None or await ctx.store.evidence.has_anchor(day):
                return
            await ctx.store.evidence.save_anchor(chain.anchor(self._anchor_keys, CHAIN, day, head))

    async def take_names_away_for_ever(self) -> None:
        """Take names from orders that are done, or older than they may be."""
        while True:
            await self._unless_weather("names", self.take_names_away)
            await sleep(self._settings.order_watch_interval_s)

    async def take_names_away(self) -> None:
        """Do so once."""
        async with self._service.transaction() as ctx:
            silence = timedelta(seconds=self._settings.order_overdue_after_s)
            orders = PersonOrders(ctx, self._rules, silence)
            await orders.take_names_away()
            await orders.send_open_again()
            await orders.withdraw_old_proposals()

    async def watch_topics_for_ever(self) -> None:
        """Export the age of the oldest record of each partition, and its bytes on disk (D1)."""
        while True:
            await self._unless_weather("topics", self.watch_topics)
            await self._unless_weather("topic_bytes", self.watch_bytes)
            await sleep(self._settings.topic_age_interval_s)

    async def watch_topics(self) -> None:
        """Measure all topics once."""
        ages = await kafka.measure_ages(
            self._settings.kafka, self._settings.kafka_prefix, topics.ALL_TOPICS
        )
        async with self._service.transaction() as ctx:
            await ctx.store.save_ages(ages, ctx.now)
            for age in ages:
                seconds = (ctx.now - age.oldest_at).total_seconds() if age.oldest_at else 0.0
                self._metrics.topic_oldest_record_age.labels(age.topic, str(age.partition)).set(
                    max(0.0, seconds)
                )

    async def watch_bytes(self) -> None:
        """Ask all brokers once."""
        for topic, partition, n_bytes in await log_dirs.measure_bytes(
            self._settings.kafka, self._settings.kafka_prefix, topics.ALL_TOPICS
        ):
            self._metrics.topic_bytes.labels(topic, str(partition)).set(n_bytes)

    async def _unless_weather(self, place: str, act: Callable[[], Awaitable[None]]) -> None:
        """Put off what the database or the broker refuses for now; the next round tries again."""
        try:
            await act()
        except Exception as error:
            if not (errors.is_transient(error) or isinstance(error, KafkaError)):
                raise
            self._service.metrics.retries.labels(place).inc()
            logs.get().warning("put off", name=place, **logs.describe(error))
