"""What a model hears of a prompt: its codes, and for those that go on from it (VALL-E) the phones that are said in it."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.text import front, phones as inventory

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model
    from ns2_jax.inference.speech import Prompt, Voice


@dataclasses.dataclass(frozen=True)
class Said:
    """A recording (file name, or samples with their rate) and what it says. With `seconds` only so much of it is heard, from its beginning;
    which of the words those are an aligner finds (`Model.aligner`)."""

    voice: Voice
    text: str
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Heard:
    """Codes int32 `[u, q]`, the words in them, and frames of each of their phones (empty where nobody measured)."""

    codes: np.ndarray
    words: front.Words = dataclasses.field(default_factory=list)
    durations: tuple[int, ...] = ()

    @property
    def phones(self) -> tuple[str, ...]:
        return tuple(phone for word in self.words for phone in word.phones)


def parts(prompt: Prompt) -> list[Any]:
    """The recordings of a prompt, one or several."""
    one = isinstance(prompt, (str, os.PathLike, Said)) or isinstance(prompt, tuple) and len(prompt) == 2 and isinstance(prompt[0], np.ndarray)
    return [prompt] if one else list(prompt)


def times(aligner: Model, audio: np.ndarray, rate: int, words: front.Words) -> tuple[front.Words, np.ndarray]:
    """(the words that are there: a pause that nobody makes is not, the ends of their phones in samples at `rate`).

    Raises ValueError for audio that is too short for them.
    """
    from ns2_jax.inference import aligning  # here, because it imports the model, which imports this

    spoken = files.resample(audio, rate, aligner.rate)
    found = aligning.align(aligner, spoken, inventory.ids([phone for word in words for phone in word.phones]))
    if found.score < aligning.SHORTEST:
        raise ValueError(f"{len(audio) / rate:.2f} s hold fewer frames than the text has phones; is it the text of this recording?")
    there, kept, at = found.durations > 0, [], 0
    for word in words:
        if there[at : at + len(word.phones)].all():
            kept.append(word)
        at += len(word.phones)
    return kept, found.ends[there] / len(spoken) * len(audio)


def divide(words: front.Words, phones: int) -> tuple[front.Words, front.Words]:
    """The first so many phones, and the others; a word in which that is belongs to both with its phones there."""
    first, second = [], []
    for word in words:
        count = min(phones, len(word.phones))
        phones -= count
        if count:
            first.append(word._replace(phones=word.phones[:count]))
        if count < len(word.phones):
            second.append(word._replace(phones=word.phones[count:]))
    return first, second


def hear(model: Model, prompt: Prompt, lexicon: Any, language: str) -> Heard:
    """Of a model that does not ask what its prompts say, the codes alone. Raises ValueError where a text is needed and missing, where it is not that
    of its recording, or where a recording must be cut and no aligner says where its words are."""
    if not model.continues:
        return Heard(model.prompt(prompt))
    codes, words, durations = [], [], []
    for said in parts(prompt):
        if not isinstance(said, Said) or not said.text.strip():
            raise ValueError(f"{model.name} goes on from its prompt and must be told what it says: --prompt_text, or inference.Said(voice, text)")
        left = (model.longest_prompt - sum(map(len, codes)), max(b["p"] for b in model.buckets) - len(model.text_ids(words)))
        found, _ = cut(model, said, front.words(said.text, lexicon, language), *left)
        if len(found.codes):
            codes, words, durations = [*codes, found.codes], words + found.words, [*durations, *found.durations]
    if not codes or not words:
        raise ValueError("the prompt holds no whole phone that the model could hear")
    return Heard(np.concatenate(codes), words, tuple(durations))


def cut(model: Model, said: Said, words: front.Words, frames: int, phones: int) -> tuple[Heard, front.Words]:
    """(what is heard of a recording that says `words`, the words behind it): whole phones, at most so many frames and phones."""
    audio = model.listen(said.voice)
    limit = min(frames, int(said.seconds * model.rate / model.hop) or frames)
    count = sum(len(word.phones) for word in words)
    if model.aligner is None:
        if len(audio) // model.hop > limit or count > phones:
            seconds = limit * model.hop / model.rate
            raise ValueError(f"the prompt has {len(audio) / model.rate:.1f} s, {model.name} hears {seconds:.1f} s and {phones} phones of one: give "
                             "a shorter recording with its text, or an aligner (Model.aligner), which finds where to cut")
        return Heard(model.encode(audio), list(words)), []
    words, ends = times(model.aligner, audio, model.rate, words)
    edges, at, total = np.rint(ends / model.hop).astype(int), np.arange(1, len(ends) + 1), len(audio) // model.hop
    if total < len(edges):
        raise ValueError(f"{len(audio) / model.rate:.2f} s are {total} frames and the text has {len(edges)} phones; is it the text of this "
                         "recording?")
    edges = np.maximum.accumulate(np.maximum(edges, at) - at) + at  # the aligner's frames may be shorter: each phone has one of ours at least,
    edges = np.minimum(edges, total - len(edges) + at)  # and all leave room for those that follow
    kept = min(int(np.searchsorted(edges, limit, side="right")), phones)
    if not kept:
        return Heard(np.zeros((0, model.system.sizes["q"]), np.int32)), list(words)
    first, second = divide(words, kept)
    end = int(edges[kept - 1])
    codes = model.encode(audio[: (end + model.context) * model.hop])[:end]
    return Heard(codes, first, tuple(np.diff(edges[:kept], prepend=0).tolist())), second
