"""One thread that speaks for all who ask: requests wait in a queue of limited length and are spoken together where they can be.

Those that wait together and have the same options are one batch, up to `rows`. When fewer wait than that, a batch is held open for `window`
seconds. Who is gone before its turn is left out, and who waited longer than `timeout` seconds is told so.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from ns2_jax import inference
from ns2_jax.serve.metrics import Metrics


STOP = 5.0  # seconds that a batch may take when nobody waits for it any more; a warm-up has as many as it needs


class Busy(Exception):
    """The queue is full, or the server is going down: try again in `seconds`."""

    def __init__(self, message: str, seconds: int = 1):
        super().__init__(message)
        self.seconds = seconds


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is to be spoken, in whose voice. `options` are those of `Model.speak`; asks with equal ones go together."""

    score: inference.Score
    voice: inference.Heard
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return tuple(sorted(self.options.items()))


@dataclasses.dataclass
class _Job:
    ask: Ask
    born: float
    future: concurrent.futures.Future[inference.Speech]


class Worker:
    """The queue and its thread. `start` begins with a warm-up (where `warm`); `ready` says that it is over."""

    def __init__(self, model: inference.Model, rows: int = 8, waiting: int = 64, window: float = 0.01, timeout: float = 60.0,
                 metrics: Metrics | None = None, steps: int | None = None, warm: bool = True):
        self.model, self.rows, self.waiting, self.window, self.timeout = model, rows, waiting, window, timeout
        self.metrics = metrics or Metrics()
        self.ready = threading.Event()
        self._steps, self._warm = steps, warm
        self._jobs: collections.deque[_Job] = collections.deque()
        self._wake, self._stopped = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the batch it is at, or, when that takes long, with the process; who still waits gets Busy."""
        with self._wake:
            self._stopped = True
            left, self._jobs = list(self._jobs), collections.deque()
            self._wake.notify_all()
        for job in left:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Busy("the server is going down"))
        if self._thread.is_alive():
            self._thread.join(STOP if self.ready.is_set() else self.timeout)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._jobs)

    def submit(self, ask: Ask) -> concurrent.futures.Future[inference.Speech]:
        """Joins the queue. The future's exceptions: ValueError for what can't be spoken, Busy. Raises Busy when the queue is full."""
        with self._wake:
            if self._stopped:
                raise Busy("the server is going down")
            self._jobs = collections.deque(job for job in self._jobs if not job.future.cancelled())
            if len(self._jobs) >= self.waiting:
                self.metrics.refused.labels("queue").inc()
                raise Busy(f"{len(self._jobs)} requests are waiting, which is the most; try again later", 1 + len(self._jobs) // self.rows)
            job = _Job(ask, time.monotonic(), concurrent.futures.Future())
            self._jobs.append(job)
            self.metrics.waiting.set(len(self._jobs))
            self._wake.notify_all()
        return job.future

    def _take(self) -> list[_Job]:
        """The next batch, in the order of the queue; [] when the worker is stopped."""
        with self._wake:
            while not self._jobs and not self._stopped:
                self._wake.wait()
            until = time.monotonic() + self.window
            while len(self._jobs) < self.rows and not self._stopped and (left := until - time.monotonic()) > 0:
                self._wake.wait(left)
            taken: list[_Job] = []
            kept: collections.deque[_Job] = collections.deque()
            key = None
            for job in self._jobs:
                if job.future.cancelled():
                    continue
                key = job.ask.key if key is None else key
                (taken if len(taken) < self.rows and job.ask.key == key else kept).append(job)
            self._jobs = kept
            self.metrics.waiting.set(len(kept))
        now, begun = time.monotonic(), []
        for job in taken:
            if not job.future.set_running_or_notify_cancel():
                continue
            if now - job.born > self.timeout:
                self.metrics.refused.labels("timeout").inc()
                job.future.set_exception(Busy(f"waited {now - job.born:.0f} s, at most {self.timeout:g} s are allowed", 5))
                continue
            self.metrics.wait.observe(now - job.born)
            begun.append(job)
        return begun

    def _run(self) -> None:
        if self._warm:
            try:
                sizes = sorted({min(1 << k, self.rows) for k in range(self.rows.bit_length() + 1)})  # what a batch is padded to
                options = {} if self._steps is None else {"steps": self._steps}
                for size in sizes:
                    if self._stopped:  # nobody wants to wait for all of it
                        break
                    for bucket, rows, seconds in self.model.warm_up((size,), **options):
                        logging.info("bucket %d, %d row(s): compiled and spoken in %.1f s", bucket, rows, seconds)
            except Exception:  # pylint: disable=broad-except
                logging.exception("the warm-up failed; the first requests will show why")
        self.ready.set()
        while not self._stopped:
            if batch := self._take():
                self._speak(batch)

    def _speak(self, batch: list[_Job]) -> None:
        asks, begin, failures = [job.ask for job in batch], time.monotonic(), {}
        try:
            made = self.model.speak_batch([(ask.score, ask.voice) for ask in asks], [ask.seed for ask in asks], failures=failures,
                                          **asks[0].options)
        except Exception as error:  # pylint: disable=broad-except
            if not isinstance(error, ValueError):
                logging.exception("a batch of %d failed", len(batch))
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            for job in batch if len(batch) > 1 else ():  # one's fault, or too much at once: not the others' fault
                self._speak([job])
            return
        self.metrics.batch.observe(len(batch))
        self.metrics.speaking.observe(time.monotonic() - begin)
        for i, (job, speech) in enumerate(zip(batch, made, strict=True)):
            if speech is None:
                job.future.set_exception(ValueError(failures[i]))
            else:
                self.metrics.speech.inc(speech.seconds)
                job.future.set_result(speech)
