"""The command: where it listens, what it is made of, and what it refuses before it listens."""

from __future__ import annotations

import socket

import pytest
import tiny
import uvicorn
from commands import refused, run
from fastapi.testclient import TestClient

from ns2_jax import inference

NAME = "ns2_jax.serve"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("ns2"))


@pytest.fixture
def started(monkeypatch):
    """What would be served instead of serving it: (config, sockets)."""
    found = []
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # uvicorn's closes the handlers, and those pytest's stderr
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: found.append((self.config, sockets)))
    yield found
    for _, sockets in found:
        for one in sockets:
            one.close()


def test_it_listens_on_this_machine_alone_unless_told_otherwise(model, started, tmp_path, caplog):
    code, out, err = run(NAME, f"--model={model}", "--port=0", "--nowarm", f"--voices={tmp_path}", "--steps=2,3", "--text_limit=50")
    assert code == 0, err
    (config, (listener,)), = started
    assert listener.getsockname()[0] == "127.0.0.1" and config.limit_concurrency == 500
    assert f"http://127.0.0.1:{listener.getsockname()[1]} serves {model} (naturalspeech2, {inference.load(model).hash})" in out
    assert "everybody who reaches it" not in caplog.text
    client = TestClient(config.app, base_url="http://localhost")  # not entered: the worker stands still
    health = client.get("/health")
    assert health.status_code == 503 and health.json()["steps"] == [2, 3] and health.json()["longest_text"] == 50 and health.json()["needs_consent"]
    assert client.get("/health", headers={"host": "elsewhere.example"}).status_code == 421
    code, _, err = run(NAME, f"--model={model}", "--port=0", "--nowarm", "--host=0.0.0.0", "--hosts=speech.example", "--norequire_consent")
    assert code == 0 and started[1][1][0].getsockname()[0] == "0.0.0.0" and "everybody who reaches it may use it" in caplog.text, err
    code, _, err = run(NAME, f"--model={model}", "--port=0", "--nowarm", "--host=127.0.0.2")
    assert code == 0 and TestClient(started[2][0].app, base_url="http://127.0.0.2").get("/health").status_code == 503, err
    there = TestClient(started[1][0].app, base_url="http://speech.example").get("/health")
    assert there.status_code == 503 and there.json()["needs_consent"] is False and "the operator turned it off" in caplog.text


def test_one_that_goes_on_from_its_voice_is_served(started, tmp_path):
    code, out, err = run(NAME, f"--model={tiny.write_model('valle', tmp_path)}", "--port=0", "--nowarm")
    assert code == 0 and "(valle, " in out, err
    client = TestClient(started[0][0].app, base_url="http://localhost")
    about = client.get("/health").json()
    assert about["needs_text"] and about["controls"] == [] and about["steps"] == []
    assert client.post("/v1/say", json={"text": "Hello there."}).status_code == 200  # the default voice was cut to what the model hears


def test_a_chain_is_served(started, tmp_path):
    parts = {"soundstorm": "smoke,semantic", "semantic": "smoke,kmeans", "text_to_semantic": "smoke"}
    chain = ",".join(tiny.write_model(name, tmp_path / name, size=size) for name, size in parts.items())
    code, out, err = run(NAME, f"--model={chain}", "--port=0", "--nowarm", "--steps=4")
    assert code == 0 and "(text_to_semantic soundstorm, " in out, err
    about = TestClient(started[0][0].app, base_url="http://localhost").get("/health").json()
    assert not about["needs_text"] and about["controls"] == [] and about["steps"] == [4]
    assert "the last may be left out" in refused(NAME, f"--model={chain.rsplit(',', 2)[0]},{tmp_path}/text_to_semantic")
    assert "does not speak" in refused(NAME, f"--model={chain.rsplit(',', 1)[0]}")  # nobody writes the tokens


def test_what_cannot_be_served_is_refused(model, started, tmp_path):
    others = {name: tiny.write_model(name, tmp_path / name) for name in ("codec", "valle")}
    follows = f"--model={others['valle']}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for args, message in (
                ([], "--model=DIR is missing"), (["--model=nowhere"], "nowhere does not exist"), ([f"--model={others['codec']}"], "does not speak"),
                ([follows, "--steps=2"], "no sampler with steps"), ([follows, f"--aligner={others['codec']}"], "does not align"),
                ([follows, "--aligner=nowhere"], "nowhere does not exist"), ([f"--model={model}", "--steps=2,x"], "--steps=2,x"),
                ([f"--model={model}", "--steps=0"], "--steps=0"), ([f"--model={model}", f"--port={port}"], f"--port={port}"),
                ([f"--model={model}", f"--voices={tmp_path}/none", "--port=0"], "no such folder"), ([f"--model={model}", "--rows=0"], "rows")):
            assert message in refused(NAME, *args), args
    assert not started
