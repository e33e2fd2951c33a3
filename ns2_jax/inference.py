"""Models that speak: load a run or an export, say a text in the voice of a prompt, turn audio into codes and back.

    model = inference.load("results/naturalspeech2/model")
    speech = model.speak("Good morning.", "voice.wav", seed=0, steps=16)
    inference.write("out.wav", speech)

Everything runs through the system's programs at the static shapes of `config.data.buckets`, one compilation a
bucket. Rows of a batch are independent: each has its own random key, so an utterance sounds the same alone and in a
batch; they are cut over this process's devices. Length is predicted first; a text over the largest bucket is spoken in pieces and the pieces are reported.
`write` is the only function of this project that writes generated audio.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ns2_jax.audio import files
from ns2_jax.runtime import checkpoints, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.systems import system as systems
from ns2_jax.text import front, phones as inventory

Prompt = str | os.PathLike | tuple[np.ndarray, int]
ROWS = 8  # most utterances of one device in one call
SHORT_PROMPT = 1.0  # seconds under which a voice is poorly known: accepted, with a warning
PAUSE = (inventory.SILENCE,)
MIN_PROMPT = 0.1
MAX_PROMPT = 600.0
CONTEXT = 40  # frames encoded past the end of a prompt that is cut, so that the cut is not heard as silence


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


class Model:
    """A system with its weights. `load` makes it."""

    def __init__(self, system: systems.System, params: Any, rest: Any, config: Mapping[str, Any], path: str = "",
                 step: int | None = None):
        self.system, self.config, self.path, self.step = system, config, path, step  # the step of a run; None for an export
        self._mesh = meshes.local_mesh()
        self.params, self.rest = jax.device_put((params, rest), meshes.replicated(self._mesh))
        self.rate, self.hop = int(config["data"]["sample_rate"]), int(config["data"]["hop"])
        self.programs = system.programs()
        self.buckets = sorted((dict(b) for b in config["data"]["buckets"]), key=lambda b: (b.get("t", 0), b.get("p", 0)))
        self._compiled: dict[tuple, Any] = {}

    def like(self, params: Any, rest: Any, config: Mapping[str, Any], path: str = "") -> Model:
        """The same system with other weights; what is compiled for one serves the other."""
        other = Model(self.system, params, rest, config, path)
        other._compiled = self._compiled
        return other

    @property
    def name(self) -> str:
        return f"{self.path or 'this model'} (system {self.config['system']!r})"

    @property
    def longest_prompt(self) -> int:
        """Frames of the longest prompt the model was trained with."""
        return max(bucket.get("u", 0) for bucket in self.buckets)

    @property
    def speaks(self) -> bool:
        return {"durations", "sample"} <= set(self.programs)

    def run(self, name: str, rows: Sequence[Mapping[str, np.ndarray]], keys: Sequence[int] | None = None,
            sizes: Mapping[str, int] | None = None, **options: Any) -> list[dict[str, np.ndarray]]:
        """Runs program `name` on independent rows (inputs without their batch axis, all of one shape).

        Args:
          keys: one integer a row, the seed of its randomness (0 if left out).
          sizes: axis lengths besides the system's own; options: those of the program, None means its default.

        Raises:
          ValueError: the system has no such program, or the program no such option.
        """
        if name not in self.programs:
            raise ValueError(f"{self.name} has no program {name!r}; it has {sorted(self.programs)}")
        chosen = {key: value for key, value in options.items() if value is not None}
        devices = self._mesh.size
        width = devices * min(ROWS, 1 << (-(-len(rows) // devices) - 1).bit_length())
        call = self._compile(name, width, dict(sizes or {}), chosen)
        keys = [0] * len(rows) if keys is None else list(keys)
        fields = self.programs[name].inputs
        outputs = []
        for start in range(0, len(rows), width):
            part = list(rows[start : start + width])
            seeds = keys[start : start + width]
            fill = width - len(part)
            part, seeds = part + part[-1:] * fill, seeds + seeds[-1:] * fill
            batch = {k: np.stack([np.asarray(row[k], fields[k].dtype) for row in part]) for k in fields}
            out = jax.device_get(call(self.params, self.rest, batch, np.asarray(seeds, np.uint32)))
            outputs += [{k: v[i] for k, v in out.items()} for i in range(width - fill)]
        return outputs

    def _compile(self, name: str, width: int, sizes: dict[str, int], options: dict[str, Any]):
        tag = (name, width, *sorted(sizes.items()), *sorted(options.items()))
        if tag not in self._compiled:
            program = self.programs[name].bind({**self.system.sizes, **sizes, "b": 1}, **options)

            def row(params, rest, inputs, seed):
                out = program(params, rest, {k: v[None] for k, v in inputs.items()}, jax.random.key(seed))
                return {k: v[0] for k, v in out.items()}

            logging.debug("compiling %s for %d row(s) of %s", name, width, sizes)
            self._compiled[tag] = meshes.by_rows(self._mesh, jax.vmap(row, in_axes=(None, None, 0, 0)))
        return self._compiled[tag]

    # Codec: audio <-> codes.

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """`audio` float32 [s] at the model's rate -> codes int32 `[s // hop, q]`."""
        return self.encode_all([audio])[0]

    def encode_all(self, audios: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`encode` of many, those of about one length together."""
        return [out["codes"].astype(np.int32) for out in self._encode(audios)]

    def latents(self, audio: np.ndarray) -> np.ndarray:
        """`audio [s]` -> latent before quantisation, float32 `[s // hop, c]`. Raises ValueError where encode gives none."""
        (out,) = self._encode([audio])
        if "latents" not in out:
            raise ValueError(f"system {self.config['system']!r} does not give latents before quantisation")
        return out["latents"]

    def _encode(self, audios: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        frames = [len(audio) // self.hop for audio in audios]
        if 0 in frames:
            samples = len(audios[frames.index(0)])
            raise files.AudioError("short", f"audio of {samples} samples is shorter than one frame ({self.hop} samples)")

        def row(i: int, length: int) -> dict[str, np.ndarray]:
            return {"audio": np.pad(np.asarray(audios[i][: frames[i] * self.hop], np.float32), (0, (length - frames[i]) * self.hop))}

        return [{k: v[:n] for k, v in out.items()} for n, out in zip(frames, self._by_length("encode", frames, row))]

    def decode(self, codes: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Codes `[t, q]` -> audio float32 `[t * hop]`, from the first `levels` levels where given."""
        return self.decode_all([codes], levels)[0]

    def decode_all(self, codes: Sequence[np.ndarray], levels: int | None = None) -> list[np.ndarray]:
        """`decode` of many, those of about one length together."""
        return self._decode("decode", "codes", codes, levels=levels)

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """Latents `[t, c]`, not quantised -> audio float32 `[t * hop]`."""
        return self._decode("decode_latents", "latents", [latents])[0]

    def _decode(self, program: str, name: str, arrays: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
        frames = [len(array) for array in arrays]
        if 0 in frames:
            raise ValueError(f"no {name} to decode")

        def row(i: int, length: int) -> dict[str, np.ndarray]:
            return {name: np.pad(arrays[i], ((0, length - frames[i]), (0, 0)), mode="edge")}  # what follows the end sounds like it

        return [out["audio"][: n * self.hop] for n, out in zip(frames, self._by_length(program, frames, row, **options))]

    def _by_length(self, program: str, frames: Sequence[int], row: Callable[[int, int], dict[str, np.ndarray]],
                   **options: Any) -> list[dict[str, np.ndarray]]:
        """Outputs of rows of so many `frames`, in their order; those that fit one static length run together. `row(i, length)` is row i
        padded to it."""
        lengths = [ladder(n) for n in frames]
        made: list[dict[str, np.ndarray]] = [{}] * len(frames)
        for length in sorted(set(lengths)):
            places = [i for i, n in enumerate(lengths) if n == length]
            outs = self.run(program, [row(i, length) for i in places], sizes={"s": length * self.hop, "t": length}, **options)
            for i, out in zip(places, outs):
                made[i] = out
        return made

    # Speech.

    def prompt(self, prompt: Prompt) -> np.ndarray:
        """A voice (file, or samples with their rate) -> codes int32 `[u, q]`, at most the largest prompt bucket.

        Silent ends are trimmed and the level is matched to the training data's. Raises AudioError (a ValueError) for
        what is no usable audio.
        """
        if isinstance(prompt, tuple):
            audio, rate = prompt
            audio = files.resample(files.check(audio, rate, "prompt", MIN_PROMPT, MAX_PROMPT), rate, self.rate)
        else:
            audio = files.read(prompt, self.rate, MIN_PROMPT, MAX_PROMPT)
        audio = files.match_loudness(files.trim_silence(audio, self.rate), self.rate)
        if len(audio) < SHORT_PROMPT * self.rate:
            logging.warning("the prompt holds %.2f s of speech; a voice needs 2 s or more to be heard well", len(audio) / self.rate)
        return self.encode(audio[: (self.longest_prompt + CONTEXT) * self.hop])[: self.longest_prompt]

    def speak(self, text: str, prompt: Prompt, seed: int = 0, steps: int | None = None, lexicon: Any = None,
              language: str = "en", **options: Any) -> Speech:
        """`text` in the voice of `prompt`; the same arguments give the same samples.

        Args:
          seed: of the noise.
          steps: of the sampler; options: the others of programs `sample` (guidance, temperature, sampler) and `durations`
            (speed).
          lexicon: the user's pronunciations, a file or a dict (`text.front.read_lexicon`).
          language: espeak-ng's name of it.

        Raises:
          ValueError: empty or unpronounceable text, unusable prompt, unknown option, a model that does not speak.
        """
        return self.speak_batch([(text, prompt)], [seed], steps=steps, lexicon=lexicon, language=language, **options)[0]

    def speak_batch(self, requests: Sequence[tuple[str, Prompt]], seeds: int | Sequence[int] = 0, steps: int | None = None,
                    lexicon: Any = None, language: str = "en", failures: dict[int, str] | None = None,
                    **options: Any) -> list[Speech | None]:
        """Many (text, prompt) at once, in order. `seeds`: one for all or one each.

        A request that fails is raised. With a dict of `failures` it is None, its place and the reason go there, and the others go on.
        """
        if not self.speaks:
            raise ValueError(f"{self.name} does not speak; it offers {sorted(self.programs)}")
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

        voice = functools.cache(self.prompt) if all(not isinstance(p, tuple) for _, p in requests) else self.prompt
        pending: list[_Piece] = []
        for i, ((text, prompt), seed) in enumerate(zip(requests, seeds, strict=True)):
            words = attempt(i, front.words, text, table, language)
            codes = attempt(i, voice, prompt)
            if i not in failed:
                pending.append(_Piece(i, words, seed, codes))
        early = {name: options.pop(name) for name in list(options) if name in self.programs["durations"].options}
        placed = self._place(pending, early, attempt)
        placed = [piece for piece in placed if piece.request not in failed]
        self._sample(placed, options | {"steps": steps}, attempt)
        return [None if i in failed else self._join([p for p in placed if p.request == i]) for i in range(len(requests))]

    def _place(self, pending: list[_Piece], options: Mapping[str, Any], attempt) -> list[_Piece]:
        """Predicts durations, finds each piece the smallest bucket that holds it, and splits what none holds."""
        done: list[_Piece] = []
        while pending:
            ready, large = [], []
            for piece in pending:
                piece.bucket = next((i for i, b in enumerate(self.buckets) if b["p"] >= len(piece.phones)), None)
                (large if piece.bucket is None else ready).append(piece)
            for index, group in _grouped(ready):
                bucket = self.buckets[index]
                rows = [self._inputs(piece, bucket["p"]) for piece in group]
                sizes = {"p": bucket["p"], "u": self.longest_prompt}
                outs = self.run("durations", rows, [piece.key(0) for piece in group], sizes, **options)
                for piece, out in zip(group, outs):
                    piece.durations = out["durations"][: len(piece.phones)].astype(np.int64)
                    fits = (i for i, b in enumerate(self.buckets) if b["p"] >= len(piece.phones) and b["t"] >= piece.durations.sum())
                    piece.bucket = next(fits, None)
                    (large if piece.bucket is None else done).append(piece)
            pending = [half for piece in large for half in attempt(piece.request, self._split, piece) or []]
        return sorted(done, key=lambda piece: (piece.request, piece.place))

    def _split(self, piece: _Piece) -> list[_Piece]:
        frames = max(b["t"] for b in self.buckets)
        try:
            halves = split(piece.words)
        except ValueError as error:
            raise ValueError(f"{error}, and it is longer than the largest bucket of this model ({frames} frames)") from error
        logging.debug("spoken in two pieces, because %d frames are the longest this model makes at once: %r", frames, piece.text)
        return [_Piece(piece.request, half, piece.seed, piece.prompt, (*piece.place, i)) for i, half in enumerate(halves)]

    def _inputs(self, piece: _Piece, phones: int) -> dict[str, np.ndarray]:
        """One row of `durations` and, once they are known, of `sample`, padded to `phones` phones and the longest prompt."""
        row = {
            "phones": np.pad(inventory.ids(piece.phones), (0, phones - len(piece.phones))),
            "prompt_codes": np.pad(piece.prompt, ((0, self.longest_prompt - len(piece.prompt)), (0, 0))),
            "prompt_frames": np.int32(len(piece.prompt)),
        }
        if piece.durations is not None:
            row["durations"] = np.pad(piece.durations, (0, phones - len(piece.durations))).astype(np.int32)
        return row

    def _sample(self, pieces: list[_Piece], options: Mapping[str, Any], attempt) -> None:
        def accept(piece: _Piece, out: dict[str, np.ndarray]) -> None:
            if not np.isfinite(out["audio"]).all():
                raise ValueError(f"the model made NaN for {piece.text!r}; its weights are broken or a sampler option is out of range")
            piece.out = out

        for index, group in _grouped(pieces):
            bucket = self.buckets[index]
            sizes = {"t": bucket["t"], "p": bucket["p"], "u": self.longest_prompt, "s": bucket["t"] * self.hop}
            rows = [self._inputs(piece, bucket["p"]) for piece in group]
            for piece, out in zip(group, self.run("sample", rows, [piece.key(1) for piece in group], sizes, **options)):
                attempt(piece.request, accept, piece, out)

    def _join(self, pieces: list[_Piece]) -> Speech:
        """The pieces one after the other: each begins and ends with its own silence, so nothing is faded."""
        audio, f0, ends, phones, words = [], [], [], [], []
        begin = 0
        for piece in pieces:
            edges = np.concatenate([[0], np.cumsum(piece.durations)]) * self.hop
            audio.append(piece.out["audio"][: edges[-1]].astype(np.float32))
            f0.append(piece.out["f0"][: edges[-1] // self.hop] if "f0" in piece.out else np.zeros(0))
            ends.append(begin + edges[1:])
            phones += piece.phones
            at = 0
            for word in piece.words:
                if word.text and word.phones != PAUSE:
                    words.append((word.text, int(begin + edges[at]), int(begin + edges[at + len(word.phones)])))
                at += len(word.phones)
            begin += int(edges[-1])
        return Speech(np.concatenate(audio), self.rate, tuple(phones), np.concatenate(ends), tuple(words),
                      np.concatenate(f0).astype(np.float32), self.hop, tuple(piece.text for piece in pieces))


def _grouped(pieces: Iterable[_Piece]) -> Iterable[tuple[int, list[_Piece]]]:
    """Pieces by bucket, smallest bucket first."""
    groups: dict[int, list[_Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.bucket, []).append(piece)
    return sorted(groups.items())


def ladder(frames: int) -> int:
    """The static length for `frames`: powers of two and halves between (64, 96, 128, 192, ...), so few are compiled."""
    size = 64
    while size < frames:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


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


def phones_of(model: Model) -> dict[str, Any]:
    """The phone inventory that the model's ids mean; empty for a system that takes no phones."""
    if not any("phones" in program.inputs for program in model.programs.values()):
        return {"phones": [], "hash": ""}
    return {"phones": list(inventory.PHONES), "hash": inventory.inventory_hash()}


def load(path: str | os.PathLike, step: int | None = None) -> Model:
    """A run being written (the averaged weights of checkpoint `step`, default the latest) or an export -> Model.

    Raises FileNotFoundError for a folder that is missing or is neither, ValueError for weights that don't fit it.
    """
    path = Path(path)
    if (path / weights.FILE).exists():
        step = None
    elif step is None:
        step = (checkpoints.steps(path) or [None])[-1]
    tree, config = checkpoints.read_model(path, step)
    known = path / "phones.json"
    if known.is_file() and (names := json.loads(known.read_text(encoding="utf-8"))["phones"]) != list(inventory.PHONES[: len(names)]):
        raise ValueError(f"{known}: made with another phone inventory than this code's; its ids would mean other phones")
    system = systems.make(config["system"], config["model"])
    return Model(system, tree["params"], tree["rest"], config, str(path), step)


def write(path: str | os.PathLike, speech: Speech | tuple[np.ndarray, int]) -> None:
    """Writes generated audio (.wav, .flac, .ogg), whole or not at all; too loud audio is scaled down, not clipped.

    Raises ValueError or FileNotFoundError for a name that can't be written.
    """
    audio, rate = (speech.audio, speech.rate) if isinstance(speech, Speech) else speech
    peak = float(np.abs(audio).max(initial=0.0))
    files.write(path, audio if peak <= 1.0 else audio * (files.PEAK / peak), rate)
