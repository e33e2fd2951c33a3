"""Metrics: one JSON object per line always, TensorBoard and Weights & Biases when they are installed.

The file is the record: plots, reports and the doctor read `metrics.jsonl`. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

FILE = "metrics.jsonl"

# Dense bfloat16 peak of one device, FLOP/s, by a part of its `device_kind` (makers' data sheets).
PEAKS = {
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "TPU7x": 1153.5e12,  # a TPU7x chip is two devices
    "A100": 312e12, "H100": 989e12, "H200": 989e12,
}


def peak(device_kind: str) -> float | None:
    """The device's peak FLOP/s, or None when it is not in the table."""
    found = [name for name in PEAKS if name.lower() in device_kind.lower()]
    return PEAKS[max(found, key=len)] if found else None


def read(workdir: str) -> list[dict[str, Any]]:
    """Every line of a run's metrics. What is no line of metrics is dropped: one that was cut by a kill, a disk's rubbish."""
    path = os.path.join(workdir, FILE)
    if not os.path.exists(path):
        return []
    lines = []
    with open(path, encoding="utf8", errors="replace") as f:
        for line in f:
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


class Writer:
    """Appends metrics to `<workdir>/metrics.jsonl` and to what else is installed.

    A run that resumes at `start_step` first drops the lines after it: they are written again, once.
    """

    def __init__(self, workdir: str, start_step: int = 0, project: str = "", config: Mapping[str, Any] | None = None):
        self.path = os.path.join(workdir, FILE)
        os.makedirs(workdir, exist_ok=True)
        kept = [line for line in read(workdir) if line.get("step", 0) <= start_step]
        with open(self.path + ".part", "w", encoding="utf8") as f:
            f.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(self.path + ".part", self.path)
        self._file = open(self.path, "a", encoding="utf8")
        self._board = _tensorboard(os.path.join(workdir, "tensorboard"), start_step)
        self._wandb = None
        if project:
            folder = os.path.abspath(workdir)
            name = f"{os.path.basename(folder)}-{hashlib.sha256(folder.encode()).hexdigest()[:8]}"  # two runs/a on two disks are two runs
            with contextlib.suppress(ImportError):
                self._wandb = importlib.import_module("wandb").init(
                    project=project, dir=workdir, id=name, name=name, resume="allow", config=dict(config or {}))

    @property
    def sinks(self) -> list[str]:
        return [FILE] + ["tensorboard"] * (self._board is not None) + ["wandb"] * (self._wandb is not None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: `step`, `time` (unix seconds) and the values; what is not finite becomes null."""
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step), "time": round(time.time(), 3)}
        line |= {name: _short(value) if math.isfinite(value) else None for name, value in numbers.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error  # which says where
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, int(step))
        if self._wandb is not None:
            self._wandb.log(numbers, step=int(step))

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _short(value: float) -> float:
    """Seven significant digits: float32 has no more."""
    return float(f"{value:.7g}")


@contextlib.contextmanager
def board(folder: str, step: int) -> Iterator[Any]:
    """A TensorBoard writer for values of `step`, which replace what is there from it on; without tensorboardX it writes nothing."""
    writer = _tensorboard(folder, step)
    try:
        yield writer or types.SimpleNamespace(add_scalar=lambda *_: None)
    finally:
        if writer is not None:
            writer.close()


def _tensorboard(folder: str, start_step: int) -> Any:
    """A tensorboardX writer, or None when it is not installed."""
    try:
        board = importlib.import_module("tensorboardX")
    except ImportError:
        return None
    return board.SummaryWriter(folder, purge_step=start_step or None, write_to_disk=True)


def mean(window: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over steps of every metric; a metric that some steps lack is averaged over those that have it."""
    names = dict.fromkeys(name for metrics in window for name in metrics)
    found = {name: [float(m[name]) for m in window if name in m] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """The progress line: step, losses and norms, speed, time left."""
    shown = [name for name in ("loss", "grad_norm", "learning_rate") if name in values]
    shown += [name for name in values if name not in shown and "/" not in name and name not in
              ("weight", "param_norm", "step_seconds", "data_seconds", "frames_per_second", "mfu")]
    text = "  ".join(f"{name} {values[name]:.4g}" for name in shown[:9])
    left = (steps - step) * values.get("step_seconds", 0.0)
    tail = f"{values.get('step_seconds', 0.0):.3g} s/step  {duration(left)} left"
    return f"step {step}/{steps}  {text}  {tail}"


def duration(seconds: float) -> str:
    """`73` -> `1m13s`."""
    seconds = int(round(seconds))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def lost(workdir: str, start_step: int) -> float:
    """Seconds of steps that a run did after its checkpoint at `start_step`, and must do again; from its metrics."""
    seconds, before = 0.0, start_step
    for line in read(workdir):
        if line["step"] > start_step:
            seconds += (line["step"] - before) * (line.get("step_seconds") or 0.0)
            before = line["step"]
    return seconds


class Clock:
    """Where the time goes: `with clock("data"): ...` adds up seconds per name. What no name claims is the steps'.

    `begun` is told the name of every phase that begins.
    """

    KINDS = ("init", "compile", "restore", "data", "step", "eval", "save", "lost")

    def __init__(self, begun: Callable[[str], None] = lambda name: None) -> None:
        self.begin, self.begun = time.perf_counter(), begun
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        self.begun(name)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
            self.begun("step")

    def total(self) -> float:
        return time.perf_counter() - self.begin

    def report(self) -> dict[str, float]:
        """Seconds of every kind. `lost` is the time of an earlier start, for steps that this one does again; `eval` is 0: evaluation is a
        job of its own."""
        kinds = dict.fromkeys(self.KINDS, 0.0) | self.seconds
        kinds["step"] = max(self.total() - sum(s for name, s in self.seconds.items() if name != "lost"), 0.0)
        return kinds

    def goodput(self) -> float:
        """The share of all the time, lost time too, in which the devices trained."""
        kinds = self.report()
        return max(kinds["step"] - kinds["lost"], 0.0) / max(self.total(), 1e-9)

    def summary(self) -> str:
        """`93s in all: step 60 %, compile 31 % ...`."""
        total, kinds = max(self.total(), 1e-9), self.report()
        parts = [f"{name} {100 * s / total:.0f} %" for name, s in sorted(kinds.items(), key=lambda kv: -kv[1]) if s > 0]
        return f"{duration(total)} in all: {', '.join(parts)}; goodput {100 * self.goodput():.0f} %"


class Profile:
    """A profiler's window: `FIRST:COUNT` records COUNT steps from FIRST on into `<workdir>/profile` (TensorBoard and xprof read it).

    Raises ValueError for anything else.
    """

    def __init__(self, window: str, workdir: str):
        self.folder, self.first, self.last, self._on = os.path.join(workdir, "profile"), 0, 0, False
        if window:
            first, _, count = window.partition(":")
            if not (first.isdecimal() and count.isdecimal() and int(count)):
                raise ValueError(f"--profile={window}: expected FIRST:COUNT, a step and how many, as in 100:5")
            self.first, self.last = int(first), int(first) + int(count)

    def at(self, step: int) -> str:
        """Before step number `step`; a line to say when the window opens or closes."""
        if not self._on and self.first <= step < self.last:
            jax.profiler.start_trace(self.folder)
            self._on = True
            return f"profiling steps {step} to {self.last - 1}"
        return self.close() if self._on and step >= self.last else ""

    def close(self) -> str:
        if not self._on:
            return ""
        jax.profiler.stop_trace()
        self._on, self.last = False, 0
        return f"profile in {self.folder}"
