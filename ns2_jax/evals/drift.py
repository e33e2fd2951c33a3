"""Does the voice stay the same? Cosines of GE2E voices between the first three seconds and the pieces after them.

SoundStorm (section 4) measures the same with an embedding of its own, which is not published: our numbers do not compare with
its table, only with each other and with the recordings'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import ge2e, speaker_similarity, statistics

PIECE = 3.0  # seconds


def cosines(audio: np.ndarray | None) -> list[float]:
    """Of `[s]` at 16 kHz: cosine of every later whole piece with the first; empty for audio under two pieces. A silent piece has 0."""
    size = int(PIECE * ge2e.RATE)
    if audio is None or len(audio) < 2 * size:
        return []
    voices = [speaker_similarity.voice(audio[at : at + size]) for at in range(0, len(audio) - size + 1, size)]
    first, *later = [np.zeros(256) if one is None else one for one in voices]
    return [float(first @ one) for one in later]


def measure(audios: Sequence[np.ndarray | None], rate: int = ge2e.RATE, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: its cosines, as many as it has later pieces."""
    watched = tqdm.tqdm(files.resample_all(audios, rate, ge2e.RATE), "drift", mininterval=2, disable=not progress)
    return [{"cosines": cosines(audio)} | ({"missing": True} if audio is None else {}) for audio in watched]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `consistency_*` (mean cosine of the later pieces) and `drift_*` (how much lower the last is than the second, over
    items of three pieces and more). Items that are too short are left out and counted."""
    about = dict(unit="cosine", seed=seed, evaluator=ge2e.name(__name__), piece=f"{PIECE:g} s", missing=statistics.missing(rows), **fingerprint)
    lines = []
    for name, least, value in (("consistency", 1, np.mean), ("drift", 2, lambda found: found[0] - found[-1])):
        values = [float(value(row["cosines"])) for row in rows if len(row["cosines"]) >= least]
        if values:
            lines.append(statistics.score(f"{name}_{condition}", values, averaging="mean over items that are long enough",
                                          short=len(rows) - len(values), **about))
    return lines
