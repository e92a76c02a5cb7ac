"""Sounds for audio models: two seconds of a random pentatonic tune."""

import io
import math
import struct
import wave

from service.sandbox.scene import Scene

_SAMPLE_RATE = 16_000
_NOTES = 8
_NOTE_SAMPLES = _SAMPLE_RATE // 4
_PENTATONIC = (0, 2, 4, 7, 9, 12)
_LOUDNESS = 12_000


def wav(scene: Scene) -> bytes:
    """Return a mono 16-bit WAV file; its tune depends on the scene."""
    rng = scene.rng()
    root_hertz = rng.choice((196.0, 220.0, 261.6, 293.7))
    samples: list[int] = []
    for _ in range(_NOTES):
        samples.extend(_note(root_hertz * 2 ** (rng.choice(_PENTATONIC) / 12)))
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return target.getvalue()


def _note(hertz: float) -> list[int]:
    step = math.tau * hertz / _SAMPLE_RATE
    return [
        int(_LOUDNESS * math.exp(-4 * i / _NOTE_SAMPLES) * min(1, i / 80) * math.sin(i * step))
        for i in range(_NOTE_SAMPLES)
    ]
