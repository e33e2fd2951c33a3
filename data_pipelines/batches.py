"""Audio of a shard in batches of a few static lengths, for stages that run a jitted function on every utterance."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ns2_jax.data.dataset import Dataset

LENGTHS = (2, 4, 8, 15, 30)  # seconds; each is one compilation, and about a fifth of a batch is padding


def padded_seconds(seconds: float) -> int:
    """The static length for an utterance of `seconds`: of LENGTHS, or a multiple of the longest."""
    return next((length for length in LENGTHS if seconds <= length), -(-int(np.ceil(seconds)) // LENGTHS[-1]) * LENGTHS[-1])


@functools.lru_cache(maxsize=1)
def _dataset(root: str, changed: int) -> Dataset:
    del changed
    return Dataset.open(root)


def open_dataset(root: str) -> Dataset:
    """`Dataset.open`, once a process for a manifest that stays the same: a stage asks for every shard."""
    path = pathlib.Path(root) / "manifest.json"
    return _dataset(root, path.stat().st_mtime_ns if path.exists() else 0)


def shard_rows(dataset: Dataset, split: str, shard: int) -> range:
    """Positions in `split` of the records of `shard`."""
    return range(*dataset.starts(split)[shard : shard + 2].tolist())


def audio_batches(
    dataset: Dataset, split: str, rows: range, batch_seconds: float, hop: int, devices: int = 1
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (positions, audio float32 `[b, s]`, samples int32 `[b]`); each position once, `s` a multiple of `hop`.

    Utterances of like length go together. `b` is a multiple of `devices` and `b * s` about `batch_seconds`; the last batch of a length is
    padded with empty rows (positions has only the real ones), so that every length has one shape.
    """
    records = dataset.frames(split)
    by_length: dict[int, list[int]] = {}
    for i in rows:
        by_length.setdefault(padded_seconds((records[i] + 1) * dataset.base_hop / dataset.sample_rate), []).append(i)
    for seconds, members in sorted(by_length.items()):
        b = -(-max(1, int(batch_seconds // seconds)) // devices) * devices
        s = -(-seconds * dataset.sample_rate // hop) * hop
        for start in range(0, len(members), b):
            ids = members[start : start + b]
            audio, samples = np.zeros((b, s), np.float32), np.zeros(b, np.int32)
            for place, i in enumerate(ids):
                record = dataset.read(split, "audio", i)
                samples[place] = record["num_samples"]
                audio[place, : samples[place]] = record["audio"].astype(np.float32) / 32768
            yield ids, audio, samples


def map_audio(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], dataset: Dataset, split: str, shard: int, batch_seconds: float, hop: int,
    devices: int = 1,
) -> Mapping[int, tuple[np.ndarray, int]]:
    """Position -> (row of `function(audio, samples)`, samples) for every record of a shard."""
    out = {}
    for ids, audio, samples in audio_batches(dataset, split, shard_rows(dataset, split, shard), batch_seconds, hop, devices):
        result = np.asarray(function(audio, samples))
        out |= {i: (result[place], int(samples[place])) for place, i in enumerate(ids)}
    return out
