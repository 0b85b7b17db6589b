"""The chain of consent records on real PostgreSQL: every attack is found out (K1, R-F2)."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.consent import ConsentChoice, ConsentDecision, ConsentMethod, ConsentV1, Purpose
from services.chassis.ids import TimeOrderedIds
from services.consent import chain_store
from services.consent.command import judge
from services.consent.handlers import on_consents
from services.consent.store import Store
from services.privacy.chain import SigningKeys, VerifyKeys
from tests.support.bench import Bench, new_visitor_id, open_bench, received
from tests.support.stack import World

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
    connection: "asyncpg.Connection[Any]", part: int, keys: SigningKeys
) -> list[tuple[str, int]]:
    """Return what `verify` finds in a chain, by kind and place."""
    found = judge(await chain_store.read_part(connection, part), VerifyKeys(keys.public()))
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
    assert await faults(owner, part, keys) == [("missing", seq + 7)]


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


async def test_erased_records_leave_a_chain_that_verifies(
    bench: Bench[Store], owner: "asyncpg.Connection[Any]", keys: SigningKeys
) -> None:
    """K1: record and salt go, commitments stay, and not a byte of the person is among them."""
    part = await record(bench, new_visitor_id())
    gone = await owner.fetch("DELETE FROM consent_record WHERE chain_part = $1 RETURNING *", part)
    assert await faults(owner, part, keys) == []
    left = await chain_store.read_part(owner, part)
    assert (
        judge(left, VerifyKeys(keys.public()))["without_record"] == len(left.entries) >= len(gone)
    )
    kept = b"".join(entry.commitment + entry.hash for entry in left.entries)
    for row in gone:
        for secret in (row["salt"], row["proof_id"].bytes, row["decision_id"].bytes):
            assert secret not in kept


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
    ],
)
async def test_the_service_itself_cannot_change_what_it_recorded(
    bench: Bench[Store], statement: str
) -> None:
    """K1, R-C5: append-only by rights."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bench.connection.execute(statement)


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
    assert [entry["chain"] for entry in said] == [f"consent/{n}" for n in range(8)]
    assert said[part]["entries"] >= N_RECORDS
    assert all(entry["intact"] for entry in said)
