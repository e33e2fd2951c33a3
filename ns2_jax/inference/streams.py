"""Streams cut into windows of one static size that overlap by what a network hears, so that pieces join without a seam.

A network whose output frame t depends on input frames t-left..t+right only is run on windows of `left + chunk + right` frames; the
`chunk` frames in the middle of each are what they are in the whole. The first frame of the stream is the first of its window, so that the
border that the network sees there is the true one. After its last frame the stream goes on as `fill` says ("constant": zeros,
"edge": its last frame) for `right` frames or more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np


@dataclasses.dataclass
class Rows:
    """Blocks of a stream with axes `axes`, or rows of such: as rows `[b, ...]` inside, and back as they came."""

    name: str
    axes: str
    single: bool = True

    def split(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Raises ValueError for a block of another shape than those before it, and at the end of a stream without anything."""
        shape, total = None, 0
        for block in map(np.asarray, blocks):
            if block.ndim not in (len(self.axes), len(self.axes) + 1):
                expected = ", ".join(self.axes)
                raise ValueError(f"a block of {self.name} is {block.dtype}{list(block.shape)}, expected [{expected}] or rows of it")
            self.single = block.ndim == len(self.axes)
            block = block[None] if self.single else block
            shape = shape or (len(block), *block.shape[2:])
            if shape != (len(block), *block.shape[2:]):
                raise ValueError(f"a block of {self.name} has shape {list(block.shape)}: rows and channels were {list(shape)} before")
            total += block.shape[1]
            yield block
        if not total:
            raise ValueError(f"a stream without {self.name}")

    def join(self, rows: list[np.ndarray]) -> np.ndarray:
        return rows[0] if self.single else np.stack(rows)


def framed(blocks: Iterable[np.ndarray], hop: int) -> Iterator[np.ndarray]:
    """Blocks `[b, s]` of any lengths -> `[b, t, hop]`; what is left of the last frame is zeros."""
    held = None
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], 1)
        whole = held.shape[1] // hop * hop
        if whole:
            yield held[:, :whole].reshape(len(held), -1, hop)
        held = held[:, whole:]
    if held is not None and held.shape[1]:
        yield np.pad(held, ((0, 0), (0, hop - held.shape[1])))[:, None]


def windows(blocks: Iterable[np.ndarray], chunk: int, reach: tuple[int, int], fill: str) -> Iterator[tuple[np.ndarray, int, int]]:
    """Blocks `[b, t, c]` of any lengths -> (window `[b, left + chunk + right, c]`, begin, end): the window's frames that are new.

    Every window but the last gives `chunk` frames, as soon as those and `right` more have come. Held are one block and one window.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} frames, expected one or more")
    left, right = reach
    size = left + chunk + right
    held, first, done = None, 0, 0  # `held` begins at frame `first`; `done` frames have been given

    def window() -> tuple[np.ndarray, int, int]:
        start = max(done - left, 0)
        part = held[:, start - first : start - first + size]
        count = min(chunk, first + held.shape[1] - done)
        return np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0)), mode=fill), done - start, done - start + count

    for block in blocks:
        held = block if held is None else np.concatenate([held, block], 1)
        while first + held.shape[1] >= done + chunk + right:
            yield window()
            done += chunk
            held, first = held[:, max(done - left - first, 0) :], max(done - left, first)
    while held is not None and first + held.shape[1] > done:
        yield window()
        done += chunk
