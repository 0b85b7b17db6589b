"""Tones as G.711 mu-law, and hearing which one arrives. Pure.

A packet is 20 ms: 160 samples at 8 kHz.
"""

import math
from collections import Counter
from collections.abc import Iterable

RATE_HZ = 8_000
PACKET_SAMPLES = 160
PACKET_S = PACKET_SAMPLES / RATE_HZ
LOOP_PACKETS = 5
"""A tone of a multiple of 10 Hz repeats after 100 ms: five packets, made once."""
PEAK = 12_000
TONES_HZ = (220, 350, 440, 660, 880, 1_100)
"""What is listened for: blocks of 20 ms tell tones apart that differ by 50 Hz or more."""
LOUD = 500.0
"""Amplitude under which a block is silence."""
HEARD_BLOCKS_MIN = 2
_BIAS = 0x84
_CLIP = 32_635


def encode(sample: int) -> int:
    """Return one 16-bit sample as mu-law (ITU-T G.711)."""
    sign = 0x80 if sample < 0 else 0
    magnitude = min(abs(sample), _CLIP) + _BIAS
    exponent = magnitude.bit_length() - 8
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    return ~(sign | (exponent << 4) | mantissa) & 0xFF


def decode(byte: int) -> int:
    """Return one mu-law byte as a 16-bit sample."""
    value = ~byte & 0xFF
    exponent, mantissa = (value >> 4) & 0x07, value & 0x0F
    magnitude = (((mantissa << 3) + _BIAS) << exponent) - _BIAS
    return -magnitude if value & 0x80 else magnitude


_DECODED = tuple(decode(byte) for byte in range(256))


def packets_of(tone_hz: int) -> tuple[bytes, ...]:
    """Return the payloads of a tone, to be sent round and round."""
    assert tone_hz % 10 == 0
    step = 2 * math.pi * tone_hz / RATE_HZ
    n_samples = LOOP_PACKETS * PACKET_SAMPLES
    wave = bytes(encode(round(PEAK * math.sin(step * index))) for index in range(n_samples))
    starts = range(0, n_samples, PACKET_SAMPLES)
    return tuple(wave[start : start + PACKET_SAMPLES] for start in starts)


def amplitude(samples: Iterable[int], n_samples: int, tone_hz: int) -> float:
    """Return how strongly a tone is in the samples (Goertzel)."""
    coefficient = 2 * math.cos(2 * math.pi * tone_hz / RATE_HZ)
    before, last = 0.0, 0.0
    for sample in samples:
        before, last = last, sample + coefficient * last - before
    power = last * last + before * before - coefficient * last * before
    return 2 * math.sqrt(max(power, 0.0)) / n_samples


class Ear:
    """Counts which tone the blocks it is given hold; keeps no speech."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self._blocks: Counter[int] = Counter()

    def listen(self, payload: bytes) -> None:
        """Take in one packet's payload of mu-law."""
        if not payload:
            return
        samples = [_DECODED[byte] for byte in payload]
        strengths = {hz: amplitude(samples, len(samples), hz) for hz in TONES_HZ}
        loudest = max(strengths, key=strengths.__getitem__)
        if strengths[loudest] >= LOUD:
            self._blocks[loudest] += 1

    @property
    def heard_hz(self) -> int | None:
        """Return the tone heard most, or None for silence."""
        if not self._blocks:
            return None
        tone_hz, n_blocks = self._blocks.most_common(1)[0]
        return tone_hz if n_blocks >= HEARD_BLOCKS_MIN else None
