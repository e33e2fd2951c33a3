"""Our corpus for users of TensorFlow Datasets: `python -m data_pipelines.tfds_builder --data=DIR --out=DATA_DIR`.

Copies a data set into TFDS's layout as ArrayRecord; then, without this repository and without TensorFlow,

    tfds.data_source("ns2_corpus", data_dir=DATA_DIR, split="train")

reads it at random places. What falls short, because TFDS needs TensorFlow for it or stores it so: only `data_source` works there
(`tfds.load` and its TFRecord files want TensorFlow), TFDS keeps numbers as lists of 64-bit integers, so the copy is larger and
decodes much slower than our shards, and an interrupted copy starts over. It is an exporter, not a feed.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import flags, logging

from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import phones

WAY_OUT = "delete it, or choose another --out"


def _key(group: str, field: str) -> str:
    """`codes-12ab` and `codes` -> `codes_12ab/codes`; meta and audio need no prefix."""
    return field if group in ("meta", "audio") else f"{group}/{field}".replace("-", "_")


def contents(data: Dataset) -> dict[str, str]:
    """Group -> hash of what its shards hold."""
    return {group: data.contents(group) for group in data.groups}


class Ns2Corpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of ours as a builder: `Ns2Corpus(source=DIR, data_dir=OUT, file_format="array_record")`."""

    VERSION = tfds.core.Version("1.0.0")
    name = "ns2_corpus"
    pkg_dir_path = pathlib.Path(__file__).parent  # TFDS looks the package up by its name, which as a command it has not

    def __init__(self, *, source: str | os.PathLike, **kwargs: Any):
        self.source = Dataset.open(source)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        data = self.source
        vector = lambda dtype: tfds.features.Tensor(shape=(None,), dtype=dtype)
        features: dict[str, Any] = {name: tfds.features.Text() for name in (*records.SCHEMAS["meta"], *records.DEFAULTS["meta"])}
        features["audio"] = vector(np.int16)  # TFDS's own Audio wants TensorFlow to be read
        for group in sorted(set(data.groups) - {"meta", "audio"}):
            for field, kind in records.schema(group).items():
                if kind == "utf8":
                    feature = tfds.features.Text()
                elif field == "codes":
                    feature = tfds.features.Tensor(shape=(None, data.manifest["groups"][group]["levels"]), dtype=np.uint16)
                else:
                    feature = vector(np.float32 if kind == "float16" else np.dtype(kind))  # TFDS stores no float16
                features[_key(group, field)] = feature
        about = {"fingerprint": data.fingerprint, "phones": list(phones.PHONES), "base_hop": data.base_hop, "f0_period": data.f0_period,
                 "sample_rate": data.sample_rate, "groups": contents(data)}
        description = f"{data.manifest['name']}: speech with transcripts, made by ns2_jax."
        metadata = tfds.core.MetadataDict(about)
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features), description=description, metadata=metadata)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self.source.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        data = self.source
        for i in range(data.records(split)):
            example: dict[str, Any] = {}
            for group in data.groups:
                record = data.read(split, group, i)
                for field in set(record) - {"num_samples"}:
                    value = record[field]
                    example[_key(group, field)] = value.astype(np.float32) if getattr(value, "dtype", None) == np.float16 else value
            yield i, example


def check(folder: pathlib.Path, data: Dataset) -> None:
    """Raises ValueError for a copy in `folder` of something else than `data`, and for one that does not say of what it is."""
    try:
        info, _, about = (json.loads((folder / name).read_bytes()) for name in ("dataset_info.json", "features.json", "metadata.json"))
        old, _ = dict(about["groups"].items()), info["splits"][0]  # an earlier version listed names, no hashes
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} does not say what it is a copy of; {WAY_OUT}") from error
    new = contents(data)
    if changed := sorted(group for group in {*old, *new} if old.get(group) != new.get(group)):
        raise ValueError(f"{folder} is a copy of other data: {', '.join(changed)} changed since; {WAY_OUT}")


def export(data: str | os.PathLike, out: str | os.PathLike) -> str:
    """Writes the copy and returns its folder. Raises as `Dataset.open`, and ValueError for another or damaged copy at its place."""
    folder = pathlib.Path(out, Ns2Corpus.name, str(Ns2Corpus.VERSION))
    if folder.exists():
        check(folder, Dataset.open(data))
    builder = Ns2Corpus(source=data, data_dir=os.fspath(out), file_format="array_record")
    for path in (pathlib.Path(path) for split in builder.info.splits.values() for path in split.filepaths):
        if not path.exists():
            raise ValueError(f"{folder} is no longer whole: {path.name} is missing; {WAY_OUT}")
    builder.download_and_prepare(file_format="array_record")
    return str(builder.data_dir)


def main(argv: list[str]) -> None:
    del argv
    if not flags.FLAGS.out:
        raise ValueError("--out is empty: the data_dir of TFDS to write below, e.g. --out=data/tfds")
    logging.info("wrote %s", export(flags.FLAGS.data, flags.FLAGS.out))


if __name__ == "__main__":
    from ns2_jax.runtime import cluster

    flags.DEFINE_string("data", "", "the data set (a folder with manifest.json)")
    flags.DEFINE_string("out", "", "data_dir of TFDS")
    cluster.run(main)
