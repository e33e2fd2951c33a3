"""Is the prompt's way of speaking kept? The range of its pitch, its height, and its pace, against those of the output.

VALL-E (section 4) claims that the emotion of the prompt is kept, and shows examples only; what can be measured of it is how lively the pitch is.
Range: semitones between the 10th and the 90th percentile of F0 over voiced frames of 10 ms; height: their median, in semitones over 55 Hz. Both
sides are tracked here (`maths.pitch`). Pace: phones a second from the first sound to the last, pauses included. A prompt and an output say
different words, so a system that keeps everything does not read 0: the same numbers between two recordings of one speaker are the floor, and
the correlation over items tells whether anything is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.evals import recognisers, room, statistics
from ns2_jax.maths import pitch

RATE = 16000
FEWEST = 30  # voiced frames of 10 ms
PERCENTILES = (10.0, 90.0)
NAMES = {"f0_range": ("range of F0", "semitones"), "f0_height": ("median of F0", "semitones"), "pace": ("phones a second", "phones/s")}


def of(f0: np.ndarray) -> dict[str, float] | None:
    """Of F0 in Hz `[t]`, 0 unvoiced: `f0_range` and `f0_height` in semitones; None for under FEWEST voiced frames."""
    voiced = f0[f0 > 0]
    if len(voiced) < FEWEST:
        return None
    semitones = 12 * np.log2(voiced / 55.0)
    low, high = np.percentile(semitones, PERCENTILES)
    return {"f0_range": float(high - low), "f0_height": float(np.median(semitones))}


def measure(prompts: Sequence[np.ndarray | None], audios: Sequence[np.ndarray | None], rate: int = RATE, progress: bool = True,
            phones: tuple[Sequence[int], Sequence[int]] | None = None) -> list[dict[str, Any]]:
    """One row per item from prompts and outputs `[s]` at `rate` Hz: both sides' numbers and how far they are apart, None where a side has none.
    `phones` are how many the prompts say and how many the outputs; without them there is no pace."""
    del progress  # tracking goes in batches and takes seconds
    silent, rows = np.zeros(RATE, np.float32), []
    there = files.resample_all([audio if recognisers.has_signal(audio) else silent for audio in (*prompts, *audios)], rate, RATE)
    sides = [of(f0) or {} for f0 in pitch.track_all(there, RATE)]
    if phones is not None:
        seconds = [len(files.trim_silence(audio, RATE, margin=0.0)) / RATE for audio in there]
        sides = [side | ({"pace": count / length} if length else {})
                 for side, count, length in zip(sides, (*phones[0], *phones[1]), seconds, strict=True)]
    for one, two, audio in zip(sides[: len(prompts)], sides[len(prompts) :], audios, strict=True):
        row: dict[str, Any] = {} if recognisers.has_signal(audio) else {"missing": True}
        for name in (name for name in NAMES if not row.get("missing") and (name != "pace" or phones is not None)):
            row |= {f"{name}_prompt": one.get(name), name: two.get(name)}
            row[f"{name}_error"] = abs(one[name] - two[name]) if name in one and name in two else None
        rows.append(row)
    return rows


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `f0_range_error_*`, `f0_height_error_*` (semitones), `pace_error_*` (phones a second) and, where it is defined, `f0_range_kept_*`,
    `f0_height_kept_*`, `pace_kept_*`: the correlation of the outputs with their prompts over items."""
    missing, lines = sum(bool(one.get("missing")) for one in rows), []
    for name, (what, unit) in NAMES.items():
        there = [one for one in rows if one.get(f"{name}_error") is not None]
        if not there:
            continue
        about = dict(seed=seed, evaluator=f"ns2_jax {statistics.code(__name__)}, {what}, percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g}",
                     missing=missing, without=len(rows) - missing - len(there), reference="prompt", **fingerprint)
        how = "over items in which both sides can be measured"
        errors = [one[f"{name}_error"] for one in there]
        lines.append(statistics.score(f"{name}_error_{condition}", errors, unit=unit, averaging=f"mean {how}", **about))
        found = room.correlation(*(np.array([one[key] for one in there]) for key in (f"{name}_prompt", name)), seed)
        if found:
            line = statistics.score(f"{name}_kept_{condition}", [found[0]], averaging=f"correlation {how}", **about)
            lines.append(line | {"interval": found[1], "n": len(there)})
    return lines
