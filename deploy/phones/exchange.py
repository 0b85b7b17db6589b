"""One UDP socket that plays the trunk for many telephones."""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable

from deploy.phones.line import GIVE_UP_S, Line, Wire
from deploy.phones.message import MalformedError, Message, tag_of
from deploy.phones.phone import Phone
from deploy.phones.speech import Ticker
from services.chassis.clock import Clock, SystemClock

DATAGRAMS_PER_WAKE_MAX = 64
RECEIVE_BUFFER_BYTES = 1 << 20
OVER_KEPT_MAX = 512
"""Dialogs that are over stay this many more, to answer retransmissions (a lost 200 to a BYE)."""
PHONES_MAX = 10_000

Address = tuple[str, int]


class PhoneExchange:
    """Telephones behind one SIP address.

    A number that nobody plugged in gets a telephone made by `new_phone`, or 404 without it.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        new_phone: Callable[[str], Phone] | None = None,
        clock: Clock | None = None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        """Prepare; port 0 = any, known after `start`.

        `give_up_s`: how long to wait for an ACK, or for the answer to a BYE.
        """
        self.host = host
        self.port = port
        self.phones: dict[str, Phone] = {}
        self._new_phone = new_phone
        self._clock = clock or SystemClock()
        self._give_up_s = give_up_s
        self._lines: OrderedDict[tuple[str, str], Line] = OrderedDict()
        self._over: OrderedDict[tuple[str, str], Line] = OrderedDict()
        self._socket: socket.socket | None = None
        self._wire: Wire | None = None

    def plug(self, *phones: Phone) -> None:
        """Connect telephones, under their numbers."""
        for phone in phones:
            self.phones[phone.number] = phone

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setblocking(False)  # noqa: FBT003
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        try:
            opened.bind((self.host, self.port))
        except OSError:
            opened.close()
            raise
        self._socket = opened
        self.port = opened.getsockname()[1]
        ticker = Ticker(loop)
        self._wire = Wire(
            self.host, self.port, self._send, ticker, self._clock, loop, self._give_up_s
        )
        loop.add_reader(opened, self._receive)

    async def stop(self) -> None:
        """Drop all calls and close."""
        if self._socket is None or self._wire is None:
            return
        for line in (*self._lines.values(), *self._over.values()):
            line.close()
        self._wire.ticker.close()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None

    def hang_up(self, phone: Phone | None = None) -> None:
        """End the calls of one telephone, or of all."""
        for line in tuple(self._lines.values()):
            if phone is None or line.phone is phone:
                line.hang_up()

    def refresh(self) -> None:
        """Bring the counters of running calls up to date (those of ended calls are)."""
        for line in self._lines.values():
            line.counters()

    @property
    def n_active(self) -> int:
        """Return how many calls ring or talk."""
        return sum(line.call.ended_at is None for line in self._lines.values())

    # --- wire

    def _send(self, datagram: bytes, to: Address) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(datagram, to)
        except OSError:
            return  # lost, as UDP may: retransmission mends it

    def _receive(self) -> None:
        for _ in range(DATAGRAMS_PER_WAKE_MAX):
            if self._socket is None:
                return
            try:
                datagram, source = self._socket.recvfrom(65_535)
            except OSError:
                return
            try:
                message = Message.parse(datagram)
                self._take(message, source)
            except (MalformedError, ValueError):
                continue  # not SIP: no answer

    def _take(self, message: Message, source: Address) -> None:
        assert self._wire is not None
        header = "from" if message.is_request else "to"
        key = (message.get("call-id"), tag_of(message.get(header)))
        line = self._lines.get(key) or self._over.get(key)
        if line is not None:
            line.take(message, source)
            self._sweep()
        elif message.is_request:
            self._take_stray(message, source, key)

    def _take_stray(self, message: Message, source: Address, key: tuple[str, str]) -> None:
        assert self._wire is not None
        if message.method == "INVITE" and not message.to_tag:
            phone = self._phone(message.number)
            if phone is not None:
                line = self._lines[key] = Line(message, source, phone, self._wire)
                line.ring()
                return
            self._send(message.answer(404, "none"), source)
        elif message.method == "OPTIONS":
            self._send(message.answer(200, "none"), source)
        elif message.method != "ACK":
            self._send(message.answer(481, "none"), source)

    def _phone(self, number: str) -> Phone | None:
        phone = self.phones.get(number)
        if phone is None and self._new_phone is not None and number:
            if len(self.phones) >= PHONES_MAX:
                return None
            phone = self._new_phone(number)
            self.plug(phone)
        return phone

    def _sweep(self) -> None:
        """Move what is over aside; forget the oldest of it."""
        for key in [key for key, line in self._lines.items() if line.is_over]:
            self._over[key] = self._lines.pop(key)
        while len(self._over) > OVER_KEPT_MAX:
            self._over.popitem(last=False)
