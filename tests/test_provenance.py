"""What generated audio says of itself, in every format, and whose consent goes with it."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import soundfile
import tiny

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.inference import provenance, writing
from ns2_jax.inference.speech import Speech

VOICE = ((0.3 * np.sin(np.arange(2400) * 0.05)).astype(np.float32), 800)
ALLOWED = "I, Ann Example, allow my voice to be imitated for tests."


@pytest.fixture(scope="module")
def speech() -> Speech:
    return tiny.toy()("Hello there, all of you.", VOICE, seed=4, steps=2, speed=1.25)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_file_and_its_sidecar_name_model_prompt_and_seed(speech, tmp_path, name):
    inference.write(tmp_path / name, speech)
    inside, beside = inference.read_mark(tmp_path / name), json.loads((tmp_path / f"{name}.json").read_text())
    assert inside == {"synthetic": True, "generator": inside["generator"], "system": "toy", "model": tiny.toy().hash, "seed": 4,
                      "prompts": [provenance.digest(VOICE)], "options": {"steps": 2, "speed": 1.25}}
    assert inside["generator"].startswith("ns2_jax ") and inside.items() <= beside.items()
    assert beside["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() and beside["file"] == name and beside["rate"] == 800
    assert soundfile.SoundFile(tmp_path / name).copy_metadata()["title"] == "Synthetic speech"
    audio, _ = soundfile.read(tmp_path / name)
    assert len(audio) == len(speech.audio) and (name.endswith("ogg") or np.abs(audio - speech.audio).max() < 2 / 32768)
    before = (tmp_path / name).read_bytes()
    inference.write(tmp_path / name, speech)
    assert name.endswith("ogg") or (tmp_path / name).read_bytes() == before  # an Ogg stream has a random number


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_bytes_are_marked_too(speech, suffix):
    loud = Speech(**{**vars(speech), "audio": np.tile(20 * speech.audio, 40), "rate": 16000})
    data = inference.encode(loud, suffix)
    assert inference.read_mark(io.BytesIO(data))["seed"] == 4
    audio, rate = soundfile.read(io.BytesIO(data))
    assert rate == 16000 and 0.8 < np.abs(audio).max() < 1.1  # MP3 overshoots
    with pytest.raises(ValueError, match="can't encode as '.aac'"):
        inference.encode(loud, ".aac")
    with pytest.raises(ValueError, match="800 Hz can't be encoded as mp3"):
        inference.encode(speech, ".mp3")


def test_samples_may_have_an_origin(speech, tmp_path):
    """What an evaluation keeps: as loud as it was judged, and with the sidecar of the speech it was."""
    inference.write(tmp_path / "b.wav", (0.01 * speech.audio, 800), origin=speech.origin)
    assert np.abs(soundfile.read(tmp_path / "b.wav")[0] - 0.01 * speech.audio).max() < 2 / 32768
    assert json.loads((tmp_path / "b.wav.json").read_text())["seed"] == 4 == inference.read_mark(tmp_path / "b.wav")["seed"]


def test_a_sidecar_goes_with_its_file(speech, tmp_path):
    inference.write(tmp_path / "a.wav", speech)
    assert (tmp_path / "a.wav.json").exists()
    inference.write(tmp_path / "a.wav", VOICE)
    assert not (tmp_path / "a.wav.json").exists()


def test_a_stream_is_marked_in_its_head(speech):
    data = b"".join(writing.wav_stream([speech, speech]))
    assert data[:4] == b"RIFF" and inference.read_mark(io.BytesIO(data))["model"] == tiny.toy().hash
    audio, rate = soundfile.read(io.BytesIO(data))
    assert rate == 800 and len(audio) == 2 * len(speech.audio)
    np.testing.assert_allclose(audio[: len(speech.audio)], speech.audio, atol=1 / 32768)


def test_what_is_recorded_or_unknown_is_not_called_what_it_is_not(speech, tmp_path):
    inference.write(tmp_path / "recording.wav", VOICE, recorded=True)
    assert inference.read_mark(tmp_path / "recording.wav") is None
    inference.write(tmp_path / "decoded.wav", VOICE)
    assert set(inference.read_mark(tmp_path / "decoded.wav")) == {"synthetic", "generator"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoded.wav", "recording.wav"]
    files.write(tmp_path / "other.wav", VOICE[0], 800, {"comment": "[1]"})
    assert inference.read_mark(tmp_path / "other.wav") is None
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(files.AudioError, match="not an audio file"):
        inference.read_mark(tmp_path / "text.wav")


def test_a_consent_belongs_to_its_recordings(tmp_path):
    files.write(tmp_path / "voice.wav", *VOICE)
    files.write(tmp_path / "other.wav", VOICE[0] * 0.5, 800)
    digest = hashlib.sha256((tmp_path / "voice.wav").read_bytes()).hexdigest()
    (tmp_path / "consent.txt").write_text(f"{ALLOWED}\n{digest}  voice.wav\n")
    given, model = inference.read_consent(tmp_path / "consent.txt"), tiny.toy()
    assert given.statement == ALLOWED and given.recordings == {digest}
    heard = model.hear(tmp_path / "voice.wav").allowed(given)
    inference.write(tmp_path / "a.wav", model("Hello there.", heard))
    assert inference.read_mark(tmp_path / "a.wav")["consent"] == given.sha256
    assert json.loads((tmp_path / "a.wav.json").read_text())["consent"] == {"sha256": given.sha256, "statement": ALLOWED}
    with pytest.raises(ValueError, match="not about the recording with SHA-256"):
        model.hear([str(tmp_path / "voice.wav"), str(tmp_path / "other.wav")]).allowed(given)


@pytest.mark.parametrize("text, message", [
    ("I do.\n" + "0" * 64, "no statement of at least 20"), (ALLOWED, "names no recording"), ("", "no statement"),
    (b"\xff\xfe", "not a UTF-8"), (b" " * 70000, "at most 65536")])
def test_a_poor_consent_is_refused(tmp_path, text, message):
    (tmp_path / "c.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        inference.read_consent(tmp_path / "c.txt")
    with pytest.raises(FileNotFoundError, match="no such file with a consent"):
        inference.read_consent(tmp_path / "nowhere.txt")


def test_a_hash_names_weights(tmp_path):
    assert tiny.toy().hash == tiny.toy().hash != tiny.toy(gain=2.0).hash and len(tiny.toy().hash) == 12


def test_huge_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_SAMPLES", 3000)
    soundfile.write(tmp_path / "wide.wav", np.random.default_rng(0).normal(0, 0.1, (2000, 2)), 800)
    with pytest.raises(files.AudioError, match="2 channels of 2000 samples") as error:
        files.read(tmp_path / "wide.wav", 800)
    assert error.value.reason == "long"
