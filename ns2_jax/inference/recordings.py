"""Recordings to files of codes or mels and back, block by block: memory does not grow with their length, and no file is left half-written."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.lib import format as npy

from ns2_jax.audio import codes, files
from ns2_jax.inference.model import Model
from ns2_jax.maths.spectral import LOUDEST
from ns2_jax.runtime import state, weights

SUFFIX = codes.SUFFIX
READ = (".wav", ".flac", ".ogg", ".mp3")
WRITTEN = files.STREAMS
ABOUT = 0.01  # of a second of a recording, in which headers (an MP3's guesses) may differ from what was read
MEL_BLOCK = 4096  # frames in memory
UNDERSHOOT = 5.0  # nats below the floor of silence, to which a model's predictions may go
Progress = Callable[[float], Any]  # is told the seconds of audio done since it was last told


def codec_hash(model: Model) -> str:
    """The name of a codec in records, checkpoints and code files: 12 hex digits, the hash of its export's weights (for a run, of the
    unrounded export that it would have)."""
    if os.path.exists(os.path.join(model.path, weights.FILE)):
        return weights.weights_hash(model.path)
    flat = state.flatten({"params": jax.device_get(model.params), "rest": jax.device_get(model.rest)})
    kept = {path: leaf for path, leaf in flat.items() if any(re.fullmatch(pattern, path) for pattern in model.system.exported)}
    with tempfile.TemporaryDirectory() as folder:
        return weights.write_weights(folder, state.nest(kept))


class CodeFiles:
    """Files through one codec. Raises ValueError when `model` is not a codec, or has not so many `levels` (default: all)."""

    suffix = codes.SUFFIX

    def __init__(self, model: Model, levels: int | None = None):
        if model.config["system"] != "codec":
            raise ValueError(f"{model.name} is not a codec; give the run or export of a codec, or of a vocoder for mels")
        self.model, known = model, int(model.system.sizes["q"])
        if levels is not None and not 1 <= levels <= known:
            raise ValueError(f"{levels} levels: {model.name} has 1 to {known}")
        self.levels, self.asked = levels or known, levels
        self.known = {"rate": model.rate, "hop": model.hop, "codes": int(model.system.codes), "codec": codec_hash(model)}

    def encode(self, source: str | os.PathLike, target: str | os.PathLike, progress: Progress = lambda seconds: None) -> None:
        """A recording of any rate and channel count (WAV, FLAC, OGG, MP3) -> a code file; each channel is coded on its own.

        Raises AudioError for a recording that can't be used, ValueError or FileNotFoundError for a name that can't be written.
        """
        with files.Recording(source) as recording:
            header = codes.Header(
                levels=self.levels, channels=recording.channels, source_rate=recording.rate, **self.known)
            samples = 0

            def blocks():
                nonlocal samples
                for block in recording.blocks(self.model.rate):
                    samples += block.shape[1]
                    yield block
                    progress(block.shape[1] / self.model.rate)
                if not samples:
                    raise files.AudioError("short", f"{source}: shorter than one sample at {self.model.rate} Hz")

            with codes.create(target, header) as file:
                for block in self.model.encode_stream(blocks()):
                    file.write(block)
                file.finish(samples)

    def decode(self, source: str | os.PathLike, target: str | os.PathLike, progress: Progress = lambda seconds: None) -> None:
        """A code file -> .wav or .flac at the codec's rate, with its channels and as many samples as were encoded, from `levels` or
        all that it holds; samples beyond [-1, 1] are clipped.

        Raises ValueError for a damaged file or one of another codec, ValueError or FileNotFoundError for a name that can't be written.
        """
        with codes.Reader(source) as reader:
            self.check(reader)
            if (self.asked or 0) > reader.header.levels:
                raise ValueError(f"{source} holds {reader.header.levels} levels, not {self.asked}")
            left, rate = reader.samples, self.model.rate
            with files.create(target, rate, reader.header.channels) as write:
                for audio in self.model.decode_stream(reader.blocks(), self.asked):
                    write(audio[:, :left])
                    left -= min(audio.shape[1], left)
                    progress(audio.shape[1] / rate)

    def check(self, reader: codes.Reader) -> None:
        """Raises ValueError unless the codes are this codec's."""
        head = reader.header
        if head.codec != self.known["codec"]:
            raise ValueError(f"{reader.path} holds codes of codec {head.codec}, and {self.model.path} is codec {self.known['codec']}: "
                             "give the model that made them with --model=DIR")
        for name, ours in self.known.items():
            if getattr(head, name) != ours:
                raise ValueError(f"{reader.path} says {name}={getattr(head, name)}, but codec {head.codec} has {ours}: its header is wrong")
        if head.levels > (ours := int(self.model.system.sizes["q"])):
            raise ValueError(f"{reader.path} says levels={head.levels}, but codec {head.codec} has {ours}: its header is wrong")

    def encoded(self, source: str | os.PathLike, target: str | os.PathLike) -> bool:
        """Whether `target` is a code file of this codec with as many levels, whole and as long as the recording `source`."""
        try:
            with codes.Reader(target) as reader:
                self.check(reader)
                return reader.header.levels == self.levels and abs(reader.seconds - seconds_of_audio(source)) < ABOUT * max(reader.seconds, 1)
        except (ValueError, FileNotFoundError):
            return False

    def decoded(self, source: str | os.PathLike, target: str | os.PathLike) -> bool:
        """Whether `target` is a recording with the length, rate and channels of what is in the code file `source`."""
        try:
            with codes.Reader(source) as reader, files.Recording(target) as recording:
                same = (recording.rate, recording.channels) == (self.model.rate, reader.header.channels)
                return same and round(recording.seconds * recording.rate) == reader.samples
        except (ValueError, FileNotFoundError):
            return False

    def seconds(self, path: str | os.PathLike) -> float:
        """How long the recording in a code file is, by its header and end. Raises as `codes.Reader`."""
        with codes.Reader(path) as reader:
            return reader.seconds


class MelFiles:
    """Files through one vocoder: recordings of one voice (channels are averaged) <-> log-mels float32 `[t, bands]` in NumPy's format, in nats, as
    another acoustic model may write them. Raises ValueError where `levels` are asked for, which only codecs have."""

    suffix = ".npy"

    def __init__(self, model: Model, levels: int | None = None):
        if levels is not None:
            raise ValueError(f"--levels={levels}: {model.name} is a vocoder, whose mels have none")
        self.model, self.bands = model, int(model.system.sizes["c"])
        self.lowest = math.log(model.system.network.floor) - UNDERSHOOT

    def encode(self, source: str | os.PathLike, target: str | os.PathLike, progress: Progress = lambda seconds: None) -> None:
        """A recording of any rate and channel count (WAV, FLAC, OGG, MP3) -> its log-mel, the last frame completed with silence. Raises as
        `CodeFiles.encode`."""
        with files.Recording(source) as recording:
            samples = 0

            def blocks():
                nonlocal samples
                for block in recording.blocks(self.model.rate):
                    samples += block.shape[1]
                    yield block.mean(0)
                    progress(block.shape[1] / self.model.rate)
                if not samples:
                    raise files.AudioError("short", f"{source}: shorter than one sample at {self.model.rate} Hz")

            head = lambda frames: {"descr": "<f4", "fortran_order": False, "shape": (frames, self.bands)}
            with files.replacing(target, (self.suffix,)) as temporary, open(temporary, "wb") as out:
                npy.write_array_header_1_0(out, head(0))  # which has room for any number of frames
                frames = 0
                for mel in self.model.encode_stream(blocks()):
                    out.write(np.ascontiguousarray(mel, "<f4").tobytes())
                    frames += len(mel)
                out.seek(0)
                npy.write_array_header_1_0(out, head(frames))

    def decode(self, source: str | os.PathLike, target: str | os.PathLike, progress: Progress = lambda seconds: None) -> None:
        """A log-mel -> .wav or .flac at the vocoder's rate, a hop of samples for every frame; samples beyond [-1, 1] are clipped.

        Raises ValueError for a file that is none, has other bands, or numbers that no log-mel has.
        """
        mel = self.read(source)
        with files.create(target, self.model.rate, 1) as write:
            for audio in self.model.decode_stream(self.checked(source, mel[i : i + MEL_BLOCK]) for i in range(0, len(mel), MEL_BLOCK)):
                write(audio[None])
                progress(len(audio) / self.model.rate)

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """A log-mel `[t, bands]` that stays on disk. Raises ValueError for what is none."""
        expected = f"expected a log-mel in NumPy's format (.npy), float32 [frames, {self.bands}] in nats"
        with open(path, "rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                raise ValueError(f"{path}: is no .npy file; {expected}")
        try:
            mel = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OverflowError, SyntaxError, TypeError) as error:
            raise ValueError(f"{path}: is damaged, empty or of Python's objects; {expected}") from error
        if mel.ndim != 2 or mel.shape[1] != self.bands or not len(mel) or mel.dtype.kind != "f":
            raise ValueError(f"{path}: holds {mel.dtype} {list(mel.shape)}; {expected}")
        return mel

    def checked(self, path: str | os.PathLike, mel: np.ndarray) -> np.ndarray:
        """As float32. Raises ValueError for what no log-mel of a recording holds."""
        with np.errstate(over="ignore"):
            mel = np.asarray(mel, np.float32)
        low, high = float(mel.min()), float(mel.max())
        if not self.lowest <= low <= high <= LOUDEST:
            raise ValueError(f"{path}: goes from {low:.4g} to {high:.4g}, and log-mels of recordings from {self.lowest:.3g} to {LOUDEST:g}: expected "
                             "natural logarithms of magnitudes, as `encode` writes them (no decibels, no powers)")
        return mel

    def encoded(self, source: str | os.PathLike, target: str | os.PathLike) -> bool:
        """Whether `target` is a log-mel as long as the recording `source`."""
        try:
            return abs(self.seconds(target) - seconds_of_audio(source)) < self.model.hop / self.model.rate + ABOUT * self.seconds(target)
        except (ValueError, FileNotFoundError):
            return False

    def decoded(self, source: str | os.PathLike, target: str | os.PathLike) -> bool:
        """Whether `target` is a recording with the length, rate and one channel of what is in `source`."""
        try:
            with files.Recording(target) as recording:
                same = (recording.rate, recording.channels) == (self.model.rate, 1)
                return same and round(recording.seconds * recording.rate) == len(self.read(source)) * self.model.hop
        except (ValueError, FileNotFoundError):
            return False

    def seconds(self, path: str | os.PathLike) -> float:
        """How long the recording of a log-mel is. Raises as `read`."""
        return len(self.read(path)) * self.model.hop / self.model.rate


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What a code file says of itself, every checksum read: the fields of `codes.Header`, seconds, frames, samples, kbit/s, bytes.

    Raises as `codes.Reader`.
    """
    with codes.Reader(path) as reader:
        for _ in reader.blocks():
            pass
        size = os.path.getsize(path)
        return dataclasses.asdict(reader.header) | {
            "samples": reader.samples, "frames": reader.frames, "seconds": reader.seconds, "kbit/s": reader.header.bit_rate / 1000,
            "bytes": size, "kbit/s of the file": size * 8 / reader.seconds / 1000}


def seconds_of_audio(path: str | os.PathLike) -> float:
    """How long a recording is, by its header. Raises AudioError for what can't be read."""
    with files.Recording(path) as recording:
        return recording.seconds
