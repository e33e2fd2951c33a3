"""Under load: nothing is lost or mixed up, who leaves is forgotten, who is too much is told so."""

from __future__ import annotations

import base64
import concurrent.futures
import http.client
import io
import json
import socket
import threading
import time

import numpy as np
import pytest
import served
import soundfile
import tiny

from ns2_jax import inference
from ns2_jax.serve import app, load, voices, work

NAMES = ("ann", "bob", "carl")


def audio_of(body: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(base64.b64decode(json.loads(body)["audio"])))[0]


@pytest.fixture(scope="module")
def model():
    return tiny.toy(rate=4000)


def test_who_sends_too_much_is_told_so(model):
    """Over a real connection, which would be reset if it were closed while the body arrives; who asks first is not told to go on."""
    with served.running(model) as (address, _):
        status, body, _ = served.post(f"{address}/v1/speech", {"text": "x" * (16 << 20)})
        assert status == 413 and b"at most 262144" in body
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), 10) as plug:
            plug.sendall(b"POST /v1/speech HTTP/1.1\r\nhost: 127.0.0.1\r\nexpect: 100-continue\r\ncontent-length: 900000\r\n\r\n")
            assert plug.recv(100).startswith(b"HTTP/1.1 413 ")


def test_32_clients_get_their_own_while_others_hang_up(model, tmp_path):
    for k, name in enumerate(NAMES):
        (tmp_path / f"{name}.wav").write_bytes(served.recording(pitch=100 + 40 * k))
    slow = served.Slow(model, 0.02)
    with served.running(slow, app.Limits(client=200), tmp_path, rows=8, waiting=200) as (address, worker):
        port, stop, left = int(address.rsplit(":", 1)[1]), threading.Event(), []

        def hang_up():
            """Asks and leaves, at once or in the middle of a stream."""
            while not stop.is_set():
                body = json.dumps({"text": "One is here now. Two is here now. Three is here now.", "seed": 1})
                head = f"POST /v1/speech/stream HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                with socket.create_connection(("127.0.0.1", port)) as plug:
                    plug.sendall((head + body[: len(body) if len(left) % 3 else 20]).encode())
                    if len(left) % 2:
                        plug.recv(100)
                left.append(1)
                time.sleep(0.02)

        def client(k: int):
            out = []
            for n in range(3):
                asked = {"text": f"Client {k} asks for the {n}.", "voice": NAMES[k % 3], "seed": 100 * k + n}
                status, body, _ = served.post(f"{address}/v1/speech", asked)
                out.append((asked, status, body))
            return out

        killers = [threading.Thread(target=hang_up, daemon=True) for _ in range(2)]
        for killer in killers:
            killer.start()
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = [answer for part in pool.map(client, range(32)) for answer in part]
        stop.set()
        for killer in killers:
            killer.join(30)
        assert len(answers) == 96 and {status for _, status, _ in answers} == {200} and len(left) > 4
        assert max(slow.batches) == 8 and sum(slow.batches) > 96
        heard = {name: model.hear(tmp_path / f"{name}.wav") for name in NAMES}
        expected = model.batch([(asked["text"], heard[asked["voice"]]) for asked, _, _ in answers], [asked["seed"] for asked, _, _ in answers])
        for (_, _, body), speech in zip(answers, expected, strict=True):
            np.testing.assert_allclose(audio_of(body), speech.audio, atol=1 / 32768)
        for _ in range(100):  # who left is forgotten
            if not len(worker) and served.post(f"{address}/health")[0] == 200:
                break
            time.sleep(0.05)
        assert not len(worker)
        text = served.post(f"{address}/metrics")[1].decode()
        assert 'route="/v1/speech",status="200"} 96.0' in text and "ns2_jax_waiting 0.0" in text


def test_too_many_are_told_to_come_later(model):
    def ask(address):
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda k: served.post(f"{address}/v1/speech", {"text": "Hello there.", "seed": k}), range(10)))
        refused = [(status, json.loads(body)["error"]["code"]) for status, body, _ in answers if status != 200]
        assert all(int(headers["retry-after"]) >= 1 for status, _, headers in answers if status != 200)
        assert served.post(f"{address}/v1/speech", {"text": "Hello there."})[0] == 200  # and then it goes on
        return len(refused), set(refused)

    with served.running(served.Slow(model, 2.0), app.Limits(client=6), rows=8, waiting=100) as (address, _):
        refused, why = ask(address)
        assert 1 <= refused <= 4 and why == {(429, "rate_limit_exceeded")}
    with served.running(served.Slow(model, 1.0), app.Limits(client=100), rows=1, waiting=3) as (address, _):
        refused, why = ask(address)
        assert 1 <= refused <= 6 and why == {(503, "busy")}


def test_who_waits_too_long_is_told_and_slow_bodies_are_cut(model):
    slow = served.Slow(model, 1.5)
    with served.running(slow, app.Limits(answer=0.5, patience=0.5)) as (address, _):
        status, body, _ = served.post(f"{address}/v1/speech", {"text": "Hello there."})
        assert status == 504 and "within 0.5 s" in json.loads(body)["error"]["message"]
        connection = http.client.HTTPConnection(address.split("//")[1], timeout=10)
        connection.putrequest("POST", "/v1/speech")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 408 and b"longer than 0.5 s" in answer.read()


def test_who_says_nothing_or_half_a_head_is_let_go(model):
    """After a second, also on a connection that has been answered before; a request meanwhile is answered."""
    with served.running(model, app.Limits(patience=1)) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        silent, half, again = (socket.create_connection((host, int(port)), timeout=10) for _ in range(3))
        again.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert again.recv(9) == b"HTTP/1.1 "
        for one in (half, again):
            one.sendall(b"GET /health HTTP/1.1\r\nhost: local")
        assert served.post(f"{address}/health")[0] == 200
        for one in (silent, half, again):
            while one.recv(4096):
                pass
            one.close()


def test_a_worker_keeps_order_leaves_out_the_gone_and_survives_faults(model):
    voice = model.hear(voices.BUNDLED)
    ask = lambda text, **more: work.Ask(inference.of_words(inference.spoken(text)), voice, **more)
    slow = served.Slow(model, 0.0)
    worker = work.Worker(slow, rows=4, waiting=9, warm=False, window=0.0)
    futures = [worker.submit(ask("Hello there.", seed=k)) for k in range(6)] + [worker.submit(ask("Hello there.", options={"steps": 2}))]
    futures[1].cancel()
    broken = worker.submit(ask("Hello there.", options={"colour": 3}))
    worker.start()
    done = [future.result(60) for k, future in enumerate(futures) if k != 1]
    assert slow.batches == [4, 1, 1, 1]  # 0 2 3 4, then 5, then the other options, then the broken one
    np.testing.assert_array_equal(done[1].audio, model("Hello there.", voice, 2).audio)
    with pytest.raises(ValueError, match="colour"):
        broken.result(60)
    real = slow._model.speak_batch

    def poisoned(requests, seeds, **options):
        return real(requests, seeds, **options) if 66 not in seeds else 1 / 0

    slow._model = type("Poisoned", (), {"speak_batch": staticmethod(poisoned)})()
    with worker._wake:  # so that they are one batch
        together = [worker.submit(ask("Hello there.", seed=seed)) for seed in (65, 66, 67)]
    assert [together[k].result(60).seconds > 0 for k in (0, 2)] == [True, True]
    with pytest.raises(ZeroDivisionError):
        together[1].result(60)
    slow._model = model
    slow.speak_batch = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        worker.submit(ask("Hello there.")).result(60)
    del slow.speak_batch
    assert worker.submit(ask("Hello there.")).result(60).seconds > 0
    worker.stop()
    with pytest.raises(work.Busy, match="going down"):
        worker.submit(ask("Hello there."))


def test_a_server_may_be_stopped_in_its_warm_up():
    begun, go_on, sizes = threading.Event(), threading.Event(), []

    class Model:
        def warm_up(self, rows):
            sizes.append(rows)
            begun.set()
            go_on.wait(30)
            return []

    worker = work.Worker(Model(), rows=8)
    worker.start()
    assert begun.wait(30)
    threading.Timer(0.2, go_on.set).start()
    worker.stop()
    assert sizes == [(1,)] and not worker._thread.is_alive()


def test_the_load_tester_counts(model):
    with served.running(model, app.Limits(client=99), warm=True, rows=2) as (address, worker):
        worker.ready.clear()
        threading.Timer(1.0, worker.ready.set).start()
        rows = load.measure(address, [1, 4], 4, {"text": "Hello there."}, hang_up=2)
        assert worker.ready.is_set()  # it waited for that
        assert load.about(address)["model"] == model.hash and load.about(address)["cores"] > 0
    assert [row["clients"] for row in rows] == [1, 4, 4] and all(row["answers"] == 4 and row["refused"] == row["lost"] == 0 for row in rows)
    assert [row["mixed"] for row in rows] == [0] * 3 and [row["hung_up"] > 0 for row in rows] == [False, False, True] and rows[2]["apart"] <= 1
    assert all(0 < row["p50"] <= row["p99"] and row["speech_per_second"] > 0 for row in rows)
    assert rows[0]["batch"] == 1 and 1 <= rows[1]["batch"] <= 2
    head, *said = load.table(rows).splitlines()
    assert head.split() == ["clients", "answers", "refused", "lost", "mixed", "hung", "up", "batch", "requests/s", "speech", "s/s", "p50", "s",
                            "p99", "s"] and len(said) == 4  # fmt: skip


def test_the_load_tester_notices_what_is_mixed_up_or_lost(model, monkeypatch):
    class Mixing(served.Slow):
        def speak_batch(self, requests, seeds, **options):
            return super().speak_batch(requests, seeds, **options)[::-1]

    with served.running(Mixing(model, 0.1), rows=2, window=0.5) as (address, _):
        (row,) = load.measure(address, [2], 4, {"text": "Hello there."})
        assert row["mixed"] == 4 and row["apart"] > 1 and row["lost"] == 0
        real, asked = load._call, []

        def cut(url, path, body=None):
            asked.append(path)
            if asked.count("/v1/speech") == 3 and path == "/v1/speech":
                raise ConnectionResetError
            return real(url, path, body)

        monkeypatch.setattr(load, "_call", cut)
        (row,) = load.measure(address, [1], 4, {"text": "Hello there."})
        assert row["lost"] == 1 and row["answers"] == 3 and row["refused"] == row["mixed"] == 0
        with pytest.raises(ValueError, match="answered 404"):
            load.measure(address, [1], 1, {"text": "Hello there.", "voice": "nobody"})
    with pytest.raises(ValueError, match="--url="):
        load.measure(address, [1], 1, {"text": "Hello there."})
