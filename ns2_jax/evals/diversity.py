"""How different are syntheses of one text in one voice with other seeds? Mean differences between all pairs of takes.

A system that says a sentence in one way only has learnt an average; one whose voice changes with the seed has lost the prompt.
So read `diversity_mcd`, `_f0`, `_pitch` and `_duration` (higher: livelier) beside `diversity_voice` (lower: the same speaker), and
beside word error: noise differs from noise too. Takes that are equal sample for sample differ by exactly 0.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import acoustic_distance, ge2e, speaker_similarity, statistics
from ns2_jax.maths import pitch, spectral

RATE = acoustic_distance.RATE
UNITS = {"mcd": "dB", "f0": "cents", "pitch": "cents", "duration": "%", "voice": "1 - cosine"}


def check() -> None:
    """Raises FileNotFoundError when the weights of the speaker encoder are not installed."""
    ge2e.find_weights()


def mean_pitch(f0: np.ndarray) -> float | None:
    """Cents over 1 Hz: the mean over the voiced frames of F0 in Hz; None without any."""
    voiced = f0[f0 > 0].astype(np.float64)
    return float(1200 * np.log2(voiced).mean()) if voiced.size else None


def row(takes: Sequence[np.ndarray | None]) -> dict[str, Any]:
    """Mean differences between the usable takes `[s]` at RATE of one item, and how many those are; None where no pair has it.

    `mcd` (dB) and `f0` (RMSE in cents over frames voiced on both sides) along the cheapest pairing of frames, `pitch` (cents between
    the mean log F0), `duration` (% of the pair's mean, without silence at the ends), `voice` (1 - cosine of GE2E voices).
    """
    good = [take for take in takes if acoustic_distance.usable(take)]
    if len(good) < 2:
        return {"missing": True, "takes": len(good)}
    tracks = acoustic_distance.tracks(good)
    lengths = [len(files.trim_silence(take, RATE)) for take in good]
    voices = [speaker_similarity.voice(take) for take in good]
    tones = [mean_pitch(f0) for _, f0 in tracks]
    pairs = []
    for a, b in itertools.combinations(range(len(good)), 2):
        if np.array_equal(good[a], good[b]):
            pairs.append(dict.fromkeys(UNITS, 0.0))
            continue
        apart = acoustic_distance.compare(tracks[a], tracks[b])
        pairs.append({
            "mcd": apart["mcd"], "f0": apart["f0_cents"],
            "pitch": None if None in (tones[a], tones[b]) else abs(tones[a] - tones[b]),
            "duration": 200 * abs(lengths[a] - lengths[b]) / (lengths[a] + lengths[b]),
            "voice": max(1 - float(voices[a] @ voices[b]), 0.0)})
    values = {key: [pair[key] for pair in pairs if pair[key] is not None] for key in UNITS}
    return {"takes": len(good)} | {key: float(np.mean(found)) if found else None for key, found in values.items()}


def measure(takes: Sequence[Sequence[np.ndarray | None]], rate: int = RATE, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item from its takes `[s]` at `rate` Hz: syntheses of the same text and prompt with other seeds."""
    watched = tqdm.tqdm(takes, "diversity", mininterval=2, disable=not progress)
    return [row(files.resample_all(mine, rate, RATE)) for mine in watched]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `diversity_mcd_*`, `_f0_*`, `_pitch_*`, `_duration_*`, `_voice_*` over the items with two takes and more."""
    there = [one for one in rows if not one.get("missing")]
    distance = f"ns2_jax {statistics.code(pitch, spectral, acoustic_distance, __name__)}, exact DTW of librosa {importlib.metadata.version('librosa')}"
    lines = []
    for key, unit in UNITS.items():
        values = [one[key] for one in there if one[key] is not None]
        if values:
            lines.append(statistics.score(
                f"diversity_{key}_{condition}", values, unit=unit, seed=seed, evaluator=ge2e.name(__name__) if key == "voice" else distance,
                averaging="mean over pairs of takes, then over items", takes=sorted({one["takes"] for one in there}),
                missing=len(rows) - len(there), without=len(there) - len(values), **fingerprint))
    return lines
