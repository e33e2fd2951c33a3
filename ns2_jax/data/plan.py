"""The step plan: batch k is a pure function of (data set, seed, k).

A checkpoint needs one integer, resuming costs one epoch table (about a second for ten million utterances), and hosts and
workers may come and go. Pure numpy, no files.
"""

from __future__ import annotations

import bisect
import collections
import hashlib
import math
import threading
from collections.abc import Mapping, Sequence

import numpy as np

PADDING = -1  # an id that fills a batch; its row has weight 0
CYCLE = 10_000  # batches after which the turns of a weighted mixture repeat: weights are kept to a ten-thousandth

Segment = tuple[int, Sequence[float]]  # from this step on, these weights


def assign(
    frames: np.ndarray, buckets: Sequence[Mapping[str, int]], phones: np.ndarray | None = None, crop: bool = False
) -> np.ndarray:
    """The bucket of every utterance, int16 `[n]`: the smallest that fits, or -1 when none does.

    `frames` int `[n]` are lengths, `phones` int `[n]` phone counts (None: not limited). With `crop`, an utterance longer than all
    buckets goes to the largest. An utterance of zero frames fits nowhere, nor one without phones (its text could not be aligned).
    """
    frames = np.asarray(frames)
    out = np.full(len(frames), -1, np.int16)
    order = sorted(range(len(buckets)), key=lambda i: (buckets[i]["t"], buckets[i].get("p", 0)))
    for i in order:
        fits = (out < 0) & (frames > 0) & (frames <= buckets[i]["t"])
        if phones is not None:
            fits &= (np.asarray(phones) > 0) & (np.asarray(phones) <= buckets[i]["p"])
        out[fits] = i
    if crop and order:
        out[(out < 0) & (frames > 0)] = order[-1]
    return out


class StepPlan:
    """Which utterances make batch k: every utterance that fits a bucket exactly once per epoch.

    Epoch e permutes the utterances with Philox keyed by (fingerprint, seed, e), cuts every bucket's share into batches of its
    `b` rows, fills the last one with PADDING and permutes the batches. All epochs have `steps_per_epoch` batches.

    Args:
      frames: int `[n]`, length of every utterance in frames.
      buckets: `{"b": rows, "t": frames, "p": phones, ...}` each; static shapes, so each compiles once.
      fingerprint: of the data set; another data set gets another order.
      phones: int `[n]`, or None when phones do not limit.
      crop: whether an utterance longer than every bucket is taken (and cropped) or left out.

    Raises ValueError when nothing fits, or for an impossible bucket.
    """

    def __init__(
        self,
        frames: np.ndarray,
        buckets: Sequence[Mapping[str, int]],
        *,
        fingerprint: str,
        seed: int,
        phones: np.ndarray | None = None,
        crop: bool = False,
    ):
        self.buckets = [dict(bucket) for bucket in buckets]
        for bucket in self.buckets:
            if any(bucket.get(axis, 0) < 1 for axis in ("b", "t") + (("p",) if phones is not None else ())):
                raise ValueError(f"config.data.buckets: {bucket} needs b, t{', p' if phones is not None else ''} of at least 1")
        self.fingerprint, self.seed = fingerprint, int(seed)
        bucket = assign(frames, self.buckets, phones, crop)
        self._members = [np.flatnonzero(bucket == i) for i in range(len(self.buckets))]
        self.left_out, self.left_out_frames = int((bucket < 0).sum()), int(np.asarray(frames)[bucket < 0].sum())
        self.batches = [-(-len(ids) // b["b"]) for ids, b in zip(self._members, self.buckets)]
        self.steps_per_epoch = sum(self.batches)
        if not self.steps_per_epoch:
            longest = int(np.max(frames)) if len(frames) else 0
            raise ValueError(
                f"no utterance fits a bucket of config.data.buckets: {len(frames)} "
                f"utterances of up to {longest} frames, buckets {self.buckets}"
            )
        digest = hashlib.sha256(f"{fingerprint} {self.seed}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "little")
        self._epochs: collections.OrderedDict[int, tuple[np.ndarray, list[np.ndarray]]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """(bucket and position of every batch `[steps, 2]`, per bucket ids `[batches, b]`)."""
        with self._lock:
            if epoch not in self._epochs:
                rng = np.random.Generator(np.random.Philox(key=[self._key, epoch]))
                tables = []
                for ids, count, bucket in zip(self._members, self.batches, self.buckets):
                    table = np.full(count * bucket["b"], PADDING, np.int64)
                    table[: len(ids)] = rng.permutation(ids)
                    tables.append(table.reshape(count, bucket["b"]))
                slots = np.concatenate([np.stack([np.full(n, i), np.arange(n)], 1) for i, n in enumerate(self.batches)])
                self._epochs[epoch] = rng.permutation(slots, axis=0), tables
                while len(self._epochs) > 2:  # around an epoch's turn two are in use
                    self._epochs.popitem(last=False)
            return self._epochs[epoch]

    def step(self, k: int) -> tuple[int, np.ndarray]:
        """(bucket index, ids int64 `[b]` with PADDING) of batch k >= 0."""
        epoch, at = divmod(k, self.steps_per_epoch)
        slots, tables = self._epoch(epoch)
        bucket, row = slots[at]
        return int(bucket), tables[bucket][row]

    def row_rng(self, k: int, row: int) -> np.random.Generator:
        """The generator of global row `row` of batch k: augmentation that does not depend on hosts, workers or history."""
        return np.random.Generator(np.random.Philox(key=[self._key, 1 << 63], counter=[0, row, k, 0]))

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_epochs", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _epochs=collections.OrderedDict(), _lock=threading.Lock())  # a worker rebuilds the tables it needs

    def __repr__(self) -> str:
        return f"StepPlan(fingerprint={self.fingerprint[:12]!r}, seed={self.seed}, buckets={self.buckets}, batches={self.batches})"


class Mixture:
    """The plan of one or several data sets: every batch is of one of them, and each has epochs of its own.

    Weights are shares of the batches. Within a cycle the turns are spread evenly (the i-th of n turns of a data set stands at
    (i + 1/2) / n of the cycle), so that after any k steps data set s of S has had its share of k to within (S + 1) / 2 batches. How
    many it has had is known without counting, so a step is a pure function of k.

    Args:
      plans: of every data set, with the same buckets.
      segments: (from step, weights), the first from step 0. A later weight is a segment more, and what was before it stays as it
        was. No weights are shares in proportion to the batches. Empty: (0, ()), all exactly once in `steps_per_epoch` steps.

    Raises ValueError, in the words of config.data.weights, for segments that are not that.
    """

    def __init__(self, plans: Sequence[StepPlan], segments: Sequence[Segment] = ()):
        self.plans, self.buckets = list(plans), plans[0].buckets
        self.steps_per_epoch = None if segments else sum(plan.steps_per_epoch for plan in plans)
        check_segments(segments, len(plans))
        self._from = [int(start) for start, _ in segments] or [0]
        usual = np.array([plan.steps_per_epoch for plan in plans])
        turns = [_turns(weights) if weights else usual for _, weights in segments] or [usual]
        self._cycles = [(*_spread(counts), counts) for counts in turns]
        self._before = [np.zeros(len(plans), np.int64)]  # batches of every data set before each segment
        for start, end, (order, _, counts) in zip(self._from, self._from[1:], self._cycles):
            cycles, at = divmod(end - start, len(order))
            self._before.append(self._before[-1] + cycles * counts + np.bincount(order[:at], minlength=len(plans)))

    def turn(self, k: int) -> tuple[int, int]:
        """(data set, which of its batches) of batch k >= 0."""
        if len(self.plans) == 1:
            return 0, k
        segment = bisect.bisect_right(self._from, k) - 1
        order, rank, counts = self._cycles[segment]
        cycles, at = divmod(k - self._from[segment], len(order))
        source = order[at]
        return int(source), int(self._before[segment][source] + cycles * counts[source] + rank[at])

    def step(self, k: int) -> tuple[int, int, np.ndarray]:
        """(data set, bucket, ids int64 `[b]` with PADDING) of batch k >= 0."""
        source, n = self.turn(k)
        return source, *self.plans[source].step(n)

    def row_rng(self, k: int, row: int) -> np.random.Generator:
        """The generator of global row `row` of batch k."""
        return self.plans[self.turn(k)[0]].row_rng(k, row)

    def __repr__(self) -> str:
        return f"Mixture({self.plans!r}, from={self._from}, turns={[counts.tolist() for *_, counts in self._cycles]})"


def check_segments(segments: Sequence[Segment], sources: int) -> None:
    """Raises ValueError for segments of weights that a mixture of `sources` data sets cannot have."""
    starts = [start for start, _ in segments]
    if segments and (starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:]))):
        raise ValueError(f"config.data.weights: segments begin at steps {starts}; the first begins at 0, each later than the one before")
    for start, weights in segments:
        if not weights:
            continue
        if len(weights) != sources:
            raise ValueError(f"config.data.weights: {len(weights)} weights from step {start} on, config.data.path names {sources} data sets")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
            raise ValueError(f"config.data.weights: {tuple(weights)} from step {start} on; expected numbers of at least 0, not all 0")
        if any(weight and not count for weight, count in zip(weights, _turns(weights))):
            raise ValueError(f"config.data.weights: {tuple(weights)} from step {start} on; a weight below 1/{CYCLE} of the whole is never served")


def _turns(weights: Sequence[float]) -> np.ndarray:
    """Turns of each data set in a cycle, int64: the weights themselves if they are small integers, else parts of CYCLE."""
    weights = np.asarray(weights, np.float64)
    if (weights == np.rint(weights)).all() and weights.sum() <= CYCLE:
        counts = weights.astype(np.int64)
        return counts // np.gcd.reduce(counts)
    exact = weights / weights.sum() * CYCLE
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: CYCLE - counts.sum()]] += 1  # the largest remainders
    return counts


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(data set, which of its turns) of every slot of a cycle."""
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort((rank + 0.5) / counts[source], kind="stable")
    return source[order].astype(np.int32), rank[order]
