"""What a decoder that trained on windows loses, or gains, on whole utterances: the same loss, of the same frames with the same noise.

Its convolutions met zeros at both edges of every window; inside an utterance they meet none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ns2_jax.evals import statistics

PLACES = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Of the training schedule, from clean to noisy."""


def summarise(losses: Mapping[str, Sequence[np.ndarray]], seed: int, **fingerprint: Any) -> list[dict[str, Any]]:
    """Condition ("whole", "64", ...) -> every item's losses `[places, frames]` -> lines `window_loss_*`, and `window_ratio_*` of the windowed
    over the whole: above 1 the whole is easier. Lines have both `by_place` of the schedule."""
    about = dict(seed=seed, evaluator=f"ns2_jax {statistics.code(__name__)}", places=list(PLACES), **fingerprint)
    sums = {name: np.stack([item.sum(-1) for item in items]) for name, items in losses.items()}  # [items, places]
    frames = np.array([item.shape[-1] for item in losses["whole"]], np.float64)
    lines = []
    for name, found in sums.items():
        line = statistics.score(f"window_loss_{name}", found.mean(-1), frames, averaging="over all frames and places", **about)
        lines.append(line | {"by_place": (found.sum(0) / frames.sum()).tolist()})
    for name in sums.keys() - {"whole"}:
        line = statistics.score(f"window_ratio_{name}", sums[name].mean(-1), sums["whole"].mean(-1), averaging="of the sums over all frames", **about)
        lines.append(line | {"by_place": (sums[name].sum(0) / sums["whole"].sum(0)).tolist()})
    return lines
