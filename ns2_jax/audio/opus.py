"""Opus through a real encoder (libopus in libsndfile), in memory, and how many bytes of the Ogg file are Opus.

Pages are those of RFC 3533, the stream of RFC 7845: a header and a comment packet, then Opus packets.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile

from ns2_jax.audio import files

RATES = (8000, 12000, 16000, 24000, 48000)  # Hz, those of the format
LOWEST, HIGHEST = 6000.0, 256000.0  # bit/s, between which libsndfile's compression level goes linearly from 1 to 0
HEADERS = 2  # packets that are not audio


def check() -> None:
    """Raises ImportError where this libsndfile can't write Opus."""
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        raise ImportError(f"Opus needs a libsndfile that writes it, from 1.0.29 on; here is {soundfile.__libsndfile_version__}: "
                          "pip install -U soundfile")


def encode(audio: np.ndarray, rate: int, bitrate: float) -> bytes:
    """`audio [s]` at `rate` Hz -> an Ogg Opus file that aims at `bitrate` bit/s (variable rate, libsndfile's defaults).

    At a rate that Opus lacks it is resampled to the next that it has. Raises ValueError for a bitrate it can't aim at.
    """
    if not LOWEST <= bitrate <= HIGHEST:
        raise ValueError(f"Opus at {bitrate:g} bit/s: this encoder aims at {LOWEST:g} to {HIGHEST:g} bit/s")
    inside = next((r for r in RATES if r >= rate), RATES[-1])
    file = io.BytesIO()
    soundfile.write(file, np.clip(files.resample(audio, rate, inside), -1, 1), inside, format="OGG", subtype="OPUS",
                    compression_level=(HIGHEST - bitrate) / (HIGHEST - LOWEST))
    return file.getvalue()


def decode(data: bytes, rate: int) -> np.ndarray:
    """An Ogg Opus file -> float32 `[s]` at `rate` Hz, the encoder's delay taken off."""
    audio, inside = soundfile.read(io.BytesIO(data), dtype="float32")
    return files.resample(audio, inside, rate)


def packets(data: bytes) -> list[bytes]:
    """The packets of an Ogg file with one stream. Raises ValueError for what is none."""
    found, part, at = [], b"", 0
    while at < len(data):
        if data[at : at + 4] != b"OggS" or len(data) < at + 27:
            raise ValueError(f"no Ogg page at byte {at} of {len(data)}")
        table = data[at + 27 : at + 27 + data[at + 26]]
        at += 27 + data[at + 26]
        if len(data) < at + sum(table):
            raise ValueError(f"an Ogg page at byte {at} lacks {at + sum(table) - len(data)} bytes")
        for size in table:
            part, at = part + data[at : at + size], at + size
            if size < 255:  # a packet ends with the first segment that is not full
                found.append(part)
                part = b""
    return found


def payload(data: bytes) -> int:
    """Bytes of Opus in an Ogg Opus file, container and headers not counted."""
    return sum(map(len, packets(data)[HEADERS:]))


def version() -> str:
    """What encodes: libopus by the vendor's name in its comment packet, and libsndfile."""
    comment = packets(encode(np.zeros(960, np.float32), 48000, 16000))[1]
    length = int.from_bytes(comment[8:12], "little")
    return f"{comment[12 : 12 + length].decode('utf8', 'replace')} in libsndfile {soundfile.__libsndfile_version__}"
