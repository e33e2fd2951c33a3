"""The API: what it gives equals what the model says, and what it refuses it refuses in words."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import io
import json
import math
import time

import numpy as np
import pytest
import served
import soundfile
import tiny
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from ns2_jax import inference
from ns2_jax.serve import app, voices, work

TEXT = "The river was quiet this morning. Nobody walked along it."


@pytest.fixture(scope="module")
def model():
    return tiny.toy(rate=8000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("voices")


@pytest.fixture(scope="module")
def client(model, folder):
    limits = app.Limits(text=300, upload=60000, steps=(3, 2))
    made = app.create(work.Worker(model, warm=False, window=0.0, steps=3), voices.Voices(model, folder), limits)
    with TestClient(made, base_url="http://localhost", raise_server_exceptions=False) as opened:
        yield opened


def problem(answer, status):
    """The message of a refusal."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code"} and error["message"]
    return error["message"]


def test_speech_is_the_models_with_its_times(client, model):
    said = client.post("/v1/speech", json={"text": TEXT, "seed": 5, "lexicon": {"nobody": "n ow b aa d iy"}})
    assert said.status_code == 200, said.text
    said, speech = said.json(), model(TEXT, voices.BUNDLED, 5, steps=3, lexicon={"nobody": "n ow b aa d iy"})
    data = base64.b64decode(said["audio"])
    audio, rate = soundfile.read(io.BytesIO(data))
    assert rate == said["rate"] == 8000
    np.testing.assert_allclose(audio, speech.audio, atol=1 / 32768)
    assert [(word["text"], word["start"]) for word in said["words"]] == [(text, round(begin, 4)) for text, begin, _ in speech.word_times]
    assert [phone["text"] for phone in said["phones"]] == list(speech.phones)
    np.testing.assert_allclose(said["pitch"], speech.f0, atol=0.05)
    assert said["provenance"]["model"] == model.hash and said["provenance"]["seed"] == 5
    assert said["provenance"]["prompts"] == [hashlib.sha256(voices.BUNDLED.read_bytes()).hexdigest()]
    assert inference.read_mark(io.BytesIO(data)) == said["provenance"]


def test_openais_route_in_every_format(client, model):
    speech = model("Hello there.", voices.BUNDLED, 0, steps=2)
    for kind, media in (("wav", "audio/wav"), ("flac", "audio/flac"), ("ogg", "audio/ogg"), ("mp3", "audio/mpeg")):
        answer = client.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hello there.", "voice": {"id": "default"}, "response_format": kind,
                                                       "steps": 2, "instructions": "gently"})
        assert answer.status_code == 200 and answer.headers["content-type"] == media and answer.headers["x-model"] == model.hash, answer.text
        assert inference.read_mark(io.BytesIO(answer.content))["synthetic"]
        audio, rate = soundfile.read(io.BytesIO(answer.content))
        assert rate == 8000 and (kind == "mp3" or len(audio) == len(speech.audio))
    assert client.post("/v1/audio/speech", json={"input": "Hello there.", "voice": "default"}).headers["content-type"] == "audio/mpeg"


@pytest.mark.parametrize("path, body", [
    ("/v1/speech/stream", {"text": TEXT}), ("/v1/audio/speech", {"input": TEXT, "stream": True, "response_format": "wav"})])
def test_a_stream_is_the_models(client, model, path, body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    audio, _ = soundfile.read(io.BytesIO(answer.content))
    parts = list(model.stream(TEXT, voices.BUNDLED, 0, steps=3))
    assert len(parts) == 2
    np.testing.assert_allclose(audio, np.concatenate([part.audio for part in parts]), atol=1 / 32768)


def test_what_will_be_spoken(client):
    words = client.post("/v1/say", json={"text": "Dr. Smith, 3.", "lexicon": {"smith": "S M IH1 TH"}}).json()
    assert [word["word"] for word in words] == ["", "doctor", "smith", ",", "three", "."] and words[2]["phones"] == ["s", "m", "ih", "th"]


def test_few_characters_may_not_become_hours(client):
    """What is said is work, not what is written: a lexicon or digits make much of little."""
    for path in ("/v1/speech", "/v1/say", "/v1/speech/stream"):
        answer = client.post(path, json={"text": "a " * 50, "lexicon": {"a": "AH K " * 40}})
        assert answer.status_code == 413 and "is spoken with 400" in answer.json()["error"]["message"], answer.text
    assert "lexicon.a: String should have at most 200" in problem(client.post("/v1/say", json={"text": "a", "lexicon": {"a": "AH K " * 41}}), 400)


def test_health_models_and_documents(client, model):
    assert client.get("/health").json()["steps"] == [3, 2] and client.get("/v1/models").json()["data"][0]["id"] == model.hash
    document = client.get("/openapi.json").json()
    assert {"/v1/speech", "/v1/speech/stream", "/v1/audio/speech", "/v1/say", "/v1/voices", "/v1/voices/{name}", "/v1/models", "/health",
            "/metrics"} == set(document["paths"])
    assert all(route.get("description") or route.get("summary") for methods in document["paths"].values() for route in methods.values())
    page = client.get("/")
    assert "http" not in page.text.replace("http-equiv", "") and "default-src 'none'" in page.headers["content-security-policy"]
    text = client.get("/metrics").text
    assert 'ns2_jax_requests_total{route="/v1/say",status="200"}' in text and "ns2_jax_batch_rows_bucket" in text


@pytest.mark.parametrize("body, status, message", [
    ({"text": ""}, 400, "the text is empty"), ({"text": "!?"}, 400, "no pronounceable word"), ({}, 400, "text: Field required"),
    ({"text": "Hi.", "voice": "nobody"}, 404, "no voice 'nobody'"), ({"text": "Hi.", "voice": "../../etc/passwd"}, 404, "no voice"),
    ({"text": "x" * 301}, 413, "301 characters"), ({"text": "Hi.", "steps": 50}, 400, "offers [3, 2]"), ({"text": "Hi.", "speed": 9}, 400, "speed"),
    ({"text": "Hi.", "lexicon": {"hi": "QQ"}}, 400, "QQ"), ({"text": "Hi.", "language": "xx-none"}, 400, "no voice for language"),
    ({"text": "Hi.", "seed": -1}, 400, "seed"), ({"text": "Hi.", "colour": "red"}, 400, "colour"), ({"text": "\ud800"}, 400, ""),
    ([], 400, "the request"), ({"text": "a" * 280}, 400, "")])
def test_refusals(client, body, status, message):
    assert message in problem(client.post("/v1/speech", content=json.dumps(body), headers={"content-type": "application/json"}), status)


def test_other_refusals(client):
    for answer, status, message in (
            (client.post("/v1/audio/speech", json={"input": "Hi.", "response_format": "pcm"}), 400, "response_format"),
            (client.post("/v1/audio/speech", json={"input": "Hi.", "stream": True}), 400, "response_format wav"),
            (client.post("/v1/speech", content=b"{", headers={"content-type": "application/json"}), 400, "JSON"),
            (client.post("/v1/speech", content=b"x" * 300000, headers={"content-type": "application/json"}), 413, "at most 262144"),
            (client.post("/v1/speech", content=iter([b"x" * 100000] * 3), headers={"content-type": "application/json"}), 413, "more than 262144"),
            (client.get("/v1/speech"), 405, "Not Allowed"), (client.get("/nowhere"), 404, "Not Found"),
            (client.get("/health", headers={"host": "evil.example"}), 421, "does not answer"),
            (client.post("/v1/say", json={"text": "Hi."}, headers={"origin": "http://evil.example"}), 403, "evil.example")):
        assert message in problem(answer, status)


def test_a_fault_is_counted_and_tells_nothing(client, model, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("secret of /home/operator")

    monkeypatch.setattr(model, "speak_batch", broken)
    for _ in range(2):
        answer = client.post("/v1/speech", json={"text": "Hello there."})
        assert "its log says more" in problem(answer, 500) and "secret" not in answer.text and answer.headers["x-content-type-options"] == "nosniff"
    assert "secret of /home/operator" in caplog.text and 'route="/v1/speech",status="500"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize("origin", ["http://[", "null", "http://localhost.evil.example", "http://localhost:81"])
def test_pages_of_others_are_kept_out(client, origin):
    assert "may not use" in problem(client.post("/v1/say", json={"text": "Hi."}, headers={"origin": origin}), 403)
    assert client.post("/v1/say", json={"text": "Hi."}, headers={"origin": "http://localhost"}).status_code == 200


def upload(client, name, data, **form):
    return client.post("/v1/voices", data={"name": name, **form}, files={"recording": ("x", data)})


def test_a_voice_needs_consent_is_kept_and_goes(client, model, folder):
    data = served.recording()
    digest = hashlib.sha256(data).hexdigest()
    assert "only with its speaker's consent" in problem(upload(client, "ann", data), 403)
    assert "at least 20" in problem(upload(client, "ann", data, consent="ok"), 400)
    assert not list(folder.iterdir())
    made = upload(client, "ann", data, consent=served.CONSENT)
    assert made.status_code == 201 and made.json()["recordings"] == [digest] and "of silence" in made.json()["notes"][0]
    assert (folder / "ann.wav").read_bytes() == data and digest in (folder / "ann.consent.txt").read_text()
    assert "already" in problem(upload(client, "ann", data, consent=served.CONSENT), 400)
    assert [voice["name"] for voice in client.get("/v1/voices").json()] == ["default", "ann"]
    said = client.post("/v1/speech", json={"text": "Hello there.", "voice": "ann"}).json()
    np.testing.assert_allclose(soundfile.read(io.BytesIO(base64.b64decode(said["audio"])))[0],
                               model("Hello there.", folder / "ann.wav", steps=3).audio, atol=1 / 32768)
    assert said["provenance"]["consent"] == inference.read_consent(folder / "ann.consent.txt").sha256
    (folder / "ann.wav").write_bytes(served.recording(pitch=90))  # another recording than the consent is about
    assert "not about the recording" in problem(client.post("/v1/speech", json={"text": "Hello.", "voice": "ann"}), 400)
    (folder / "ann.wav").write_bytes(b"no audio")
    said = problem(client.post("/v1/speech", json={"text": "Hello.", "voice": "ann"}), 400)
    assert "voice ann: its recording: not an audio file" in said and str(folder) not in said
    assert client.delete("/v1/voices/ann").status_code == 204 and not list(folder.iterdir())
    assert "no voice" in problem(client.delete("/v1/voices/ann"), 404) and "can't be deleted" in problem(client.delete("/v1/voices/default"), 400)


def of_floats(audio, kind="WAV", subtype="FLOAT"):
    data = io.BytesIO()
    soundfile.write(data, audio, 8000, format=kind, subtype=subtype)
    return data.getvalue()


def long_flac():
    """Eleven minutes in a few kilobytes."""
    data = of_floats(np.full(660 * 8000, 0.1), "FLAC", "PCM_16")
    assert len(data) < 60000
    return data


@pytest.mark.parametrize("name, data, status, message", [
    ("default", b"", 400, "can't be called"), ("../x", b"", 400, "can't be called"), ("A B", b"", 400, "can't be called"),
    ("b", b"", 400, "the recording"), ("b", b"no audio at all", 400, "the recording: not an audio file"), ("b", "silent", 400, "silent"),
    ("b", "short", 400, "at least 0.1 s"), ("b", "large", 413, "60000"), ("b", "nan", 400, "NaN or infinite"), ("b", "long", 400, "at most 60 s")])
def test_recordings_that_are_no_voice(client, folder, name, data, status, message):
    make = {"silent": lambda: served.recording()[:44] + bytes(16000), "short": lambda: served.recording(0.05), "large": lambda: served.recording(5.0),
            "nan": lambda: of_floats(np.full(9000, np.nan)), "long": lambda: long_flac()}
    answer = upload(client, name, make[data]() if data in make else data, consent=served.CONSENT)
    assert message in problem(answer, status) and not list(folder.iterdir())


def test_an_operator_may_do_without_consent_and_that_is_logged(model, caplog):
    with TestClient(app.create(work.Worker(model, warm=False), voices.Voices(model, None, False)), base_url="http://localhost") as free:
        assert upload(free, "bob", served.recording()).json()["consent"] is False
        assert free.get("/health").json()["needs_consent"] is False
    assert "the operator turned it off" in caplog.text and "bob was uploaded without a consent" in caplog.text


def test_uploads_are_heard_one_at_a_time(model, tmp_path, monkeypatch):
    """Each may take as much memory as a minute of audio of many channels."""
    known, real, now, most = voices.Voices(model, tmp_path, needs_consent=False), voices.Voices._hear, [], []

    def hear(self, *of):
        now.append(of)
        most.append(len(now))
        time.sleep(0.05)
        now.remove(of)
        return real(self, *of)

    monkeypatch.setattr(voices.Voices, "_hear", hear)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: known.add(name, served.recording()), "abcd"))
    assert most == [1] * 4


def test_a_consent_left_behind_is_not_the_next_voices(model, tmp_path):
    known = voices.Voices(model, tmp_path, needs_consent=False)
    known.add("ann", served.recording(), served.CONSENT)
    (tmp_path / "ann.wav").unlink()  # by the operator
    assert known.add("ann", served.recording(pitch=90)).consent is None and known.get("ann").consent is None
    with pytest.raises(voices.Unknown):
        known.get("../ann")
    (tmp_path / "ann.flac").write_bytes(b"of the operator's")
    known.remove("ann")
    with pytest.raises(voices.Unknown):
        known.get("ann")
    assert not list(tmp_path.iterdir())


def test_a_voice_is_heard_once_for_all_who_ask(model, tmp_path, monkeypatch):
    (tmp_path / "ann.wav").write_bytes(served.recording())
    known, times, real = voices.Voices(model, tmp_path), [], voices.Voices._hear
    monkeypatch.setattr(voices.Voices, "_hear", lambda self, *of: times.append(of) or time.sleep(0.05) or real(self, *of))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len({id(heard) for heard in pool.map(known.get, ["ann"] * 8)}) == 1 and len(times) == 1
    (tmp_path / "ann.wav").write_bytes(served.recording(pitch=90))
    known.get("ann")
    assert len(times) == 2


odd = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=40), st.lists(st.integers(), max_size=3),
                st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), st.just(math.nan))
fields = st.sampled_from(["text", "input", "voice", "seed", "pitch_shift", "steps", "lexicon", "language", "response_format", "stream", "model", "x"])
bodies = st.one_of(odd, st.tuples(st.text(max_size=60), st.dictionaries(fields, odd, max_size=4)).map(
    lambda pair: {"text": pair[0], "input": pair[0]} | pair[1]))
routes = st.sampled_from(["/v1/speech", "/v1/speech/stream", "/v1/audio/speech", "/v1/say"])


@settings(max_examples=80)
@given(routes, bodies)
def test_no_body_breaks_it(client, route, body):
    answer = client.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404, 413), (answer.status_code, answer.text)
    if answer.status_code != 200:
        assert problem(answer, answer.status_code)


@settings(max_examples=40)
@given(st.sampled_from(["GET", "POST", "DELETE", "PUT"]), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
       st.binary(max_size=200), st.sampled_from(["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", ""]))
def test_no_request_breaks_it(client, method, path, content, kind):
    for target in (f"/v1/voices/{path}".replace("?", ""), "/v1/voices"):
        answer = client.request(method, target, content=content, headers={"content-type": kind} if kind else {})
        assert answer.status_code < 500, (answer.status_code, answer.text)
    assert client.get("/health").status_code == 200
