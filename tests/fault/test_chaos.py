"""Visitors earn and call while everything fails around them (issue 4, 3; L1-L5, C1, C3, C4).

Goal: no second is lost or credited twice, every call ends, no leg stays up. Method: a short, seeded
run of `make chaos` on three Kafka nodes; and the negative control: the same run, with the fence and
the natural keys taken out, must fail by the same verdict.
"""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.local.errors import StackError
from tests.chaos.adversary import DELAY_S_MAX, Adversary
from tests.chaos.faults import carry_out
from tests.chaos.people import KINDS, Crowd, Told
from tests.chaos.plan import Deed, Fault, Plan
from tests.chaos.run import (
    DOUBLED,
    PROCESSES,
    Outcome,
    ended,
    lines,
    new_plan,
    read_plan,
    run,
    short_plan,
    until_left,
)
from tests.chaos.verdict import (
    QUARTER_MS,
    _accounts,
    _announcements,
    _calls,
    _credits,
    _fault_of,
)
from tests.chaos.witness import Account


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


def test_a_replay_thaws_what_it_freezes(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Outcome(plan=short_plan(), wrong=["something"], figures={}).write(path)
    plan, said = read_plan(path)
    assert (plan, said) == (short_plan(), "fails")
    # equal is not enough: a freeze that is only spelt like one would never thaw
    assert {type(fault.deed) for fault in plan.faults} == {Deed}


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


def test_the_short_run_has_a_fault_of_every_kind() -> None:
    """A broker dies, the database does, and a process that shares a topic comes back a zombie."""
    happens = {(fault.deed, fault.target.split("-")[0]) for fault in short_plan().faults}
    killed = {target for deed, target in happens if deed is Deed.KILL}
    assert {"ad_ledger", "call_control", "gateway", "kafka"} <= killed
    assert {(Deed.RESTART, "postgres"), (Deed.CRASH, "postgres")} <= happens
    assert {target for deed, target in happens if deed is Deed.FREEZE} & set(DOUBLED)


def test_somebody_is_there_when_the_last_fault_happens() -> None:
    plan = short_plan()
    assert plan.arrive_within_s == plan.faults[-1].at_s - 2.0
    crowded = new_plan(seed=1, n_visitors=100, at_once=10, n_faults=9, gap_s=3.5, kafka_nodes=1)
    assert crowded.arrive_within_s == 2.0


async def test_an_adversary_that_fails_fails_the_run() -> None:
    """Without doubles a verdict that holds shows little; nobody would notice."""

    async def fails() -> None:
        raise TypeError("headers")

    failing, patient = (
        asyncio.ensure_future(fails()), asyncio.ensure_future(asyncio.Event().wait()),
    )  # fmt: skip
    await asyncio.sleep(0)
    with pytest.raises(TypeError, match="headers"):
        await ended(failing)
    await ended(patient)  # type: ignore[arg-type]  # whatever it would have returned
    assert patient.cancelled()


async def test_visitors_are_waited_for_as_long_as_some_leave() -> None:
    crowd = Crowd(origin="", seed=1, at_once=1, arrive_within_s=0.0)

    async def leave() -> None:
        for _ in range(4):
            await asyncio.sleep(0.08)
            crowd.n_left += not crowd.over.is_set()
        await crowd.over.wait()

    leaving = asyncio.create_task(leave())
    await asyncio.wait_for(until_left(leaving, crowd, patience_s=0.15), 5)
    assert crowd.n_left == 4, "all but the one who is stuck, though it took twice the patience"
    assert crowd.over.is_set()


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
        ("void", 0, {"talk_ms": 5}, "not charged"),
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


def account(**changed: Any) -> Account:
    """Return what was heard of one call of 5 ms and its visitor, in good order."""
    heard: dict[str, Any] = {
        "starts": [word(1, talk_ms=0)],
        "ends": [word(1, talk_ms=5), word(1, talk_ms=5)],  # the second is a double
        "balances": {7: (10, 0)},
        "n_dead": 0,
    }
    return Account(**heard | changed)


def word(call_id: int, *, talk_ms: int, event_id: int = 100) -> Any:
    return SimpleNamespace(id=event_id, event=SimpleNamespace(call_id=call_id, talk_ms=talk_ms))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({}, []),
        ({"ends": []}, ["1 calls have 0 call-end", "1 calls started, as others heard, and never"]),
        (
            {"ends": [word(1, talk_ms=5), word(1, talk_ms=5, event_id=101)]},
            ["1 calls have 2 call-end"],
        ),
        ({"ends": [word(1, talk_ms=6)]}, ["1 call-end events tell another talk"]),
        ({"starts": [word(2, talk_ms=0)]}, ["1 calls started, as others heard, and never"]),
        ({"n_dead": 3}, ["3 dead letters"]),
    ],
)
def test_the_verdict_hears_what_services_told_one_another(changed, what: list[str]) -> None:
    """C3 and C4: a second end has an id of its own; a double has not."""
    calls = [
        {"call_id": 1, "reserved_ms": 9, "talk_ms": 5},
        {"call_id": 3, "reserved_ms": None, "talk_ms": None},
    ]
    found = _announcements(calls, account(**changed))
    assert len(found) == len(what)
    assert all(part in one for part, one in zip(what, found, strict=True))


@pytest.mark.parametrize(
    ("row", "balances", "word"),
    [
        ({}, {7: (10, 0)}, ""),
        ({"spent_ms": 6}, {7: (10, 0)}, "paid other"),
        ({"reserved_ms": 2}, {7: (10, 2)}, "reserved for no call"),
        ({}, {7: (9, 0)}, "another balance"),
        ({}, {}, "another balance"),
    ],
)
def test_the_verdict_adds_up_each_visitor(row, balances, word: str) -> None:
    good = {"visitor_id": 7, "available_ms": 10, "reserved_ms": 0, "spent_ms": 5, "settled_ms": 5}
    found = _accounts([good | row], balances)
    assert (len(found) == 1 and word in found[0]) if word else found == []


# ------------------------------------------------------------------ what the run does


class Wire:
    """A Kafka client's surface that keeps what is sent and hands it out again, as Kafka would."""

    def __init__(self, records: list[Any]) -> None:
        self.unread, self.n_sent = records, 0
        self.sent: list[Any] = []

    async def getmany(self, timeout_ms: int) -> dict[str, list[Any]]:
        found, self.unread = self.unread, []
        return {"all": found} if found else {}

    async def send_and_wait(
        self, topic: str, value: Any, key: Any, *, partition: int, headers: Any
    ) -> Any:
        # as aiokafka: the headers it reads are a tuple, those it sends a list
        assert isinstance(headers, list)
        self.n_sent += 1
        record = SimpleNamespace(
            topic=topic, partition=partition, offset=1000 + self.n_sent, value=value, key=key,
            headers=tuple(headers),
        )  # fmt: skip
        self.sent.append(record)
        self.unread.append(record)
        return record


async def test_doubles_are_whole_later_and_not_doubled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    originals = [
        SimpleNamespace(
            topic="ad-view", partition=n % 3, offset=n, key=b"k", value=b"%d" % n,
            headers=(("ce_id", b"%d" % n),),
        )
        for n in range(40)
    ]  # fmt: skip
    wire: Any = Wire([*originals])
    adversary = Adversary(login=None, prefix="", seed=1, share=1.0)  # type: ignore[arg-type]
    chance = random.Random(1)
    await adversary._read(wire, chance)
    await adversary._send(wire, chance)
    assert len(wire.sent) < len(originals), "not all at once"
    now_s = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s + DELAY_S_MAX + 1)
    await adversary._send(wire, chance)
    await adversary._read(wire, chance)
    assert adversary._kept == [], "a double is not doubled again, or there would be no end"
    assert adversary.n_doubled == len(wire.sent) == len(originals)
    assert [one.value for one in wire.sent] != [one.value for one in originals], "shuffled"
    whole = {(o.topic, o.partition, o.key, o.value, o.headers) for o in originals}
    assert {(o.topic, o.partition, o.key, o.value, o.headers) for o in wire.sent} == whole


class Stack:
    """Keeps the signals and when they came."""

    def __init__(self) -> None:
        self.signals: list[tuple[str, str, float]] = []

    def kill(self, name: str, number: Any) -> None:
        if name == "away":
            raise StackError("away does not run.")
        self.signals.append((name, number.name, asyncio.get_running_loop().time()))


def plan_of(*faults: Fault) -> Plan:
    return Plan(
        seed=1, n_visitors=1, at_once=1, n_faults=len(faults), gap_s=1, kafka_nodes=1, faults=faults
    )


async def test_a_second_freeze_lasts_its_own_time() -> None:
    """The end of an earlier freeze would cut it short of the session timeout: no zombie then."""
    stack: Any = Stack()
    faults = (
        Fault(at_s=0.0, deed=Deed.FREEZE, target="consent", lasts_s=0.3),
        Fault(at_s=0.1, deed=Deed.KILL, target="consent"),
        Fault(at_s=0.2, deed=Deed.FREEZE, target="consent", lasts_s=0.3),
        Fault(at_s=0.2, deed=Deed.KILL, target="away"),
    )
    assert await carry_out(plan_of(*faults), stack, lambda _: None) == 3
    assert [name for _, name, _ in stack.signals] == ["SIGSTOP", "SIGKILL", "SIGSTOP", "SIGCONT"]
    assert stack.signals[-1][2] - stack.signals[-2][2] >= 0.29
