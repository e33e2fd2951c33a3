"""The record of a run: lines, what resuming does to them, optional sinks, and the clock."""

from __future__ import annotations

import errno
import json
import sys
import types

import pytest

from ns2_jax.runtime import metrics


def test_lines_and_resume(tmp_path):
    writer = metrics.Writer(str(tmp_path))
    for step in (10, 20, 30):
        writer.write(step, {"loss": step / 3, "bad": float("nan")})
    writer.close()
    with open(tmp_path / metrics.FILE, "a") as f:
        f.write('123\n{"loss": 1.0}\n{"step": 40, "lo')  # no metrics; killed in the middle of a line
    with open(tmp_path / metrics.FILE, "ab") as f:
        f.write(b"\xff\x00")
    assert [line["step"] for line in metrics.read(tmp_path)] == [10, 20, 30]
    writer = metrics.Writer(str(tmp_path), start_step=20)  # the checkpoint was older than the log
    writer.write(30, {"loss": 1.0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / metrics.FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[0]["loss"] == pytest.approx(10 / 3, rel=1e-6) and lines[0]["bad"] is None and lines[-1]["loss"] == 1.0


def test_tensorboard_files_when_installed(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = metrics.Writer(str(tmp_path))
    assert writer.sinks == [metrics.FILE, "tensorboard"]
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_without_optional_sinks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    writer = metrics.Writer(str(tmp_path), project="speech")
    assert writer.sinks == [metrics.FILE]
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert metrics.read(tmp_path)[0]["loss"] == 1.0


def test_wandb_when_installed_and_asked_for(tmp_path, monkeypatch):
    said = []
    run = types.SimpleNamespace(log=lambda values, step: said.append((step, values)), finish=lambda: said.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: said.append(options["project"]) or run))
    writer = metrics.Writer(str(tmp_path), project="speech")
    writer.write(5, {"loss": 2.0})
    writer.close()
    assert said == ["speech", (5, {"loss": 2.0}), "finished"]


def test_runs_of_one_name_in_two_places_are_two_runs(tmp_path, monkeypatch):
    said = []
    run = types.SimpleNamespace(finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: said.append(options["id"]) or run))
    for place in ("here/a", "there/a", "here/a"):
        metrics.Writer(str(tmp_path / place), project="speech").close()
    assert said[0] == said[2] != said[1] and all(name.startswith("a-") for name in said)


def test_mean_and_line_and_duration():
    assert metrics.mean([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2.0, "b": 2.0}
    text = metrics.line(10, 100, {"loss": 1.5, "mel": 0.25, "weight": 8.0, "step_seconds": 2.0})
    assert text == "step 10/100  loss 1.5  mel 0.25  2 s/step  3m00s left"
    assert [metrics.duration(s) for s in (5, 65, 7265)] == ["5s", "1m05s", "2h01m"]


def test_peaks():
    assert metrics.peak("TPU v5 lite") == 197e12
    assert metrics.peak("TPU v5p") == 459e12 == metrics.peak("TPU v5")
    assert metrics.peak("NVIDIA H200") == 989e12
    assert metrics.peak("TPU7x") == 2307e12 / 2  # a chip is two devices
    assert metrics.peak("cpu") is None


def test_clock_adds_up(monkeypatch):
    now, begun = [0.0], []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    clock = metrics.Clock(begun.append)
    for _ in range(2):
        with clock("data"):
            now[0] += 3.0
        now[0] += 1.0
    assert begun == ["data", "step"] * 2
    assert clock.seconds == {"data": 6.0} and clock.total() == 8.0
    assert clock.report() == dict(init=0, compile=0, restore=0, data=6.0, step=2.0, eval=0, save=0, lost=0) and clock.goodput() == 0.25
    assert clock.summary() == "8s in all: data 75 %, step 25 %; goodput 25 %"
    clock.seconds["lost"] = 1.0  # of these two seconds one only makes again what was lost
    assert clock.report()["step"] == 2.0 and clock.goodput() == 0.125


def test_what_was_lost_is_what_the_log_has_beyond_the_checkpoint(tmp_path):
    writer = metrics.Writer(str(tmp_path))
    for step, seconds in ((10, 0.5), (20, 0.5), (30, 2.0)):
        writer.write(step, {"step_seconds": seconds})
    writer.close()
    assert metrics.lost(str(tmp_path), 20) == 20.0 and metrics.lost(str(tmp_path), 30) == 0.0
    assert metrics.lost(str(tmp_path), 15) == 5 * 0.5 + 10 * 2.0


def test_a_full_disk_is_named_by_its_file(tmp_path, monkeypatch):
    writer = metrics.Writer(str(tmp_path))
    monkeypatch.setattr(writer, "_file", open("/dev/full", "w"))
    with pytest.raises(OSError, match="No space left on device") as wrong:
        writer.write(1, {"loss": 1.0})
    assert wrong.value.filename == str(tmp_path / metrics.FILE) and wrong.value.errno == errno.ENOSPC


def test_profiler_windows(monkeypatch):
    said = []
    monkeypatch.setattr(metrics.jax.profiler, "start_trace", lambda folder: said.append("start"))
    monkeypatch.setattr(metrics.jax.profiler, "stop_trace", lambda: said.append("stop"))
    window = metrics.Profile("3:2", "run")
    lines = [window.at(step) for step in range(8)]
    assert lines[3] == "profiling steps 3 to 4" and lines[5] == "profile in run/profile" and sum(map(bool, lines)) == 2 and said == ["start", "stop"]
    assert not metrics.Profile("", "run").at(0) and metrics.Profile("3:2", "run").at(4)  # a run that resumes inside the window
    for wrong in ("3", "3:0", "a:b", "-1:4"):
        with pytest.raises(ValueError, match=f"--profile={wrong}: expected FIRST:COUNT"):
            metrics.Profile(wrong, "run")
