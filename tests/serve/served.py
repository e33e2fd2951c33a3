"""A server of the toy on loopback, in a thread of the test."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import tiny
import uvicorn

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.serve import app, guard, voices, work

CONSENT = "I, Ann Example, allow my voice to be imitated for tests."


def recording(seconds: float = 1.0, rate: int = 8000, pitch: float = 180.0) -> bytes:
    """A WAV file."""
    time_s = np.arange(int(seconds * rate)) / rate
    return files.encode((0.3 * np.sin(2 * np.pi * pitch * time_s)).astype(np.float32), rate, ".wav")


class Slow:
    """A model whose batches take a while and are remembered."""

    def __init__(self, model: inference.Model, seconds: float):
        self._model, self._seconds, self.batches = model, seconds, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def speak_batch(self, requests: Any, seeds: Any, **options: Any) -> Any:
        self.batches.append(len(requests))
        time.sleep(self._seconds)
        return self._model.speak_batch(requests, seeds, **options)


@contextlib.contextmanager
def running(model: Any = None, limits: app.Limits = app.Limits(), folder: Any = None, needs_consent: bool = True, **worker: Any) -> Iterator[Any]:
    """(address, worker) of a server that is up."""
    model = model or tiny.toy(rate=4000)
    speaker = work.Worker(model, **{"warm": False, **worker})
    server = uvicorn.Server(uvicorn.Config(app.create(speaker, voices.Voices(model, folder, needs_consent), limits), log_level="error", ws="none",
                                           http=guard.PatientProtocol, timeout_keep_alive=max(int(limits.patience), 1)))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for _ in range(600):
        if server.started and speaker.ready.is_set():
            break
        time.sleep(0.05)
    try:
        yield address, speaker
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def post(url: str, body: Any = None, timeout: float = 120) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers)."""
    data = None if body is None else json.dumps(body).encode()
    ask = urllib.request.Request(url, data, {"content-type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(ask, timeout=timeout) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)
