"""Writes semantic tokens of a data set: `python -m data_pipelines.tokens --data=DIR --tokenizer=DIR [--batch_seconds=60]`.

The tokenizer is a run or an export of `configs/semantic.py:SIZE,kmeans`; its hash names the group (`semantic-<hash12>`), so tokens of several
live side by side. A token stands for `hop` samples of the tokenizer; readers look up the one that holds at the centre of their frame
(`data.frames.tokens_at_frames`). One process, because the accelerators belong to one. Finished shards are skipped.

`--check=valid` says afterwards how well the tokens of that split tell phones and voices (`token_check.py`), beside k-means on MFCCs.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from data_pipelines import batches, shards, token_check
from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.runtime import cluster, mesh


class Tokenizer:
    """`tokenizer(audio float32 [b, s], samples [b]) -> tokens uint16 [b, t]`, compiled once per shape; `b` is a multiple of `devices`.

    `model` is what `inference.load` returns. Raises ValueError when it makes no tokens.
    """

    def __init__(self, model: inference.Model):
        if "tokenise" not in model.programs:
            raise ValueError(f"{model.name} makes no tokens; give the run or export of configs/semantic.py:SIZE,kmeans")
        self.model, self.hop, self.sample_rate = model, model.hop, model.rate
        self.hash, self.tokens = inference.codec_hash(model), int(model.system.tokens)
        self._mesh = mesh.local_mesh()
        self.devices = self._mesh.size
        self._compiled: dict[tuple[int, int], Any] = {}

    def __call__(self, audio: np.ndarray, samples: np.ndarray) -> np.ndarray:
        if audio.shape not in self._compiled:
            b, s = audio.shape
            program = self.model.programs["tokenise"].bind({**self.model.system.sizes, "b": b // self.devices, "s": s, "t": s // self.hop})
            self._compiled[audio.shape] = mesh.by_rows(
                self._mesh, lambda params, rest, inputs, seeds: program(params, rest, inputs, jax.random.key(0))["tokens"])
        inputs = {"audio": audio, "frames": (np.asarray(samples) // self.hop).astype(np.int32)}
        return np.asarray(self._compiled[audio.shape](self.model.params, self.model.rest, inputs, np.zeros(len(audio), np.uint32))).astype(np.uint16)


def _shard(dataset: Dataset, tokenizer: Tokenizer, split: str, batch_seconds: float, shard: int) -> int:
    """Writes one shard of tokens and returns how many records it has. An utterance under one frame has one token, 0."""
    total, group = dataset.manifest["splits"][split]["shards"], f"semantic-{tokenizer.hash}"
    info = {"tokenizer": tokenizer.hash, "hop": tokenizer.hop, "tokens": tokenizer.tokens}
    inputs = {"audio": dataset.marker("audio", split, shard)["sha256"]}
    if shards.committed(dataset.root, [group], split, shard, total, info=info, inputs=inputs):
        return len(batches.shard_rows(dataset, split, shard))
    rows = batches.map_audio(tokenizer, dataset, split, shard, batch_seconds, tokenizer.hop, tokenizer.devices)
    tools = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    with shards.ShardWriter(dataset.root, group, split, shard, total, base_hop=dataset.base_hop, info=info, tools=tools, inputs=inputs) as writer:
        for i in sorted(rows):
            tokens, samples = rows[i]
            writer.write({"tokens": tokens[: max(samples // tokenizer.hop, 1)]}, samples)
    return len(rows)


def _check_rate(dataset: Dataset, tokenizer: Tokenizer) -> None:
    if tokenizer.sample_rate != dataset.sample_rate:
        raise ValueError(f"{tokenizer.model.path} is a tokenizer for {tokenizer.sample_rate} Hz, {dataset.root} is at {dataset.sample_rate} Hz")


@functools.lru_cache(maxsize=1)
def load(path: str) -> Tokenizer:
    """The tokenizer of an export or a run, loaded once a process."""
    return Tokenizer(inference.load(path))


def tokens_shard(root: str, settings: tuple[str, float], split: str, shard: int, total: int) -> int:
    """`_shard` of the data set at `root`, as a stage of `data_pipelines.run`; `settings` are the tokenizer's path and a batch's seconds."""
    del total
    path, batch_seconds = settings
    dataset, tokenizer = batches.open_dataset(root), load(path)
    _check_rate(dataset, tokenizer)
    return _shard(dataset, tokenizer, split, batch_seconds, shard)


def tokenise(root: str | os.PathLike, model: inference.Model, batch_seconds: float = 60.0) -> str:
    """Tokens of every split of the data set at `root`; returns the name of the group.

    Raises FileNotFoundError without a data set; ValueError when `model` makes no tokens or was trained at another sample rate.
    """
    dataset, tokenizer = Dataset.open(root), Tokenizer(model)
    _check_rate(dataset, tokenizer)
    for split in dataset.splits:
        work = functools.partial(_shard, dataset, tokenizer, split, batch_seconds)
        shards.run_shards(work, dataset.manifest["splits"][split]["shards"], 0, f"tokens {split}")
    group = f"semantic-{tokenizer.hash}"
    shards.write_manifest(root, needed=[group])
    return group


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.tokenizer:
        raise ValueError("--tokenizer is empty: give a run or export of configs/semantic.py:SIZE,kmeans")
    cluster.start(lambda line: None)
    model = inference.load(flags.FLAGS.tokenizer)
    group = tokenise(flags.FLAGS.data, model, flags.FLAGS.batch_seconds)
    logging.info("wrote %s", os.path.join(flags.FLAGS.data, group))
    if flags.FLAGS.check:
        for name, scores in token_check.check(Dataset.open(flags.FLAGS.data), group, flags.FLAGS.check, model.system.tokens, model.hop).items():
            print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_string("tokenizer", "", "the tokenizer: a run or an export")
    flags.DEFINE_string("check", "", "a split whose tokens are scored against its phones and speakers")
    flags.DEFINE_float("batch_seconds", 60.0, "seconds of audio tokenised at once", lower_bound=1.0)
    cluster.run(main)
