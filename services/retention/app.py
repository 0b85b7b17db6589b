"""Builds the process; nothing else does."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from schemas import topics
from services.chassis import errors, logs
from services.chassis.clock import sleep
from services.chassis.service import Service
from services.retention import domain, handlers, kafka, schedule
from services.retention.declaration import DECLARATION
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
    """
    settings = settings or Settings.load()
    rules = schedule.load(settings.schedule_path)
    registry = CollectorRegistry()
    service = Service(
        declaration=DECLARATION,
        settings=settings,
        registry=registry,
        store=Store,
        invariants=INVARIANTS,
    )
    tasks = Tasks(service, settings, rules, Metrics(registry))
    service.consume({topics.RETENTION_RECEIPT: handlers.on_receipts})
    service.serve(build_http(service.transaction))
    service.task("sweep", tasks.sweep_for_ever)
    service.task("orders", tasks.watch_orders_for_ever)
    service.task("names", tasks.take_names_away_for_ever)
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
    ) -> None:
        """Take the parts."""
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
        """Order what is due now."""
        async with self._service.transaction() as ctx:
            await issue(
                ctx,
                self._rules,
                ctx.now,
                overdue_after=timedelta(seconds=self._settings.order_overdue_after_s),
            )
        self._metrics.last_sweep.set(self._service.clock.now().timestamp())

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
                if domain.is_overdue(
                    standing.order, {r.service for r in standing.receipts}, now=ctx.now
                )
            ]
        self._metrics.orders_open.set(len(found))
        self._metrics.orders_overdue.set(len(overdue))
        if overdue:
            logs.get().error("orders overdue", n=len(overdue))

    async def take_names_away_for_ever(self) -> None:
        """Take names from orders that are done, or older than they may be."""
        while True:
            await self._unless_weather("names", self.take_names_away)
            await sleep(self._settings.order_watch_interval_s)

    async def take_names_away(self) -> None:
        """Do so once."""
        async with self._service.transaction() as ctx:
            silence = timedelta(seconds=self._settings.order_overdue_after_s)
            await PersonOrders(ctx, self._rules, silence).take_names_away()

    async def watch_topics_for_ever(self) -> None:
        """Export and keep the age of the oldest record of each partition (D1)."""
        while True:
            await self._unless_weather("topics", self.watch_topics)
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

    async def _unless_weather(self, place: str, act: Callable[[], Awaitable[None]]) -> None:
        """Put off what the database or the broker refuses for now; the next round tries again."""
        try:
            await act()
        except Exception as error:
            if not (errors.is_transient(error) or isinstance(error, KafkaError)):
                raise
            self._service.metrics.retries.labels(place).inc()
            logs.get().warning("put off", name=place, **logs.describe(error))
