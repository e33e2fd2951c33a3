"""Audio files in and out: one rate, one channel, float32 in [-1, 1], and a refusal that says why.

Everything that reads somebody's file comes through `read`, so that nothing unreadable, empty, silent or broken
reaches a model as a wrong result. `AudioError.reason` is one word, for counting rejects.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from ns2_jax.audio import lengths

LEVEL = 0.08  # RMS of active speech that prompts are brought to (about -22 dBFS)
PEAK = 0.97  # highest absolute sample that we make: leaves room for the overshoot of a resampler behind us
MAX_SECONDS = 1800.0  # half an hour: longer than any utterance or prompt, short enough to fit in memory
MAX_SAMPLES = 1 << 28  # of all channels together: what is read at once fits into 1 GiB as float32
MAX_RATE = 768_000
CHANNELS = 1024  # more no file has: samples and channels are the wrong way round
SILENT = 1e-4  # peak under which a file holds no signal (-80 dBFS)
SUBTYPES = {".wav": "PCM_16", ".flac": "PCM_16", ".ogg": None}
ENCODED = {**SUBTYPES, ".mp3": "MPEG_LAYER_III"}  # what `encode` makes
STREAMS = (".wav", ".flac")  # what is written block by block
BLOCK = 4.0  # seconds read at once from what is read block by block
LEAD = 32 * 1152  # samples of an MP3 decoded before the first that is asked for: its frame may hold bits of up to 24 frames before it
LOUDEST = 8.0  # decoders overshoot 1; samples beyond this are in another unit
UNKNOWN = 1 << 60  # libsndfile's count of samples from here on says that a header has none
LONGEST_WAV = 0xFFFFFF00  # bytes
SYSTEM_ERROR = 2  # libsndfile's code for what the operating system refused
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")  # libsndfile's names of those whose length is known or found out
VORBIS = 0.2  # libsndfile's compression level, its quality 8: at the usual 0.6 a recogniser hears other words in one recording of sixteen


class AudioError(ValueError):
    """A file that can't be used. `reason` is one of missing, unreadable, empty, nan, silent, short, long."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def resample(audio: np.ndarray, source: int, target: int) -> np.ndarray:
    """`audio [s]` at `source` Hz -> float32 `[s * target / source]` at `target` Hz (soxr, high quality)."""
    audio = np.asarray(audio, np.float32)
    if source == target or audio.size == 0:
        return audio
    return soxr.resample(audio, source, target, quality="HQ").astype(np.float32)


def resample_all(audios: Sequence[np.ndarray | None], source: int, target: int) -> list[np.ndarray | None]:
    """`resample` of each; None (no audio) stays None."""
    return [None if audio is None else resample(audio, source, target) for audio in audios]


def has_signal(audio: np.ndarray | None, least: int = 1) -> bool:
    """Whether there is anything to hear in `[s]`: at least so many samples, finite and not silent."""
    return audio is not None and audio.size >= max(least, 1) and bool(np.isfinite(audio).all()) and float(np.abs(audio).max()) >= SILENT


def check(audio: np.ndarray, rate: int, name: str = "audio", min_seconds: float = 0.0, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """`audio [s]` or `[s, channels]` of any dtype -> float32 mono `[s]`, refused by AudioError when it holds no usable signal."""
    audio = np.asarray(audio)
    if np.issubdtype(audio.dtype, np.integer):
        lowest, highest = float(np.iinfo(audio.dtype).min), float(np.iinfo(audio.dtype).max)
        half = (highest - lowest + 1) / 2
        audio = ((audio - (lowest + half)) / half).astype(np.float32)
    if audio.ndim == 2:
        if audio.shape[1] > CHANNELS:
            raise AudioError("unreadable", f"{name}: {audio.shape[1]} channels of {len(audio)} samples, expected [s, channels]; transpose it")
        audio = audio.mean(-1)
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
        raise AudioError("unreadable", f"{name}: expected samples [s] or [s, channels], got {audio.dtype}{list(audio.shape)}")
    audio = audio.astype(np.float32)
    if audio.size == 0:
        raise AudioError("empty", f"{name}: there is no audio in it")
    if not np.isfinite(audio).all():
        raise AudioError("nan", f"{name}: {int((~np.isfinite(audio)).sum())} of {audio.size} samples are NaN or infinite")
    if np.abs(audio).max() > LOUDEST:
        raise AudioError("unreadable", f"{name}: samples up to {np.abs(audio).max():.3g}, expected them in [-1, 1]; scale it first")
    if np.abs(audio).max() < SILENT:
        raise AudioError("silent", f"{name}: silent (peak {np.abs(audio).max():.1e}, expected more than {SILENT:.0e})")
    seconds = audio.size / rate
    if seconds < min_seconds:
        raise AudioError("short", f"{name}: {seconds:.2f} s long, at least {min_seconds:g} s are needed")
    if seconds > max_seconds:
        raise AudioError("long", f"{name}: {seconds:.0f} s long, at most {max_seconds:g} s are accepted; cut it first")
    return audio


def read(path: str | os.PathLike, rate: int = 16000, min_seconds: float = 0.0, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """A WAV, FLAC, OGG or MP3 file -> float32 mono `[s]` at `rate` Hz; channels are averaged.

    Raises:
      AudioError (a ValueError): not a file, not audio, empty, NaN, silent, under `min_seconds` or over `max_seconds`.
        The length is checked from the header, before anything is decoded.
    """
    path = Path(path)
    with Recording(path) as file:
        source = file.rate
        if file.seconds > max_seconds:
            raise AudioError("long", f"{path}: {file.seconds:.0f} s long, at most {max_seconds:g} s are accepted; cut it first")
        if file.frames * file.channels > MAX_SAMPLES:
            size = f"{file.channels} channels of {file.frames} samples are {file.frames * file.channels / 2**20:.0f} million"
            raise AudioError("long", f"{path}: {size}, at most {MAX_SAMPLES / 2**20:.0f} million are accepted; cut it first")
        audio = file.read(0, file.frames)
    return resample(check(audio, source, str(path), min_seconds, max_seconds), source, rate)


def seconds(path: str | os.PathLike) -> float:
    """How long an audio file is, from its header. Raises AudioError for what is not one."""
    with Recording(path) as file:
        return file.seconds


class Recording:
    """An audio file that is open, all its channels: a context manager. `read` gives a part, `blocks` one part after the other.

    `rate` Hz, `channels`, `frames` (samples of a channel that can be read). Raises AudioError as the function `read` does, and for a file
    that says itself, or by its own frames (lengths.py), that there was more than can be read.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file, self._stream = _open(self.path), None
        try:
            self._find_length()
        except BaseException:
            self.close()
            raise
        self.rate, self.channels, self.frames = self._file.samplerate, self._file.channels, self._file.frames

    def _find_length(self) -> None:
        file, problem = self._file, ""
        if file.format == "OGG":
            problem = lengths.ogg(self.path)
        elif file.subtype == "MPEG_LAYER_III":
            counted = lengths.mpeg(self.path)
            problem = counted.problem
            if not problem and counted.guessed(file.frames):
                self._file.close()
                self._stream = lengths.with_header(self.path)
                self._file = _open(self.path, self._stream)
        elif (promised := lengths.wav(file.extra_info, file.frames)) > file.frames:
            problem = f"damaged or cut short: {{seconds:.2f}} s of {promised / file.samplerate:.2f} s can be read"
        if problem:
            raise AudioError("unreadable", f"{self.path}: {problem.format(seconds=file.frames / file.samplerate)}")

    def close(self) -> None:
        self._file.close()
        if self._stream:
            self._stream.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Samples `start` to `stop` (the end) of every channel, float32 `[s, channels]`. Raises AudioError where there are fewer."""
        stop = self.frames if stop is None else min(stop, self.frames)
        lead = min(start, LEAD) if self._file.format == "MP3" else 0
        try:
            self._file.seek(start - lead)
            audio = self._file.read(lead + stop - start, dtype="float32", always_2d=True)[lead:]
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise AudioError("unreadable", f"{self.path}: not an audio file we can read (wav, flac, ogg, mp3): {_detail(error)}") from error
        if start + len(audio) < stop:
            raise self._short(start + len(audio))
        return audio

    def _short(self, total: int) -> AudioError:
        return AudioError("unreadable", f"{self.path}: damaged or cut short: {total / self.rate:.2f} s of {self.seconds:.2f} s can be read")

    def blocks(self, rate: int) -> Iterator[np.ndarray]:
        """float32 `[channels, s]` at `rate` Hz, of about BLOCK seconds: joined they are the whole, resampled at once.

        Raises AudioError for samples that are NaN or far beyond [-1, 1], and at the end when there are fewer than the header says.
        """
        change = soxr.ResampleStream(self.rate, rate, self.channels, "float32", quality="HQ") if rate != self.rate else None
        self._file.seek(0)
        total = 0
        while True:
            try:
                audio = self._file.read(max(int(BLOCK * self.rate), 1), dtype="float32", always_2d=True)
            except (soundfile.SoundFileError, RuntimeError) as error:
                raise AudioError("unreadable", f"{self.path}: damaged after {total / self.rate:.1f} s: {_detail(error)}") from error
            if not len(audio):
                break
            if not np.isfinite(audio).all():
                raise AudioError("nan", f"{self.path}: NaN or infinite samples at {total / self.rate:.1f} s")
            if (peak := np.abs(audio).max()) > LOUDEST:
                raise AudioError("unreadable", f"{self.path}: samples up to {peak:.3g}, expected them in [-1, 1]; scale it first")
            total += len(audio)
            audio = change.resample_chunk(audio) if change else audio
            if len(audio):
                yield np.ascontiguousarray(audio.T)
        if total < self.frames:
            raise self._short(total)
        if not total:
            raise AudioError("empty", f"{self.path}: there is no audio in it")
        rest = change.resample_chunk(np.zeros((0, self.channels), np.float32), last=True) if change else audio
        if len(rest):
            yield np.ascontiguousarray(rest.T)


def _detail(error: Exception) -> str:
    return str(error).rstrip(".").split(": ")[-1]


def _open(path: Path, source: BinaryIO | None = None) -> soundfile.SoundFile:
    """An audio file, or `source` in its place; format, sample rate and length are checked. Raises AudioError."""
    if not path.is_file():
        what = "is a folder, expected an audio file" if path.is_dir() else "no such audio file"
        raise AudioError("missing", f"{path}: {what}")
    try:
        file = soundfile.SoundFile(source or path)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:  # TypeError: headerless .raw wants to be told its rate
        raise AudioError("unreadable", f"{path}: not an audio file we can read (wav, flac, ogg, mp3): {_detail(error)}") from error
    if file.format not in FORMATS:
        file.close()
        raise AudioError("unreadable", f"{path}: {file.format} is no format that we can read (wav, flac, ogg, mp3); convert it to .wav or .flac")
    if not 0 < file.samplerate <= MAX_RATE:
        file.close()
        raise AudioError("unreadable", f"{path}: sample rate {file.samplerate} Hz is out of range (1 to {MAX_RATE})")
    if file.frames >= UNKNOWN:
        file.close()
        raise AudioError("unreadable", f"{path}: its header does not say how long it is (a FLAC file from a pipe); convert it to .wav")
    return file


@contextlib.contextmanager
def replacing(path: str | os.PathLike, suffixes: Sequence[str]) -> Iterator[str]:
    """The name of a temporary file beside `path`, renamed to it when the block ends and deleted when it raises: whole or not at all.

    Raises ValueError for another suffix than `suffixes`, FileNotFoundError when the folder does not exist, and for a place that can't be
    written or is full an OSError or, where libsndfile says no more, a ValueError; they name `path`.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: can't write {path.suffix or 'a file without suffix'!r}, expected {' '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file name")
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix.lower(), dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, f"can't be written: {error.strerror}", str(path)) from error
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~UMASK)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, soundfile.LibsndfileError):
            full = "; is the disk full?" if error.code == SYSTEM_ERROR else ""
            raise ValueError(f"{path}: can't be written: {_detail(error)}{full}") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not error.filename:
            raise OSError(error.errno, f"can't be written: {error.strerror}", str(path)) from error
        raise


def _rounded(audio: np.ndarray, subtype: str | None) -> np.ndarray:
    """What a file of `subtype` holds, rounded here: libsndfile truncates for one format and rounds for another."""
    audio = np.clip(audio, -1.0, 1.0)
    return np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16) if subtype == "PCM_16" else audio


def _put(target: str | BinaryIO, audio: np.ndarray, rate: int, suffix: str, tags: Mapping[str, str]) -> None:
    subtype = ENCODED[suffix]
    level = None if suffix in STREAMS or suffix == ".mp3" else VORBIS
    with soundfile.SoundFile(target, "w", rate, 1, subtype, format=suffix[1:].upper(), compression_level=level) as file:
        for name, text in tags.items():
            setattr(file, name, text)
        file.write(_rounded(audio, subtype))


def write(path: str | os.PathLike, audio: np.ndarray, rate: int, tags: Mapping[str, str] | None = None) -> None:
    """Writes `audio [s]` as .wav or .flac (16 bit) or .ogg; values beyond [-1, 1] are clipped. `tags` are texts of libsndfile's names, as
    title and comment.

    The file appears whole or not at all: a temporary file beside it is renamed. Raises ValueError for another
    suffix or for NaN, FileNotFoundError when the folder does not exist.
    """
    with replacing(path, tuple(SUBTYPES)) as temporary:
        audio = np.asarray(audio, np.float32)
        if audio.ndim != 1 or not np.isfinite(audio).all():
            broken = int((~np.isfinite(audio)).sum())
            raise ValueError(f"{path}: refusing to write {audio.dtype}{list(audio.shape)} with {broken} non-finite samples")
        _put(temporary, audio, rate, Path(path).suffix.lower(), tags or {})


@contextlib.contextmanager
def create(path: str | os.PathLike, rate: int, channels: int) -> Iterator[Callable[[np.ndarray], None]]:
    """`write` of a stream: gives a function that takes blocks float32 `[channels, s]`; the file appears whole when the block ends.

    .wav or .flac (16 bit; FLAC has at most 8 channels). Raises ValueError as `write` does.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".flac" and channels > 8:
        raise ValueError(f"{path}: FLAC has at most 8 channels, not {channels}; write .wav")
    with replacing(path, STREAMS) as temporary:
        size = 0
        with soundfile.SoundFile(temporary, "w", rate, channels, SUBTYPES[suffix]) as file:

            def add(audio: np.ndarray) -> None:
                nonlocal size
                if not np.isfinite(audio).all():
                    raise ValueError(f"{path}: refusing to write {int((~np.isfinite(audio)).sum())} non-finite samples")
                size += 2 * audio.size
                if suffix == ".wav" and size > LONGEST_WAV:
                    raise ValueError(f"{path}: more than 4 GB, which WAV can't hold; write .flac")
                file.write(_rounded(audio.T, SUBTYPES[suffix]))

            yield add


def encode(audio: np.ndarray, rate: int, suffix: str = ".flac", tags: Mapping[str, str] | None = None) -> bytes:
    """`audio [s]` as the bytes of a file (.wav, .flac, .ogg, .mp3), for pages and servers. Raises ValueError for another suffix, or a rate
    that the format does not have."""
    if suffix not in ENCODED:
        raise ValueError(f"can't encode as {suffix!r}, expected one of {' '.join(ENCODED)}")
    file = io.BytesIO()
    try:
        _put(file, np.asarray(audio, np.float32), rate, suffix, tags or {})
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"audio of {rate} Hz can't be encoded as {suffix[1:]}: {_detail(error)}") from error
    return file.getvalue()


def wav_head(rate: int, tags: Mapping[str, str]) -> bytes:
    """The header of a mono 16-bit WAV of unknown length, to be followed by samples as they come; `tags` as `write` has them."""
    names = {"title": b"INAM", "comment": b"ICMT"}
    info = b"INFO"
    for name, text in tags.items():
        raw = text.encode() + b"\0"
        info += names[name] + struct.pack("<I", len(raw)) + raw + b"\0" * (len(raw) % 2)
    endless = struct.pack("<I", 0xFFFFFFFF)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + endless + b"WAVE" + form + b"LIST" + struct.pack("<I", len(info)) + info + b"data" + endless


def pcm(audio: np.ndarray) -> bytes:
    """`audio [s]` as the 16-bit little-endian samples that `wav_head` announces."""
    return _rounded(np.asarray(audio, np.float32), "PCM_16").astype("<i2").tobytes()


def read_tags(source: str | os.PathLike | BinaryIO) -> dict[str, str]:
    """The texts in an audio file. Raises AudioError for what is none."""
    try:
        with soundfile.SoundFile(source) as file:
            return file.copy_metadata()
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise AudioError("unreadable", f"{source}: not an audio file we can read (wav, flac, ogg, mp3): {_detail(error)}") from error


def _umask() -> int:
    """It can only be read by setting it, which is the whole process's: once, before there are threads."""
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


UMASK = _umask()


def frame_rms(audio: np.ndarray, rate: int, window: float = 0.02) -> np.ndarray:
    """RMS of each `window` seconds `[ceil(s / size)]`; the last window is padded with zeros."""
    size = max(int(round(rate * window)), 1)
    padded = np.pad(np.asarray(audio, np.float64), (0, -len(audio) % size))
    return np.sqrt(np.square(padded).reshape(-1, size).mean(-1))


def active_rms(audio: np.ndarray, rate: int, below_db: float = 40.0) -> float:
    """RMS over the 20 ms windows within `below_db` of the loudest one, so pauses do not set the level."""
    levels = frame_rms(audio, rate)
    active = levels[levels >= levels.max() * 10 ** (-below_db / 20)]
    return float(np.sqrt(np.square(active).mean()))


def match_loudness(audio: np.ndarray, rate: int, level: float = LEVEL, peak: float = PEAK) -> np.ndarray:
    """`audio [s]` scaled so that its active RMS is `level`, or its peak `peak` where that comes first."""
    loudness = active_rms(audio, rate)
    if loudness <= 0:
        raise AudioError("silent", "silent: there is no level to match")
    gain = min(level / loudness, peak / float(np.abs(audio).max()))
    return (np.asarray(audio, np.float32) * np.float32(gain)).astype(np.float32)


def trim_silence(audio: np.ndarray, rate: int, below_db: float = 40.0, margin: float = 0.05) -> np.ndarray:
    """`audio [s]` without the windows at both ends more than `below_db` under the loudest; `margin` seconds stay."""
    levels = frame_rms(audio, rate)
    active = np.flatnonzero(levels >= max(levels.max() * 10 ** (-below_db / 20), 1e-12))
    if active.size == 0:
        return np.asarray(audio)[:0]
    size = max(int(round(rate * 0.02)), 1)
    keep = int(round(margin * rate))
    return np.asarray(audio)[max(active[0] * size - keep, 0) : (active[-1] + 1) * size + keep]
