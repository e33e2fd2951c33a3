"""Word error: counting against hand counts, and the recogniser on a real sentence, on silence and on nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import word_error

TEXT = "The children walked along the river, and looked at the old bridge before dinner."


@pytest.mark.parametrize("hypothesis,substitutions,deletions,insertions", [
    ("the children walked along the river and looked at the old bridge before dinner", 0, 0, 0),
    ("The CHILDREN walked along the river -- and looked at the old bridge, before dinner!", 0, 0, 0),
    ("the children talked along the river and looked at the old bridge before dinner", 1, 0, 0),
    ("the children walked along the river looked at the bridge before dinner", 0, 2, 0),
    ("oh the children walked along the river and looked at the old old bridge before dinner", 0, 0, 2),
    ("", 0, 14, 0),
    (None, 0, 14, 0),
])
def test_counts(hypothesis, substitutions, deletions, insertions):
    errors = substitutions + deletions + insertions
    found = word_error.count(TEXT, hypothesis)
    assert (found.pop("character_errors") == 0) == (errors == 0) and found.pop("characters") == 78
    assert found == {"substitutions": substitutions, "deletions": deletions, "insertions": insertions, "errors": errors, "words": 14}


@pytest.mark.parametrize("hypothesis,errors", [("a big dog", 0), ("a pig dog", 1), ("a dog", 4), ("", 9), (None, 9), ("a big dogs", 1)])
def test_characters(hypothesis, errors):
    found = word_error.count("A big dog!", hypothesis)
    assert found["character_errors"] == errors and found["characters"] == 9


def test_both_sides_are_normalised():
    assert word_error.count("I have 3 dogs.", "i have three dogs")["errors"] == 0


def test_reference_without_words_is_refused():
    with pytest.raises(ValueError, match="no words"):
        word_error.count("...", "hello")


def test_recogniser_hears_speech_and_missing_counts_as_deleted():
    speech = files.read(Path(__file__).with_name("sentence.flac"), 16000)
    noise = np.random.default_rng(0).normal(0, 0.05, 16000).astype(np.float32)
    audios = [speech, np.zeros(16000, np.float32), None, noise, np.zeros(10, np.float32)]
    (line, each, letters), rows = word_error.evaluate("x", [TEXT] * 5, audios, progress=False, seeds=[7])
    assert rows[0]["errors"] <= 2 and rows[0]["words"] == 14
    assert rows[1]["deletions"] + rows[1]["substitutions"] == 14
    assert rows[2]["heard"] is None and rows[2]["errors"] == rows[2]["deletions"] == 14
    assert [one["name"] for one in (line, each, letters)] == ["wer_x", "wer_per_utterance_x", "cer_x"]
    assert line["value"] == pytest.approx(100 * sum(r["errors"] for r in rows) / 70)
    assert each["value"] == pytest.approx(100 * np.mean([r["errors"] / r["words"] for r in rows]))
    assert letters["value"] == pytest.approx(100 * sum(r["character_errors"] for r in rows) / (5 * 78))
    assert line["fingerprint"]["missing"] == 1 and line["fingerprint"]["seeds"] == [7]
    assert "pocketsphinx" in line["fingerprint"]["evaluator"] and line["interval"][0] <= line["value"] <= line["interval"][1]
