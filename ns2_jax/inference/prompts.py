"""What a model hears of a prompt: its codes, for those that go on from it (VALL-E) the phones that are said in it, and whose recordings it is."""

from __future__ import annotations

import dataclasses
import numbers
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from ns2_jax.audio import files
from ns2_jax.inference import provenance
from ns2_jax.text import front, phones as inventory

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model
    from ns2_jax.inference.speech import Prompt, Voice

SHORT_PROMPT = 1.0  # seconds under which a voice is poorly known: accepted, with a warning
MIN_PROMPT = 0.1
MAX_PROMPT = 600.0
HEARD_PROMPT = 30.0  # seconds of all prompts that are listened to; the rest is left out


@dataclasses.dataclass(frozen=True)
class Said:
    """A recording (file name, or samples with their rate) and what it says. With `seconds` only so much of it is heard, from its beginning;
    which of the words those are an aligner finds (`Model.aligner`)."""

    voice: Voice
    text: str
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Heard:
    """A voice that was listened to, to be given as a prompt again and again.

    `codes` int32 `[u, q]` (of a system that hears something else, those frames); for a model that goes on from its prompt the `words` in them
    and the frames of each of their phones, `durations` (empty where nobody measured); the SHA-256 of every recording, `digests`; what was done
    to them, `notes`; and the `consent` where one was given.
    """

    codes: np.ndarray
    words: front.Words = dataclasses.field(default_factory=list)
    durations: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    consent: provenance.Consent | None = None

    @property
    def phones(self) -> tuple[str, ...]:
        return tuple(phone for word in self.words for phone in word.phones)

    def first(self, frames: int) -> Heard:
        """Only so much of it, whole phones where its words are known. Raises ValueError where nobody measured when those are said."""
        if len(self.codes) <= frames:
            return self
        words, durations = self.words, self.durations
        if words:
            if not durations:
                raise ValueError(f"only {frames} of {len(self.codes)} frames of the prompt can be heard, and nobody measured when its words are said")
            ends = np.cumsum(durations)
            kept = int(np.searchsorted(ends, frames, side="right"))
            words, durations, frames = divide(words, kept)[0], durations[:kept], int(ends[kept - 1]) if kept else 0
        note = f"the first {frames} of {len(self.codes)} frames are kept"
        return dataclasses.replace(self, codes=self.codes[:frames], words=words, durations=durations, notes=(*self.notes, note))

    def allowed(self, by: provenance.Consent | None) -> Heard:
        """With a consent. Raises ValueError where it is about other recordings."""
        if by is not None:
            by.check(self.digests)
        return dataclasses.replace(self, consent=by)


def parts(prompt: Prompt) -> list[Any]:
    """The recordings of a prompt, one or several; samples as numpy has them. Raises AudioError for what is no recording."""
    samples = lambda given: isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], numbers.Real)
    one = isinstance(prompt, (str, os.PathLike, Said)) or samples(prompt)
    found = [prompt] if one else list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    for i, given in enumerate(found):
        told = given.voice if isinstance(given, Said) else given
        if samples(told):
            audio, rate = np.asarray(told[0]), told[1]
            if not 0 < rate <= files.MAX_RATE:
                raise files.AudioError("unreadable", f"prompt: sample rate {rate} Hz is out of range (1 to {files.MAX_RATE})")
            found[i] = dataclasses.replace(given, voice=(audio, int(rate))) if isinstance(given, Said) else (audio, int(rate))
        elif not isinstance(told, (str, os.PathLike)):
            raise files.AudioError("unreadable", f"a {type(told).__name__} is no prompt: expected the name of a file, or (samples, rate), or several")
    return found


def listen(model: Model, recording: Said | Voice) -> tuple[np.ndarray, str]:
    """(what `Model.listen` gives of a recording, what was done to it)."""
    said = recording if isinstance(recording, Said) else Said(recording, "")
    if isinstance(said.voice, tuple):
        audio, rate = said.voice
        audio = files.resample(files.check(audio, rate, "prompt", MIN_PROMPT, MAX_PROMPT), rate, model.rate)
    else:
        audio = files.read(said.voice, model.rate, MIN_PROMPT, MAX_PROMPT)
    if said.seconds:
        audio = audio[: int(said.seconds * model.rate)]
    spoken = files.trim_silence(audio, model.rate)
    loudness, whole = files.active_rms(spoken, model.rate), len(audio) / model.rate
    level = files.match_loudness(spoken, model.rate)
    gain = 20 * np.log10(files.active_rms(level, model.rate) / loudness)
    return level, f"{whole:.2f} s at {model.rate} Hz, {whole - len(level) / model.rate:.2f} s of silence cut off, {gain:+.1f} dB"


def voice(model: Model, prompt: Prompt | None) -> Heard:
    """What `Model.hear` gives, without a look at what the recordings say."""
    if isinstance(prompt, Heard):
        return prompt
    if prompt is None:
        width = model.hop if model.unit == "audio" else int(model.system.sizes["q" if model.unit == "codes" else "c"])
        return Heard(np.zeros((0, width), np.int32 if model.unit == "codes" else np.float32))
    windows = "window" in model.programs["durations"].options if model.speaks else False
    most = max(model.longest_prompt, int(HEARD_PROMPT * model.rate / model.hop)) if windows else model.longest_prompt
    found, seconds, digests, notes = [], 0.0, [], []
    for recording in parts(prompt):
        audio, note = listen(model, recording)  # first: it refuses by the header what would take long to hash
        digests.append(provenance.digest(recording.voice if isinstance(recording, Said) else recording))
        notes.append(note)
        seconds += len(audio) / model.rate
        left = most - sum(map(len, found))
        if left > 0:
            found.append((model.framed(audio) if model.unit == "audio" else model.encode(audio[: (left + model.context) * model.hop]))[:left])
    if not found:
        raise files.AudioError("missing", "no prompt is given: a recording of the voice, or several")
    if seconds < SHORT_PROMPT:
        logging.warning("the prompt holds %.2f s of speech; a voice needs 2 s or more to be heard well", seconds)
    if (heard := sum(map(len, found)) * model.hop / model.rate) < seconds - 1:
        notes.append(f"the first {heard:.1f} s of {seconds:.1f} are heard")
    return Heard(np.concatenate(found), digests=tuple(digests), notes=tuple(notes))


def times(aligner: Model, audio: np.ndarray, rate: int, words: front.Words) -> tuple[front.Words, np.ndarray]:
    """(the words that are there: a pause that nobody makes is not, the ends of their phones in samples at `rate`).

    Logs a warning for words that are hardly heard in it. Raises ValueError for audio that is too short for them.
    """
    from ns2_jax.inference import aligning  # here, because it imports the model, which imports this

    spoken = files.resample(audio, rate, aligner.rate)
    found = aligning.align(aligner, spoken, inventory.ids([phone for word in words for phone in word.phones]))
    if found.score < aligning.SHORTEST:
        raise ValueError(f"{len(audio) / rate:.2f} s hold fewer frames than the text has phones; is it the text of this recording?")
    if found.score < aligning.DOUBTFUL:
        logging.warning(
            "the text says little about its recording (%.2f nats a frame; below %.2f it is as a rule that of another, or there is much noise): "
            "when its words are said is uncertain: %.60r", found.score, aligning.DOUBTFUL, " ".join(word.text for word in words if word.text))
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


def hear(model: Model, prompt: Prompt | None, lexicon: Any, language: str) -> Heard:
    """What was heard already, as it is; of a model that does not ask what its prompts say, `voice`.

    Raises ValueError where a text is needed and missing, where it is not that of its recording, or where a recording must be cut and no aligner
    says where its words are.
    """
    if not model.continues:
        return voice(model, prompt)
    untold = f"{model.name} goes on from its prompt and must be told what it says: --prompt_text, or inference.Said(voice, text)"
    if isinstance(prompt, Heard):
        if not prompt.words:
            raise ValueError(untold)
        return prompt
    codes, words, durations, digests, notes = [], [], [], [], []
    for said in parts(prompt):
        if not isinstance(said, Said) or not said.text.strip():
            raise ValueError(untold)
        left = (model.longest_prompt - sum(map(len, codes)), max(b["p"] for b in model.buckets) - len(model.text_ids(words)))
        found, _ = cut(model, said, front.words(said.text, lexicon, language), *left)
        digests, notes = [*digests, *found.digests], [*notes, *found.notes]
        if len(found.codes):
            codes, words, durations = [*codes, found.codes], words + found.words, [*durations, *found.durations]
    if not codes or not words:
        raise ValueError("the prompt holds no whole phone that the model could hear")
    return Heard(np.concatenate(codes), words, tuple(durations), tuple(digests), tuple(notes))


def cut(model: Model, said: Said, words: front.Words, frames: int, phones: int) -> tuple[Heard, front.Words]:
    """(what is heard of a recording that says `words`, the words behind it): whole phones, at most so many frames and phones."""
    (audio, note), known = listen(model, said.voice), (provenance.digest(said.voice),)
    limit = min(frames, int(said.seconds * model.rate / model.hop) or frames)
    count = sum(len(word.phones) for word in words)
    if model.aligner is None:
        if len(audio) // model.hop > limit or count > phones:
            seconds = limit * model.hop / model.rate
            raise ValueError(f"the prompt has {len(audio) / model.rate:.1f} s, {model.name} hears {seconds:.1f} s and {phones} phones of one: give "
                             "a shorter recording with its text, or an aligner, which finds where to cut: model.aligner = "
                             "inference.load(inference.ALIGNER)")
        return Heard(model.encode(audio), list(words), digests=known, notes=(note,)), []
    words, ends = times(model.aligner, audio, model.rate, words)
    edges, at, total = np.rint(ends / model.hop).astype(int), np.arange(1, len(ends) + 1), len(audio) // model.hop
    if total < len(edges):
        raise ValueError(f"{len(audio) / model.rate:.2f} s are {total} frames and the text has {len(edges)} phones; is it the text of this "
                         "recording?")
    edges = np.maximum.accumulate(np.maximum(edges, at) - at) + at  # the aligner's frames may be shorter: each phone has one of ours at least,
    edges = np.minimum(edges, total - len(edges) + at)  # and all leave room for those that follow
    kept = min(int(np.searchsorted(edges, limit, side="right")), phones)
    if not kept:
        return Heard(np.zeros((0, model.system.sizes["q"]), np.int32), digests=known, notes=(note,)), list(words)
    first, second = divide(words, kept)
    end = int(edges[kept - 1])
    codes = model.encode(audio[: (end + model.context) * model.hop])[:end]
    if (left := (len(audio) // model.hop - end) * model.hop / model.rate) > 1:
        note += f", the last {left:.1f} s left out"
    return Heard(codes, first, tuple(np.diff(edges[:kept], prepend=0).tolist()), known, (note,)), second
