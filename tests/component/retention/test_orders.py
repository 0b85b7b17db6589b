"""Sweeps, orders and receipts on real PostgreSQL, under the service's own role (D3, D4, R-D9)."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from schemas import topics
from schemas.retention import (
    DataKind,
    RetentionOrderV1,
    RetentionReceiptV1,
    TableCount,
)
from services.chassis.clock import SystemClock
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.privacy import calendar
from services.retention.classification import CLASSIFICATION
from services.retention.command import EXIT_NOT_COMPLETE, EXIT_REFUSED, Request, Sweeper, parse
from services.retention.domain import Answer, Sweep
from services.retention.handlers import on_receipts
from services.retention.http import build_http
from services.retention.schedule import Schedule
from services.retention.settings import Settings
from services.retention.store import INVARIANTS, Age, Store
from services.retention.sweep import issue
from services.retention.wire import as_table
from tests.support.bench import Bench, open_bench, received
from tests.support.schedules import reviewed
from tests.support.stack import World

WORLD_SERVICES = ("retention",)
SERVICES = topics.RETENTION_ORDER.consumers
STORED_KINDS = {
    "ip_address",
    "ad_use",
    "traffic_data",
    "consent_record",
    "access_log",
    "transfer_record",
}
QUARTER_HOUR = timedelta(minutes=15)
SCHEDULE = reviewed()
IDS = TimeOrderedIds()
_days = iter(range(1, 100))


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    """A bench whose day no other test has: orders are kept for ever, cuts are per day."""
    async with open_bench(world, "retention", Store) as found:
        found.now -= timedelta(days=next(_days))
        await found.fetch("SELECT chassis_outbox_maintain()")
        yield found


async def make_sweep(
    bench: Bench[Store], as_of: datetime | None = None, *, again: bool = False
) -> tuple[Sweep, list[RetentionOrderV1]]:
    """Make a sweep and return it with the orders that it enqueued."""
    async with bench.transaction() as ctx:
        sweep_id = await issue(
            ctx, SCHEDULE, as_of or bench.now, overdue_after=QUARTER_HOUR, again=again
        )
        orders = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
        sweep = await ctx.store.sweep(sweep_id)
    assert sweep is not None
    return sweep, orders


def receipt(order: RetentionOrderV1, service: str, n_rows: int = 0) -> RetentionReceiptV1:
    return RetentionReceiptV1(
        order_id=order.order_id,
        service=service,
        kind=order.kind,
        counts=(TableCount(table="ad_view", n_partitions=1, n_rows=n_rows),),
        done_at=order.as_of,
    )


async def answer(bench: Bench[Store], *receipts: RetentionReceiptV1) -> dict[str, int]:
    """Handle receipts as one poll and return how many there were of each outcome."""
    async with bench.transaction() as ctx:
        await on_receipts(
            ctx, [received(topics.RETENTION_RECEIPT, one, bench.now) for one in receipts]
        )
        return {outcome: n for (_, outcome), n in ctx.counts.items()}


async def get(bench: Bench[Store], path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=build_http(bench.transaction, SCHEDULE, SystemClock()))
    async with httpx.AsyncClient(transport=transport, base_url="http://retention") as client:
        return await client.get(path)


async def test_it_says_until_when_full_addresses_may_be_kept(bench: Bench[Store]) -> None:
    """R-C3, R-D2: by the assessment in force, which always has an end."""
    today = calendar.berlin_date(SystemClock().now())
    found = (await get(bench, "/v1/threat")).json()
    ends_on = SCHEDULE.level_ends_on(today)
    if ends_on > today:
        assert datetime.fromisoformat(found["kept_until"]) == calendar.midnight_in_berlin(ends_on)
    else:
        assert found == {"level": "none", "kept_until": None}


async def violations(bench: Bench[Store]) -> dict[str, int]:
    found = {name: (await bench.fetch(sql))[0]["count"] for name, sql in INVARIANTS.items()}
    return {name: n for name, n in found.items() if n}


async def test_a_sweep_orders_each_stored_kind_once_with_its_outbox(bench: Bench[Store]) -> None:
    """R-D4, R-D5, R-D9: which rule, which day, as of when; all of it in one transaction."""
    sweep, orders = await make_sweep(bench)
    new = [standing.order for standing in sweep.orders if standing.order.as_of == bench.now]
    assert {standing.order.kind for standing in sweep.orders} == STORED_KINDS
    assert {(o.order_id, o.kind, o.before_day) for o in new} == {
        (e.order_id, e.kind.value, e.before_day) for e in orders
    }
    by_kind = {order.kind: order for order in new}
    assert by_kind["ad_use"].before_day == bench.now.date() - timedelta(days=6)
    assert by_kind["ad_use"].requirement == "R-D5"
    assert by_kind["ad_use"].expected == SERVICES
    assert sweep.schedule_version == SCHEDULE.version


async def test_addresses_are_anonymised_since_the_rule_says_so(bench: Bench[Store]) -> None:
    """R-C2, R-D2, R-D9: by the rule of the day; all other kinds are dropped; a cut stays one."""
    actions = []
    for day in ("2026-11-22T12:00:00+00:00", "2026-11-24T12:00:00+00:00"):
        _, orders = await make_sweep(bench, datetime.fromisoformat(day), again=True)
        actions.append({order.kind.value: order.action.value for order in orders})
    before, since = actions
    assert before == dict.fromkeys(STORED_KINDS, "drop")
    assert since == before | {"ip_address": "anonymise"}
    _, orders = await make_sweep(bench, datetime.fromisoformat(day))
    assert orders == []
    order = next(o for o in (await make_sweep(bench, datetime.fromisoformat(day), again=True))[1])
    counts = TableCount(table="ad_view_address", n_partitions=1, n_rows=20, n_figures=3)
    given = receipt(order, "ad_ledger").model_copy(update={"counts": (counts,)})
    assert await answer(bench, given) == {Answer.NEW.value: 1}
    found = (await get(bench, f"/v1/orders/{order.order_id}")).json()
    assert found["receipts"][0]["counts"][0]["n_figures"] == 3


async def test_the_same_cut_is_ordered_once(bench: Bench[Store]) -> None:
    """R-D9: a sweep each hour issues one order a day, and says which one it found."""
    first, _ = await make_sweep(bench)
    second, orders = await make_sweep(bench, bench.now + timedelta(hours=1))
    assert orders == []
    ids = [standing.order.order_id for standing in first.orders]
    assert [standing.order.order_id for standing in second.orders] == ids


async def test_a_cut_of_a_day_under_way_is_ordered_again_once_that_day_is_due(
    bench: Bench[Store],
) -> None:
    """R-D2, R-C3: a threat begins, and what its first days keep still goes after seven."""
    first_day = bench.now.replace(hour=0, minute=30)
    document = json.loads(SCHEDULE.model_dump_json(exclude_none=True))
    document["threat_assessments"] = [
        {"assessed_on": str((first_day + timedelta(days=n)).date()), "level": level,
         "author": "test", "reason": "test"}
        for n, level in ((-30, "none"), (1, "normal"))
    ]  # fmt: skip
    rules = Schedule.model_validate_json(json.dumps(document))

    async def addresses_before(as_of: datetime) -> list[date]:
        async with bench.transaction() as ctx:
            await issue(ctx, rules, as_of, overdue_after=QUARTER_HOUR)
            orders = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
        return [order.before_day for order in orders if order.kind is DataKind.IP_ADDRESS]

    tomorrow = (first_day + timedelta(days=1)).date()
    # no threat: the day under way goes, with each sweep
    assert await addresses_before(first_day) == [tomorrow]
    assert await addresses_before(first_day + timedelta(hours=20)) == [tomorrow]
    # what was written after the last sweep of that day, and on it by events that came late
    goes_at = datetime.combine(tomorrow, time(), UTC) + timedelta(days=6, hours=-2)
    assert tomorrow in await addresses_before(goes_at + timedelta(minutes=1))
    assert await addresses_before(goes_at + timedelta(hours=1)) == []


async def test_two_sweeps_at_once_order_a_cut_once(bench: Bench[Store], world: World) -> None:
    """R-D9: the timer and a person, or two processes, at the same moment."""
    benches = []
    async with (
        open_bench(world, "retention", Store, now=bench.now) as one,
        open_bench(world, "retention", Store, now=bench.now) as other,
    ):
        benches = [one, other]
        results = await asyncio.gather(*(make_sweep(each) for each in benches))
    issued = [order.kind.value for _, orders in results for order in orders]
    assert sorted(set(issued)) == sorted(issued)


async def test_the_database_refuses_the_same_order_twice(bench: Bench[Store]) -> None:
    """R-D9: whatever the code above it does."""
    sweep, _ = await make_sweep(bench)
    doubled = sweep.orders[0].order
    with pytest.raises(asyncpg.UniqueViolationError, match="retention_order_pk"):
        await bench.store(bench.connection).save_order(doubled)
    with pytest.raises(asyncpg.UniqueViolationError, match="retention_order_cut_uq"):
        await bench.fetch(
            """
            INSERT INTO retention_order
            SELECT $2, kind, requirement, before_day, attempt, as_of, issued_at, overdue_at,
                   expected
            FROM retention_order WHERE order_id = $1
            """,
            doubled.order_id,
            IDS.new(),
        )


async def test_again_orders_the_same_cut_as_a_new_attempt(bench: Bench[Store]) -> None:
    """R-D9: only when a person asks for it."""
    await make_sweep(bench)
    sweep, orders = await make_sweep(bench, again=True)
    assert {order.kind.value for order in orders} == STORED_KINDS
    attempts = {s.order.kind: s.order.attempt for s in sweep.orders}
    assert attempts["ad_use"] == 1


async def test_an_order_is_complete_only_when_every_service_has_answered(
    bench: Bench[Store],
) -> None:
    """D3."""
    _, orders = await make_sweep(bench)
    order = next(entry for entry in orders if entry.kind is DataKind.AD_USE)
    for n, service in enumerate(SERVICES):
        body = (await get(bench, f"/v1/orders/{order.order_id}")).json()
        assert (body["is_complete"], body["silent"]) == (False, list(SERVICES[n:]))
        assert await answer(bench, receipt(order, service, n_rows=n)) == {"new": 1}
    body = (await get(bench, f"/v1/orders/{order.order_id}")).json()
    assert (body["is_complete"], body["silent"]) == (True, [])
    assert [entry["counts"][0]["n_rows"] for entry in body["receipts"]] == [0, 1, 2]


async def test_a_sweep_is_complete_with_its_last_order(bench: Bench[Store]) -> None:
    """D3, R-D9."""
    sweep, orders = await make_sweep(bench, again=True)
    path = f"/v1/sweeps/{sweep.sweep_id}"
    for order in orders:
        assert (await get(bench, path)).json()["is_complete"] is False
        await answer(bench, *(receipt(order, service, 7) for service in SERVICES))
    body = (await get(bench, path)).json()
    assert body["is_complete"] is True
    assert {order["kind"] for order in body["orders"]} == STORED_KINDS
    async with bench.transaction() as ctx:
        found = await ctx.store.sweep(sweep.sweep_id)
    assert found is not None
    assert "ad_use           R-D5" in as_table(found)
    assert ": complete" in as_table(found)


async def test_a_receipt_again_changes_nothing(bench: Bench[Store]) -> None:
    """D3: within a poll and in a later one."""
    _, (order, *_) = await make_sweep(bench, again=True)
    one = receipt(order, "consent")
    assert await answer(bench, one, one) == {"new": 1, "repeated": 1}
    assert await answer(bench, one) == {"repeated": 1}


async def test_what_was_spared_is_part_of_the_evidence(bench: Bench[Store]) -> None:
    """R-D3, D2, D4: held and restricted rows are counted, kept and shown."""
    sweep, (order, *_) = await make_sweep(bench, again=True)
    spared = TableCount(table="ad_view", n_partitions=1, n_rows=5, n_held=3, n_restricted=2)
    one = receipt(order, "consent").model_copy(update={"counts": (spared,)})
    assert await answer(bench, one, one) == {"new": 1, "repeated": 1}
    body = (await get(bench, f"/v1/orders/{order.order_id}")).json()
    assert body["receipts"][0]["counts"] == [spared.model_dump()]
    async with bench.transaction() as ctx:
        found = await ctx.store.sweep(sweep.sweep_id)
    assert found is not None
    (line,) = [line for line in as_table(found).splitlines() if "ad_view" in line]
    assert line.split()[-5:] == ["1", "5", "3", "2", "0"]
    fewer = one.model_copy(update={"counts": (spared.model_copy(update={"n_held": 0}),)})
    # a service whose database was restored does it again; its first word stands
    assert await answer(bench, fewer) == {"done_again": 1}
    body = (await get(bench, f"/v1/orders/{order.order_id}")).json()
    assert body["receipts"][0]["counts"] == [spared.model_dump()]


async def test_a_receipt_of_before_counts_nothing_as_spared(
    bench: Bench[Store], world: World
) -> None:
    """R-D9: evidence that was written when there were no holds reads as it was meant."""
    _, (order, *_) = await make_sweep(bench, again=True)
    owner = await asyncpg.connect(world.owner_url("retention"))
    try:
        await owner.execute(
            """
            INSERT INTO retention_receipt
            VALUES ($1, 'consent', $2, '[{"table": "ad_view", "n_partitions": 1, "n_rows": 4}]',
                    $3, $3)
            """,
            order.order_id,
            order.kind.value,
            order.as_of,
        )
    finally:
        await owner.close()
    assert await answer(bench, receipt(order, "consent", 4)) == {"repeated": 1}


async def test_receipts_that_prove_nothing_are_poison(bench: Bench[Store]) -> None:
    """D3, R-D9."""
    _, (order, *_) = await make_sweep(bench, again=True)
    await answer(bench, receipt(order, "consent", 1))
    stranger = order.model_copy(update={"order_id": IDS.new()})
    for bad, reason in (
        (receipt(stranger, "consent"), Answer.ORDER_UNKNOWN),
        (receipt(order, "gateway"), Answer.SERVICE_UNEXPECTED),
    ):
        with pytest.raises(Poison, match=reason.value):
            await answer(bench, bad)


async def test_the_last_two_receipts_at_once_complete_the_order(
    bench: Bench[Store], world: World
) -> None:
    """D3: the handler and the sweep's own receipt for Kafka may meet."""
    _, (order, *_) = await make_sweep(bench, again=True)
    await answer(bench, receipt(order, SERVICES[0]))
    async with (
        open_bench(world, "retention", Store) as one,
        open_bench(world, "retention", Store) as other,
    ):
        await asyncio.gather(
            answer(one, receipt(order, SERVICES[1])), answer(other, receipt(order, SERVICES[2]))
        )
    assert (await get(bench, f"/v1/orders/{order.order_id}")).json()["is_complete"] is True


async def test_unknown_orders_and_sweeps_are_not_found(bench: Bench[Store]) -> None:
    for path in (f"/v1/orders/{IDS.new()}", f"/v1/sweeps/{IDS.new()}"):
        response = await get(bench, path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["reason"] == "not_found"


async def test_evidence_is_appended_and_never_changed(bench: Bench[Store]) -> None:
    """R-D9: also not by the service itself."""
    await make_sweep(bench)
    for table in CLASSIFICATION:
        # measured and computed: what is written anew proves nothing
        if table not in ("retention_topic_age", "retention_record_due"):
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await bench.fetch(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bench.fetch("UPDATE retention_receipt SET counts = '[]'")


def test_nothing_that_is_kept_about_orders_is_personal():
    """D4."""
    columns = [column for table in CLASSIFICATION.values() for column in table.values()]
    assert not any(column.personal for column in columns)


async def test_silence_is_a_violation_once_it_is_overdue(bench: Bench[Store]) -> None:
    """D3: the query that production runs sees the order that nobody answers."""
    sweep, orders = await make_sweep(bench, again=True)
    # issued in the past by the bench's clock, so overdue by the database's
    found = (await violations(bench))["d3_no_order_overdue"]
    for order in orders:
        await answer(bench, *(receipt(order, service) for service in SERVICES))
    assert (await violations(bench)).get("d3_no_order_overdue", 0) == found - len(orders)
    assert len(sweep.orders) == len(orders)


async def test_a_completion_without_all_receipts_is_a_violation(
    bench: Bench[Store], world: World
) -> None:
    """D3: found by SQL, whoever wrote it."""
    _, (order, *_) = await make_sweep(bench, again=True)
    await answer(bench, receipt(order, SERVICES[0]))
    owner = await asyncpg.connect(world.owner_url("retention"))
    try:
        await owner.execute("INSERT INTO retention_completion VALUES ($1, now())", order.order_id)
        assert (await violations(bench))["d3_complete_only_with_all_receipts"] == 1
        await owner.execute("DELETE FROM retention_completion WHERE order_id = $1", order.order_id)
        await owner.execute(
            "INSERT INTO retention_receipt SELECT $1, s, 'other', '[]', now(), now() "
            "FROM unnest($2::text[]) s",
            order.order_id,
            [*SERVICES[1:], "gateway"],
        )
        found = await violations(bench)
        assert found["d3_complete_with_all_receipts"] == 1
        assert found["receipts_fit_their_orders"] == 3
        await owner.execute("DELETE FROM retention_receipt WHERE order_id = $1", order.order_id)
    finally:
        await owner.close()


async def test_a_topic_older_than_its_rule_is_a_violation(bench: Bench[Store]) -> None:
    """D1: also when the measurement itself has stopped."""
    clock = (await bench.fetch("SELECT now()"))[0]["now"]
    limit = timedelta(milliseconds=topics.AD_VIEW.age_max_ms)

    async def measure(oldest_at: datetime | None) -> int:
        async with bench.transaction() as ctx:
            age = Age(topic="ad-view", partition=3, oldest_at=oldest_at, age_max=limit)
            await ctx.store.save_ages([age], clock)
        return (await violations(bench)).get("d1_no_topic_older_than_its_rule", 0)

    assert await measure(clock - limit + timedelta(minutes=1)) == 0
    assert await measure(clock - limit - timedelta(minutes=1)) == 1
    assert await measure(None) == 0


# ------------------------------------------------------------------ the command


class StoppedClock:
    """A clock that a test sets; its seconds run."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._ticks = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        self._ticks += 1.0
        return self._ticks


def sweeper(world: World, now: datetime, **overrides: object) -> Sweeper:
    settings = Settings.model_validate(world.settings("retention", **overrides))
    return Sweeper(settings, StoppedClock(now))


def request(as_of: datetime, **overrides: Any) -> Request:
    defaults = {"again": False, "wait": False, "timeout_s": 2.0, "json": True}
    return Request(as_of=as_of, **{**defaults, **overrides})


async def test_a_sweep_as_of_the_future_is_refused_and_leaves_nothing(
    bench: Bench[Store], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D5, R-D9: exit status 2, no order, no outbox row."""
    tables = ("retention_sweep", "retention_order", "outbox")
    before = [await bench.fetch(f"SELECT count(*) FROM {table}") for table in tables]
    ahead = bench.now + timedelta(minutes=6)
    assert await sweeper(world, bench.now).run(request(ahead)) == EXIT_REFUSED
    assert "as_of_in_the_future" in capsys.readouterr().err
    assert [await bench.fetch(f"SELECT count(*) FROM {table}") for table in tables] == before


async def test_a_sweep_waits_in_vain_for_a_silent_service(
    bench: Bench[Store], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """D3: nobody answers here, so the status is not zero."""
    status = await sweeper(world, bench.now).run(request(bench.now, wait=True, again=True))
    assert status == EXIT_NOT_COMPLETE
    body = json.loads(capsys.readouterr().out)
    assert body["is_complete"] is False
    assert {tuple(order["silent"]) for order in body["orders"]} == {SERVICES}


async def test_a_sweep_without_waiting_says_what_it_issued(
    bench: Bench[Store], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9."""
    assert await sweeper(world, bench.now).run(request(bench.now, json=False)) == 0
    assert "no answer yet" in capsys.readouterr().out


async def test_a_sweep_before_the_first_rule_is_refused(
    bench: Bench[Store], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9: without a rule nobody can say how long anything may stay."""
    as_of = datetime.fromisoformat("2021-11-30T00:00:00Z")
    assert await sweeper(world, bench.now).run(request(as_of)) == EXIT_REFUSED
    assert "no rule for web_use is in force on 2021-11-30" in capsys.readouterr().err


def test_as_of_must_be_said():
    """R-D9: a sweep never guesses its instant."""
    with pytest.raises(SystemExit) as stopped:
        parse(["--wait"])
    assert stopped.value.code == EXIT_REFUSED
    assert parse(["--as-of", "2026-11-30T00:00:00Z"]).as_of.utcoffset() == timedelta(0)
