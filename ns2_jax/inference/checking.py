"""Did it say every word? An aligner looks for the phones of a synthesis in its audio.

A word is `rushed` where the aligner gives it less than RUSHED of the time that it was to take, and `missing` where that is hardly a frame
a phone, or nothing sounds in the middle of its time. In 112 recordings of the default corpus, whose times are known, 1 of 1,126 words is
doubted; one word each cut out, silenced, or said three times as fast is found in 110, 111 and 96 of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.inference import aligning
from ns2_jax.inference.speech import PAUSE, Prompt, Speech
from ns2_jax.text import phones as inventory

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

RUSHED = 0.5  # share of the time that a word was to take
SLACK = 0.04  # seconds that a boundary may be off
SQUEEZED = 1.5  # frames a phone
QUIET = 30.0  # dB under the level of the speech


@dataclasses.dataclass(frozen=True)
class Doubt:
    """A word that the aligner does not find as it was to be said: `what` is "missing" or "rushed", times in seconds."""

    word: str
    what: str
    start: float
    end: float

    def __str__(self) -> str:
        return f"{self.word!r} at {self.start:.2f} s is {self.what}"


def check(aligner: Model, speech: Speech) -> list[Doubt]:
    """The doubtful words of a synthesis, in order."""
    audio = files.resample(speech.audio, speech.rate, aligner.rate)
    found = aligning.align(aligner, audio, inventory.ids(list(speech.phones)))
    ends = np.concatenate([[0.0], np.cumsum(speech.score.seconds)])
    edges = np.concatenate([[0], np.cumsum(found.durations)]) * aligner.hop
    levels, window = files.frame_rms(audio, aligner.rate), round(0.02 * aligner.rate)
    floor = files.active_rms(audio, aligner.rate) * 10 ** (-QUIET / 20) if files.has_signal(audio) else np.inf
    lost, doubts, at = found.score < aligning.SHORTEST, [], 0  # fewer frames than phones: no word is anywhere
    for word in speech.score.words:
        first, at = at, at + len(word.phones)
        if word.phones == PAUSE:
            continue
        begin, end = ends[first], ends[at]
        taken = (edges[at] - edges[first]) / aligner.rate
        short = taken < RUSHED * (end - begin) and end - begin - taken > SLACK
        middle = np.array([0.75 * begin + 0.25 * end, 0.25 * begin + 0.75 * end]) * aligner.rate // window
        sounding = levels[int(middle[0]) : int(middle[1]) + 1].max(initial=0.0)
        if lost or sounding < floor or short and found.durations[first:at].mean() < SQUEEZED:
            doubts.append(Doubt(word.text, "missing", float(begin), float(end)))
        elif short:
            doubts.append(Doubt(word.text, "rushed", float(begin), float(end)))
    return doubts


def speak_checked(
    model: Model, aligner: Model, requests: Sequence[tuple[Any, Prompt]], seed: int = 0, most: int = 2, **options: Any
) -> list[tuple[Speech, list[Doubt], int, int]]:
    """`Model.speak_batch`; what is doubtful is spoken again with the next seeds, `most` times in all, and the take with the fewest doubts is
    kept: for each request (speech, doubts, the seed of the take, how many takes there were)."""
    takes = [(speech, check(aligner, speech), seed, 1) for speech in model.speak_batch(requests, seed, **options)]
    for later in range(seed + 1, seed + most):
        again = [i for i, (_, doubts, *_) in enumerate(takes) if doubts]
        if not again:
            break
        for i, speech in zip(again, model.speak_batch([requests[i] for i in again], later, **options)):
            doubts = check(aligner, speech)
            better = len(doubts) < len(takes[i][1])
            takes[i] = ((speech, doubts, later) if better else takes[i][:3]) + (later - seed + 1,)
    return takes
