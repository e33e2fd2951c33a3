"""Prompts in other surroundings than their recordings: a room or noise is added, to see whether a system takes it over (`room` measures that).

`reverberant:SECONDS` convolves with noise that decays by 60 dB in so many seconds, as loud in all as the direct sound; `noisy:DB` adds white noise so
many decibels below the speech. Both keep the level, and follow from the prompt's samples alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from ns2_jax.audio import acoustics, files

KINDS = {"reverberant": (0.1, 3.0, "seconds"), "noisy": (0.0, 40.0, "decibels")}


def _rng(audio: np.ndarray) -> np.random.Generator:
    """Of the samples: the same prompt always gets the same noise."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(np.asarray(audio, np.float32).tobytes()).digest()[:8], "little"))


def reverberant(audio: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """`audio [s]` in a room of RT60 `seconds`: direct sound and a tail of exponentially decaying noise of the same energy. float32 `[s]`."""
    return acoustics.reverberate(audio, acoustics.impulse(rate, seconds, 0.0, _rng(audio)))


def noisy(audio: np.ndarray, rate: int, decibels: float) -> np.ndarray:
    """`audio [s]` with white noise `decibels` below the speech's active level. float32 `[s]`."""
    white = _rng(audio).standard_normal(len(audio))
    return acoustics.as_loud_as(acoustics.mix(audio, white, decibels, files.active_rms(audio, rate)), audio)


def read(spec: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """What `reverberant:0.8` or `noisy:15` does to `(audio [s], rate)`. Raises ValueError for anything else."""
    kind, _, number = spec.partition(":")
    try:
        low, high, unit = KINDS[kind]
        value = float(number)
        if not low <= value <= high:
            raise ValueError(f"{value:g} is not in {low:g} to {high:g} {unit}")
    except (KeyError, ValueError) as error:
        raise ValueError(f"--prompts={spec}: expected reverberant:SECONDS (0.1 to 3) or noisy:DB (0 to 40)") from error
    return lambda audio, rate: {"reverberant": reverberant, "noisy": noisy}[kind](audio, rate, value)
