"""The register of staff: whose key, until when, for what (R-C5, R-D3)."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.layout import ROOT
from services.privacy import identify, staff
from services.privacy.access_log import Reason
from services.privacy.staff import (
    BY_SCHEDULE,
    DUTY_OF,
    Duty,
    Identity,
    PrivateKey,
    Refusal,
    StaffError,
    StaffRegister,
)

ANNA, BERT = PrivateKey("0a" * 32), PrivateKey("0b" * 32)
DAY = date(2026, 6, 1)
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ROW = {"protection_id": "p", "step": "placed"}


def colleague(number: int, key: PrivateKey, **more: Any) -> dict[str, Any]:
    given_key = {"public_key": key.public_key, "valid_from": "2026-01-01"}
    return {
        "staff_id": f"staff-{number}",
        "bound_since": "2026-01-01",
        "roles": ["holds"],
        "keys": [given_key],
    } | more


def register(*people: dict[str, Any]) -> StaffRegister:
    return StaffRegister.model_validate({"staff": people})


BOTH = register(colleague(1, ANNA), colleague(2, BERT))


def test_the_keys_owner_with_the_role_may():
    """R-C5."""
    assert staff.judge(BOTH, ANNA.public_key, "staff-1", Duty.HOLDS, NOON) is None


def test_nobody_is_another_one():
    """R-D3: who types another's id, or one that nobody has, is refused."""
    for key, staff_id, refusal in (
        (ANNA, "staff-2", Refusal.IDENTITY_UNPROVEN),
        (PrivateKey("0c" * 32), "staff-1", Refusal.IDENTITY_UNPROVEN),
        (ANNA, "staff-3", Refusal.IDENTITY_UNKNOWN),
        (ANNA, "staff-01", Refusal.IDENTITY_UNKNOWN),
    ):
        assert staff.judge(BOTH, key.public_key, staff_id, Duty.HOLDS, NOON) is refusal


@pytest.mark.parametrize("duty", [duty for duty in Duty if duty is not Duty.HOLDS])
def test_a_role_opens_its_own_commands_only(duty: Duty):
    """R-C5: least privilege."""
    found = staff.judge(BOTH, ANNA.public_key, "staff-1", duty, NOON)
    assert found is Refusal.ROLE_MISSING


DAYS = st.integers(-400, 400).map(lambda n: DAY + timedelta(days=n))
ENDS = st.none() | DAYS


@given(bound=DAYS, until=ENDS, begins=DAYS, ends=ENDS, now=DAYS)
def test_dates_decide_as_they_read(
    bound: date, until: date | None, begins: date, ends: date | None, now: date
):
    """R-C5: bound, not gone, key valid; each on the very day, by the day in Germany."""
    key = {"public_key": ANNA.public_key, "valid_from": begins, "valid_until": ends}
    person = colleague(1, ANNA, bound_since=bound, until=until, keys=[key])
    if (until is not None and until <= bound) or (ends is not None and ends <= begins):
        with pytest.raises(ValueError, match=r"ends before it begins|leaves before"):
            register(person)
        return
    at = datetime(now.year, now.month, now.day, 12, tzinfo=UTC)
    found = staff.judge(register(person), ANNA.public_key, "staff-1", Duty.HOLDS, at)
    is_with_us = bound <= now < (until or date.max)
    is_valid = begins <= now < (ends or date.max)
    assert (found is None) == (is_with_us and is_valid)
    if found is not None:
        expected = (
            Refusal.NOT_BOUND if now < bound
            else Refusal.LEFT if not is_with_us
            else Refusal.KEY_EXPIRED
        )  # fmt: skip
        assert found is expected


def test_a_day_is_one_in_germany():
    """R-D9: 22:00 UTC of a day in summer is the next day there."""
    people = register(colleague(1, ANNA, until="2026-06-02"))
    for hour, expected in ((21, None), (22, Refusal.LEFT)):
        now = NOON.replace(hour=hour)
        found = staff.judge(people, ANNA.public_key, "staff-1", Duty.HOLDS, now)
        assert found is expected


@pytest.mark.parametrize(
    ("people", "said"),
    [
        ([colleague(1, ANNA), colleague(2, ANNA)], "a public key stands twice"),
        ([colleague(1, ANNA), colleague(1, BERT)], "a staff id stands twice"),
        ([colleague(1, ANNA, until="2025-12-31")], "leaves before"),
        ([colleague(1, ANNA, name="Erika Musterfrau")], "Extra inputs"),
        ([colleague(1, ANNA, Erika=1)], "staff.0: Extra inputs"),
        ([colleague(1, ANNA, staff_id="Erika Musterfrau")], "staff.0.staff_id"),
        ([colleague(1, ANNA, roles=["god"])], "staff.0.roles"),
        ([colleague(1, ANNA, keys=[])], "staff.0.keys"),
        ([], "staff"),
    ],
)
def test_a_wrong_register_is_refused_in_a_sentence(
    tmp_path: Path, people: list[dict[str, Any]], said: str
):
    """R-C5: and nothing of what it says is repeated."""
    path = tmp_path / "staff.json"
    path.write_text(json.dumps({"staff": people}), encoding="utf-8")
    with pytest.raises(StaffError) as caught:
        staff.load(path)
    assert said in str(caught.value)
    assert "Erika" not in str(caught.value)


def test_a_register_that_is_not_there_or_no_json_is_refused(tmp_path: Path):
    """R-C5: fail closed."""
    with pytest.raises(StaffError, match="cannot be read"):
        staff.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(StaffError, match="as a whole"):
        staff.load(tmp_path / "bad.json")


def test_every_reason_is_some_roles_business():
    """R-C5."""
    assert set(DUTY_OF) == set(Reason)


def test_a_signature_is_of_one_row_of_one_kind_by_one_key():
    """R-D3: nothing that was signed counts for something else."""
    key_id, signature = Identity("staff-1", ANNA).sign("staff-1", "protection_step", ROW)
    assert signature is not None
    assert BOTH.owner_of[key_id or ""].staff_id == "staff-1"
    assert staff.is_signed(ANNA.public_key, signature, "protection_step", ROW)
    assert not staff.is_signed(BERT.public_key, signature, "protection_step", ROW)
    assert not staff.is_signed(ANNA.public_key, signature, "review", ROW)
    assert not staff.is_signed(
        ANNA.public_key, signature, "protection_step", ROW | {"step": "released"}
    )


def test_nobody_signs_for_another_and_the_schedule_signs_nothing():
    """R-D3: what a service does by itself is nobody's word."""
    with pytest.raises(StaffError, match="for another"):
        Identity("staff-1", ANNA).sign("staff-2", "review", ROW)
    assert staff.sign_nothing(BY_SCHEDULE, "protection_step", ROW) == (None, None)
    with pytest.raises(StaffError, match="signed by that person"):
        staff.sign_nothing("staff-1", "protection_step", ROW)


# ---------------------------------------------------------------------- files


def asked(key: Path | None, by: str = "staff-1") -> Namespace:
    return Namespace(by=by, key=key)


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a key, and a register of whose it is."""
    path = tmp_path / "staff-1.key"
    key = identify.make_key(path)
    known = tmp_path / "staff.json"
    known.write_text(json.dumps({"staff": [colleague(1, key)]}), encoding="utf-8")
    monkeypatch.setenv("RETENTION_STAFF_REGISTER_PATH", str(known))
    monkeypatch.delenv("STAFF_KEY_FILE", raising=False)
    return path


def test_a_key_by_argument_or_environment_shows_who_types(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """R-C5."""
    assert key_file.stat().st_mode & 0o777 == 0o600
    found = identify.identify("retention", asked(key_file), Duty.HOLDS, NOON)
    assert found.staff_id == "staff-1"
    monkeypatch.setenv("STAFF_KEY_FILE", str(key_file))
    assert identify.identify("retention", asked(None), Duty.HOLDS, NOON).staff_id == "staff-1"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_key_that_others_can_read_is_refused(key_file: Path, mode: int):
    """R-C5: what others can read shows nothing of who types."""
    key_file.chmod(mode)
    with pytest.raises(identify.NotIdentifiedError, match="by others") as caught:
        identify.identify("retention", asked(key_file), Duty.HOLDS, NOON)
    assert (caught.value.refusal, caught.value.staff_id) == (
        Refusal.IDENTITY_UNPROVEN, "staff-1",
    )  # fmt: skip


def test_without_a_key_or_with_none_in_the_file_nobody_is_shown(key_file: Path, tmp_path: Path):
    """R-C5: fail closed."""
    other = tmp_path / "other"
    other.write_text("no key", encoding="utf-8")
    other.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(key_file)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, said in (
        (None, "say --key"), (other, "64 hex"), (link, "cannot be read"),
        (tmp_path / "none", "cannot be read"), (tmp_path / "pipe", "no plain file"),
    ):  # fmt: skip
        with pytest.raises(identify.NotIdentifiedError, match=said):
            identify.identify("retention", asked(path), Duty.HOLDS, NOON)


def test_what_was_typed_is_kept_only_where_it_is_a_staff_id(key_file: Path):
    """R-D9: nothing personal hides in a refusal."""
    with pytest.raises(identify.NotIdentifiedError) as caught:
        identify.identify("retention", asked(key_file, by="Erika"), Duty.HOLDS, NOON)
    assert (caught.value.refusal, caught.value.staff_id) == (Refusal.IDENTITY_UNKNOWN, "unknown")
    assert "Erika" not in str(caught.value)


def test_without_a_register_nobody_is_known(key_file: Path, monkeypatch: pytest.MonkeyPatch):
    """R-C5: fail closed."""
    monkeypatch.delenv("RETENTION_STAFF_REGISTER_PATH")
    with pytest.raises(StaffError, match="set RETENTION_STAFF_REGISTER_PATH"):
        identify.identify("retention", asked(key_file), Duty.HOLDS, NOON)


def test_the_command_makes_a_key_once_and_prints_the_registers_line(tmp_path: Path):
    """R-C5: as a colleague types it."""
    path = tmp_path / "staff-7.key"
    command = [sys.executable, "-m", "services.privacy", "staff-key", str(path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    line = json.loads(said.stdout)
    assert line["public_key"] == identify.read_key(path).public_key
    register(colleague(7, ANNA, keys=[line]))
    before = path.read_bytes()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (again.returncode, "never overwritten" in again.stderr) == (2, True)
    assert path.read_bytes() == before
