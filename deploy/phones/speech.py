"""RTP (RFC 3550) both ways: a tone out, a count and an ear in.

One ticker sends for all streams of an exchange, so that a hundred telephones cost one timer.
"""

import asyncio
import secrets
import socket
import struct

from deploy.phones.tone import LOOP_PACKETS, PACKET_S, PACKET_SAMPLES, Ear, packets_of

HEADER = struct.Struct("!BBHII")
VERSION = 0x80
MARKER = 0x80
PAYLOAD_TYPE = 0
LISTEN_EVERY = 10
"""One packet in so many is listened to: five a second tell a tone."""
DATAGRAMS_PER_WAKE_MAX = 64
BEHIND_S_MAX = 0.2
"""After a longer stall the ticker goes on from now instead of sending all it missed."""


class Speech:
    """One call's RTP stream. Sends only while `remote` is set."""

    def __init__(self, host: str, tone_hz: int, loop: asyncio.AbstractEventLoop) -> None:
        """Take a port; `close` frees it.

        Raises:
            OSError: no port is left.
        """
        self.remote: tuple[str, int] | None = None
        self.n_sent = 0
        self.n_received = 0
        self.ear = Ear()
        self._loop = loop
        self._payloads = packets_of(tone_hz)
        self._sequence = secrets.randbits(15)
        self._timestamp = secrets.randbits(31)
        self._source = secrets.randbits(32)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003
        self._socket.bind((host, 0))
        self.port: int = self._socket.getsockname()[1]
        loop.add_reader(self._socket, self._receive)

    def send(self) -> None:
        """Send the next 20 ms."""
        if self.remote is None:
            return
        marker = 0 if self.n_sent else MARKER
        header = HEADER.pack(
            VERSION, PAYLOAD_TYPE | marker, self._sequence, self._timestamp, self._source
        )
        try:
            self._socket.sendto(header + self._payloads[self.n_sent % LOOP_PACKETS], self.remote)
        except OSError:
            return  # a full buffer or a port that has closed: speech is lost, not late
        finally:
            self._sequence = (self._sequence + 1) & 0xFFFF
            self._timestamp = (self._timestamp + PACKET_SAMPLES) & 0xFFFFFFFF
        self.n_sent += 1

    def _receive(self) -> None:
        for _ in range(DATAGRAMS_PER_WAKE_MAX):
            try:
                datagram = self._socket.recv(2048)
            except OSError:
                return
            if len(datagram) <= HEADER.size or datagram[0] & 0xC0 != VERSION:
                continue
            if datagram[1] & 0x7F != PAYLOAD_TYPE:
                continue
            if self.n_received % LISTEN_EVERY == 0:
                self.ear.listen(datagram[HEADER.size :])
            self.n_received += 1

    def close(self) -> None:
        """Free the port."""
        self.remote = None
        self._loop.remove_reader(self._socket)
        self._socket.close()


class Ticker:
    """Sends for all streams, every 20 ms, without drift."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare; runs while there are streams."""
        self._loop = loop
        self._streams: set[Speech] = set()
        self._due = 0.0
        self._timer: asyncio.Handle | None = None

    def add(self, speech: Speech) -> None:
        """Send for this stream from now on."""
        self._streams.add(speech)
        if self._timer is None:
            self._due = self._loop.time()
            self._timer = self._loop.call_soon(self._tick)

    def remove(self, speech: Speech) -> None:
        """Send for it no more."""
        self._streams.discard(speech)

    def _tick(self) -> None:
        for speech in self._streams:
            speech.send()
        if not self._streams:
            self._timer = None
            return
        self._due = max(self._due + PACKET_S, self._loop.time() - BEHIND_S_MAX)
        self._timer = self._loop.call_at(self._due, self._tick)

    def close(self) -> None:
        """Stop."""
        self._streams.clear()
        if self._timer is not None:
            self._timer.cancel()
