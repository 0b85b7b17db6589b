"""A service as a process: start in order, watch, stop in order, exit with the right status.

Start: settings, log, database (refused when behind), partitions, producer, then the place of the
instance (a second process stands by here), relay, HTTP, tasks, consumer. Stop is the reverse; what
was taken is finished, what was not stays on Kafka.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

import asyncpg
from aiokafka import errors as kafka_errors
from prometheus_client import CollectorRegistry

from schemas.topics import Topic
from services.chassis import db, errors, health, logs
from services.chassis.clock import Clock, SystemClock
from services.chassis.consume import Consumer, Handler
from services.chassis.context import Context
from services.chassis.declaration import Declaration
from services.chassis.handled import handled_until
from services.chassis.ids import IdFactory, TimeOrderedIds
from services.chassis.invariants import DayInvariants
from services.chassis.metrics import ChassisMetrics
from services.chassis.outbox import Outbox, Relay
from services.chassis.produce import KafkaSink
from services.chassis.secret import Secret
from services.chassis.settings import ServiceSettings
from services.chassis.standby import Place

S = TypeVar("S")
Task = Callable[[], Awaitable[None]]

EXIT_OK, EXIT_FAILED = 0, 1
_MAINTENANCE_EVERY_S = 60.0
_START_BUDGET_S = 60.0
_DRAIN_TIMEOUT_S = 2.0
_SECRETS_EVERY_S = 1.0
_INVARIANTS_SHARE_MAX = 0.05
"""Of the time, for which invariants may keep a connection busy."""


class Service(Generic[S]):
    """One process of the platform; `app.py` of a service builds it, nothing else does."""

    def __init__(
        self,
        *,
        declaration: Declaration,
        settings: ServiceSettings,
        registry: CollectorRegistry,
        store: Callable[[db.Connection], S] | None = None,
        day_tables: Sequence[db.DayTable] = (),
        invariants: dict[str, str] | None = None,
        day_invariants: dict[str, str] | None = None,
        clock: Clock | None = None,
        ids: IdFactory | None = None,
    ) -> None:
        """Take the declaration, settings and the injected metrics registry.

        Args:
            store: makes the service's store on a connection; None for a service without database.
            day_tables: kept with partitions around today.
            invariants: name -> SQL that returns one bigint, the number of violations.
            day_invariants: the same for a window of days, `$1` to `$2` (`invariants.py`).
        """
        assert declaration.database == (store is not None)
        self.declaration = declaration
        self.settings = settings
        self.registry = registry
        self.clock: Clock = clock or SystemClock()
        self.ids: IdFactory = ids or TimeOrderedIds()
        self.metrics = ChassisMetrics(declaration.name, registry)
        self.sink = KafkaSink(
            settings.kafka,
            prefix=settings.kafka_prefix,
            client_id=f"{settings.kafka_prefix}{declaration.name}-{settings.instance}-out",
        )
        self._store = store
        self._day_tables = tuple(day_tables)
        self._invariants = invariants or {}
        self._day_invariants = DayInvariants(day_invariants or {}, self.clock)
        if store is not None:
            self.metrics.invariant_age.set_function(self._day_invariants.age_s)
        self._pool: asyncpg.Pool[Any] | None = None
        self._relay: Relay | None = None
        self._consumer: Consumer | None = None
        self._place: Place | None = None
        self._tasks: dict[str, Task] = {}
        self._running: list[asyncio.Task[None]] = []
        self._serving: list[asyncio.Task[None]] = []
        self._servers: list[health.HttpServer] = []
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._ready = False
        self._http_app: Any = None
        self._before_stop: list[Task] = []
        self._ready_checks: list[Callable[[], str | None]] = []
        self._routes: dict[Topic, Handler] = {}
        self._first: Topic | None = None
        self._after_first: Task | None = None
        self._on_secret: list[tuple[str, Secret, Callable[[str], None]]] = []

    # ------------------------------------------------------------------ what app.py adds

    def consume(self, routes: dict[Topic, Handler], *, first: Topic | None = None) -> None:
        """Read these topics; the order of the dict is the order inside a poll's transaction.

        Args:
            first: what this one holds at the start is worked off before anything else is read,
                sent or served: a database that was restored is not as it was left.
        """
        self._routes = routes
        self._first = first

    def after_first(self, act: Task) -> None:
        """Do this at the start, after the first topic and before anything is served.

        Weather puts it off: whoever needs it has a task that does it again.
        """
        self._after_first = act

    def serve(self, app: Any) -> None:
        """Serve this ASGI app on the HTTP port."""
        self._http_app = app

    def task(self, name: str, run: Task) -> None:
        """Run this beside the consumer; an exception in it ends the process."""
        self._tasks[name] = run

    def ready_when(self, check: Callable[[], str | None]) -> None:
        """Add a condition of readiness: returns what is missing, or None."""
        self._ready_checks.append(check)

    def before_stop(self, act: Task) -> None:
        """Do this first when the process is asked to stop, while everything else still runs."""
        self._before_stop.append(act)

    def on_secret(self, name: str, act: Callable[[str], None]) -> None:
        """Do this with a secret setting's new text each time its file was replaced.

        Where `act` raises ValueError the text is refused: what was in force stays, an error is
        logged and counted.
        """
        self._on_secret.append((name, self.settings.secret(name), act))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Context[S]]:
        """Open a transaction as a handler gets it; commits at the end and wakes the relay."""
        assert self._pool is not None, "the service has no database, or is not started"
        assert self._store is not None
        async with db.transaction(self._pool) as connection:
            now = self.clock.now()
            context = Context(
                store=self._store(connection),
                outbox=Outbox(self.declaration.name, self.ids, now),
                now=now,
                ids=self.ids,
                connection=connection,
                service=self.declaration.name,
            )
            yield context
            wrote = bool(context.outbox.rows)
            await context.outbox.flush(connection)
        if wrote and self._relay is not None:
            self._relay.wake()

    async def handled_until(self, topic: Topic) -> datetime | None:
        """Return until when all processes have handled a topic and told what came of it.

        See `handled.handled_until`; None also while this process consumes nothing yet.
        """
        if self._consumer is None:
            return None
        return await handled_until(topic, self._consumer, self.transaction, self.clock)

    def fail(self, error: BaseException) -> None:
        """End the process with status 1; the first error wins."""
        if self._failure is None:
            self._failure = error
            text = str(error) if isinstance(error, errors.Fatal) else None
            logs.get().error("giving up", reason=text, **logs.describe(error))
        self._stop.set()

    def stop(self) -> None:
        """Ask the process to stop in order."""
        self._stop.set()

    # ------------------------------------------------------------------ run

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT or a failure; return the exit status."""
        logs.get().info("starting", settings=self.settings.redacted())
        self._listen_to_signals()
        starting = asyncio.create_task(self._start(), name="start")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        # a stop, or a failed task, also ends a start that still waits for the weather
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        try:
            await starting
            logs.get().info("started")
            await stopping
        except asyncio.CancelledError:
            stopping.cancel()
        except Exception as error:  # noqa: BLE001 - start-up: said once, then exit 1
            stopping.cancel()
            self.fail(error)
        await self._stop_all()
        code = EXIT_OK if self._failure is None else EXIT_FAILED
        logs.get().info("stopped", exit_code=code)
        return code

    async def _start(self) -> None:
        self._spawn("watchdog", self._watchdog)
        await self._serve_admin()
        if self._store is not None:
            await self._open_database()
        await self._patiently("kafka", self.sink.start)
        if self._store is not None:
            await self._take_place()
            await self._do_first()
            self._relay = Relay(
                self.settings.secret("database_url"), self.sink, self.metrics, self.clock
            )
            self._spawn("relay", self._relay.run)
            self._spawn("maintenance", self._maintain_for_ever)
            self._spawn("invariants", self._check_invariants_for_ever)
        if self._http_app is not None:
            await self._serve(self._http_app, self.settings.http_host, self.settings.http_port)
        for name, run in self._tasks.items():
            self._spawn(name, run)
        if self._on_secret:
            self._spawn("secrets", self._watch_secrets)
        if self._consumer is not None:
            await self._patiently("kafka", self._consumer.start)
            self._spawn("liveness", self._watch_consumer)
        self._ready = True

    async def _stop_all(self) -> None:
        self._ready = False
        for server in self._servers[1:]:
            server.stop()
        if self._failure is None:
            await self._run_stop_steps()
        if self._consumer is not None:
            await self._consumer.stop()
        if self._relay is not None and self._failure is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._relay.drained(), _DRAIN_TIMEOUT_S)
        for server in self._servers:
            server.stop()
        if self._serving:  # they close their sockets and end open requests by themselves
            await asyncio.wait(self._serving, timeout=self.settings.stop_timeout_s / 2)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._close()

    async def _run_stop_steps(self) -> None:
        for act in self._before_stop:
            try:
                await asyncio.wait_for(act(), self.settings.stop_timeout_s)
            except Exception as error:  # noqa: BLE001 - the stop goes on; the next start takes up the rest
                logs.get().warning("stop step failed", **logs.describe(error))

    async def _close(self) -> None:
        if self._relay is not None:
            await self._relay.close()
        await self.sink.stop()
        if self._place is not None:
            await self._place.close()
        if self._pool is not None:
            self._pool.terminate()
        faulthandler.cancel_dump_traceback_later()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._on_signal, sig)

    def _on_signal(self, sig: signal.Signals) -> None:
        logs.get().info("signal", signal=sig.name)
        self._stop.set()

    def _spawn(self, name: str, run: Task) -> None:
        async def guarded() -> None:
            try:
                await run()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - a task's end is the process's end
                self.fail(error)

        self._running.append(asyncio.create_task(guarded(), name=name))

    async def _patiently(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        """Wait for the weather at the start, within a budget."""
        deadline = self.clock.monotonic() + _START_BUDGET_S
        delay = 0.1
        while True:
            try:
                await act()
            except Exception as error:
                if not errors.is_transient(error) and not isinstance(
                    error, kafka_errors.KafkaConnectionError
                ):
                    raise
                if self.clock.monotonic() + delay > deadline:
                    raise errors.Fatal(
                        f"{what} did not answer, or refused our login, for {_START_BUDGET_S:.0f} s"
                    ) from error
                logs.get().info("waiting", name=what, **logs.describe(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
            else:
                return

    # ------------------------------------------------------------------ database

    async def _open_database(self) -> None:
        await self._patiently("postgresql", self._connect_pool)
        await self._patiently("postgresql", self._check_migrated)
        await self._patiently("postgresql", self._maintain)

    async def _check_migrated(self) -> None:
        assert self._pool is not None
        async with self._pool.acquire() as connection:
            await db.check_migrated(connection, self.declaration.migration_folders)

    async def _take_place(self) -> None:
        self._place = Place(self.settings.secret("database_url"), self.settings.instance)
        self.metrics.standing_by.set_function(lambda: float(self._is_standing_by()))
        await self._patiently("postgresql", self._place.take)
        self._spawn("place", self._place.hold)

    async def _do_first(self) -> None:
        if self._routes:
            self._consumer = Consumer(
                service=self.declaration.name,
                settings=self.settings,
                routes=self._routes,
                transaction=self.transaction,
                metrics=self.metrics,
                clock=self.clock,
                fail=self.fail,
            )
        consumer, first = self._consumer, self._first
        if consumer is not None and first is not None:
            await self._patiently("kafka", lambda: consumer.catch_up(first))
        if self._after_first is not None:
            await self.unless_weather("after_first", self._after_first)

    def _is_standing_by(self) -> bool:
        return self._place is not None and self._place.is_waited_for

    async def _connect_pool(self) -> None:
        self._pool = await db.create_pool(
            self.settings.secret("database_url"),
            size_max=self.settings.database_pool_max,
            name=f"{self.declaration.name}-{self.settings.instance}",
            transaction_idle_max_s=self.settings.transaction_idle_max_s,
        )

    async def _maintain(self) -> None:
        assert self._pool is not None
        async with db.transaction(self._pool) as connection:
            await connection.execute("SELECT chassis_outbox_maintain()")
            if self._relay is not None:
                await self._relay.look(connection)
        async with db.transaction(self._pool) as connection:
            await db.ensure_days(connection, self._day_tables, self.clock.now().date())

    async def _maintain_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_MAINTENANCE_EVERY_S)
            await self.unless_weather("maintenance", self._maintain)

    async def _check_invariants_for_ever(self) -> None:
        while True:
            started_at_s = self.clock.monotonic()
            await self.unless_weather("invariants", self.check_invariants)
            took_s = self.clock.monotonic() - started_at_s
            # on a database that has grown the checks come later, never denser
            await asyncio.sleep(
                max(self.settings.invariant_interval_s, took_s / _INVARIANTS_SHARE_MAX)
            )

    async def check_invariants(self) -> dict[str, int]:
        """Run the invariants' SQL of this round, export the counts, and return them."""
        found: dict[str, int] = {}
        async with self.transaction() as ctx:
            for name, sql in self._invariants.items():
                found[name] = int(await ctx.connection.fetchval(sql))
            found |= await self._day_invariants.check(ctx.connection, ctx.now.date())
        for name, violations in found.items():
            self.metrics.invariant_violations.labels(name).set(violations)
            if violations:
                logs.get().error("invariant violated", invariant=name, violations=violations)
        return found

    async def _watch_secrets(self) -> None:
        """Tell whoever holds a key of its replacement."""
        seen = {name: secret.version() for name, secret, _ in self._on_secret}
        while True:
            await asyncio.sleep(_SECRETS_EVERY_S)
            for name, secret, act in self._on_secret:
                version = secret.version()
                if version in (None, seen[name]):
                    continue
                seen[name] = version
                try:
                    act(secret.read())
                except ValueError as error:
                    outcome = "refused"
                    logs.get().error("secret refused", name=name, **logs.describe(error))
                else:
                    outcome = "taken"
                    logs.get().info("secret taken", name=name)
                self.metrics.secret_reloads.labels(name, outcome).inc()

    async def weatherproof(self, place: str, run: Task) -> None:
        """Run a task that never ends by itself; after a transient error start it again."""
        while True:
            await self.unless_weather(place, run)
            await asyncio.sleep(1.0)

    async def unless_weather(self, place: str, act: Callable[[], Awaitable[Any]]) -> None:
        """Do this once; a transient error is counted and logged: the next round tries again."""
        try:
            await act()
        except Exception as error:
            if not errors.is_transient(error):
                raise
            self.metrics.retries.labels(place).inc()
            logs.get().warning("put off", name=place, **logs.describe(error))

    # ------------------------------------------------------------------ HTTP and health

    async def _serve_admin(self) -> None:
        app = health.admin_app(self.registry, self._live_problem, self._ready_problem)
        await self._serve(app, self.settings.admin_host, self.settings.admin_port)

    async def _serve(self, app: Any, host: str, port: int) -> None:
        server = health.HttpServer(
            app, host=host, port=port, stop_timeout_s=self.settings.stop_timeout_s / 2
        )

        async def run() -> None:
            try:
                await server.run()
            except SystemExit as end:  # uvicorn's way of saying that the port is taken
                raise errors.Fatal(f"port {port} is taken or refused") from end

        self._spawn(f"http-{port}", run)
        self._serving.append(self._running[-1])
        self._servers.append(server)
        waiting = asyncio.ensure_future(server.started())
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        stopping.cancel()

    def _live_problem(self) -> str | None:
        return None if self._failure is None else "failed"

    def _ready_problem(self) -> str | None:
        if not self._ready or self._stop.is_set():
            return health.STANDING_BY if self._is_standing_by() else "not started"
        if self._consumer is not None and not self._consumer.assigned.is_set():
            return "no partitions assigned yet"
        return next((text for check in self._ready_checks if (text := check())), None)

    async def _watch_consumer(self) -> None:
        """End a process that has records waiting but finishes no poll (aiokafka #1154, #625)."""
        assert self._consumer is not None
        limit_s = self.settings.stall_timeout_s
        waiting_since: float | None = None
        while True:
            await asyncio.sleep(limit_s / 6)
            n_waiting = await self._consumer.n_waiting()
            if not n_waiting:
                waiting_since = None
                continue
            now = self.clock.monotonic()
            waiting_since = waiting_since or now
            # a poll under way is bounded by its own retry budget
            allowed = limit_s + (self.settings.retry_budget_s if self._consumer.busy_s() else 0)
            if now - waiting_since > limit_s and self._consumer.stalled_s() > allowed:
                raise errors.Fatal(f"{n_waiting} records wait, no poll for {limit_s:.0f} s")

    async def _watchdog(self) -> None:
        """End a process whose event loop stands still: a timer thread outside Python's loop."""
        limit_s = max(10.0, self.settings.stall_timeout_s)
        while True:
            faulthandler.dump_traceback_later(limit_s, exit=True)
            await asyncio.sleep(limit_s / 10)


Builder = Callable[[], Service[Any]]
Command = Callable[[Sequence[str]], Awaitable[int]]


def main(
    declaration: Declaration,
    build: Builder,
    settings: type[ServiceSettings],
    commands: dict[str, Command] | None = None,
    duties: dict[str, Command] | None = None,
) -> int:
    """Run `python -m services.<name> [migrate | <command> ...]` and return the exit status.

    Args:
        commands: by name; those of the service, with its settings.
        duties: by name; those of persons with a login of their own, who have none of its settings.
    """
    arguments = sys.argv[1:]
    own_login: dict[str, Command] = {"migrate": lambda _: _migrate(declaration), **(duties or {})}
    try:
        if arguments and arguments[0] in own_login:
            return asyncio.run(_command(own_login[arguments[0]], arguments[1:]))
        loaded = settings.load()
        if declaration.database and not loaded.database_url.get_secret_value():
            # libpq's defaults would find some database of some user instead
            sys.stderr.write(f"{declaration.name}: set {declaration.env_prefix}DATABASE_URL\n")
            return EXIT_FAILED
        logs.configure(declaration.name, loaded.instance, loaded.log_level)
        if not arguments:
            return asyncio.run(_serve(build))
        if commands and arguments[0] in commands:
            return asyncio.run(_command(commands[arguments[0]], arguments[1:]))
    except ValueError as error:
        said = _without_input(error, declaration.env_prefix)
        sys.stderr.write(f"{declaration.name}: settings: {said}\n")
        return EXIT_FAILED
    names = ", ".join([*own_login, *(commands or {})])
    sys.stderr.write(f"{declaration.name}: unknown command; known: {names}\n")
    return 2


async def _serve(build: Builder) -> int:
    return await build().run()


async def _command(command: Command, arguments: Sequence[str]) -> int:
    return await command(arguments)


async def _migrate(declaration: Declaration) -> int:
    name = f"{declaration.env_prefix}MIGRATE_DATABASE_URL"
    url = os.environ.get(name)
    if not url:
        sys.stderr.write(f"{declaration.name}: set {name} to the owner's database URL\n")
        return EXIT_FAILED
    await db.migrate(url, declaration.migration_folders)
    return EXIT_OK


def _without_input(error: ValueError, env_prefix: str) -> str:
    """Say which settings are wrong, by their names in the environment, without their values."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return type(error).__name__
    found = problems(include_input=False, include_url=False)
    return "; ".join(
        f"{env_prefix}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in found
    )
