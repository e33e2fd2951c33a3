"""Is what was converted nearer to the voice it should have than to the one it came from? Cosines of GE2E voices with both.

NaturalSpeech 2 (section 5.7.1) shows conversion by examples only; SECS to the target above SECS to the source is ours to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import ge2e, speaker_similarity, statistics


def measure(targets: Sequence[np.ndarray], sources: Sequence[np.ndarray], audios: Sequence[np.ndarray | None], rate: int = ge2e.RATE,
            progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: cosine with the prompt of the `target` and with the `source` recording, all `[s]` at `rate` Hz; 0 where there is no output."""
    rows = []
    heard = zip(*(files.resample_all(some, rate, ge2e.RATE) for some in (targets, sources, audios)), strict=True)
    for parts in tqdm.tqdm(heard, "voice change", len(audios), mininterval=2, disable=not progress):
        target, source, mine = map(speaker_similarity.voice, parts)
        rows.append({"target": 0.0, "source": 0.0, "missing": True} if mine is None else
                    {"target": float(target @ mine), "source": float(source @ mine)})
    return rows


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `secs_target_*`, `secs_source_*` and `secs_turned_*`, how many are nearer to the target in per cent."""
    about = dict(seed=seed, evaluator=ge2e.name(__name__), missing=statistics.missing(rows), reference="prompt of the target and source recording",
                 averaging="mean over items; a missing output scores 0", level=speaker_similarity.LEVEL, **fingerprint)
    turned = [100.0 * (row["target"] > row["source"]) for row in rows]
    return [*(statistics.score(f"secs_{side}_{condition}", [row[side] for row in rows], unit="cosine", **about) for side in ("target", "source")),
            statistics.score(f"secs_turned_{condition}", turned, unit="%", **about)]
