"""The transfer gate: what leaves is what a rule permitted, and it was recorded before (R-E2)."""

import asyncio
import copy
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy import gate
from services.privacy.declare import LegalBasis, Purpose
from services.privacy.gate import (
    CLEARED_AGE_MAX,
    Cleared,
    Gate,
    Permit,
    Question,
    Refusal,
    RefusalReason,
    ThirdCountryGround,
    Verdict,
    cut,
    paths,
)

NOW = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
VISITOR = UUID("a0000000-5a3c-4f1e-9b7d-000000000000")
PAYLOAD: dict[str, Any] = {
    "address": "203.0.113.7",
    "views": [
        {"kind": "start", "number": "+493023125000"},
        {"kind": "click", "number": "+493023125001"},
    ],
    "visitor": {"id": str(VISITOR), "number": "+493023125002"},
}


class Clock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


class Recorder:
    """Keeps the verdicts."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []

    async def __call__(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts.extend(verdicts)


async def broken_recorder(verdicts: Sequence[Verdict]) -> None:
    raise ConnectionError


def permitting(*fields: str) -> gate.Rules:
    async def rules(question: Question) -> Verdict:
        return Permit(
            question=question,
            fields=frozenset(fields),
            basis=LegalBasis.CONTRACT,
            country=ThirdCountryGround.ADEQUACY,
        )

    return rules


async def clear(
    recorder: gate.Recorder,
    payload: dict[str, Any] = PAYLOAD,
    rules: gate.Rules = gate.refuse_everything,
) -> Cleared | Refusal:
    return await Gate(recorder, Clock(), rules=rules).clear(
        payload,
        recipient="ad-partner",
        purpose=Purpose.AD_SETTLEMENT,
        visitor_id=VISITOR,
        happened_at=NOW - timedelta(hours=1),
    )


async def test_a_gate_without_rules_refuses_everything_and_records_it():
    """R-E2: what nobody can decide is not sent."""
    recorder = Recorder()
    found = await clear(recorder)
    assert isinstance(found, Refusal)
    assert found.reason is RefusalReason.NOT_DECIDABLE
    assert recorder.verdicts == [found]
    assert found.question == Question(
        recipient="ad-partner",
        purpose=Purpose.AD_SETTLEMENT,
        fields=frozenset({"address", "views.kind", "views.number", "visitor.id", "visitor.number"}),
        visitor_id=VISITOR,
        happened_at=NOW - timedelta(hours=1),
        asked_at=NOW,
    )


async def test_what_is_not_permitted_is_cut_at_any_depth():
    """R-E1: each recipient has what it may get; the caller is not trusted with it."""
    recorder = Recorder()
    found = await clear(recorder, rules=permitting("address", "views.kind", "more"))
    assert isinstance(found, Cleared)
    assert json.loads(await found.take("ad-partner", NOW)) == {
        "address": "203.0.113.7",
        "views": [{"kind": "start"}, {"kind": "click"}],
    }
    (permit,) = recorder.verdicts
    assert isinstance(permit, Permit)
    assert permit.fields == {"address", "views.kind"}, "what is recorded is what went"
    assert (permit.basis, permit.country) == (LegalBasis.CONTRACT, ThirdCountryGround.ADEQUACY)


async def test_a_permit_for_nothing_of_it_is_a_refusal():
    """R-E2: an empty message still says that there was a visitor."""
    recorder = Recorder()
    found = await clear(recorder, rules=permitting("colour"))
    assert isinstance(found, Refusal)
    assert found.reason is RefusalReason.NO_FIELD_ALLOWED
    assert recorder.verdicts == [found]


@pytest.mark.parametrize("rules", [permitting("address"), gate.refuse_everything])
async def test_what_could_not_be_recorded_is_not_handed_out(rules):
    """R-E2: every transfer and every refusal is recorded, and that first."""
    with pytest.raises(ConnectionError):
        await clear(broken_recorder, rules=rules)


async def test_it_is_recorded_before_it_is_handed_out():
    """R-E2: at the moment of recording there is no payload yet."""
    order = []

    async def recorder(verdicts: Sequence[Verdict]) -> None:
        order.append("recorded")

    found = await clear(recorder, rules=permitting("address"))
    order.append("handed out")
    assert isinstance(found, Cleared)
    assert order == ["recorded", "handed out"]


async def test_rules_that_fail_clear_nothing():
    """R-E2: an error is no permit."""
    recorder = Recorder()

    async def rules(question: Question) -> Verdict:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await clear(recorder, rules=rules)
    assert recorder.verdicts == []


async def test_a_permit_for_something_else_clears_nothing():
    """R-E2: yesterday's permit, another recipient's or another visitor's is none."""
    kept: list[Verdict] = []

    async def rules(question: Question) -> Verdict:
        if not kept:
            other = Question(**{**_facts(question), "recipient": "somebody-else"})
            kept.append(await permitting("address")(other))
        return kept[0]

    with pytest.raises(AssertionError, match="something else"):
        await clear(Recorder(), rules=rules)


def _facts(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in Question.__dataclass_fields__}


async def test_a_change_of_the_payload_while_it_is_recorded_is_not_sent():
    """R-E2: what is sent is what was decided about."""
    payload = copy.deepcopy(PAYLOAD)

    async def recorder(verdicts: Sequence[Verdict]) -> None:
        payload["address"] = "+493023125000"

    found = await clear(recorder, payload, rules=permitting("address"))
    assert isinstance(found, Cleared)
    assert json.loads(await found.take("ad-partner", NOW)) == {"address": "203.0.113.7"}


async def test_a_field_added_while_the_rules_decide_is_cut():
    """R-E2."""
    payload = copy.deepcopy(PAYLOAD)

    async def rules(question: Question) -> Verdict:
        payload["name"] = "somebody"
        return await permitting("address")(question)

    found = await clear(Recorder(), payload, rules=rules)
    assert isinstance(found, Cleared)
    assert json.loads(await found.take("ad-partner", NOW)) == {"address": "203.0.113.7"}


async def never(permit: Permit, now: datetime) -> None:
    raise AssertionError


def test_nobody_but_the_gate_makes_a_cleared_payload():
    """R-E2: a permit alone is not enough to send."""
    question = Question(
        recipient="r",
        purpose=Purpose.AD_SETTLEMENT,
        fields=frozenset({"address"}),
        visitor_id=None,
        happened_at=NOW,
        asked_at=NOW,
    )
    permit = Permit(
        question=question,
        fields=question.fields,
        basis=LegalBasis.CONSENT,
        country=ThirdCountryGround.NOT_A_THIRD_COUNTRY,
    )
    for seal in (None, object(), permit):
        with pytest.raises(TypeError, match="only the gate"):
            Cleared(permit, b"{}", never, seal)
    with pytest.raises(TypeError, match="one class"):
        type("Mine", (Cleared,), {})


async def test_what_was_cleared_goes_to_its_recipient_once_and_soon():
    """R-E2: consent is needed when it is sent; later is another question."""
    found = await clear(Recorder(), rules=permitting("address"))
    assert isinstance(found, Cleared)
    with pytest.raises(ValueError, match="another recipient"):
        await found.take("somebody-else", NOW)
    for wrong in (NOW + CLEARED_AGE_MAX + timedelta(microseconds=1), NOW - timedelta(seconds=1)):
        with pytest.raises(ValueError, match="too long ago"):
            await found.take("ad-partner", wrong)
    with pytest.raises(TypeError, match="copied"):
        copy.copy(found)
    assert await found.take("ad-partner", NOW + CLEARED_AGE_MAX)
    with pytest.raises(ValueError, match="sent already"):
        await found.take("ad-partner", NOW)


@pytest.mark.parametrize("fields_now", [(), ("kind",)])
async def test_what_may_not_go_any_more_is_not_handed_out_and_that_is_recorded(fields_now):
    """K2, K3, R-E2: who withdraws between the clearing and the sending is heard."""
    recorder = Recorder()
    now = NOW + timedelta(seconds=3)

    async def rules(question: Question) -> Verdict:
        if question.asked_at == NOW:
            return await permitting("address")(question)
        if fields_now:
            return await permitting(*fields_now)(question)
        return Refusal(question=question, reason=RefusalReason.NO_CONSENT_NOW)

    found = await clear(recorder, rules=rules)
    assert isinstance(found, Cleared)
    with pytest.raises(gate.NotPermittedError):
        await found.take("ad-partner", now)
    permit, refusal = recorder.verdicts
    assert isinstance(permit, Permit)
    assert isinstance(refusal, Refusal)
    assert (refusal.question.asked_at, refusal.question.fields) == (now, frozenset({"address"}))
    with pytest.raises(ValueError, match="sent already"):
        await found.take("ad-partner", NOW)


async def test_a_late_refusal_that_cannot_be_recorded_hands_nothing_out():
    """K3: nor does an error of the rules at that moment."""

    async def rules(question: Question) -> Verdict:
        if question.asked_at == NOW:
            return await permitting("address")(question)
        return Refusal(question=question, reason=RefusalReason.NO_CONSENT_NOW)

    asked = Gate(Recorder(), Clock(), rules=rules, late=broken_recorder)
    found = await asked.clear(
        PAYLOAD, recipient="r", purpose=Purpose.CALL, visitor_id=None, happened_at=NOW
    )
    assert isinstance(found, Cleared)
    with pytest.raises(ConnectionError):
        await found.take("r", NOW + timedelta(seconds=1))


async def test_two_who_take_the_same_get_it_once():
    """R-E2: asking again waits, and nobody takes it meanwhile."""
    asked = asyncio.Event()

    async def rules(question: Question) -> Verdict:
        if question.asked_at != NOW:
            await asked.wait()
        return await permitting("address")(question)

    found = await clear(Recorder(), rules=rules)
    assert isinstance(found, Cleared)
    later = NOW + timedelta(seconds=1)
    first = asyncio.create_task(found.take("ad-partner", later))
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="sent already"):
        await found.take("ad-partner", later)
    asked.set()
    assert await first


@pytest.mark.parametrize(
    "payload",
    [{"visitor.id": "x"}, {"visitor": {"": "x"}}, {"views": [{"a.b": 1}]}],
    ids=["dot", "empty", "inside_a_list"],
)
async def test_a_name_that_could_be_mistaken_for_a_path_is_refused(payload):
    """A permit for `visitor.id` must not let a field of that very name pass."""
    recorder = Recorder()
    with pytest.raises(ValueError, match="dot"):
        await clear(recorder, payload, rules=permitting("visitor.id", "views.a.b", "visitor."))
    assert recorder.verdicts == []


async def test_a_number_that_is_no_json_is_refused_before_anything_is_recorded():
    recorder = Recorder()
    with pytest.raises(ValueError, match="JSON"):
        await clear(recorder, {"address": float("nan")}, rules=permitting("address"))
    assert recorder.verdicts == []


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=12,
)
PAYLOADS = st.dictionaries(NAMES, VALUES, max_size=3)


@given(payload=PAYLOADS, data=st.data())
def test_a_cut_payload_has_permitted_paths_only_and_all_of_them(payload, data):
    """R-E1, R-E2."""
    found = paths(payload)
    permitted = frozenset(data.draw(st.sets(st.sampled_from(sorted(found)))) if found else set())
    kept = paths(cut(payload, permitted))
    assert kept == permitted
    assert cut(payload, frozenset(found)) == payload
