"""Consents from before 25 May 2018, and withdrawals by proof id, as staff types them (R-F3)."""

import asyncio
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
from services.chassis.clock import SystemClock
from services.chassis.ids import TimeOrderedIds
from services.consent import chain_store, proofs, receipts
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


BY_LETTER = ("--by", "staff-1", "--method", "letter")


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
    said = await shell.run("import", written(tmp_path, OLD), "--by", "staff-1")
    assert said.code == 0, said.err
    (told,) = said.answer
    assert told["reference"] == OLD["reference"]
    proof_id = told["proof_id"]
    assert told["did"] == "imported"
    again = await shell.run("import", written(tmp_path, told), "--by", "staff-1")
    assert without_instant(again.answer) == without_instant([told | {"did": "known"}])
    looked = ("proof", "--proof", proof_id, "--by", "staff-2", "--reason", "person_request")
    found = (await shell.run(*looked)).answer
    assert found["in_force"] == ["marketing", "statistics"]
    assert len(found["records"]) == 2
    one = await shell.run("withdraw", "--proof", proof_id, *BY_LETTER, "--purpose", "marketing")
    assert one.answer["withdrawn"] == ["marketing"]
    assert (await shell.run(*looked)).answer["in_force"] == ["statistics"]
    rest = await shell.run("withdraw", "--proof", proof_id, *BY_LETTER)
    assert rest.answer["withdrawn"] == ["statistics"]
    assert (await shell.run("withdraw", "--proof", proof_id, *BY_LETTER)).code == 2
    async with open_bench(world, "consent", Store) as bench:
        rows = await bench.fetch("SELECT * FROM consent_record WHERE proof_id = $1", UUID(proof_id))
    assert len(rows) == 4
    assert all("4711" not in str(value) for row in rows for value in row.values())
    assert {(row["decision"], row["method"]) for row in rows} == {
        ("given", "paper"),
        ("withdrawn", "letter"),
    }
    public = VerifyKeys((await shell.run("receipt-keys")).answer)
    assert receipts.verify(told["receipt"], public)
    record = told["receipt"]["receipt"]["dpv:hasRecordOfActivity"]
    assert record["dct:issued"]["@value"] == "2017-03-01T08:30:00.000000+00:00"
    wordings = {row["wording_version"] for row in rows if row["decision"] == "given"}
    assert {record["dpv:hasNotice"]["schema:sha256"]} == wordings
    assert receipts.verify(one.answer["receipt"], public)
    assert one.answer["receipt"]["receipt"]["dct:type"] == "termination"
    proven = (await shell.run(*looked)).answer["receipts"]
    assert [each["receipt"]["dct:type"] for each in proven] == ["decision", *["termination"] * 2]
    assert all(receipts.verify(each, public) for each in proven)
    await assert_intact(world, UUID(proof_id))


def without_instant(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what an import printed without what differs each time: when receipts were made."""
    return [{name: value for name, value in one.items() if name != "receipt"} for one in told]


async def records_of(world: World, proof_id: str) -> list[Any]:
    async with open_bench(world, "consent", Store) as bench:
        sql = "SELECT * FROM consent_record WHERE proof_id = $1"
        return await bench.fetch(sql, UUID(proof_id))


async def test_an_import_again_after_a_crash_doubles_nothing(
    world: World, shell: Shell, tmp_path: Path
) -> None:
    """R-F2, R-F3: the answer was lost; the same file again says what is there already."""
    mine = {**OLD, "reference": f"Kunde {new_visitor_id()}"}
    other = {**mine, "reference": f"Kunde {new_visitor_id()}"}
    file = written(tmp_path, mine, other, mine)
    first, second = await asyncio.gather(
        *(shell.run("import", file, "--by", "staff-1") for _ in range(2))
    )
    for said in (first, second):
        assert said.code == 0, said.err
    did = sorted([each["did"] for each in said.answer] for said in (first, second))
    assert did == [["imported", "imported", "known"], ["known", "known", "known"]]
    assert without_did(first.answer) == without_did(second.answer)
    ids = [each["proof_id"] for each in first.answer]
    assert ids[0] == ids[2] != ids[1]
    assert len(await records_of(world, ids[0])) == len(mine["purposes"])
    more = {**mine, "purposes": ["marketing", "preferences"]}
    (added,) = (await shell.run("import", written(tmp_path, more), "--by", "staff-1")).answer
    assert (added["did"], added["proof_id"]) == ("imported", ids[0])
    assert len(await records_of(world, ids[0])) == len(mine["purposes"]) + 1
    for changed in (
        {"method": "web"},
        {"wording": "Nein."},
        {"valid_until": f"{TODAY.year + 1}-12-01"},
    ):
        wrong = await shell.run("import", written(tmp_path, mine | changed), "--by", "staff-1")
        assert wrong.code == 2, changed
        assert "line 1: it was imported with other facts" in wrong.err
    unknown = {**mine, "proof_id": str(IDS.new())}
    (nothing,) = (await shell.run("import", written(tmp_path, unknown), "--by", "staff-1")).answer
    assert nothing["did"] == "not_found"
    await assert_intact(world, UUID(ids[0]))


def without_did(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != "did"} for one in without_instant(told)]


def test_an_imports_ids_follow_from_the_line_for_who_has_a_key_only() -> None:
    """ADR 0013: nobody finds a person's proof by trying references; a rotation changes nothing."""
    (old,) = read(json.dumps(OLD), TODAY)
    keys, others = SigningKeys({"k1": "11" * 32}), SigningKeys({"k1": "22" * 32})
    rotated = SigningKeys({"k2": "22" * 32, "k1": "11" * 32})
    assert proofs.ids_of(old, keys) == proofs.ids_of(old, keys)
    assert set(proofs.ids_of(old, keys)).isdisjoint(proofs.ids_of(old, others))
    assert proofs.ids_of(old, rotated) == [*proofs.ids_of(old, others), *proofs.ids_of(old, keys)]
    for changed in ({"reference": "Kunde 4712"}, {"given_at": "2017-03-01T09:30:01+01:00"}):
        (another,) = read(json.dumps(OLD | changed), TODAY)
        assert set(proofs.ids_of(old, keys)).isdisjoint(proofs.ids_of(another, keys))
    (same,) = read(json.dumps(OLD | {"given_at": "2017-03-01T08:30:00Z"}), TODAY)
    assert proofs.ids_of(old, keys) == proofs.ids_of(same, keys), "the same instant"


async def test_what_staff_does_stands_in_the_access_log(shell: Shell, tmp_path: Path) -> None:
    """R-C5: who, what, why, by what means it was asked for, and how much; before it was done."""
    since = SystemClock().now().isoformat()
    old = {**OLD, "reference": f"Kunde {new_visitor_id()}"}
    case = ("--case", "EINW-2026-17")
    (told,) = (await shell.run("import", written(tmp_path, old), "--by", "staff-1", *case)).answer
    withdraw = ("withdraw", "--proof", told["proof_id"], "--by", "staff-2", *case)
    assert (await shell.run(*withdraw)).code == 2, "by what means must be said"
    assert (await shell.run(*withdraw, "--method", "telephone")).code == 0
    assert (await shell.run(*withdraw, "--method", "email")).code == 2, "nothing is left"
    said = await shell.run("accesses", "--since", since)
    entries = [
        (one["staff_id"], one["act"], one["reason"], one["means"], one["n_rows"], one["kind"])
        for one in said.answer
        if one["case_number"] == case[1]
    ]
    kind = "consent_record"
    assert entries == [
        ("staff-2", "withdraw", "person_request", "email", None, kind),
        ("staff-2", "withdraw", "person_request", "telephone", 2, kind),
        ("staff-1", "import", "accountability", "paper", 2, kind),
    ]
    assert old["reference"] not in said.out
    assert (await shell.run("accesses", "--since", "2026-11-01T00:00:00")).code == 2


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
        said = await shell.run("withdraw", "--proof", str(row["proof_id"]), *BY_LETTER)
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
        ("import", written(tmp_path, OLD), "--by", "staff-9"),
        ("withdraw", "--proof", proof_id, "--by", "staff-9", "--method", "email"),
        ("proof", "--proof", proof_id, "--by", "staff-9", "--reason", "person_request"),
    ):
        said = await shell.run(*arguments)
        assert (said.code, said.out) == (2, "")
        assert "identity_unknown" in said.err


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
