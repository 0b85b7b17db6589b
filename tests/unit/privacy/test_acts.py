"""What staff signed is held against the register; what nobody signed shows (R-D3, R-C5)."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy.acts import Act, judge
from services.privacy.chain import Fault
from services.privacy.staff import BY_SCHEDULE, PrivateKey, StaffRegister

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
ANNA, BERT, NOBODY = (PrivateKey(f"0{letter}" * 32) for letter in "abc")


def colleague(staff_id: str, *keys: PrivateKey, **more: Any) -> dict[str, Any]:
    return {
        "staff_id": staff_id,
        "bound_since": "2026-01-01",
        "roles": [],
        "keys": [{"public_key": key.public_key, "valid_from": "2026-01-01"} for key in keys],
    } | more


REGISTER = StaffRegister.model_validate(
    {"staff": [colleague("staff-1", ANNA), colleague("staff-2", BERT)]}
)


def act(seq: int, staff_id: str, key: PrivateKey | None, **more: Any) -> Act:
    content = {"id": "h", "staff_id": staff_id, "n": seq}
    key_id, signature = key.sign("step", content) if key else (None, None)
    made = Act(
        seq=seq, what="step", staff_id=staff_id, at=NOON, content=content,
        key_id=key_id, signature=signature, pair="h",
    )  # fmt: skip
    return replace(made, **more)


def faults(*acts: Act, register: StaffRegister = REGISTER) -> list[tuple[int, Fault]]:
    return [(found.seq, found.fault) for found in judge(acts, register).findings]


def test_two_persons_who_signed_are_two():
    """R-D3."""
    assert faults(act(1, "staff-1", ANNA), act(2, "staff-2", BERT)) == []


def test_one_person_with_two_ids_is_found():
    """R-D3: by the key, whatever the rows say."""
    assert faults(act(1, "staff-1", ANNA), act(2, "staff-2", ANNA)) == [
        (2, Fault.KEY_OF_ANOTHER), (2, Fault.SAME_PERSON),
    ]  # fmt: skip


def test_two_keys_of_one_person_are_one_person():
    """R-D3: a second key makes nobody two."""
    second = PrivateKey("0d" * 32)
    known = StaffRegister.model_validate({"staff": [colleague("staff-1", ANNA, second)]})
    found = faults(act(1, "staff-1", ANNA), act(2, "staff-1", second), register=known)
    assert found == [(2, Fault.SAME_PERSON)]
    apart = act(2, "staff-1", second, pair="another")
    assert faults(act(1, "staff-1", ANNA), apart, register=known) == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"content": {"id": "another"}}, Fault.SIGNATURE_FORGED),
        ({"what": "review"}, Fault.SIGNATURE_FORGED),
        ({"signature": bytes(64)}, Fault.SIGNATURE_FORGED),
        ({"key_id": "0123456789abcdef"}, Fault.KEY_UNKNOWN),
        ({"signature": None}, Fault.KEY_UNKNOWN),
        ({"key_id": None}, Fault.KEY_UNKNOWN),
        ({"key_id": None, "signature": None, "seq": 3}, Fault.NOT_SIGNED),
        ({"staff_id": BY_SCHEDULE}, Fault.NOT_SIGNED),
    ],
)
def test_what_was_changed_is_found(changed: dict[str, Any], fault: Fault):
    """R-D9: row, kind, signature or key."""
    found = faults(act(1, "staff-2", BERT, pair=None), replace(act(2, "staff-1", ANNA), **changed))
    assert [one for _, one in found] == [fault]


def test_a_key_that_the_register_does_not_have_shows_nobody():
    """R-C5."""
    assert faults(act(1, "staff-1", NOBODY)) == [(1, Fault.KEY_UNKNOWN)]


def test_the_schedule_does_its_own_and_nothing_else():
    """R-D3: unsigned, and nobody's second person."""
    own = act(2, BY_SCHEDULE, None, is_for_schedule=True)
    assert faults(act(1, "staff-1", ANNA), own) == []
    assert faults(act(1, "staff-1", ANNA), replace(own, is_for_schedule=False)) == [
        (2, Fault.NOT_SIGNED)
    ]
    assert judge([own], REGISTER).n_unsigned == 0, "it is no person's"


@given(st.lists(st.booleans(), max_size=8))
def test_unsigned_before_the_first_signature_is_old_and_after_it_a_finding(signed: list[bool]):
    """R-D9: rows of before are counted."""
    acts = [
        act(seq, "staff-1", ANNA if is_signed else None, pair=None)
        for seq, is_signed in enumerate(signed)
    ]
    first = signed.index(True) if True in signed else len(signed)
    found = judge(list(reversed(acts)), REGISTER)
    assert (found.n_signed, found.n_unsigned) == (sum(signed), first)
    assert [one.seq for one in found.findings] == [
        seq for seq, is_signed in enumerate(signed) if seq > first and not is_signed
    ]


DAYS = st.integers(-40, 40).map(lambda n: NOON.date() + timedelta(days=n))


@given(bound=DAYS, until=st.none() | DAYS, begins=DAYS, ends=st.none() | DAYS)
def test_a_signature_counts_on_the_days_of_its_key_and_owner(
    bound: date, until: date | None, begins: date, ends: date | None
):
    """R-C5: who had left, was not bound, or used a key out of its days, is found."""
    if (until is not None and until <= bound) or (ends is not None and ends <= begins):
        return
    key = {"public_key": ANNA.public_key, "valid_from": begins, "valid_until": ends}
    known = StaffRegister.model_validate(
        {"staff": [colleague("staff-1", bound_since=bound, until=until, keys=[key])]}
    )
    day = NOON.date()
    is_good = bound <= day < (until or date.max) and begins <= day < (ends or date.max)
    expected = [] if is_good else [(1, Fault.KEY_NOT_VALID)]
    assert faults(act(1, "staff-1", ANNA), register=known) == expected
