"""The messages of the seam, and session descriptions: pure."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from deploy.phones.message import MalformedError, Message, read_description
from deploy.phones.tone import Ear, decode, encode, packets_of
from services.call_control.backend import (
    Answered,
    Command,
    Dial,
    DialLimits,
    Ended,
    EndedBy,
    Ending,
    EndReason,
    Event,
    Extend,
    HangUp,
    Leg,
    LegResult,
    Persisted,
    Ringing,
    TalkStarted,
    TearDown,
    TornDown,
    Trying,
    command_from_dict,
    event_from_dict,
)
from services.call_control.sip import sdp
from services.call_control.sip.backend import SipBackend
from services.call_control.sip.settings import TrunkSettings
from services.chassis.clock import SystemClock
from tests.support.cleared import cleared_numbers
from tests.support.fake_backend import FakeBackend

CALL = UUID(int=7)
NUMBER_A, NUMBER_B = "+4930123456", "+4930123457"
LIMITS = DialLimits(talk_limit_ms=9_000, ring_a_timeout_ms=1, ring_b_timeout_ms=1)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HEAD: dict[str, Any] = {"call_id": CALL, "at": NOW, "mono_ms": 12_345}
RESULT = LegResult(leg=Leg.A, dialled_at=NOW, sip_status=486, is_down=True)
END: dict[str, Any] = {
    "reason": EndReason.BUSY,
    "ended_by": EndedBy.A,
    "leg": Leg.A,
    "talk_ms": 0,
    "overrun_ms": 0,
}
OFFER = (
    "v=0\r\no=x 1 2 IN IP4 1.2.3.4\r\ns=-\r\nc=IN IP4 1.2.3.4\r\nt=0 0\r\n"
    "m=audio 4000 RTP/AVP 8 0\r\na=rtpmap:8 PCMA/8000\r\na=sendrecv\r\n"
    "m=video 0 RTP/AVP 99\r\n"
)


@pytest.mark.parametrize(
    "command",
    [
        Dial(
            call_id=CALL,
            number_a="+4930123456",
            number_b="+4930123457",
            talk_limit_ms=1,
            ring_a_timeout_ms=2,
            ring_b_timeout_ms=3,
        ),
        HangUp(call_id=CALL, reason=EndReason.SHUTDOWN),
        Extend(call_id=CALL, talk_limit_ms=4),
        TearDown(call_id=CALL, dialogs=({"leg": "a", "routes": ["<sip:x>"]},)),
        Persisted(call_id=CALL, leg=Leg.B),
    ],
)
def test_commands_survive_json(command: Command | Dial) -> None:
    """Architecture, "calls stay where they are": the thread can become a process."""
    assert command_from_dict(json.loads(json.dumps(command.to_dict()))) == command


@pytest.mark.parametrize(
    "event",
    [
        Trying(**HEAD, leg=Leg.A),
        Ringing(**HEAD, leg=Leg.B, sip_status=183),
        Answered(**HEAD, leg=Leg.A, dialog={"call_id": "x", "routes": []}),
        TalkStarted(**HEAD, talk_limit_ms=5),
        Ending(**HEAD, **END),
        Ended(**HEAD, **END, talk_started_at=None, legs=(RESULT,)),
        TornDown(**HEAD, reason=EndReason.ORPHANED, legs=(RESULT, RESULT)),
    ],
)
def test_events_survive_json(event: Event) -> None:
    """Architecture, "calls stay where they are": the thread can become a process."""
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event


def test_message_of_another_kind_is_refused() -> None:
    """A command is no event."""
    with pytest.raises(KeyError):
        event_from_dict(HangUp(call_id=CALL).to_dict())
    with pytest.raises(ValueError, match="not a Extend"):
        Extend.from_dict(HangUp(call_id=CALL).to_dict())


def test_longest_route_wins() -> None:
    """Trunk settings: number before prefix before next hop."""
    settings = TrunkSettings(
        local=("h", 1),
        next_hop=("trunk", 2),
        caller_id="+498001234567",
        routes={"+4930": ("berlin", 3), "+49301": ("one", 4)},
    )
    routed = [settings.route(number) for number in ("+4930123456", "+4930923456", "+4940123456")]
    assert routed == [("one", 4), ("berlin", 3), ("trunk", 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"caller_id": "platform"},
        {"no_reply_ms": 32_000},
        {"ack_guard_ms": 30_000},
        {"session_expires_s": 60},
        {"persist_timeout_ms": 0},
    ],
)
def test_settings_that_would_lose_calls_are_refused(wrong: dict[str, Any]) -> None:
    """Limits that sippy or RFC 3261 would not honour are refused at the start."""
    good: dict[str, Any] = {"local": ("h", 1), "next_hop": ("t", 2), "caller_id": "+498001234567"}
    with pytest.raises(ValueError, match="must be"):
        TrunkSettings(**(good | wrong))


def test_black_hole_mirrors_every_medium() -> None:
    """RFC 3264: an answer has as many m= lines as the offer, a refused one stays refused."""
    answer = sdp.black_hole_answer(OFFER)
    media = [line for line in answer.split("\r\n") if line.startswith("m=")]
    assert media == ["m=audio 9 RTP/AVP 8 0", "m=video 0 RTP/AVP 99"]
    assert read_description(answer).address is None


def test_origin_becomes_ours() -> None:
    """RFC 3725: the controller owns o= towards each leg; the rest is untouched."""
    ours = sdp.with_our_origin(OFFER, 5, 6)
    assert "o=minutes 5 6 IN IP4 1.2.3.4\r\n" in ours
    assert sdp.without_origin(ours).replace("\r", "") == sdp.without_origin(OFFER).replace("\r", "")


@pytest.mark.parametrize("tone_hz", [440, 880])
def test_ear_tells_tones(tone_hz: int) -> None:
    """A tone that went through mu-law is heard as itself, silence as nothing."""
    ear = Ear()
    for payload in packets_of(tone_hz):
        ear.listen(payload)
    assert ear.heard_hz == tone_hz
    deaf = Ear()
    for _ in range(5):
        deaf.listen(bytes([encode(0)]) * 160)
    assert deaf.heard_hz is None


def test_mu_law_is_the_standard_one() -> None:
    """ITU-T G.711: known code points, and a quantisation error within a segment's step."""
    assert (encode(0), decode(0xFF), decode(0x00), decode(0x80)) == (0xFF, 0, -32_124, 32_124)
    assert all(abs(decode(encode(s)) - s) <= abs(s) / 16 + 8 for s in range(-32_000, 32_000, 37))


@pytest.mark.parametrize(
    "datagram", [b"", b"\r\n\r\n", b"hello", b"INVITE x SIP/2.0\r\nVia: y\r\n\r\n"]
)
def test_what_is_not_sip_is_refused(datagram: bytes) -> None:
    """The telephones' socket is open: anything may arrive."""
    with pytest.raises(MalformedError):
        Message.parse(datagram)


def sip_backend() -> SipBackend:
    trunk = TrunkSettings(
        local=("127.0.0.1", 5060), next_hop=("127.0.0.1", 5061), caller_id=NUMBER_A
    )
    return SipBackend(trunk, lambda: datetime.now(UTC))


def test_numbers_that_nobody_cleared_are_not_dialled() -> None:
    """R-E2, K3: a `Dial` that somebody made by hand reaches no telephone."""
    dial = Dial(
        call_id=CALL,
        number_a=NUMBER_A,
        number_b=NUMBER_B,
        talk_limit_ms=1,
        ring_a_timeout_ms=1,
        ring_b_timeout_ms=1,
    )
    with pytest.raises(TypeError, match="cleared"):
        sip_backend().send(dial)  # type: ignore[arg-type]


async def test_numbers_cleared_for_others_are_not_dialled() -> None:
    """R-E2: nor what was dialled before."""
    other = await cleared_numbers(NUMBER_A, NUMBER_B, recipient="ad-partner")
    backend = sip_backend()
    with pytest.raises(ValueError, match="another recipient"):
        await backend.dial(CALL, other, LIMITS)
    numbers = await cleared_numbers(NUMBER_A, NUMBER_B)
    await FakeBackend(SystemClock()).dial(CALL, numbers, LIMITS)
    with pytest.raises(ValueError, match="sent already"):
        await backend.dial(CALL, numbers, LIMITS)


async def test_fake_backend_keeps_the_promises_of_the_real_one() -> None:
    """The seam's fake tells a call in the same order and starts the talk only when persisted."""
    backend = FakeBackend(SystemClock())
    await backend.start()
    for _ in range(2):
        await backend.dial(CALL, await cleared_numbers(NUMBER_A, NUMBER_B), LIMITS)
    backend.answer(CALL, Leg.A)
    backend.send(Persisted(call_id=CALL, leg=Leg.A))
    backend.answer(CALL, Leg.B)
    backend.send(Persisted(call_id=CALL, leg=Leg.B))
    backend.send(HangUp(call_id=CALL))
    backend.send(TearDown(call_id=CALL, dialogs=({"leg": "a"},)))
    await backend.stop(0)
    told = [event.kind.value async for event in backend.events()]
    assert told == [
        "trying",
        "answered",
        "trying",
        "answered",
        "talk_started",
        "ending",
        "ended",
        "torn_down",
    ]
