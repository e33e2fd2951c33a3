"""Scores: what was said comes back as JSON, TextGrid and captions, and a changed one is spoken as it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from data_pipelines import textgrid
from ns2_jax import inference
from ns2_jax.inference import score as scores
from ns2_jax.text import front

VOICE = (np.sin(np.arange(4000) * 0.7).astype(np.float32) * 0.3, 800)


@pytest.fixture(scope="module")
def toy():
    return tiny.toy()


def test_what_was_said_is_said_again(toy, tmp_path):
    """Through JSON: the same phones, lengths, pitch and samples."""
    speech = toy.speak("Hello, you! It is late.", VOICE, seed=3)
    (tmp_path / "a.json").write_text(scores.as_json(speech.score))
    read = inference.read_score(tmp_path / "a.json")
    assert read.words == speech.score.words and read.phones == speech.phones
    np.testing.assert_allclose(read.seconds, np.diff([0, *speech.ends]) / 800, atol=1e-6)
    again = toy.speak(read, VOICE, seed=3)
    np.testing.assert_array_equal(again.ends, speech.ends)
    np.testing.assert_allclose(again.f0, speech.f0, atol=0.06)  # a tenth of a Hertz is written
    np.testing.assert_allclose(again.audio, speech.audio, atol=1e-5)


def test_changed_lengths_and_pitches_are_followed_and_the_rest_is_predicted(toy):
    plain = toy.speak("Hello, you!", VOICE)
    place = plain.phones.index("uw")
    seconds = [None] * len(plain.phones)
    hz = [None] * len(plain.phones)
    seconds[place], hz[place] = 0.2, (200.0, 400.0)
    speech = toy.speak(inference.Score(front.words("Hello, you!"), tuple(seconds), tuple(hz)), VOICE)
    lengths, before = np.diff([0, *speech.ends]) // 4, np.diff([0, *plain.ends]) // 4
    assert lengths[place] == 40 and np.array_equal(np.delete(lengths, place), np.delete(before, place))
    begin = int(lengths[:place].sum())
    sung = speech.f0[begin : begin + 40]
    assert sung[0] == 200 and sung[-1] == 400 and (np.diff(sung) >= 0).all()
    np.testing.assert_allclose(sung[19:21].mean(), np.sqrt(200 * 400), rtol=0.01)  # on a straight line in log frequency
    np.testing.assert_array_equal(speech.f0[:begin], plain.f0[:begin])


def test_lengths_are_rounded_together_and_a_contour_stretches():
    seconds = [0.0126, None, 0.0126, 0.0126, 0.0126, 0.001]
    frames = scores.frames(seconds, np.array([9, 3, 9, 9, 9, 9]), 0.01)
    assert frames.tolist() == [1, 3, 1, 1, 1, 1]  # 5.14 frames and the predicted three: the last takes its frame from the longest
    assert scores.frames([0.0126] * 8, np.zeros(8), 0.01).tolist() == [1, 2, 1, 1, 1, 2, 1, 1]
    out = scores.contour([None, (0.0, 100.0), (100.0, 0.0)], np.array([2, 4, 2]), np.arange(8.0))
    assert out.tolist() == [0, 1, 0, 0, 100, 100, 100, 0]
    assert scores.contour([(150.0,)], np.array([5]), np.zeros(5)).tolist() == [150] * 5


def test_pitch_is_shifted_by_semitones(toy):
    plain, octave = toy.speak("Hello.", VOICE), toy.speak("Hello.", VOICE, pitch_shift=12)
    np.testing.assert_allclose(octave.f0, 2 * plain.f0, rtol=1e-6)
    for wrong in (25, float("nan")):
        with pytest.raises(ValueError, match="pitch_shift=.* semitones; expected at most 24"):
            toy.speak("Hello.", VOICE, pitch_shift=wrong)


def test_a_score_over_the_largest_bucket_is_cut_and_keeps_its_length(toy):
    words = front.words("The sun came up over the hills, and all was still.")
    number = sum(len(word.phones) for word in words)
    score = inference.Score(words, (0.043,) * number, ((120.0,),) * number)
    speech = toy.speak(score, VOICE)
    assert len(speech.pieces) > 1 and [word for word, _, _ in speech.words] == [w.text for w in words if w.phones != inference.PAUSE]
    assert abs(speech.seconds - number * 0.043) < 0.0026 * len(speech.pieces)  # half a frame each
    assert set(speech.f0.tolist()) <= {0.0, 120.0}


def test_long_rests_are_silence_and_keep_their_length(toy):
    """At the beginning, inside and at the end, longer than any bucket."""
    sil, word = front.Word("", inference.PAUSE), front.Word("you", ("y", "uw"))
    score = inference.Score([sil, word, sil, word, sil], (9.0, 0.05, 0.1, 7.0, 0.05, 0.1, 3.0), ((100.0,),) * 7)
    speech = toy.speak(score, VOICE)
    assert speech.seconds == pytest.approx(sum(score.seconds), abs=0.011) and len(speech.pieces) == 2
    assert [word for word, _, _ in speech.words] == ["you", "you"] and speech.phones.count("uw") == 2
    np.testing.assert_allclose([begin / 800 for _, begin, _ in speech.words], [9.0, 16.15], atol=0.011)
    assert len(speech.f0) * 4 == len(speech.audio) == speech.ends[-1]
    quiet = np.abs(speech.audio[: int(8.7 * 800)]).max(), np.abs(speech.audio[int(9.5 * 800) : int(15.8 * 800)]).max()
    assert quiet == (0.0, 0.0) and np.abs(speech.audio[int(9.06 * 800) : int(9.14 * 800)]).max() > 0
    np.testing.assert_allclose(np.sum(speech.score.seconds), speech.seconds)


def test_textgrid_is_read_by_the_importer(toy, tmp_path):
    speech = toy.speak("Hello, you! It is late.", VOICE)
    (tmp_path / "a.TextGrid").write_text(scores.as_textgrid(speech.score), encoding="utf8")
    tiers = textgrid.read(tmp_path / "a.TextGrid")
    tiers = {name: [(row.start, row.end, row.text) for row in rows] for name, rows in tiers.items()}
    phones = tiers["phones"]
    assert [name or "sil" for _, _, name in phones] == list(speech.phones)
    np.testing.assert_allclose([end for _, end, _ in phones], np.array(speech.ends) / 800, atol=1e-5)
    words = [(name, begin, end) for begin, end, name in tiers["words"] if name]
    assert [name for name, _, _ in words] == [name for name, _, _ in speech.words]
    np.testing.assert_allclose([row[1:] for row in words], [(a / 800, b / 800) for _, a, b in speech.words], atol=1e-5)


def test_captions_are_short_and_in_order(toy):
    speech = toy.speak("Hello, you! The sun came up over the hills and then it went down again behind the sea.", VOICE)
    blocks = [block.splitlines() for block in scores.as_srt(speech.score).strip().split("\n\n")]
    assert [block[0] for block in blocks] == [str(i + 1) for i in range(len(blocks))]
    assert [block[2] for block in blocks[:2]] == ["hello,", "you!"] and all(len(block[2]) <= scores.CAPTION for block in blocks)
    clock = lambda text: sum(float(part) * 60**k for k, part in enumerate(reversed(text.replace(",", ".").split(":"))))
    times = [tuple(clock(end) for end in block[1].split(" --> ")) for block in blocks]
    assert all(a < b for a, b in times) and all(a[1] <= b[0] for a, b in zip(times[:-1], times[1:]))
    assert times[0][0] == pytest.approx(speech.words[0][1] / 800, abs=1e-3) and times[-1][1] == pytest.approx(speech.words[-1][2] / 800, abs=1e-3)


GOOD = {"format": 1, "words": [{"text": "a", "phones": [{"phone": "ax", "seconds": 0.1, "hz": [100]}]}]}


@pytest.mark.parametrize("change,message", [
    (lambda s: s.update(format=2), "format 2, this code reads 1"),
    (lambda s: s.pop("words"), "'words' is missing"),
    (lambda s: s.update(words=[]), "no phone but pauses"),
    (lambda s: s["words"][0]["phones"][0].update(phone="qq"), "'qq' is no phone"),
    (lambda s: s["words"][0]["phones"][0].update(seconds=-1), "is to last -1.0 s"),
    (lambda s: s["words"][0]["phones"][0].update(seconds="long"), "is to last nan s"),
    (lambda s: s["words"][0]["phones"][0].update(hz=[]), "is to have the pitch none"),
    (lambda s: s["words"][0]["phones"][0].update(hz="120"), "expected a list of numbers"),
    (lambda s: s["words"][0].update(phones=[]), "the word 'a' has no phones"),
    (lambda s: s["words"][0]["phones"][0].update(hz=[float("nan")]), "is to have the pitch nan"),
    (lambda s: s["words"].append(3), "not a score"),
])
def test_a_wrong_score_is_refused_by_name(tmp_path, change, message):
    said = json.loads(json.dumps(GOOD))
    (tmp_path / "a.json").write_text(json.dumps(said))
    assert inference.read_score(tmp_path / "a.json").phones == ("ax",)
    change(said)
    (tmp_path / "a.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="a.json: not a score: .*" + message if message != "not a score" else message):
        inference.read_score(tmp_path / "a.json")


def test_no_score():
    with pytest.raises(FileNotFoundError, match="nowhere.json: no such file"):
        inference.read_score("nowhere.json")
