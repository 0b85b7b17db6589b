"""Who types a command about persons shows it, or is refused and kept as refused (R-C5, R-D3)."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from deploy.local import staff
from deploy.local.layout import ROOT
from tests.support.identities import folder, shown
from tests.support.stack import World

WORLD_SERVICES = ("retention",)
REVIEW_ON = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
PROPOSE = (
    "hold", "propose", "--case", "STRAF-2026-7", "--ground", "criminal_complaint",
    "--kinds", "traffic_data", "--review-on", REVIEW_ON,
)  # fmt: skip


class Said(NamedTuple):
    code: int
    out: str


@pytest.fixture
async def owner(world: World) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(world.owner_url("retention"))
    await connection.execute(
        "TRUNCATE retention_refusal, retention_order, retention_protection, retention_chain CASCADE"
    )
    yield connection
    await connection.close()


async def run(world: World, *arguments: str, **overrides: str) -> Said:
    environment = {**world.environments["retention"], **overrides}
    found = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.retention", *shown(*arguments)],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    return Said(found.returncode, found.stdout)


async def refusals(owner: "asyncpg.Connection[Any]") -> list[tuple[str, str, str]]:
    rows = await owner.fetch("SELECT what, reason, staff_id FROM retention_refusal ORDER BY 1, 2")
    return [tuple(row) for row in rows]


def key(staff_id: str) -> tuple[str, str]:
    return "--key", str(staff.key_path(folder(), staff_id))


def register(tmp_path: Path, **changed: Any) -> str:
    """Return the path of the register with staff-1's entry changed."""
    known = json.loads(staff.register_path(folder()).read_text(encoding="utf-8"))
    known["staff"][0] |= changed
    path = tmp_path / "register.json"
    path.write_text(json.dumps(known), encoding="utf-8")
    return str(path)


async def test_one_person_is_not_two_by_typing_another_id(world: World, owner: Any):
    """R-D3: a hold proposed and placed by one person with two ids and one key is refused."""
    said = await run(world, *PROPOSE, "--by", "staff-1")
    assert said.code == 0, said.out
    hold_id = said.out.split("hold ")[1].split()[0]
    said = await run(world, "hold", "place", hold_id, "--by", "staff-2", *key("staff-1"))
    assert (said.code, "identity_unproven" in said.out) == (2, True)
    assert await refusals(owner) == [("place", "identity_unproven", "staff-2")]
    steps = await owner.fetch("SELECT step FROM retention_protection_step")
    assert [row["step"] for row in steps] == ["proposed"]
    said = await run(world, "hold", "place", hold_id, "--by", "staff-2")
    assert said.code == 0, said.out


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"until": "2026-02-01"}, "left"),
        ({"bound_since": "2999-01-01"}, "not_bound"),
        ({"roles": ["person_requests", "evidence"]}, "role_missing"),
    ],
)
async def test_whom_the_register_does_not_let_is_refused_and_kept(
    world: World, owner: Any, tmp_path: Path, changed: dict[str, Any], reason: str
):
    """R-C5: left, not bound, another duty."""
    known = register(tmp_path, **changed)
    said = await run(world, *PROPOSE, "--by", "staff-1", RETENTION_STAFF_REGISTER_PATH=known)
    assert (said.code, reason in said.out, "Traceback" in said.out) == (2, True, False)
    assert await refusals(owner) == [("propose", reason, "staff-1")]
    assert await owner.fetchval("SELECT count(*) FROM retention_protection") == 0


async def test_nonsense_and_names_are_not_kept(world: World, owner: Any):
    """R-D9: a refusal has a staff id of the register, or none."""
    said = await run(world, *PROPOSE, "--by", "Erika Musterfrau")
    assert (said.code, "Erika" in said.out) == (2, False)
    assert await refusals(owner) == [("propose", "identity_unknown", "unknown")]


async def test_a_key_that_others_can_read_shows_nothing(world: World, owner: Any, tmp_path: Path):
    """R-C5."""
    path = tmp_path / "key"
    shutil.copyfile(staff.key_path(folder(), "staff-1"), path)
    path.chmod(0o640)
    said = await run(world, *PROPOSE, "--by", "staff-1", "--key", str(path))
    assert (said.code, "by others" in said.out) == (2, True)
    assert await refusals(owner) == [("propose", "identity_unproven", "staff-1")]


async def test_without_a_register_every_command_is_refused(world: World, owner: Any):
    """R-C5: fail closed, with a sentence; waivers and orders about persons too."""
    anyone = ("--by", "staff-1")
    for arguments in (
        (*PROPOSE, *anyone),
        ("erase", "--case", "AUSK-2026-1", *anyone),
        ("restrict", "--case", "AUSK-2026-1", *anyone),
        ("unrestrict", "--case", "AUSK-2026-1", "00000000-0000-0000-0000-000000000001", *anyone),
        ("order", "waive", "00000000-0000-0000-0000-000000000001", "--holder", "consent", *anyone),
    ):
        said = await run(world, *arguments, RETENTION_STAFF_REGISTER_PATH="/nowhere")
        assert (said.code, "cannot be read" in said.out) == (2, True), said.out
    assert await owner.fetchval("SELECT count(*) FROM retention_order") == 0
