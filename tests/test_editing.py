"""A recording whose words change, or that goes on: what stays is the recording, what is new lies where it should."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import refused, run

from data_pipelines import tokens as pipeline
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.data import frames
from ns2_jax.inference import conversion, editing, provenance, revoicing
from ns2_jax.text import front

NAME = "ns2_jax.synthesize"
HERE = Path(__file__).parent / "data_pipelines"
SAID = json.loads((HERE / "sentences.json").read_text())[0]["text"]
SOURCE = HERE / "sentence0.flac"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    small = inference.load(tiny.write_model("soundstorm", tmp_path_factory.mktemp("soundstorm")))
    config = {**small.config, "data": {**small.config["data"], "buckets": [{"b": 1, "t": 640, "p": 96, "u": 320}]}}  # holds the source
    return inference.Model(small.system, small.params, small.rest, config)


@pytest.fixture(scope="module")
def aligner():
    return inference.load(Path(__file__).parents[1] / "results" / "aligner" / "model")


@pytest.fixture(scope="module")
def heard(model, aligner):
    """(audio, score) of the recording."""
    audio = conversion.source_audio(model, SOURCE)
    return audio, conversion.listen(model, aligner, audio, front.words(SAID))


def texts(words: front.Words) -> str:
    return " ".join(word.text for word in words if word.phones != inference.PAUSE)


@pytest.mark.parametrize("text, first, last, new", [
    ("We like green tea.", "we like", "tea", "green"),
    ("We like tea, really.", "we like tea", "", "really"),
    ("They like tea.", "", "like tea", "they"),
    ("We tea.", "we", "tea", ""),
    ("Nobody knows.", "", "", "nobody knows"),
])
def test_what_changes_lies_between_what_stays(text, first, last, new):
    before = front.words("We like tea.")
    start, end, words = editing.changed(before, front.words(text))
    assert (texts(before[:start]), texts(before[len(before) - end :]), texts(words)) == (first, last, new)
    assert before[0].phones == inference.PAUSE and start >= 1 and end >= 1  # silence at both ends stays


def test_nothing_to_change_is_said():
    with pytest.raises(ValueError, match="nothing to change"):
        editing.changed(front.words("We like tea."), front.words("we like tea"))


def kept(made: inference.Speech, audio: np.ndarray, head: int, tail: int) -> None:
    """All but the margin and the blend of so many words at both ends are the recording's samples."""
    side = round((editing.MARGIN + editing.BLEND) * 16000) + 200
    ends = np.concatenate([[0], made.ends])
    edge = ends[head] - side
    assert edge > 2000
    np.testing.assert_allclose(made.audio[:edge], audio[:edge], atol=1e-4)
    if tail:
        behind = made.ends[-1] - ends[len(ends) - 1 - tail] - side
        assert behind > 1000
        np.testing.assert_allclose(made.audio[-behind:], audio[-behind:], atol=1e-4)


def test_a_word_is_replaced(model, heard, aligner, monkeypatch, tmp_path):
    """From Python and from the command line alike."""
    audio, score = heard
    words = SAID.rstrip(".").split()
    at = len(words) // 2
    text = " ".join([*words[:at], "wonderful", *words[at + 1 :]]) + "."
    made = inference.edit(model, aligner, SOURCE, SAID, text, seed=3, steps=2)
    assert "wonderful" in [word for word, _, _ in made.words] and len(made.pieces) == 1
    first, last, new = editing.changed(score.words, front.words(text))
    count = lambda some: sum(len(word.phones) for word in some)
    kept(made, audio, count(score.words[:first]), count(score.words[len(score.words) - last :]))
    begin, end = next((b, e) for word, b, e in made.words if word == "wonderful")
    assert np.isfinite(made.audio).all() and np.abs(made.audio[begin:end]).max() > 0
    assert made.seconds == pytest.approx(sum(made.score.seconds), abs=1e-6)
    monkeypatch.setattr(inference, "load", lambda path, *_, **__: model if path == "MODEL" else aligner)
    code, out, err = run(NAME, "--model=MODEL", "--task=edit", f"--source={SOURCE}", f"--said={SAID}", f"--text={text}", f"--out={tmp_path}/a.wav",
                         "--steps=2", "--seed=3")
    assert code == 0 and "s of speech" in out, err
    np.testing.assert_allclose(files.read(tmp_path / "a.wav", 16000), made.audio, atol=2e-4)


def test_a_recording_goes_on(model, heard, aligner, monkeypatch, tmp_path):
    audio, score = heard
    made = inference.go_on(model, aligner, SOURCE, SAID, "And so on.", steps=2)
    assert [word for word, _, _ in made.words][-3:] == ["and", "so", "on"]
    known = lambda i: sum(word.phones != inference.PAUSE and bool(word.text) for word in score.words[i:])
    head = len(score.words) - (len(made.score.words) - 4)  # and so on, and the silence at the end
    assert known(head) == len(made.words) - 3
    phones = sum(len(word.phones) for word in score.words[head:])
    kept(made, audio[len(audio) - int(made.ends[phones - 1]) :], phones, 0)
    monkeypatch.setattr(inference, "load", lambda path, *_, **__: model if path == "MODEL" else aligner)
    code, _, err = run(NAME, "--model=MODEL", "--task=continue", f"--source={SOURCE}", f"--said={SAID}", "--text=And so on.",
                       f"--out={tmp_path}/a.flac", "--steps=2")
    assert code == 0, err
    np.testing.assert_allclose(files.read(tmp_path / "a.flac", 16000), made.audio, atol=2e-4)
    mark = inference.read_mark(tmp_path / "a.flac")
    assert mark["prompts"] == [provenance.digest(SOURCE)] and mark["options"] == {"steps": 2} and mark["model"] == model.hash


def test_what_is_too_long_or_cannot_fill_in_is_refused(model, aligner, tmp_path_factory):
    with pytest.raises(ValueError, match="longer than this model fills in at once"):
        inference.edit(model, aligner, SOURCE, SAID, "The sun came up over the hills and the birds began to sing " * 4)
    other = inference.load(tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("ns2")))
    with pytest.raises(ValueError, match="does not fill in words"):
        editing.fill(other, np.zeros(1600, np.float32), None, 0, 0, [])


def test_flags_that_do_not_go_together():
    common = ["--model=MODEL", "--text=Yes.", "--out=a.wav"]
    assert "--said is missing" in refused(NAME, *common, "--task=edit", f"--source={SOURCE}")
    assert "--source is missing" in refused(NAME, *common, "--task=continue", "--said=No.")
    assert "--prompt does not go with --task=edit" in refused(NAME, *common, "--task=edit", f"--source={SOURCE}", "--said=No.", f"--prompt={SOURCE}")
    assert "--said goes with" in refused(NAME, *common, "--said=No.", f"--prompt={SOURCE}")


def test_a_voice_by_chance_and_prompts_are_spoken(model, tmp_path, monkeypatch):
    """Minutes are spoken in pieces that each hear the prompt; a schedule with as many passes is another way of the same program."""
    monkeypatch.setattr(inference, "load", lambda path, *_, **__: model)
    code, out, err = run(NAME, "--model=MODEL", "--text=Hello, you.", "--prompt=", f"--out={tmp_path}/a.wav", "--steps=2", "--seed=1")
    assert code == 0, err
    plain = model.speak("Hello, you.", None, seed=1, steps=2)
    np.testing.assert_allclose(files.read(tmp_path / "a.wav", 16000), plain.audio, atol=2e-4)
    other = model.speak("Hello, you.", None, seed=1, schedule=(1, 2, 1))
    assert len(other.audio) == len(plain.audio) and np.abs(other.audio - plain.audio).max() > 0
    with pytest.raises(ValueError, match="expected 3 whole numbers from 1 on"):
        model.speak("Hello, you.", None, schedule=(2, 2))
    long = model.speak("The sun came up over the hills, and the birds began to sing. She walked to the market with her brother; they bought bread, "
                       "apples and a little fish. In the evening it rained!", str(tiny.SPEECH), steps=2)
    assert len(long.pieces) > 1 and len(long.audio) == long.ends[-1]


def test_tokens_in_another_voice(tmp_path_factory):
    """As long as the source, in pieces where it is longer than a bucket; what the tokens say is heard, and the prompt is."""
    size = "smoke,semantic"
    small = inference.load(tiny.write_model("soundstorm", tmp_path_factory.mktemp("semantic"), size=size))
    tokenizer = inference.load(tiny.write_model("semantic", tmp_path_factory.mktemp("tokenizer"), size="smoke,kmeans"))
    config = {**small.config, "data": {**small.config["data"], "buckets": [{"b": 1, "t": 160, "p": 1, "u": 32}]}}
    model = inference.Model(small.system, small.params, small.rest, config)
    audio = files.read(SOURCE, 16000)[: 16000 * 2]
    made = revoicing.revoice(model, tokenizer, (audio, 16000), SOURCE, seed=3, steps=2)
    plain = made.audio
    assert made.origin.prompts == (provenance.digest((audio, 16000)), provenance.digest(SOURCE)) and made.origin.seed == 3
    assert made.rate == 16000 and len(plain) == len(audio) // 200 * 200 and np.isfinite(plain).all()
    again = revoicing.revoice(model, tokenizer, (audio, 16000), SOURCE, seed=3, steps=2).audio
    np.testing.assert_array_equal(plain, again)
    other = revoicing.revoice(model, tokenizer, (audio, 16000), tiny.SPEECH, seed=3, steps=2).audio
    assert np.abs(other - plain).max() > 0
    uneven = audio[: len(audio) - 300]  # ends inside a token's frame: tokens are those that a data set has of it
    tokens, made = revoicing.tokens_of(tokenizer, uneven, 16000, 200), pipeline.Tokenizer(tokenizer)
    row = np.zeros((made.devices, len(uneven) // 640 * 640), np.float32)
    row[0] = uneven[: row.shape[1]]
    stored = made(row, np.array([len(uneven)] + [640] * (made.devices - 1)))[0]
    np.testing.assert_array_equal(tokens, frames.tokens_at_frames(stored, 640, 200, len(uneven) // 200))
    assert len(tokens) == 158 and len(np.unique(tokens)) > 1
    with pytest.raises(ValueError, match="does not speak from semantic tokens"):
        revoicing.revoice(tokenizer, tokenizer, SOURCE, None)
    with pytest.raises(ValueError, match="makes no tokens"):
        revoicing.revoice(model, model, SOURCE, None)
