"""The best of several takes: words first, then the voice."""

from __future__ import annotations

import numpy as np
import pytest

from ns2_jax.evals import speaker_similarity, takes, word_error


def test_words_come_first_then_the_voice(monkeypatch):
    """Judges that read their verdicts off the audio: sample 0 is the number of errors, sample 1 the cosine."""
    heard = lambda texts, audios, **_: [{"errors": 9 if audio is None else int(audio[0])} for audio in audios]
    monkeypatch.setattr(word_error, "measure", heard)
    monkeypatch.setattr(speaker_similarity, "references", lambda prompts, rate: [np.float32([1.0, 0.0])] * len(prompts))
    monkeypatch.setattr(speaker_similarity, "voice", lambda audio: None if audio is None else np.float32([audio[1], 0.0]))
    take = lambda *rows: [None if row is None else np.float32(row) for row in rows]
    every = [take([2, 0.9], [1, 0.5], None, [3, 0.1]), take([0, 0.1], [1, 0.7], [4, 0.2], None), take([0, 0.1], [1, 0.6], None, [3, 0.2])]
    assert takes.best(["a"] * 4, [np.zeros(4)] * 4, every, 16000) == [1, 1, 1, 2]


def test_takes_of_other_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(word_error, "measure", lambda texts, audios, **_: [{"errors": 0} for _ in audios])
    monkeypatch.setattr(speaker_similarity, "references", lambda prompts, rate: [np.ones(2)] * len(prompts))
    monkeypatch.setattr(speaker_similarity, "voice", lambda audio: np.ones(2))
    with pytest.raises(ValueError, match="zip"):
        takes.best(["a", "b"], [np.zeros(4)] * 2, [[np.zeros(4)]], 16000)
