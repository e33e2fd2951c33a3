"""A room around a recording and noise under it: what corpora are put into (`data_pipelines.rooms`) and prompts (`evals.surroundings`).

A room is exponentially decaying noise behind the direct sound (Polack, "La transmission de l'énergie sonore dans les salles", 1988). The
direct sound stays where it was, so that phone times and pitch remain true.
"""

from __future__ import annotations

import numpy as np

GAP = 0.0025  # seconds between the direct sound and the room's


def impulse(rate: int, rt60: float, direct: float, rng: np.random.Generator) -> np.ndarray:
    """Impulse response float64 `[s]` whose tail falls by 60 dB in `rt60` seconds and has `direct` dB less energy than its first sample, 1."""
    t = np.arange(int(round(rt60 * rate))) / rate
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60) * (t >= GAP)
    tail *= 10 ** (-direct / 20) / np.sqrt(np.square(tail).sum())
    tail[0] = 1.0
    return tail


def power(audio: np.ndarray) -> float:
    """Mean square of `audio [s]`."""
    return float(np.square(audio, dtype=np.float64).mean())


def as_loud_as(made: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`made [s]` with the power of `like [s]`: float32."""
    return (made * np.sqrt(power(like) / max(power(made), 1e-12))).astype(np.float32)


def reverberate(audio: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`audio [s]` in the room of this impulse response `[s]`, as long as it was and as loud on average: float32."""
    size = 1 << (len(audio) + len(response) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[: len(audio)]
    return as_loud_as(wet, audio)


def mix(audio: np.ndarray, other: np.ndarray, snr: float, level: float | None = None) -> np.ndarray:
    """`audio [s]` with `other [s]` so scaled that its power is `snr` dB under that of the audio, or under `level` (RMS) where given: float32."""
    level = np.sqrt(power(audio)) if level is None else level
    return (audio + other * (level * 10 ** (-snr / 20) / np.sqrt(max(power(other), 1e-12)))).astype(np.float32)
