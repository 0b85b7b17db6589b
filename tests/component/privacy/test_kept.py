"""What is blocked is read by the role of the legal duty only, and never unseen (R-D6, R-C5)."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from deploy.local.layout import ROOT
from schemas.retention import RetentionAction
from tests.support.bench import IDS, new_visitor_id
from tests.support.identities import shown
from tests.support.protected import KINDS, Side, open_side
from tests.support.stack import World

WORLD_SERVICES = ("ad_ledger", "call_control", "consent")
READ = "SELECT * FROM privacy_kept_read($1, $2)"
_BEGIN = """
INSERT INTO access_log (accessed_on, access_id, staff_id, reason, case_number, kind, step,
                        accessed_at, protection_id)
VALUES (current_date, $1, 'staff-1', 'legal_claim', 'AUSK-2026-17', 'ad_use', 'begun',
        now() - make_interval(secs => $2), $3)
"""


@pytest.fixture
async def side(world: World) -> AsyncIterator[Side]:
    async with open_side(world, "ad_ledger") as found:
        yield found


@pytest.fixture
async def duty(world: World) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(world.duty_url("ad_ledger"))
    yield connection
    await connection.close()


async def restricted(side: Side) -> tuple[UUID, UUID]:
    """Block a visitor's rows; return the protection and the visitor."""
    visitor_id, protection_id = new_visitor_id(), IDS.new()
    await side.fill(visitor_id)
    await side.handle(
        side.order(RetentionAction.RESTRICT, visitor_id, kinds=KINDS, protection_id=protection_id)
    )
    return protection_id, visitor_id


def command(world: World, *arguments: str, url: str | None) -> "subprocess.CompletedProcess[str]":
    """Run `kept` as whoever bears the duty does: with nothing but that login."""
    known = "AD_LEDGER_STAFF_REGISTER_PATH"
    environment = {
        "PATH": os.environ["PATH"], known: world.environments["ad_ledger"][known],
    }  # fmt: skip
    if url is not None:
        environment["AD_LEDGER_DUTY_DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", "services.ad_ledger", "kept", *shown(*arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def test_blocked_rows_are_read_by_the_duty_and_the_reading_is_logged(world, side):
    """R-D6, R-C5: who, why, of what kind, how many; another kind's rows are not among them."""
    protection_id, visitor_id = await restricted(side)
    asked = (
        "--protection", str(protection_id), "--by", "staff-7", "--reason", "legal_claim",
        "--case", "AUSK-2026-17", "--kind",
    )  # fmt: skip
    url = world.duty_url("ad_ledger")
    said = await asyncio.to_thread(command, world, *asked, "ad_use", url=url)
    assert said.returncode == 0, said.stderr
    rows = json.loads(said.stdout)
    assert {"ad_view", "lot", "posting"} <= {row["table"] for row in rows}
    assert "ad_view_address" not in {row["table"] for row in rows}
    views = [row["row"] for row in rows if row["table"] == "ad_view"]
    assert {view["visitor_id"] for view in views} == {str(visitor_id)}
    logged = await side.owner.fetch(
        "SELECT * FROM access_log WHERE staff_id = 'staff-7' ORDER BY step DESC"
    )
    assert [(row["step"], row["n_rows"], row["kind"]) for row in logged] == [
        ("begun", None, "ad_use"), ("answered", len(rows), "ad_use"),
    ]  # fmt: skip
    said = await asyncio.to_thread(command, world, *asked, "ip_address", url=url)
    assert [row["table"] for row in json.loads(said.stdout)] == ["ad_view_address"]


async def test_without_the_dutys_login_nothing_is_read(world, side):
    """R-D6: the service's own role is refused by the server, in whatever way it asks."""
    protection_id, _ = await restricted(side)
    asked = (
        "--protection", str(protection_id), "--by", "staff-7", "--reason", "legal_claim",
        "--case", "AUSK-2026-17", "--kind", "ad_use",
    )  # fmt: skip
    for url in (None, world.database_url("ad_ledger")):
        said = await asyncio.to_thread(command, world, *asked, url=url)
        assert (said.returncode, said.stdout) == (2, "")
    for statement in ("SELECT * FROM privacy_kept", "SELECT * FROM privacy_kept_read($1, $1)"):
        arguments = (protection_id,) if "$1" in statement else ()
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await side.bench.connection.fetch(statement, *arguments)


async def test_who_rolls_back_has_been_seen_all_the_same(side, duty):
    """R-C5: the log's row is of a transaction of its own, new, and for one answer."""
    protection_id, _ = await restricted(side)
    unlogged, own, old, ahead, another, good = (IDS.new() for _ in range(6))
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="no access was logged"):
        await duty.fetch(READ, protection_id, unlogged)
    for inserts in ([_BEGIN], ["SAVEPOINT s", _BEGIN, "RELEASE s"]):
        transaction = duty.transaction()
        await transaction.start()
        for statement in inserts:
            await duty.execute(statement, *((own, 0, protection_id) if statement == _BEGIN else ()))
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="transaction of its own"):
            await duty.fetch(READ, protection_id, own)
        await transaction.rollback()
    for access_id, age_s, of in (
        (old, 600, protection_id), (ahead, -3600, protection_id), (another, 0, IDS.new()),
    ):  # fmt: skip
        await duty.execute(_BEGIN, access_id, age_s, of)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="no access was logged"):
            await duty.fetch(READ, protection_id, access_id)
    await duty.execute(_BEGIN, good, 0, protection_id)
    transaction = duty.transaction()
    await transaction.start()
    assert await duty.fetch(READ, protection_id, good)
    await transaction.rollback()
    seen = await side.owner.fetchval("SELECT count(*) FROM access_log WHERE access_id = $1", good)
    assert seen == 1


@pytest.mark.parametrize("service", WORLD_SERVICES)
async def test_the_duty_may_do_nothing_else(world, service):
    """R-C5: no table but the log, and that only to add to it."""
    duty = await asyncpg.connect(world.duty_url(service))
    try:
        tables = await duty.fetch(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace ="
            " 'public'::regnamespace ORDER BY 1"
        )
        assert len(tables) > 5
        for name in (row["relname"] for row in tables):
            deeds = [f"SELECT * FROM {name}", f"DELETE FROM {name}", f"TRUNCATE {name}"]
            if name != "access_log":
                deeds.append(f"INSERT INTO {name} DEFAULT VALUES")
            for deed in deeds:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await duty.execute(deed)
        functions = await duty.fetch(
            "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace"
            " AND has_function_privilege(p.oid, 'EXECUTE') ORDER BY 1"
        )
        assert [row["proname"] for row in functions] == ["access_log_maintain", "privacy_kept_read"]
    finally:
        await duty.close()


@pytest.mark.parametrize("service", WORLD_SERVICES)
async def test_every_service_with_an_access_log_shows_it(world: World, service: str) -> None:
    """R-C5: to the data-protection officer, in one form, whatever the service."""
    access_id, protection = IDS.new(), IDS.new()
    connection = await asyncpg.connect(world.database_url(service))
    try:
        await connection.execute("SELECT access_log_maintain(now())")
        await connection.execute(_BEGIN, access_id, 0.0, protection)
    finally:
        await connection.close()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", f"services.{service}", "accesses"],
        cwd=ROOT,
        env={**os.environ, **world.environments[service]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = [e for e in json.loads(done.stdout) if e["protection_id"] == str(protection)]
    assert (found["staff_id"], found["act"], found["reason"]) == ("staff-1", "read", "legal_claim")
    assert (found["case_number"], found["n_rows"]) == ("AUSK-2026-17", None)
