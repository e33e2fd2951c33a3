"""A small data set of noise with phones, F0 and codes, in all groups."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines import shards

CODEC = "0123456789ab"


@dataclasses.dataclass(frozen=True)
class Field:
    """What a feed needs to know of a field."""

    axes: str
    dtype: str


def write_corpus(root, utterances: int = 40, shard_count: int = 3, seed: int = 0, splits=("train", "valid")) -> None:
    """`utterances` of 0.4 to 4 s per split, round robin over `shard_count` shards."""
    rng = np.random.default_rng(seed)
    for split in splits:
        rows = []
        for i in range(utterances):
            samples = int(rng.integers(6400, 64000))
            phones = samples // 1600
            ends = np.append(np.sort(rng.choice(np.arange(1, samples), phones - 1, replace=False)), samples).astype(np.int32)
            rows.append((samples, {
                "meta": {"utt_id": f"{split}{i}", "speaker": f"s{i % 3}", "source": "noise", "voice": "v", "text": "É.", "text_norm": "e"},
                "audio": {"audio": (rng.normal(size=samples) * 3000).astype(np.int16)},
                "align": {"phones": rng.integers(1, 40, phones).astype(np.uint8), "ends": ends},
                "f0": {"f0": np.where(rng.random(samples // 160) < 0.6, 120.0 + i, 0).astype(np.float16)},
                f"codes-{CODEC}": {"codes": rng.integers(0, 1024, (samples // 200, 8)).astype(np.uint16)},
            }))  # fmt: skip
        for shard in range(shard_count):
            for group in rows[0][1]:
                info = {"codec": CODEC, "hop": 200, "levels": 8} if group.startswith("codes") else {}
                with shards.ShardWriter(root, group, split, shard, shard_count, info=info) as writer:
                    for samples, values in rows[shard::shard_count]:
                        writer.write(values[group], samples)
    shards.write_manifest(root, name="noise", phones="inventory")
