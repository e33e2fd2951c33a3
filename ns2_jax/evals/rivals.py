"""Other codecs, scored beside ours in the same run at about the same rates. All are offline.

    opus           libopus, by libsndfile. For every rate asked for, the bitrate it aims at is sought until its packets' bits over all
                   items (container and headers not counted) are at that rate; what lies under its lowest is left out
    encodec:DIR    EnCodec (Defossez et al. 2022) of one channel, from a folder that transformers reads, at the bandwidths that
                   it was trained for; it needs transformers and torch
    dac:DIR        DAC (Kumar et al. 2023), likewise, at any number of codebooks

Of the last two each rate asked for has the nearest of theirs. A model at another sample rate is resampled both ways.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tqdm

from ns2_jax.audio import files, opus

KINDS = "opus, encodec:DIR or dac:DIR"
ENOUGH, CLOSE, SEARCHES = 0.02, 0.05, 8  # of the rate asked for: where Opus's search ends, what still counts as that rate; passes
SUFFIXES = (".bin", ".json", ".safetensors")  # of the files that make a model what it is
Gather = Callable[[list], list]  # this host's rows -> those of all hosts


@dataclasses.dataclass(frozen=True)
class Made:
    """What a rival made of the items at one rate: its condition, audio float32 `[s]` of each, the rate that was measured, in kbit/s
    over all items, and what a fingerprint says of it."""

    condition: str
    audios: list[np.ndarray]
    kbps: float
    about: Mapping[str, Any]


class Rival(Protocol):
    def check(self) -> None:
        """Raises what is wrong with it before any work: ImportError, FileNotFoundError, ValueError."""

    def make(self, audios: Sequence[np.ndarray], rate: int, wanted: Sequence[float], gather: Gather, progress: bool) -> list[Made]:
        """What it makes of `audios` at `rate` Hz for each of the `wanted` kbit/s that it reaches."""


def _label(kind: str, kbps: float) -> str:
    return f"{kind}_{round(kbps, 2):g}"


def _fit(audio: np.ndarray, length: int) -> np.ndarray:
    return np.pad(audio[:length], (0, max(0, length - len(audio)))).astype(np.float32)


def _rate(bits: Sequence[float], audios: Sequence[np.ndarray], rate: int, gather: Gather) -> float:
    """kbit/s over the items of all hosts."""
    rows = gather([[float(b), len(audio) / rate] for b, audio in zip(bits, audios, strict=True)])
    total, seconds = np.sum(rows, axis=0)
    return float(total / seconds / 1000)


class Opus:
    def check(self) -> None:
        opus.check()

    def make(self, audios: Sequence[np.ndarray], rate: int, wanted: Sequence[float], gather: Gather = list,
             progress: bool = True) -> list[Made]:
        @functools.cache
        def at(aim: float) -> tuple[float, list[bytes], float]:
            coded = [opus.encode(audio, rate, aim) for audio in tqdm.tqdm(audios, f"opus {aim / 1000:.1f}", mininterval=2, disable=not progress)]
            return aim, coded, _rate([8 * opus.payload(data) for data in coded], audios, rate, gather)

        made = []
        for kbps in sorted(wanted):
            aim, coded, reached = self.search(at, kbps)
            if abs(reached / kbps - 1) <= CLOSE:
                whole = _rate([8 * len(data) for data in coded], audios, rate, gather)
                about = {"encoder": f"{opus.version()}, aiming at {aim:.0f} bit/s", "kbps": round(reached, 3), "kbps_with_ogg": round(whole, 3)}
                heard = [_fit(opus.decode(data, rate), len(audio)) for data, audio in zip(coded, audios)]
                made.append(Made(_label("opus", kbps), heard, reached, about))
        return made

    @staticmethod
    def search(at: Callable[[float], tuple[float, list[bytes], float]], kbps: float) -> tuple[float, list[bytes], float]:
        """(bit/s aimed at, files, kbit/s reached) where what is reached is nearest to `kbps`, of the passes `at` that are made.

        It goes about linearly with the aim, in steps of a byte a packet (0.4 kbit/s): regula falsi, which ends within ENOUGH.
        """
        low = high = None  # passes under and over the rate
        best, aim = None, 1000 * kbps
        for _ in range(SEARCHES):
            aim = min(max(aim, opus.LOWEST), opus.HIGHEST)
            found = at(aim)
            reached = found[2]
            best = found if best is None or abs(reached - kbps) < abs(best[2] - kbps) else best
            low, high = (found, high) if reached < kbps else (low, found)
            if abs(reached / kbps - 1) <= ENOUGH or (aim == opus.LOWEST and reached > kbps) or (aim == opus.HIGHEST and reached < kbps):
                break
            if low and high:
                share = (kbps - low[2]) / (high[2] - low[2])
                aim = low[0] + min(max(share, 0.1), 0.9) * (high[0] - low[0])
            else:
                aim += 1500 * (kbps - reached)
        return best


class Neural:
    """A codec of codebooks from a folder that transformers reads. A level is a codebook."""

    CLASSES = {"encodec": "EncodecModel", "dac": "DacModel"}

    def __init__(self, kind: str, folder: str):
        self.kind, self.folder, self.spec = kind, Path(folder), f"{kind}:{folder}"

    @functools.cached_property
    def model(self) -> Any:
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"--rivals={self.spec}: there is no {self.folder}/config.json; expected a folder on this machine that "
                                    "transformers reads (nothing is downloaded)")
        try:
            importlib.import_module("torch")
            library = importlib.import_module("transformers")
        except ImportError as error:
            raise ImportError(f"--rivals={self.spec} needs the package {error.name}: pip install transformers torch") from error
        try:
            model = getattr(library, self.CLASSES[self.kind]).from_pretrained(str(self.folder), local_files_only=True).float().eval()
        except Exception as error:  # pylint: disable=broad-except (what a damaged file raises is the library's choice)
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"--rivals={self.spec}: transformers can't read it: {reason}") from error
        if model.config.model_type != self.kind or getattr(model.config, "audio_channels", 1) != 1:
            raise ValueError(f"--rivals={self.spec}: a model of type {model.config.model_type!r} with "
                             f"{getattr(model.config, 'audio_channels', 1)} channels, expected {self.kind!r} with one")
        return model.requires_grad_(False)

    @property
    def hop(self) -> int:
        """Samples a frame at the model's rate; the configuration of an EnCodec does not say it in every release of transformers."""
        return math.prod(self.model.config.upsampling_ratios) if self.kind == "encodec" else self.model.config.hop_length

    @property
    def levels(self) -> dict[int, float]:
        """Codebooks that it can be used with -> kbit/s."""
        config = self.model.config
        each = math.log2(config.codebook_size) * config.sampling_rate / self.hop / 1000
        if self.kind == "dac":
            counts = range(1, config.n_codebooks + 1)
        else:
            counts = sorted({max(1, math.floor(kbps / each + 1e-6)) for kbps in config.target_bandwidths})
        return {n: n * each for n in counts}

    def check(self) -> None:
        """Also loads it and codes a tenth of a second, so that a broken model is found now."""
        self.code(np.zeros(self.model.config.sampling_rate // 10, np.float32), self.model.config.sampling_rate, list(self.levels)[-1:])

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hex digits of the model's files."""
        sha = hashlib.sha256()
        for path in sorted(path for path in self.folder.iterdir() if path.suffix in SUFFIXES and path.is_file()):
            with path.open("rb") as file:
                sha.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return sha.hexdigest()[:12]

    def code(self, audio: np.ndarray, rate: int, levels: Sequence[int]) -> tuple[list[np.ndarray], int]:
        """(audio `[s]` decoded from each number of `levels`, frames of codes)."""
        model, config = self.model, self.model.config
        inside = files.resample(audio, rate, config.sampling_rate)
        padded = np.pad(inside, (0, -len(inside) % self.hop))
        values = next(model.parameters()).new_tensor(padded)[None, None]
        if self.kind == "dac":
            codes = model.encode(values).audio_codes  # [1, q, t]
            decode = lambda n: model.decode(audio_codes=codes[:, :n]).audio_values
        else:
            coded = model.encode(values, bandwidth=max(config.target_bandwidths))
            codes = coded.audio_codes  # [chunks, 1, q, t]
            decode = lambda n: model.decode(codes[:, :, :n], coded.audio_scales).audio_values
        if (most := max(levels)) > codes.shape[-2]:
            raise ValueError(f"--rivals={self.spec}: it codes with {codes.shape[-2]} codebooks, while its configuration speaks of {most}")
        outs = [decode(n).numpy().reshape(-1)[: len(inside)] for n in levels]
        return [_fit(files.resample(out, config.sampling_rate, rate), len(audio)) for out in outs], codes.shape[-1]

    def make(self, audios: Sequence[np.ndarray], rate: int, wanted: Sequence[float], gather: Gather = list,
             progress: bool = True) -> list[Made]:
        levels = sorted({min(self.levels, key=lambda n: abs(math.log(self.levels[n] / kbps))) for kbps in wanted})
        coded = [self.code(audio, rate, levels) for audio in tqdm.tqdm(audios, self.kind, mininterval=2, disable=not progress)]
        packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch"))
        made = []
        for k, n in enumerate(levels):
            reached = _rate([n * frames * math.log2(self.model.config.codebook_size) for _, frames in coded], audios, rate, gather)
            made.append(Made(_label(self.kind, self.levels[n]), [outs[k] for outs, _ in coded], reached, {
                "encoder": f"{self.kind} {self.hash}, {n} codebooks, {packages}", "kbps": round(reached, 3)}))
        return made


@functools.cache
def find(spec: str) -> Rival:
    """The rival of a spec, the same one every time: a model is loaded once. Raises ValueError for what is no spec."""
    kind, _, folder = spec.partition(":")
    if spec == "opus":
        return Opus()
    if kind in Neural.CLASSES and folder.strip():
        return Neural(kind, folder)
    raise ValueError(f"--rivals: {spec!r} is not {KINDS}")
