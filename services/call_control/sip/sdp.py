"""Session descriptions as text (RFC 4566, RFC 3264): what third-party call control does to them.

The two phones talk to each other directly; we only carry their descriptions across. Pure.
"""

import re

_ORIGIN = re.compile(r"(?m)^o=\S+ \S+ \S+ (.*?)\r?$")
_MEDIA = re.compile(r"(?m)^(?:m=\S+ \d+|c=.*?)\s*$|^m=\S+ \d+")
DISCARD_PORT = 9


def with_our_origin(description: str, session: int, version: int) -> str:
    """Return the description with us as its origin.

    Towards each leg the controller owns `o=` (RFC 3725 3): the same session id in all
    descriptions of a leg and a version one higher per change, else strict phones refuse it.
    """
    origin = rf"o=minutes {session} {version} \1" + "\r"
    return _ORIGIN.sub(origin, description, count=1)


def without_origin(description: str) -> str:
    """Return the description less its `o=` line, to compare what it describes."""
    return re.sub(r"(?m)^o=.*$", "", description)


def media_of(description: str) -> tuple[str, ...]:
    """Return where a description wants its media, for comparing."""
    return tuple(_MEDIA.findall(description))


def black_hole_answer(offer: str) -> str:
    """Return an answer that accepts every medium of the offer and carries none.

    RFC 3725 3, RFC 3264 8.4: it lets A be acknowledged while B still rings.
    """
    lines: list[str] = ["v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "c=IN IP4 0.0.0.0"]
    in_media = False
    for line in offer.replace("\r\n", "\n").split("\n"):
        if line.startswith("t="):
            lines.append(line)
        elif line.startswith("m="):
            kind, port, rest = line[2:].split(" ", 2)
            in_media = True
            lines += [f"m={kind} {DISCARD_PORT if port != '0' else 0} {rest}", "a=inactive"]
        elif in_media and line.startswith(("a=rtpmap", "a=fmtp")):
            lines.append(line)
    return "\r\n".join(lines) + "\r\n"
