"""Speaking: texts become pieces that fit a bucket, pieces become durations, then audio, then one `Speech` a text.

Length is predicted first; a text over the largest bucket is split at a sentence end, a pause or between two words, and spoken in pieces.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from ns2_jax.text import front, phones as inventory

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

Prompt = str | os.PathLike | tuple[np.ndarray, int]
PAUSE = (inventory.SILENCE,)


@dataclasses.dataclass(frozen=True)
class Speech:
    """Generated speech: `audio` float32 [s] at `rate` Hz; `ends[i]` the sample where `phones[i]` ends.

    `words` are (word, first sample, end sample); `f0` is Hz per frame of `hop` samples, 0 unvoiced (empty where the
    system predicts none); `pieces` are the texts spoken one after the other.
    """

    audio: np.ndarray
    rate: int
    phones: tuple[str, ...]
    ends: np.ndarray
    words: tuple[tuple[str, int, int], ...]
    f0: np.ndarray
    hop: int
    pieces: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.rate


@dataclasses.dataclass
class _Piece:
    """Words that fit one bucket, on their way to becoming audio."""

    request: int
    words: front.Words
    seed: int
    prompt: np.ndarray  # codes [u, q]
    place: tuple[int, ...] = ()  # halves taken on the way from the whole text: sorts in reading order
    bucket: int | None = None
    durations: np.ndarray | None = None
    out: dict[str, np.ndarray] | None = None

    @property
    def phones(self) -> list[str]:
        return [phone for word in self.words for phone in word.phones]

    @property
    def text(self) -> str:
        """As it is spoken: lower case, numbers in words."""
        return "".join((" " if word.phones != PAUSE else "") + word.text for word in self.words).strip()

    def key(self, stage: int) -> int:
        """A random seed of its own for this piece and program, the same in every batch."""
        return zlib.crc32(repr((self.seed, self.place, stage)).encode())


def speak_batch(model: Model, requests: Sequence[tuple[str, Prompt]], seeds: int | Sequence[int], steps: int | None, lexicon: Any,
                language: str, failures: dict[int, str] | None, options: dict[str, Any]) -> list[Speech | None]:
    """What `Model.speak_batch` says."""
    if not model.speaks:
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    seeds = [int(seeds)] * len(requests) if isinstance(seeds, (int, np.integer)) else list(seeds)
    table = front.read_lexicon(lexicon)
    failed: set[int] = set()

    def attempt(request: int, function, *args):
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

    voice = functools.cache(model.prompt) if all(not isinstance(p, tuple) for _, p in requests) else model.prompt
    pending: list[_Piece] = []
    for i, ((text, prompt), seed) in enumerate(zip(requests, seeds, strict=True)):
        words = attempt(i, front.words, text, table, language)
        codes = attempt(i, voice, prompt)
        if i not in failed:
            pending.append(_Piece(i, words, seed, codes))
    early = {name: options.pop(name) for name in list(options) if name in model.programs["durations"].options}
    placed = _place(model, pending, early, attempt)
    placed = [piece for piece in placed if piece.request not in failed]
    _sample(model, placed, options | {"steps": steps}, attempt)
    return [None if i in failed else _join(model, [p for p in placed if p.request == i]) for i in range(len(requests))]


def _place(model: Model, pending: list[_Piece], options: Mapping[str, Any], attempt) -> list[_Piece]:
    """Predicts durations, finds each piece the smallest bucket that holds it, and splits what none holds."""
    done: list[_Piece] = []
    while pending:
        ready, large = [], []
        for piece in pending:
            piece.bucket = next((i for i, b in enumerate(model.buckets) if b["p"] >= len(piece.phones)), None)
            (large if piece.bucket is None else ready).append(piece)
        for index, group in _grouped(ready):
            bucket = model.buckets[index]
            rows = [_inputs(model, piece, bucket["p"]) for piece in group]
            sizes = {"p": bucket["p"], "u": model.longest_prompt}
            outs = model.run("durations", rows, [piece.key(0) for piece in group], sizes, **options)
            for piece, out in zip(group, outs):
                piece.durations = out["durations"][: len(piece.phones)].astype(np.int64)
                fits = (i for i, b in enumerate(model.buckets) if b["p"] >= len(piece.phones) and b["t"] >= piece.durations.sum())
                piece.bucket = next(fits, None)
                (large if piece.bucket is None else done).append(piece)
        pending = [half for piece in large for half in attempt(piece.request, _split, model, piece) or []]
    return sorted(done, key=lambda piece: (piece.request, piece.place))


def _split(model: Model, piece: _Piece) -> list[_Piece]:
    frames = max(b["t"] for b in model.buckets)
    try:
        halves = split(piece.words)
    except ValueError as error:
        raise ValueError(f"{error}, and it is longer than the largest bucket of this model ({frames} frames)") from error
    logging.debug("spoken in two pieces, because %d frames are the longest this model makes at once: %r", frames, piece.text)
    return [_Piece(piece.request, half, piece.seed, piece.prompt, (*piece.place, i)) for i, half in enumerate(halves)]


def _inputs(model: Model, piece: _Piece, phones: int) -> dict[str, np.ndarray]:
    """One row of `durations` and, once they are known, of `sample`, padded to `phones` phones and the longest prompt."""
    row = {
        "phones": np.pad(inventory.ids(piece.phones), (0, phones - len(piece.phones))),
        "prompt_codes": np.pad(piece.prompt, ((0, model.longest_prompt - len(piece.prompt)), (0, 0))),
        "prompt_frames": np.int32(len(piece.prompt)),
    }
    if piece.durations is not None:
        row["durations"] = np.pad(piece.durations, (0, phones - len(piece.durations))).astype(np.int32)
    return row


def _sample(model: Model, pieces: list[_Piece], options: Mapping[str, Any], attempt) -> None:
    def accept(piece: _Piece, out: dict[str, np.ndarray]) -> None:
        if not np.isfinite(out["audio"]).all():
            raise ValueError(f"the model made NaN for {piece.text!r}; its weights are broken or a sampler option is out of range")
        piece.out = out

    for index, group in _grouped(pieces):
        bucket = model.buckets[index]
        sizes = {"t": bucket["t"], "p": bucket["p"], "u": model.longest_prompt, "s": bucket["t"] * model.hop}
        rows = [_inputs(model, piece, bucket["p"]) for piece in group]
        for piece, out in zip(group, model.run("sample", rows, [piece.key(1) for piece in group], sizes, **options)):
            attempt(piece.request, accept, piece, out)


def _join(model: Model, pieces: list[_Piece]) -> Speech:
    """The pieces one after the other: each begins and ends with its own silence, so nothing is faded."""
    audio, f0, ends, phones, words = [], [], [], [], []
    begin = 0
    for piece in pieces:
        edges = np.concatenate([[0], np.cumsum(piece.durations)]) * model.hop
        audio.append(piece.out["audio"][: edges[-1]].astype(np.float32))
        f0.append(piece.out["f0"][: edges[-1] // model.hop] if "f0" in piece.out else np.zeros(0))
        ends.append(begin + edges[1:])
        phones += piece.phones
        at = 0
        for word in piece.words:
            if word.text and word.phones != PAUSE:
                words.append((word.text, int(begin + edges[at]), int(begin + edges[at + len(word.phones)])))
            at += len(word.phones)
        begin += int(edges[-1])
    return Speech(np.concatenate(audio), model.rate, tuple(phones), np.concatenate(ends), tuple(words),
                  np.concatenate(f0).astype(np.float32), model.hop, tuple(piece.text for piece in pieces))


def _grouped(pieces: Iterable[_Piece]) -> Iterable[tuple[int, list[_Piece]]]:
    """Pieces by bucket, smallest bucket first."""
    groups: dict[int, list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.bucket, []).append(piece)
    return sorted(groups.items())


def split(words: front.Words) -> tuple[front.Words, front.Words]:
    """Two halves of spoken `words`, each with silence at both ends: cut at a sentence end if there is one inside, else at
    a pause, else between two words; at the one nearest to the middle. Raises ValueError for a single word.
    """
    lengths = np.cumsum([0] + [len(word.phones) for word in words])
    spoken = [i for i, word in enumerate(words) if word.phones != PAUSE]
    inside = range(spoken[0] + 1, spoken[-1] + 1)  # the second half would begin with word i, or follow pause i
    pauses = [i for i in inside if words[i].phones == PAUSE]
    for places in ([i for i in pauses if words[i].text in (".", "?", "!")], pauses, inside):
        if places:
            at = min(places, key=lambda i: abs(lengths[i] - lengths[-1] / 2))
            edge = [front.Word("", PAUSE)]
            if words[at].phones == PAUSE:
                return words[: at + 1], edge + words[at + 1 :]
            return words[:at] + edge, edge + words[at:]
    raise ValueError(f"{words[spoken[0]].text!r} is one word and can't be split")
