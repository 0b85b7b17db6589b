"""The path of a message (architecture.md).

Poll, decode one by one, fence and effect in one transaction, dead letters through the outbox,
bounded retry with back-off, give-up.

FastStream polls and hands over raw records; everything that decides about loss is here:
acknowledgement is MANUAL and Kafka's committed offset is only for lag tools and a first start. The
truth is `consumer_offset`, moved in the transaction of the effect.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import KafkaMessage

from schemas.topics import Topic
from services.chassis import errors, logs
from services.chassis.clock import Clock
from services.chassis.context import Context
from services.chassis.kafka import FETCH_WAIT_MAX_MS
from services.chassis.metrics import ChassisMetrics
from services.chassis.outbox import OutboxRow, RawHeaders
from services.chassis.received import Received, decode
from services.chassis.settings import ServiceSettings

__all__ = ["Consumer", "Handler", "Received"]

Handler = Callable[[Context[Any], Sequence[Received[Any]]], Awaitable[None]]
"""One per topic: gets all of a poll's records of the topic, all partitions, offsets in order."""

_BACK_OFF_FIRST_S = 0.1
_BACK_OFF_MAX_S = 5.0
_COMMIT_EVERY_S = 5.0
_COMMIT_TIMEOUT_S = 2.0
_KAFKA_ANSWER_S = 20.0
_HALT_POLL_S = 0.02
_CATCH_UP_POLL_MS = 200

_SEED = """
INSERT INTO consumer_offset (topic, part, next_offset)
SELECT topic, part, 0 FROM unnest($1::text[], $2::int[]) AS given(topic, part)
ON CONFLICT DO NOTHING
"""
_READ_OFFSETS = """
SELECT o.topic, o.part, o.next_offset
FROM consumer_offset o
JOIN unnest($1::text[], $2::int[]) AS given(topic, part) USING (topic, part)
"""
# Rows are locked in key order, so that two processes after a rebalance cannot deadlock here.
_FENCE = """
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[])
        AS g(topic, part, first_offset, next_offset)
), locked AS MATERIALIZED (
    SELECT o.topic, o.part FROM consumer_offset o JOIN given g USING (topic, part)
    ORDER BY o.topic, o.part FOR UPDATE OF o
)
UPDATE consumer_offset o SET next_offset = g.next_offset
FROM given g JOIN locked l USING (topic, part)
WHERE o.topic = g.topic AND o.part = g.part AND o.next_offset <= g.first_offset
RETURNING o.topic, o.part
"""


class _Item(NamedTuple):
    """One record of a poll: good (`received`) or poison (`reason`)."""

    raw: Any
    tp: TopicPartition
    topic: Topic
    received: Received[Any] | None
    reason: str | None


def _broker(service: str, settings: ServiceSettings) -> KafkaBroker:
    """Return FastStream's broker: it reads only, as the service itself."""
    return KafkaBroker(
        # FastStream takes a text for one address, commas and all
        settings.kafka_bootstrap.split(","),
        consumer_only=True,
        security=settings.kafka.security(),
        client_id=f"{settings.kafka_prefix}{service}-{settings.instance}",
        apply_types=False,
        logger=None,
        graceful_timeout=settings.stop_timeout_s,
    )


class Consumer:
    """One FastStream subscriber and consumer group per service, for all its topics."""

    def __init__(
        self,
        *,
        service: str,
        settings: ServiceSettings,
        routes: dict[Topic, Handler],
        transaction: Callable[[], Any],
        metrics: ChassisMetrics,
        clock: Clock,
        fail: Callable[[BaseException], None],
    ) -> None:
        """Take the parts; `fail` ends the process, `transaction` opens a `Context`."""
        for topic in routes:
            assert service in topic.consumers, f"{service} may not read {topic.name}"
        self._service = service
        self._settings = settings
        self._routes = routes
        self._transaction = transaction
        self._metrics = metrics
        self._clock = clock
        self._fail = fail
        self._poison_run = 0
        self._positions: dict[TopicPartition, int] = {}
        self._uncommitted: dict[TopicPartition, int] = {}
        self._looked_again: dict[TopicPartition, int] = {}
        self._handled_at: dict[TopicPartition, float] = {}
        self._busy_since: float | None = None
        self._progress_at = clock.monotonic()
        self._committed_at = clock.monotonic()
        self._dead = False
        self.assigned = asyncio.Event()
        self._topic_by_full_name = {settings.kafka_prefix + t.name: t for t in routes}
        self._broker = _broker(service, settings)
        self._subscriber = self._broker.subscriber(
            *self._topic_by_full_name,
            group_id=f"{settings.kafka_prefix}{service}",
            # static membership: a restarted process reads after 0.01 s, not a session timeout
            group_instance_id=f"{settings.kafka_prefix}{service}-{settings.instance}",
            batch=True,
            max_records=settings.batch_records_max,
            batch_timeout_ms=settings.batch_wait_ms,
            fetch_max_wait_ms=FETCH_WAIT_MAX_MS,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
            # one process owns a visitor in all topics; RoundRobin would split them
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.session_timeout_ms // 4,
            parser=_keep_raw,
            decoder=_take_raw,
            listener=_Listener(self),
            no_reply=True,
        )
        self._subscriber(self._on_poll)

    async def start(self) -> None:
        """Join the group and begin to read."""
        await self._broker.start()

    async def catch_up(self, topic: Topic) -> None:
        """Work off what a topic holds by now, all partitions, before this process joins the group.

        By the same transactions and fences as any poll: another process may do so too.
        """
        name = self._settings.kafka_prefix + topic.name
        partitions = {TopicPartition(name, number) for number in range(topic.partitions)}
        consumer = AIOKafkaConsumer(
            **self._settings.kafka.options(), group_id=None, auto_offset_reset="earliest"
        )
        try:
            await consumer.start()
            consumer.assign(list(partitions))
            offsets = await self._patiently(lambda: self._read_offsets(partitions))
            ends = await self._bounds(consumer.end_offsets, partitions)
            starts = await self._bounds(consumer.beginning_offsets, partitions)
            for tp in partitions:
                consumer.seek(tp, max(offsets[tp], starts[tp]))
            n_done = 0
            while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
                n_done += await self._apply_polled(consumer)
        finally:
            await consumer.stop()
        self._positions.clear()
        if n_done:
            logs.get().info("caught up", topic=topic.name, n=n_done)

    async def _apply_polled(self, consumer: Any) -> int:
        polled = await consumer.getmany(
            timeout_ms=_CATCH_UP_POLL_MS, max_records=self._settings.batch_records_max
        )
        items = [self._decode(record) for records in polled.values() for record in records]
        if items:
            await self._apply(items)
        return len(items)

    async def stop(self) -> None:
        """Finish the poll under way, tell Kafka the offsets, leave; bounded."""
        self._dead = True
        await self._commit_to_kafka()
        try:
            await asyncio.wait_for(self._broker.stop(), self._settings.stop_timeout_s + 5)
        except (TimeoutError, kafka_errors.KafkaError):
            logs.get().warning("consumer did not stop in time")

    # ------------------------------------------------------------------ assignment

    async def on_assigned(self, partitions: set[TopicPartition]) -> None:
        """Seek to the database's offsets; aiokafka swallows what this raises, so nothing may."""
        try:
            await self._seek_to_database(partitions)
        except Exception as error:  # noqa: BLE001 - handed on: a swallowed one would read from a wrong place
            self._dead = True
            self._fail(error)

    async def _seek_to_database(self, partitions: set[TopicPartition]) -> None:
        for state in (self._positions, self._uncommitted, self._looked_again, self._handled_at):
            state.clear()
        if not partitions:
            self.assigned.set()  # one process more than partitions: it stands by, which is well
            return
        offsets = await self._patiently(lambda: self._read_offsets(partitions))
        consumer = self._subscriber.consumer
        assert consumer is not None
        # no seek_to_beginning here: it waits for the fetcher, which waits for this very listener
        starts = await self._bounds(consumer.beginning_offsets, partitions)
        ends = await self._bounds(consumer.end_offsets, partitions)
        for tp in partitions:
            name, next_offset = self._name(tp), offsets[tp]
            if next_offset > ends[tp]:
                raise errors.Fatal(
                    f"topic {name} partition {tp.partition} ends at {ends[tp]}, but {next_offset} "
                    "records were consumed: it was made anew; set its consumer_offset rows to 0"
                )
            if next_offset and next_offset < starts[tp]:
                logs.get().error(
                    "records were deleted unread", topic=name, n=starts[tp] - next_offset
                )
            consumer.seek(tp, max(next_offset, starts[tp]))
            self._positions[tp] = max(next_offset, starts[tp])
        self._progress_at = self._clock.monotonic()
        self.assigned.set()
        logs.get().info("partitions assigned", n=len(partitions))

    async def _bounds(
        self, ask: Callable[[list[TopicPartition]], Awaitable[Any]], tps: set[TopicPartition]
    ) -> dict[TopicPartition, int]:
        found: dict[TopicPartition, int] = await self._patiently(
            lambda: asyncio.wait_for(ask(list(tps)), _KAFKA_ANSWER_S)
        )
        return found

    async def _read_offsets(self, partitions: set[TopicPartition]) -> dict[TopicPartition, int]:
        names = [self._name(tp) for tp in partitions]
        parts = [tp.partition for tp in partitions]
        async with self._transaction() as ctx:
            await ctx.connection.execute(_SEED, names, parts)
            rows = await ctx.connection.fetch(_READ_OFFSETS, names, parts)
        found = {(row["topic"], row["part"]): row["next_offset"] for row in rows}
        return {tp: found[self._name(tp), tp.partition] for tp in partitions}

    def _name(self, tp: TopicPartition) -> str:
        return self._topic_by_full_name[tp.topic].name

    # ------------------------------------------------------------------ one poll

    async def _on_poll(self, records: tuple[Any, ...]) -> None:
        """Carry out one poll, or end the process: this never raises and never skips."""
        if self._dead or not records:
            await self._halt_if_dead()
            return
        self._busy_since = self._clock.monotonic()
        try:
            items = self._without_gaps([self._decode(record) for record in records])
            if items:
                await self._apply(items)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the consume frame: one of the two places
            self._dead = True
            self._fail(error)
            await self._halt_if_dead()
        finally:
            self._busy_since = None
            self._progress_at = self._clock.monotonic()
        await self._commit_now_and_then()

    async def _halt_if_dead(self) -> None:
        # FastStream swallows errors and polls on: the next poll would pass the failed one. It polls
        # no more once it is told to stop, so a stop need not wait for this poll's grace to run out.
        while self._dead and self._subscriber.running:
            await asyncio.sleep(_HALT_POLL_S)

    def _without_gaps(self, items: list[_Item]) -> list[_Item]:
        """Leave out partitions whose records do not follow on from what the database has.

        After a rebalance aiokafka fetches from Kafka's committed offset while the seek to the
        database's is still under way. Where the database is behind (restored from a backup), the
        fence would take such records and pass the ones between. So: no seek yet, no effect; and a
        gap is read a second time before it is believed (records deleted by age leave real ones).
        """
        left_out = set()
        for tp, (first, _) in _spans(items).items():
            expected = self._positions.get(tp)
            if expected is None:
                left_out.add(tp)
            elif first > expected and self._looked_again.get(tp) != expected:
                self._looked_again[tp] = expected
                left_out.add(tp)
                consumer = self._subscriber.consumer
                if consumer is not None and tp in consumer.assignment():
                    consumer.seek(tp, expected)
        return [item for item in items if item.tp not in left_out] if left_out else items

    def _decode(self, record: Any) -> _Item:
        topic = self._topic_by_full_name[record.topic]
        tp = TopicPartition(record.topic, record.partition)
        try:
            return _Item(record, tp, topic, decode(topic, record), None)
        except errors.Poison as poison:
            return _Item(record, tp, topic, None, poison.reason)

    async def _apply(self, items: list[_Item]) -> None:
        run_before = self._poison_run
        self._watch_poison(items)
        started = self._clock.monotonic()
        try:
            await self._patiently(lambda: self._in_one_transaction(items))
        except Exception as error:
            if not errors.is_data_error(error):
                raise
            self._poison_run = run_before
            logs.get().warning("poll replayed one by one", n=len(items), **logs.describe(error))
            await self._one_by_one(items)
        self._metrics.batch_seconds.observe(self._clock.monotonic() - started)

    async def _one_by_one(self, items: list[_Item]) -> None:
        """Find the culprit: each record in a transaction of its own, in order."""
        for item in items:
            try:
                await self._patiently(functools.partial(self._in_one_transaction, [item]))
            except Exception as error:
                if not errors.is_data_error(error):
                    raise
                bad = item._replace(received=None, reason=errors.reason_of(error))
                self._watch_poison([bad])
                await self._patiently(functools.partial(self._in_one_transaction, [bad]))
            else:
                self._watch_poison([item])

    def _watch_poison(self, items: list[_Item]) -> None:
        """Stop when everything is poison: then it is our bug, not theirs."""
        for item in items:
            self._poison_run = self._poison_run + 1 if item.reason is not None else 0
            if self._poison_run > self._settings.poison_run_max:
                raise errors.Fatal(
                    f"more than {self._settings.poison_run_max} poison records in a row on "
                    f"{item.topic.name}: wrong contract deployed? nothing was lost, see its reason "
                    f"({item.reason})"
                )

    async def _in_one_transaction(self, items: list[_Item]) -> None:
        spans = _spans(items)
        async with self._transaction() as ctx:
            owned = await self._fence(ctx, spans)
            taken = [item for item in items if item.tp in owned]
            for topic, handler in self._routes.items():
                good = [i.received for i in taken if i.topic is topic and i.received is not None]
                if good:
                    await handler(ctx, good)
            for item in taken:
                if item.reason is not None:
                    _bury(ctx, item, item.reason)
        self._after_commit(ctx, items, owned, spans)
        refused = set(spans) - owned
        if refused:
            await self._rewind(refused)

    async def _fence(
        self, ctx: Context[Any], spans: dict[TopicPartition, tuple[int, int]]
    ) -> set[TopicPartition]:
        tps = list(spans)
        rows = await ctx.connection.fetch(
            _FENCE,
            [self._name(tp) for tp in tps],
            [tp.partition for tp in tps],
            [spans[tp][0] for tp in tps],
            [spans[tp][1] for tp in tps],
        )
        mine = {(row["topic"], row["part"]) for row in rows}
        return {tp for tp in tps if (self._name(tp), tp.partition) in mine}

    def _after_commit(
        self,
        ctx: Context[Any],
        items: list[_Item],
        owned: set[TopicPartition],
        spans: dict[TopicPartition, tuple[int, int]],
    ) -> None:
        for (topic, outcome), n in ctx.counts.items():
            self._metrics.events.labels(topic, outcome).inc(n)
        for (topic, reason), n in ctx.dead.items():
            self._metrics.dead_letters.labels(topic, reason).inc(n)
            logs.get().warning("dead letter", topic=topic, reason=reason, n=n)
        for item in items:
            if item.tp in owned:
                self._handled_at[item.tp] = item.raw.timestamp / 1000
            else:
                self._metrics.fenced.labels(item.topic.name).inc()
        self._progress_at = self._clock.monotonic()
        consumer = self._subscriber.consumer
        for tp in owned:
            self._positions[tp] = self._uncommitted[tp] = spans[tp][1]
            end = None if consumer is None else consumer.highwater(tp)
            self._note_lag(tp, max(0, (end or 0) - self._positions[tp]))

    async def _rewind(self, refused: set[TopicPartition]) -> None:
        """Someone has done these: go on where the database says."""
        logs.get().warning("fenced", n=len(refused))
        offsets = await self._patiently(lambda: self._read_offsets(refused))
        consumer = self._subscriber.consumer
        for tp, offset in offsets.items():
            if consumer is not None and tp in consumer.assignment():
                consumer.seek(tp, offset)
                self._positions[tp] = offset

    async def _patiently(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Try again on weather, with back-off, within the budget; then give up."""
        deadline = self._clock.monotonic() + self._settings.retry_budget_s
        delay = _BACK_OFF_FIRST_S
        while True:
            try:
                return await act()
            except Exception as error:
                if not errors.is_transient(error):
                    raise
                if self._clock.monotonic() + delay > deadline:
                    raise errors.Fatal(
                        f"gave up after {self._settings.retry_budget_s:.0f} s of retries: "
                        f"{type(error).__name__}; nothing is lost, the next start goes on here"
                    ) from error
                self._metrics.retries.labels("poll").inc()
                logs.get().warning("poll waits", seconds=delay, **logs.describe(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, _BACK_OFF_MAX_S)

    # ------------------------------------------------------------------ lag, liveness, commits

    async def _commit_now_and_then(self) -> None:
        if self._clock.monotonic() - self._committed_at >= _COMMIT_EVERY_S:
            await self._commit_to_kafka()

    async def _commit_to_kafka(self) -> None:
        """Tell Kafka how far we are: for lag tools only, so errors do not matter."""
        consumer = self._subscriber.consumer
        offsets, self._uncommitted = self._uncommitted, {}
        self._committed_at = self._clock.monotonic()
        if consumer is None:
            return
        assigned = consumer.assignment()
        told = {tp: n for tp, n in offsets.items() if tp in assigned}
        try:
            if told:  # without a limit it would wait for a broker that is away, and hold the polls
                await asyncio.wait_for(consumer.commit(told), _COMMIT_TIMEOUT_S)
        except (TimeoutError, kafka_errors.KafkaError) as error:
            logs.get().info("offsets not told to kafka", **logs.describe(error))

    def _note_lag(self, tp: TopicPartition, n_waiting: int) -> None:
        name, part = self._name(tp), str(tp.partition)
        self._metrics.lag_records.labels(name, part).set(n_waiting)
        age_s = 0.0
        if n_waiting and tp in self._handled_at:
            age_s = max(0.0, self._clock.now().timestamp() - self._handled_at[tp])
        self._metrics.lag_seconds.labels(name, part).set(age_s)

    async def n_waiting(self) -> int | None:
        """Return how many records wait in the assigned partitions; None while nobody can tell."""
        consumer = self._subscriber.consumer
        if consumer is None or not self._positions:
            return None
        try:
            tps = [tp for tp in self._positions if tp in consumer.assignment()]
            ends = await asyncio.wait_for(consumer.end_offsets(tps), 5.0)
        except (TimeoutError, kafka_errors.KafkaError):
            return None
        waiting = {tp: max(0, int(ends[tp]) - self._positions.get(tp, 0)) for tp in tps}
        for tp, n in waiting.items():
            self._note_lag(tp, n)
        return sum(waiting.values())

    async def ends(self, topic: Topic) -> dict[int, int] | None:
        """Return where a topic's partitions end, also those of others; of empty ones nothing.

        None while nobody can tell.
        """
        consumer = self._subscriber.consumer
        if consumer is None or not self.assigned.is_set():  # it can be asked once it has begun
            return None
        name = self._settings.kafka_prefix + topic.name
        tps = [TopicPartition(name, number) for number in range(topic.partitions)]
        try:
            starts = await asyncio.wait_for(consumer.beginning_offsets(tps), _KAFKA_ANSWER_S)
            ends = await asyncio.wait_for(consumer.end_offsets(tps), _KAFKA_ANSWER_S)
        except (TimeoutError, kafka_errors.KafkaError):
            return None
        return {tp.partition: int(ends[tp]) for tp in tps if ends[tp] > starts[tp]}

    def stalled_s(self) -> float:
        """Return for how many seconds no poll has come to an end."""
        return self._clock.monotonic() - self._progress_at

    def busy_s(self) -> float:
        """Return for how many seconds the present poll has been under way; 0 between polls."""
        return 0.0 if self._busy_since is None else self._clock.monotonic() - self._busy_since


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            logs.get().info("partitions revoked", n=len(revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._consumer.on_assigned(assigned)


async def _keep_raw(records: tuple[Any, ...]) -> KafkaMessage:
    """Parser that touches no header: a null or non-UTF-8 one loses the batch in the default."""
    return KafkaMessage(body=b"", raw_message=records, headers={}, consumer=None)  # type: ignore[arg-type]


async def _take_raw(message: KafkaMessage) -> Any:
    return message.raw_message


def _spans(items: list[_Item]) -> dict[TopicPartition, tuple[int, int]]:
    """Return per partition (first offset, offset after the last) of a poll."""
    first: dict[TopicPartition, int] = {}
    last: dict[TopicPartition, int] = {}
    for item in items:  # a partition's records are in the order of their offsets
        first.setdefault(item.tp, item.raw.offset)
        last[item.tp] = item.raw.offset
    return {tp: (offset, last[tp] + 1) for tp, offset in first.items()}


def _bury(ctx: Context[Any], item: _Item, reason: str) -> None:
    headers: RawHeaders = [(str(name), value) for name, value in item.raw.headers]
    ctx.bury(
        OutboxRow(f"{item.topic.name}-dlq", item.raw.key, headers, item.raw.value),
        topic=item.topic.name,
        partition=item.raw.partition,
        offset=item.raw.offset,
        reason=reason,
    )
