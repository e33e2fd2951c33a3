"""The one place through which generated audio leaves: as a file, as bytes, as a stream. Each has the mark of `provenance`.

What `recordings` decodes is a recording again and has no mark; the blind pages of listening tests have none either, for it would tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ns2_jax.audio import files
from ns2_jax.inference import provenance
from ns2_jax.inference.speech import Speech

SIDECAR = ".json"  # behind the whole name: speech.wav.json


def _parts(speech: Speech | tuple[np.ndarray, int]) -> tuple[np.ndarray, int, provenance.Origin | None]:
    """(audio within full scale, rate, origin): what is too loud is scaled down as a whole, not clipped."""
    audio, rate, origin = (speech.audio, speech.rate, speech.origin) if isinstance(speech, Speech) else (*speech, None)
    peak = float(np.abs(audio).max(initial=0.0))
    return audio if peak <= 1.0 else audio * (files.PEAK / peak), rate, origin


def write(path: str | os.PathLike, speech: Speech | tuple[np.ndarray, int], recorded: bool = False, origin: provenance.Origin | None = None) -> None:
    """Writes generated audio (.wav, .flac, .ogg), whole or not at all; too loud audio is scaled down, not clipped.

    It is marked as synthetic, and beside a `Speech` lies `PATH.json` with the model's hash, the prompts' and the seed (beside what has no origin
    none, and one of another file that was there is taken away). `recorded` says
    that the samples are somebody's recording after all, or what a codec made of one (evaluations keep those beside the synthesis), which is
    not marked; `origin` is of samples that are no `Speech` any more. Raises ValueError or FileNotFoundError for a name that can't be written.
    """
    audio, rate, own = _parts(speech)
    origin = origin or own
    files.write(path, audio, rate, {} if recorded else provenance.tags(origin))
    if origin is not None:
        write_text(sidecar_of(path), provenance.sidecar(origin, path, len(audio) / rate, rate))
    else:
        sidecar_of(path).unlink(missing_ok=True)  # it would speak of another file


def sidecar_of(path: str | os.PathLike) -> Path:
    """Where the sidecar of an audio file lies."""
    return Path(f"{os.fspath(path)}{SIDECAR}")


def encode(speech: Speech, suffix: str = ".wav") -> bytes:
    """The marked file as bytes: .wav, .flac, .ogg or .mp3. Raises ValueError for another suffix, or a rate that MP3 does not have."""
    audio, rate, origin = _parts(speech)
    return files.encode(audio, rate, suffix, provenance.tags(origin))


def wav_stream(speeches: Iterable[Speech]) -> Iterator[bytes]:
    """A marked WAV file of unknown length in blocks, one a speech, the header with the first of them."""
    head = True
    for speech in speeches:
        audio, rate, origin = _parts(speech)
        yield (files.wav_head(rate, provenance.tags(origin)) if head else b"") + files.pcm(audio)
        head = False


def wav_samples(speech: Speech) -> bytes:
    """What follows in such a stream: samples alone."""
    return files.pcm(_parts(speech)[0])


def write_text(path: str | os.PathLike, text: str) -> None:
    """`text` as UTF-8, whole or not at all. Raises FileNotFoundError when the folder does not exist."""
    path = Path(path)
    with files.replacing(path, (path.suffix.lower(),)) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
