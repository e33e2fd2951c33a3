"""Does a singer hit the notes? The pitch that our tracker hears against the score's, frame by frame of ten milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ns2_jax.evals import statistics
from ns2_jax.maths import pitch

CENTS = 50.0  # half a semitone


def measure(targets: Sequence[np.ndarray], audios: Sequence[np.ndarray | None], rate: int) -> list[dict[str, Any]]:
    """One row per item: `hit`, frames within CENTS, of `both` in which score and audio are voiced, of `voiced` in which the score is; and the median distance in `cents`.

    `targets` are Hz per `rate // 100` samples, 0 unvoiced. A missing audio has none of its frames.
    """
    there = [k for k, audio in enumerate(audios) if audio is not None]
    heard = dict(zip(there, pitch.track_all([audios[k] for k in there], rate, rate // 100)))
    rows = []
    for k, target in enumerate(targets):
        voiced = int((target > 0).sum())
        if k not in heard:
            rows.append({"hit": 0, "both": 0, "voiced": voiced, "cents": None, "missing": True})
            continue
        n = min(len(target), len(heard[k]))
        both = (target[:n] > 0) & (heard[k][:n] > 0)
        off = 1200 * np.abs(np.log2(heard[k][:n][both] / target[:n][both]))
        rows.append({"hit": int((off <= CENTS).sum()), "both": int(both.sum()), "voiced": voiced, "cents": float(np.median(off)) if len(off) else None})
    return rows


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `notes_hit_*`, per cent of the frames voiced in both that are within CENTS, and `notes_voiced_*`, per cent of the score's
    voiced frames that are voiced in the audio."""
    about = dict(unit="%", seed=seed, evaluator=f"ns2_jax {statistics.code(pitch, __name__)}, within {CENTS:g} cents", missing=statistics.missing(rows),
                 reference="score", **fingerprint)
    lines = []
    for name, top, bottom, how in (("notes_hit", "hit", "both", "frames voiced in both"), ("notes_voiced", "both", "voiced", "the score's voiced frames")):
        if any(row[bottom] for row in rows):
            lines.append(statistics.score(f"{name}_{condition}", [100.0 * row[top] for row in rows], [float(row[bottom]) for row in rows],
                                          averaging=f"all frames over all {how}", **about))
    return lines
