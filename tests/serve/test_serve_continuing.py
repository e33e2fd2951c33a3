"""A model that goes on from its voice and must know what that says, through the doors of all others."""

from __future__ import annotations

import base64
import io
import json
import logging

import numpy as np
import pytest
import served
import soundfile
import tiny
from fastapi.testclient import TestClient

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.evals import recognisers
from ns2_jax.serve import app, voices, work

TEXT = "The river was quiet this morning. Nobody walked along it."
DEFAULT = inference.Said(voices.BUNDLED, voices.BUNDLED_TEXT)


@pytest.fixture(scope="module")
def model():
    return tiny.follower()


def samples(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data))[0]


def upload(client, name, **form):
    return client.post("/v1/voices", data={"name": name, "consent": served.CONSENT, **form}, files={"recording": ("x", served.recording())})


def test_a_call_a_batch_and_a_stream_are_the_same_speech(model):
    one = model("Good morning.", DEFAULT, seed=3)
    both = model.batch([("Good night.", DEFAULT), ("Good morning.", DEFAULT)], seed=3)
    np.testing.assert_allclose(both[1].audio, one.audio, atol=1e-6)
    other = model("Good morning.", inference.Said(voices.BUNDLED, "My brother is learning."), seed=3)
    assert np.abs(other.audio - one.audio).max() > 0.002  # what the prompt says is heard
    parts = list(model.stream(TEXT, DEFAULT, seed=3))
    assert len(parts) == 2
    np.testing.assert_allclose(parts[0].audio, model("The river was quiet this morning.", DEFAULT, 3).audio, atol=1e-6)
    for ask in (model, model.stream):
        with pytest.raises(ValueError, match="must be told what it says"):
            ask(TEXT, voices.BUNDLED)


def test_a_warm_up_compiles_all_rooms_of_prompts():
    model, short = tiny.follower(), inference.Said((np.sin(np.arange(4000) * 0.3).astype(np.float32) * 0.3, 4000), "Hello there.")
    speaking = lambda: {tag for tag in model._compiled if tag[0] in ("durations", "contour", "sample")}
    assert [made[:2] for made in model.warm_up(rows=(1, 2))] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    before = speaking()
    assert {(size["p"], size["u"]) for size in (dict(pair for pair in tag[2:] if isinstance(pair, tuple)) for tag in before)} == {
        (p, u) for p in (60, 80) for u in (2000, 3000)}
    model.batch([("Hello there.", DEFAULT), (TEXT, DEFAULT)])
    model.batch([("Hello there.", short)] * 2)
    assert speaking() == before
    with pytest.raises(ValueError, match="pitch"):
        model.warm_up(pitch_shift=1.0)


def test_a_server_speaks_with_it(model, tmp_path, caplog):
    (tmp_path / "mute.wav").write_bytes(served.recording())
    with caplog.at_level(logging.ERROR), TestClient(
            app.create(work.Worker(model, rows=2), voices.Voices(model, tmp_path)), base_url="http://localhost") as client:
        about = client.get("/health").json()
        assert about["needs_text"] and about["controls"] == []
        said = client.post("/v1/speech", json={"text": TEXT, "seed": 5})
        assert said.status_code == 200, said.text
        expected = model(TEXT, DEFAULT, 5)
        np.testing.assert_allclose(samples(base64.b64decode(said.json()["audio"])), expected.audio, atol=1 / 32768)
        assert [word["text"] for word in said.json()["words"]] == [word for word, _, _ in expected.word_times]
        answer = client.post("/v1/audio/speech", json={"input": TEXT, "seed": 5, "stream": True, "response_format": "wav"})
        parts = list(model.stream(TEXT, DEFAULT, 5))
        np.testing.assert_allclose(samples(answer.content), np.concatenate([part.audio for part in parts]), atol=1 / 32768)

        problem = lambda answer: (answer.status_code, answer.json()["error"]["message"])
        status, why = problem(client.post("/v1/speech", json={"text": TEXT, "voice": "mute"}))
        assert status == 400 and "mute.txt" in why and str(tmp_path) not in why
        (tmp_path / "mute.txt").write_bytes(b"\xff\xfe")
        assert "not a UTF-8 text" in problem(client.post("/v1/speech", json={"text": TEXT, "voice": "mute"}))[1]
        (tmp_path / "mute.txt").write_text("Hello there.\n")
        status, why = problem(upload(client, "ann"))
        assert status == 400 and "as `text`" in why and not list(tmp_path.glob("ann*"))
        assert "pronounceable" in problem(upload(client, "ann", text="!?"))[1] and "2001" in problem(upload(client, "ann", text="x" * 2001))[1]
        assert upload(client, "ann", text="Hello  there.\n").json()["text"] is True
        assert (tmp_path / "ann.txt").read_text() == "Hello there.\n"
        assert {(voice["name"], voice["text"]) for voice in client.get("/v1/voices").json()} == {("default", True), ("mute", True), ("ann", True)}
        one, two = (client.post("/v1/speech", json={"text": TEXT, "voice": name}).json() for name in ("ann", "mute"))
        assert one["audio"] and json.dumps(one["words"]) == json.dumps(two["words"])
        for control in ({"speed": 1.5}, {"pitch_shift": 2.0}):
            status, why = problem(client.post("/v1/speech", json={"text": TEXT} | control))
            assert status == 400 and next(iter(control)) in why
        assert client.delete("/v1/voices/ann").status_code == 204 and not list(tmp_path.glob("ann*"))
    assert not caplog.records  # the warm-up went well


def test_the_bundled_voice_says_its_text():
    (heard,) = recognisers.PocketSphinx().transcribe([files.read(voices.BUNDLED, recognisers.RATE)], 1, False)
    assert heard == voices.BUNDLED_TEXT.lower().rstrip(".")


def test_a_text_left_behind_is_not_the_next_voices(tmp_path):
    known = voices.Voices(tiny.toy(rate=4000), tmp_path, needs_consent=False)
    known.add("ann", served.recording(), text="Hello there.")
    (tmp_path / "ann.wav").unlink()  # by the operator
    known.add("ann", served.recording(pitch=90))
    assert not (tmp_path / "ann.txt").exists() and [voice.text for voice in known.list()] == [True, False]
