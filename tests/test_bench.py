"""The bench measures something, names the hardware, and makes batches that a system accepts."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs import naturalspeech2 as ns2_config
from ns2_jax import bench
from ns2_jax.systems import system as systems

ROOT = pathlib.Path(__file__).parent.parent
TINY = ["--config=configs/codec.py:smoke,levels=2,codes=8,coarse=0", "--config.model.mel_scales=((256,20),)", "--config.model.judge_sizes=(256,)",
        "--config.model.judge_filters=8", "--config.model.codec.width=16", "--config.data.buckets=[{'b':4,'t':16}]", "--steps=2", "--repeats=3"]


def call(*words):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-m", "ns2_jax.bench", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def test_train():
    done = call("train", *TINY, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"] == "cpu" and report["bench"] == "train" and report["data"] == "synthetic"
    assert report["jax"] == jax.__version__ and report["cores"] >= 1 and report["load"] >= 0 and report["revision"]
    assert 0 < report["min_step_seconds"] <= report["median_step_seconds"] <= report["max_step_seconds"]
    assert report["frames_per_second"] == pytest.approx(4 * 16 / report["median_step_seconds"])
    assert report["flops_per_step"] > 1e5 and "mfu" not in report  # a CPU's peak is not in the table
    assert report["audio_seconds_per_second"] == report["audio_seconds_per_second_per_chip"] == pytest.approx(report["frames_per_second"] / 80)
    assert report["peak_memory_bytes"] > 1e8 and min(report["ceiling"].values()) > 1e9 and 0 < report["share_of_ceiling"] < 1


def test_the_ceiling_is_what_the_device_reaches(monkeypatch):
    """By a clock that says how long a run took, the figures are closed forms."""
    now = iter(range(1000))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(now))
    assert bench.ceiling("float32", repeats=2, size=64) == {"products": 2.0 * 64**3, "convolutions": 2.0 * 8 * 32 * 3 * 16 * 16}


def test_train_on_a_data_set_counts_what_it_was_given(monkeypatch):
    """Buckets differ: frames and FLOPs are means over the batches that ran, not those of the largest bucket."""
    from configs import codec as codec_config

    config = codec_config.get_config("smoke,levels=2,codes=8,coarse=0")
    config.model.update(mel_scales=((256, 20),), judge_sizes=(256,), judge_filters=8)
    config.mesh.fsdp = 1
    config.data.update(path="somewhere", buckets=(dict(b=4, t=16), dict(b=2, t=32)))
    made = [bench.synthetic(systems.make("codec", config.model.to_dict()).fields, {"b": b, "s": 200 * t, "t": t}) for b, t in ((4, 16), (2, 32))]
    made[1]["weight"][1] = 0.0  # a row that only fills the batch
    monkeypatch.setattr(bench, "source", lambda config, system: itertools.cycle(made))
    monkeypatch.setattr(bench, "FLAGS", types.SimpleNamespace(json=True, at_step=0))
    report = bench.bench_train(config, steps=2, repeats=2)
    assert report["frames_per_second"] == pytest.approx((4 * 16 + 1 * 32) / 2 / report["mean_step_seconds"])
    program = bench.make(config)
    assert report["flops_per_step"] == pytest.approx((program.flops(made[0]) + program.flops(made[1])) / 2)


def test_data_counts_the_frames_of_every_bucket(monkeypatch):
    from configs import codec as codec_config

    config = codec_config.get_config("smoke")
    config.data.update(path="somewhere", buckets=(dict(b=4, t=16), dict(b=2, t=64)))
    made = [{"audio": np.zeros((b, 200 * t), np.float32), "weight": np.ones(b, np.float32)} for b, t in ((4, 16), (2, 64))]
    monkeypatch.setattr(bench, "source", lambda config, system: itertools.cycle(made))
    monkeypatch.setattr(bench, "FLAGS", types.SimpleNamespace(json=True))
    report = bench.bench_data(config, steps=2, repeats=3)
    assert report["audio_seconds_per_second"] == pytest.approx((4 * 16 + 2 * 64) / 2 * 0.0125 / report["median_step_seconds"])


def test_data_without_a_config_measures_plan_and_feed(monkeypatch, capsys):
    """Small numbers of everything; the figures themselves depend on the machine, their relations do not."""
    monkeypatch.setattr(bench, "FLAGS", types.SimpleNamespace(json=True, config=None))
    monkeypatch.setattr(bench.measure, "UTTERANCES", 50_000)
    monkeypatch.setattr(bench.measure, "RECORDED", 600)
    assert bench.main(["bench", "data"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bench"] == "data" and report["plan_utterances"] == 50_000 and report["cores"] >= 1
    assert 0.03 < report["padding"] < 0.06 and report["plan_lookup_us"] < 1000 * report["plan_build_s"] * 1000
    assert report["records_per_s_per_core"] == pytest.approx(3 * report["utterances_per_s_per_core"])
    rivals = max(report["array_record_reads_per_s"], report["array_record_batches_reads_per_s"])
    assert report["ratio_to_array_record"] == pytest.approx(report["tfrecord_reads_per_s"] / rivals)
    assert report["http_records_per_s"] > 1000 / report["http_delay_ms"]  # more than one at a time


def test_sample():
    done = call("sample", *TINY)
    assert done.returncode == 0, done.stderr
    for name in ("encode", "decode", "decode_latents"):
        assert f"  {name}: median_step_seconds" in done.stdout


def test_sample_by_steps():
    done = call("sample", "--config=configs/naturalspeech2.py:smoke", "--by_steps=2,4", "--rows=1,3", "--repeats=2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["programs"]) == ["rows 1, steps 2", "rows 1, steps 4", "rows 3, steps 2", "rows 3, steps 4"]
    for name, found in report["programs"].items():
        assert found["compile_s"] > 0 and found["rtf"] == pytest.approx(found["median_step_seconds"] / (int(name.split()[1][:-1]) * 64 * 0.0125))


def test_a_language_model_with_and_without_its_cache():
    buckets = "--config.data.buckets=[{'b':8,'t':16,'p':8,'u':8}]"
    done = call("sample", "--config=configs/valle.py:smoke", buckets, "--rows=2", "--repeats=2", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["programs"]) == ["rows 2", "rows 2, cache False"]
    for found in report["programs"].values():
        assert found["codes_per_second"] == pytest.approx(2 * 16 * 3 / found["median_step_seconds"])
    slots = 2 * 8 + 1 + 8 + 16
    assert report["programs"]["rows 2"]["cache_bytes"] == 2 * 2 * 2 * slots * 32 * 4 and report["cache_bytes"] == 4 * 2 * 2 * 2 * slots * 32 * 4


@pytest.mark.slow  # nearly a minute of a core
def test_passes_beside_one_code_at_a_time():
    buckets = "--config.data.buckets=[{'b':8,'t':16,'p':8,'u':8}]"
    done = call("sample", "--config=configs/soundstorm.py:smoke", buckets, "--rows=2", "--flattened", "--repeats=2", "--json")
    assert done.returncode == 0, done.stderr
    filled, written = (found := json.loads(done.stdout)["programs"])["rows 2"], found["rows 2, flattened"]
    assert filled["passes_per_second"] == pytest.approx((16 + 3 - 1) / filled["median_step_seconds"])
    assert written["codes_per_second"] == pytest.approx(2 * 16 * 3 / written["median_step_seconds"])
    assert written["gain"] == pytest.approx(written["median_step_seconds"] / filled["median_step_seconds"])


def test_one_code_at_a_time_costs_as_many_parameters():
    """The paper's decoder and the causal stack beside it, layer by layer."""
    from configs import soundstorm as soundstorm_config

    config = soundstorm_config.get_config("base")
    system = systems.make(config.system, config.model.to_dict())
    other, counts = bench.one_by_one(system, 12), []
    for one, name in ((system, "decoder"), (other, "layers")):
        params = jax.eval_shape(one.init, jax.random.key(0), systems.shapes(one.fields, {**one.sizes, "b": 1, "t": 4, "p": 2}))[0][name]
        counts.append(sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "blocks" in jax.tree_util.keystr(path)))
    assert counts[0] > 300e6 and counts[1] == pytest.approx(counts[0], rel=0.01)


@pytest.mark.parametrize("words, line", [
    (["sample", *TINY, "--rows=2"], "error: --rows: system 'codec' has no sampler"),
    (["sample", *TINY, "--by_steps=2"], "error: --by_steps: system 'codec' has no sampler with steps"),
    (["sample", "--config=configs/naturalspeech2.py:smoke", "--by_steps=two"], "error: --by_steps=two: expected whole numbers"),
    (["sample", *TINY, "--flattened", "--rows=1"], "error: --flattened goes with --rows and a system that fills in codes"),
    ([], "error: say what to time: one of ['data', 'sample', 'train'], not (nothing)"),
    (["trian"], "error: say what to time"),
    (["train"], "error: --config is missing"),
    (["data", "--config=configs/codec.py:smoke"], "error: bench data needs a data set"),
])
def test_wrong_commands(words, line):
    done = call(*words)
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr


def test_one_of_several_processes_is_refused(monkeypatch):
    """Each would make the whole batch and report it as all that was done."""
    from configs import codec as codec_config

    monkeypatch.setattr(bench.cluster, "start", lambda report: None)
    monkeypatch.setattr(bench.jax, "process_count", lambda: 2)
    monkeypatch.setattr(bench, "BENCHES", {"train": lambda *given: {}})
    monkeypatch.setattr(bench, "FLAGS", types.SimpleNamespace(json=True, config=codec_config.get_config("smoke"), steps=1, repeats=1))
    with pytest.raises(ValueError, match="bench times one process, and this is one of 2: .* run it on one host") as refused:
        bench.main(["bench", "train"])
    assert bench.cluster.is_user_error(refused.value)  # one line, code 2
    monkeypatch.setattr(bench.jax, "process_count", lambda: 1)
    assert bench.main(["bench", "train"]) == 0


def test_synthetic_batches_are_plausible():
    config = ns2_config.get_config("smoke")
    system = systems.make(config.system, config.model.to_dict())
    sizes = {**system.sizes, **dict(config.data.buckets[0])}
    batch = bench.synthetic(system.fields, sizes, system.codes)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (f.shape(sizes), np.dtype(f.dtype)) for n, f in system.fields.items()}
    assert batch["codes"].max() < system.codes and batch["phones"].min() >= 3
    assert (batch["durations"].sum(1) <= sizes["t"]).all() and (batch["durations"] >= 1).all()
    assert (batch["prompt_frames"] == sizes["u"]).all() and (batch["weight"] == 1).all()
