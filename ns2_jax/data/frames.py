"""From samples to frames: the one place where time is rounded.

Phone ends are stored in samples, so one set of records serves 16 kHz/200, 22.05 kHz/256 and 24 kHz/300. Frame i of `hop`
samples covers `[i * hop, (i + 1) * hop)` and is centred on `(i + 1/2) * hop`, in maths.spectral and maths.pitch too.
"""

from __future__ import annotations

import functools

import numpy as np


def frame_count(num_samples: int, hop: int, sample_rate: int = 1, target_rate: int | None = None) -> int:
    """Whole frames of `hop` samples (at `target_rate`, default `sample_rate`) in `num_samples` at `sample_rate`."""
    return num_samples * (target_rate or sample_rate) // (sample_rate * hop)


def frame_ends(
    ends_samples: np.ndarray, num_samples: int, sample_rate: int, hop: int, target_rate: int | None = None
) -> np.ndarray:
    """Phone ends in frames, int32 `[p]`, from exact ends in samples; the last is the frame count T.

    Every end is rounded on its own (cumulative rounding), so errors never add up: no end is further than half a frame from the
    truth, but for phones shorter than that, which borrow from their neighbours so that each has at least one frame
    whenever T >= P. Durations are `np.diff(ends, prepend=0)` and sum to T.

    `ends_samples` int `[p]` at `sample_rate` Hz, not decreasing, the last equal to `num_samples`; `hop` in samples of
    `target_rate` (default `sample_rate`). Raises ValueError when the ends are not that.
    """
    ends = np.asarray(ends_samples, np.int64)
    if ends.ndim != 1 or not len(ends) or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != num_samples:
        raise ValueError(f"phone ends must not decrease and must end at num_samples={num_samples}, not {ends.tolist()[-5:]}")
    rate = target_rate or sample_rate
    total = frame_count(num_samples, hop, sample_rate, rate)
    edges = np.minimum((2 * ends * rate + sample_rate * hop) // (2 * sample_rate * hop), total)
    edges[-1] = total
    if total >= len(edges):
        i = np.arange(len(edges))
        edges = np.maximum.accumulate(edges - i) + i  # each end is at least one frame after the one before,
        edges = np.maximum(edges, i + 1)  # the first at least one after the start,
        edges = np.minimum(edges, total - (len(edges) - 1 - i))  # and all leave room for those that follow
    return edges.astype(np.int32)


def durations(ends_samples: np.ndarray, num_samples: int, sample_rate: int, hop: int, target_rate: int | None = None) -> np.ndarray:
    """Frames per phone, int32 `[p]`; they sum to T. Arguments and errors as `frame_ends`."""
    return np.diff(frame_ends(ends_samples, num_samples, sample_rate, hop, target_rate), prepend=0).astype(np.int32)


def f0_at_frames(f0: np.ndarray, period: int, hop: int, frames: int) -> np.ndarray:
    """F0 at the centres of `frames` frames of `hop` samples, float32 `[t]` Hz, 0 = unvoiced.

    `f0` `[n]` Hz has one value per `period` samples (same rate), centred on `(i + 1/2) * period`. A frame is voiced when the
    nearest value is; its pitch is linear in log F0 between the two neighbours, or the nearest when the other is unvoiced.
    """
    f0 = np.maximum(np.asarray(f0, np.float32), 0)
    if not len(f0):
        return np.zeros(frames, np.float32)
    left, near, weight = (column[:frames] for column in _neighbours(period, hop, -(-frames // 4096) * 4096))
    last = len(f0) - 1
    left, right, near = np.minimum(left, last), np.minimum(left + 1, last), np.minimum(near, last)
    voiced = f0 > 0
    log = np.log(np.where(voiced, f0, 1))
    between = np.exp(log[left] + weight * (log[right] - log[left]))
    return np.where(voiced[left] & voiced[right], between, f0[near]).astype(np.float32)


def tokens_at_frames(tokens: np.ndarray, period: int, hop: int, frames: int) -> np.ndarray:
    """The token that holds at the centre of each of `frames` frames of `hop` samples: `[t]` of `tokens [n]`, one for every `period` samples.

    Indices and not vectors are looked up: tokens are symbols, between which there is nothing. The last one holds to the end.
    """
    at = (2 * np.arange(frames) + 1) * hop // (2 * period)
    return tokens[np.minimum(at, len(tokens) - 1)]


@functools.lru_cache
def _neighbours(period: int, hop: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the centre of every frame: the value at or before it, the nearest, and the weight of the one after; for endless values."""
    at = np.maximum((np.arange(frames) + 0.5) * hop / period - 0.5, 0)
    left = np.floor(at).astype(int)
    return left, np.where(at - left < 0.5, left, left + 1), at - left
