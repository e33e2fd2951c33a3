"""Word error: counting against hand counts, and scores of a real sentence, of silence and of nothing."""

from __future__ import annotations

import json
import sys
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


def test_missing_and_silent_audio_counts_as_deleted():
    speech = files.read(Path(__file__).with_name("sentence.flac"), 16000)
    noise = np.random.default_rng(0).normal(0, 0.05, 16000).astype(np.float32)
    audios = [speech, np.zeros(16000, np.float32), None, noise, np.zeros(10, np.float32)]
    rows = word_error.measure([TEXT] * 5, audios, progress=False)
    line, each, letters = word_error.summarise("x", rows, [TEXT] * 5, seeds=[7])
    assert rows[0]["errors"] <= 2 and rows[0]["words"] == 14
    assert rows[1]["heard"] == "" and rows[1]["deletions"] == 14 and rows[3]["deletions"] + rows[3]["substitutions"] == 14
    assert rows[2]["heard"] is None and rows[2]["errors"] == rows[2]["deletions"] == 14
    assert [row.get("missing", False) for row in rows] == [False, True, True, False, True]
    assert [one["name"] for one in (line, each, letters)] == ["wer_x", "wer_per_utterance_x", "cer_x"]
    assert line["value"] == pytest.approx(100 * sum(r["errors"] for r in rows) / 70)
    assert each["value"] == pytest.approx(100 * np.mean([r["errors"] / r["words"] for r in rows]))
    assert letters["value"] == pytest.approx(100 * sum(r["character_errors"] for r in rows) / (5 * 78))
    assert line["fingerprint"]["missing"] == 3 and line["fingerprint"]["seeds"] == [7] and line["unit"] == "%"
    assert "pocketsphinx" in line["fingerprint"]["evaluator"] and line["interval"][0] <= line["value"] <= line["interval"][1]
    assert json.loads(json.dumps(rows)) == rows


def test_rows_measured_in_parts_make_the_same_score():
    """Another recogniser, and two hosts that hear half of the list each."""
    texts = ["One dog.", "Two old dogs.", "Three more of them."]
    tool = f"command:{sys.executable} -c 'for line in open(0): print(\"two dogs\")'"
    audios = [np.full(16000, 0.1, np.float32)] * 3
    whole = word_error.measure(texts, audios, recogniser=tool, progress=False)
    parts = [word_error.measure(texts[k : k + 2], audios[k : k + 2], recogniser=tool, progress=False) for k in (0, 2)]
    assert whole == parts[0] + parts[1] and [row["errors"] for row in whole] == [2, 1, 4]
    lines = word_error.summarise("x", whole, texts, recogniser=tool)
    assert lines[0]["value"] == pytest.approx(100 * 7 / 9) and lines[0]["fingerprint"]["missing"] == 0
    assert tool.removeprefix("command:") in lines[0]["fingerprint"]["evaluator"]
    digest = lambda texts: word_error.summarise("x", whole, texts, recogniser=tool)[0]["fingerprint"]["list"]
    assert digest(["one dog", *texts[1:]]) == digest(texts) != digest(["One cat.", *texts[1:]])
    with pytest.raises(ValueError, match="2 rows and 3 texts"):
        word_error.summarise("x", whole[:2], texts)


def test_what_is_missing_is_said_first(monkeypatch):
    word_error.check()
    with pytest.raises(ValueError, match="'whispre:x' is not a recogniser"):
        word_error.check("whispre:x")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ImportError, match="jiwer"):
        word_error.check()
