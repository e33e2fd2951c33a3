"""A system with its weights: runs its programs on independent rows, turns audio into codes and back, whole or as a stream, and speaks."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from ns2_jax.audio import files
from ns2_jax.inference import prompts, provenance, sentences, speech, streams
from ns2_jax.inference.score import Score
from ns2_jax.inference.speech import Prompt, Speech
from ns2_jax.runtime import mesh as meshes, state, weights
from ns2_jax.systems import system as systems
from ns2_jax.text import front, phones as inventory

ROWS = 8  # most utterances of one device in one call
TRACED = "speed"  # an option that what is compiled is given as a number of each row: every user has another, and compiling takes seconds
CHUNK = 512  # frames of a stream that are new in each call
CONTEXT = 40  # frames encoded past the end of a prompt that is cut, so that the cut is not heard as silence


class Call:
    """A compiled function whose first call, in which it is compiled, is one thread's; the others wait for it."""

    def __init__(self, function: Callable[..., Any]):
        self._function, self._lock, self._ready = function, threading.Lock(), False

    def __call__(self, *args: Any) -> Any:
        if self._ready:
            return self._function(*args)
        with self._lock:
            out = self._function(*args)
            self._ready = True
            return out


class Model:
    """A system with its weights. `load` makes it. `model("text", prompt="voice.wav")` speaks. Other models may be set: an `aligner` finds what a
    prompt says where, a `tokenizer` makes the semantic tokens that this one fills in from.

    Threads may share it: nothing changes in a call but the table of what is compiled, once for each bucket and number of rows (1, 2, 4, 8).
    """

    aligner: Model | None = None
    tokenizer: Model | None = None
    units: Any = None  # text.units.Units, of a model that reads them instead of phones
    context = CONTEXT

    def __init__(self, system: systems.System, params: Any, rest: Any, config: Mapping[str, Any], path: str = "",
                 step: int | None = None, mesh: Any = None):
        self.system, self.config, self.path, self.step = system, config, path, step  # the step of a run; None for an export
        self._mesh = mesh or meshes.local_mesh()
        self.params, self.rest = jax.device_put((params, rest), meshes.replicated(self._mesh))
        self.rate, self.hop = int(config["data"]["sample_rate"]), int(config["data"]["hop"])
        self.programs = system.programs()
        self.buckets = sorted((dict(b) for b in config["data"]["buckets"]), key=lambda b: (b.get("t", 0), b.get("p", 0)))
        self.lexicon: Mapping[str, tuple[str, ...]] = {}  # pronunciations that came with an export
        self._compiled: dict[tuple, Any] = {}
        self._compiling = threading.Lock()

    def like(self, params: Any, rest: Any, config: Mapping[str, Any], path: str = "") -> Model:
        """The same system with other weights; what is compiled for one serves the other."""
        other = Model(self.system, params, rest, config, path, mesh=self._mesh)
        other.units, other.aligner, other.tokenizer, other.lexicon = self.units, self.aligner, self.tokenizer, self.lexicon
        other._compiled, other._compiling = self._compiled, self._compiling
        return other

    @functools.cached_property
    def hash(self) -> str:
        """12 hex digits that name the weights: of an export its file's, of anything else those of its tensors."""
        if self.path and os.path.exists(os.path.join(self.path, weights.FILE)):
            return weights.weights_hash(self.path)
        digest = hashlib.sha256()
        for name, leaf in sorted(state.flatten({"params": self.params, "rest": self.rest}).items()):
            digest.update(name.encode() + np.ascontiguousarray(jax.device_get(leaf)).tobytes())
        return digest.hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.path or 'this model'} (system {self.config['system']!r})"

    @property
    def unit(self) -> str:
        """What a recording is to this model, frame by frame: "codes" of a codec, the "mel" of a vocoder, or the "audio" itself."""
        if self.speaks and "prompt_audio" in self.programs["durations"].inputs:
            return "audio"
        made = self.programs["encode"].outputs if "encode" in self.programs else {"codes": None}
        return "codes" if "codes" in made else next(iter(made))

    @property
    def longest_prompt(self) -> int:
        """Frames of the longest prompt the model was trained with."""
        return max(bucket.get("u", 0) for bucket in self.buckets)

    def room(self, frames: int) -> int:
        """Frames that a prompt of so many is padded to: the longest of training, or that doubled as often as it takes; for a model that goes on
        from its prompt, whose every step looks at all of it, the shortest of training that holds it."""
        if self.continues:
            return min(bucket["u"] for bucket in self.buckets if bucket["u"] >= frames)
        room = self.longest_prompt
        while room < frames:
            room *= 2
        return room

    @property
    def speaks(self) -> bool:
        return {"durations", "sample"} <= set(self.programs)

    @property
    def continues(self) -> bool:
        """Whether it goes on from its prompt, and must know what that says."""
        return self.speaks and any(name in self.programs["sample"].inputs for name in ("prompt_phones", "prompt_units"))

    @property
    def unit_text(self) -> bool:
        """Whether it reads text in SentencePiece units."""
        return any("units" in program.inputs for program in self.programs.values())

    def text_ids(self, words: Any) -> np.ndarray:
        """Words as the model reads them: phones, or units of what they are written as. int32 `[p]`, empty for no words."""
        if self.units is None:
            phones = [phone for word in words for phone in word.phones]
            return inventory.ids(phones) if phones else np.zeros(0, np.int32)
        text = speech.written(words)
        return self.units.encode(text) if text else np.zeros(0, np.int32)

    @property
    def paces(self) -> bool:
        """Whether it decides on the length of each phone as it speaks, rather than being told."""
        return self.speaks and "durations" in self.programs["sample"].outputs

    def run(self, name: str, rows: Sequence[Mapping[str, np.ndarray]], keys: Sequence[int] | None = None,
            sizes: Mapping[str, int] | None = None, **options: Any) -> list[dict[str, np.ndarray]]:
        """Runs program `name` on independent rows (inputs without their batch axis, all of one shape).

        Args:
          keys: one integer a row, the seed of its randomness (0 if left out).
          sizes: axis lengths besides the system's own; options: those of the program, None means its default.

        Raises:
          ValueError: the system has no such program, or the program no such option or not for such a value.
        """
        if name not in self.programs:
            raise ValueError(f"{self.name} has no program {name!r}; it has {sorted(self.programs)}")
        chosen = {key: value for key, value in options.items() if value is not None}
        self.programs[name].check(chosen)
        devices = self._mesh.size
        width = devices * min(ROWS, 1 << (-(-len(rows) // devices) - 1).bit_length())
        program, traced = self.programs[name], {}
        if TRACED in program.options and not program.rows:
            traced = {TRACED: np.full(width, chosen.pop(TRACED, program.options[TRACED]), np.float32)}
        call = self._compile(name, width, dict(sizes or {}), chosen)
        keys = [0] * len(rows) if keys is None else list(keys)
        fields = program.inputs
        outputs = []
        for start in range(0, len(rows), width):
            part = list(rows[start : start + width])
            seeds = keys[start : start + width]
            fill = width - len(part)
            part, seeds = part + part[-1:] * fill, seeds + seeds[-1:] * fill
            batch = {k: np.stack([np.asarray(row[k], fields[k].dtype) for row in part]) for k in fields}
            out = jax.device_get(call(self.params, self.rest, batch | traced, np.asarray(seeds, np.uint32)))
            outputs += [{k: v[i] for k, v in out.items()} for i in range(width - fill)]
        return outputs

    def _compile(self, name: str, width: int, sizes: dict[str, int], options: dict[str, Any]):
        tag = (name, width, *sorted(sizes.items()), *sorted(options.items()))
        with self._compiling:
            if tag in self._compiled:
                return self._compiled[tag]
            rows = width // self._mesh.size if self.programs[name].rows else 1
            program = self.programs[name].bind({**self.system.sizes, **sizes, "b": rows}, **options)

            def row(params, rest, inputs, seed):
                traced = {k: inputs[k] for k in inputs if k == TRACED}
                out = program(params, rest, {k: v[None] for k, v in inputs.items() if k != TRACED}, jax.random.key(seed), **traced)
                return {k: v[0] for k, v in out.items()}

            def together(params, rest, inputs, seeds):
                return program(params, rest, inputs, jax.vmap(jax.random.key)(seeds))

            logging.debug("compiling %s for %d row(s) of %s", name, width, sizes)
            call = together if self.programs[name].rows else jax.vmap(row, in_axes=(None, None, 0, 0))
            self._compiled[tag] = Call(meshes.by_rows(self._mesh, call))
            return self._compiled[tag]

    # Codec: audio <-> codes.

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """`audio` float32 [s] at the model's rate -> codes int32 `[s // hop, q]` (or float32 `[s // hop, c]`, see `unit`), as if
        silence followed it."""
        return self.encode_all([audio])[0]

    def encode_all(self, audios: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`encode` of many, those of about one length together."""
        kind = np.int32 if self.unit == "codes" else np.float32
        return [out[self.unit].astype(kind) for out in self._encode(audios)]

    def latents(self, audio: np.ndarray, name: str = "latents") -> np.ndarray:
        """`audio [s]` -> latent before quantisation (`name="quantised"`: after all its levels), float32 `[s // hop, c]`. Raises
        ValueError where encode gives none."""
        (out,) = self._encode([audio])
        if name not in out:
            raise ValueError(f"system {self.config['system']!r} does not give {name} of an audio, only {sorted(out)}")
        return out[name]

    def _encode(self, audios: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        audios = [checked(audio) for audio in audios]
        if wrong := [audio for audio in audios if audio.ndim != 1]:
            raise files.AudioError("unreadable", f"audio is {list(wrong[0].shape)}; expected samples [s] of one channel: average the channels")
        frames = [len(audio) // self.hop for audio in audios]
        if 0 in frames:
            samples = len(audios[frames.index(0)])
            raise files.AudioError("short", f"audio of {samples} samples is shorter than one frame ({self.hop} samples)")

        def row(i: int, length: int) -> dict[str, np.ndarray]:
            return {"audio": np.pad(np.asarray(audios[i][: frames[i] * self.hop], np.float32), (0, (length - frames[i]) * self.hop))}

        return [{k: v[:n] for k, v in out.items()} for n, out in zip(frames, self._by_length("encode", frames, row))]

    def decode(self, codes: np.ndarray, levels: int | None = None) -> np.ndarray:
        """Codes `[t, q]` (or what `encode` gives) -> audio float32 `[t * hop]`, from the first `levels` levels where given."""
        return self.decode_all([codes], levels)[0]

    def decode_all(self, codes: Sequence[np.ndarray], levels: int | None = None) -> list[np.ndarray]:
        """`decode` of many, those of about one length together."""
        return self._decode("decode", self.unit, codes, levels=levels)

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """Latents `[t, c]`, not quantised -> audio float32 `[t * hop]`."""
        return self._decode("decode_latents", "latents", [latents])[0]

    def _check_codes(self, codes: np.ndarray, levels: int | None) -> None:
        """Raises ValueError for codes that the codec does not have, or more levels than there are."""
        most, entries = self.system.sizes.get("q", 0), getattr(self.system, "codes", 0)
        if codes.dtype.kind not in "iu":
            raise ValueError(f"codes are {codes.dtype}; expected integers")
        if not 1 <= codes.shape[-1] <= most:
            raise ValueError(f"codes have {codes.shape[-1]} levels; expected 1 to {most}")
        if entries and codes.size and not 0 <= codes.min() <= codes.max() < entries:
            raise ValueError(f"codes go from {codes.min()} to {codes.max()}; expected 0 to {entries - 1}")
        if levels is not None and not 1 <= levels <= codes.shape[-1]:
            raise ValueError(f"levels={levels}; expected 1 to {codes.shape[-1]}")

    def _decode(self, program: str, name: str, arrays: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
        arrays = [np.asarray(array) for array in arrays]
        if wrong := [array.shape for array in arrays if array.ndim != 2]:
            raise ValueError(f"{name} are {list(wrong[0])}; expected two axes, frames first")
        frames = [len(array) for array in arrays]
        if 0 in frames:
            raise ValueError(f"no {name} to decode")
        if name == "codes" and len(arrays):
            levels = options.get("levels")
            for array in arrays:
                self._check_codes(array, levels)
            most, widths = self.system.sizes["q"], sorted({array.shape[-1] for array in arrays})
            if len(widths) > 1 and levels is None:
                raise ValueError(f"codes of {widths} levels at once; decode each number of levels on its own, or give levels=")
            options["levels"] = levels or (widths[0] if widths[0] < most else None)
            arrays = [np.pad(array, ((0, 0), (0, most - array.shape[-1]))) for array in arrays]

        def row(i: int, length: int) -> dict[str, np.ndarray]:
            return {name: np.pad(arrays[i], ((0, length - frames[i]), (0, 0)), mode="edge")}  # what follows the end sounds like it

        return [out["audio"][: n * self.hop] for n, out in zip(frames, self._by_length(program, frames, row, **options))]

    def _by_length(self, program: str, frames: Sequence[int], row: Callable[[int, int], dict[str, np.ndarray]],
                   **options: Any) -> list[dict[str, np.ndarray]]:
        """Outputs of rows of so many `frames`, in their order; those that fit one static length run together. `row(i, length)` is row i
        padded to it, by what the network hears ahead or more: so a length has the same output at every padding."""
        if program not in self.programs:
            raise ValueError(f"{self.name} has no program {program!r}; it has {sorted(self.programs)}")
        ahead = self.reach(program.split("_")[0])[1]
        lengths = [ladder(n + ahead) for n in frames]
        made: list[dict[str, np.ndarray]] = [{}] * len(frames)
        for length in sorted(set(lengths)):
            places = [i for i, n in enumerate(lengths) if n == length]
            outs = self.run(program, [row(i, length) for i in places], sizes={"s": length * self.hop, "t": length}, **options)
            for i, out in zip(places, outs):
                made[i] = out
        return made

    # Codec, as a stream.

    def reach(self, part: str) -> tuple[int, int]:
        """(left, right): programs "encode" and "decode" make frame t of frames t-left..t+right. Raises ValueError where there are none."""
        network = getattr(self.system, "codec_network", None)
        if part not in self.programs or network is None:
            raise ValueError(f"{self.name} has no program {part!r} on a codec; it has {sorted(self.programs)}")
        return network.reach(part)

    def encode_stream(self, blocks: Iterable[np.ndarray], chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """Blocks of audio float32 `[s]`, or `[b, s]` for b channels, of any lengths -> codes int32 `[t, q]` or `[b, t, q]`, `chunk` frames
        each but the last; `ceil(total / hop)` frames in all, of which the last is completed with zeros.

        Joined, they are what `encode` gives for the whole at once, in memory that does not grow. Live, a frame is given when
        `chunk - 1 + right` more have come (`reach`; right is 0 for a causal codec); a small chunk costs more work a frame.

        Raises ValueError for blocks of other shapes, for a stream without samples, for a model that is no codec.
        """
        reach, axes = self.reach("encode"), streams.Rows("audio", "s")
        for window, begin, end in streams.windows(streams.framed(axes.split(map(checked, blocks)), self.hop), chunk, reach, "constant"):
            t = window.shape[1]
            rows = [{"audio": row.reshape(-1)} for row in window]
            outs = self.run("encode", rows, sizes={"s": t * self.hop, "t": t})
            kind = np.int32 if self.unit == "codes" else np.float32
            yield axes.join([out[self.unit][begin:end].astype(kind) for out in outs])

    def decode_stream(self, blocks: Iterable[np.ndarray], levels: int | None = None, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """Blocks of codes `[t, q]`, or `[b, t, q]`, of any lengths -> audio float32 `[t * hop]` or `[b, t * hop]`, as `encode_stream`.

        From the first `levels` levels, where given; q may be smaller than the model's.
        """
        reach, axes, known = self.reach("decode"), streams.Rows(self.unit, "tq"), self.system.sizes.get("q", 0)
        for window, begin, end in streams.windows(axes.split(blocks), chunk, reach, "edge"):
            given = window.shape[-1]
            if known:
                self._check_codes(window, min(levels, given) if levels and levels > 0 else levels)
            used = min(levels or given, given) if known else 0
            sizes = {"s": window.shape[1] * self.hop, "t": window.shape[1]}
            rows = [{self.unit: np.pad(row, ((0, 0), (0, known - given if known else 0)))} for row in window]
            outs = self.run("decode", rows, sizes=sizes, levels=used if used < known else None)
            yield axes.join([out["audio"][begin * self.hop : end * self.hop] for out in outs])

    # Speech.

    def pronunciations(self, lexicon: Any) -> dict[str, tuple[str, ...]]:
        """The user's `lexicon` (a file or a dict) over the one that came with the model. Raises as `text.front.read_lexicon`."""
        return {**self.lexicon, **front.read_lexicon(lexicon)}

    def listen(self, voice: prompts.Said | Any) -> np.ndarray:
        """A recording of a voice as prompts are heard: float32 `[s]` at the model's rate, trimmed, at the training data's level."""
        return prompts.listen(self, voice)[0]

    def framed(self, audio: np.ndarray) -> np.ndarray:
        """Whole frames of `audio [s]`, float32 `[s // hop, hop]`. Raises AudioError where there is none."""
        if len(audio) < self.hop:
            raise files.AudioError("short", f"audio of {len(audio)} samples is shorter than one frame ({self.hop} samples)")
        return np.asarray(audio[: len(audio) // self.hop * self.hop], np.float32).reshape(-1, self.hop)

    def prompt(self, prompt: Prompt | None) -> np.ndarray:
        """What `hear` hears of a voice, of which only the frames; what it says need not be known."""
        return prompts.voice(self, prompt).codes

    def hear(self, prompt: Prompt | None, lexicon: Any = None, language: str = "en") -> prompts.Heard:
        """A voice (file, or samples with their rate), or several recordings of it -> its frames as `encode` gives them (of a system that hears
        audio, float32 `[u, hop]`), of at most HEARD_PROMPT seconds (of the longest prompt of training where the system cannot listen in windows),
        what names it and what was done to it. A prompt that is heard once can be given again and again at no cost.

        Silent ends are trimmed and the level is matched to the training data's. A model that `continues` wants `Said`s, whose phones go by
        `lexicon` and `language`. None is no prompt: a voice by chance. Raises AudioError (a ValueError) for what is no usable audio, ValueError
        as `prompts.hear`.
        """
        return prompts.hear(self, prompt, self.pronunciations(lexicon), language)

    def speak(self, text: str | Score, prompt: Prompt, seed: int = 0, steps: int | None = None, lexicon: Any = None,
              language: str = "en", **options: Any) -> Speech:
        """`text` in the voice of `prompt`; the same arguments give the same samples.

        Args:
          text: or a `Score`, which says how long each phone is and at which pitch.
          prompt: a recording of the voice, or several: file names, or (samples, rate).
          seed: of the noise.
          steps: of the sampler; options: the others of programs `sample` (guidance, temperature, sampler) and `durations`
            (speed), and `pitch_shift`, semitones added to the pitch.
          lexicon: the user's pronunciations, a file or a dict (`text.front.read_lexicon`).
          language: espeak-ng's name of it.

        Raises:
          ValueError: empty or unpronounceable text, unusable prompt, unknown option, a model that does not speak.
        """
        return self.speak_batch([(text, prompt)], [seed], steps=steps, lexicon=lexicon, language=language, **options)[0]

    def speak_batch(self, requests: Sequence[tuple[str | Score, Prompt]], seeds: int | Sequence[int] = 0, steps: int | None = None,
                    lexicon: Any = None, language: str = "en", failures: dict[int, str] | None = None,
                    **options: Any) -> list[Speech | None]:
        """Many (text, prompt) at once, in order. `seeds`: one for all or one each.

        A request that fails is raised. With a dict of `failures` it is None, its place and the reason go there, and the others go on.
        """
        return speech.speak_batch(self, requests, seeds, steps, lexicon, language, failures, options)

    def __call__(self, text: str | Score, prompt: Prompt, seed: int = 0, **options: Any) -> Speech:
        """`speak`, by its short name."""
        return self.speak(text, prompt, seed, **options)

    def batch(self, requests: Sequence[tuple[str | Score, Prompt]], seed: int = 0, **options: Any) -> list[Speech]:
        """Many (text, prompt) at once, in order; each sounds as it does alone. What is wrong with one is raised (`speak_batch` can go on)."""
        return self.speak_batch(requests, seed, **options)

    def stream(self, text: str, prompt: Prompt, seed: int = 0, lexicon: Any = None, language: str = "en", **options: Any) -> Iterator[Speech]:
        """`text` sentence by sentence, each given as soon as it is made; `inference.joined` puts them together.

        Sentence k has the seed `seed + k`, so that one alone is what `speak` gives. A sentence of hardly a word goes with the next. The text
        and the prompt are looked at before anything is spoken: what `speak` raises is raised by the call itself.
        """
        speech.check(self, options.get("steps"), {name: value for name, value in options.items() if name != "steps"})
        parts, seed = sentences.scores(text, self.pronunciations(lexicon), language), provenance.whole(seed)
        voice = self.hear(prompt, lexicon, language)
        return (self.speak(part, voice, seed + k, **options) for k, part in enumerate(parts))

    def warm_up(self, rows: Sequence[int] = (1,), prompt: Prompt | None = None, **options: Any) -> list[tuple[int, int, float]]:
        """Compiles what speaking needs, for each bucket and each number of `rows` (rounded up to 1, 2, 4 or 8 a device), with a prompt as
        long as those of training or the one given. Returns (bucket, rows, seconds) of each. `options`: those that will be used."""
        return sentences.warm_up(self, rows, prompt, options)


def checked(audio: np.ndarray) -> np.ndarray:
    """`audio` as an array. Raises AudioError for what is no float audio: integers would be taken for audio thousands of times too loud."""
    audio = np.asarray(audio)
    if audio.dtype.kind != "f":
        raise files.AudioError("unreadable", f"audio is {audio.dtype}; expected float samples from -1 to 1")
    if not np.isfinite(audio).all():
        raise files.AudioError("nan", "audio has samples that are NaN or infinite")
    return audio


def ladder(frames: int) -> int:
    """The static length for `frames`: powers of two and halves between (64, 96, 128, 192, ...), so few are compiled."""
    size = 64
    while size < frames:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
