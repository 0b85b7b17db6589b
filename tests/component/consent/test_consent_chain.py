"""The chain of consent records on real PostgreSQL: every attack is found out (K1, R-F2)."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from schemas.retention import (
    DataKind,
    RetentionAction,
    RetentionOrderV1,
    RetentionReceiptV1,
)
from services.chassis import db
from services.chassis.ids import TimeOrderedIds
from services.consent import chain_store
from services.consent import takings as takings_room
from services.consent.classification import TABLES
from services.consent.command import judge, proven
from services.consent.domain import Decision, Verdict
from services.consent.handlers import on_consents
from services.consent.store import Proof, Store
from services.consent.takings import FRESH_FOR, Takings
from services.privacy import chain
from services.privacy.chain import SigningKeys, VerifyKeys, new_salt
from services.privacy.executor import Executor, Hooks
from tests.support.bench import Bench, new_visitor_id, open_bench, received
from tests.support.stack import World
from tests.support.staff import Shell

WORLD_SERVICES = ("consent",)
IDS = TimeOrderedIds()
N_RECORDS = 5


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "consent", Store, days_of=("consent_subject",)) as found:
        yield found


@pytest.fixture
async def owner(world: World) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A connection that may change anything; all it did is undone."""
    connection = await asyncpg.connect(world.owner_url("consent"))
    change = connection.transaction()
    await change.start()
    yield connection
    await change.rollback()
    await connection.close()


@pytest.fixture
def keys(world: World) -> SigningKeys:
    return SigningKeys.from_json(world.environments["consent"]["CONSENT_ANCHOR_KEYS"])


async def record(bench: Bench[Store], visitor_id: UUID, n: int = N_RECORDS) -> int:
    """Record n decisions of a visitor in one poll; return the part of their chain."""
    events = [
        ConsentV1(
            decision_id=IDS.new(),
            visitor_id=visitor_id,
            choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.GIVEN),),
            catalogue_version="2026-11.1",
            wording_version="2026-11.1",
            language="de",
            method=ConsentMethod.BANNER,
        )
        for _ in range(n)
    ]
    async with bench.transaction() as ctx:
        await on_consents(
            ctx,
            [
                received(topics.CONSENT, event, bench.now - timedelta(minutes=i))
                for i, event in enumerate(events)
            ],
        )
    (row,) = await bench.fetch(
        """
        SELECT DISTINCT chain_part FROM consent_record r JOIN consent_subject s USING (proof_id)
        WHERE visitor_id = $1
        """,
        visitor_id,
    )
    part: int = row["chain_part"]
    return part


async def faults(
    connection: "asyncpg.Connection[Any]",
    part: int,
    keys: SigningKeys,
    kept: Sequence[chain.Anchor] | None = None,
) -> list[tuple[str, int]]:
    """Return what `verify` finds in a chain, by kind and place."""
    public = VerifyKeys(keys.public())
    takings = proven(await chain_store.read_part(connection, chain_store.TAKINGS), public)
    found = judge(await chain_store.read_part(connection, part), public, takings, kept)
    assert found["intact"] == (not found["findings"])
    return [(finding["fault"], finding["seq"]) for finding in found["findings"]]


async def test_each_record_is_in_its_proofs_chain_and_verifies(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: as many links as records, over several polls; intact, with the anchor of the day."""
    visitor = new_visitor_id()
    part = await record(bench, visitor)
    assert await record(bench, visitor) == part
    seqs = await bench.fetch(
        """
        SELECT chain_seq FROM consent_record r JOIN consent_subject s USING (proof_id)
        WHERE visitor_id = $1
        """,
        visitor,
    )
    assert len({row["chain_seq"] for row in seqs}) == 2 * N_RECORDS
    async with bench.transaction() as ctx:
        await ctx.store.anchor(keys, bench.now.date())
    async with bench.transaction() as ctx:
        assert await ctx.store.anchor(keys, bench.now.date()) == 0
    assert await faults(owner, part, keys) == []


EDITS = {
    "edit_of_a_record": (
        "UPDATE consent_record SET decision = 'refused' WHERE chain_part = $1 AND chain_seq = $2",
        [("content_changed", 0)],
    ),
    "edit_of_an_instant": (
        """
        UPDATE consent_record SET decided_at = decided_at - interval '1 second'
        WHERE chain_part = $1 AND chain_seq = $2
        """,
        [("content_changed", 0)],
    ),
    "edit_of_a_link": (
        """
        UPDATE consent_chain SET commitment = decode(repeat('ab', 32), 'hex')
        WHERE part = $1 AND seq = $2
        """,
        [("changed", 0), ("content_changed", 0)],
    ),
}


@pytest.mark.parametrize("name", EDITS)
async def test_an_edit_is_found_where_it_is(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys, name: str
) -> None:
    """K1: in the record and in the chain."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq - 2 FROM consent_chain_head WHERE part = $1", part)
    sql, expected = EDITS[name]
    await owner.execute(sql, part, seq)
    assert await faults(owner, part, keys) == [(fault, seq + at) for fault, at in expected]


async def test_a_dropped_link_is_found_where_it_was(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: drop."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq - 2 FROM consent_chain_head WHERE part = $1", part)
    await owner.execute("DELETE FROM consent_chain WHERE part = $1 AND seq = $2", part, seq)
    assert ("missing", seq + 1) in await faults(owner, part, keys)


async def test_swapped_links_are_found(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: swap, with the numbers made anew: said to be reordered, not edited."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq - 2 FROM consent_chain_head WHERE part = $1", part)
    for old, new in ((seq, 2**40), (seq + 1, seq), (2**40, seq + 1)):
        await owner.execute(
            "UPDATE consent_chain SET seq = $3 WHERE part = $1 AND seq = $2", part, old, new
        )
    found = await faults(owner, part, keys)
    assert {("moved", seq), ("moved", seq + 1)} <= set(found)


async def test_an_inserted_link_is_found(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: insert at the end, past the head."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq + 1 FROM consent_chain_head WHERE part = $1", part)
    await owner.execute(
        """
        INSERT INTO consent_chain (part, seq, commitment, hash)
        SELECT part, $2::bigint, commitment, hash FROM consent_chain
        WHERE part = $1 AND seq = $2 - 1
        """,
        part,
        seq,
    )
    assert ("changed", seq) in await faults(owner, part, keys)


async def test_a_record_past_the_chain_is_found(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: a forged record that claims a place that the chain does not have."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq FROM consent_chain_head WHERE part = $1", part)
    await owner.execute(
        """
        UPDATE consent_record SET chain_seq = $2::bigint + 7
        WHERE chain_part = $1 AND chain_seq = $2
        """,
        part,
        seq,
    )
    assert await faults(owner, part, keys) == [("missing", seq + 7), ("content_gone", seq)]


@pytest.mark.parametrize("claimed", ["another chain", "no chain", "a place that is taken"])
async def test_a_record_that_was_put_in_is_found(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys, claimed: str
) -> None:
    """K1: the service may append to the table; what it appends without the chain shows."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq FROM consent_chain_head WHERE part = $1", part)
    place = {
        "another chain": (part + 1) % chain_store.PARTS,
        "no chain": 99,
        "a place that is taken": part,
    }
    columns = (
        "ends_on, purpose, proof_id, decision, catalogue_version, wording_version, language,"
        " method, decided_at, recipient, page, chain_seq, salt"
    )
    await owner.execute(
        f"INSERT INTO consent_record (decision_id, chain_part, {columns})"
        f" SELECT $1, $2, {columns} FROM consent_record WHERE chain_part = $3 AND chain_seq = $4",
        IDS.new(), place[claimed], part, seq,
    )  # fmt: skip
    shown = 0 if claimed == "no chain" else place[claimed]
    assert ("forged", seq) in await faults(owner, shown, keys)


async def test_a_cut_off_end_is_found_by_the_anchor_though_the_head_was_cut_too(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: truncation by somebody who makes links, records and head agree."""
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq FROM consent_chain_head WHERE part = $1", part)
    await chain_store.anchor(owner, keys, (bench.now + timedelta(days=1)).date())
    await owner.execute("DELETE FROM consent_chain WHERE part = $1 AND seq >= $2", part, seq)
    await owner.execute(
        "DELETE FROM consent_record WHERE chain_part = $1 AND chain_seq >= $2", part, seq
    )
    await owner.execute(
        """
        UPDATE consent_chain_head h SET seq = c.seq, commitment = c.commitment, hash = c.hash
        FROM consent_chain c WHERE h.part = $1 AND c.part = $1 AND c.seq = $2 - 1
        """,
        part,
        seq,
    )
    assert await faults(owner, part, keys) == [("cut", seq)]


# ---------------------------------------------------------------------- records that are gone

ENDED = date(2020, 6, 1)


@pytest.fixture
async def ended(bench: Bench[Store], world: World) -> AsyncIterator[list[Proof]]:
    """Records of a year that ended long ago, some with odd texts, in their chains."""
    owner = await asyncpg.connect(world.owner_url("consent"))
    await owner.execute(
        "SELECT chassis_range_add('consent_record', 'consent_record_y2020',"
        " '2020-01-01', '2021-01-01')"
    )
    proofs = [
        Proof(
            decision=Decision(
                decision_id=IDS.new(),
                purpose="marketing",
                verdict=Verdict.GIVEN,
                decided_at=datetime(2020, 5, 26, 9, n, 1, 20 * n, tzinfo=UTC),
                recipient="ad-partner" if n % 2 else None,
            ),
            proof_id=IDS.new(),
            ends_on=ENDED,
            method="page",
            salt=new_salt(),
            catalogue_version="2026-11.1",
            wording_version="2026-11.1" if n % 3 else None,
            language="de",
            page=(None, '/"quoted"\\', "/süß\t\u2028\x7f", "")[n % 4],
        )
        for n in range(12)
    ]
    async with bench.transaction() as ctx:
        await ctx.store.save(proofs, (), {})
    yield proofs
    await owner.execute("DROP TABLE IF EXISTS consent_record_y2020")
    await owner.close()


def drop_order(bench: Bench[Store]) -> RetentionOrderV1:
    return RetentionOrderV1(
        order_id=IDS.new(),
        kind=DataKind.CONSENT_RECORD,
        action=RetentionAction.DROP,
        before_day=date(2021, 1, 1),
        as_of=bench.now,
    )


async def drop_ended(bench: Bench[Store], keys: SigningKeys) -> UUID:
    """Let the year go as an order has it, in one transaction with its evidence."""
    hooks = Hooks(before_drop=Takings(keys).before_drop)
    executor = Executor(TABLES, simulation=False, hooks=hooks, keys=keys)
    order = drop_order(bench)
    async with bench.transaction() as ctx:
        await executor.on_orders(ctx, [received(topics.RETENTION_ORDER, order, bench.now)])
        receipts = bench.enqueued(ctx, topics.RETENTION_RECEIPT, RetentionReceiptV1)
    if not receipts:
        # a drop may be carried out in a transaction of its own
        async with bench.transaction() as ctx:
            await executor.retry(ctx)
            receipts = bench.enqueued(ctx, topics.RETENTION_RECEIPT, RetentionReceiptV1)
    assert any(count.n_partitions for receipt in receipts for count in receipt.counts)
    return order.order_id


async def all_faults(
    owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> dict[int, list[tuple[str, int]]]:
    found = {part: await faults(owner, part, keys) for part in range(chain_store.PARTS + 1)}
    return {part: among for part, among in found.items() if among}


async def test_a_year_that_ended_leaves_a_chain_that_verifies(
    bench: Bench[Store], ended: list[Proof], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1, D4: record and salt go, commitments stay; what says so names numbers and the order."""
    order_id = await drop_ended(bench, keys)
    assert (
        await owner.fetchval("SELECT count(*) FROM consent_record WHERE ends_on = $1", ENDED) == 0
    )
    assert await all_faults(owner, keys) == {}
    takings = await owner.fetch("SELECT * FROM consent_taking WHERE order_id = $1", order_id)
    numbers = [
        (row["part"], seq)
        for row in takings
        for first, last in zip(row["first_seqs"], row["last_seqs"], strict=True)
        for seq in range(first, last + 1)
    ]
    assert len(numbers) == len(set(numbers)) == len(ended), "each record once, odd texts too"
    stay = [await owner.fetch("TABLE consent_chain"), await owner.fetch("TABLE consent_taking")]
    values = [value for table in stay for row in table for value in row.values()]
    kept = b"".join(v if isinstance(v, bytes) else repr(v).encode() for v in values)
    for proof in ended:
        for secret in (proof.salt, proof.proof_id.bytes, proof.decision.decision_id.bytes):
            assert secret not in kept
            assert secret.hex().encode() not in kept


async def test_a_large_year_is_looked_through_beside_while_its_order_waits(
    bench: Bench[Store],
    ended: list[Proof],
    owner: "asyncpg.Connection[Any]",
    keys: SigningKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """K1, R-D9: nothing goes before, all goes afterwards; what is stale is looked at again."""
    monkeypatch.setattr(takings_room, "AT_ONCE_MAX", len(ended) - 1)
    takings = Takings(keys)
    executor = Executor(
        TABLES, simulation=False, hooks=Hooks(before_drop=takings.before_drop), keys=keys
    )
    order = drop_order(bench)

    async def retried() -> list[RetentionReceiptV1]:
        async with bench.transaction() as ctx:
            await executor.retry(ctx)
            return bench.enqueued(ctx, topics.RETENTION_RECEIPT, RetentionReceiptV1)

    assert not await takings.look_through(bench.transaction), "nobody waits for it"
    async with bench.transaction() as ctx:
        await executor.on_orders(ctx, [received(topics.RETENTION_ORDER, order, bench.now)])
        assert bench.enqueued(ctx, topics.RETENTION_RECEIPT, RetentionReceiptV1) == []
    assert await retried() == []
    assert await takings.look_through(bench.transaction)
    bench.now += FRESH_FOR + timedelta(seconds=1)
    assert await retried() == []
    assert await takings.look_through(bench.transaction)
    (receipt,) = await retried()
    assert receipt.order_id == order.order_id
    assert (
        await owner.fetchval("SELECT count(*) FROM consent_record WHERE ends_on = $1", ENDED) == 0
    )
    assert await all_faults(owner, keys) == {}


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=30), max_size=5)
)
def test_runs_are_the_numbers_they_are_made_of(days: list[list[tuple[int, int]]]) -> None:
    """K1: whatever the order of days; no number more, none less, and none that touch apart."""
    found = chain_store.RangesOf()
    for day in days:
        of_day = chain_store.RangesOf()
        for part, seq in sorted(set(day)):
            of_day.setdefault(part, []).append((seq, seq))
        found = chain_store.merged(found, of_day)
    numbers = [(part, n) for part, runs in found.items() for a, b in runs for n in range(a, b + 1)]
    assert sorted(numbers) == sorted({one for day in days for one in day})
    for runs in found.values():
        assert all(a[1] + 1 < b[0] for a, b in pairwise(runs))


async def test_a_record_that_nobody_ordered_to_go_is_found(
    bench: Bench[Store], ended: list[Proof], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: one row, with its salt, taken away by somebody with the owner's rights."""
    await drop_ended(bench, keys)
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq - 2 FROM consent_chain_head WHERE part = $1", part)
    await owner.execute(
        "DELETE FROM consent_record WHERE chain_part = $1 AND chain_seq = $2", part, seq
    )
    assert await all_faults(owner, keys) == {part: [("content_gone", seq)]}


@pytest.mark.parametrize("how", ["unsigned", "with another key", "widened", "copied", "unchained"])
async def test_a_forged_taking_excuses_nothing(
    bench: Bench[Store],
    ended: list[Proof],
    owner: "asyncpg.Connection[Any]",
    keys: SigningKeys,
    how: str,
) -> None:
    """K1: who deletes a record and writes that an order took it, with the links made right."""
    await drop_ended(bench, keys)
    part = await record(bench, new_visitor_id())
    seq = await owner.fetchval("SELECT seq FROM consent_chain_head WHERE part = $1", part)
    await owner.execute(
        "DELETE FROM consent_record WHERE chain_part = $1 AND chain_seq = $2", part, seq
    )
    row = await owner.fetchrow("SELECT * FROM consent_taking ORDER BY seq DESC LIMIT 1")
    assert row is not None
    forged = chain.Taking(
        chain=f"consent/{part}", seq=row["seq"] + 1, order_id=row["order_id"], ranges=((seq, seq),)
    )
    if how in ("with another key", "unchained"):
        forged = forged.signed(SigningKeys({"k1": "ab" * 32}))
    else:
        forged = replace(forged, key_id=row["key_id"], signature=row["signature"])
    if how == "unchained":
        # as if the key had been had, but not the chain's end as it was anchored
        forged = replace(forged, seq=row["seq"] + 7).signed(keys)
    elif how == "widened":
        await owner.execute(
            "UPDATE consent_taking SET part = $2, first_seqs = $3, last_seqs = $3 WHERE seq = $1",
            row["seq"], part, [seq],
        )  # fmt: skip
    if how != "widened":
        await owner.execute(
            "INSERT INTO consent_taking VALUES ($1, $2, $3, $4, $4, $5, $6)",
            forged.seq, part, forged.order_id, [seq], forged.key_id, forged.signature,
        )  # fmt: skip
    if how not in ("widened", "unchained"):
        commitment = chain.commitment(chain.NO_SALT, forged.content())
        await chain_store.append(owner, {chain_store.TAKINGS: [commitment]})
    found = await all_faults(owner, keys)
    assert found[part][-1] == ("content_gone", seq)
    assert found[chain_store.TAKINGS], "and the forgery shows itself"


async def test_a_taking_that_was_removed_excuses_nothing_any_more(
    bench: Bench[Store], ended: list[Proof], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: the evidence is evidence too."""
    await drop_ended(bench, keys)
    await owner.execute("DELETE FROM consent_taking WHERE seq = 1")
    found = await all_faults(owner, keys)
    assert ("content_gone", 1) in found.pop(chain_store.TAKINGS)
    assert found


@pytest.mark.parametrize("what", ["moved there", "put there"])
async def test_an_order_does_not_launder_what_was_moved_into_its_year(
    bench: Bench[Store],
    ended: list[Proof],
    owner: "asyncpg.Connection[Any]",
    world: World,
    keys: SigningKeys,
    what: str,
) -> None:
    """K1: a record set back to a year that is about to go is not what its link committed to."""
    part = await record(bench, new_visitor_id())
    (row,) = await bench.fetch(
        "SELECT * FROM consent_record WHERE chain_part = $1 ORDER BY chain_seq DESC LIMIT 1", part
    )
    changer = await asyncpg.connect(world.owner_url("consent"))
    try:
        if what == "put there":
            columns = ", ".join(name for name in dict(row) if name != "ends_on")
            await changer.execute(
                f"INSERT INTO consent_record (ends_on, {columns}) SELECT $1, {columns}"
                " FROM consent_record WHERE decision_id = $2",
                ENDED, row["decision_id"],
            )  # fmt: skip
            await changer.execute(
                "DELETE FROM consent_record WHERE decision_id = $1 AND ends_on <> $2",
                row["decision_id"], ENDED,
            )  # fmt: skip
        else:
            await changer.execute(
                "UPDATE consent_record SET ends_on = $1 WHERE decision_id = $2",
                ENDED, row["decision_id"],
            )  # fmt: skip
        await drop_ended(bench, keys)
        assert (await all_faults(owner, keys))[part] == [("content_gone", row["chain_seq"])]
    finally:
        # whole again for who comes after
        values = list(row.values())
        places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
        await changer.execute(
            f"INSERT INTO consent_record ({', '.join(row.keys())}) VALUES ({places})", *values
        )
        await changer.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE consent_chain SET seq = seq + 1",
        "DELETE FROM consent_chain",
        "TRUNCATE consent_chain",
        "UPDATE consent_anchor SET seq = seq + 1",
        "DELETE FROM consent_anchor",
        "DELETE FROM consent_chain_head",
        "UPDATE consent_record SET chain_seq = 1",
        "UPDATE consent_taking SET seq = seq + 1",
        "DELETE FROM consent_taking",
        "TRUNCATE consent_taking",
    ],
)
async def test_the_service_itself_cannot_change_what_it_recorded(
    bench: Bench[Store], statement: str
) -> None:
    """K1, R-C5: append-only by rights."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bench.connection.execute(statement)


# ---------------------------------------------------------------------- anchors kept elsewhere


@pytest.mark.parametrize("how", ["with our key", "without anchors", "with another key"])
async def test_a_database_made_anew_is_found_by_anchors_kept_elsewhere(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys, how: str
) -> None:
    """K1: all of it rewritten: links, records, heads, takings, anchors; even with our own key."""
    part = await record(bench, new_visitor_id())
    await chain_store.anchor(owner, keys, (bench.now + timedelta(days=1)).date())
    kept = await chain_store.read_anchors(owner, chain_store.ALL)
    assert await faults(owner, part, keys, kept) == []
    (row,) = await owner.fetch(
        "SELECT * FROM consent_record WHERE chain_part = $1 ORDER BY chain_seq DESC LIMIT 1", part
    )
    await owner.execute("TRUNCATE consent_chain, consent_anchor, consent_taking, consent_record")
    await owner.execute(
        "UPDATE consent_chain_head SET seq = 0, commitment = $1, hash = $1", chain.GENESIS
    )
    # what never was: the same person refused
    content = chain_store.content_of({**row, "decision": "refused"})
    n_links = max(one.seq for one in kept)
    for each in range(chain_store.PARTS):
        forged = [chain.commitment(row["salt"], content)] * n_links
        await chain_store.append(owner, {each: forged})
    if how != "without anchors":
        signing = keys if how == "with our key" else SigningKeys({"k1": "ab" * 32})
        await chain_store.anchor(owner, signing, (bench.now + timedelta(days=1)).date())
    (here,) = [one for one in kept if one.chain == f"consent/{part}"][-1:]
    found = await faults(owner, part, keys, kept)
    assert ("anchor_differs", here.seq) in found
    assert ("anchor_gone", here.seq) in found
    # without them the anchors tell nothing, or what the key's owner wants
    unseen = {fault for fault, _ in await faults(owner, part, keys)} - {"content_gone"}
    assert unseen == ({"anchor_forged"} if how == "with another key" else set())


async def test_anchors_go_out_by_one_command_and_are_compared_by_another(
    bench: Bench[Store], world: World, keys: SigningKeys, tmp_path: Path
) -> None:
    """K1: as a person types it; a file that compares nothing is no proof of anything."""
    shell = Shell(world, tmp_path)
    await record(bench, new_visitor_id())
    async with bench.transaction() as ctx:
        await ctx.store.anchor(keys, bench.now.date())
    exported = await shell.run("anchors")
    lines = exported.out.splitlines()
    assert len(lines) == len(await bench.fetch("TABLE consent_anchor")) > 0
    file = tmp_path / "anchors.jsonl"
    file.write_text(exported.out, encoding="utf-8")
    good = await shell.run("verify", "--json", "--anchors", str(file))
    assert good.code == 0, good.out
    assert sum(one.get("kept_anchors", 0) for one in good.answer) == len(lines)
    listed = (await shell.run("anchor-keys")).answer
    public = VerifyKeys(listed)
    for line in lines:
        one = chain.read_anchor(line)
        assert chain.verify_anchors({}, [one], public) == [
            chain.Finding(seq=one.seq, fault=chain.Fault.CUT)
        ], "it is signed by a listed key, and tells of a link that an empty chain has not"
    receipt_keys = (await shell.run("receipt-keys")).answer
    assert set(listed.values()).isdisjoint(receipt_keys.values())
    told = json.loads(lines[-1])
    for changed, code in (
        (json.dumps(told | {"hash": "ab" * 32}), 3),
        (json.dumps(told | {"chain": "consent/99"}), 2),
        ("", 2),
        ("{}", 2),
    ):
        file.write_text(changed, encoding="utf-8")
        assert (await shell.run("verify", "--anchors", str(file))).code == code, changed


async def test_who_verifies_holds_nobody_up(bench: Bench[Store], keys: SigningKeys) -> None:
    """K1, K2: decisions go on meanwhile and are told; what was read fits together nevertheless."""
    visitor_id = new_visitor_id()
    part = await record(bench, visitor_id)
    beside = await db.connect(bench.url)
    try:
        async with beside.transaction():
            store = Store(beside)
            await store.reads_as_of_one_instant()
            before = await store.chain_part(part)
            takings = await store.chain_part(chain_store.TAKINGS)
            assert await record(bench, visitor_id) == part
            after = await store.chain_part(part)
            # the outbox waits for transactions that have an id
            assert await beside.fetchval("SELECT pg_current_xact_id_if_assigned()") is None
    finally:
        await beside.close()
    assert after == before
    public = VerifyKeys(keys.public())
    assert judge(after, public, proven(takings, public))["findings"] == []


async def test_verify_says_what_is_intact(bench: Bench[Store], world: World) -> None:
    """K1: as a person types it."""
    part = await record(bench, new_visitor_id())
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
        [sys.executable, "-m", "services.consent", "verify", "--json"],
        env={**os.environ, **world.environments["consent"]},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    names = [*(f"consent/{n}" for n in range(8)), "consent/takings", "consent/disclosures"]
    assert [entry["chain"] for entry in said] == names
    assert said[part]["entries"] >= N_RECORDS
    assert all(entry["intact"] for entry in said)
