"""Load on a server that runs: throughput and latency against the number of clients, and how many were spoken together.

    python -m ns2_jax.serve.load --url=http://localhost:8080 --clients=1,2,4,8,16,32 --requests=64 --hang_up=2 [--out=serve.json]

It waits until the server is warm. Every client asks again as soon as it has its answer; texts differ by a number, so that nothing could be kept
from before. The first request of all is not counted. Clients and server share the machine when the address is a loopback's: then read the
numbers so. `batch` is the mean of the requests that were spoken together, by the server's /metrics (requests of others at the same time count
too); its --rows is the most. More clients than its --client, hanging ones included, are refused: start it with --client=100.

`lost` are requests without an answer, `mixed` answers that are another's: each must have the seed and the words that were asked for. Then
some are asked for once more, one after the other, and `apart` says how far the loudest sample of any was from what it was in the crowd (in units
of 16 bits; rounding may make it a few). With --hang_up=N a last row is measured while N others ask and hang up, before, during and after.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from absl import flags

from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
TEXT = "The old man walked slowly down to the river every morning."
AGAIN = 8  # requests of the last row that are asked for once more


def _call(url: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
    """(status, what was answered)."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=600)
    try:
        said = {} if body is None else {"body": json.dumps(body), "headers": {"content-type": "application/json"}}
        connection.request("GET" if body is None else "POST", f"{parts.path.rstrip('/')}{path}", **said)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@dataclasses.dataclass(frozen=True)
class Answer:
    """`status` (0 where nothing came), `seconds` that it took, and what it said."""

    status: int
    seconds: float
    said: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def samples(self) -> np.ndarray:
        """16-bit samples, behind the head of the WAV."""
        data = base64.b64decode(self.said["audio"])
        return np.frombuffer(data[data.index(b"data") + 8 :], "<i2").astype(np.int64)

    def of(self, body: Mapping[str, Any], words: Sequence[str]) -> bool:
        """Whether it answers this request."""
        return self.said["provenance"]["seed"] == body["seed"] and [word["text"] for word in self.said["words"]] == list(words)


def _ask(url: str, body: Mapping[str, Any]) -> Answer:
    begin = time.monotonic()
    try:
        status, data = _call(url, "/v1/speech", body)
    except (OSError, http.client.HTTPException):
        return Answer(0, time.monotonic() - begin)
    return Answer(status, time.monotonic() - begin, json.loads(data) if status == 200 else {})


def _words(url: str, body: Mapping[str, Any]) -> list[str]:
    """What would be spoken."""
    _, data = _call(url, "/v1/say", body)
    return [word["word"] for word in json.loads(data) if word["word"] and word["phones"] != ["sil"]]


@contextlib.contextmanager
def _hanging_up(url: str, many: int, body: Mapping[str, Any]) -> Iterator[list[int]]:
    """While it lasts, so many ask and hang up: in the middle of asking, at once, or when the first of the answer is there. Yields a list that
    grows by one for each."""
    parts, stop, left = urlsplit(url), threading.Event(), []
    if many and parts.scheme != "http":
        raise ValueError(f"--url={url}: --hang_up needs an address that begins with http://")
    said = json.dumps(body).encode()
    head = (f"POST {parts.path.rstrip('/')}/v1/speech/stream HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(said)}\r\n\r\n").encode()

    def leave() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port or 80), 60) as plug:
                plug.sendall(head + (said[:20] if len(left) % 3 == 0 else said))
                if len(left) % 3 == 2:
                    plug.recv(100)
                left.append(1)
            stop.wait(0.02)

    threads = [threading.Thread(target=leave, daemon=True) for _ in range(many)]
    for thread in threads:
        thread.start()
    try:
        yield left
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)


def _spoken(url: str) -> np.ndarray:
    """(requests, batches) that the server has spoken so far; NaN where it does not say."""
    _, data = _call(url, "/metrics")
    said = dict(line.rsplit(" ", 1) for line in data.decode("utf-8", "replace").splitlines() if line.startswith("ns2_jax_batch_rows"))
    return np.array([float(said.get(f"ns2_jax_batch_rows_{what}", "nan")) for what in ("sum", "count")])


def _quantile(seconds: Sequence[float], part: float) -> float:
    return float(np.quantile(seconds, part)) if seconds else float("nan")


def measure(url: str, clients: Sequence[int], requests: int, body: Mapping[str, Any], hang_up: int = 0) -> list[dict[str, float]]:
    """A row for each number of clients, who ask `requests` times together; with `hang_up`, the last number once more while so many hang up.

    It begins when the server is warm. `apart` is of the last row. Raises ValueError where the first request of all has no answer or is refused.
    """
    try:
        while _call(url, "/health")[0] == 503:  # warming up
            time.sleep(0.5)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"--url={url}: {error}") from error
    if (first := _ask(url, body)).status != 200:
        raise ValueError(f"{url} answered {first.status or 'nothing'} to {dict(body)}")
    rows, number = [], 0
    for many, leaving in [*((many, 0) for many in clients), *[(clients[-1], hang_up)] * bool(hang_up)]:
        asked = [{**body, "text": f"{body['text']} {number + k}.", "seed": number + k} for k in range(requests)]
        words, before = [_words(url, one) for one in asked], _spoken(url)
        number = number + requests
        with _hanging_up(url, leaving, body) as left:
            begin = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(many) as pool:
                answers = list(pool.map(lambda one: _ask(url, one), asked))
            wall = time.monotonic() - begin
        rows_spoken, batches = _spoken(url) - before
        taken = [k for k, answer in enumerate(answers) if answer.status == 200]
        seconds = [answers[k].seconds for k in taken]
        rows.append({"clients": many, "answers": len(taken), "refused": sum(answer.status not in (0, 200) for answer in answers),
                     "lost": sum(not answer.status for answer in answers), "mixed": sum(not answers[k].of(asked[k], words[k]) for k in taken),
                     "hung_up": len(left), "batch": float(rows_spoken / batches) if batches else float("nan"),
                     "requests_per_second": len(taken) / wall, "speech_per_second": sum(answers[k].said["seconds"] for k in taken) / wall,
                     "p50": _quantile(seconds, 0.5), "p99": _quantile(seconds, 0.99)})  # fmt: skip
    rows[-1]["apart"] = max((_apart(answers[k], _ask(url, asked[k])) for k in taken[:AGAIN]), default=float("nan"))
    return rows


def _apart(one: Answer, other: Answer) -> float:
    """The largest difference of two answers in units of 16 bits; infinite where one is missing or they differ in length."""
    if other.status != 200 or len(one.samples) != len(other.samples):
        return float("inf")
    return float(np.abs(one.samples - other.samples).max(initial=0))


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """For people."""
    lines = ["clients  answers  refused  lost  mixed  hung up  batch  requests/s  speech s/s   p50 s   p99 s"]
    cells = ("{clients:7d}  {answers:7d}  {refused:7d}  {lost:4d}  {mixed:5d}  {hung_up:7d}  {batch:5.1f}  {requests_per_second:10.2f}  "
             "{speech_per_second:10.2f}  {p50:6.2f}  {p99:6.2f}")
    again = f"asked for again, alone: the loudest difference is {rows[-1]['apart']:g} of 32768"
    return "\n".join([*lines, *(cells.format(**row) for row in rows), again])


def about(url: str) -> dict[str, Any]:
    """Whose numbers these are: the server's words about itself, and this machine, on which it runs where the address is a loopback's."""
    known = {key: value for key, value in json.loads(_call(url, "/health")[1]).items() if key in ("model", "system", "rate", "steps")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return known | {"machine": platform.machine(), "cores": cores, "load_average": busy}


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("url", "http://localhost:8080", "The server.")
    flags.DEFINE_list("clients", ["1", "2", "4", "8", "16", "32"], "Numbers of clients at once.")
    flags.DEFINE_integer("requests", 64, "Requests for each of them, together.", lower_bound=1)
    flags.DEFINE_string("text", TEXT, "What to say; a number is added.")
    flags.DEFINE_string("voice", "default", "In whose voice.")
    flags.DEFINE_integer("hang_up", 0, "How many others ask and hang up in a last row.", lower_bound=0, upper_bound=100)
    flags.DEFINE_string("out", None, "A JSON file for the numbers and what machine they are of.")


def main(argv: list[str]) -> None:
    del argv
    if wrong := [text for text in FLAGS.clients if not text.isdecimal() or not 0 < int(text) <= 1000]:
        raise ValueError(f"--clients={wrong[0]}: expected numbers from 1 to 1000")
    if FLAGS.out and not Path(FLAGS.out).absolute().parent.is_dir():
        raise FileNotFoundError(f"--out={FLAGS.out}: the folder {Path(FLAGS.out).parent} does not exist")
    body = {"text": FLAGS.text, "voice": FLAGS.voice, "seed": 0}
    rows = measure(FLAGS.url, [int(text) for text in FLAGS.clients], FLAGS.requests, body, FLAGS.hang_up)
    print(table(rows))
    if FLAGS.out:
        said = {"about": about(FLAGS.url), "text": FLAGS.text, "requests": FLAGS.requests, "rows": rows}
        Path(FLAGS.out).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    if any(row["lost"] or row["mixed"] for row in rows):
        raise RuntimeError("requests were lost or mixed up")


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
