"""Consents from before 25 May 2018, and withdrawals by proof id, as staff types them (R-F3)."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from schemas import topics
from schemas.consent import (
    ConsentChoice,
    ConsentDecision,
    ConsentMethod,
    ConsentStateV1,
    ConsentV1,
    Purpose,
)
from services.chassis.ids import TimeOrderedIds
from services.consent import chain_store
from services.consent.command import judge
from services.consent.disclosures import RefusedError
from services.consent.handlers import on_consents
from services.consent.proofs import read
from services.consent.store import Store
from services.privacy.chain import SigningKeys, VerifyKeys
from tests.support.bench import new_visitor_id, open_bench, received
from tests.support.stack import World
from tests.support.staff import Shell

WORLD_SERVICES = ("consent",)
IDS = TimeOrderedIds()
TODAY = date.today()  # noqa: DTZ011 - the command's own day, some hours of a night aside
OLD: dict[str, Any] = {
    "reference": "Kunde 4711",
    "purposes": ["marketing", "statistics"],
    "given_at": "2017-03-01T09:30:00+01:00",
    "valid_until": f"{TODAY.year + 1}-06-30",
    "method": "paper",
    "language": "de",
    "wording": "Ja, schicken Sie mir Werbung.",
}


@pytest.fixture
def shell(world: World, tmp_path: Path) -> Shell:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return Shell(world, folder)


def written(tmp_path: Path, *lines: dict[str, Any]) -> str:
    path = tmp_path / "old.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return str(path)


async def test_an_old_consent_is_imported_and_withdrawn_the_same_way(
    world: World, shell: Shell, tmp_path: Path
) -> None:
    """R-F3, K1: in the chain, under a proof id; the person's reference stays outside."""
    said = await shell.run("import", written(tmp_path, OLD), "--as", "staff-1")
    assert said.code == 0, said.err
    (told,) = said.answer
    assert told["reference"] == OLD["reference"]
    proof_id = told["proof_id"]
    again = await shell.run("import", written(tmp_path, told), "--as", "staff-1")
    assert again.answer == [told], "an imported line changes nothing"
    looked = ("proof", "--proof", proof_id, "--as", "staff-2", "--reason", "person_request")
    found = (await shell.run(*looked)).answer
    assert found["in_force"] == ["marketing", "statistics"]
    assert len(found["records"]) == 2
    one = await shell.run(
        "withdraw", "--proof", proof_id, "--as", "staff-1", "--purpose", "marketing"
    )
    assert one.answer["withdrawn"] == ["marketing"]
    assert (await shell.run(*looked)).answer["in_force"] == ["statistics"]
    rest = await shell.run("withdraw", "--proof", proof_id, "--as", "staff-1")
    assert rest.answer["withdrawn"] == ["statistics"]
    assert (await shell.run("withdraw", "--proof", proof_id, "--as", "staff-1")).code == 2
    async with open_bench(world, "consent", Store) as bench:
        rows = await bench.fetch("SELECT * FROM consent_record WHERE proof_id = $1", UUID(proof_id))
    assert len(rows) == 4
    assert all("4711" not in str(value) for row in rows for value in row.values())
    assert {row["decision"] for row in rows} == {"given", "withdrawn"}
    await assert_intact(world, UUID(proof_id))


async def assert_intact(world: World, proof_id: UUID) -> None:
    """Verify the chain of a proof."""
    owner = await asyncpg.connect(world.owner_url("consent"))
    try:
        async with owner.transaction():
            part = await chain_store.read_part(owner, chain_store.part_of(proof_id))
    finally:
        await owner.close()
    keys = SigningKeys.from_json(str(world.settings("consent")["anchor_keys"]))
    assert judge(part, VerifyKeys(keys.public()))["intact"]


async def test_who_has_lost_the_page_withdraws_by_the_receipts_proof_id(
    world: World, shell: Shell
) -> None:
    """R-F3, R-G7: by e-mail, to the same effect: what senders read changes at once."""
    visitor = new_visitor_id()
    event = ConsentV1(
        decision_id=IDS.new(),
        visitor_id=visitor,
        choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.GIVEN),),
        catalogue_version="2026-11.1",
        wording_version="2026-11.1",
        language="de",
        method=ConsentMethod.BANNER,
    )
    days = ("consent_subject", "privacy_erased")
    async with open_bench(world, "consent", Store, days_of=days) as bench:
        at = bench.now - timedelta(hours=13)  # before now, whatever the hour
        async with bench.transaction() as ctx:
            await on_consents(ctx, [received(topics.CONSENT, event, at)])
        (row,) = await bench.fetch(
            "SELECT proof_id FROM consent_subject WHERE visitor_id = $1", visitor
        )
        said = await shell.run("withdraw", "--proof", str(row["proof_id"]), "--as", "staff-1")
        assert said.code == 0, said.err
        sent = await bench.fetch(
            "SELECT payload FROM outbox WHERE topic = 'consent-state' ORDER BY id DESC LIMIT 1"
        )
    state = ConsentStateV1.model_validate_json(sent[0]["payload"])
    assert state.visitor_id == visitor
    assert {(one.purpose, one.in_force) for one in state.purposes} == {("marketing", False)}


async def test_nobody_withdraws_or_looks_who_is_not_on_the_list(
    shell: Shell, tmp_path: Path
) -> None:
    """R-C5."""
    proof_id = str(IDS.new())
    for arguments in (
        ("import", written(tmp_path, OLD), "--as", "staff-9"),
        ("withdraw", "--proof", proof_id, "--as", "staff-9"),
        ("proof", "--proof", proof_id, "--as", "staff-9", "--reason", "person_request"),
    ):
        said = await shell.run(*arguments)
        assert (said.code, said.out) == (2, "")
        assert "CONSENT_STAFF" in said.err


@pytest.mark.parametrize(
    "wrong",
    [
        {"given_at": "2018-05-25T00:00:00+02:00"},
        {"given_at": "2017-03-01T09:30:00"},
        {"valid_until": str(TODAY - timedelta(days=2))},
        {"valid_until": f"{TODAY.year + 2}-01-01"},
        {"purposes": ["necessary"]},
        {"purposes": []},
        {"name": "Erika Mustermann"},
    ],
    ids=str,
)
def test_a_line_that_cannot_have_been_is_refused_and_not_repeated(wrong: dict[str, Any]) -> None:
    """R-F3: all or nothing; the refusal names the line, nothing that stands in it."""
    text = f"{json.dumps(OLD)}\n{json.dumps(OLD | wrong)}\n"
    with pytest.raises(RefusedError, match=r"^line 2: ") as refused:
        read(text, TODAY)
    assert "4711" not in str(refused.value)
    assert "Mustermann" not in str(refused.value)
    with pytest.raises(RefusedError, match="1 to"):
        read("\n", TODAY)


def test_the_last_moment_before_the_law_counts() -> None:
    """R-F3: 24 May 2018, 23:59:59 in Berlin."""
    (old,) = read(json.dumps(OLD | {"given_at": "2018-05-24T23:59:59+02:00"}), TODAY)
    assert old.given_at.year == 2018
