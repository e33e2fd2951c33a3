"""A recording that goes on: its beginning is real, and the model says the rest of the text (VALL-E-continual)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.inference import prompts, provenance, score, speech
from ns2_jax.text import front

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

SECONDS = 3.0
"""Of the recording that are kept (VALL-E, section 5.1)."""


def continue_all(
    model: Model, requests: Sequence[tuple[speech.Voice, str]], seeds: int | Sequence[int] = 0, seconds: float = SECONDS, lexicon: Any = None,
    language: str = "en", failures: dict[int, str] | None = None, consent: provenance.Consent | None = None,
    **options: Any,
) -> list[speech.Speech | None]:
    """Every (recording, all of its text) -> its first `seconds`, up to the end of a phone, by the codec, and the rest of the text after it.

    `Model.aligner` finds where the recording is in its text. Errors and `failures` as `Model.speak_batch`. Raises ValueError for a recording whose
    whole text is said in its first seconds or that the `consent` is not about, and for a model without an aligner.
    """
    if not model.speaks:
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    if model.aligner is None:
        raise ValueError("a continuation needs Model.aligner, which finds the words of the recording's first seconds")
    seeds = speech.each_seed(seeds, len(requests))
    table, attempt, failed = model.pronunciations(lexicon), *speech.attempts(failures)
    origins: dict[int, provenance.Origin] = {}
    begun: dict[int, prompts.Heard] = {}
    pieces: list[speech.Piece] = []

    def begin(i: int) -> list[speech.Piece]:
        voice, text = requests[i]
        provenance.allowed([voice], consent)
        widest = max(bucket["p"] for bucket in model.buckets)
        begun[i], rest = prompts.cut(model, prompts.Said(voice, text, seconds), front.words(text, table, language), model.longest_prompt, widest)
        if not begun[i].words or all(word.phones == speech.PAUSE for word in rest):
            held = "none" if not begun[i].words else "all"
            raise ValueError(f"the first {seconds:g} s of the recording hold {held} of its text; nothing can be continued")
        origins[i] = provenance.origin(model, begun[i].digests, seeds[i], {**options, "seconds": seconds}, consent)
        said = begun[i].words if model.continues else []
        return speech.pieces_of(model, i, score.of_words(rest), seeds[i], begun[i].codes, said)

    for i in range(len(requests)):
        pieces += attempt(i, begin, i) or []
    made = speech.finish(model, pieces, origins, len(requests), 0.0, dict(options), attempt, failed)
    return [None if one is None else _after(model, begun[i], speech.as_loud_as_prompts(one)) for i, one in enumerate(made)]


def _after(model: Model, begun: prompts.Heard, rest: speech.Speech) -> speech.Speech:
    """The beginning, as the codec says it, and what was spoken, as one."""
    head = model.decode(begun.codes)
    period = model.hop / model.rate
    ends = np.cumsum(begun.durations) * model.hop
    words, at = [], 0
    edges = np.concatenate([[0], ends])
    for word in begun.words:
        if word.text and word.phones != speech.PAUSE:
            words.append((word.text, int(edges[at]), int(edges[at + len(word.phones)])))
        at += len(word.phones)
    later = [(text, first + len(head), last + len(head)) for text, first, last in rest.words]
    whole = score.Score([*begun.words, *rest.score.words], tuple(n * period for n in begun.durations) + rest.score.seconds,
                  (None,) * len(begun.durations) + rest.score.hz)
    return speech.Speech(
        np.concatenate([head, rest.audio]), rest.rate, begun.phones + rest.phones, np.concatenate([ends, rest.ends + len(head)]),
        (*words, *later), np.zeros(0, np.float32), rest.hop, rest.pieces, whole, rest.origin)
