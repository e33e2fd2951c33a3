"""A thousand hours in a dry run: lengths as in a read corpus, records that say them and are empty; everything the feed does but the bulk."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from noise_corpus import Field

from ns2_jax.data import feed, measure, records, speakers
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.plan import PADDING

HOURS, SHARDS = 1000, 300
FIELDS = {"frames": Field("b", "int32"), "weight": Field("b", "float32"), "f0": Field("bt", "float32")}


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """Some 242,000 utterances by 50 speakers in more shards than files are kept open."""
    root, rng = tmp_path_factory.mktemp("thousand"), np.random.default_rng(0)
    lengths = measure.lengths(int(HOURS * 3600 / 14.85), rng)
    for group in ("meta", "f0"):
        for shard in range(SHARDS):
            with records.ShardWriter(root, group, "train", shard, SHARDS) as writer:
                for i, samples in enumerate(lengths[shard::SHARDS].tolist()):
                    meta = dict.fromkeys(records.SCHEMAS["meta"], "") | {"utt_id": f"{shard}-{i}", "speaker": f"s{(i * SHARDS + shard) % 50}"}
                    writer.write(meta if group == "meta" else {"f0": np.zeros(0, np.float16)}, samples)
    measure.write_manifest(root, {"meta": {}, "f0": {}}, SHARDS, len(lengths), "thousand")
    return root, np.concatenate([lengths[shard::SHARDS] for shard in range(SHARDS)])


@pytest.mark.slow
def test_a_thousand_hours(thousand):
    root, lengths = thousand
    assert 990 < lengths.sum() / 16000 / 3600 < 1010
    data = dict(path=str(root), split="train", transform="whole", buckets=measure.buckets(lengths // 200), sample_rate=16000, hop=200)
    begin = time.process_time()
    dataset = Dataset.open(root)
    np.testing.assert_array_equal(dataset.frames("train"), lengths // 200)
    plan = feed.plan_of(dataset, data, data["buckets"], "train", 0, phones=None)
    plan.step(0)
    assert time.process_time() - begin < 5  # ready to resume anywhere
    seen, room = Counter(), 0
    for k in range(plan.steps_per_epoch):
        bucket, ids = plan.step(k)
        seen.update(ids[ids != PADDING].tolist())
        room += plan.buckets[bucket]["b"] * plan.buckets[bucket]["t"]
    assert len(seen) == len(lengths) and set(seen.values()) == {1}
    assert 1 - (lengths // 200).sum() / room < 0.05
    far = 40 * plan.steps_per_epoch + 1234
    batch = next(feed.make_feed(data, FIELDS, {}, 0, far))
    np.testing.assert_array_equal(batch["frames"], lengths[plan.step(far)[1]] // 200)
    people = speakers.load(dataset, "train")
    assert len(people.names) == 50 and people.names[people.speaker[7]] == dataset.read("train", "meta", 7)["speaker"]
