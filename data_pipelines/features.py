"""Adds the `f0` group to a data set: `python -m data_pipelines.features --data=DIR [--batch_seconds=60]`.

One process, because the accelerator belongs to one; a shard already made is skipped, so an interrupted run goes on where it stopped.
The log says of every shard how many seconds of audio a second of CPU time tracked: on a CPU, how much faster than real time a core is.
Then `index/f0.json` says what every speaker's F0 is like (f0_statistics.py).
"""

from __future__ import annotations

import functools
import os
import time

import jax
import numpy as np
from absl import flags, logging

from data_pipelines import batches, f0_statistics, shards
from ns2_jax.data.dataset import Dataset
from ns2_jax.maths import pitch
from ns2_jax.runtime import cluster


def _f0_shard(dataset: Dataset, split: str, batch_seconds: float, shard: int) -> int:
    """Writes one shard of `f0` and returns how many records it has."""
    total, period = dataset.manifest["splits"][split]["shards"], dataset.f0_period
    info, inputs = {"period": period}, {"audio": dataset.marker("audio", split, shard)["sha256"]}
    if shards.committed(dataset.root, ["f0"], split, shard, total, info=info, inputs=inputs):
        return len(batches.shard_rows(dataset, split, shard))
    track = lambda audio, samples: pitch.track(audio, dataset.sample_rate, period, samples_b=samples)
    begin = time.process_time()
    rows = batches.map_audio(track, dataset, split, shard, batch_seconds, period)
    seconds = sum(samples for _, samples in rows.values()) / dataset.sample_rate
    rate = seconds / max(time.process_time() - begin, 1e-3)
    logging.info("f0 %s-%05d: %.0f s of audio, %.0f seconds of it per second of CPU", split, shard, seconds, rate)  # the first compiles
    tools = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about = {"base_hop": dataset.base_hop, "info": info, "tools": tools, "inputs": inputs}
    with shards.ShardWriter(dataset.root, "f0", split, shard, total, **about) as writer:
        for i in sorted(rows):
            f0, samples = rows[i]
            writer.write({"f0": f0[: samples // period].astype(np.float16)}, samples)
    return len(rows)


def f0_shard(root: str, batch_seconds: float, split: str, shard: int, total: int) -> int:
    """`_f0_shard` of the data set at `root`, as a stage of `data_pipelines.run`."""
    del total
    return _f0_shard(batches.open_dataset(root), split, batch_seconds, shard)


def add_f0(root: str | os.PathLike, batch_seconds: float = 60.0) -> dict:
    """Tracks F0 (maths.pitch) of every utterance, writes the group and the speakers' statistics, and returns the new manifest.

    One float16 value in Hz per `f0_period` samples, 0 = unvoiced. Raises as `Dataset.open`.
    """
    dataset = Dataset.open(root)
    for split in dataset.splits:
        work = functools.partial(_f0_shard, dataset, split, batch_seconds)
        shards.run_shards(work, dataset.manifest["splits"][split]["shards"], 0, f"f0 {split}")
    splits = {split: dataset.manifest["splits"][split]["shards"] for split in dataset.splits}
    for split, total in splits.items():
        for shard in range(total):
            f0_statistics.sum_shard(str(root), None, split, shard, total)
    f0_statistics.write_speakers(root, splits)
    return shards.write_manifest(root, needed=["f0"])


def main(argv: list[str]) -> None:
    del argv
    cluster.start(lambda line: None)
    manifest = add_f0(flags.FLAGS.data, flags.FLAGS.batch_seconds)
    logging.info("f0 of %d utterances", sum(split["records"] for split in manifest["splits"].values()))


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_float("batch_seconds", 60.0, "seconds of audio tracked at once", lower_bound=1.0)
    cluster.run(main)
