"""Another utterance by the same speaker: always another, always theirs, each as likely, and found without reading records."""

from __future__ import annotations

import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from noise_corpus import write_corpus

from ns2_jax.data import speakers
from ns2_jax.data.dataset import Dataset


@hypothesis.given(st.lists(st.sampled_from("abcdé"), min_size=1, max_size=60), st.integers(0, 2**32))
def test_another_is_theirs_and_another(names, seed):
    made, rng = speakers.Speakers.of(np.array(names)), np.random.default_rng(seed)
    assert sorted(made.members.tolist()) == list(range(len(names)))
    for i, name in enumerate(names):
        other = made.another(i, rng)
        assert made.names[made.speaker[i]] == name
        if names.count(name) == 1:
            assert other is None
        else:
            assert other != i and names[other] == name


def test_every_other_utterance_is_as_likely():
    made, rng = speakers.Speakers.of(np.array(list("abababaaab"))), np.random.default_rng(0)
    counts = np.bincount([made.another(2, rng) for _ in range(5000)], minlength=10)  # 0 4 6 7 8 are the other five of "a"
    assert counts[[1, 2, 3, 5, 9]].sum() == 0
    assert ((counts[[0, 4, 6, 7, 8]] - 1000) ** 2 / 1000).sum() < 23.5  # chi-square, 4 degrees of freedom, 99.99 %


@pytest.fixture
def root(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "copy", ignore=shutil.ignore_patterns("index"))


def test_the_lists_are_kept_and_then_no_record_is_read(root, monkeypatch):
    first = speakers.load(Dataset.open(root), "train")
    assert first.names.tolist() == ["s0", "s1", "s2"] and (root / speakers.path("train")).exists()
    monkeypatch.setattr(Dataset, "read_many", None)
    again = speakers.load(Dataset.open(root), "train")
    np.testing.assert_array_equal(first.members, again.members)
    np.testing.assert_array_equal(first.place, again.place)


def test_the_speakers_are_those_of_the_records(root):
    dataset = Dataset.open(root)
    made = speakers.load(dataset, "train")
    assert [made.names[s] for s in made.speaker] == [dataset.read("train", "meta", i)["speaker"] for i in range(dataset.records("train"))]


def test_lists_of_another_data_set_and_broken_ones_are_made_again(root, tmp_path):
    write_corpus(tmp_path / "other", utterances=13, seed=2)
    speakers.load(Dataset.open(tmp_path / "other"), "train")
    target = root / speakers.path("train")
    target.parent.mkdir()
    shutil.copy(tmp_path / "other" / speakers.path("train"), target)
    assert len(speakers.load(Dataset.open(root), "train").members) == 40
    whole, want = target.read_bytes(), speakers.load(Dataset.open(root), "train")
    for at in {*range(0, len(whole), 97), *(whole.rindex(b"PK\x01\x02") + place for place in (8, 10, 11))}:  # its flags and way of packing too
        for bit in (0, 6):
            target.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            found = speakers.load(Dataset.open(root), "train")
            for field in ("names", "starts", "members"):  # other bits than those of zip's checksums change nothing
                np.testing.assert_array_equal(getattr(found, field), getattr(want, field))
    for size in (0, 10, len(whole) // 2):
        target.write_bytes(whole[:size])
        assert len(speakers.load(Dataset.open(root), "train").members) == 40
        assert len(target.read_bytes()) == len(whole)
