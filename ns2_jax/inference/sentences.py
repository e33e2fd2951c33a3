"""Text sentence by sentence, speeches joined again, and a model made ready: what first audio depends on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.inference import score as scoring
from ns2_jax.inference.score import Score
from ns2_jax.inference.speech import PAUSE, Prompt, Speech
from ns2_jax.text import front

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

LEAST = 8  # phones of a sentence that is spoken by itself: shorter ones are spoken poorly alone
ENDS = (".", "?", "!")
HUM = 3.0  # seconds of the prompt of a warm-up


def scores(text: str, lexicon: Mapping[str, Any] | None = None, language: str = "en") -> list[Score]:
    """The sentences of a text, each to be spoken by itself. Raises ValueError as `front.words`."""
    edge, parts, begin = front.Word("", PAUSE), [], 0
    words = front.words(text, lexicon, language)
    length = lambda part: sum(len(word.phones) for word in part if word.phones != PAUSE)
    for i, word in enumerate(words):
        last = i == len(words) - 1
        if last or word.phones == PAUSE and word.text in ENDS and length(words[begin : i + 1]) >= LEAST and length(words[i:]):
            part = words[begin : i + 1]
            if last and parts and length(part) < LEAST:
                parts[-1] += part
            else:
                parts.append(part if not begin else [edge, *part])
            begin = i + 1
    return [scoring.of_words(part) for part in parts]


def joined(speeches: Sequence[Speech]) -> Speech:
    """One speech of several that follow each other; the origin is the first one's. Raises ValueError for none, or for several rates."""
    if not speeches or len({(speech.rate, speech.hop) for speech in speeches}) > 1:
        raise ValueError(f"{len(speeches)} speeches of rates {sorted({speech.rate for speech in speeches})} can't be joined")
    starts = np.cumsum([0, *(len(speech.audio) for speech in speeches)]).tolist()
    first = speeches[0]
    score = Score([word for speech in speeches for word in speech.score.words], sum((speech.score.seconds for speech in speeches), ()),
                  sum((speech.score.hz for speech in speeches), ()))  # fmt: skip
    words = tuple((text, a + at, b + at) for speech, at in zip(speeches, starts) for text, a, b in speech.words)
    return dataclasses.replace(
        first, audio=np.concatenate([speech.audio for speech in speeches]), phones=sum((speech.phones for speech in speeches), ()),
        ends=np.concatenate([speech.ends + at for speech, at in zip(speeches, starts)]), words=words,
        f0=np.concatenate([speech.f0 for speech in speeches]), pieces=sum((speech.pieces for speech in speeches), ()), score=score)


def warm_up(model: Model, rows: Sequence[int], prompt: Prompt | None, options: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """What `Model.warm_up` says: in each bucket a score that fills it is spoken."""
    if not model.speaks:
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    if prompt is None:
        time_s = np.arange(int(HUM * model.rate)) / model.rate
        prompt = (sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 6)).astype(np.float32) * np.float32(0.1), model.rate)
    voice, made = model.hear(prompt), []
    for index, bucket in enumerate(model.buckets):
        inner, seconds = bucket["p"] - 2, bucket["t"] * model.hop / model.rate
        edge = min(seconds / bucket["p"], scoring.REST / 2)
        each = (edge, *[(seconds - 2 * edge) / inner] * inner, edge)
        score = scoring.of_phones(("sil", *["ax"] * inner, "sil"), each, (None,) * len(each))
        for number in rows:
            begin = time.monotonic()
            model.speak_batch([(score, voice)] * number, 0, **options)
            made.append((index, number, time.monotonic() - begin))
    return made
