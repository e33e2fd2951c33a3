"""How long a file is by its own frames, where libsndfile does not tell that it is cut or reads no more than a part of it.

Of an Ogg file (RFC 3533) libsndfile reads what its whole pages hold, of its first stream. An MP3 (ISO/IEC 11172-3 and 13818-3; Xing's
header is a custom) ends for it where a header says, whatever follows, and where none does, at a guess from the first frame that is
anything from half to three times the length.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by the version's two bits: MPEG 1, 2, 2.5
KBITS = {1152: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
         576: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}  # by the samples in a frame  # fmt: skip
BEGIN, END = 2, 4  # flags of a page: the first and the last of a stream
TRIMMED = 8192  # samples: more than the coder's delay and filling, of which a header may tell so that they are left out
REMEMBERED = 4096  # files: the segments of a recording open it again and again

# Ogg -----------------------------------------------------------------------------------------------------------------


class _Page(NamedTuple):
    end: int  # where the next one begins
    flags: int
    stream: bytes


def _page(data: mmap.mmap, at: int) -> _Page | None:
    """The page at byte `at`; None where there is none that is whole."""
    head = data[at : at + 27]
    if len(head) < 27 or head[:5] != b"OggS\0":
        return None
    lacing = data[at + 27 : at + 27 + head[26]]
    end = at + 27 + head[26] + sum(lacing)
    return _Page(end, head[5], head[14:18]) if len(lacing) == head[26] and end <= len(data) else None


@functools.lru_cache(REMEMBERED)
def _ogg(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        several = "holds several streams one after the other; convert it to .wav or .flac"
        page = first = _page(data, 0)
        while page and not page.flags & END:
            page = _page(data, page.end)
            if page and (page.flags & BEGIN or page.stream != first.stream):
                return several
        if not page:
            return "cut short: its last page does not end the stream; {seconds:.2f} s can be read"
        at = data.find(b"OggS", page.end)
        while at >= 0:
            if (page := _page(data, at)) and page.flags & BEGIN:
                return several
            at = data.find(b"OggS", at + 1)
        return ""


def ogg(path: str | os.PathLike) -> str:
    """Why an Ogg file that libsndfile opens can't be read whole, "{seconds}" standing for what it reads of it; "" where it can."""
    about = os.stat(path)
    return _ogg(os.fspath(path), about.st_size, about.st_mtime_ns)


# MP3 -----------------------------------------------------------------------------------------------------------------

_THIRD = bytes(byte for byte in range(256) if 0 < byte >> 4 < 15 and byte >> 2 & 3 != 3)  # bit rate and sample rate
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][" + re.escape(_THIRD) + rb"]")


class _Kind(NamedTuple):
    """What all frames of a file have in common."""

    samples: int
    hz: int
    channels: int


def _frame(header: bytes) -> tuple[int, _Kind] | None:
    """(bytes, kind) of a layer III frame; None for anything else, a free bit rate included."""
    if len(header) < 4 or not _SYNC.match(header):
        return None
    version, speed, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    hz, samples = RATES[version][rate], 1152 if version == 3 else 576
    size = samples // 8 * KBITS[samples][speed - 1] * 1000 // hz + (header[2] >> 1 & 1)
    return size, _Kind(samples, hz, 1 if header[3] >> 6 == 3 else 2)


def _run(data: mmap.mmap, at: int) -> bool:
    """Whether three frames that are alike begin at `at`, one behind the other, or as many as there are up to the end or a tag."""
    kind = None
    for _ in range(3):
        if kind and (at >= len(data) or data[at : at + 3] in (b"TAG", b"APE")):
            return True
        frame = _frame(data[at : at + 4])
        if not frame or kind and frame[1] != kind:
            return False
        at, kind = at + frame[0], frame[1]
    return True


def _frames(data: mmap.mmap) -> Iterator[tuple[int, int, _Kind]]:
    """(place, bytes, kind) of the frames that are whole. What is none (tags, junk, a hole) is passed over up to a run of frames."""
    at, kind = 0, None
    while len(head := data[at : at + 10]) == 10 and head[:3] == b"ID3":  # version, flags (a footer), length in four times seven bits
        at += 10 + 10 * (head[5] >> 4 & 1) + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0)))
    while found := _SYNC.search(data, at):
        behind, at = found.start() == at, found.start()
        frame = _frame(data[at : at + 4])
        whole = frame and at + frame[0] <= len(data)  # a part of one is not decoded
        if whole and (behind and frame[1] == kind or _run(data, at)):
            kind = frame[1]
            yield at, *frame
            at += frame[0]
        else:
            at, kind = at + 1, None


def _side(kind: _Kind) -> int:
    """Bytes of header and side information, behind which Xing's header is."""
    return 4 + (32, 17, 17, 9)[2 * (kind.samples == 576) + (kind.channels == 1)]


def _tag(frame: bytes, kind: _Kind) -> int | None:
    """How many frames Xing's header says that the file has, 0 where it does not say; None for another frame."""
    for at in (_side(kind), _side(kind) + 2):  # a checksum may be before it
        if frame[at : at + 4] in (b"Xing", b"Info"):
            return int.from_bytes(frame[at + 8 : at + 12], "big") if frame[at + 7] & 1 else 0
    return None


def _header(frame: bytes, kind: _Kind, count: int) -> bytes:
    """A frame like `frame` that holds nothing but Xing's header with this count."""
    words = bytes(_side(kind) - 4) + b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    for speed in range(1, 15):
        head = bytes([0xFF, frame[1] | 1, speed << 4 | frame[2] & 0x0C, frame[3]])
        size, _ = _frame(head)
        if size >= 4 + len(words) + 100:  # as much as one with a table of places
            break
    return (head + words).ljust(size, b"\0")


class Mpeg(NamedTuple):
    """What the frames of an MP3 say."""

    problem: str  # why it can't be read whole; "" where it can
    samples: int  # of a channel in all of them
    said: bool  # whether its own header counts them right
    head: bytes  # a header that does
    start: int  # where the frames that it counts begin

    def guessed(self, samples: int) -> bool:
        """Whether libsndfile says `samples` because it does not know better."""
        trimmed = self.samples - samples
        return not (self.said and 0 <= trimmed < TRIMMED)


@functools.lru_cache(REMEMBERED)
def _mpeg(path: str, size: int, changed: int) -> Mpeg:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        frames, count, tag = _frames(data), 0, None
        at, length, kind = next(frames, (0, 0, None))
        if not kind:
            return Mpeg("holds no frame of MPEG layer III whose length is known; convert it to .wav or .flac", 0, False, b"", 0)
        first, start = data[at : at + length], at
        if (tag := _tag(first, kind)) is None:
            count = 1
        else:
            start = at + length
        for _, _, other in frames:
            if other != kind:
                what = f"{kind.hz} to {other.hz} Hz" if kind.hz != other.hz else f"{kind.channels} to {other.channels} channels"
                problem = f"changes from {what} at {count * kind.samples / kind.hz:.2f} s; convert it to .wav or .flac"
                return Mpeg(problem, 0, False, b"", 0)
            count += 1
        there, said = (n * kind.samples / kind.hz for n in (count, tag or 0))
        problem = f"damaged or cut short: {there:.2f} s of {said:.2f} s can be read" if said > there else ""
        return Mpeg(problem, count * kind.samples, tag == count, _header(first, kind, count), start)


def mpeg(path: str | os.PathLike) -> Mpeg:
    """The layer III frames of an MP3 that libsndfile opens, counted."""
    about = os.stat(path)
    return _mpeg(os.fspath(path), about.st_size, about.st_mtime_ns)


class _Joined(io.RawIOBase):
    """`head`, then the file at `path` from `start` on."""

    def __init__(self, head: bytes, path: str | os.PathLike, start: int):
        self._head, self._file, self._start, self._at = head, open(path, "rb"), start, 0
        self._size = len(head) + os.path.getsize(path) - start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        part = self._head[self._at : self._at + len(buffer)]
        if not part:
            self._file.seek(self._start + self._at - len(self._head))
            part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def with_header(path: str | os.PathLike) -> io.BufferedReader:
    """An MP3 as it would be with a header that counts its frames, open: libsndfile reads all of that."""
    counted = mpeg(path)
    return io.BufferedReader(_Joined(counted.head, path, counted.start), 1 << 16)


# WAV -----------------------------------------------------------------------------------------------------------------

STREAMED = 0x7FFF0000  # bytes in a WAV header: from here on, they say that the length was not known


def wav(log: str, frames: int) -> int:
    """Samples of a channel that the header of a WAV or RF64 file promises, of which libsndfile reads `frames`: it corrects a header that
    says too much without a word but in its `log`."""
    if (said := re.search(r"data : (\d+) \(should be (\d+)\)", log)) and int(said[2]) < int(said[1]) < STREAMED:
        return -(-frames * int(said[1]) // max(int(said[2]), 1))
    if (said := re.search(r"^ds64 : .*Data size : (\d+)\n.*Block Align   : (\d+)\n", log, re.DOTALL | re.MULTILINE)) and int(said[2]):
        return max(int(said[1]) // int(said[2]), frames)
    return frames
