"""Timings by a made-up clock, whose every second is accounted for, and of a tiny real model, of which only the structure is certain."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import tiny

from ns2_jax.audio import files
from ns2_jax.evals import speed


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def compile(self, seconds: float, event: str = "backend_compile_duration") -> None:
        self.now += seconds
        jax.monitoring.record_event_duration_secs(f"/jax/core/compile/{event}", seconds)


@dataclasses.dataclass
class Fake:
    """Speaks a second of audio per word at 0.25 s of work each, after compiling 5 s when a batch size is new."""

    clock: Clock
    calls: list = dataclasses.field(default_factory=list)
    params = {"w": np.zeros(2, np.float32)}
    config = {"model": {}}
    programs = {"sample": types.SimpleNamespace(options={"steps": 16, "temperature": 1.0})}

    def speak_batch(self, requests, seeds=0, failures=None, **options):
        if len(requests) not in {size for size, _ in self.calls}:
            self.clock.compile(5.0)
        self.calls.append((len(requests), options))
        words = [0 if text == "silence" else len(text.split()) for text, _ in requests]
        self.clock.now += 0.25 * sum(words)
        return [types.SimpleNamespace(seconds=float(n), pieces=(text,)) if n else None for n, (text, _) in zip(words, requests)]

    def stream(self, text, prompt, **options):
        for sentence in text.split(". "):
            yield self.speak(sentence, prompt, **options)

    def speak(self, text, prompt, **options):
        return self.speak_batch([(text, prompt)], **options)[0]


def test_every_second_of_a_made_up_clock_is_where_it_belongs():
    clock = Clock()
    model = Fake(clock)

    def load():
        clock.compile(1.0)  # what is compiled while loading belongs to loading
        clock.now += 2.0
        return model

    requests = [("one two three", None), ("four", None), ("silence", None)]
    cold, short, long, one, four, silent, batch, whole, stream = speed.rows_of(load, requests, {"steps": 4}, 7.0, 3, True, clock)
    assert cold["start"] == 7 and cold["load"] == 3 and cold["compile"] == 5 and cold["first"] == 5.5 and cold["seconds"] == 15.5
    assert cold["about"]["sampler"] == {"steps": 4, "temperature": 1.0} and cold["about"]["weights"] == ["float32"]
    assert cold["about"]["device"] == jax.devices()[0].device_kind and cold["about"]["devices"] == len(jax.devices())
    assert short["phase"] == "short" and short["seconds"] == [0.5] * 3 and long["phase"] == "long" and long["audio"] > 20
    assert one["seconds"] == [0.75] * 3 and one["audio"] == 3 and one["rtf"] == four["rtf"] == 0.25 and silent["missing"]
    assert batch["utterances"] == 2 and batch["seconds"] == [1.0] * 3 and batch["audio"] == 4  # compiled before it is timed
    assert whole["seconds"] == [0.25 * len(speed.SEVERAL.split())] * 3 and stream["seconds"] == [1.5] * 3  # six words come first
    assert all(options == {"steps": 4} for _, options in model.calls)
    (only,) = speed.rows_of(load, requests, {}, 7.0, 3, False, clock)
    assert only["phase"] == "cold"


def test_nested_compilations_count_once_and_other_events_not():
    clock = Clock()
    watch = speed.Stopwatch(clock)

    def work():
        clock.compile(2.0, "jaxpr_trace_duration")
        clock.now += 1.0
        jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 3.0)  # it held the one before
        jax.monitoring.record_event_duration_secs("/jax/compilation_cache/cache_retrieval_time_sec", 3.0)
        clock.now += 4.0

    assert watch.time(work)[1:] == (7.0, 3.0) and watch.time(lambda: clock.compile(1.5))[1:] == (1.5, 1.5)
    watch.close()
    clock.compile(1.0)
    assert watch.time(lambda: None)[1:] == (0.0, 0.0)


def test_lines_say_what_was_timed_how():
    clock = Clock()
    rows = []
    for k in range(2):
        requests = [("one two three", None), ("four five", None), ("silence", None)]
        rows += speed.rows_of(lambda: Fake(clock), requests, {}, 3.0 + k, 2, k == 1, clock)
    rows += [{**rows[0], "phase": "cached", "seconds": 2.0, "compile": 0.5}]
    line = {line["name"]: line for line in speed.summarise("x", rows, model="m")}
    assert set(line) == {f"{name}_x" for name in ("rtf", "rtf_batch", "first_audio", "first_audio_short", "first_audio_long", "cold_start",
                                                   "load", "compile", "first_audio_stream", "first_audio_whole", "cached_start", "cached_compile")}
    value = {name: one["value"] for name, one in line.items()}
    assert value["rtf_x"] == value["rtf_batch_x"] == pytest.approx(0.25) and line["rtf_x"]["unit"] == "" and line["rtf_x"]["n"] == 2
    assert value["first_audio_x"] == pytest.approx((0.75 + 0.5) / 2) and line["first_audio_x"]["unit"] == "s"
    assert value["first_audio_short_x"] == 0.5 and value["first_audio_long_x"] == 0.25 * len(speed.SENTENCES["long"].split())
    assert value["cold_start_x"] == pytest.approx(3.5 + 5.5) and line["cold_start_x"]["n"] == 2 and value["compile_x"] == 5
    assert value["cached_start_x"] == 2 and value["cached_compile_x"] == 0.5 and value["first_audio_stream_x"] == 1.5
    assert line["cold_start_x"]["interval"] == pytest.approx([8.5, 9.5])
    about = line["rtf_x"]["fingerprint"]
    assert about["missing"] == 1 and about["sampler"]["steps"] == 16 and about["model"] == "m" and about["device"] and about["cores"]


def test_a_tiny_model_in_a_process_of_its_own(tmp_path, monkeypatch):
    path = tiny.write_model("naturalspeech2", tmp_path / "model")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    audio = files.read(tiny.SPEECH, 16000)
    rows = speed.measure(path, ["Good day."], [audio], 16000, repeats=2, starts=1, options={"steps": 2}, progress=False)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
    cold, *warm, cached = rows
    assert [row["phase"] for row in rows] == ["cold", "short", "long", "item", "batch", "whole", "stream", "cached"]
    assert 0 < cached["compile"] < cold["compile"] and cached["seconds"] > 0
    assert cold["seconds"] == pytest.approx(cold["start"] + cold["load"] + cold["first"])
    assert cold["start"] > 0 and cold["load"] > 0 and 0 < cold["compile"] < cold["first"]
    assert cold["about"]["sampler"]["steps"] == 2 and len(cold["about"]["load_average"]) == 3
    for row in warm:
        assert len(row["seconds"]) == 2 and row["rtf"] * row["audio"] == pytest.approx(np.median(row["seconds"])) and row["median"] > 0
    batch, whole, stream = warm[3:]
    assert batch["utterances"] == 1 and batch["audio"] == warm[2]["audio"] < warm[1]["audio"] and stream["audio"] < whole["audio"]
    lines = speed.summarise("synthesis", json.loads(json.dumps(rows)))
    assert len(lines) == 12 and all(np.isfinite(line["value"]) and line["value"] >= 0 for line in lines)


def test_what_a_process_could_not_use_is_said_here(tmp_path):
    audio = files.read(tiny.SPEECH, 16000)
    with pytest.raises(FileNotFoundError, match="nothing"):
        speed.measure(tmp_path / "nothing", ["Good day."], [audio], 16000, starts=1, progress=False)
    with pytest.raises(ValueError, match="silent"):
        speed.measure(tiny.write_model("naturalspeech2", tmp_path), ["Good day."], [0 * audio], 16000, starts=1, progress=False)
    with pytest.raises(ValueError, match="1 texts, 0 prompts"):
        speed.measure(tmp_path, ["Good day."], [], 16000)
