"""One call at a telephone: the SIP user agent server (RFC 3261) and its speech."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from deploy.phones.message import (
    Message,
    Remote,
    address_of,
    describe,
    read_description,
    uri_of,
    write,
)
from deploy.phones.phone import (
    TONE_OF_CALLED_HZ,
    TONE_OF_CALLER_HZ,
    CallEnd,
    Mode,
    Phone,
    PhoneCall,
)
from deploy.phones.speech import Speech, Ticker
from services.chassis.clock import Clock

T1_S = 0.5
T2_S = 4.0
GIVE_UP_S = 32.0
"""64 x T1: an answer unacknowledged, or a BYE unanswered, for so long is given up."""

Address = tuple[str, int]


@dataclass(frozen=True)
class Wire:
    """What a line needs of its exchange."""

    host: str
    port: int
    send: Callable[[bytes, Address], None]
    ticker: Ticker
    clock: Clock
    loop: asyncio.AbstractEventLoop
    give_up_s: float


class Line:
    """A dialog from INVITE to its end."""

    def __init__(self, invite: Message, source: Address, phone: Phone, wire: Wire) -> None:
        """Take the INVITE that started it; `ring` begins."""
        self.phone = phone
        self.is_over = False
        self.call = PhoneCall(was_offered=bool(invite.body.strip()))
        self.tag = secrets.token_hex(6)
        self._wire = wire
        self._invite = invite
        self._source = source
        self._asked_from = source
        self._remote = read_description(invite.body)
        self._speech: Speech | None = None
        self._session = secrets.randbits(40)
        self._version = 0
        self._final: bytes | None = None
        self._provisional: bytes = b""
        self._is_answered = False
        self._hang_up: bytes | None = None
        self._cseq = 0
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._contact = f"Contact: <sip:{phone.number}@{wire.host}:{wire.port}>"
        self._updates: set[str] = {invite.cseq}
        phone.note(self.call)

    # --- called by the exchange

    def ring(self) -> None:
        """Answer the INVITE as the telephone is set to."""
        if self.phone.mode is Mode.BUSY:
            self._refuse(486)
            return
        if self.call.was_offered and not self._remote.has_mu_law:
            self._refuse(488)
            return
        self.call.ringing_at = self._wire.clock.now()
        self._provisional = self._reply(self._invite, 180)
        if self.phone.mode is Mode.ANSWER:
            self._after("answer", self.phone.answer_after_s, self._answer)
        expires = self._invite.get("expires")
        if expires.isdigit() and int(expires):
            self._after("expires", float(expires), lambda: self._refuse(487))

    def take(self, message: Message, source: Address) -> None:
        """Handle a request or an answer that belongs to this dialog.

        Args:
            source: who sent it, and is answered (RFC 3261 18.2.2): whoever takes a call over from a
                process that died has an address of its own.
        """
        self._asked_from = source
        if not message.is_request:
            if message.method == "BYE" and message.status >= 200:  # noqa: PLR2004
                self._over(CallEnd.PHONE)
            return
        handler = {
            "INVITE": self._on_invite,
            "ACK": self._on_ack,
            "BYE": self._on_bye,
            "CANCEL": self._on_cancel,
        }.get(message.method)
        if handler is not None:
            handler(message)
        else:
            may_be = message.method in {"OPTIONS", "INFO"}
            may_be = may_be or (message.method == "UPDATE" and not message.body.strip())
            self._reply(message, 200 if may_be else 501)

    def hang_up(self) -> None:
        """End the call from this side."""
        if self.is_over or self._hang_up is not None:
            return
        if not self._is_answered:
            if self._final is None:
                self._refuse(486)
            return
        self._stop_speech()
        self._cancel_timers()
        self._cseq += 1
        self._hang_up = self._bye()
        self._wire.send(self._hang_up, self._next_hop())
        self._repeat("bye", self._hang_up, self._next_hop())
        self._after("give_up", self._wire.give_up_s, lambda: self._over(CallEnd.PHONE))

    def close(self) -> None:
        """Drop the call without a word: the exchange closes."""
        self._over(CallEnd.PHONE)

    # --- requests

    def _on_invite(self, message: Message) -> None:
        if message.cseq in self._updates:  # a retransmission
            if self._final is not None:
                self._wire.send(self._final, self._source)
            elif self._provisional:
                self._wire.send(self._provisional, self._source)
            return
        self._updates.add(message.cseq)
        self._source = self._asked_from
        if not self._is_answered or self._hang_up is not None:
            self._reply(message, 491)
            return
        self._invite = message
        if message.body.strip():
            remote = read_description(message.body)
            if not remote.has_mu_law:
                self._reply(message, 488)
                return
            self._hear(remote)
        self._final = self._reply(message, 200, body=self._description())
        self._await_ack()

    def _on_ack(self, message: Message) -> None:
        self._cancel("final")
        self._cancel("no_ack")
        if not self._is_answered:
            self._over(CallEnd.FAR_END)  # of a refusal
            return
        if message.body.strip():
            self._hear(read_description(message.body))
        if self.call.acknowledged_at is None:
            self.call.acknowledged_at = self._wire.clock.now()
            if self.phone.hang_up_after_s is not None:
                self._after("hang_up", self.phone.hang_up_after_s, self.hang_up)

    def _on_bye(self, message: Message) -> None:
        self._reply(message, 200)
        if not self._is_answered and self._final is None:
            self._final = self._reply(self._invite, 487)
        self._over(CallEnd.FAR_END)

    def _on_cancel(self, message: Message) -> None:
        self._reply(message, 200)
        if self._final is None:
            self._refuse(487)

    # --- answering

    def _answer(self) -> None:
        if self._final is not None or self.is_over:
            return
        try:
            self._open_speech()
        except OSError:
            self._refuse(500)
            return
        self._is_answered = True
        self._cancel("expires")
        self.call.answered_at = self._wire.clock.now()
        self._final = self._reply(self._invite, 200, body=self._description())
        self._hear(self._remote)
        self._await_ack()

    def _refuse(self, status: int) -> None:
        if self._final is not None:
            return
        self._cancel_timers()
        self.call.ended_at = self._wire.clock.now()
        self.call.ended_by = CallEnd.FAR_END if status == 487 else CallEnd.PHONE  # noqa: PLR2004
        self._final = self._reply(self._invite, status)
        self._repeat("final", self._final, self._source)
        self._after("no_ack", self._wire.give_up_s, lambda: self._over(CallEnd.PHONE))

    def _await_ack(self) -> None:
        assert self._final is not None
        self._repeat("final", self._final, self._source)
        self._after("no_ack", self._wire.give_up_s, self._on_no_ack)

    def _on_no_ack(self) -> None:
        """Give up an answer that nobody acknowledged, with a BYE (RFC 3261 13.3.1.4)."""
        self._cseq += 1
        self._wire.send(self._bye(), self._next_hop())
        self._over(CallEnd.NOT_ACKNOWLEDGED)

    def _description(self) -> str:
        assert self._speech is not None
        self._version += 1
        return describe(self._wire.host, self._speech.port, self._session, self._version)

    # --- speech

    def _open_speech(self) -> None:
        default_hz = TONE_OF_CALLED_HZ if self.call.was_offered else TONE_OF_CALLER_HZ
        tone_hz = self.phone.tone_hz or default_hz
        self._speech = Speech(self._wire.host, tone_hz, self._wire.loop)
        if not self.phone.is_silent:
            self._wire.ticker.add(self._speech)

    def _hear(self, remote: Remote) -> None:
        """Send where the other side asks for it, or nowhere (hold)."""
        self._remote = remote
        if self._speech is not None:
            self._speech.remote = remote.address

    def counters(self) -> PhoneCall:
        """Return the call with its counters brought up to date."""
        if self._speech is not None:
            self.call.rtp_sent = self._speech.n_sent
            self.call.rtp_received = self._speech.n_received
            self.call.heard_hz = self._speech.ear.heard_hz
        return self.call

    def _stop_speech(self) -> None:
        if self._speech is not None:
            self.counters()
            self._wire.ticker.remove(self._speech)
            self._speech.close()
            self._speech = None

    # --- sending

    def _reply(self, request: Message, status: int, *, body: str = "") -> bytes:
        extra = (self._contact, "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, INFO")
        datagram = request.answer(status, self.tag, body=body, extra=extra)
        self._wire.send(datagram, self._source if request is self._invite else self._asked_from)
        return datagram

    def _next_hop(self) -> Address:
        routes = self._invite.all("record-route")
        hop = routes[0] if routes else self._invite.get("contact")
        return address_of(uri_of(hop)) or self._source

    def _bye(self) -> bytes:
        target = uri_of(self._invite.get("contact"))
        branch = f"z9hG4bK{secrets.token_hex(8)}"
        lines = [
            f"BYE {target} SIP/2.0",
            f"Via: SIP/2.0/UDP {self._wire.host}:{self._wire.port};branch={branch}",
            *(f"Route: {route}" for route in self._invite.all("record-route")),
            f"From: {self._invite.get('to').partition(';tag=')[0]};tag={self.tag}",
            f"To: {self._invite.get('from')}",
            f"Call-ID: {self._invite.get('call-id')}",
            f"CSeq: {self._cseq} BYE",
            "Max-Forwards: 70",
        ]
        return write(lines)

    def _repeat(self, name: str, datagram: bytes, to: Address) -> None:
        """Send again until cancelled, after T1, doubling up to T2: UDP loses packets."""

        def again(wait_s: float) -> None:
            self._wire.send(datagram, to)
            longer_s = min(2 * wait_s, T2_S)
            self._after(name, longer_s, lambda: again(longer_s))

        self._after(name, T1_S, lambda: again(T1_S))

    def _over(self, by: CallEnd) -> None:
        self._cancel_timers()
        self._stop_speech()
        if self.call.ended_at is None:
            self.call.ended_at, self.call.ended_by = self._wire.clock.now(), by
        self.is_over = True

    # --- timers

    def _after(self, name: str, wait_s: float, callback: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = self._wire.loop.call_later(wait_s, callback)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _cancel_timers(self) -> None:
        for name in tuple(self._timers):
            self._cancel(name)
