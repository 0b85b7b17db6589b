"""Three services with rows of visitors, and orders on them: for the tests of the executor.

Rows are written as the owner, all tables of a service for one visitor and day, in a state that the
service's own invariants accept. Lots end after all that a test does, whatever the hour: an expiry
of its own would be told beside the orders.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from prometheus_client import CollectorRegistry

from schemas import topics
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1, RetentionReceiptV1
from schemas.view_ticket import KeyRing
from services.ad_ledger import classification as ledger_tables
from services.ad_ledger import handlers as ledger
from services.ad_ledger import store as ledger_store
from services.ad_ledger.metrics import LedgerMetrics
from services.call_control import classification as call_tables
from services.call_control import handlers as calls
from services.call_control import store as call_store
from services.chassis import db
from services.consent import classification as consent_tables
from services.consent import store as consent_store
from services.privacy import access_log, erased
from services.privacy.declare import Table, by_day
from services.privacy.executor import Executor, Hooks
from services.privacy.order_store import ORDERS_LOCK
from tests.support.bench import IDS, Bench, open_bench, received
from tests.support.stack import World

KINDS = (DataKind.AD_USE, DataKind.IP_ADDRESS, DataKind.TRAFFIC_DATA)
"""All kinds that a visitor's id reaches."""

_LEDGER_ROWS = """
WITH given AS (SELECT $1::date AS day, $2::uuid AS visitor_id, $3::uuid AS ticket_id,
                      $4::uuid AS call_id, $1::date + interval '9 hours 30 minutes' AS at),
view AS (INSERT INTO ad_view SELECT day, ticket_id, kind, visitor_id, at, 16000, credit_ms,
         '2026-1', false FROM given,
         (VALUES ('start', 0), ('complete', 4000)) AS v(kind, credit_ms)),
address AS (INSERT INTO ad_view_address SELECT day, ticket_id, '192.0.2.7' FROM given),
report AS (INSERT INTO partner_report SELECT day, ticket_id, 'complete', 'house-1' FROM given),
watch AS (INSERT INTO visitor_watch SELECT day, visitor_id, at, 4000 FROM given),
lot AS (INSERT INTO lot SELECT day, ticket_id, visitor_id, at + interval '8 days', 4000,
        1000, CASE WHEN $5 THEN 3000 ELSE 0 END, CASE WHEN $5 THEN 0 ELSE 3000 END, 0, 0
        FROM given),
posted AS (INSERT INTO posting (lot_day, ticket_id, visitor_id, operation, debit_account,
           credit_account, amount_ms, posted_at, reservation_id, kind, tariff_version)
    SELECT day, ticket_id, visitor_id, operation, debit, credit, amount, at,
           CASE WHEN operation <> 'grant' THEN call_id END,
           CASE WHEN operation = 'grant' THEN 'complete' END,
           CASE WHEN operation = 'grant' THEN '2026-1' END
    FROM given, (VALUES ('grant', 'issued', 'available', 4000),
                        ('reserve', 'available', 'reserved', 3000),
                        ('spend', 'reserved', 'spent', 3000)) AS p(operation, debit, credit, amount)
    WHERE operation <> 'spend' OR NOT $5),
reserved AS (INSERT INTO reservation SELECT day, call_id, visitor_id,
    CASE WHEN $5 THEN 'held' ELSE 'settled' END, 3000, 3000, CASE WHEN $5 THEN 0 ELSE 3000 END,
    now() + interval '1 hour', at, at, CASE WHEN NOT $5 THEN at END FROM given),
share AS (INSERT INTO reservation_share SELECT day, call_id, day, ticket_id, 3000 FROM given)
INSERT INTO platform_account AS a SELECT day, account, balance FROM given,
    (VALUES ('issued', -4000), ('spent', 3000)) AS p(account, balance)
    WHERE account = 'issued' OR NOT $5
ON CONFLICT (account_day, account) DO UPDATE SET balance_ms = a.balance_ms + excluded.balance_ms
"""
_CALL_ROWS = """
WITH given AS (SELECT $1::date AS day, $2::uuid AS visitor_id, $3::uuid AS call_id,
                      $1::date + interval '9 hours 30 minutes' AS at),
address AS (INSERT INTO call_address SELECT day, call_id, '192.0.2.7' FROM given),
leg AS (INSERT INTO call_leg (call_day, call_id, leg, dialled_at, answered_at, ended_at,
        duration_ms, sip_status, is_down)
    SELECT day, call_id, leg, at, at, at, 2000, 200, true FROM given,
         (VALUES ('a'), ('b')) AS l(leg)),
ordered AS (INSERT INTO call_order SELECT day, call_id, 'dial', at, at FROM given)
INSERT INTO call (call_day, call_id, visitor_id, state, reason, callback_number,
    destination_number, reserved_ms, lease_until, holder, holder_epoch, traceparent, requested_at,
    connected_at, ended_at, ended_by, talk_ms, overrun_ms)
SELECT day, call_id, visitor_id, CASE WHEN $4 THEN 'talking' ELSE 'ended' END,
       CASE WHEN NOT $4 THEN 'hung_up' END, '+493023125001', '+493023125900', 3000,
       now() + interval '1 hour', 'one', 1, 'trace', at, at, CASE WHEN NOT $4 THEN at END,
       CASE WHEN NOT $4 THEN 'a' END, CASE WHEN NOT $4 THEN 2000 END, CASE WHEN NOT $4 THEN 0 END
FROM given
"""
_CONSENT_ROWS = """
WITH subject AS (INSERT INTO consent_subject VALUES ($1, $2, $3)),
transfer AS (INSERT INTO consent_transfer_visitor
             VALUES ($1, $4, $2, $1, $1::date + interval '9 hours'))
INSERT INTO consent_record VALUES ($1::date + 6, $4, 'marketing', $3, 'given', 'v1', 'de.1', 'de',
                                   'banner', $1::date + interval '9 hours', 0, 1,
                                   decode(repeat('11', 32), 'hex'))
"""


@dataclass(kw_only=True)
class Side:
    """One service's database with an executor.

    Attributes:
        owner: a connection that may read what the service may not.
    """

    name: str
    bench: Bench[Any]
    owner: "asyncpg.Connection[Any]"
    tables: Sequence[Table]
    invariants: dict[str, str]
    executor: Executor
    receipts: list[RetentionReceiptV1] = field(default_factory=list)

    @property
    def today(self) -> date:
        """The bench's day."""
        return self.bench.now.date()

    async def fill(self, visitor_id: UUID, day: date | None = None, *, live: bool = False) -> None:
        """Write a visitor's rows of a day in all tables; `live`: with a call under way."""
        day = day or self.today
        await self.owner.execute("SELECT chassis_day_add($1, $2)", self.tables[0].name, day)
        for table in self.tables:
            if table.drop_function == "privacy_day_drop":
                await self.owner.execute("SELECT chassis_day_add($1, $2)", table.name, day)
        if self.name == "ad_ledger":
            call_id = IDS.new()
            await self.owner.execute(_LEDGER_ROWS, day, visitor_id, IDS.new(), call_id, live)
        elif self.name == "call_control":
            await self.owner.execute(_CALL_ROWS, day, visitor_id, IDS.new(), live)
        else:
            await self.owner.execute(_CONSENT_ROWS, day, visitor_id, IDS.new(), IDS.new())

    async def end_call(self) -> None:
        """End what is live, as the service does."""
        async with self.bench.transaction() as ctx:
            if self.name == "ad_ledger":
                rows = await self.bench.fetch(
                    "SELECT reservation_id FROM reservation WHERE state = 'held'"
                )
                await ledger_handlers()._void(ctx, [row["reservation_id"] for row in rows])
            else:
                await self.bench.fetch(
                    "UPDATE call SET state = 'ended', reason = 'hung_up', ended_at = now(), "
                    "talk_ms = 2000, overrun_ms = 0 WHERE state = 'talking'"
                )

    async def handle(self, *orders: RetentionOrderV1) -> list[RetentionReceiptV1]:
        """Handle orders as one poll, and the drops that it noted; return the receipts."""
        return await carry_out(self.bench, self.executor, *orders)

    async def retry(self) -> list[RetentionReceiptV1]:
        """Try waiting orders again; return the receipts."""
        return (await retry(self.bench, self.executor))[1]

    async def live(self) -> dict[str, list[str]]:
        """Return every row of every table, as sorted JSON texts."""
        return {
            table.name: [
                row[0]
                for row in await self.owner.fetch(
                    f"SELECT to_jsonb(t)::text AS row FROM {table.name} t ORDER BY 1"
                )
            ]
            for table in self.tables
            if table not in (access_log.TABLE, erased.TABLE)
        }

    async def kept(self) -> dict[str, list[str]]:
        """Return the content of the store by table; a row once, however many keep it."""
        rows = await self.owner.fetch(
            "SELECT DISTINCT source, content::text FROM privacy_kept ORDER BY 1, 2"
        )
        found: dict[str, list[str]] = {}
        for row in rows:
            found.setdefault(row["source"], []).append(row["content"])
        return found

    async def violations(self) -> dict[str, int]:
        """Return the invariants that do not hold, asked as the service asks them."""
        found = {name: (await self.bench.fetch(q))[0][0] for name, q in self.invariants.items()}
        return {name: n for name, n in found.items() if n}

    def order(
        self,
        action: RetentionAction,
        *visitors: UUID,
        kinds: Sequence[DataKind] = KINDS,
        before: date | None = None,
        protection_id: UUID | None = None,
        from_day: date | None = None,
    ) -> RetentionOrderV1:
        """Return an order; of days up to today, and of all kinds, where not said otherwise."""
        if action in (RetentionAction.RELEASE, RetentionAction.UNRESTRICT):
            kinds = kinds[:1]
        return RetentionOrderV1(
            order_id=IDS.new(),
            kind=kinds[0],
            action=action,
            before_day=before or self.today + timedelta(days=1),
            as_of=self.bench.now,
            other_kinds=tuple(kinds[1:]),
            visitor_ids=tuple(visitors),
            from_day=from_day,
            protection_id=protection_id,
        )

    def drops(self, before: date | None = None) -> list[RetentionOrderV1]:
        """Return an order to drop each kind; addresses first, while they can still be found."""
        kinds = sorted(KINDS, key=lambda kind: kind is not DataKind.IP_ADDRESS)
        drop = RetentionAction.DROP
        return [self.order(drop, kinds=(kind,), before=before) for kind in kinds]


async def carry_out(
    bench: Bench[Any], executor: Executor, *orders: RetentionOrderV1
) -> list[RetentionReceiptV1]:
    """Handle orders as one poll, then what it has noted for at once; return the receipts."""
    receipts = await poll(bench, executor, *orders)
    noted = (RetentionAction.DROP, RetentionAction.ANONYMISE, RetentionAction.RELEASE)
    has_more = any(
        order.action in noted or (order.action is RetentionAction.HOLD and not order.visitor_ids)
        for order in orders
    )
    while has_more:
        has_more, found = await retry(bench, executor)
        receipts += found
    return receipts


async def poll(
    bench: Bench[Any], executor: Executor, *orders: RetentionOrderV1
) -> list[RetentionReceiptV1]:
    """Handle orders as one poll and nothing else; return the receipts that it enqueued."""
    async with bench.transaction() as ctx:
        given = [received(topics.RETENTION_ORDER, one, bench.now) for one in orders]
        await executor.on_orders(ctx, given)
        return bench.enqueued(ctx, topics.RETENTION_RECEIPT, RetentionReceiptV1)


async def retry(bench: Bench[Any], executor: Executor) -> tuple[bool, list[RetentionReceiptV1]]:
    """Try waiting orders once; return whether there are more, and the receipts."""
    async with bench.transaction() as ctx:
        has_more = await executor.retry(ctx)
        return has_more, bench.enqueued(ctx, topics.RETENTION_RECEIPT, RetentionReceiptV1)


def ledger_handlers() -> ledger.Handlers:
    """Return the ledger's handlers; no ticket is read here."""
    return ledger.Handlers(KeyRing({"k1": "11" * 32}), LedgerMetrics(CollectorRegistry()))


def _call_handlers() -> calls.Handlers:
    return calls.Handlers(calls.Limits(talk_max_ms=1, lease_ms=1, request_age_max_s=1))


Parts = tuple[Callable[[db.Connection], Any], Sequence[Table], dict[str, str], Callable[[], Hooks]]
_PARTS: dict[str, Parts] = {
    "ad_ledger": (
        ledger_store.Store, ledger_tables.TABLES, ledger_store.INVARIANTS,
        lambda: Hooks(
            before_drop=ledger_handlers().close_before_drop,
            busy=ledger_handlers().with_held_reservation,
            settle=ledger_handlers().close_of_visitors,
            figures=ledger_handlers().make_figures,
        ),
    ),
    "call_control": (
        call_store.Store, call_tables.TABLES, call_store.INVARIANTS,
        lambda: Hooks(
            busy=_call_handlers().with_active_call, figures=_call_handlers().make_figures
        ),
    ),
    "consent": (consent_store.Store, consent_tables.TABLES, consent_store.INVARIANTS, Hooks),
}  # fmt: skip


@contextlib.asynccontextmanager
async def somebody_at_work(world: World, service: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """Have orders carried out by somebody else meanwhile, until the connection commits."""
    other = await asyncpg.connect(world.database_url(service))
    try:
        await other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({ORDERS_LOCK})")
        yield other
    finally:
        await other.close()


@contextlib.asynccontextmanager
async def open_side(world: World, name: str, *, as_owner: bool = False) -> AsyncIterator[Side]:
    """Open a service's empty database; `as_owner`: all on the owner's connection."""
    store, tables, invariants, hooks = _PARTS[name]
    owner = await db.connect(world.owner_url(name))
    days = by_day(tables)
    try:
        async with open_bench(world, name, store, days_of=days) as opened:
            bench = replace(opened, connection=owner) if as_owner else opened
            side = Side(
                name=name,
                bench=bench,
                owner=owner,
                tables=tables,
                invariants=invariants,
                executor=Executor(tables, simulation=True, hooks=hooks()),
            )
            await _empty(side)
            yield side
    finally:
        await owner.close()


async def _empty(side: Side) -> None:
    names = [table.name for table in side.tables] + ["privacy_kept", "privacy_visitor"]
    names += ["retention_later", "retention_done", "privacy_protection", "outbox"]
    if side.name == "ad_ledger":
        names.append("platform_account")
    await side.owner.execute(f"TRUNCATE {', '.join(names)}")
    for child in await side.owner.fetch(
        "SELECT relname FROM pg_class WHERE relname ~ '^privacy_(kept|visitor)_[0-9a-f]{32}$'"
    ):
        await side.owner.execute(f"DROP TABLE IF EXISTS {child['relname']}")


def total(receipts: Iterable[RetentionReceiptV1]) -> dict[str, tuple[int, int, int]]:
    """Return (gone, held, restricted) by table, summed; tables of zeros are left out."""
    found: dict[str, tuple[int, int, int]] = {}
    for receipt in receipts:
        for c in receipt.counts:
            a, b, d = found.get(c.table, (0, 0, 0))
            found[c.table] = (a + c.n_rows, b + c.n_held, d + c.n_restricted)
    return {name: counts for name, counts in found.items() if any(counts)}
