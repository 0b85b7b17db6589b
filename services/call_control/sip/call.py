"""One call: A is dialled, then B, and they are connected (RFC 3725 flow I, with a guard).

A is invited without an offer and makes one in its answer; B gets A's offer; A's acknowledgement
carries B's answer. If B takes longer than the guard, A is acknowledged without media and invited
again with B's media when B answers. Runs in the SIP thread; no locks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sippy.CCEvents import (
    CCEventConnect,
    CCEventDisconnect,
    CCEventFail,
    CCEventPreConnect,
    CCEventRedirect,
    CCEventRing,
    CCEventUpdate,
)

from services.call_control.backend import (
    Answered,
    Dial,
    DialogState,
    Ended,
    EndedBy,
    Ending,
    EndReason,
    Event,
    Leg,
    LegResult,
    Ringing,
    TalkStarted,
    TearDown,
    TornDown,
    Trying,
)
from services.call_control.sip import sdp
from services.call_control.sip.leg import SipLeg
from services.call_control.sip.settings import TrunkSettings
from services.call_control.sip.stack import TICK_MS, Stack, after, at, mono, report

CUT_LEAD_S = TICK_MS / 1000
"""The cut is asked for one tick early and so happens in the tick before the limit, never after."""
UPDATE_RETRIES_MAX = 5
UPDATE_RETRY_S = 0.5
SILENT = 408

_REASONS = {
    404: EndReason.NOT_REACHABLE,
    408: EndReason.NO_ANSWER,
    410: EndReason.NOT_REACHABLE,
    415: EndReason.MEDIA_FAILED,
    480: EndReason.NOT_REACHABLE,
    484: EndReason.NOT_REACHABLE,
    485: EndReason.NOT_REACHABLE,
    486: EndReason.BUSY,
    487: EndReason.NO_ANSWER,  # the trunk stopped ringing at our Expires
    488: EndReason.MEDIA_FAILED,
    600: EndReason.BUSY,
    603: EndReason.DECLINED,
    604: EndReason.NOT_REACHABLE,
    606: EndReason.MEDIA_FAILED,
    607: EndReason.DECLINED,
}
"""What a refusal means; everything else, redirects too (toll fraud), is the trunk refusing."""

_GAVE_UP = {"no_reply": EndReason.TRUNK_SILENT, "no_answer": EndReason.NO_ANSWER}


@dataclass(frozen=True, kw_only=True)
class World:
    """What a call is given: all it may use."""

    stack: Stack
    settings: TrunkSettings
    now: Callable[[], datetime]
    emit: Callable[[Event], None]
    forget: Callable[[Any], None]

    def wall(self, mono_s: float) -> datetime:
        """Return the wall clock at an instant of `mono`."""
        return self.now() + timedelta(seconds=mono_s - mono())

    def wall_or_none(self, mono_s: float | None) -> datetime | None:
        """Return the wall clock at an instant, if there is one."""
        return None if mono_s is None else self.wall(mono_s)

    def result(self, leg: SipLeg) -> LegResult:
        """Return a leg's share of the call detail record."""
        record = leg.record
        duration_s = 0.0
        if record.answered is not None and record.ended is not None:
            duration_s = max(0.0, record.ended - record.answered)
        is_confirmed = record.ended_by_far_end or record.bye_status not in {None, SILENT}
        return LegResult(
            leg=leg.side,
            dialled_at=self.wall_or_none(record.dialled),
            ringing_at=self.wall_or_none(record.ringing),
            answered_at=self.wall_or_none(record.answered),
            ended_at=self.wall_or_none(record.ended),
            duration_ms=round(duration_s * 1000),
            sip_status=record.sip_status,
            bye_status=record.bye_status,
            q850_cause=record.q850_cause,
            answered_late=record.answered_late,
            is_down=record.answered is None or is_confirmed,
        )


def bring_down(legs: list[SipLeg], reason: str, status: int) -> None:
    """Bring all legs down; a failure on one must not save another."""
    for leg in legs:
        try:
            leg.bring_down(reason, status)
        except Exception:  # noqa: BLE001
            leg.is_awaited = False
            report("leg not brought down")


def cause_of(event: Any) -> int | None:
    """Return the Q.850 cause a far end gave, if it gave one that can be read."""
    reason = event.reason_rfc3326
    if reason is None:
        return None
    try:
        if not reason.parsed:
            reason.parse()
    except Exception:  # noqa: BLE001 - sippy's parser fails on what it does not know, in many ways
        return None
    return int(reason.cause) if str(reason.protocol).upper() == "Q.850" else None


class Call:
    """A call from `Dial` to `Ended`."""

    def __init__(self, order: Dial, world: World) -> None:
        """Prepare; `start` dials."""
        self.call_id = order.call_id
        self._order = order
        self._world = world
        self._settings = world.settings
        self._limit_ms = order.talk_limit_ms
        self._a: SipLeg | None = None
        self._b: SipLeg | None = None
        self._offer = ""
        self._for_a: str | None = None
        """The answer A's acknowledgement shall carry, once there is one."""
        self._b_description: str | None = None
        self._persisted: set[Leg] = set()
        self._is_a_acknowledged = False
        self._is_moving_a = False
        """Our own re-INVITE to A, with B's media, is under way."""
        self._updating: SipLeg | None = None
        """The leg whose re-INVITE was passed on to the other and awaits its answer."""
        self._talk_started: float | None = None
        self._timers: dict[str, Any] = {}
        self._ending: Ending | None = None
        self._is_done = False

    # --- commands

    def start(self) -> None:
        """Dial A."""
        self._guarded(self._dial_a)

    def hang_up(self, reason: EndReason) -> None:
        """End the call in any phase."""
        self._guarded(self._finish, reason, EndedBy.PLATFORM)

    def extend(self, talk_limit_ms: int) -> None:
        """Set the total talk limit."""
        self._limit_ms = talk_limit_ms
        if self._talk_started is not None:
            self._guarded(self._set_cut)

    def persisted(self, side: Leg) -> None:
        """Acknowledge a leg: its state is durable."""
        self._persisted.add(side)
        self._cancel_timer(f"persist_{side}")
        self._guarded(self._acknowledge_a)
        self._guarded(self._connect)

    # --- what legs report

    def on_leg_event(self, event: Any, leg: SipLeg) -> None:
        """Handle an event of a leg's user agent."""
        self._guarded(self._handle, event, leg)

    def on_leg_down(self, leg: SipLeg) -> None:  # noqa: ARG002
        """Close the record once no leg is awaited."""
        self._guarded(self._close_if_down)

    def on_leg_lost(self, leg: SipLeg) -> None:
        """End the call: the far end has forgotten a leg."""
        self._guarded(self._finish, EndReason.LEG_LOST, EndedBy.PLATFORM, leg)

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run a step; a bug in it ends the call (sippy would swallow it and leave the legs up)."""
        try:
            step(*arguments)
        except Exception:  # noqa: BLE001
            report("call failed")
            self._finish(EndReason.FAILED, EndedBy.PLATFORM)

    def _handle(self, event: Any, leg: SipLeg) -> None:
        match event:
            case CCEventRing():
                self._on_ring(event, leg)
            case CCEventPreConnect():
                self._on_answer(event, leg)
            case CCEventConnect() if leg.record.answered is None:
                self._on_answer(event, leg)
            case CCEventConnect():
                self._on_updated(event, leg)
            case CCEventUpdate():
                self._on_update(event, leg)
            case CCEventFail() | CCEventRedirect():
                self._on_fail(event, leg)
            case CCEventDisconnect():
                self._on_gone(event, leg)
            case _:
                return  # INFO (dialled tones): nobody's business (R-C6)

    # --- setting up

    def _leg(self, side: Leg, number: str, ring_ms: int) -> SipLeg:
        return SipLeg(
            self._world.stack,
            side,
            self,
            self._settings,
            next_hop=self._settings.route(number),
            ring_ms=ring_ms,
            session=(self.call_id.int & (1 << 60) - 1) << 1 | (side is Leg.B),
        )

    def _dial_a(self) -> None:
        self._a = self._leg(Leg.A, self._order.number_a, self._order.ring_a_timeout_ms)
        self._a.dial(self._settings.caller_id, self._order.number_a, None)
        self._emit(Trying, self._a.record.dialled, leg=Leg.A)

    def _dial_b(self) -> None:
        self._b = self._leg(Leg.B, self._order.number_b, self._order.ring_b_timeout_ms)
        body = self._b.outgoing(self._offer)
        self._b.dial(self._settings.caller_id, self._order.number_b, body)
        self._emit(Trying, self._b.record.dialled, leg=Leg.B)

    def _on_ring(self, event: Any, leg: SipLeg) -> None:
        status, _, body = event.getData()
        if status > 100 and leg.record.ringing is None:  # noqa: PLR2004
            leg.record.ringing = event.rtime.monot
            self._emit(Ringing, event.rtime.monot, leg=leg.side, sip_status=status)
        if leg is self._b and body is not None and self._for_a is None:
            self._for_a = str(body)  # early media: A hears B's ringing tone or announcement
            self._acknowledge_a()

    def _on_answer(self, event: Any, leg: SipLeg) -> None:
        body = event.getData()[2]
        leg.record.answered, leg.record.sip_status = event.rtime.monot, 200
        early = self._for_a if leg is self._b else None
        description = early if body is None else str(body)
        if self._ending is not None:
            return
        if description is None:
            self._finish(EndReason.MEDIA_FAILED, EndedBy.PLATFORM, leg)
            return
        self._emit(Answered, event.rtime.monot, leg=leg.side, dialog=leg.dump())
        limit_s = self._settings.persist_timeout_ms / 1000
        self._timers[f"persist_{leg.side}"] = after(limit_s, self._on_not_persisted, leg)
        if leg is self._a:
            self._offer = description
            self._timers["guard"] = after(self._settings.ack_guard_ms / 1000, self._on_guard)
            self._dial_b()
        else:
            self._b_description = description
            if not self._is_a_acknowledged:
                self._for_a = description
                self._acknowledge_a()

    def _on_not_persisted(self, leg: SipLeg) -> None:
        self._guarded(self._finish, EndReason.NOT_PERSISTED, EndedBy.PLATFORM, leg)

    def _on_guard(self) -> None:
        if self._for_a is None:
            self._for_a = sdp.black_hole_answer(self._offer)
            self._guarded(self._acknowledge_a)

    def _acknowledge_a(self) -> None:
        if self._ending is not None or self._is_a_acknowledged:
            return
        if self._a is None or self._for_a is None or Leg.A not in self._persisted:
            return
        self._is_a_acknowledged = True
        self._cancel_timer("guard")
        self._a.acknowledge(self._a.outgoing(self._for_a))

    def _connect(self) -> None:
        """Start the talk once both legs are durable: acknowledge B, give A its media."""
        if self._ending is not None or self._talk_started is not None or self._b is None:
            return
        if self._b_description is None or not self._is_a_acknowledged:
            return
        if Leg.B not in self._persisted:
            return
        assert self._b.record.answered is not None
        self._b.acknowledge(None)
        self._talk_started = self._b.record.answered
        self._emit(TalkStarted, self._talk_started, talk_limit_ms=self._limit_ms)
        self._set_cut()
        self._move_a()

    # --- re-INVITEs

    def _move_a(self, retries: int = UPDATE_RETRIES_MAX) -> None:
        """Invite A again with B's media, if it was acknowledged with other."""
        if self._ending is not None or self._a is None or self._b_description is None:
            return
        body = self._a.outgoing(self._b_description)
        if str(self._a.lSDP) == str(body):
            return
        if self._a.can_update:
            self._is_moving_a = True
            self._a.recvEvent(CCEventUpdate(body))
        elif retries:
            again = retries - 1
            self._timers["move"] = after(UPDATE_RETRY_S, self._guarded, self._move_a, again)
        else:
            self._finish(EndReason.MEDIA_FAILED, EndedBy.PLATFORM, self._a)

    def _other(self, leg: SipLeg) -> SipLeg | None:
        return self._b if leg is self._a else self._a

    def _on_update(self, event: Any, leg: SipLeg) -> None:
        """Pass a re-INVITE (hold, new codec) on to the other leg, or refuse it for now."""
        other = self._other(leg)
        is_free = self._updating is None and not self._is_moving_a
        body = event.getData()
        if self._talk_started is None or other is None or not other.can_update or not is_free:
            leg.recvEvent(CCEventFail((491, "Request Pending")))
            return
        self._updating = leg
        update = CCEventUpdate(other.outgoing(str(body)), rtime=event.rtime)
        other.recvEvent(update)

    def _on_updated(self, event: Any, leg: SipLeg) -> None:
        """Handle the answer to a re-INVITE that we passed on or sent."""
        body = event.getData()[2]
        if self._updating is not None and leg is not self._updating:
            asking, self._updating = self._updating, None
            answer = None if body is None else asking.outgoing(str(body))
            asking.recvEvent(CCEventConnect((200, "OK", answer), rtime=event.rtime))
        elif leg is self._a and self._is_moving_a:
            self._is_moving_a = False
            has_moved = body is not None and sdp.media_of(str(body)) != sdp.media_of(self._offer)
            if has_moved and self._b is not None and self._b.can_update:
                self._offer = str(body)
                self._b.recvEvent(CCEventUpdate(self._b.outgoing(self._offer)))

    # --- the end

    def _on_fail(self, event: Any, leg: SipLeg) -> None:
        status = event.getData()[0]
        leg.record.q850_cause = cause_of(event)
        if leg.record.answered is not None and leg.isConnected():
            self._on_update_refused(status, leg)
            return
        if leg.record.answered is not None:
            self._finish(EndReason.LEG_LOST, EndedBy.PLATFORM, leg)
            return
        leg.record.sip_status, leg.record.ended = status, event.rtime.monot
        reason = _REASONS.get(status, EndReason.TRUNK_REFUSED)
        by = EndedBy.PLATFORM if reason is EndReason.TRUNK_REFUSED else EndedBy(leg.side.value)
        self._finish(reason, by, leg)

    def _on_update_refused(self, status: int, leg: SipLeg) -> None:
        """Go on as before: a refused re-INVITE leaves the session as it was (RFC 3261 14.1)."""
        leg.restore_description()
        if self._updating is not None and leg is not self._updating:
            asking, self._updating = self._updating, None
            asking.recvEvent(CCEventFail((status, "Refused")))
        elif leg is self._a and self._is_moving_a:
            self._is_moving_a = False
            if status == 491:  # noqa: PLR2004 - both asked at once: ask again (RFC 3261 14.1)
                self._timers["move"] = after(UPDATE_RETRY_S, self._guarded, self._move_a)
            else:
                self._finish(EndReason.MEDIA_FAILED, EndedBy.PLATFORM, leg)

    def _on_gone(self, event: Any, leg: SipLeg) -> None:
        if leg.gave_up is not None:
            self._finish(_GAVE_UP[leg.gave_up], EndedBy.PLATFORM, leg)
            return
        if leg.record.ended is None:
            leg.record.ended, leg.record.ended_by_far_end = event.rtime.monot, True
            leg.record.q850_cause = cause_of(event)
        self._finish(EndReason.HUNG_UP, EndedBy(leg.side.value), leg, event.rtime.monot)

    def _set_cut(self) -> None:
        if self._ending is not None or self._talk_started is None:
            return
        self._cancel_timer("cut")
        limit = self._talk_started + self._limit_ms / 1000
        self._timers["cut"] = at(max(limit - CUT_LEAD_S, mono()), self._on_cut)

    def _on_cut(self) -> None:
        self._guarded(self._finish, EndReason.TALK_LIMIT, EndedBy.PLATFORM)

    def _finish(
        self,
        reason: EndReason,
        by: EndedBy,
        leg: SipLeg | None = None,
        ended: float | None = None,
    ) -> None:
        """End the call, once; later reasons are ignored. `ended`: of the far end's BYE."""
        if self._ending is not None:
            return
        for name in tuple(self._timers):
            self._cancel_timer(name)
        legs = [each for each in (self._a, self._b) if each is not None]
        end = mono() if ended is None else ended
        talk_ms, overrun_ms = self._talk(end)
        self._ending = Ending(
            call_id=self.call_id,
            at=self._world.wall(end),
            mono_ms=round(end * 1000),
            reason=reason,
            ended_by=by,
            leg=None if leg is None else leg.side,
            talk_ms=talk_ms,
            overrun_ms=overrun_ms,
        )
        self._prepare_acknowledgements(legs)
        bring_down(legs, reason.value, 200 if reason is EndReason.TALK_LIMIT else 487)
        self._world.emit(self._ending)
        after(0, self._guarded, self._close_if_down)
        self._timers["give_up"] = after(self._settings.teardown_wait_ms / 1000, self._give_up)

    def _talk(self, end: float) -> tuple[int, int]:
        if self._talk_started is None:
            return 0, 0
        talk_ms = max(0, round((end - self._talk_started) * 1000))
        return talk_ms, max(0, talk_ms - self._limit_ms)

    def _prepare_acknowledgements(self, legs: list[SipLeg]) -> None:
        """Acknowledge what was held back: sippy would send the BYE first and the ACK after it."""
        for leg in legs:
            if leg.pending_tr is None or not leg.isConnected():
                continue
            body = None
            if leg is self._a and self._offer:
                body = leg.outgoing(sdp.black_hole_answer(self._offer))
            try:
                leg.acknowledge(body)
            except Exception:  # noqa: BLE001 - the BYE must go out all the same
                report("leg not acknowledged")

    def _give_up(self) -> None:
        """Close the record though a far end is silent."""
        for leg in (self._a, self._b):
            if leg is not None:
                leg.is_awaited = False
        self._guarded(self._close_if_down)

    def _close_if_down(self) -> None:
        legs = [leg for leg in (self._a, self._b) if leg is not None]
        if self._is_done or self._ending is None or any(leg.is_awaited for leg in legs):
            return
        self._is_done = True
        self._cancel_timer("give_up")
        for leg in legs:
            leg.release()
        ending = self._ending
        self._world.emit(
            Ended(
                call_id=self.call_id,
                at=ending.at,
                mono_ms=ending.mono_ms,
                reason=ending.reason,
                ended_by=ending.ended_by,
                leg=ending.leg,
                talk_ms=ending.talk_ms,
                overrun_ms=ending.overrun_ms,
                talk_started_at=self._world.wall_or_none(self._talk_started),
                legs=tuple(self._world.result(leg) for leg in legs),
            )
        )
        self._world.forget(self)

    # --- small things

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _emit(self, kind: Callable[..., Event], mono_s: float | None, **more: Any) -> None:
        assert mono_s is not None
        wall = self._world.wall(mono_s)
        self._world.emit(kind(call_id=self.call_id, at=wall, mono_ms=round(mono_s * 1000), **more))


class Restored:
    """The legs of a call whose process died, on their way down."""

    def __init__(self, order: TearDown, world: World) -> None:
        """Prepare; `start` sends the BYEs."""
        self.call_id = order.call_id
        self._order = order
        self._world = world
        self._legs: list[SipLeg] = []
        self._is_done = False

    def start(self) -> None:
        """Send a BYE on every leg."""
        for state in self._order.dialogs:
            self._restore(state)
        bring_down(self._legs, self._order.reason.value, 487)
        after(0, self._close_if_down)
        after(self._world.settings.teardown_wait_ms / 1000, self._give_up)

    def _restore(self, state: DialogState) -> None:
        world = self._world
        try:
            self._legs.append(SipLeg.restore(world.stack, self, world.settings, state))
        except Exception:  # noqa: BLE001 - one bad state must not save the other leg
            report("leg not restored")

    def on_leg_event(self, event: Any, leg: SipLeg) -> None:
        """Note a far end that hangs up at the same time."""
        if isinstance(event, CCEventDisconnect):
            leg.record.ended_by_far_end = True

    def on_leg_down(self, leg: SipLeg) -> None:  # noqa: ARG002
        """Close once no leg is awaited."""
        self._close_if_down()

    def on_leg_lost(self, leg: SipLeg) -> None:
        """Nothing to do: it is being brought down."""

    def _give_up(self) -> None:
        for leg in self._legs:
            leg.is_awaited = False
        self._close_if_down()

    def _close_if_down(self) -> None:
        if self._is_done or any(leg.is_awaited for leg in self._legs):
            return
        self._is_done = True
        now = mono()
        self._world.emit(
            TornDown(
                call_id=self.call_id,
                at=self._world.wall(now),
                mono_ms=round(now * 1000),
                reason=self._order.reason,
                legs=tuple(self._world.result(leg) for leg in self._legs),
            )
        )
        self._world.forget(self)
