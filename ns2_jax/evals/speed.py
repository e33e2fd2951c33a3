"""How fast does a model speak? Cold start, loading, compiling, first audio and real-time factor, each apart.

Timed in fresh processes with the compile cache off, because a process that has spoken is warm. Cold is all from the start of a process
to its first audio: starting Python and importing, loading the weights, and the first utterance, in which the programs are compiled.
`cached` is the same with a persistent compile cache, as all commands have it, that one process before has filled.
Warm is a call whose programs are compiled; it takes text and prompt and gives samples on the host, so nothing is still being computed
when the clock stops. First audio is the whole utterance, but that of `stream`, which is the first sentence of a text of three; `whole` is the
same text at once. Cold is a cold process, not a cold disk: weights that were read lately come from memory.

Another job on the machine makes every number worthless: the fingerprint has the load average at the start, read it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from ns2_jax import inference
from ns2_jax.evals import statistics

SENTENCES = {
    "short": "Good morning.",
    "long": "The old man walked slowly down to the river every morning, sat on a stone in the sun, "
            "and watched the boats until it was time for tea."}
SEVERAL = "The river was quiet this morning. Nobody walked along it, and the boats lay upside down on the grass. At noon the children came."
COMPILING = "/jax/core/compile/"  # how JAX's events of tracing, lowering and compiling begin
ERRORS = {"value": ValueError, "file": FileNotFoundError, "import": ImportError}  # of the user, handed on to who asked
LEAST = 1.0  # seconds of compiling that are worth keeping, as `runtime.cluster` has it
SETTINGS = ("jax_platforms", "jax_default_matmul_precision")  # a fresh process gets those of the one that asks
CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from ns2_jax.evals import speed; speed.child(sys.argv[2])"


class Stopwatch:
    """Seconds of work, and how many of them JAX spent on tracing, lowering and compiling (nested spans once)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith(COMPILING):
            self.spans.append((self.clock() - seconds, self.clock()))

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def time(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        """(what `work` returns, its seconds, those of them that went into compiling)."""
        begin, before = self.clock(), len(self.spans)
        out = work()
        end = self.clock()
        compiling, reached = 0.0, begin
        for start, stop in sorted(self.spans[before:]):
            compiling += max(min(stop, end) - max(start, reached), 0.0)
            reached = max(reached, stop)
        return out, end - begin, compiling


def rows_of(load: Callable[[], Any], requests: Sequence[tuple[str, inference.Prompt]], options: Mapping[str, Any], started: float,
            repeats: int, warm: bool, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """What one process measures: a row of its cold start (`started` seconds passed before) and, if `warm`, a row per timed utterance.

    Raises ValueError where the first sentence can't be spoken.
    """
    watch = Stopwatch(clock)
    try:
        model, loading, _ = watch.time(load)
        voice = requests[0][1]
        speech, speaking, compiling = watch.time(lambda: model.speak(SENTENCES["short"], voice, **options))
        rows = [{"phase": "cold", "seconds": started + loading + speaking, "start": started, "load": loading, "first": speaking,
                 "compile": compiling, "audio": speech.seconds, "about": about(model, options)}]
        if not warm:
            return rows
        work = [(name, [(text, voice)]) for name, text in SENTENCES.items()] + [("item", [request]) for request in requests]
        work += [("batch", requests[at : at + inference.ROWS]) for at in range(0, len(requests), inference.ROWS)]
        for phase, part in tqdm.tqdm(work, "timing", mininterval=2):
            rows.append(timed(model, phase, part, options, repeats, watch))
        first = lambda: [next(iter(model.stream(SEVERAL, voice, **options)))]
        return [*rows, timed(model, "whole", [(SEVERAL, voice)], options, repeats, watch),
                timed(model, "stream", [(SEVERAL, voice)], options, repeats, watch, first)]
    finally:
        watch.close()


def timed(model: Any, phase: str, requests: Sequence[tuple[str, inference.Prompt]], options: Mapping[str, Any], repeats: int,
          watch: Stopwatch, speak: Callable[[], list[Any]] | None = None) -> dict[str, Any]:
    """Seconds of each of `repeats` calls (of `speak` where given), after one that compiles, and how many of them went into `compiling` all the
    same; `audio` is the seconds of speech that a call makes."""
    speak = speak or (lambda: model.speak_batch(requests, 0, failures={}, **options))
    row = {"phase": phase, "text": requests[0][0], "utterances": len(requests)}
    made = [speech for speech in speak() if speech is not None]
    if not made:
        return row | {"missing": True}
    spans = [watch.time(speak)[1:] for _ in range(repeats)]
    seconds, compiling = [wall for wall, _ in spans], sum(inside for _, inside in spans)
    audio = sum(speech.seconds for speech in made)
    return row | {"seconds": seconds, "compiling": compiling, "median": float(np.median(seconds)), "audio": audio,
                  "rtf": float(np.median(seconds)) / audio,
                  "utterances": len(made), "pieces": sum(len(speech.pieces) for speech in made)}


def about(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Hardware, precision and sampler, for the fingerprint."""
    devices = jax.devices()
    weights = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(model.params)})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": devices[0].device_kind, "devices": len(devices), "machine": platform.machine(), "cores": cores, "jax": jax.__version__,
        "weights": weights, "compute": str(model.config["model"].get("dtype", "float32")),
        "products": jax.config.jax_default_matmul_precision or "default", "sampler": {**model.programs["sample"].options, **options}}


def _load(path: str, step: int | None) -> inference.Model:
    model = inference.load(path, step)
    if model.continues:
        model.aligner = inference.load(inference.ALIGNER)
    return model


def child(folder: str) -> None:
    """A fresh process: reads what to time from FOLDER, leaves the rows there, or the sentence that says what was wrong."""
    entered = time.perf_counter()
    job = json.loads((Path(folder) / "job.json").read_text(encoding="utf8"))
    started = time.time() - job["begin"]
    for name, value in job["settings"].items():
        jax.config.update(name, value)
    jax.config.update("jax_enable_compilation_cache", bool(job["cache"]))
    if job["cache"]:
        jax.config.update("jax_compilation_cache_dir", job["cache"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)
    with np.load(Path(folder) / "prompts.npz") as prompts:
        voices = [(prompts[f"p{k}"], job["rate"]) for k in range(len(job["texts"]))]
        voices = [inference.Said(voice, *said) for voice, said in zip(voices, job["said"])] or voices
        requests = list(zip(job["texts"], voices))
    started += time.perf_counter() - entered
    try:
        rows = rows_of(lambda: _load(job["path"], job["step"]), requests, job["options"], started, job["repeats"], job["warm"])
        out = {"rows": rows}
    except tuple(ERRORS.values()) as error:
        out = {"error": next(name for name, kind in ERRORS.items() if isinstance(error, kind)), "message": str(error)}
    (Path(folder) / "rows.json").write_text(json.dumps(out), encoding="utf8")


def measure(path: str | os.PathLike, texts: Sequence[str], prompts: Sequence[np.ndarray], rate: int, step: int | None = None,
            repeats: int = 3, starts: int = 3, options: Mapping[str, Any] | None = None, progress: bool = True,
            said: Sequence[tuple[str, float]] = ()) -> list[dict[str, Any]]:
    """Rows of `starts` fresh processes that load the run or export at `path` and speak; the last goes on to the warm timings. Then as many once
    more that find what they need in a compile cache.

    Every text is spoken in the voice of its prompt `[s]` at `rate` Hz (`said`: what each says, and how many seconds of it are
    heard; 0 is all), `repeats` times alone and in batches. The processes take
    platform and precision from this one, whose own hold on an accelerator must have been given up or never taken.

    Raises ValueError, FileNotFoundError or ImportError for what a process could not use, RuntimeError for one that died.
    """
    if not texts or len(texts) != len(prompts) or repeats < 1 or starts < 1:
        raise ValueError(f"speed: {len(texts)} texts, {len(prompts)} prompts, {repeats} repeats, {starts} starts: expected as many "
                         "prompts as texts, and at least one of each")
    load_average = [round(x, 2) for x in os.getloadavg()]
    rows: list[dict[str, Any]] = []
    kept = tempfile.TemporaryDirectory()
    plan = [*((False, k) for k in range(starts)), *((True, k) for k in range(starts + 1))]  # of those with a cache, the first fills it
    for cached, k in tqdm.tqdm(plan, "fresh processes", mininterval=2, disable=not progress):
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "prompts.npz", **{f"p{i}": np.asarray(prompt, np.float32) for i, prompt in enumerate(prompts)})
            settings = {name: getattr(jax.config, name) for name in SETTINGS}
            job = {"path": os.path.abspath(path), "step": step, "texts": list(texts), "said": list(said), "rate": rate, "repeats": repeats,
                   "warm": not cached and k == starts - 1, "cache": kept.name if cached else "", "options": dict(options or {}),
                   "settings": settings, "begin": time.time()}
            (Path(folder) / "job.json").write_text(json.dumps(job), encoding="utf8")
            root = str(Path(__file__).resolve().parents[2])
            done = subprocess.run([sys.executable, "-c", CHILD, root, folder])
            left = Path(folder) / "rows.json"
            if done.returncode or not left.is_file():
                raise RuntimeError(f"the process that times {path} ended with code {done.returncode}; if it found no accelerator, "
                                   "another process, perhaps this one, holds it")
            out = json.loads(left.read_text(encoding="utf8"))
        if "error" in out:
            raise ERRORS[out["error"]](out["message"])
        out["rows"][0]["about"]["load_average"] = load_average
        if cached:
            rows += [out["rows"][0] | {"phase": "cached"}] * bool(k)
        else:
            rows += out["rows"]
    kept.cleanup()
    return rows


def summarise(condition: str, rows: Sequence[Mapping[str, Any]], seed: int = 0, where: str = "fresh processes, compile cache off",
              **fingerprint: Any) -> list[dict[str, Any]]:
    """Score lines `rtf_*`, `rtf_batch_*` and, in seconds, `first_audio_*`, `first_audio_short_*`, `first_audio_long_*`,
    `first_audio_stream_*`, `first_audio_whole_*`, `cold_start_*`, `load_*`, `compile_*`, `cached_start_*`, `cached_compile_*`, of
    those phases that there are rows of."""
    cold = [row for row in rows if row["phase"] == "cold"]
    there = lambda phase: [row for row in rows if row["phase"] == phase and not row.get("missing")]
    judge = f"ns2_jax {statistics.code(__name__)}, {where}"
    common = dict(seed=seed, evaluator=judge, streaming="none but in first_audio_stream: first audio is the whole utterance",
                  missing=sum(bool(row.get("missing")) for row in rows), compiling=sum(row.get("compiling", 0.0) for row in rows),
                  **(cold[0]["about"] if cold else {}), **fingerprint)
    lines = []

    def put(name: str, averaging: str, values: Sequence[float], over: Sequence[float] | None = None) -> None:
        if values:
            lines.append(statistics.score(f"{name}_{condition}", values, over, unit="" if over else "s", averaging=averaging, **common))

    for name, phase in (("rtf", "item"), ("rtf_batch", "batch")):
        found = there(phase)
        size = f" in batches of up to {inference.ROWS}" if phase == "batch" else ""
        put(name, f"seconds of work over seconds of audio{size}, warm; medians of repeats", [row["median"] for row in found],
            [row["audio"] for row in found])
    put("first_audio", "mean over utterances of the medians of repeats, warm", [row["median"] for row in there("item")])
    for name in SENTENCES:
        put(f"first_audio_{name}", "mean over repeats of one sentence, warm", [value for row in there(name) for value in row["seconds"]])
    several = "mean over repeats of a text of three sentences, warm: "
    for name, said in (("stream", "until the first sentence is there"), ("whole", "all of it at once")):
        put(f"first_audio_{name}", several + said, [value for row in there(name) for value in row["seconds"]])
    put("cold_start", "mean over fresh processes, from their start to their first audio", [row["seconds"] for row in cold])
    put("load", "mean over fresh processes", [row["load"] for row in cold])
    put("compile", "mean over fresh processes: tracing, lowering and compiling for the first utterance", [row["compile"] for row in cold])
    kept = "mean over fresh processes that find a compile cache filled"
    put("cached_start", f"{kept}, from their start to their first audio", [row["seconds"] for row in there("cached")])
    put("cached_compile", f"{kept}: tracing, lowering and what is compiled all the same", [row["compile"] for row in there("cached")])
    return lines
