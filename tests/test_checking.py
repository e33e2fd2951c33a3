"""Words that were planted as missing are missed, in recordings whose times are known; what is whole is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import tiny
from commands import run

from ns2_jax import inference
from ns2_jax.text import front

HERE = Path(__file__).parent / "data_pipelines"
RATE = 16000


@pytest.fixture(scope="module")
def aligner():
    return inference.load(Path(__file__).parents[1] / "results" / "aligner" / "model")


def recordings() -> list[inference.Speech]:
    """Three sentences with the synthesiser's own times, as if a model had spoken them."""
    made = []
    for i, said in enumerate(json.loads((HERE / "sentences.json").read_text())):
        audio, words = soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0], front.words(said["text"])
        made.append(speech(audio, words, np.diff([0.0, *(end for _, end in said["segments"])])))
    return made


def speech(audio: np.ndarray, words: front.Words, seconds: np.ndarray) -> inference.Speech:
    flat = tuple(phone for word in words for phone in word.phones)
    score = inference.Score(words, tuple(seconds.tolist()), (None,) * len(flat))
    return inference.Speech(audio, RATE, flat, np.rint(np.cumsum(seconds) * RATE).astype(int), (), np.zeros(0), 200, ("",), score)


def test_what_is_whole_is_left_alone(aligner):
    assert all(inference.check(aligner, one) == [] for one in recordings())


@pytest.mark.parametrize("plant", ["cut", "silenced", "fast"])
def test_a_word_that_is_not_there_is_missed(aligner, plant):
    found = planted = 0
    for one in recordings():
        edges = np.cumsum([0, *(len(word.phones) for word in one.score.words)])
        times = np.concatenate([[0], one.ends])
        for k, word in enumerate(one.score.words):
            if word.phones == inference.PAUSE or len(word.phones) < 3:
                continue
            begin, end = times[edges[k]], times[edges[k + 1]]
            part = {"cut": np.zeros(0), "silenced": np.zeros(end - begin),
                    "fast": librosa.effects.time_stretch(one.audio[begin:end], rate=3.0, n_fft=512)}[plant]
            audio = np.concatenate([one.audio[:begin], part, one.audio[end:]]).astype(np.float32)
            doubts = inference.check(aligner, speech(audio, one.score.words, np.array(one.score.seconds)))
            planted += 1
            found += any(doubt.word == word.text and abs(doubt.start - begin / RATE) < 0.01 for doubt in doubts)
    assert planted >= 5 and found >= (0.9 if plant != "fast" else 0.75) * planted, (found, planted)


def test_what_is_doubtful_is_spoken_once_more(monkeypatch):
    """The take with fewer doubts is kept, and which seed made it is said."""
    from ns2_jax.inference import checking

    toy = tiny.toy()
    voice = (np.sin(np.arange(4000) * 0.7).astype(np.float32) * 0.3, 800)
    wrong = {("hello", 0): 2, ("hello", 1): 1, ("hello", 2): 1, ("yes", 0): 0, ("no", 0): 1, ("no", 1): 1, ("no", 2): 0}
    made = {}
    speak = toy.speak_batch
    monkeypatch.setattr(toy, "speak_batch", lambda requests, seed, **options: [
        made.setdefault(id(one), (one, text.strip(".").lower(), seed))[0] for one, (text, _) in zip(speak(requests, seed, **options), requests)])
    monkeypatch.setattr(checking, "check", lambda aligner, one: [checking.Doubt("x", "missing", 0, 1)] * wrong[made[id(one)][1:]])
    takes = inference.speak_checked(toy, None, [("Hello.", voice), ("Yes.", voice), ("No.", voice)], 0)
    assert [(len(doubts), *rest) for _, doubts, *rest in takes] == [(1, 1, 2), (0, 0, 1), (1, 0, 2)]
    assert [made[id(one)][1:] for one, *_ in takes] == [("hello", 1), ("yes", 0), ("no", 0)]
    takes = inference.speak_checked(toy, None, [("Hello.", voice), ("No.", voice)], 0, most=3)
    assert [(len(doubts), *rest) for _, doubts, *rest in takes] == [(1, 1, 3), (0, 2, 3)]


def test_the_command_reports(tmp_path):
    model = tiny.write_model("naturalspeech2", tmp_path / "model")
    code, out, err = run("ns2_jax.synthesize", f"--model={model}", "--text=Hello, you.", f"--prompt={tiny.SPEECH}", "--steps=2", "--verify",
                         f"--out={tmp_path}/a.wav")
    assert code == 0, err
    aligner = inference.load(Path(__file__).parents[1] / "results" / "aligner" / "model")
    takes = inference.speak_checked(inference.load(model), aligner, [("Hello, you.", str(tiny.SPEECH))], 0, steps=2)
    for doubt in takes[0][1]:  # of an untrained model
        assert str(doubt) in out
    assert ("every word found" in out) == (not takes[0][1])
    assert (f"(the best of 2 takes, seed {takes[0][2]})" in out) == (takes[0][3] == 2)
