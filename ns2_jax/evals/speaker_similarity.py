"""SECS: cosine of GE2E voices. It is not SIM-o (WavLM) and never stands under that name.

Every recording is brought to one level first: the encoder hears power without logarithm and would otherwise score
loudness. `own` compares with the same speaker's reference, `others` with every other speaker's: read them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax.audio import files
from ns2_jax.evals import ge2e, statistics

LEVEL = 0.05


def voice(audio: np.ndarray | None) -> np.ndarray | None:
    """Unit vector `[256]` of `audio [s]` at 16 kHz, ends trimmed and level matched; None where there is no signal."""
    if not files.has_signal(audio):
        return None
    return ge2e.embed(files.match_loudness(files.trim_silence(audio, ge2e.RATE), ge2e.RATE, LEVEL))


def references(prompts: Sequence[np.ndarray], rate: int = ge2e.RATE) -> list[np.ndarray]:
    """Voices of the prompts. Raises ValueError for a silent one."""
    voices = [voice(prompt) for prompt in files.resample_all(prompts, rate, ge2e.RATE)]
    silent = [k for k, one in enumerate(voices) if one is None]
    if silent:
        raise ValueError(f"speaker similarity: prompt {silent[0]} is silent")
    return voices


def similarity(mine: np.ndarray | None, place: int, table: np.ndarray, speakers: Sequence[str], itself: Sequence[bool]) -> dict[str, Any]:
    """A voice against the references `[n, 256]`, of which `table[place]` is its own: `own` (cosine with that), `others` (mean cosine with
    those of other speakers; None when there are none) and `nearest` (whether the closest is of the right speaker). Without a voice 0.

    `itself` says which references are the very recording of this item, as the prompts of other items can be: they are left out,
    or recordings and what a codec makes of them would find themselves.
    """
    other = np.array([speaker != speakers[place] for speaker in speakers])
    cosines = table @ mine if mine is not None else np.zeros(len(table))
    closest = np.where(itself, -np.inf, cosines).argmax()
    row = {
        "own": float(cosines[place]),
        "others": float(cosines[other].mean()) if other.any() else None,
        "nearest": bool(mine is not None and speakers[int(closest)] == speakers[place])}
    return row if mine is not None else row | {"missing": True}


def measure(audios: Sequence[np.ndarray | None], table: np.ndarray, items: Sequence[Mapping[str, Any]], places: Sequence[int],
            rate: int = ge2e.RATE, progress: bool = True) -> list[dict[str, Any]]:
    """One row per item: `similarity`. `table [n, 256]` are the references of all `items` (of all hosts: their `speaker`, `source`, which
    names the recording, and `prompt_source`), `places` where these audios' items stand among them."""
    speakers = [item["speaker"] for item in items]
    watched = tqdm.tqdm(files.resample_all(audios, rate, ge2e.RATE), "voices", mininterval=2, disable=not progress)
    return [similarity(voice(audio), place, table, speakers, [item["prompt_source"] == items[place]["source"] for item in items])
            for audio, place in zip(watched, places, strict=True)]


def summarise(condition: str, rows: Sequence[dict[str, Any]], seed: int = 0, **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `secs_own_*` and, where there are several speakers, `secs_others_*` and `secs_nearest_*`."""
    common = dict(seed=seed, averaging="mean over items; a missing output scores 0", evaluator=ge2e.name(__name__),
                  reference="prompt (another recording of the speaker), the item's own recording left out", level=LEVEL, missing=statistics.missing(rows), **fingerprint)
    lines = [statistics.score(f"secs_own_{condition}", [row["own"] for row in rows], unit="cosine", **common)]
    if all(row["others"] is not None for row in rows):
        lines.append(statistics.score(f"secs_others_{condition}", [row["others"] for row in rows], unit="cosine", **common))
        nearest = [100.0 * row["nearest"] for row in rows]
        lines.append(statistics.score(f"secs_nearest_{condition}", nearest, unit="%", **common))
    return lines
