"""One leg: a SIP dialog with what sippy's user agent lacks.

Names in camelCase override sippy's methods. Runs in the SIP thread.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol, Self

from sippy.CCEvents import CCEventConnect, CCEventDisconnect, CCEventTry, CCEventUpdate
from sippy.MsgBody import MsgBody
from sippy.SipCallId import SipCallId
from sippy.SipContact import SipContact
from sippy.SipFrom import SipFrom
from sippy.SipHeader import SipHeader
from sippy.SipReason import SipReason
from sippy.SipRoute import SipRoute
from sippy.SipTo import SipTo
from sippy.SipURL import SipURL
from sippy.UA import UA
from sippy.UaStateConnected import UaStateConnected
from typing_extensions import override

from services.call_control.backend import DialogState, Leg
from services.call_control.sip import sdp
from services.call_control.sip.settings import Address, TrunkSettings
from services.call_control.sip.stack import USER_AGENT, Stack, after, mono

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, INFO"
"""No UPDATE and no PRACK: sippy knows neither, so far ends must not rely on them."""
CSEQ_GAP = 100
"""A restored leg skips this many: requests may have gone out after its state was stored."""
CHALLENGES = {
    401: ("www-authenticate", "authorization"),
    407: ("proxy-authenticate", "proxy-authorization"),
}
GONE = frozenset({408, 481})
"""Answers to a request inside a dialog which say that the far end has lost it (RFC 3261 12.2)."""
INTERVAL_TOO_SMALL = 422
INVITE_LINGER_S = 64
"""Twice 64 x T1: what a far end may take to answer our CANCEL."""
REFRESH_RETRY_S = 5.0
REQUESTS_FOR_SIPPY = frozenset({"INVITE", "BYE", "INFO", "OPTIONS", "ACK", "CANCEL"})
REFUSALS = {"REFER": (603, "Declined"), "UPDATE": (488, "Not Acceptable Here")}
"""sippy obeys a REFER, that is: lets the far end send our paid call elsewhere."""
SESSION_EXPIRES = re.compile(r"\s*([0-9]{1,7})\s*(?:;\s*refresher=(uac|uas))?", re.IGNORECASE)


class LegOwner(Protocol):
    """What a leg reports to. sippy swallows exceptions of callbacks: these must not raise."""

    def on_leg_event(self, event: Any, leg: "SipLeg") -> None:
        """Handle an event of sippy's user agent."""

    def on_leg_down(self, leg: "SipLeg") -> None:
        """Handle that nothing more is awaited of the leg: BYE or CANCEL was answered."""

    def on_leg_lost(self, leg: "SipLeg") -> None:
        """Handle that the far end does not know the dialog any more."""


@dataclass
class Record:
    """What happened on a leg; instants in seconds of `stack.mono`."""

    dialled: float | None = None
    ringing: float | None = None
    answered: float | None = None
    ended: float | None = None
    sip_status: int | None = None
    bye_status: int | None = None
    q850_cause: int | None = None
    answered_late: bool = False
    ended_by_far_end: bool = False


class SipLeg(UA):
    """A dialog that we start (or restore), whose answer is acknowledged only when we say so."""

    lSDP: Any  # noqa: N815
    rCSeq: Any  # noqa: N815

    def __init__(
        self,
        stack: Stack,
        side: Leg,
        owner: LegOwner,
        settings: TrunkSettings,
        *,
        next_hop: Address,
        ring_ms: int = 0,
        session: int = 0,
    ) -> None:
        """Prepare a leg; `session` is its id in `o=` lines, 62 bits at most."""
        super().__init__(
            stack.config,
            event_cb=owner.on_leg_event,
            username=settings.username,
            password=settings.password,
            nh_address=next_hop,
            expire_time=ring_ms / 1000,
        )
        self.side = side
        self.record = Record()
        self.gave_up: str | None = None
        """Why we gave up before an answer: "no_reply" or "no_answer"."""
        self.is_awaited = False
        """A BYE or a CANCEL is under way and not yet answered."""
        self.was_heard = False
        self.no_reply_time = settings.no_reply_ms / 1000
        self.local_ua = USER_AGENT
        self._owner = owner
        self._ring_s = math.ceil(ring_ms / 1000)
        self._session = session
        self._version = 0
        self._last_description = ""
        self._session_expires_s = settings.session_expires_s
        self._min_session_expires_s = 90
        self._is_in_response = False
        self._refresh_timer: Any = None
        self._description_in_force: Any = None

    # --- what a call does with a leg

    def dial(self, caller_id: str, number: str, body: MsgBody | None) -> None:
        """Send the INVITE; without a body the far end is asked to make the offer."""
        self.record.dialled = mono()
        self.lContact = SipContact()
        self.lContact.address.name = None  # sippy writes "Anonymous"
        self.recvEvent(CCEventTry((None, caller_id, number, body, None, None)))

    def acknowledge(self, body: MsgBody | None) -> None:
        """Send the ACK that was held back. A leg that got no offer wants an answer as body."""
        if self.pending_tr is None:
            return
        offered = self.lSDP
        self.recvEvent(CCEventConnect((200, "OK", body)))
        if body is None:
            self.lSDP = offered  # sippy takes "no body" for "no description"
        if self._session_expires_s:
            self._refresh_timer = after(self._session_expires_s / 2, self._refresh)

    def bring_down(self, reason: str, status: int) -> None:
        """Send BYE or CANCEL, whatever fits; `on_leg_down` follows while `is_awaited`."""
        if self.state is None or self.isDead():
            return
        if self.isConnected():
            self.is_awaited = True
            self.record.ended = mono()
        elif str(self.state).startswith(("Trying", "Ringing", "Cancelling")):
            # of a far end that never said anything nothing is to be awaited: sippy cancels the
            # INVITE should it wake up
            self.is_awaited = self.was_heard
            self.record.ended = mono()
        event = CCEventDisconnect()
        event.reason_rfc3326 = SipReason(protocol="SIP", cause=status, reason=reason)
        self.recvEvent(event)

    @property
    def can_update(self) -> bool:
        """Whether a re-INVITE may be sent: no other is under way and the ACK is out."""
        return str(self.state) == "Connected" and self.pending_tr is None

    def outgoing(self, description: str) -> MsgBody:
        """Return the other leg's description as this leg shall see it.

        An unchanged description keeps its version, and sippy then sends no re-INVITE.
        """
        bare = sdp.without_origin(description)
        if bare != self._last_description:
            self._last_description = bare
            self._version += 1
        return MsgBody(sdp.with_our_origin(description, self._session, self._version))

    def restore_description(self) -> None:
        """Take the description back that was in force before a refused re-INVITE."""
        self.lSDP = self._description_in_force

    def release(self) -> None:
        """Stop own timers: the call is over."""
        if self._refresh_timer is not None:
            self._refresh_timer.cancel()
            self._refresh_timer = None

    # --- state for another process

    def dump(self) -> DialogState:
        """Return what `restore` needs, in plain data. No session descriptions: BYE needs none."""
        (host, port), transport = self.rAddr
        return {
            "leg": self.side.value,
            "call_id": str(self.cId),
            "local_uri": str(self.lUri),
            "remote_uri": str(self.rUri),
            "local_cseq": int(self.lCSeq),
            "remote_cseq": self.rCSeq,
            "target": str(self.rTarget),
            "routes": [str(route) for route in self.routes],
            "address": [str(host), int(port), str(transport)],
            "answered_mono_ms": round((self.record.answered or 0) * 1000),
        }

    @classmethod
    def restore(
        cls, stack: Stack, owner: LegOwner, settings: TrunkSettings, state: DialogState
    ) -> Self:
        """Return the leg another process held, fit to be brought down.

        Raises:
            KeyError, ValueError: not a state made by `dump`.
        """
        host, port, transport = state["address"]
        leg = cls(stack, Leg(state["leg"]), owner, settings, next_hop=(host, port))
        leg.cId = SipCallId(state["call_id"])
        leg.lUri = SipFrom(state["local_uri"])
        leg.lUri.parse()
        leg.rUri = SipTo(state["remote_uri"])
        leg.rUri.parse()
        leg.lTag = leg.lUri.getTag()
        leg.lCSeq = state["local_cseq"] + CSEQ_GAP
        leg.rCSeq = state["remote_cseq"]
        leg.rTarget = SipURL(state["target"])
        leg.routes = [SipRoute(route) for route in state["routes"]]
        for route in leg.routes:
            route.parse()
        leg.rAddr = leg.rAddr0 = ((host, port), transport)
        leg.lContact = SipContact()
        leg.lContact.getUrl().username = leg.lUri.getUrl().username
        # Only an answered leg has a state. The clock begins anew with the machine: never ahead.
        leg.record.answered = min(state["answered_mono_ms"] / 1000, mono())
        stack.config["_sip_tm"].regConsumer(leg, str(leg.cId))
        leg.state = UaStateConnected(leg)
        return leg

    # --- overrides: before the answer

    @override
    def no_reply_expires(self) -> None:
        """Note why, then give up."""
        self.gave_up = "no_reply"
        super().no_reply_expires()

    @override
    def expires(self) -> None:
        """Note why, then give up."""
        self.gave_up = "no_answer"
        super().expires()

    @override
    def genRequest(
        self,
        method: str,
        body: Any = None,
        cqop: Any = None,
        extra_headers: Any = None,
        max_forwards: Any = None,
    ) -> Any:
        """Add our headers to an INVITE.

        Expires = ring limit: an INVITE whose process died cannot be cancelled, the trunk must stop
        it (sippy says 300 s).
        """
        if method != "INVITE":
            return super().genRequest(method, body, cqop, extra_headers, max_forwards)
        texts = [f"Allow: {ALLOW}", "Supported: timer"]
        if self._session_expires_s:
            texts += [
                f"Session-Expires: {self._session_expires_s};refresher=uac",
                f"Min-SE: {self._min_session_expires_s}",
            ]
        headers = [*(extra_headers or ()), *(SipHeader(s=text) for text in texts)]
        request = super().genRequest(method, body, cqop, headers, max_forwards)
        request.delHFs("expires")
        if self.record.answered is None:
            request.appendHeader(SipHeader(s=f"Expires: {self._ring_s}"))
        return request

    @override
    def processChallenge(self, resp: Any, cseq: int, ch: str, ah: str, eh: Any) -> bool:
        """Put the authorised INVITE behind the ACK of the 401/407: sippy sends it before."""
        if self.username is None or self.password is None or self.reqs[cseq].countHFs(ah):
            return False

        def authorise() -> None:
            if self.state is None or self.isDead():
                return
            if not UA.processChallenge(self, resp, cseq, ch, ah, eh):
                self.recvEvent(CCEventDisconnect())

        after(0, authorise)
        return True

    def _retry_session_interval(self, resp: Any) -> bool:
        """Invite again with the interval a 422 asks for; False if this is no such answer."""
        if resp.getSCode()[0] != INTERVAL_TOO_SMALL or not resp.countHFs("min-se"):
            return False
        asked = SESSION_EXPIRES.match(str(resp.getHFBody("min-se")))
        if asked is None or int(asked[1]) <= self._session_expires_s:
            return False  # at most as many rounds as the interval grows
        self._session_expires_s = self._min_session_expires_s = int(asked[1])

        def again() -> None:
            if str(self.state).startswith(("Trying", "Ringing")):
                self.newUacTransaction(self.genRequest("INVITE", self.lSDP))

        after(0, again)
        return True

    @override
    def recvResponse(self, resp: Any, tr: Any) -> None:
        """Hold back the ACK of an answer to the first INVITE: persist before acknowledge."""
        if self.state is None or self.isDead():
            return
        status = resp.getSCode()[0]
        self.was_heard = True
        before = str(self.state)
        is_first = before.startswith(("Trying", "Ringing"))
        if is_first and self._retry_session_interval(resp):
            return
        if before.startswith("Cancelling") and status >= 200:  # noqa: PLR2004
            self.record.sip_status = status
            if status < 300:  # noqa: PLR2004
                self.record.answered, self.record.answered_late = resp.rtime.monot, True
                self.record.ended, self.is_awaited = mono(), True
        is_answer = is_first and 200 <= status < 300  # noqa: PLR2004
        if is_answer:
            tr.uack, self.pending_tr = True, tr
        self._is_in_response = True
        try:
            super().recvResponse(resp, tr)
        finally:
            self._is_in_response = False
            if is_answer and str(self.state) == "Failed":  # an answer without a tag
                tr.uack, self.pending_tr = False, None

    # --- overrides: the end

    @override
    def changeState(self, newstate: Any) -> None:
        """Notice that a CANCEL is done: sippy says nothing."""
        before = str(self.state)
        super().changeState(newstate)
        if before.startswith("Cancelling") and not self.record.answered_late:
            self._down()

    @override
    def recvEvent(self, event: Any) -> None:
        """Remember the description in force: sippy forgets it when a re-INVITE is refused."""
        if isinstance(event, CCEventUpdate):
            self._description_in_force = self.lSDP
        super().recvEvent(event)

    @override
    def newTransaction(self, req: Any, req_extra_headers: Any = None, **kwa: Any) -> Any:
        """Watch our BYE, and send it behind the ACK if an answer is being handled.

        An INVITE's transaction must outlive its Expires: sippy drops it at that very instant, which
        is when we cancel, and then neither acknowledges the 487 nor sees an answer that crosses the
        CANCEL (a leg that would stay up).
        """
        if req.getMethod() != "BYE":
            transaction = super().newTransaction(req, req_extra_headers, **kwa)
            if req.getMethod() == "INVITE":
                transaction.expires = self._ring_s + INVITE_LINGER_S
            return transaction
        if self._is_in_response:
            after(0, self._send_bye, req)
            return None
        return self._send_bye(req)

    def _send_bye(self, request: Any) -> Any:
        def answered(resp: Any) -> None:
            status = resp.getSCode()[0]
            if status in CHALLENGES and self._authorise(request, resp, "BYE", self._send_bye):
                return
            if status >= 200:  # noqa: PLR2004
                self.record.bye_status = status
                self._down()

        try:
            return super().newTransaction(request, resp_cb=answered)
        except Exception:
            self._down()  # not sent: `bye_status` stays empty, the leg is not known to be down
            raise

    def _authorise(self, request: Any, resp: Any, method: str, send: Any) -> bool:
        """Send a request again with credentials: sippy does so for the first INVITE only."""
        challenge_name, header_name = CHALLENGES[resp.getSCode()[0]]
        if self.username is None or request.countHFs(header_name):
            return False
        for challenge in resp.getHFBodys(challenge_name):
            is_known, quality = challenge.supportedAlgorithm()
            if is_known:
                body = self.lSDP if method == "INVITE" else None
                send(self.genRequest(method, body, (challenge, quality)))
                return True
        return False

    def _down(self) -> None:
        if self.is_awaited:
            self.is_awaited = False
            self._owner.on_leg_down(self)

    # --- overrides: in the dialog

    @override
    def recvRequest(self, req: Any, sip_t: Any) -> Any:
        """Answer what sippy would not answer, or would answer wrongly.

        It answers nothing to UPDATE (a carrier refreshing by it would cut the call), obeys REFER,
        and takes an INVITE without a body, which refreshes a session, for "hold": the call would
        fall silent.
        """
        method = req.getMethod()
        is_refresh = (
            method == "INVITE"
            and req.getBody() is None
            and self.can_update
            and self.lSDP is not None
        )
        if method in REQUESTS_FOR_SIPPY and not is_refresh:
            return super().recvRequest(req, sip_t)
        cseq = req.getHFBody("cseq").getCSeqNum()
        if self.rCSeq is not None and self.rCSeq >= cseq:
            return (req.genResponse(500, "Out of order", server=self.local_ua), None, None)
        self.rCSeq = cseq
        if is_refresh:
            self.uasResp = req.genResponse(100, "Trying", server=self.local_ua)
            self.global_config["_sip_tm"].sendResponse(self.uasResp)
            contacts, extra = (self.lContact,), self._session_headers(req)
            self.sendUasResponse(200, "OK", self.lSDP, contacts, extra_headers=extra)
            return None
        code = REFUSALS.get(method, (501, "Not Implemented"))
        if method == "UPDATE" and req.getBody() is None:
            code = (200, "OK")
        response = req.genResponse(*code, server=self.local_ua)
        if code[0] == 200:  # noqa: PLR2004
            response.appendHeader(SipHeader(name="contact", body=self.lContact))
            response.appendHeaders(self._session_headers(req) or ())
        return (response, None, None)

    @staticmethod
    def _session_headers(req: Any) -> list[Any] | None:
        """Confirm the session interval that a refresh of the far end asks for (RFC 4028 9)."""
        if not req.countHFs("session-expires"):
            return None
        asked = SESSION_EXPIRES.match(str(req.getHFBody("session-expires")))
        if asked is None:
            return None
        refresher = (asked[2] or "uac").lower()
        texts = [f"Session-Expires: {asked[1]};refresher={refresher}"]
        if refresher == "uac":
            texts.append("Require: timer")
        return [SipHeader(s=text) for text in texts]

    # --- session refresh (RFC 4028), in place of sippy's keep-alive, which on a lost leg stays
    # silent for 600 s the first time

    def _refresh(self) -> None:
        if not self.isConnected():
            return
        if not self.can_update:
            self._refresh_timer = after(REFRESH_RETRY_S, self._refresh)
            return
        self._send_refresh(self.genRequest("INVITE", self.lSDP))

    def _send_refresh(self, request: Any) -> None:
        self.reqs.pop(request.getHFBody("cseq").getCSeqNum(), None)

        def answered(resp: Any) -> None:
            status = resp.getSCode()[0]
            if status < 200 or not self.isConnected():  # noqa: PLR2004
                return
            if status in GONE:
                after(0, self._owner.on_leg_lost, self)
            elif status in CHALLENGES:
                after(0, self._refresh_authorised, request, resp)
            else:
                self._refresh_timer = after(self._session_expires_s / 2, self._refresh)

        super().newTransaction(request, resp_cb=answered)

    def _refresh_authorised(self, request: Any, resp: Any) -> None:
        if not self.isConnected():
            return
        if not self._authorise(request, resp, "INVITE", self._send_refresh):
            self._refresh_timer = after(self._session_expires_s / 2, self._refresh)
