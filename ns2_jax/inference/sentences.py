"""Text sentence by sentence, speeches joined again, and a model made ready: what first audio depends on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.inference import prompts, score as scoring, speech
from ns2_jax.inference.score import Score
from ns2_jax.inference.speech import PAUSE, Prompt, Speech
from ns2_jax.text import front

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

LEAST = 8  # phones of a sentence that is spoken by itself: shorter ones are spoken poorly alone
ENDS = (".", "?", "!")
HUM = 3.0  # seconds of the prompt of a warm-up, at least


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
    """What `Model.warm_up` says: in each bucket the programs run on what fills it, whatever they say."""
    if not model.speaks:
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    if prompt is not None:
        voices = [model.hear(prompt)]
    else:
        seconds = max(HUM, model.longest_prompt * model.hop / model.rate)
        time_s = np.arange(int(seconds * model.rate)) / model.rate
        hum = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 6)).astype(np.float32) * np.float32(0.1)
        heard = prompts.voice(model, (hum, model.rate))
        rooms = sorted({model.room(bucket.get("u", 0)) for bucket in model.buckets})
        voices = [dataclasses.replace(heard.first(room), words=_syllables(1) if model.continues else []) for room in rooms]
    made = []
    for index in range(len(model.buckets)):
        for number in rows:
            begin = time.monotonic()
            for voice in voices:
                _rehearse(model, index, voice, number, dict(options))
            made.append((index, number, time.monotonic() - begin))
    return made


def _syllables(number: int) -> front.Words:
    return [front.Word("", PAUSE), *[front.Word("a", ("ax",))] * number, front.Word("", PAUSE)]


def _rehearse(model: Model, index: int, voice: prompts.Heard, number: int, options: dict[str, Any]) -> None:
    """Runs all that speaks in bucket `index`, on so many rows."""
    bucket, room = model.buckets[index], model.room(len(voice.codes))
    count = bucket["p"] - 2
    while len(model.text_ids(words := _syllables(count))) > bucket["p"]:  # units, which may be shorter than words
        count -= 1
    piece = speech.Piece(0, words, 0, voice.codes, bucket=index, said=voice.words)
    piece.durations = np.full(len(piece.phones), bucket["t"] // len(piece.phones))
    piece.f0 = np.zeros(piece.durations.sum(), np.float32)
    shift, sizes, windows = options.pop("pitch_shift", None) or 0, {"p": bucket["p"], "u": room}, speech.windows(model, room)
    early = {name: options.pop(name) for name in list(options) if name in model.programs["durations"].options}
    shared, options = speech.scheduled(model, "sample", options)
    row, keys = speech.inputs_of(model, piece, bucket, room), [0] * number
    model.run("durations", [row] * number, keys, sizes, **early, **windows)
    if "contour" in model.programs:
        model.run("contour", [row] * number, keys, sizes | {"t": bucket["t"]}, **windows)
    elif shift:
        raise ValueError(f"pitch_shift={shift:g}: {model.name} has no pitch that could be shifted")
    model.run("sample", [row | shared] * number, keys, sizes | {"t": bucket["t"], "s": bucket["t"] * model.hop}, **options, **windows)
