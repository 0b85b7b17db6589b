"""SIP messages as the telephones need them: read, answer, write. Pure.

Lenient as far ends must be, and small: one request or answer per datagram, compact names known.
"""

import re
from dataclasses import dataclass, field
from typing import Self

_COMPACT = {
    "v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length",
    "c": "content-type", "k": "supported",
}  # fmt: skip
_URI = re.compile(r"<([^>]+)>|^\s*([^;\s]+)")
_TAG = re.compile(r";\s*tag=([^;\s>]+)", re.IGNORECASE)
_HOST = re.compile(r"sips?:(?:[^@]*@)?\[?([^;:>\]]+)\]?(?::(\d+))?", re.IGNORECASE)
_USER = re.compile(r"sips?:([^@;>]+)@", re.IGNORECASE)
SIP_PORT = 5060
REASONS = {
    100: "Trying", 180: "Ringing", 200: "OK", 400: "Bad Request", 481: "Call Does Not Exist",
    486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here", 404: "Not Found",
    491: "Request Pending", 500: "Server Internal Error", 501: "Not Implemented",
}  # fmt: skip


class MalformedError(ValueError):
    """Not a SIP message."""


@dataclass
class Message:
    """A request or an answer. Header names are lower case; order is kept."""

    start: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: str = ""

    @classmethod
    def parse(cls, datagram: bytes) -> Self:
        """Read a datagram.

        Raises:
            MalformedError: no SIP message, or a header is missing that every one has.
        """
        text = datagram.decode("utf-8", "replace").replace("\r\n", "\n")
        head, _, body = text.lstrip("\n").partition("\n\n")
        lines = re.sub(r"\n[ \t]+", " ", head).split("\n")
        message = cls(start=lines[0], body=body)
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise MalformedError
            key = name.strip().lower()
            message.headers.append((_COMPACT.get(key, key), value.strip()))
        required = ("via", "from", "to", "call-id", "cseq")
        if "SIP/2.0" not in message.start or not all(map(message.get, required)):
            raise MalformedError
        if len(message.start.split(None, 2)) < 3 or len(message.get("cseq").split()) != 2:  # noqa: PLR2004
            raise MalformedError
        return message

    def get(self, name: str) -> str:
        """Return a header's first value, or an empty text."""
        return next((value for key, value in self.headers if key == name), "")

    def all(self, name: str) -> list[str]:
        """Return a header's values, in order."""
        return [value for key, value in self.headers if key == name]

    @property
    def is_request(self) -> bool:
        """Whether it asks for something."""
        return not self.start.startswith("SIP/2.0 ")

    @property
    def method(self) -> str:
        """Return the method that it is, or answers to."""
        return self.get("cseq").split()[-1]

    @property
    def cseq(self) -> str:
        """Return the sequence number, as text."""
        return self.get("cseq").split()[0]

    @property
    def status(self) -> int:
        """Return an answer's status."""
        return int(self.start.split()[1])

    @property
    def branch(self) -> str:
        """Return the transaction's id."""
        return self.get("via").partition("branch=")[2].partition(";")[0]

    @property
    def to_tag(self) -> str:
        """Return the tag of To; empty outside a dialog."""
        return tag_of(self.get("to"))

    @property
    def number(self) -> str:
        """Return the number that a request is for."""
        found = _USER.match(self.start.split()[1])
        return found[1].replace("%2B", "+") if found else ""

    def answer(
        self, status: int, tag: str, *, body: str = "", extra: tuple[str, ...] = ()
    ) -> bytes:
        """Return the answer to this request, as a datagram."""
        to = self.get("to") if self.to_tag or status == 100 else f"{self.get('to')};tag={tag}"  # noqa: PLR2004
        lines = [f"SIP/2.0 {status} {REASONS[status]}"]
        lines += [f"Via: {value}" for value in self.all("via")]
        lines += [f"Record-Route: {value}" for value in self.all("record-route")]
        lines += [f"From: {self.get('from')}", f"To: {to}"]
        lines += [f"Call-ID: {self.get('call-id')}", f"CSeq: {self.get('cseq')}", *extra]
        return write(lines, body)


def write(lines: list[str], body: str = "") -> bytes:
    """Return a datagram of these header lines and this session description."""
    if body:
        lines = [*lines, "Content-Type: application/sdp"]
    lines = [*lines, f"Content-Length: {len(body.encode())}", "", ""]
    return "\r\n".join(lines).encode() + body.encode()


def tag_of(header: str) -> str:
    """Return the tag of a From or To header, or an empty text."""
    found = _TAG.search(header)
    return found[1] if found else ""


def uri_of(header: str) -> str:
    """Return the address in a Contact or Record-Route header."""
    found = _URI.search(header)
    return (found[1] or found[2]) if found else ""


def address_of(uri: str) -> tuple[str, int] | None:
    """Return host and port of a SIP address; None if it has none."""
    found = _HOST.match(uri)
    return (found[1], int(found[2] or SIP_PORT)) if found else None


# --- session descriptions


def describe(host: str, port: int, session: int, version: int) -> str:
    """Return a session description: mu-law both ways."""
    lines = [
        "v=0", f"o=phone {session} {version} IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0",
        f"m=audio {port} RTP/AVP 0", "a=rtpmap:0 PCMU/8000", "a=ptime:20", "a=sendrecv",
    ]  # fmt: skip
    return "\r\n".join(lines) + "\r\n"


@dataclass(frozen=True)
class Remote:
    """Where the other side wants its speech; `address` None = nowhere, for now."""

    address: tuple[str, int] | None
    has_mu_law: bool


def read_description(body: str) -> Remote:
    """Return what a session description asks of us."""
    lines = [line.strip() for line in body.replace("\r\n", "\n").split("\n")]
    audio = next((index for index, line in enumerate(lines) if line.startswith("m=audio ")), None)
    if audio is None:
        return Remote(None, has_mu_law=False)
    _, port_text, _, *formats = lines[audio].split()
    hosts = [line.split()[-1] for line in lines if line.startswith("c=IN IP4 ")]
    after_audio = [line.split()[-1] for line in lines[audio:] if line.startswith("c=IN IP4 ")]
    host = (after_audio or hosts or ["0.0.0.0"])[0]  # noqa: S104
    port = int(port_text.partition("/")[0])
    wants_none = {"a=inactive", "a=sendonly"} & set(lines) or host == "0.0.0.0"  # noqa: S104
    address = None if wants_none or port in {0, 9} else (host, port)
    return Remote(address, has_mu_law="0" in formats)
