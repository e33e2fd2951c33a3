"""Prosody similarity of NaturalSpeech 2 (section 4.4): phone durations and pitch, compared as distributions and in pairs.

With the prompt, whose words are others: absolute differences of mean, deviation, skewness and kurtosis of both sequences.
With the recording of the same words: correlation and root mean square error of the sequences phone by phone. The paper
gives no units; ours are frames of 12.5 ms and Hz.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ns2_jax.evals import statistics
from ns2_jax.maths import pitch
from ns2_jax.text import phones as inventory

FRAME = 0.0125  # seconds
MOMENTS = ("mean", "deviation", "skewness", "kurtosis")
FEWEST = 5  # values under which a distribution has no shape to compare


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Phones of an utterance with the sample where each ends, and F0 in Hz (0 unvoiced) for every `hop` samples at `rate` Hz."""

    phones: Sequence[str]
    ends: np.ndarray
    f0: np.ndarray
    rate: int
    hop: int


def spoken(audios: Sequence[np.ndarray], phones: Sequence[Sequence[Any]], ends: Sequence[np.ndarray], rate: int) -> list[Spoken]:
    """Utterances `[s]` at `rate` Hz with their phones (names or ids) and ends; F0 every 10 ms is tracked here."""
    hop = rate // 100
    names = [inventory.names(one) if len(one) and not isinstance(one[0], str) else list(one) for one in phones]
    return [Spoken(*parts, rate, hop) for parts in zip(names, ends, pitch.track_all(audios, rate, hop), strict=True)]


def sequences(spoken: Spoken) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(phones without silences, their durations in frames of 12.5 ms, their mean F0 over voiced frames, NaN without any)."""
    ends = np.asarray(spoken.ends, np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    middle = (np.arange(len(spoken.f0)) + 0.5) * spoken.hop
    names, durations, pitches = [], [], []
    for name, start, end in zip(spoken.phones, starts, ends, strict=True):
        if name in (inventory.SILENCE, inventory.PADDING):
            continue
        inside = spoken.f0[(middle >= start) & (middle < end)]
        voiced = inside[inside > 0]
        names.append(name)
        durations.append((end - start) / spoken.rate / FRAME)
        pitches.append(float(voiced.mean()) if voiced.size else np.nan)
    return names, np.asarray(durations), np.asarray(pitches)


def moments(values: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, skewness and excess kurtosis `[4]`; the last two are 0 for values that do not vary."""
    values = np.asarray(values, np.float64)
    mean, deviation = values.mean(), values.std()
    if deviation < 1e-9 * max(1.0, abs(mean)):
        return np.array([mean, 0.0, 0.0, 0.0])
    unit = (values - mean) / deviation
    return np.array([mean, deviation, (unit**3).mean(), (unit**4).mean() - 3])


def with_prompt(prompt: Spoken, spoken: Spoken) -> dict[str, float]:
    """`duration_mean` ... `pitch_kurtosis`: absolute differences of moments. What has under FEWEST values is left out."""
    out = {}
    for name, a, b in zip(("duration", "pitch"), sequences(prompt)[1:], sequences(spoken)[1:]):
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        if min(len(a), len(b)) >= FEWEST:
            out |= {f"{name}_{moment}": float(x) for moment, x in zip(MOMENTS, np.abs(moments(a) - moments(b)))}
    return out


def with_recording(recording: Spoken, spoken: Spoken) -> dict[str, float]:
    """`duration_correlation`, `duration_rmse` (frames), `pitch_correlation`, `pitch_rmse` (Hz) of phones in pairs.

    Only where both say the same phones (silences apart); pitch only over phones voiced on both sides.
    """
    (names, *ours), (theirs, *others) = sequences(spoken), sequences(recording)
    out = {}
    if names != theirs:
        return out
    for name, a, b in zip(("duration", "pitch"), others, ours):
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        if len(a) >= FEWEST:
            out[f"{name}_rmse"] = float(np.sqrt(np.mean(np.square(a - b))))
            if a.std() > 0 and b.std() > 0:
                out[f"{name}_correlation"] = float(np.corrcoef(a, b)[0, 1])
    return out


UNITS = {"duration_mean": "frames", "duration_deviation": "frames", "pitch_mean": "Hz", "pitch_deviation": "Hz",
         "duration_rmse": "frames", "pitch_rmse": "Hz"}


def measure(prompts: Sequence[Spoken], recordings: Sequence[Spoken], spoken: Sequence[Spoken | None]) -> list[dict[str, float] | None]:
    """One row per item: `with_prompt` and `with_recording` (None: no output)."""
    return [None if one is None else {**with_prompt(prompt, one), **with_recording(recording, one)}
            for prompt, recording, one in zip(prompts, recordings, spoken, strict=True)]


def summarise(condition: str, rows: Sequence[dict[str, float] | None], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `prosody_<what>_<condition>`, each over the items that have it."""
    lines = []
    for key in dict.fromkeys(key for row in rows for key in row or ()):
        values = [row[key] for row in rows if row is not None and key in row]
        lines.append(statistics.score(
            f"prosody_{key}_{condition}", values, unit=UNITS.get(key, ""), seed=seed, averaging="mean over the items that have it",
            evaluator=f"ns2_jax {statistics.code(pitch, __name__)}, NaturalSpeech 2 section 4.4", frame=f"{1000 * FRAME:g} ms",
            missing=statistics.missing(rows),
            without=sum(row is not None and key not in row for row in rows), **fingerprint))
    return lines
