"""Prompts that are to be continued: a part of another utterance with what it says, or the beginning of the utterance itself."""

from __future__ import annotations

import numpy as np
import pytest
from noise_corpus import CODEC, Field, write_corpus
from test_data_feed import SPEECH, speech_data

from data_pipelines import shards, transcripts
from data_pipelines.sentences import load_list
from ns2_jax.data import feed, frames, transforms
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import units


PREFIX = SPEECH | {"prompt_phones": Field("bp", "int32"), "prompt_durations": Field("bp", "int32")}


def test_a_prefix_is_a_part_of_another_utterance_with_what_it_says(corpus):
    """Phones, durations and codes of the prompt are one stretch of an utterance by the same speaker; the target is whole."""
    dataset = Dataset.open(corpus)
    n = dataset.records("train")
    codes = [dataset.read("train", f"codes-{CODEC}", i)["codes"] for i in range(n)]
    aligns = [dataset.read("train", "align", i) for i in range(n)]
    lengths = [frames.durations(align["ends"], align["num_samples"], 16000, 200) for align in aligns]
    speaker = [dataset.read("train", "meta", i)["speaker"] for i in range(n)]
    by_target = {c.tobytes(): i for i, c in enumerate(codes)}
    seen, whole, data = 0, 0, speech_data(corpus, transform="speaker_prefix")
    for batch in feed.make_feed(data, PREFIX, {"q": 8}, 0, 0, epochs=1):
        u = batch["prompt_codes"].shape[1]
        for row in np.flatnonzero(batch["weight"]):
            target = by_target[batch["codes"][row, : batch["frames"][row]].tobytes()]
            np.testing.assert_array_equal(batch["durations"][row][: len(lengths[target])], lengths[target])
            prompt = batch["prompt_codes"][row, : batch["prompt_frames"][row]]
            (source,) = {i for i in range(n) for k in range(len(codes[i]) - len(prompt) + 1) if (codes[i][k : k + len(prompt)] == prompt).all()}
            assert source != target and speaker[source] == speaker[target]
            start = next(k for k in range(len(codes[source])) if (codes[source][k : k + len(prompt)] == prompt).all())
            edges = np.concatenate([[0], np.cumsum(lengths[source])])
            first = int(np.flatnonzero(edges == start)[0])
            said = batch["prompt_phones"][row][batch["prompt_phones"][row] > 0]
            np.testing.assert_array_equal(said, aligns[source]["phones"][first : first + len(said)])
            found = batch["prompt_durations"][row][: len(said)]
            assert found.sum() == len(prompt) <= u and not batch["prompt_durations"][row][len(said) :].any()
            np.testing.assert_array_equal(found[:-1], lengths[source][first : first + len(said) - 1])
            if len(prompt) < u and len(said) < batch["phones"].shape[1] and first + len(said) < len(lengths[source]):
                assert len(prompt) + lengths[source][first + len(said)] > u  # as many as fit
            seen, whole = seen + 1, whole + (len(said) == len(lengths[source]))
    assert seen == n and 0 < whole < n


@pytest.mark.parametrize("phones, expected", [(1, 0.0), (9, 1.0)])
def test_a_prefix_without_another_utterance_is_cut_out(phones, expected):
    utterance = {"frames": 4 * phones, "durations": np.full(phones, 4), "phones": np.arange(1, phones + 1), "codes": np.arange(4 * phones)[:, None]}
    for seed in range(20):
        row = {"weight": 1.0, **transforms.speaker_prefix(utterance, None, 15, 3, 4, 4, np.random.default_rng(seed))}
        assert row["weight"] == expected and len(row["prompt_phones"]) == len(row["prompt_durations"]) <= 3
        assert row["prompt_durations"].sum() == row["prompt_frames"] == len(row["prompt_codes"]) <= 15 and row["durations"].sum() == row["frames"]
        assert (row["prompt_phones"] == row["prompt_codes"][::4, 0] // 4 + 1).all()
        assert phones == 1 or not set(row["prompt_phones"]) & set(row["phones"])


UNITS = {
    "units": Field("bp", "int32"), "prompt_units": Field("bp", "int32"), "codes": Field("btq", "uint16"), "frames": Field("b", "int32"),
    "prompt_codes": Field("buq", "uint16"), "prompt_frames": Field("b", "int32"), "weight": Field("b", "float32")}  # fmt: skip


def test_a_beginning_is_the_prompt_of_the_rest_and_the_text_stays_whole(tmp_path):
    """Units are those of the texts; the group is named after the model that wrote them."""
    write_corpus(tmp_path, 12, 1, splits=("train",))
    texts = ["the cat sat on the mat", "a dog ran after the cat", "rain fell on the hills all day", "we saw the sea"]
    (tmp_path / "units.model").write_bytes(units.train(load_list("train"), size=200))
    root, model = str(tmp_path), str(tmp_path / "units.model")
    with shards.ShardWriter(root, "text", "train", 0, 1) as writer:
        for i in range(12):
            writer.write({"text_norm": texts[i % 4]}, Dataset.open(root).read("train", "meta", i)["num_samples"])
    shards.write_manifest(root, needed=["text"])
    assert transcripts.units_shard(root, model, "train", 0, 1) == 0
    shards.write_manifest(root, needed=[transcripts.units_group(model)])
    dataset, data = Dataset.open(root), speech_data(root, transform="prefix", units=model)
    codes = {dataset.read("train", f"codes-{CODEC}", i)["codes"].tobytes(): i for i in range(12)}
    own, seen = units.load(model), set()
    for batch in feed.make_feed(data, UNITS, {"q": 8}, 0, 0, epochs=1):
        for row in np.flatnonzero(batch["weight"]):
            parts = batch["prompt_codes"][row, : batch["prompt_frames"][row]], batch["codes"][row, : batch["frames"][row]]
            i = codes[np.concatenate(parts).tobytes()]
            assert not batch["prompt_units"][row].any() and own.decode(batch["units"][row]) == texts[i % 4]
            total = batch["prompt_frames"][row] + batch["frames"][row]
            assert min(0.25 * total - 1, batch["prompt_codes"].shape[1]) <= batch["prompt_frames"][row] <= 0.5 * total + 1
            seen.add(i)
    assert seen == set(range(12))
    with pytest.raises(ValueError, match="config.data.units='' is no file.*units-"):
        next(feed.make_feed(data | {"units": ""}, UNITS, {"q": 8}, 0, 0))


def test_one_frame_cannot_be_divided():
    row = transforms.prefix({"frames": 1, "codes": np.zeros((1, 2)), "units": np.arange(3)}, 5, 4, np.random.default_rng(0))
    assert row["weight"] == 0 and row["prompt_frames"] == 1
