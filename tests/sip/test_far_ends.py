"""Calls against SIPp far ends, each playing one scenario to the letter (its exit code is checked).

The worker is a process of its own (sippy's event loop is one per process); the test is its
controller and says `Persisted`. Far ends: scenarios/, from the proof of concept.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.call_control.backend import Ended, EndedBy, EndReason, HangUp, Leg, LegResult
from tests.sip.harness import HOST, LATE_MS_MAX, NUMBER_B, far_end, free_ports, worker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

DIGEST = {"username": "trunkuser", "password": "trunkpass"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """Who plays the far ends, and how the call must end. A far end of None is silent."""

    a: str | None = "a_offer"
    b: str | None = "b_answer"
    reason: EndReason = EndReason.TALK_LIMIT
    by: EndedBy = EndedBy.PLATFORM
    leg: Leg | None = None
    status_a: int | None = 200
    status_b: int | None = 200
    talks: bool = True
    order: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def failed(reason: EndReason, by: EndedBy, leg: Leg, **more: Any) -> Case:
    return Case(reason=reason, by=by, leg=leg, talks=False, **more)


LONG = {"talk_limit_ms": 20_000}
CASES = {
    "basic": Case(),
    "slow_b_guard_acks_a": Case(b="b_answer_slow", settings={"ack_guard_ms": 1_000}),
    "early_media": Case(b="b_early183"),
    "a_busy": failed(
        EndReason.BUSY, EndedBy.A, Leg.A, a="busy486", b=None, status_a=486, status_b=None
    ),
    "b_busy": failed(EndReason.BUSY, EndedBy.B, Leg.B, b="busy486", status_b=486),
    "a_no_answer": failed(
        EndReason.NO_ANSWER,
        EndedBy.PLATFORM,
        Leg.A,
        a="noanswer_cancel",
        b=None,
        status_a=487,
        status_b=None,
        order={"ring_a_timeout_ms": 1_000},
    ),
    "b_no_answer": failed(
        EndReason.NO_ANSWER,
        EndedBy.PLATFORM,
        Leg.B,
        b="noanswer_cancel",
        status_b=487,
        order={"ring_b_timeout_ms": 1_000},
    ),
    "answer_crosses_cancel_a": failed(
        EndReason.NO_ANSWER,
        EndedBy.PLATFORM,
        Leg.A,
        a="cancel_crossing_200",
        b=None,
        status_b=None,
        order={"ring_a_timeout_ms": 1_000},
    ),
    "answer_crosses_cancel_b": failed(
        EndReason.NO_ANSWER,
        EndedBy.PLATFORM,
        Leg.B,
        b="cancel_crossing_200",
        order={"ring_b_timeout_ms": 1_000},
    ),
    "a_hangs_up": Case(a="a_hangup", reason=EndReason.HUNG_UP, by=EndedBy.A, leg=Leg.A, order=LONG),
    "b_hangs_up": Case(b="b_hangup", reason=EndReason.HUNG_UP, by=EndedBy.B, leg=Leg.B, order=LONG),
    "a_hangs_up_unacknowledged": failed(
        EndReason.HUNG_UP,
        EndedBy.A,
        Leg.A,
        a="a_hangup_early",
        b="noanswer_cancel",
        status_b=487,
    ),
    "a_holds": Case(a="a_reinvite", reason=EndReason.HUNG_UP, by=EndedBy.A, leg=Leg.A, order=LONG),
    "a_refreshes": Case(
        a="a_refresh", reason=EndReason.HUNG_UP, by=EndedBy.A, leg=Leg.A, order=LONG
    ),
    "digest_401": Case(a="a_digest401", settings=DIGEST),
    "digest_407": Case(a="a_digest407", settings=DIGEST),
    "wrong_password": failed(
        EndReason.TRUNK_REFUSED,
        EndedBy.PLATFORM,
        Leg.A,
        a="a_digest401",
        b=None,
        status_a=403,
        status_b=None,
        settings={"username": "trunkuser", "password": "wrong"},
    ),
    "bye_challenged": Case(b="b_bye_challenged", settings=DIGEST),
    "a_silent": failed(
        EndReason.TRUNK_SILENT,
        EndedBy.PLATFORM,
        Leg.A,
        a=None,
        b=None,
        status_a=None,
        status_b=None,
        settings={"no_reply_ms": 1_000},
    ),
    "b_silent": failed(
        EndReason.TRUNK_SILENT,
        EndedBy.PLATFORM,
        Leg.B,
        b=None,
        status_b=None,
        settings={"no_reply_ms": 1_000},
    ),
    "b_contact_names_tcp": Case(b="b_contact_tcp"),
    "redirect_is_not_followed": failed(
        EndReason.TRUNK_REFUSED, EndedBy.PLATFORM, Leg.B, b="redirect302", status_b=302
    ),
    "trunk_full": failed(
        EndReason.TRUNK_REFUSED,
        EndedBy.PLATFORM,
        Leg.A,
        a="error503",
        b=None,
        status_a=503,
        status_b=None,
    ),
    "a_makes_no_offer": failed(
        EndReason.MEDIA_FAILED,
        EndedBy.PLATFORM,
        Leg.A,
        a="a_no_offer",
        b=None,
        status_b=None,
    ),
    "session_interval_too_small": Case(a="a_session422"),
}


def result_of(ended: Ended, side: Leg) -> LegResult | None:
    return next((leg for leg in ended.legs if leg.leg is side), None)


def check_talk(ended: Ended, limit_ms: int) -> None:
    assert ended.talk_started_at is not None
    assert 500 < ended.talk_ms <= limit_ms + LATE_MS_MAX
    assert ended.overrun_ms == max(0, ended.talk_ms - limit_ms)
    if ended.reason is EndReason.TALK_LIMIT:
        assert ended.talk_ms > limit_ms - 50


@pytest.mark.parametrize("name", CASES)
async def test_call_ends_as_it_should(name: str, tmp_path: Path) -> None:
    """C2, C3, R-A6: each case ends once, for the right reason, with both legs down."""
    case = CASES[name]
    local, port_a, port_b = free_ports(3)
    routes = {NUMBER_B: (HOST, port_b)}
    async with worker(local, port_a, routes=routes, **case.settings) as held:
        if case.a is None:
            call_id = held.dial(**case.order)
            ended = await held.ended(call_id)
        else:
            async with far_end(case.a, port_a, tmp_path) as a:
                if case.b is None:
                    call_id = held.dial(**case.order)
                    ended = await held.ended(call_id)
                else:
                    async with far_end(case.b, port_b, tmp_path) as b:
                        call_id = held.dial(**case.order)
                        ended = await held.ended(call_id)
                        await b.check()
                await a.check()
    assert (ended.reason, ended.ended_by, ended.leg) == (case.reason, case.by, case.leg)
    a_result, b_result = result_of(ended, Leg.A), result_of(ended, Leg.B)
    assert (a_result.sip_status if a_result else None) == case.status_a
    assert (b_result.sip_status if b_result else None) == case.status_b
    assert all(leg.is_down for leg in ended.legs)
    assert held.story(call_id)[-2:] == [
        "ending" + (f":{case.leg.value}" if case.leg else ""),
        "ended" + (f":{case.leg.value}" if case.leg else ""),
    ]
    assert held.story(call_id).count("ended") <= 1
    if case.talks:
        check_talk(ended, case.order.get("talk_limit_ms", 2_000))
    else:
        assert (ended.talk_ms, ended.talk_started_at) == (0, None)


async def test_late_answer_is_in_the_record(tmp_path: Path) -> None:
    """R-A6: an answer that crosses our CANCEL is billed by the carrier: the record says so."""
    local, port_a, port_b = free_ports(3)
    async with (
        worker(local, port_a, routes={NUMBER_B: (HOST, port_b)}) as held,
        far_end("a_offer", port_a, tmp_path) as a,
        far_end("cancel_crossing_200", port_b, tmp_path) as b,
    ):
        ended = await held.ended(held.dial(ring_b_timeout_ms=1_000))
        await a.check()
        await b.check()
    result = result_of(ended, Leg.B)
    assert result is not None
    assert result.answered_late
    assert (result.sip_status, result.bye_status) == (200, 200)


async def test_cause_of_the_far_end_is_in_the_record(tmp_path: Path) -> None:
    """R-A6: the Q.850 cause of the far end's BYE reaches the call detail record."""
    local, port_a, port_b = free_ports(3)
    async with (
        worker(local, port_a, routes={NUMBER_B: (HOST, port_b)}) as held,
        far_end("a_offer", port_a, tmp_path) as a,
        far_end("b_hangup", port_b, tmp_path) as b,
    ):
        ended = await held.ended(held.dial(talk_limit_ms=20_000))
        await a.check()
        await b.check()
    result = result_of(ended, Leg.B)
    assert result is not None
    assert result.q850_cause == 16


async def test_invite_expires_with_the_ring_limit(tmp_path: Path) -> None:
    """C3: an INVITE of a process that died must end by itself: Expires is the ring limit."""
    local, port_a = free_ports(2)
    async with (
        worker(local, port_a) as held,
        far_end("noanswer_cancel", port_a, tmp_path) as a,
    ):
        call_id = held.dial(ring_a_timeout_ms=7_000)
        await held.wait(lambda event: event.kind == "ringing")
        held.send(HangUp(call_id=call_id))
        ended = await held.ended(call_id)
        await a.check()
        assert ended.reason is EndReason.REQUESTED
        assert "Expires: 7\n" in a.messages().replace("\r", "")


async def test_versions_of_the_description_rise_by_one(tmp_path: Path) -> None:
    """RFC 3725: A sees one session id and version 1 (no media), then 2 (B's media)."""
    local, port_a, port_b = free_ports(3)
    settings = {"routes": {NUMBER_B: (HOST, port_b)}, "ack_guard_ms": 500}
    async with (
        worker(local, port_a, **settings) as held,
        far_end("a_offer", port_a, tmp_path) as a,
        far_end("b_answer_slow", port_b, tmp_path) as b,
    ):
        await held.ended(held.dial(talk_limit_ms=1_000))
        await a.check()
        await b.check()
        origins = [
            line.split()[:3] for line in a.messages().split("\n") if line.startswith("o=minutes")
        ]
    # a repeated answer gets its ACK again: the same version twice is no change
    assert list(dict.fromkeys(origin[2] for origin in origins)) == ["1", "2"]
    assert len({origin[1] for origin in origins}) == 1


async def test_hundred_calls_against_sipp(tmp_path: Path) -> None:
    """C2, C3: a hundred calls at 20 a second; every one ends once, none talks past its limit."""
    n_calls = 100
    local, port_a, port_b = free_ports(3)
    options: dict[str, Any] = {"n_calls": n_calls, "trace": False}
    async with (
        worker(local, port_a, routes={NUMBER_B: (HOST, port_b)}) as held,
        far_end("a_bench", port_a, tmp_path, **options) as a,
        far_end("b_bench", port_b, tmp_path, **options) as b,
    ):
        calls = await held.dial_many(n_calls, per_s=20, talk_limit_ms=2_000)
        results = [await held.ended(call_id, limit_s=40) for call_id in calls]
        await a.check()
        await b.check()
    assert {result.reason for result in results} == {EndReason.TALK_LIMIT}
    assert max(result.overrun_ms for result in results) < LATE_MS_MAX
    assert sum(event.kind == "ended" for event in held.events) == n_calls
