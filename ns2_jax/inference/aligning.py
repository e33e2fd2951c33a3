"""Recordings and their phones through an aligner: which phone is spoken from where to where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ns2_jax.inference.model import Model, ladder

SHORTEST = -1e6
"""A score per frame under which there was no alignment at all: fewer frames than phones."""
DOUBTFUL = 0.6
"""A score per frame, of the repository's aligner, that no wrong text reached. Of 6 recordings and 25 syntheses and coded copies of them the right
texts score 1.80 to 2.66 (31 pairs), those of other sentences -1.44 to 0.42 (775 pairs). With white noise 20 dB under the speech (6 recordings) it
is 1.11 to 1.71 and up to 0.50 (30 pairs); at 10 dB right and wrong overlap, 0.33 to 1.03 and up to 0.57: a low score may be noise. All are
synthetic voices."""


@dataclasses.dataclass(frozen=True)
class Aligned:
    """Frames per phone int32 `[p]` (a pause that is not there has none), their ends in samples int32 `[p]`, the last the length of the
    recording, and the score: how much the phones say about a frame, mean, nats."""

    durations: np.ndarray
    ends: np.ndarray
    score: float


def align(model: Model, audio: np.ndarray, phones: np.ndarray) -> Aligned:
    """`audio` float32 `[s]` at the model's rate, `phones` ids `[p]`; raises as `align_all`."""
    return align_all(model, [audio], [phones])[0]


def align_all(model: Model, audios: Sequence[np.ndarray], phones: Sequence[np.ndarray]) -> list[Aligned]:
    """Every recording with its phones; those of about one length run together, and each has the result that it has alone.

    Durations sum to `len(audio) // hop`. A phone but a pause has at least one frame, or `score` is under SHORTEST. Raises ValueError
    for a model that does not align, a recording under one frame, no phones, or ids outside the model's table.
    """
    if "align" not in model.programs:
        raise ValueError(f"{model.name} does not align; give the run or export of an aligner (configs/aligner.py)")
    frames = [len(audio) // model.hop for audio in audios]
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, (n, ids) in enumerate(zip(frames, phones, strict=True)):
        if not n or not len(ids):
            raise ValueError(f"utterance {i} has {n} whole frames and {len(ids)} phones; an alignment needs one of each")
        if min(ids) < 1 or max(ids) >= model.system.phones:
            known = f"{model.name} knows 1 to {model.system.phones - 1}"
            raise ValueError(f"utterance {i} has phone ids from {min(ids)} to {max(ids)}; {known}")
        shapes.setdefault((ladder(n), ladder(len(ids))), []).append(i)
    out: list[Aligned | None] = [None] * len(audios)
    for (t, p), members in sorted(shapes.items()):
        rows = [{"audio": np.pad(np.asarray(audios[i][: frames[i] * model.hop], np.float32), (0, (t - frames[i]) * model.hop)),
                 "phones": np.pad(np.asarray(phones[i], np.int32), (0, p - len(phones[i]))), "frames": frames[i]} for i in members]
        for i, found in zip(members, model.run("align", rows, sizes={"t": t, "s": t * model.hop, "p": p})):
            durations = found["durations"][: len(phones[i])]
            ends = np.cumsum(durations) * model.hop
            ends[ends == frames[i] * model.hop] = len(audios[i])
            out[i] = Aligned(durations, ends.astype(np.int32), float(found["score"]))
    return out
