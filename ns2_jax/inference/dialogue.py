"""A conversation: a transcript with turns and a prompt for each speaker -> one waveform.

`speak`: every turn in the voice of its speaker's prompt, one after the other with a short pause between. What one says does not colour how the
next begins. `speak_at_once`: as SoundStorm's dialogues (section 4.2), all turns in one decoding of a model that was trained on conversations
(`data_pipelines.dialogues`), both speakers' prompts before it.

Where the second leaves the paper: there the prompt is a recorded exchange whose words are known. Here it is a recording of each, and nobody knows
the words; who speaks first is heard first, so that turns go on alternating.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.inference import provenance, speech
from ns2_jax.inference.prompts import Heard
from ns2_jax.inference.score import Score, of_words
from ns2_jax.text import front, phones as inventory

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

GAP = 0.2  # seconds between turns, besides the silence that each begins and ends with
TURN = re.compile(r"\s*([^:\n]{1,40}):\s*(\S.*?)\s*$")


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """`speech` of all turns; `turns` are (speaker, first sample, end sample)."""

    speech: speech.Speech
    turns: tuple[tuple[str, int, int], ...]


def read(text: str) -> list[tuple[str, str]]:
    """Lines of `speaker: what they say` -> (speaker, text) of every turn; empty lines and those that begin with # are passed over.

    Raises ValueError naming a line that is no turn, and for a transcript without one.
    """
    turns = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not (found := TURN.match(line)):
            raise ValueError(f"line {number} of the transcript is {line.strip()[:60]!r}; expected SPEAKER: what they say")
        turns.append((found[1].strip(), found[2]))
    if not turns:
        raise ValueError("the transcript has no turn; expected lines of SPEAKER: what they say")
    return turns


def check(turns: Sequence[tuple[str, str]], prompts: Mapping[str, Any]) -> None:
    """Raises ValueError for a speaker without a prompt."""
    if missing := next((who for who, _ in turns if who not in prompts), None):
        raise ValueError(f"no prompt for speaker {missing!r}; there are prompts for {sorted(prompts)}")


def speak(
    model: Model, turns: Sequence[tuple[str, str]], prompts: Mapping[str, speech.Prompt], seed: int = 0, gap: float = GAP, **options: Any,
) -> Dialogue:
    """The `turns` (speaker, text), each in the voice of `prompts[speaker]`, `gap` seconds apart. `options` are those of `Model.speak_batch`.

    Raises ValueError for a speaker without a prompt, and as `Model.speak_batch`.
    """
    check(turns, prompts)
    seed = provenance.whole(seed)
    made = model.speak_batch([(text, prompts[who]) for who, text in turns], [seed + i for i in range(len(turns))], **options)
    pause = round(gap * model.rate / model.hop)
    return join(model, [who for who, _ in turns], made, pause)


def speak_at_once(
    model: Model, turns: Sequence[tuple[str, str]], prompts: Mapping[str, speech.Prompt], seed: int = 0, lexicon: Any = None, language: str = "en",
    **options: Any,
) -> Dialogue:
    """The `turns` of two speakers in one decoding. Of each prompt half of the longest that the model hears is heard; turns of one speaker that
    follow each other are one. A model that decides on lengths as it speaks (`Model.paces`) does not say when: its turns are as even as its phones.

    Raises ValueError for a model whose prompt does not stand before what it says or that does not read phones, other than two speakers, one
    without a prompt, and a conversation longer than the largest bucket.
    """
    if "infill" not in model.programs or not model.speaks or model.unit_text:
        raise ValueError(f"{model.name} does not hold a conversation at once: that takes a SoundStorm that reads phones")
    turns = [(who, " ".join(text for _, text in some)) for who, some in itertools.groupby(turns, key=lambda turn: turn[0])]
    check(turns, prompts)
    everyone = list(dict.fromkeys(who for who, _ in turns))
    if len(everyone) != 2:
        raise ValueError(f"a conversation at once is of two speakers, this one of {len(everyone)}: {', '.join(everyone)}")
    voices = [model.hear(prompts[who], lexicon, language).first(model.longest_prompt // 2) for who in everyone]
    heard = provenance.together([provenance.origin(model, one.digests, seed, {}, one.consent) for one in voices])
    voice = Heard(np.concatenate([one.codes for one in voices]), digests=heard.prompts, consent=heard.consent)
    table = model.pronunciations(lexicon)
    words = [word for _, text in turns for word in front.words(text, table, language)]  # each turn with silence at both ends
    made = model.speak(of_words(words), voice, seed, **options)
    if len(made.pieces) > 1:
        most = model.buckets[-1]["t"] * model.hop / model.rate
        raise ValueError(f"the conversation is longer than {model.name} speaks at once ({most:.1f} s); turn by turn it may be")
    edges = [0, *made.ends[inventory.turns(inventory.ids(made.phones))].tolist()]
    return Dialogue(made, tuple((who, *edge) for (who, _), edge in zip(turns, itertools.pairwise(edges), strict=True)))


def join(model: Model, speakers: Sequence[str], made: Sequence[speech.Speech], pause: int) -> Dialogue:
    """The turns one after the other, `pause` frames of silence between; they belong to the last phone before them."""
    audio, f0, ends, words, phones, seconds, hz, turns, at = [], [], [], [], [], [], [], [], 0
    for i, (who, one) in enumerate(zip(speakers, made, strict=True)):
        silent = pause if i < len(made) - 1 else 0
        audio.append(np.pad(one.audio, (0, silent * model.hop)))
        f0.append(np.pad(one.f0, (0, silent)) if len(one.f0) else one.f0)
        later = one.ends + at
        later[-1] += silent * model.hop
        ends.append(later)
        words += [(word, begin + at, end + at) for word, begin, end in one.words]
        turns.append((who, at, at + len(one.audio)))
        phones += one.phones
        lengths = list(one.score.seconds)
        lengths[-1] += silent * model.hop / model.rate
        seconds, hz = seconds + lengths, hz + list(one.score.hz)
        at += len(audio[-1])
    score = Score([word for one in made for word in one.score.words], tuple(seconds), tuple(hz))
    pieces = tuple(piece for one in made for piece in one.pieces)
    whole = speech.Speech(np.concatenate(audio), model.rate, tuple(phones), np.concatenate(ends), tuple(words), np.concatenate(f0).astype(np.float32),
                          model.hop, pieces, score, provenance.together([one.origin for one in made]))
    return Dialogue(whole, tuple(turns))
