"""Writes a codec's codes of a data set: `python -m data_pipelines.encode --data=DIR --codec=DIR [--batch_seconds=60] [--pack]`.

The codec is an export or a run; its hash names the group (`codes-<hash12>`), so codes of several codecs live side by side and a model
is never trained on codes of another codec than it names. A run has the hash that its unrounded export (`export --quantize=none`) will have.
One process, because the accelerators belong to one: the rows of a batch are cut over all local devices. Finished shards are skipped.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from data_pipelines import batches, shards
from ns2_jax import inference
from ns2_jax.data import bits
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.frames import frame_count
from ns2_jax.runtime import cluster, mesh, weights


class Encoder:
    """`encoder(audio float32 [b, s], samples) -> codes uint16 [b, t, q]`, compiled once per shape; `b` is a multiple of `devices`.

    `model` is what `inference.load` returns. Raises ValueError when it is not a codec.
    """

    def __init__(self, model: inference.Model):
        if model.config["system"] != "codec":
            raise ValueError(f"{model.path} is a {model.config['system']}, not a codec; give the run or export of the codec")
        self.model = model
        self.hash, self.hop, self.sample_rate = inference.codec_hash(model), model.hop, model.rate
        self.levels = int(model.system.sizes["q"])
        self._mesh = mesh.local_mesh()
        self.devices = self._mesh.size
        self._compiled: dict[tuple[int, int], Any] = {}

    def __call__(self, audio: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        del samples
        if audio.shape not in self._compiled:
            b, s = audio.shape
            sizes = {**self.model.system.sizes, "b": b // self.devices, "s": s, "t": s // self.hop}
            program = self.model.system.programs()["encode"].bind(sizes)
            self._compiled[audio.shape] = mesh.by_rows(
                self._mesh, lambda params, rest, inputs, seeds: program(params, rest, inputs, jax.random.key(0))["codes"])
        inputs, seeds = {"audio": audio}, np.zeros(len(audio), np.uint32)
        codes = np.asarray(self._compiled[audio.shape](self.model.params, self.model.rest, inputs, seeds))
        if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
            raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit uint16")
        return codes.astype(np.uint16)


def _encode_shard(dataset: Dataset, encoder: Encoder, split: str, batch_seconds: float, pack: bool, shard: int) -> int:
    """Writes one shard of codes, in ten bits each with `pack`, and returns how many records it has."""
    total, group = dataset.manifest["splits"][split]["shards"], f"codes-{encoder.hash}"
    info = {"codec": encoder.hash, "hop": encoder.hop, "levels": encoder.levels, **({"bits": bits.BITS} if pack else {})}
    inputs = {"audio": dataset.marker("audio", split, shard)["sha256"]}
    if shards.committed(dataset.root, [group], split, shard, total, info=info, inputs=inputs):
        return len(batches.shard_rows(dataset, split, shard))
    rows = batches.map_audio(encoder, dataset, split, shard, batch_seconds, encoder.hop, encoder.devices)
    tools = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about = {"base_hop": dataset.base_hop, "info": info, "tools": tools, "inputs": inputs}
    with shards.ShardWriter(dataset.root, group, split, shard, total, **about) as writer:
        for i in sorted(rows):
            codes, samples = rows[i]
            writer.write({"codes": codes[: frame_count(samples, encoder.hop)]}, samples)
    return len(rows)


def _check_rate(dataset: Dataset, encoder: Encoder) -> None:
    if encoder.sample_rate != dataset.sample_rate:
        raise ValueError(f"{encoder.model.path} is a codec for {encoder.sample_rate} Hz, {dataset.root} is at {dataset.sample_rate} Hz")


@functools.lru_cache(maxsize=1)
def load(codec: str) -> Encoder:
    """The encoder of an export or a run, loaded once a process."""
    return Encoder(inference.load(codec))


def encode_shard(root: str, settings: tuple[str, float, bool], split: str, shard: int, total: int) -> int:
    """`_encode_shard` of the data set at `root`, as a stage of `data_pipelines.run`; `settings` are the codec's path, a batch's seconds and `pack`."""
    del total
    codec, batch_seconds, pack = settings
    dataset, encoder = batches.open_dataset(root), load(codec)
    _check_rate(dataset, encoder)
    return _encode_shard(dataset, encoder, split, batch_seconds, pack, shard)


def encode(root: str | os.PathLike, model: inference.Model, batch_seconds: float = 60.0, pack: bool = False) -> str:
    """Encodes every split of the data set at `root` and returns the name of the group; with `pack` in ten bits a code, not sixteen.

    Raises FileNotFoundError without a data set; ValueError when `model` is not a codec, was trained at another sample rate, or has
    codes that do not fit.
    """
    dataset = Dataset.open(root)
    encoder = Encoder(model)
    _check_rate(dataset, encoder)
    for split in dataset.splits:
        work = functools.partial(_encode_shard, dataset, encoder, split, batch_seconds, pack)
        shards.run_shards(work, dataset.manifest["splits"][split]["shards"], 0, f"codes {split}")
    group = f"codes-{encoder.hash}"
    shards.write_manifest(root, needed=[group])
    return group


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.codec:
        raise ValueError("--codec is empty: give the run or export of a codec, e.g. --codec=results/codec/model")
    cluster.start(lambda line: None)
    group = encode(flags.FLAGS.data, inference.load(flags.FLAGS.codec), flags.FLAGS.batch_seconds, flags.FLAGS.pack)
    logging.info("wrote %s", os.path.join(flags.FLAGS.data, group))
    if os.path.exists(os.path.join(flags.FLAGS.codec, weights.FILE)):
        logging.info("train with --config.init_from='%s'", json.dumps({"rest/codec": flags.FLAGS.codec}))
    else:
        logging.info("to train on it, export this run first (unrounded, so that the codes stay its own): "
                     "python -m ns2_jax.export --workdir=%s --out=DIR", flags.FLAGS.codec)


if __name__ == "__main__":
    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_string("codec", "", "the codec: a run or an export")
    flags.DEFINE_float("batch_seconds", 60.0, "seconds of audio encoded at once", lower_bound=1.0)
    flags.DEFINE_bool("pack", False, "ten bits a code instead of sixteen, for codebooks of at most 1024 entries")
    cluster.run(main)
