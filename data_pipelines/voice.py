"""One voice of a corpus as a data set of its own: `python -m data_pipelines.voice --data=DIR --split=test --speaker=NAME --train=20 --out=VOICE`.

So many of its recordings, by a fixed draw, become the split `train`, to fit a model to the voice (variant `adapt` of the configs); the others
become `test`, to score it before and after on what it has not been fitted to. `--speaker` is a regex of whole names: `rms.*` is one synthesiser
with every warp, of which a corpus of a single voice for a training from scratch is made. Records are copied as they are, codes too.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from absl import flags, logging

from data_pipelines import remade, shards
from ns2_jax.data.dataset import Dataset


def choose(dataset: Dataset, split: str, speaker: str, train: int) -> dict[str, list[int]]:
    """{"train": so many utterances of whom the regex `speaker` names, "test": the others}, in order.

    Raises ValueError for a regex that is none, one that names nobody, and for so few utterances that none is left for the test.
    """
    dataset.check_split(split)
    try:
        wanted = re.compile(speaker)
    except re.error as error:
        raise ValueError(f"--speaker={speaker} is not a regex: {error}") from error
    people = [dataset.read(split, "meta", i)["speaker"] for i in range(dataset.records(split))]
    mine = [i for i, name in enumerate(people) if wanted.fullmatch(name)]
    if not mine:
        raise ValueError(f"--speaker={speaker} names nobody in split {split!r} of {dataset.root}, which has {', '.join(sorted(set(people))[:20])}")
    if len(mine) <= train:
        raise ValueError(f"--train={train}: split {split!r} has {len(mine)} utterances by {speaker}, and some must be left for the split 'test'")
    drawn = np.random.default_rng(0).permutation(mine).tolist()
    return {"train": sorted(drawn[:train]), "test": sorted(drawn[train:])}


def build(data: str | os.PathLike, split: str, speaker: str, train: int, out: str | os.PathLike) -> dict[str, Any]:
    """Writes the data set at `out` and returns its manifest. Raises as `choose` and `Dataset.open`, and ValueError for an `out` that is there, or a
    corpus without phone times or pitch."""
    if os.path.isdir(out) and os.listdir(out):
        raise ValueError(f"--out={out} is there already; choose another folder")
    dataset = Dataset.open(data)
    for group in ("align", "f0"):
        dataset.check_group(group)
    groups = [*remade.GROUPS, *(group for group in dataset.groups if group.startswith("codes-"))]
    for name, rows in choose(dataset, split, speaker, train).items():
        total = shards.shards_for(len(rows))
        for group in groups:
            about = dataset.manifest["groups"][group]
            info = {key: value for key, value in about.items() if key not in ("bytes", "rejects", "tools")}  # codec and hop, period, aligner
            for shard in range(total):
                with shards.ShardWriter(out, group, name, shard, total, inputs={"fingerprint": dataset.fingerprint}, info=info) as writer:
                    for i in rows[shard::total]:
                        record = dict(dataset.read(split, group, i))
                        samples = record.pop("num_samples")
                        writer.write(record, samples)
    return shards.write_manifest(out, name=f"{dataset.manifest['name']}, {speaker}", sample_rate=dataset.sample_rate, base_hop=dataset.base_hop,
                                 f0_period=dataset.f0_period, phones=dataset.manifest["phones"], needed=groups[2:])  # fmt: skip


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    for name in ("data", "speaker", "out"):
        if not given[name].value:
            raise ValueError(f"--{name} is missing")
    manifest = build(given.data, given.split, given.speaker, given.train, given.out)
    logging.info("%s: %s", given.out, {split: about["records"] for split, about in manifest["splits"].items()})


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax, which this does without

    flags.DEFINE_string("data", "", "the data set (with phone times and F0) that the voice is in")
    flags.DEFINE_string("split", "test", "which split of it")
    flags.DEFINE_string("speaker", "", "whose recordings: a regex of whole names")
    flags.DEFINE_integer("train", 20, "so many of them to train on; the others become the split test", lower_bound=1)
    flags.DEFINE_string("out", "", "the data set to make")
    cluster.run(main)
