"""Who may tell of records and answer orders, and what they sign (R-C5, R-D9, D3)."""

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.layout import ROOT
from schemas import topics
from schemas.record import Happening, RecordV1
from schemas.retention import DataKind, RetentionReceiptV1
from services.chassis.received import Received
from services.privacy import receipts
from services.privacy.dated import RegisterError
from services.retention import holders
from services.retention.holders import HolderRegister, Refusal, judge_receipt, judge_record
from tests.support.bench import received
from tests.support.holders import entry, signed, signed_receipt, signing_keys

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
DAYS = st.dates(date(2026, 1, 1), date(2026, 12, 31))


def register(*entries: dict[str, Any]) -> HolderRegister:
    return HolderRegister.model_validate_json(json.dumps({"holders": entries}))


def told(holder: str = "enquiries", kind: DataKind = DataKind.CONTACT) -> Received[RecordV1]:
    happened = {
        DataKind.CONTACT: Happening.PURPOSE_FULFILLED,
        DataKind.APPLICATION: Happening.REJECTION_ANNOUNCED,
    }[kind]
    event = RecordV1(
        record_id=UUID("019aabcd-1234-7abc-8def-0123456789ab"),
        kind=kind, holder=holder, happened=happened, happened_on=date(2026, 6, 1),
    )  # fmt: skip
    return received(topics.RECORD, event, NOON)


def answer(holder: str = "enquiries") -> RetentionReceiptV1:
    return RetentionReceiptV1(
        order_id=UUID("019aabcd-1234-7abc-8def-0123456789ab"), service=holder,
        kind=DataKind.CONTACT, counts=(), done_at=NOON,
    )  # fmt: skip


def of_record(known: HolderRegister, one: Received[RecordV1]) -> Refusal | None:
    return judge_record(known, one.event, one.id, NOON)


def test_what_a_holder_signed_is_taken_and_nothing_else() -> None:
    """R-C5: each reason, by a record."""
    known = register(entry("enquiries", kinds=["contact"]), entry("hiring"))
    good = signed(told())
    assert of_record(known, good) is None
    other_day = good.event.model_copy(update={"happened_on": date(2026, 6, 2)})
    for wrong, reason in (
        (signed(told("nobody")), Refusal.HOLDER_UNKNOWN),
        (signed(told(kind=DataKind.APPLICATION)), Refusal.KIND_NOT_KEPT),
        (told(), Refusal.NOT_SIGNED),
        (signed(told(), by="hiring"), Refusal.KEY_UNKNOWN),
        (good._replace(event=other_day), Refusal.SIGNATURE_FORGED),
        (good._replace(id=told().id), Refusal.SIGNATURE_FORGED),
    ):
        assert of_record(known, wrong) is reason


@given(now=DAYS, since=DAYS, until=DAYS, valid_from=DAYS, valid_until=DAYS)
def test_days_are_held_against_the_register(
    now: date, since: date, until: date, valid_from: date, valid_until: date
) -> None:
    """R-C5: who has ended tells of nothing, and still answers; a key counts on its days."""
    if until <= since or valid_until <= valid_from:
        return
    key = entry("enquiries")["keys"][0]
    key |= {"valid_from": valid_from.isoformat(), "valid_until": valid_until.isoformat()}
    days = {"since": since.isoformat(), "until": until.isoformat(), "contract_on": None}
    known = register(entry("enquiries", keys=[key], **days))
    noon = datetime(now.year, now.month, now.day, 12, tzinfo=UTC)
    one = signed(told())
    key_fault = None if valid_from <= now < valid_until else Refusal.KEY_NOT_VALID
    expected = key_fault if since <= now < until else Refusal.HOLDER_GONE
    assert judge_record(known, one.event, one.id, noon) is expected
    assert judge_receipt(known, signed_receipt(answer()), noon) is key_fault


def test_an_answer_is_its_holders_or_nobodys() -> None:
    """D3, R-D9."""
    known = register(entry("enquiries"), entry("hiring"))
    good = signed_receipt(answer())
    assert judge_receipt(known, good, NOON) is None
    other = receipts.sign(signing_keys("hiring"), answer())
    later = good.model_copy(update={"done_at": NOON.replace(hour=13)})
    assert judge_receipt(known, other, NOON) is Refusal.KEY_UNKNOWN
    assert judge_receipt(known, later, NOON) is Refusal.SIGNATURE_FORGED
    assert judge_receipt(known, answer(), NOON) is Refusal.NOT_SIGNED
    assert judge_receipt(known, signed_receipt(answer("nobody")), NOON) is Refusal.HOLDER_UNKNOWN


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry("ad_ledger")], "service of ours"),
        ([entry("enquiries", kinds=["ad_use"])], "not kept as records"),
        ([entry("enquiries", kinds=[])], "at least 1"),
        ([entry("enquiries", keys=[])], "at least 1"),
        ([entry("enquiries", until="2019-01-01")], "ends before it begins"),
        ([entry("enquiries", contract_on="2021-01-01")], "before there is a contract"),
        ([entry("enquiries"), entry("enquiries", keys=entry("b")["keys"])], "name stands twice"),
        ([entry("enquiries"), entry("other", keys=entry("enquiries")["keys"])], "key stands twice"),
        ([entry("enquiries") | {"contact": "x"}], "Extra inputs"),
        ([{k: v for k, v in entry("enquiries").items() if k != "contract_on"}], "contract_on"),
    ],
)
def test_a_wrong_register_is_refused(tmp_path: Path, entries: list[Any], says: str) -> None:
    """R-C5: whole, in one sentence that repeats nothing of it."""
    path = tmp_path / "holders.json"
    path.write_text(json.dumps({"holders": entries}), encoding="utf-8")
    with pytest.raises(RegisterError, match=says) as found:
        holders.load(path)
    assert "the register of holders" in str(found.value)


def test_without_a_register_nobody_is_known(tmp_path: Path) -> None:
    """R-C5: it is never silence that lets somebody in."""
    assert of_record(holders.load(None), signed(told())) is Refusal.HOLDER_UNKNOWN
    with pytest.raises(RegisterError, match="cannot be read"):
        holders.load(tmp_path / "nowhere.json")


def test_the_handbooks_example_verifies() -> None:
    """What outside programmers are shown is what we take, byte by byte."""
    page = (ROOT / "services" / "retention" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```json holder\n(.*?)```", page, re.DOTALL)
    document, data, receipt = (json.loads(block) for block in blocks)
    known = HolderRegister.model_validate_json(json.dumps(document))
    event_id = UUID(data.pop("(event id)"))
    event = RecordV1.model_validate_json(json.dumps(data))
    assert judge_record(known, event, event_id, NOON.replace(month=12)) is None
    assert holders.record_message(event, event_id).decode().replace("\0", "\\0") in page
    answered = RetentionReceiptV1.model_validate_json(json.dumps(receipt))
    assert judge_receipt(known, answered, NOON.replace(month=12)) is None
    assert receipts.message(answered).decode().replace("\0", "\\0") in page
