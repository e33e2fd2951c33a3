"""Several takes of an utterance, of which the best is kept: what a recogniser understands, in the prompt's voice.

VALL-E 2 sorts its five samples by similarity as far as 0.3 and then by word error. GE2E's cosines have no such scale, so here words come first and
the voice decides between equals. The scores of what was chosen by a recogniser are not those of another one: their fingerprint says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ns2_jax.audio import files
from ns2_jax.evals import ge2e, speaker_similarity, word_error


def best(texts: Sequence[str], prompts: Sequence[np.ndarray], takes: Sequence[Sequence[np.ndarray | None]], rate: int,
         recogniser: str = "pocketsphinx", processes: int = 1, progress: bool = True) -> list[int]:
    """Which of the takes of each item is the best: fewest word errors, then the highest cosine with the prompt's voice, then the first. `takes[k][i]`
    `[s]` at `rate` Hz, None where there is none: all words wrong. Raises ValueError for a silent prompt."""
    voices, ranks = speaker_similarity.references(prompts, rate), []
    for audios in takes:
        heard = word_error.measure(texts, audios, rate=rate, recogniser=recogniser, processes=processes, progress=progress)
        mine = [speaker_similarity.voice(audio) for audio in files.resample_all(audios, rate, ge2e.RATE)]
        ranks.append([(row["errors"], 1.0 if one is None else -float(own @ one)) for row, one, own in zip(heard, mine, voices, strict=True)])
    return [min(range(len(takes)), key=lambda k: ranks[k][i]) for i in range(len(texts))]  # noqa: B023  used at once
