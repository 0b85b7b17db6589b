"""The chain of evidence on real PostgreSQL, attacked as its owner (R-D9, R-D10, D4)."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import topics
from schemas.retention import RetentionOrderV1, RetentionReceiptV1, TableCount
from services.chassis import db
from services.chassis.clock import SystemClock
from services.chassis.errors import Poison
from services.privacy import calendar, chain
from services.privacy.chain import Anchor, Fault, SigningKeys, VerifyKeys
from services.privacy.receipts import Signatories
from services.privacy.staff import BY_SCHEDULE, Signed, Signer, StaffError, sign_nothing
from services.retention.evidence import CHAIN, Report
from services.retention.handlers import on_receipts, unless_forged
from services.retention.holders import HolderRegister
from services.retention.person_orders import Author, PersonOrders
from services.retention.protections import Scope, Step
from services.retention.schedule import load
from services.retention.settings import DEFAULT_SCHEDULE
from services.retention.store import Store
from services.retention.wire import as_text
from tests.support.bench import IDS, Bench, new_visitor_id, open_bench, received
from tests.support.identities import key_of, register, sign
from tests.support.stack import World
from tests.support.staff import Shell

WORLD_SERVICES = ("retention",)
KEYS = SigningKeys({"k1": "11" * 32})
PUBLIC = VerifyKeys(KEYS.public())
SCHEDULE = load(DEFAULT_SCHEDULE)
REAL_CLOCK = SystemClock()
"""The database's too: its rule goes by no clock of a test."""
ANNA = Author(staff_id="staff-1", case_number="AUSK-2026-1")
MIGRATION = (
    Path("services/retention/migrations/retention_0070_unchained.sql")
    .read_text(encoding="utf-8")
    .split("-- migrate: apply")[1]
    .split("-- migrate: rollback")[0]
)
TABLES = (
    "retention_chain_salt retention_chain retention_anchor retention_refusal retention_names_gone "
    "retention_person_order retention_completion retention_receipt retention_sweep_order "
    "retention_sweep retention_record_order retention_order outbox retention_review_confirmation "
    "retention_waiver_confirmation retention_waiver retention_reissue "
    "retention_review retention_protection_review retention_protection_step retention_protection "
    "retention_unchained"
)


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "retention", Store) as found:
        await as_owner(world, f"TRUNCATE {', '.join(TABLES.split())}")
        await found.fetch("SELECT chassis_outbox_maintain()")
        yield found


async def as_owner(world: World, *statements: str) -> None:
    """Forge, as somebody who may do everything to the rows."""
    owner = await db.connect(world.owner_url("retention"))
    try:
        for statement in statements:
            await owner.execute(statement)
    finally:
        await owner.close()


async def erase(bench: Bench[Store], n: int = 1) -> list[RetentionOrderV1]:
    """Order erasures; two links each."""
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        for _ in range(n):
            await orders.erase(ANNA, [new_visitor_id()])
        return bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)


async def answered(bench: Bench[Store], order: RetentionOrderV1) -> None:
    count = TableCount(table="lot", n_partitions=0, n_rows=3)
    receipts = [
        RetentionReceiptV1(
            order_id=order.order_id,
            service=service,
            kind=order.kind,
            counts=(count,),
            done_at=bench.now,
        )
        for service in topics.RETENTION_ORDER.consumers
    ]
    async with bench.transaction() as ctx:
        topic = topics.RETENTION_RECEIPT
        await on_receipts(ctx, [received(topic, one, bench.now) for one in receipts])


async def anchored(bench: Bench[Store]) -> None:
    async with bench.transaction() as ctx:
        head = await ctx.store.evidence.head()
        assert head is not None
        day = bench.now.date()
        await ctx.store.evidence.save_anchor(chain.anchor(KEYS, CHAIN, day, head))


async def verified(bench: Bench[Store], kept: Sequence[Anchor] | None = None) -> Report:
    async with bench.transaction() as ctx:
        return await ctx.store.evidence.verify(
            PUBLIC, SCHEDULE.evidence_before(REAL_CLOCK.now()), register(), kept
        )


async def faults(bench: Bench[Store]) -> set[tuple[int, Fault]]:
    return {(found.seq, found.fault) for found in (await verified(bench)).findings}


async def test_orders_receipts_and_refusals_are_chained_and_intact(bench: Bench[Store]) -> None:
    """R-D9."""
    (order,) = await erase(bench)
    await answered(bench, order)
    async with bench.transaction() as ctx:
        await ctx.store.evidence.refuse(
            IDS.new(), what="place", reason="same_person", staff_id="staff-1", now=ctx.now
        )
    await anchored(bench)
    report = await verified(bench)
    assert report.findings == []
    assert (report.n_links, report.n_contents, report.n_anchors) == (7, 6, 1)
    assert "intact" in as_text(report)
    rows = await bench.fetch("SELECT what FROM retention_chain ORDER BY seq")
    assert [row["what"] for row in rows] == [
        *("year", "order", "person_order"),
        *["receipt"] * 3,
        "refusal",
    ]


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (
            ["UPDATE retention_receipt SET counts = '[]' WHERE service = 'consent'"],
            {(6, Fault.CONTENT_CHANGED)},
        ),
        (
            ["DELETE FROM retention_completion", "DELETE FROM retention_receipt"],
            {(4, Fault.CONTENT_CHANGED), (5, Fault.CONTENT_CHANGED), (6, Fault.CONTENT_CHANGED)},
        ),
        (
            ["DELETE FROM retention_chain_salt WHERE seq = 4",
             "DELETE FROM retention_chain WHERE seq = 4"],
            {(5, Fault.MISSING), (0, Fault.NOT_CHAINED)},
        ),
        (
            ["UPDATE retention_chain SET commitment = sha256('x') WHERE seq = 3"],
            {(3, Fault.CHANGED), (3, Fault.CONTENT_CHANGED)},
        ),
        (
            ["DELETE FROM retention_chain_salt WHERE seq > 3",
             "DELETE FROM retention_chain WHERE seq > 3"],
            {(6, Fault.CUT), (0, Fault.NOT_CHAINED)},
        ),
        (
            ["""UPDATE retention_anchor
                SET seq = 2, hash = (SELECT hash FROM retention_chain WHERE seq = 2)"""],
            {(2, Fault.ANCHOR_FORGED)},
        ),
        (
            ["UPDATE retention_person_order SET staff_id = 'staff-9'"],
            {(3, Fault.CONTENT_CHANGED), (3, Fault.SIGNATURE_FORGED)},
        ),
        (
            ["DELETE FROM retention_chain_salt WHERE seq = 6",
             "DELETE FROM retention_receipt WHERE service = 'consent'"],
            {(6, Fault.GONE_EARLY)},
        ),
        (
            ["""UPDATE retention_chain SET what = 'year', ref = lpad('834', 32, '0')::uuid
                WHERE seq = 4""",
             "DELETE FROM retention_chain_salt WHERE seq > 3"],
            {(4, Fault.CONTENT_CHANGED), (5, Fault.GONE_EARLY), (6, Fault.GONE_EARLY),
             (0, Fault.NOT_CHAINED), (5, Fault.NOT_CHAINED), (6, Fault.NOT_CHAINED)},
        ),
    ],
    ids=["edited", "content removed", "dropped", "link edited", "cut", "anchor moved", "author",
         "gone early", "year forged"],
)  # fmt: skip
async def test_a_forgery_is_found_and_said_where(
    world: World, bench: Bench[Store], statements: list[str], found: set[tuple[int, Fault]]
) -> None:
    """R-D9: by somebody who may do everything to the rows, but has no key."""
    (order,) = await erase(bench)
    await answered(bench, order)
    await anchored(bench)
    await as_owner(world, *statements)
    assert await faults(bench) == found


async def test_the_service_itself_cannot_change_evidence(bench: Bench[Store]) -> None:
    """R-D9, R-C5."""
    await erase(bench)
    for statement in (
        "UPDATE retention_chain SET hash = hash",
        "DELETE FROM retention_chain",
        "DELETE FROM retention_chain_salt",
        "UPDATE retention_anchor SET seq = 1",
        "DELETE FROM retention_refusal",
        "TRUNCATE retention_chain CASCADE",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await bench.fetch(statement)


async def test_what_is_due_goes_and_the_chain_still_verifies(bench: Bench[Store]) -> None:
    """R-D10, K1: after three calendar years; what is open, or a hold rests on, stays.

    An order of New Year's Eve that was answered in the new year is evidence of the new year.
    """
    now, before = bench.now, SCHEDULE.evidence_before(REAL_CLOCK.now())
    midnight = calendar.midnight_in_berlin(before)
    bench.now = midnight - timedelta(microseconds=2)
    first, second, third = await erase(bench, 3)
    await answered(bench, first)
    bench.now = midnight
    await answered(bench, third)
    bench.now = now
    await erase(bench)
    await anchored(bench)
    async with bench.transaction() as ctx:
        assert await ctx.store.evidence.drop(before) == 1
    report = await verified(bench)
    assert report.findings == []
    # three links that say a year; five of the first order have gone
    assert (report.n_links, report.n_contents) == (17, 9)
    rows = await bench.fetch("SELECT order_id FROM retention_order")
    assert {second.order_id, third.order_id} < {row["order_id"] for row in rows}
    assert first.order_id not in {row["order_id"] for row in rows}
    assert not await bench.fetch(
        "SELECT FROM retention_receipt WHERE order_id = $1", first.order_id
    )


@pytest.mark.parametrize("function", ["retention_evidence_drop", "retention_record_drop"])
async def test_evidence_cannot_go_before_its_time(bench: Bench[Store], function: str) -> None:
    """R-D10, R-C5: the service itself is refused, whatever date it gives; a sweep ahead drops none.

    What stands there is too young by a microsecond.
    """
    before = SCHEDULE.evidence_before(REAL_CLOCK.now())
    bench.now = calendar.midnight_in_berlin(before)
    (order,) = await erase(bench)
    await answered(bench, order)
    for day in (before + calendar.DAY, bench.now.date() + timedelta(days=9_999), None):
        with pytest.raises(asyncpg.CheckViolationError, match="may not go"):
            await bench.fetch(f"SELECT {function}($1)", day)
    async with bench.transaction() as ctx:
        assert await ctx.store.evidence.drop(before + timedelta(days=9_999)) == 0
    report = await verified(bench)
    assert (report.findings, report.n_contents) == ([], 5)


async def test_a_year_cannot_be_said_again(bench: Bench[Store]) -> None:
    """R-D10: the service may append: not a year that would let what follows go in peace."""
    await erase(bench)
    async with bench.transaction() as ctx:
        await ctx.store.evidence._begin_year(bench.now.year + 1)
        head = await ctx.store.evidence.head()
        assert head is not None
        text = chain.canonical({"year": 2000})
        (entry,) = chain.append(head, [chain.commitment(bytes(chain.SALT_BYTES), text)])
        await bench.fetch(
            "INSERT INTO retention_chain VALUES ($1, 'year', $2, NULL, $3, $4)",
            *(entry.seq, UUID(int=2000), entry.commitment, entry.hash),
        )
    assert await faults(bench) == {(entry.seq, Fault.CONTENT_CHANGED)}


async def test_the_database_counts_as_the_schedule_does(bench: Bench[Store]) -> None:
    """R-D10, R-D9: years and midnights of Berlin, on any instant."""

    async def ask(sql: str, value: object) -> object:
        return (await bench.fetch(sql, value))[0][0]

    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None)
    @given(st.integers(1_640_995_200, 3_786_912_000).map(lambda s: datetime.fromtimestamp(s, UTC)))
    @example(datetime(2026, 12, 31, 23, 0, tzinfo=UTC))
    @example(datetime(2026, 12, 31, 22, 59, 59, 999999, tzinfo=UTC))
    def holds(instant: datetime) -> None:
        def asked(sql: str, value: object) -> object:
            return asyncio.run_coroutine_threadsafe(ask(sql, value), loop).result(20)

        before = asked("SELECT retention_evidence_before($1)", instant)
        assert before == SCHEDULE.evidence_before(instant)
        day = min(instant.date(), SCHEDULE.evidence_before(REAL_CLOCK.now()))
        day -= timedelta(days=instant.day)
        cut = asked("SELECT retention_evidence_cut($1)", day)
        assert cut == calendar.midnight_in_berlin(day)

    await asyncio.to_thread(holds)


async def test_a_receipt_of_nobody_is_poison_and_changes_nothing(bench: Bench[Store]) -> None:
    """R-D9, D3: a service cannot answer for another one."""
    (order,) = await erase(bench)
    receipt = RetentionReceiptV1(
        order_id=order.order_id, service="consent", kind=order.kind, counts=(), done_at=bench.now
    )
    handle = unless_forged(
        Signatories('{"consent": {}, "ad_ledger": {}}'), HolderRegister(holders=())
    )
    with pytest.raises(Poison, match="receipt_not_signed"):
        async with bench.transaction() as ctx:
            await handle(ctx, [received(topics.RETENTION_RECEIPT, receipt, bench.now)])
    assert not await bench.fetch("SELECT FROM retention_receipt")


async def held(bench: Bench[Store], visitor_id: UUID, *, review: bool = False) -> UUID:
    """Place a hold by two persons; with a review by two more."""
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        today = calendar.berlin_date(bench.now)
        hold = await orders.propose_hold(
            ANNA,
            ground="prosecution",
            scope=Scope(kinds=("ad_use",), from_day=None, before_day=today, names_visitors=True),
            review_on=today + timedelta(days=30),
            visitor_ids=[visitor_id],
        )
        await orders.place_hold("staff-2", hold)
        if review:
            day = today + timedelta(days=60)
            await orders.propose_review("staff-3", hold, day, "claim_open")
            await orders.confirm_review("staff-4", hold, day)
        sent = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
    for order in sent:
        await answered(bench, order)
    return hold


async def proposed_and_withdrawn(bench: Bench[Store]) -> UUID:
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        today = calendar.berlin_date(bench.now)
        hold = await orders.propose_hold(
            ANNA,
            ground="prosecution",
            scope=Scope(kinds=("ad_use",), from_day=None, before_day=today, names_visitors=False),
            review_on=today + timedelta(days=30),
            visitor_ids=(),
        )
        await orders.withdraw_hold("staff-2", hold)
    return hold


async def released(bench: Bench[Store], hold: UUID) -> None:
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        await orders.propose_release("staff-1", hold)
        await orders.release_hold("staff-2", hold)
        sent = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
    for order in sent:
        await answered(bench, order)


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE retention_protection SET ground = 'criminal_complaint'",
        "UPDATE retention_protection_step SET staff_id = 'staff-9' WHERE step = 'proposed'",
        "DELETE FROM retention_protection_step WHERE step = 'placed'",
        "UPDATE retention_review SET review_on = review_on + 99",
        "UPDATE retention_review_confirmation SET staff_id = 'staff-9'",
        "DELETE FROM retention_review_confirmation",
    ],
)
async def test_what_was_done_about_a_hold_cannot_be_forged(
    world: World, bench: Bench[Store], forgery: str
) -> None:
    """R-D3, R-D9: who proposed, placed, reviewed, and until when."""
    await held(bench, new_visitor_id(), review=True)
    assert await faults(bench) == set()
    await as_owner(world, forgery)
    found = await faults(bench)
    assert len({seq for seq, _ in found}) == 1
    kinds = {fault for _, fault in found}
    # what is gone has no signature left; what a hold covers is signed by nobody
    is_signed = "UPDATE" in forgery and "retention_protection SET" not in forgery
    assert kinds == {Fault.CONTENT_CHANGED, *([Fault.SIGNATURE_FORGED] if is_signed else [])}


async def test_the_evidence_of_a_hold_goes_three_years_after_its_end(bench: Bench[Store]) -> None:
    """R-D3, R-D10: not while it is in force, nor while its release is young."""
    now, before = bench.now, SCHEDULE.evidence_before(REAL_CLOCK.now())
    midnight = calendar.midnight_in_berlin(before)
    bench.now = midnight - timedelta(days=80)
    over, late, lasting = [await held(bench, new_visitor_id(), review=n == 0) for n in range(3)]
    bench.now = midnight - timedelta(seconds=1)
    await released(bench, over)
    bench.now = midnight
    await released(bench, late)
    given_up = await proposed_and_withdrawn(bench)
    bench.now = now
    await erase(bench)
    async with bench.transaction() as ctx:
        await ctx.store.evidence.drop(before)
    rows = await bench.fetch("SELECT protection_id FROM retention_protection")
    assert {row["protection_id"] for row in rows} == {late, lasting, given_up}
    assert (await verified(bench)).findings == []
    assert not await bench.fetch(
        "SELECT FROM retention_person_order WHERE protection_id = $1", over
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bench.fetch("SELECT retention_protection_drop(now())")


async def waived(bench: Bench[Store], order: RetentionOrderV1) -> None:
    """Wait for nobody's answer any more, an hour later."""
    bench.now += timedelta(hours=1)
    for holder in topics.RETENTION_ORDER.consumers:
        for staff_id in ("staff-1", "staff-2"):
            async with bench.transaction() as ctx:
                orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
                await orders.waive(staff_id, order.order_id, holder, "decommissioned")


async def test_a_waiver_is_evidence_and_goes_with_its_order(
    world: World, bench: Bench[Store]
) -> None:
    """D3, R-D9, R-D10: who proposed and who confirmed cannot be forged; both go in time."""
    now, before = bench.now, SCHEDULE.evidence_before(REAL_CLOCK.now())
    bench.now = calendar.midnight_in_berlin(before) - timedelta(days=1)
    (order,) = await erase(bench)
    await waived(bench, order)
    assert await faults(bench) == set()
    forged = "UPDATE retention_waiver_confirmation SET staff_id = 'staff-{}' WHERE staff_id = '{}'"
    await as_owner(world, forged.format(9, "staff-2"))
    assert {fault for _, fault in await faults(bench)} == {
        Fault.CONTENT_CHANGED, Fault.SIGNATURE_FORGED,
    }  # fmt: skip
    await as_owner(world, forged.format(2, "staff-9"))
    bench.now = now
    await erase(bench)
    async with bench.transaction() as ctx:
        assert await ctx.store.evidence.drop(before) == 1
    assert not await bench.fetch("SELECT FROM retention_waiver")
    assert await faults(bench) == set()


async def test_a_chain_made_anew_is_found_by_anchors_kept_elsewhere(
    world: World, bench: Bench[Store]
) -> None:
    """R-D9: by whoever owns the database, and has the key that signs anchors."""
    await erase(bench)
    await anchored(bench)
    async with bench.transaction() as ctx:
        kept = await ctx.store.evidence.anchors()
    assert (await verified(bench, kept)).findings == []
    await as_owner(world, f"TRUNCATE {', '.join(TABLES.split())}")
    await erase(bench)
    await anchored(bench)
    assert (await verified(bench)).findings == []
    report = await verified(bench, kept)
    here = kept[0].seq
    assert {(one.seq, one.fault) for one in report.findings} == {
        (here, Fault.ANCHOR_DIFFERS), (here, Fault.ANCHOR_GONE),
    }  # fmt: skip
    assert "1 anchors (1 kept elsewhere)" in as_text(report)


async def test_anchors_go_out_by_one_command_and_are_compared_by_another(
    world: World, bench: Bench[Store], tmp_path: Path
) -> None:
    """R-D9: as a person types it; a file that compares nothing is no proof of anything."""
    shell = Shell(world, tmp_path, "retention")
    await erase(bench)
    keys = SigningKeys.from_json(world.environments["retention"]["RETENTION_ANCHOR_KEYS"])
    async with bench.transaction() as ctx:
        head = await ctx.store.evidence.head()
        assert head is not None
        day = bench.now.date()
        await ctx.store.evidence.save_anchor(chain.anchor(keys, CHAIN, day, head))
    exported = await shell.run("anchors")
    (line,) = exported.out.splitlines()
    file = tmp_path / "anchors.jsonl"
    file.write_text(exported.out, encoding="utf-8")
    good = await shell.run("verify", "--json", "--anchors", str(file))
    assert good.code == 0, good.out
    assert (good.answer["kept_anchors"], good.answer["findings"]) == (1, [])
    public = VerifyKeys((await shell.run("anchor-keys")).answer)
    one = chain.read_anchor(line)
    assert [found.fault for found in chain.verify_anchors({}, [one], public)] == [Fault.CUT]
    told = json.loads(line)
    for changed, code in (
        (json.dumps(told | {"hash": "ab" * 32}), 1),
        (json.dumps(told | {"chain": "consent/1"}), 2),
        ("", 2),
        ("{}", 2),
    ):
        file.write_text(changed, encoding="utf-8")
        assert (await shell.run("verify", "--anchors", str(file))).code == code, changed


_COPY = """
    INSERT INTO retention_{0}
    SELECT (jsonb_populate_record(t, '{1}')).* FROM retention_{0} t LIMIT 1
"""
_ID = "019aabcd-1234-7abc-8def-0123456789ab"


def copied(table: str, **changed: str) -> str:
    """Return the statement that puts in a row like one that is there."""
    return _COPY.format(table, json.dumps(changed))


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        ([copied("order", order_id=_ID)], {"order"}),
        ([copied("order", order_id=_ID), copied("person_order", order_id=_ID)],
         {"order", "person_order"}),
        ([copied("receipt", service="gateway")], {"receipt"}),
        ([copied("refusal", refusal_id=_ID)], {"refusal"}),
        ([copied("protection", protection_id=_ID)], {"protection"}),
        (["ALTER TABLE retention_protection_step DISABLE TRIGGER USER",
          copied("protection_step", step="released"),
          "ALTER TABLE retention_protection_step ENABLE TRIGGER USER"], {"protection_step"}),
        ([copied("review", review_id=_ID)], {"review"}),
        (["ALTER TABLE retention_review_confirmation DISABLE TRIGGER USER",
          copied("review", review_id=_ID), copied("review_confirmation", review_id=_ID),
          "ALTER TABLE retention_review_confirmation ENABLE TRIGGER USER"],
         {"review", "review_confirmation"}),
        ([copied("waiver", waiver_id=_ID)], {"waiver"}),
        (["ALTER TABLE retention_waiver_confirmation DISABLE TRIGGER USER",
          copied("waiver", waiver_id=_ID), copied("waiver_confirmation", waiver_id=_ID),
          "ALTER TABLE retention_waiver_confirmation ENABLE TRIGGER USER"],
         {"waiver", "waiver_confirmation"}),
    ],
    ids=["order", "person order", "receipt", "refusal", "protection", "step", "review",
         "review confirmed", "waiver", "waiver confirmed"],
)  # fmt: skip
async def test_evidence_that_was_put_in_is_found(
    world: World, bench: Bench[Store], statements: list[str], found: set[str]
) -> None:
    """R-D9, R-D3: of each kind, by somebody who may do everything to the rows."""
    await held(bench, new_visitor_id(), review=True)
    async with bench.transaction() as ctx:
        await ctx.store.evidence.refuse(
            IDS.new(), what="place", reason="same_person", staff_id="staff-1", now=ctx.now
        )
    (order,) = await erase(bench)
    await waived(bench, order)
    assert await faults(bench) == set()
    await as_owner(world, *statements)
    report = await verified(bench)
    assert {one.fault for one in report.findings} == {Fault.NOT_CHAINED}
    assert {str(one.about).split()[0] for one in report.findings} == found
    assert "no link: not_chained (" in as_text(report)


async def test_what_was_due_and_comes_back_is_found(world: World, bench: Bench[Store]) -> None:
    """R-D9, R-D10: its link is there, and says nothing any more."""
    now, before = bench.now, SCHEDULE.evidence_before(REAL_CLOCK.now())
    bench.now = calendar.midnight_in_berlin(before) - timedelta(days=1)
    async with bench.transaction() as ctx:
        await ctx.store.evidence.refuse(
            IDS.new(), what="place", reason="same_person", staff_id="staff-1", now=ctx.now
        )
    bench.now = now
    await as_owner(world, "CREATE TABLE copy_of_it AS SELECT * FROM retention_refusal")
    async with bench.transaction() as ctx:
        assert await ctx.store.evidence.drop(before) == 1
    assert await faults(bench) == set()
    back = "INSERT INTO retention_refusal SELECT * FROM copy_of_it"
    await as_owner(world, back, "DROP TABLE copy_of_it")
    assert await faults(bench) == {(2, Fault.NOT_CHAINED)}


async def test_evidence_from_before_the_chain_is_listed_once(
    world: World, bench: Bench[Store]
) -> None:
    """R-D9: what the migration finds is no finding; whatever is added to its list is."""
    await erase(bench)
    chained = await bench.fetch("SELECT count(*) AS n FROM retention_chain")
    order = copied("order", order_id=_ID)
    await as_owner(world, order, "DROP TABLE retention_unchained", MIGRATION)
    assert await faults(bench) == set()
    listed = await bench.fetch("SELECT seq FROM retention_chain WHERE what = 'unchained'")
    assert [row["seq"] for row in listed] == [chained[0]["n"] + 1]
    # the chain goes on behind it
    await erase(bench)
    assert await faults(bench) == set()
    link = listed[0]["seq"]
    other = _ID.replace("ab", "cd")
    await as_owner(world, copied("order", order_id=other))
    assert await faults(bench) == {(0, Fault.NOT_CHAINED)}
    await as_owner(world, f"INSERT INTO retention_unchained VALUES ('order', '{other}')")
    assert await faults(bench) == {(link, Fault.CONTENT_CHANGED)}
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bench.fetch("INSERT INTO retention_unchained VALUES ('order', $1)", UUID(other))


async def test_a_list_without_a_link_excuses_nothing(world: World, bench: Bench[Store]) -> None:
    """R-D9: where the migration had nothing to list, nobody has."""
    await erase(bench)
    await as_owner(
        world,
        copied("order", order_id=_ID),
        f"INSERT INTO retention_unchained VALUES ('order', '{_ID}')",
    )
    assert await faults(bench) == {(0, Fault.NOT_CHAINED)}


def by_one_key(_staff_id: str, what: str, content: Mapping[str, Any]) -> Signed:
    """Sign for whomever as staff-1."""
    return key_of("staff-1").sign(what, content)


def unsigned(_staff_id: str, _what: str, _content: Mapping[str, Any]) -> Signed:
    """Sign nothing."""
    return Signed(None, None)


async def one_for_two(bench: Bench[Store], signer: Signer) -> UUID:
    """Propose and place a hold under two ids."""
    today = calendar.berlin_date(bench.now)
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=signer)
        hold = await orders.propose_hold(
            ANNA,
            ground="prosecution",
            scope=Scope(kinds=("ad_use",), from_day=None, before_day=today, names_visitors=False),
            review_on=today + timedelta(days=30),
            visitor_ids=(),
        )
        await orders.place_hold("staff-2", hold)
    return hold


async def test_one_person_with_two_ids_is_found_by_the_key(bench: Bench[Store]) -> None:
    """R-D3: by whoever can write as the service, and has one key."""
    await one_for_two(bench, by_one_key)
    rows = await bench.fetch(
        "SELECT seq FROM retention_chain WHERE service = 'placed' OR what = 'person_order'"
    )
    step, order = sorted(row["seq"] for row in rows)
    assert await faults(bench) == {
        (step, Fault.KEY_OF_ANOTHER), (step, Fault.SAME_PERSON), (order, Fault.KEY_OF_ANOTHER),
    }  # fmt: skip


async def test_the_database_takes_no_persons_act_unsigned(bench: Bench[Store]) -> None:
    """R-D3, R-C5: whatever the program does; and nobody signs as the schedule."""
    with pytest.raises(asyncpg.CheckViolationError, match="signed_ck"):
        await one_for_two(bench, unsigned)
    with pytest.raises(StaffError, match="signed by that person"):
        await one_for_two(bench, sign_nothing)
    hold = await one_for_two(bench, sign)
    for step, says in (("released", "special threats only"), ("release_proposed", "signed_ck")):
        with pytest.raises(asyncpg.CheckViolationError, match=says):
            async with bench.transaction() as ctx:
                await ctx.store.protections.take_step(
                    hold, Step(step), BY_SCHEDULE, ctx.now, unsigned
                )
    report = await verified(bench)
    assert (report.findings, report.n_signed, report.n_unsigned) == ([], 3, 0)
    assert "3 acts of staff signed" in as_text(report)


async def test_what_the_schedule_does_is_its_own(bench: Bench[Store]) -> None:
    """R-D3: a proposal that nobody placed is given up by nobody's hand, and verifies."""
    today = calendar.berlin_date(bench.now)
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        await orders.propose_hold(
            ANNA,
            ground="prosecution",
            scope=Scope(kinds=("ad_use",), from_day=None, before_day=today, names_visitors=False),
            review_on=today + timedelta(days=30),
            visitor_ids=(),
        )
    bench.now += timedelta(days=4)
    async with bench.transaction() as ctx:
        assert await PersonOrders(ctx, SCHEDULE, timedelta(minutes=15)).withdraw_old_proposals()
    report = await verified(bench)
    assert (report.findings, report.n_signed, report.n_unsigned) == ([], 1, 0)
