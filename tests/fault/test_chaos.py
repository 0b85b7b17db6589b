"""Visitors earn and call while everything fails around them (issue 4, 3; L1-L5, C1, C3, C4).

Goal: no second is lost or credited twice, every call ends, no leg stays up. Method: a short, seeded
run of `make chaos` on three Kafka nodes; and the negative control: the same run, with the fence and
the natural keys taken out, must fail by the same verdict.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.people import KINDS, Told
from tests.chaos.plan import Deed
from tests.chaos.run import PROCESSES, lines, read_plan, run, short_plan
from tests.chaos.verdict import QUARTER_MS, _calls, _credits, _fault_of


@pytest.mark.fault
@pytest.mark.integration
@pytest.mark.timeout(600)
async def test_the_platform_stands_a_short_run(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = await run(tmp_path / "stack", short_plan(), said.append)
    assert outcome.holds, "\n".join([*said, *lines(outcome)])
    assert outcome.figures["faults_that_hit"] >= 7
    assert outcome.figures["doubles"] > 10
    assert outcome.figures["granted_ms"] == 12 * 4 * QUARTER_MS
    assert outcome.figures["talks"] >= 6
    path = tmp_path / "report.json"
    outcome.write(path)
    assert read_plan(path) == (short_plan(), "holds")


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31))
def test_a_seed_makes_one_plan(seed: int) -> None:
    """It can be replayed: the same faults at the same times, on processes that there are."""
    plan = short_plan(seed)
    assert plan == short_plan(seed)
    assert len(plan.faults) == plan.n_faults
    known = {*PROCESSES, "kafka-1", "kafka-2", "kafka-3", "postgres"}
    assert {fault.target for fault in plan.faults} <= known
    times = [fault.at_s for fault in plan.faults]
    assert times == sorted(times)
    assert all((fault.lasts_s > 6) == (fault.deed is Deed.FREEZE) for fault in plan.faults)


def test_two_seeds_make_two_plans() -> None:
    assert len({short_plan(seed).faults for seed in range(20)}) == 20


# ------------------------------------------------------------------ the verdict itself


def told(*acknowledged: str, tried: tuple[str, ...] = KINDS) -> Told:
    return Told(number=0, ticket_id=None, acknowledged=[*acknowledged], tried=[*tried])


def lot(granted_ms: int, n_grants: int) -> dict[str, int]:
    return {
        "granted_ms": granted_ms,
        "n_grants": n_grants,
        "n_kinds": n_grants,
        "sum_ms": granted_ms,
    }


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (lot(4 * QUARTER_MS, 4), ""),
        (lot(3 * QUARTER_MS, 3), "lost credit"),
        (None, "lost credit"),
        (lot(5 * QUARTER_MS, 5), "credited twice"),
        (lot(4 * QUARTER_MS, 4) | {"n_kinds": 3}, "not the sum"),
    ],
)
def test_the_verdict_compares_credit_with_what_was_acknowledged(row, word: str) -> None:
    found = _credits({} if row is None else {None: row}, [told(*KINDS)])
    assert (word in " ".join(found)) if word else found == []


def test_what_was_not_acknowledged_may_have_arrived() -> None:
    assert _credits({None: lot(2 * QUARTER_MS, 2)}, [told(*KINDS[:3], tried=KINDS[:4])]) == []
    assert _credits({None: lot(QUARTER_MS, 1)}, [told(*KINDS[:3], tried=KINDS[:4])]) == []
    assert _credits({"foreign": lot(QUARTER_MS, 1)}, []) != []


@pytest.mark.parametrize(
    ("state", "spent_ms", "call", "word"),
    [
        ("held", 0, {"talk_ms": 5}, "never ended"),
        ("settled", 5, None, "no call"),
        ("settled", 5, {"talk_ms": 6}, "settled with"),
        ("settled", 5, {"talk_ms": 5}, ""),
        ("settled", 10, {"talk_ms": 12}, ""),
        ("void", 0, {"talk_ms": 0}, ""),
    ],
)
def test_the_verdict_compares_settlement_with_talk(state, spent_ms, call, word: str) -> None:
    found = _fault_of({"state": state, "spent_ms": spent_ms, "reserved_ms": 10}, call)
    assert (word in found) if word else found == ""


def test_the_verdict_sees_calls_that_were_lost_or_stay_up() -> None:
    ended = {"call_id": 1, "state": "ended", "n_up": 0}
    visitor = told()
    visitor.call_ids = [1]  # type: ignore[list-item]
    assert _calls([ended], [visitor]) == []
    assert _calls([], [visitor]) == ["1 calls were accepted and lost"]
    assert _calls([ended | {"n_up": 1}], []) == ["1 ended calls have a leg that is not down (C3)"]
    assert _calls([ended | {"state": "talking"}], []) == ["1 calls never ended (C3)"]
