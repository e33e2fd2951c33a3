"""Codes of at most 1024 entries in ten bits each: four in five bytes, the first in the lowest bits."""

from __future__ import annotations

import numpy as np

BITS = 10


def pack(codes: np.ndarray) -> bytes:
    """`ceil(n / 4) * 5` bytes of `n` integers of any shape. Raises ValueError for one that takes more than ten bits."""
    flat = np.ravel(codes)
    if len(flat) and not 0 <= flat.min() <= flat.max() < 1 << BITS:
        raise ValueError(f"codes from {flat.min()} to {flat.max()} do not fit {BITS} bits; write them unpacked (pack=False)")
    four = np.zeros((-(-len(flat) // 4), 4), np.uint64)
    four.reshape(-1)[: len(flat)] = flat
    words = (four << (BITS * np.arange(4, dtype=np.uint64))).sum(1, dtype=np.uint64)
    return words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :5].tobytes()


def unpack(data: bytes | memoryview, shape: list[int]) -> np.ndarray:
    """The codes that `pack` stored, uint16 of `shape`. Raises ValueError when there are not as many bytes as they take."""
    count = int(np.prod(shape))
    groups = -(-count // 4)
    if len(data) != groups * 5 or min(shape) < 0:
        raise ValueError(f"{len(data)} bytes are not the {groups * 5} of {shape} codes in {BITS} bits")
    padded = np.zeros(groups * 5 + 3, np.uint8)
    padded[: groups * 5] = np.frombuffer(data, np.uint8)
    words = np.ndarray((groups,), "<u8", padded, strides=(5,)).astype(np.uint64)  # eight bytes from the first of every group
    mask, lanes = np.uint64((1 << BITS) - 1), words & np.uint64((1 << BITS) - 1)
    for k in (1, 2, 3):  # code k goes from bit 10 k to bit 16 k
        lanes |= (words << np.uint64((16 - BITS) * k)) & (mask << np.uint64(16 * k))
    return lanes.astype("<u8").view("<u2")[:count].reshape(shape)
