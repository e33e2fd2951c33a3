"""Speaking: texts become pieces that fit a bucket, pieces become durations and pitch, then audio, then one `Speech` a text.

Length is predicted first, unless a `Score` gives it; a text over the largest bucket is cut in two at a sentence end, else at a pause, else
between two words, and its halves again until all fit. These pieces are cross-faded.
"""

from __future__ import annotations

import dataclasses
import itertools
import numbers
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from ns2_jax.audio import files
from ns2_jax.inference import prompts, provenance, score as scores
from ns2_jax.inference.prompts import Heard, Said
from ns2_jax.inference.score import Score
from ns2_jax.text import front, phones as inventory

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

Voice = str | os.PathLike | tuple[np.ndarray, int]
Prompt = Voice | Said | Heard | Sequence[Voice | Said]
PAUSE = (inventory.SILENCE,)
FADE = 0.005  # seconds on either side of a joint between two pieces
PITCH_SHIFT = 24.0  # semitones up or down, at most


@dataclasses.dataclass(frozen=True)
class Speech:
    """Generated speech: `audio` float32 [s] at `rate` Hz; `ends[i]` the sample where `phones[i]` ends.

    `words` are (word, first sample, end sample); `f0` is Hz per frame of `hop` samples, 0 unvoiced (empty where the
    system predicts none); `pieces` are the texts spoken one after the other; `score` says it all in seconds, to be spoken again (None where
    nobody knows the words, as of `revoice`); `origin` is what is written beside the audio of the model, the prompts and the seed.
    """

    audio: np.ndarray
    rate: int
    phones: tuple[str, ...]
    ends: np.ndarray
    words: tuple[tuple[str, int, int], ...]
    f0: np.ndarray
    hop: int
    pieces: tuple[str, ...]
    score: Score | None
    origin: provenance.Origin | None = None

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.rate

    @property
    def word_times(self) -> list[tuple[str, float, float]]:
        """(word, start, end) in seconds; pauses are left out."""
        return [(text, start / self.rate, end / self.rate) for text, start, end in self.words]

    @property
    def phone_times(self) -> list[tuple[str, float, float]]:
        """(phone, start, end) in seconds, pauses ("sil") among them."""
        edges = np.concatenate([[0], self.ends]) / self.rate
        return list(zip(self.phones, edges[:-1].tolist(), edges[1:].tolist()))


def written(words: front.Words) -> str:
    """Spoken words as text: lower case, numbers in words."""
    return "".join((" " if word.phones != PAUSE else "") + word.text for word in words).strip()


@dataclasses.dataclass
class Piece:
    """Words that fit one bucket, on their way to becoming audio."""

    request: int
    words: front.Words
    seed: int
    prompt: np.ndarray  # what `Model.prompt` gives: codes [u, q], or whatever frames the model hears
    seconds: Sequence[float | None] = ()  # of every phone, given by a score
    hz: Sequence[Sequence[float] | None] = ()
    gap: tuple[int, int] = (0, 0)  # frames of plain silence before and after
    place: tuple[int, ...] = ()  # halves taken on the way from the whole text: sorts in reading order
    bucket: int | None = None
    durations: np.ndarray | None = None
    f0: np.ndarray | None = None
    source: np.ndarray | None = None  # codes [t, q] of what is converted
    said: front.Words = dataclasses.field(default_factory=list)  # in the prompt, where the model goes on from it
    out: dict[str, np.ndarray] | None = None

    @property
    def phones(self) -> list[str]:
        return [phone for word in self.words for phone in word.phones]

    @property
    def text(self) -> str:
        """As it is spoken: lower case, numbers in words."""
        return written(self.words)

    def fits(self, model: Model, bucket: Mapping[str, int]) -> bool:
        """Whether its text does, and that of its prompt."""
        return bucket["p"] >= max(len(self.phones), len(model.text_ids(self.words)), len(model.text_ids(self.said)))

    def spread(self, model: Model, durations: np.ndarray) -> np.ndarray:
        """Frames of each phone int64 `[p]`, of those of each id of text: the same, or as even as can be where text is no phones. Raises
        ValueError for fewer frames than phones."""
        number = len(self.phones)
        if model.units is None:
            return durations[:number].astype(np.int64)
        total = int(durations.sum())
        if total < number:
            raise ValueError(f"{self.text!r} was over after {total} frames, it has {number} phones")
        return np.diff(total * np.arange(number + 1) // number)

    def key(self, stage: int) -> int:
        """A random seed of its own for this piece and program, the same in every batch."""
        return zlib.crc32(repr((self.seed, self.place, stage)).encode())

    def halves(self) -> list[Piece]:
        """Raises ValueError for a single word."""
        at, paused = cut(self.words)
        first = sum(len(word.phones) for word in self.words[:at])
        one, two = split(self.words)
        edge = (None if None in self.seconds else 1e-6,)  # a given length stays what it is: an edge takes its frame from its neighbours
        silent = (None if None in self.hz else (0.0,),)
        part = lambda given, new: (given[:first] + new * (not paused), new + given[first:])
        gaps = (self.gap[0], 0), (0, self.gap[1])
        both = enumerate(zip((one, two), part(tuple(self.seconds), edge), part(tuple(self.hz), silent), gaps))
        return [Piece(self.request, words, self.seed, self.prompt, seconds, hz, gap, (*self.place, i), said=self.said)
                for i, (words, seconds, hz, gap) in both]


def check(model: Model, steps: int | None, options: Mapping[str, Any]) -> None:
    """Raises ValueError for a model that does not speak, and for options that it does not have or that make no sense."""
    if not model.speaks:
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    defaults = {**model.programs["durations"].options, **model.programs["sample"].options}
    known = {"pitch_shift", "schedule", *defaults} - {"window"}  # which goes by the prompt
    given = {name: value for name, value in {**options, "steps": steps}.items() if value is not None}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"unknown option {unknown[0]!r}; {model.name} takes {sorted(known)}")
    for name in ("durations", "sample"):
        model.programs[name].check({option: value for option, value in given.items() if option in model.programs[name].options})
    shift = given.get("pitch_shift", 0.0)
    if not isinstance(shift, numbers.Real) or not abs(shift) <= PITCH_SHIFT:
        raise ValueError(f"pitch_shift={shift!r} semitones; expected at most {PITCH_SHIFT:g} up or down")
    if shift and "contour" not in model.programs:
        raise ValueError(f"pitch_shift={shift:g}: {model.name} has no pitch that could be shifted")


def speak_batch(model: Model, requests: Sequence[tuple[str | Score, Prompt]], seeds: int | Sequence[int], steps: int | None, lexicon: Any,
                language: str, failures: dict[int, str] | None, options: dict[str, Any]) -> list[Speech | None]:
    """What `Model.speak_batch` says."""
    check(model, steps, options)
    seeds = each_seed(seeds, len(requests))
    table, given, options = model.pronunciations(lexicon), {**options, "steps": steps}, dict(options)
    shift = float(options.pop("pitch_shift", None) or 0.0)
    attempt, failed = attempts(failures)
    heard: dict[Any, Heard] = {}
    origins: dict[int, provenance.Origin] = {}

    def voice(prompt: Prompt | None) -> Heard:
        """Of files, each is read once."""
        name = prompt.voice if isinstance(prompt, Said) else prompt
        if not isinstance(name, (str, os.PathLike)):
            return prompts.hear(model, prompt, table, language)
        if prompt not in heard:
            heard[prompt] = prompts.hear(model, prompt, table, language)
        return heard[prompt]

    def read(text: str | Score) -> Score:
        if isinstance(text, Score):
            if model.paces and any(length is not None for length in text.seconds):
                raise ValueError(f"{model.name} decides on the length of each phone as it speaks; give it a text, or a score without seconds")
            return text
        return scores.of_words(front.words(text, table, language))

    pending: list[Piece] = []
    for i, ((text, prompt), seed) in enumerate(zip(requests, seeds, strict=True)):
        score = attempt(i, read, text)
        known = attempt(i, voice, prompt)
        if i not in failed:
            origins[i] = provenance.origin(model, known.digests, seed, given, known.consent)
            pending += pieces_of(model, i, score, seed, known.codes, known.words)
    made = finish(model, pending, origins, len(requests), shift, {"steps": steps, **options}, attempt, failed)
    return [one and as_loud_as_prompts(one) for one in made]


def each_seed(seeds: int | Sequence[int], requests: int) -> list[int]:
    """One seed for all requests, or one each. Raises ValueError for another number of them, or what is no whole number."""
    each = [provenance.whole(seed) for seed in ([seeds] * requests if np.ndim(seeds) == 0 else seeds)]
    if len(each) != requests:
        raise ValueError(f"{len(each)} seeds for {requests} requests; give one for all, or one each")
    return each


def as_loud_as_prompts(made: Speech) -> Speech:
    """With the active level that prompts are brought to (`files.LEVEL`), whatever the model made of it; silence stays silent."""
    loud = files.active_rms(made.audio, made.rate) > 0
    return dataclasses.replace(made, audio=files.match_loudness(made.audio, made.rate)) if loud else made


def attempts(failures: dict[int, str] | None) -> tuple[Callable[..., Any], set[int]]:
    """(`attempt(request, function, *args)`, the requests that failed): a ValueError is raised, or, with `failures`, noted there, and the request's
    later attempts are None."""
    failed: set[int] = set()

    def attempt(request: int, function: Callable[..., Any], *args: Any) -> Any:
        if request in failed:
            return None
        try:
            return function(*args)
        except ValueError as error:
            if failures is None:
                raise
            failures[request] = str(error)
            failed.add(request)
            return None

    return attempt, failed


def finish(
    model: Model, pending: list[Piece], origins: Mapping[int, provenance.Origin], requests: int, shift: float, options: dict[str, Any], attempt,
    failed: set[int],
) -> list[Speech | None]:
    """Pieces to speech, one for each request, with its origin; None for one that failed."""
    early = {name: options.pop(name) for name in list(options) if name in model.programs["durations"].options}
    placed = place_in_buckets(model, pending, early, attempt)
    placed = [piece for piece in placed if piece.request not in failed]
    predict_pitch(model, placed, shift)
    _sample(model, placed, options, attempt)
    spoken = lambda i: dataclasses.replace(join(model, [piece for piece in placed if piece.request == i]), origin=origins[i])
    return [None if i in failed else spoken(i) for i in range(requests)]


def pieces_of(model: Model, request: int, score: Score, seed: int, codes: np.ndarray, said: front.Words | None = None) -> list[Piece]:
    """One, or more where the score has long rests. `said` are the words in the prompt `codes`."""
    parts = scores.at_rests(score)
    count = lambda seconds: round(seconds * model.rate / model.hop)
    return [Piece(request, part.words, seed, codes, part.seconds, part.hz, (count(before), count(after)), (k,) * (len(parts) > 1), said=said or [])
            for k, (before, part, after) in enumerate(parts)]  # fmt: skip


def place_in_buckets(model: Model, pending: list[Piece], options: Mapping[str, Any], attempt) -> list[Piece]:
    """Predicts durations, finds each piece the smallest bucket that holds it, and splits what none holds."""
    done: list[Piece] = []
    period = model.hop / model.rate
    while pending:
        ready, large = [], []
        for piece in pending:
            piece.bucket = next((i for i, b in enumerate(model.buckets) if piece.fits(model, b)), None)
            (large if piece.bucket is None else ready).append(piece)
        for (index, room), group in grouped(model, ready):
            bucket = model.buckets[index]
            rows = [inputs_of(model, piece, bucket, room) for piece in group]
            outs = model.run("durations", rows, [piece.key(0) for piece in group], {"p": bucket["p"], "u": room}, **options, **windows(model, room))
            for piece, out in zip(group, outs):
                piece.durations = scores.frames(piece.seconds, piece.spread(model, out["durations"]), period)
                fits = (i for i, b in enumerate(model.buckets) if piece.fits(model, b) and b["t"] >= piece.durations.sum())
                piece.bucket = next(fits, None)
                (large if piece.bucket is None else done).append(piece)
        pending = [half for piece in large for half in attempt(piece.request, _split, model, piece) or []]
    return sorted(done, key=lambda piece: (piece.request, piece.place))


def _split(model: Model, piece: Piece) -> list[Piece]:
    frames = max(b["t"] for b in model.buckets)
    try:
        halves = piece.halves()
    except ValueError as error:
        raise ValueError(f"{error}, and it is longer than the largest bucket of this model ({frames} frames)") from error
    logging.debug("spoken in two pieces, because %d frames are the longest this model makes at once: %r", frames, piece.text)
    return halves


def inputs_of(model: Model, piece: Piece, bucket: Mapping[str, int], room: int) -> dict[str, np.ndarray]:
    """One row of `durations` and, once they are known, of `contour` and `sample`, padded to the bucket and to `room` frames of prompt."""
    fill = bucket["p"] - len(piece.phones)
    text = lambda words: np.pad(ids := model.text_ids(words), (0, bucket["p"] - len(ids)))
    name = "phones" if model.units is None else "units"
    prompt = np.pad(piece.prompt, ((0, room - len(piece.prompt)), (0, 0)))
    row = {
        name: text(piece.words), f"prompt_{name}": text(piece.said), "prompt_frames": np.int32(len(piece.prompt)),
        f"prompt_{model.unit}": prompt.reshape(-1) if model.unit == "audio" else prompt}
    if piece.durations is not None:
        row["durations"] = np.pad(piece.durations, (0, fill)).astype(np.int32)
    if piece.f0 is not None:
        row["f0"] = np.pad(piece.f0, (0, bucket["t"] - len(piece.f0))).astype(np.float32)
    return row


def windows(model: Model, room: int) -> dict[str, int]:
    """A prompt longer than those of training is heard in windows of their length."""
    return {"window": model.longest_prompt} if room > model.longest_prompt else {}


def predict_pitch(model: Model, pieces: list[Piece], shift: float) -> None:
    """What the piece says, else what the system predicts, `shift` semitones higher."""
    if "contour" not in model.programs:
        return
    for (index, room), group in grouped(model, pieces):
        bucket = model.buckets[index]
        rows = [inputs_of(model, piece, bucket, room) for piece in group]
        sizes = {"t": bucket["t"], "p": bucket["p"], "u": room}
        for piece, out in zip(group, model.run("contour", rows, [0] * len(group), sizes, **windows(model, room))):
            piece.f0 = scores.contour(piece.hz, piece.durations, out["f0"][: piece.durations.sum()]) * np.float32(2 ** (shift / 12))


def accept(piece: Piece, out: dict[str, np.ndarray]) -> None:
    """Raises ValueError for what is not finite."""
    if not np.isfinite(out["audio"]).all():
        raise ValueError(f"the model made NaN for {piece.text!r}; its weights are broken or a sampler option is out of range")
    if not out.get("ended", 1):
        logging.warning("%r did not end: it was cut at the longest time that its length allows", piece.text)
    piece.out = out


def scheduled(model: Model, program: str, options: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(inputs that all rows share, options) for a program that fills in codes level by level: `schedule`, passes of every level, becomes an
    input, so that settings with as many passes share what is compiled. Raises ValueError for one that does not fit."""
    options, levels = dict(options), int(model.system.sizes.get("q", 0))
    given = options.pop("schedule", None)
    if "schedule" not in model.programs[program].inputs:
        if given is not None:
            raise ValueError(f"schedule={given}: {model.name} does not decode level by level")
        return {}, options
    if given is None:
        return {"schedule": np.zeros(levels, np.int32)}, options
    passes = np.asarray(given)
    if passes.shape != (levels,) or passes.dtype.kind not in "iu" or passes.min() < 1:
        raise ValueError(f"schedule={given!r}: expected {levels} whole numbers from 1 on, passes of every level")
    return {"schedule": passes.astype(np.int32)}, options | {"steps": int(passes.sum()) - levels + 1}


def _sample(model: Model, pieces: list[Piece], options: Mapping[str, Any], attempt) -> None:
    shared, options = scheduled(model, "sample", options)
    for (index, room), group in grouped(model, pieces):
        bucket = model.buckets[index]
        sizes = {"t": bucket["t"], "p": bucket["p"], "u": room, "s": bucket["t"] * model.hop}
        rows = [inputs_of(model, piece, bucket, room) | shared for piece in group]
        outs = model.run("sample", rows, [piece.key(1) for piece in group], sizes, **options, **windows(model, room))
        for piece, out in zip(group, outs):
            if model.paces:
                piece.durations = attempt(piece.request, piece.spread, model, out["durations"])
            attempt(piece.request, accept, piece, out)


def joints(sounds: Sequence[np.ndarray], rests: Sequence[bool], fade: int) -> list[np.ndarray]:
    """`sounds`, each float32 `[s]`, to be played one after the other: with equal gain faded into each other over `fade` samples on either side
    of every joint, where both go on past it as their own mirror image, so that nothing moves. Where `rests[k]` says that plain silence will
    stand between sounds k and k + 1, one fades out into it and the other in from it."""
    sounds = [np.array(sound, np.float32) for sound in sounds]
    for one, two, rest in zip(sounds[:-1], sounds[1:], rests, strict=True):
        n = min(fade, len(one), len(two))
        up = np.sin(np.pi / 4 * (np.arange(2 * n) + 0.5) / max(n, 1)).astype(np.float32) ** 2
        end, start = one[len(one) - n :].copy(), two[:n].copy()
        if rest:
            one[len(one) - n :], two[:n] = end * up[1::2][::-1], start * up[1::2]
        else:
            one[len(one) - n :] = (1 - up[:n]) * end + up[:n] * start[::-1]
            two[:n] = (1 - up[n:]) * end[::-1] + up[n:] * start
    return sounds


def join(model: Model, pieces: list[Piece]) -> Speech:
    """The pieces one after the other, joined in the silence with which each begins and ends (`joints`): all lengths and times stay."""
    audio, f0, ends, phones, words = [], [], [], [], []
    spoken, hz, durations, period = [], [], [], model.hop / model.rate
    begin, sounds = 0, [piece.out["audio"][: piece.durations.sum() * model.hop] for piece in pieces]
    rests = [bool(one.gap[1] or two.gap[0]) for one, two in itertools.pairwise(pieces)]
    for piece, samples in zip(pieces, joints(sounds, rests, round(FADE * model.rate))):
        before, after = piece.gap
        lengths = piece.durations.copy()
        lengths[0], lengths[-1] = lengths[0] + before, lengths[-1] + after
        durations.append(lengths)
        edges = np.concatenate([[0], np.cumsum(lengths)]) * model.hop
        audio.append(np.pad(samples, (before * model.hop, after * model.hop)))
        pitch = None if piece.f0 is None else np.pad(piece.f0, (before, after))
        f0.append(np.zeros(0) if pitch is None else pitch)
        ends.append(begin + edges[1:])
        phones += piece.phones
        spoken += piece.words
        frames = edges // model.hop
        hz += [None if pitch is None else tuple(pitch[a:b].tolist()) for a, b in zip(frames[:-1], frames[1:])]
        at = 0
        for word in piece.words:
            if word.text and word.phones != PAUSE:
                words.append((word.text, int(begin + edges[at]), int(begin + edges[at + len(word.phones)])))
            at += len(word.phones)
        begin += int(edges[-1])
    seconds = tuple(float(n) * period for n in np.concatenate(durations))
    return Speech(np.concatenate(audio), model.rate, tuple(phones), np.concatenate(ends), tuple(words), np.concatenate(f0).astype(np.float32),
                  model.hop, tuple(piece.text for piece in pieces), Score(spoken, seconds, tuple(hz)))


def grouped(model: Model, pieces: Iterable[Piece]) -> Iterable[tuple[tuple[int, int], list[Piece]]]:
    """Pieces by bucket and room for the prompt, the smallest first."""
    groups: dict[tuple[int, int], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.bucket, model.room(len(piece.prompt))), []).append(piece)
    return sorted(groups.items())


def cut(words: front.Words) -> tuple[int, bool]:
    """Where spoken `words` are cut in two: the first word of the second half, and whether a pause stands before it. At a sentence end if
    there is one inside, else at a pause, else between two words; at the one nearest to the middle. Raises ValueError for a single word.
    """
    lengths = np.cumsum([0] + [len(word.phones) for word in words])
    spoken = [i for i, word in enumerate(words) if word.phones != PAUSE]
    inside = range(spoken[0] + 1, spoken[-1] + 1)  # the second half would begin with word i, or follow pause i
    pauses = [i for i in inside if words[i].phones == PAUSE]
    for places in ([i for i in pauses if words[i].text in (".", "?", "!")], pauses, inside):
        if places:
            at = min(places, key=lambda i: abs(lengths[i] - lengths[-1] / 2))
            return (at + 1, True) if words[at].phones == PAUSE else (at, False)
    raise ValueError(f"{words[spoken[0]].text!r} is one word and can't be split")


def split(words: front.Words) -> tuple[front.Words, front.Words]:
    """Two halves of spoken `words`, each with silence at both ends. Raises as `cut`."""
    at, paused = cut(words)
    edge = [front.Word("", PAUSE)]
    return words[:at] + edge * (not paused), edge + words[at:]
