"""Disclosures and staff's looking, as typed on the command line (R-C4, R-C5)."""

from datetime import timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.transfer import TransferV1, TransferVerdict
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.consent.transfer_store import INVARIANTS, ConsentStore
from services.consent.transfers import on_transfers
from tests.support.bench import new_visitor_id, open_bench, received
from tests.support.stack import World
from tests.support.staff import Shell

WORLD_SERVICES = ("consent",)
REFERENCE = "31 Js 4711/26"
PROPOSE = (
    "disclose", "propose", "--by", "staff-1", "--authority", "Staatsanwaltschaft Berlin",
    "--ground", "§ 100g StPO", "--fields", "address,viewed_at", "--reference", REFERENCE,
    "--from-day", "2026-11-20", "--to-day", "2026-11-22", "--persons", "2",
)  # fmt: skip


@pytest.fixture
def shell(world: World, tmp_path: Path) -> Shell:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return Shell(world, folder)


@pytest.fixture
async def owner(world: World):
    connection = await asyncpg.connect(world.owner_url("consent"))
    yield connection
    await connection.close()


async def test_two_persons_disclose_and_it_is_recorded_as_a_transfer(shell, owner):
    """R-C4, R-E2: ground, author and extent; the authority's reference as a hash only."""
    proposed = await shell.run(*PROPOSE)
    assert proposed.code == 0, proposed.err
    id_ = proposed.answer["disclosure_id"]
    approve = ("disclose", "approve", "--id", id_, "--by")

    same = await shell.run(*approve, "staff-1")
    assert (same.code, same.out) == (2, "")
    assert "a second person must approve it" in same.err
    stranger = await shell.run(*approve, "staff-9")
    assert (stranger.code, "identity_unknown" in stranger.err) == (2, True)
    count = "SELECT count(*) FROM consent_transfer WHERE recipient = 'authorities'"
    n_before = await owner.fetchval(count)

    approved = await shell.run(*approve, "staff-2")
    assert approved.code == 0, approved.err
    assert await owner.fetchval(count) == n_before + 1
    row = await owner.fetchrow(
        "SELECT * FROM consent_transfer WHERE transfer_id = $1",
        UUID(approved.answer["transfer_id"]),
    )
    assert (row["purpose"], row["fields"], row["basis"], row["country_ground"]) == (
        "disclosure", ["address", "viewed_at"], "Art. 6(1)(c)", "not_a_third_country",
    )  # fmt: skip
    again = await shell.run(*approve, "staff-3")
    assert (again.code, "approved already" in again.err) == (2, True)

    listed = await shell.run("disclose", "list")
    (entry,) = [e for e in listed.answer if e["disclosure_id"] == id_]
    assert (entry["proposed_by"], entry["approved_by"]) == ("staff-1", "staff-2")
    assert (entry["authority"], entry["legal_ground"]) == (
        "Staatsanwaltschaft Berlin",
        "§ 100g StPO",
    )
    assert (entry["from_day"], entry["to_day"], entry["n_persons"]) == (
        "2026-11-20", "2026-11-22", 2,
    )  # fmt: skip
    assert entry["transfer_id"] == approved.answer["transfer_id"], "what came of it"
    stored = await owner.fetch("SELECT c::text FROM consent_disclosure c")
    assert REFERENCE not in str(stored) + listed.out
    for sql in INVARIANTS.values():
        assert await owner.fetchval(sql) == 0


async def verified(shell: Shell) -> tuple[int, list[dict[str, str]]]:
    """Return the status of `verify`, and what it finds in disclosures."""
    said = await shell.run("verify", "--json")
    (found,) = [one for one in said.answer if one["chain"] == "consent/disclosures"]
    return said.code, found["findings"]


@pytest.mark.parametrize(
    ("forgery", "fault"),
    [
        ("authority = 'Erika Musterfrau' WHERE step = 'proposed'", "signature_forged"),
        ("n_persons = 99 WHERE step = 'proposed'", "signature_forged"),
        ("staff_id = 'staff-3' WHERE step = 'approved'", "signature_forged"),
        ("transfer_id = NULL WHERE step = 'approved'", "signature_forged"),
        ("key_id = '0123456789abcdef' WHERE step = 'approved'", "key_unknown"),
    ],
)
async def test_a_disclosure_that_was_changed_afterwards_is_found(shell, owner, forgery, fault):
    """R-C4, R-C5: by the owner of the database; both halves are signed, over what is told."""
    id_ = (await shell.run(*PROPOSE)).answer["disclosure_id"]
    said = await shell.run("disclose", "approve", "--id", id_, "--by", "staff-2")
    assert said.code == 0, said.err
    assert await verified(shell) == (0, [])
    set_, _, where = forgery.partition(" WHERE ")
    await owner.execute(
        f"UPDATE consent_disclosure SET {set_} WHERE {where} AND disclosure_id = $1", UUID(id_)
    )
    code, found = await verified(shell)
    assert code == 3
    assert {(one["fault"], one["disclosure_id"]) for one in found} == {(fault, id_)}
    await owner.execute("DELETE FROM consent_disclosure WHERE disclosure_id = $1", UUID(id_))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--fields": "address,name"}, "the register allows no disclosure of: name"),
        ({"--fields": "name"}, "no_field_allowed"),
        ({"--ground": " "}, "have 1 to 200 characters"),
        ({"--by": "staff-9"}, "identity_unknown"),
        ({"--persons": "0"}, "about somebody"),
        ({"--from-day": "2026-11-23"}, "not after --to-day"),
        ({"--to-day": "2999-01-01"}, "not after today"),
    ],
)
async def test_what_may_not_be_disclosed_is_not_proposed(shell, changed, said):
    """R-C4: no ground, no extent, no author: no disclosure."""
    arguments = list(PROPOSE)
    for name, value in changed.items():
        arguments[arguments.index(name) + 1] = value
    found = await shell.run(*arguments)
    assert (found.code, found.out) == (2, "")
    assert said in found.err


async def test_the_database_knows_four_eyes_by_itself(shell, world):
    """R-C4: whatever the command does; and what was stated cannot be changed."""
    proposed = await shell.run(*PROPOSE)
    connection = await asyncpg.connect(world.database_url("consent"))
    sql = """INSERT INTO consent_disclosure (proposed_on, disclosure_id, step, staff_id, stated_at)
             SELECT proposed_on, $1, 'approved', 'staff-1', now() FROM consent_disclosure
             WHERE disclosure_id = $2"""
    id_ = UUID(proposed.answer["disclosure_id"])
    try:
        for approved in (id_, UUID("019aabcd-1234-7abc-8def-0123456789ab")):
            with pytest.raises(asyncpg.CheckViolationError, match="second person"):
                await connection.execute(sql, approved, id_)
        extent = """INSERT INTO consent_disclosure SELECT (jsonb_populate_record(c,
            '{"disclosure_id": "019aabcd-1234-7abc-8def-0123456789ab", "n_persons": 0}')).*
            FROM consent_disclosure c WHERE disclosure_id = $1"""
        with pytest.raises(asyncpg.CheckViolationError, match="extent"):
            await connection.execute(extent, id_)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("UPDATE consent_disclosure SET staff_id = 'staff-7'")
    finally:
        await connection.close()


async def test_staff_sees_a_visitors_transfers_and_the_officer_sees_who_looked(shell, world):
    """R-C5, R-G1: to whom the data went; the look is logged with its reason and its number."""
    visitor, now = new_visitor_id(), SystemClock().now()
    event = TransferV1(
        transfer_id=TimeOrderedIds().new(), recipient="ad-partner", purpose="ad_settlement",
        fields=("address",), verdict=TransferVerdict.PERMITTED, basis="Art. 6(1)(b)",
        country_ground="adequacy", register_version="2026-11.1", visitor_id=visitor,
        happened_at=now - timedelta(seconds=1), asked_at=now,
    )  # fmt: skip
    days = ("consent_transfer_visitor",)
    opened = open_bench(world, "consent", ConsentStore, days_of=days, now=now)
    async with opened as bench, bench.transaction() as ctx:
        await on_transfers(ctx, [received(topics.TRANSFER, event, now)])
    look = ("transfers", "--visitor", str(visitor), "--by", "staff-3")
    found = await shell.run(*look, "--reason", "person_request", "--case", "AUSK-2026-17")
    assert found.code == 0, found.err
    (entry,) = found.answer
    assert (entry["recipient"], entry["why"]) == ("ad-partner", "Art. 6(1)(b), adequacy")
    nobody = await shell.run("transfers", "--visitor", str(visitor), "--by", "staff-3")
    assert nobody.code == 2, "no look without a reason"

    log = await shell.run("accesses", "--since", now.isoformat())
    assert log.code == 0, log.err
    (access,) = log.answer
    assert (access["staff_id"], access["reason"], access["case_number"], access["n_rows"]) == (
        "staff-3", "person_request", "AUSK-2026-17", 1,
    )  # fmt: skip
    assert str(visitor) not in log.out
