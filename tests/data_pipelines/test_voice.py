"""One voice of a corpus: its records as they were, some to train on, the others to score."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from commands import refused, run

from configs.grad_stylespeech import get_config
from ns2_jax.data import feed
from ns2_jax.data.dataset import Dataset
from ns2_jax.systems.system import make

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from noise_corpus import CODEC, write_corpus  # noqa: E402


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    write_corpus(folder, utterances=21)
    return folder


def records(root, split: str) -> dict[str, dict]:
    dataset = Dataset.open(root)
    found = {}
    for i in range(dataset.records(split)):
        parts = {group: dataset.read(split, group, i) for group in ("meta", "audio", "align", "f0", f"codes-{CODEC}")}
        found[parts["meta"]["utt_id"]] = parts
    return found


def test_records_of_one_speaker_are_copied_and_can_be_trained_on(corpus, tmp_path):
    words = [f"--data={corpus}", "--split=valid", "--speaker=s[1]", "--train=4"]
    code, _, err = run("data_pipelines.voice", *words, f"--out={tmp_path}/one")
    assert code == 0, err
    old, train, test = records(corpus, "valid"), records(tmp_path / "one", "train"), records(tmp_path / "one", "test")
    mine = {name for name, parts in old.items() if parts["meta"]["speaker"] == "s1"}
    assert len(train) == 4 and train.keys() | test.keys() == mine and not train.keys() & test.keys()
    for name, parts in (train | test).items():
        for group, values in parts.items():
            assert values.keys() == old[name][group].keys()
            for key, value in values.items():
                np.testing.assert_array_equal(value, old[name][group][key])
                assert getattr(value, "dtype", None) == getattr(old[name][group][key], "dtype", None)
    about = lambda root: {k: v for k, v in Dataset.open(root).manifest["groups"][f"codes-{CODEC}"].items() if k in ("codec", "hop", "levels")}
    assert about(tmp_path / "one") == about(corpus) == {"codec": CODEC, "hop": 200, "levels": 8}
    config = get_config("smoke,adapt")
    config.data.path, config.data.buckets = str(tmp_path / "one"), (dict(b=4, t=320, p=40, u=32),)
    one = make(config.system, config.model.to_dict())
    (batch,) = feed.make_feed(config.data, one.fields, one.sizes, seed=0, start_step=0, epochs=1)
    assert sorted(batch["frames"]) == sorted(len(parts["audio"]["audio"]) // 200 for parts in train.values()) and batch["weight"].all()


def test_what_it_refuses(corpus, tmp_path):
    there = [f"--data={corpus}", "--split=valid", f"--out={tmp_path / 'out'}"]
    for said, *words in (
            ("names nobody in split 'valid'", *there, "--speaker=s"),
            ("7 utterances by s1, and some must be left", *there, "--speaker=s1", "--train=7"),
            ("is not a regex", *there, "--speaker=s("), ("--speaker is missing", *there),
            ("is there already", there[0], "--split=valid", f"--out={corpus}", "--speaker=s1", "--train=4")):
        assert said in refused("data_pipelines.voice", *words)
    assert not (tmp_path / "out").exists()
