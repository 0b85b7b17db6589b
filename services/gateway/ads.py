"""The ads that we hand out: data beside this file, and the media that belongs to them.

No request goes to an ad partner (R-F4): the one ad is our own, and its sound is made by our own
code when the process starts: a real WAV file of 15 s that any browser plays.
"""

import array
import hashlib
import io
import json
import math
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from services.gateway.domain import Ad

_FILE = Path(__file__).with_name("ads.json")
_SAMPLES_PER_S = 8_000
_AMPLITUDE = 9_000
_MELODY_HZ = (523.25, 659.25, 783.99, 1046.5, 783.99, 659.25)
_NOTE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Media:
    """A file in memory, as it is served."""

    content: bytes
    content_type: str
    etag: str


def load_ads(path: Path = _FILE) -> tuple[Ad, ...]:
    """Read the list of ads.

    Raises:
        pydantic.ValidationError: the file is not a list of ads.
    """
    return TypeAdapter(tuple[Ad, ...]).validate_python(json.loads(path.read_text()))


def make_media(ads: tuple[Ad, ...]) -> dict[str, Media]:
    """Return the media of the ads by file name."""
    media_by_name: dict[str, Media] = {}
    for ad in ads:
        content = make_jingle(ad.duration_ms)
        digest = hashlib.sha256(content).hexdigest()[:16]
        media_by_name[ad.media] = Media(
            content=content, content_type="audio/wav", etag=f'"{digest}"'
        )
    return media_by_name


def make_jingle(duration_ms: int) -> bytes:
    """Return a WAV file (mono, 16 bit, 8 kHz: 16 kB a second) of exactly that length."""
    n_samples = duration_ms * _SAMPLES_PER_S // 1000
    samples = array.array("h", (_sample(n / _SAMPLES_PER_S) for n in range(n_samples)))
    if sys.byteorder == "big":  # WAV is little-endian
        samples.byteswap()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(_SAMPLES_PER_S)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def _sample(at_s: float) -> int:
    """Return one sample: a note of the melody that fades."""
    note, within_s = divmod(at_s, _NOTE_S)
    pitch_hz = _MELODY_HZ[int(note) % len(_MELODY_HZ)]
    return round(_AMPLITUDE * math.exp(-3 * within_s) * math.sin(2 * math.pi * pitch_hz * at_s))
