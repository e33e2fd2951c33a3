"""Code files, `.ns2`: what a codec made of a recording, in as few bits as its codes need.

    with codes.create("speech.ns2", header) as file:
        file.write(codes_btq)                  # blocks of any length
        file.finish(samples)
    with codes.Reader("speech.ns2") as file:
        for codes_btq in file.blocks(): ...

The same codes give the same bytes. Integers are little-endian, every CRC32 is of all bytes before it that are no CRC:

    89 "NS2" 0d 0a 1a 0a | version u32 | length u32 | header, JSON of that length | CRC
    block: frames u32 (at most BLOCK; of all but the last, exactly) | codes | CRC
    end: 0 u32 | samples of a channel at the codec's rate u64 | CRC

A block's codes follow each other frame by frame, channel by channel, level by level, `header.bits` each, first bit highest; the last byte
is filled with zeros. Nothing here grows with the length of a recording.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ns2_jax.audio import files

SUFFIX = ".ns2"
MAGIC = b"\x89NS2\r\n\x1a\n"
VERSION = 1
BLOCK = 256  # frames
HEADER = 4096  # bytes, at most
_LARGEST = {"rate": files.MAX_RATE, "hop": 1 << 20, "levels": 1024, "codes": 1 << 16, "channels": 1024, "source_rate": files.MAX_RATE}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a code file says of itself. Raises ValueError for numbers out of range."""

    rate: int  # Hz, of the codec
    hop: int  # samples a frame
    levels: int  # stored, of those that the codec has
    codes: int  # a level
    codec: str  # 12 hex digits, the hash of its weights
    channels: int  # coded one by one
    source_rate: int  # Hz, of the recording

    def __post_init__(self):
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 + (name == "codes") <= value <= largest:
                raise ValueError(f"{name} is {value!r}, expected a whole number up to {largest}")
        if not isinstance(self.codec, str) or not re.fullmatch("[0-9a-f]{12}", self.codec):
            raise ValueError(f"codec is {self.codec!r}, expected 12 hex digits")

    @property
    def bits(self) -> int:
        """Of one code."""
        return (self.codes - 1).bit_length()

    @property
    def bit_rate(self) -> float:
        """Bits a second of all channels, without the few bytes of headers and checksums."""
        return self.rate / self.hop * self.levels * self.channels * self.bits

    def size(self, frames: int) -> int:
        """Bytes of so many frames' codes."""
        return -(-frames * self.channels * self.levels * self.bits // 8)


class Writer:
    """Made by `create`."""

    def __init__(self, file: BinaryIO, header: Header):
        self.header, self._file, self._crc = header, file, 0
        self._held = np.zeros((header.channels, 0, header.levels), np.uint16)
        self._frames, self.finished = 0, False
        text = json.dumps(dataclasses.asdict(header), sort_keys=True, separators=(",", ":")).encode()
        self._put(MAGIC + struct.pack("<II", VERSION, len(text)) + text)

    def write(self, codes_btq: np.ndarray) -> None:
        """Codes of any integer type `[channels, t, >= levels]`; more levels than the header's are left out.

        Raises ValueError for another shape or a code that is out of range.
        """
        head, codes = self.header, np.asarray(codes_btq)
        if codes.ndim != 3 or codes.shape[0] != head.channels or codes.shape[2] < head.levels or codes.dtype.kind not in "iu":
            raise ValueError(f"codes are {codes.dtype}{list(codes.shape)}, expected integers [{head.channels}, t, {head.levels}]")
        codes = codes[..., : head.levels]
        if codes.size and not 0 <= codes.min() <= codes.max() < head.codes:
            raise ValueError(f"codes from {codes.min()} to {codes.max()}, expected 0 to {head.codes - 1}")
        self._held = np.concatenate([self._held, codes.astype(np.uint16)], 1)
        while self._held.shape[1] >= BLOCK:
            self._block(self._held[:, :BLOCK])
            self._held = self._held[:, BLOCK:]

    def finish(self, samples: int) -> None:
        """The end: how many samples each channel has. Raises ValueError when they are not those of the frames written."""
        if self._held.shape[1]:
            self._block(self._held)
        if samples < 1 or -(-samples // self.header.hop) != self._frames:
            raise ValueError(f"{samples} samples are not {self._frames} frames of {self.header.hop}")
        self._put(struct.pack("<IQ", 0, samples))
        self.finished = True

    def _block(self, codes_btq: np.ndarray) -> None:
        self._frames += codes_btq.shape[1]
        self._put(struct.pack("<I", codes_btq.shape[1]) + pack(codes_btq, self.header.bits))

    def _put(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data + struct.pack("<I", self._crc))


@contextlib.contextmanager
def create(path: str | os.PathLike, header: Header) -> Iterator[Writer]:
    """A code file to write: it appears whole when the block ends, or not at all.

    Raises as `files.replacing`, and ValueError when nobody called `finish`.
    """
    with files.replacing(path, (SUFFIX,)) as temporary, open(temporary, "wb") as file:
        writer = Writer(file, header)
        yield writer
        if not writer.finished:
            raise ValueError(f"{path}: its end was never written")


class Reader:
    """A code file being read: `header`, `samples` of each channel, `frames`; a context manager.

    Opening it checks the header and that the file has the length that it should have; `blocks` checks all the rest.

    Raises:
      FileNotFoundError: no such file. ValueError: not a code file, cut short, damaged, or of a later version; it names the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            what = "is a folder, expected a code file" if self.path.is_dir() else "no such code file"
            raise FileNotFoundError(f"{path}: {what}")
        self._file = open(self.path, "rb")
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    @property
    def frames(self) -> int:
        return -(-self.samples // self.header.hop)

    @property
    def seconds(self) -> float:
        return self.samples / self.header.rate

    def _open(self) -> None:
        total = os.fstat(self._file.fileno()).st_size
        start = self._file.read(len(MAGIC) + 8)
        if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
            raise ValueError(f"{self.path}: not a code file (of python -m ns2_jax.codec encode)")
        if len(start) < len(MAGIC) + 8:
            raise ValueError(f"{self.path}: cut short: {total} bytes are no whole code file")
        version, length = struct.unpack("<II", start[len(MAGIC) :])
        if version != VERSION:
            raise ValueError(f"{self.path}: damaged, or a code file of version {version}, while this program reads version {VERSION}")
        if length > HEADER or length + len(start) + 4 > total:
            raise ValueError(f"{self.path}: cut short or damaged: its header would be {length} bytes long")
        self._crc = zlib.crc32(start)
        text = self._take(length, "header")
        try:
            self.header = Header(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path}: a header that makes no sense: {error}") from error
        self._first, self._after_header = self._file.tell(), self._crc
        self._file.seek(max(total - 16, self._first))
        end = self._file.read()
        self._file.seek(self._first)
        self.samples = struct.unpack("<IQI", end)[1] if len(end) == 16 else 0
        rests = self.frames % BLOCK
        expected = self._first + self.frames // BLOCK * (self.header.size(BLOCK) + 8) + (self.header.size(rests) + 8) * (rests > 0) + 16
        if not self.samples or expected != total:
            raise ValueError(f"{self.path}: cut short or damaged: {total} bytes do not end as a code file of their length does")

    def _take(self, size: int, what: str) -> bytes:
        data = self._file.read(size + 4)
        self._crc = zlib.crc32(data[:-4], self._crc)
        if len(data) < size + 4 or struct.unpack("<I", data[-4:])[0] != self._crc:
            raise ValueError(f"{self.path}: damaged: the {what} does not have its checksum")
        return data[:-4]

    def blocks(self) -> Iterator[np.ndarray]:
        """Codes int32 `[channels, t, levels]`, BLOCK frames each but the last. Raises ValueError where the file is damaged."""
        head, left = self.header, self.frames
        self._file.seek(self._first)
        self._crc = self._after_header
        while left:
            count = min(left, BLOCK)
            where = f"block at {(self.frames - left) * head.hop / head.rate:.1f} s"
            data = self._take(4 + head.size(count), where)
            if data[:4] != struct.pack("<I", count):
                raise ValueError(f"{self.path}: damaged: the {where} does not say that it has {count} frames")
            codes = unpack(data[4:], (head.channels, count, head.levels), head.bits)
            if codes.max() >= head.codes:
                raise ValueError(f"{self.path}: damaged: the {where} holds code {codes.max()} of {head.codes}")
            left -= count
            yield codes
        self._take(12, "end")


def pack(codes_btq: np.ndarray, bits: int) -> bytes:
    """Codes `[b, t, q]` -> `ceil(b * t * q * bits / 8)` bytes: frame by frame, row by row, level by level, first bit highest."""
    flat = codes_btq.transpose(1, 0, 2).reshape(-1, 1)
    return np.packbits((flat >> np.arange(bits - 1, -1, -1)) & 1).tobytes()


def unpack(data: bytes, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    """The inverse of `pack` for codes of `shape`: int32 `[b, t, q]`."""
    b, t, q = shape
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=b * t * q * bits).reshape(-1, bits).astype(np.int32)
    return (flat << np.arange(bits - 1, -1, -1, dtype=np.int32)).sum(-1, dtype=np.int32).reshape(t, b, q).transpose(1, 0, 2)
