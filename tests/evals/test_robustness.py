"""Words cut out of recordings and doubled in them are found, and recordings as they are pass."""

from __future__ import annotations

import json
import pathlib
import types

import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import robustness

HERE = pathlib.Path(__file__).parent
RATE = robustness.RATE


def recordings() -> list[tuple[str, np.ndarray]]:
    """Four sentences of flite, text and audio."""
    texts = json.loads((HERE.parent / "data_pipelines" / "sentences.json").read_text())
    named = [(HERE.parent / "data_pipelines" / f"sentence{k}.flac", one["text"] if isinstance(one, dict) else one) for k, one in enumerate(texts)]
    named.append((HERE / "sentence.flac", "The children walked along the river, and looked at the old bridge before dinner."))
    return [(text, files.read(path, RATE)) for path, text in named]


@pytest.fixture(scope="module")
def spoken():
    """(text, audio, where each word is) of each."""
    out = []
    for text, audio in recordings():
        words = [tuple(word.phones) for word in robustness.spoken_words(text)]
        found = robustness.path(audio, words, skip=1e-60, again=1e-60)
        assert [place for place, _, _ in found] == list(range(len(words)))  # all said once: the plain forced alignment
        out.append((text, audio, words, found))
    return out


def test_recordings_pass(spoken):
    """But for an "a" that the judge does not hear, which is why recordings are the floor."""
    texts, audios = [text for text, *_ in spoken], [audio for _, audio, *_ in spoken]
    rows = robustness.measure(texts, audios, progress=False)
    for row, (_, _, words, _) in zip(rows, spoken):
        assert row["words"] == len(words) and row["repeated"] == [] and all(len(words[place]) == 1 for place in row["skipped"])
    lines = robustness.summarise("x", robustness.measure(texts, audios, audios, progress=False))
    assert [(line["name"], line["value"]) for line in lines] == [("skips_x", 0), ("repeats_x", 0), ("bad_sentences_x", 0)]


def test_planted_skips_and_repeats_are_caught(spoken):
    """Every word but "a", one at a time."""
    caught = {"skipped": [], "repeated": []}
    for text, audio, words, found in spoken:
        for place, begin, end in found:
            if len(words[place]) < 2:
                continue
            cut, doubled = np.concatenate([audio[:begin], audio[end:]]), np.concatenate([audio[:end], audio[begin:]])
            caught["skipped"].append(place in robustness.verdict(cut, text)["skipped"])
            caught["repeated"].append(bool(robustness.verdict(doubled, text)["repeated"]))
    assert len(caught["skipped"]) > 30
    assert np.mean(caught["skipped"]) >= 0.95 and np.mean(caught["repeated"]) >= 0.95, {k: np.mean(v) for k, v in caught.items()}


def test_what_the_recording_is_flagged_for_does_not_count(spoken):
    text, audio, _, found = spoken[0]
    place, begin, end = max(found, key=lambda one: one[2] - one[1])
    cut = np.concatenate([audio[:begin], audio[end:]])
    (alone,) = rows = robustness.measure([text], [cut], progress=False)
    _, _, bad = robustness.summarise("x", rows)
    assert place in alone["skipped"] and bad["value"] == 100 and bad["fingerprint"]["floor"] == "none"
    (beside,) = rows = robustness.measure([text], [cut], [cut], progress=False)
    skips, _, bad = robustness.summarise("x", rows)
    assert beside["skipped"] == [] and skips["value"] == bad["value"] == 0
    flagged = len(alone["skipped"]) + len(alone["repeated"])
    assert beside["excused"] == bad["fingerprint"]["excused"] == flagged > 0 and alone["excused"] == 0
    assert bad["fingerprint"]["floor"].startswith(f"recordings, {flagged} words flagged in them, ")
    assert beside["floor"] == {"skipped": alone["skipped"], "repeated": alone["repeated"]}


def test_a_floor_is_named_by_what_is_flagged_in_it(spoken):
    text, audio, _, found = spoken[0]
    place, begin, end = max(found, key=lambda one: one[2] - one[1])
    cut = np.concatenate([audio[:begin], audio[end:]])
    name = lambda floor, outputs: robustness.floor_of(robustness.measure([text] * 2, outputs, floor, progress=False))
    assert name([audio, audio], [audio, cut]) == name([audio, audio], [None, audio])  # it is the recordings', not the system's
    assert len({name([audio, audio], [audio] * 2), name([cut, audio], [audio] * 2), name([audio, cut], [audio] * 2)}) == 3
    assert name([audio, None], [audio] * 2).startswith("1 recordings of 2, ") and name([None, None], [audio] * 2) == "none"


def test_no_signal_is_every_word_skipped_and_noise_is_no_crash(spoken):
    text, audio, words, _ = spoken[0]
    noise = 0.1 * np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    broken = np.full(RATE, np.nan, np.float32)
    rows = robustness.measure([text] * 4, [None, np.zeros(RATE, np.float32), broken, noise], progress=False)
    lines = robustness.summarise("x", rows)
    assert all(len(row["skipped"]) == len(words) for row in rows[:3]) and lines[0]["fingerprint"]["missing"] == 1
    assert len(robustness.verdict(audio, text)["skipped"]) <= 1  # the decoder is well after all that


def test_another_language_is_refused(monkeypatch):
    monkeypatch.setattr(robustness.front, "words", lambda text: [types.SimpleNamespace(text=text, phones=("b", "/y/"))])
    with pytest.raises(ValueError, match="'/y/' of 'by' is not in the English acoustic model"):
        robustness.verdict(np.ones(RATE, np.float32), "by")
