"""SECS: cosine of GE2E voices. It is not SIM-o (WavLM) and never stands under that name.

Every recording is brought to one level first: the encoder hears power without logarithm and would otherwise score
loudness. `own` compares with the same speaker's reference, `others` with every other speaker's: read them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.evals import ge2e, statistics

LEVEL = 0.05


def voice(audio: np.ndarray | None) -> np.ndarray | None:
    """Unit vector `[256]` of `audio [s]` at 16 kHz, ends trimmed and level matched; None where there is no signal."""
    if audio is None or audio.size == 0 or not np.isfinite(audio).all() or np.abs(audio).max() < files.SILENT:
        return None
    return ge2e.embed(files.match_loudness(files.trim_silence(audio, ge2e.RATE), ge2e.RATE, LEVEL))


def similarities(voices: Sequence[np.ndarray | None], references: Sequence[np.ndarray], speakers: Sequence[str]) -> list[dict[str, Any]]:
    """Per item: `own` (cosine with its reference), `others` (mean cosine with the references of other speakers; None
    when there are none) and `nearest` (whether the closest reference is of the right speaker). A missing voice scores 0.
    """
    table = np.stack(references)
    rows = []
    for mine, reference, speaker in zip(voices, references, speakers, strict=True):
        cosines = table @ mine if mine is not None else np.zeros(len(table))
        other = np.array([s != speaker for s in speakers])
        rows.append({
            "own": float(mine @ reference) if mine is not None else 0.0,
            "others": float(cosines[other].mean()) if other.any() else None,
            "nearest": bool(mine is not None and speakers[int(cosines.argmax())] == speaker),
        })
    return rows


def evaluate(condition: str, audios: Sequence[np.ndarray | None], prompts: Sequence[np.ndarray], speakers: Sequence[str],
             rate: int = ge2e.RATE, seed: int = 0, **fingerprint: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score lines `secs_own_*`, `secs_others_*`, `secs_nearest_*` of one condition and one row per item."""
    audios, prompts = (files.resample_all(x, rate, ge2e.RATE) for x in (audios, prompts))
    references = [voice(prompt) for prompt in prompts]
    if any(reference is None for reference in references):
        raise ValueError("speaker similarity: a prompt is silent")
    rows = similarities([voice(audio) for audio in audios], references, speakers)
    common = dict(seed=seed, averaging="mean over items; a missing output scores 0", evaluator=ge2e.name(),
                  reference="prompt (another recording of the speaker)", level=LEVEL, missing=sum(a is None for a in audios),
                  list=statistics.digest(speakers), **fingerprint)
    lines = [statistics.score(f"secs_own_{condition}", [row["own"] for row in rows], unit="cosine", **common)]
    if len(set(speakers)) > 1:
        lines.append(statistics.score(f"secs_others_{condition}", [row["others"] for row in rows], unit="cosine", **common))
        nearest = [100.0 * row["nearest"] for row in rows]
        lines.append(statistics.score(f"secs_nearest_{condition}", nearest, unit="%", **common))
    return lines, rows
