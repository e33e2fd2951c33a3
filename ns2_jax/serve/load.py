"""Load on a server that runs: throughput and latency against the number of clients, and how many were spoken together.

    python -m ns2_jax.serve.load --url=http://localhost:8080 --clients=1,2,4,8,16,32 --requests=64 [--text="..."]

Every client asks again as soon as it has its answer; texts differ by a number, so that nothing could be kept from before. The first request
of all is not counted. Clients and server share the machine when the address is a loopback's: then read the numbers so. `batch` is the mean of
the requests that were spoken together, by the server's /metrics (requests of others at the same time count too); its --rows is the most.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from absl import flags

from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
TEXT = "The old man walked slowly down to the river every morning."


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


def _ask(url: str, body: Mapping[str, Any]) -> tuple[int, float, float]:
    """(status, seconds, seconds of speech)."""
    begin = time.monotonic()
    status, data = _call(url, "/v1/speech", body)
    return status, time.monotonic() - begin, json.loads(data)["seconds"] if status == 200 else 0.0


def _spoken(url: str) -> np.ndarray:
    """(requests, batches) that the server has spoken so far; NaN where it does not say."""
    _, data = _call(url, "/metrics")
    said = dict(line.rsplit(" ", 1) for line in data.decode("utf-8", "replace").splitlines() if line.startswith("ns2_jax_batch_rows"))
    return np.array([float(said.get(f"ns2_jax_batch_rows_{what}", "nan")) for what in ("sum", "count")])


def _quantile(seconds: Sequence[float], part: float) -> float:
    return float(np.quantile(seconds, part)) if seconds else float("nan")


def measure(url: str, clients: Sequence[int], requests: int, body: Mapping[str, Any]) -> list[dict[str, float]]:
    """A row for each number of clients, who ask `requests` times together. Raises ValueError where the first request of all is refused."""
    try:
        status, _, _ = _ask(url, body)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"--url={url}: {error}") from error
    if status != 200:
        raise ValueError(f"{url} answered {status} to {dict(body)}")
    rows, number = [], 0
    for many in clients:
        asked = [{**body, "text": f"{body['text']} {number + k}.", "seed": number + k} for k in range(requests)]
        before = _spoken(url)
        number, begin = number + requests, time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(many) as pool:
            answers = list(pool.map(lambda one: _ask(url, one), asked))
        wall = time.monotonic() - begin
        rows_spoken, batches = _spoken(url) - before
        taken = [seconds for status, seconds, _ in answers if status == 200]
        rows.append({"clients": many, "answers": len(taken), "refused": requests - len(taken), "requests_per_second": len(taken) / wall,
                     "speech_per_second": sum(speech for _, _, speech in answers) / wall,
                     "batch": float(rows_spoken / batches) if batches else float("nan"),
                     "p50": _quantile(taken, 0.5), "p99": _quantile(taken, 0.99)})  # fmt: skip
    return rows


def table(rows: Sequence[Mapping[str, float]]) -> str:
    """For people."""
    lines = ["clients  answers  refused  batch  requests/s  speech s/s   p50 s   p99 s"]
    cells = "{clients:7d}  {answers:7d}  {refused:7d}  {batch:5.1f}  {requests_per_second:10.2f}  {speech_per_second:10.2f}  {p50:6.2f}  {p99:6.2f}"
    return "\n".join([*lines, *(cells.format(**row) for row in rows)])


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("url", "http://localhost:8080", "The server.")
    flags.DEFINE_list("clients", ["1", "2", "4", "8", "16", "32"], "Numbers of clients at once.")
    flags.DEFINE_integer("requests", 64, "Requests for each of them, together.", lower_bound=1)
    flags.DEFINE_string("text", TEXT, "What to say; a number is added.")
    flags.DEFINE_string("voice", "default", "In whose voice.")


def main(argv: list[str]) -> None:
    del argv
    if wrong := [text for text in FLAGS.clients if not text.isdecimal() or not 0 < int(text) <= 1000]:
        raise ValueError(f"--clients={wrong[0]}: expected numbers from 1 to 1000")
    print(table(measure(FLAGS.url, [int(text) for text in FLAGS.clients], FLAGS.requests, {"text": FLAGS.text, "voice": FLAGS.voice})))


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
