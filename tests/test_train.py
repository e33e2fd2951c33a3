"""The trainer as people run it: real processes, killed, resumed, preempted, and stopped by what is not finite."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import shards
from ns2_jax.data.records import ShardWriter
from ns2_jax.runtime import checkpoints, metrics, state

ROOT = pathlib.Path(__file__).parent.parent


def make_data(root, seed: int = 0) -> str:
    """24 chirps of about a second, three speakers."""
    rng = np.random.default_rng(seed)
    with ShardWriter(root, "meta", "train", 0, 1) as meta, ShardWriter(root, "audio", "train", 0, 1) as audio:
        for i in range(24):
            samples = int(rng.integers(8000, 20000))
            t = np.arange(samples) / 16000
            wave = 8000 * np.sin(2 * np.pi * rng.uniform(80, 800) * t * (1 + t)) * np.hanning(samples)
            meta.write(dict(utt_id=f"u{i}", speaker=f"s{i % 3}", source="toy", voice="v", text="a", text_norm="a"), samples)
            audio.write(dict(audio=wave.astype(np.int16)), samples)
    return shards.write_manifest(root, name="toy")["fingerprint"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two data sets and a compile cache that all processes share."""
    folder = tmp_path_factory.mktemp("train")
    make_data(folder / "data")
    make_data(folder / "other", 1)
    return folder


def command(place, workdir, *words, data="data"):
    return [sys.executable, "-m", "ns2_jax.train", "--config=" + CONFIG, f"--config.data.path={place / data}", f"--workdir={workdir}",
            "--config.train.log_every=1", "--config.train.save_every=3", *words]


# The argument's commas are its own: numbers with commas are flags.
CONFIG = "configs/codec.py:smoke,levels=2,codes=8,coarse=0"
SMALL = ["--config.model.mel_scales=((256,20),)", "--config.model.judge_sizes=(256,)", "--config.model.judge_filters=8",
         "--config.model.codec.width=16", "--config.model.adversarial_from=4", "--config.data.buckets=[{'b':4,'t':16}]"]


def environment(place):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "NS2_JAX_CACHE": str(place / "cache"), "PYTHONUNBUFFERED": "1"}


def start(place, workdir, *words, data="data"):
    return subprocess.Popen(command(place, workdir, *SMALL, *words, data=data), cwd=ROOT, env=environment(place),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(place, workdir, *words, data="data"):
    process = start(place, workdir, *words, data=data)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def wait_for_step(workdir, step, process):
    """Until the run has logged `step`."""
    while process.poll() is None:
        lines = metrics.read(workdir)
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def whole_state(workdir):
    """Every array of the newest checkpoint, by path."""
    import orbax.checkpoint as ocp

    step = checkpoints.steps(workdir)[-1]
    found = {"step": step}
    with ocp.StandardCheckpointer() as reader:
        for item in ("model", "train"):
            found.update(state.flatten(reader.restore(workdir / checkpoints.FOLDER / str(step) / item)))
    return {path: np.asarray(leaf) for path, leaf in found.items()}


@pytest.fixture(scope="module")
def finished(place):
    """An uninterrupted run of 14 steps."""
    code, out, err = train(place, place / "straight", "--config.train.steps=14")
    assert code == 0, err
    return out


def test_what_a_run_says_and_leaves(place, finished):
    workdir = place / "straight"
    for said in (f"writing to {workdir}", "params/gen: ", "params/disc: ", "memory a device: arguments", "mesh {'data': 1, 'fsdp': 1", "step 14/14", "done: 14 steps"):
        assert said in finished
    run = json.loads((workdir / "run.json").read_text())
    assert run["dataset"] == json.loads((place / "data" / "manifest.json").read_text())["fingerprint"]
    assert run["codec"] == "" and run["seed"] == 0 and run["device"] == "cpu" and run["versions"]["jax"] and "--config=" + CONFIG in run["argv"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["system"] == "codec" and config["model"]["levels"] == 2 and config["train"]["steps"] == 14
    lines = metrics.read(workdir)
    assert [line["step"] for line in lines] == list(range(1, 15))
    assert {"loss", "mel", "grad_norm", "grad_norm/disc", "param_norm", "learning_rate", "learning_rate/disc", "step_seconds"} <= set(lines[0])
    assert all(0 <= line["data/wait_frac"] <= 1 for line in lines)
    assert lines[0]["learning_rate"] == pytest.approx(config["optim"]["peak"] / config["optim"]["warmup"], rel=1e-5)
    assert all(line["loss"] > 0 for line in lines)
    tree, read = checkpoints.read_model(workdir)
    assert read == config and set(tree["params"]) == {"gen", "disc"} and tree["rest"]["codebooks"].shape[:2] == (2, 8)
    assert checkpoints.steps(workdir) == [9, 12, 14]  # keep=3


def test_published_trainings_did_not_wait_for_their_data():
    """Under 1 % of the steps' time, over the whole run; every logged line stands for all the steps since the one before."""
    shares = {}
    for path in sorted((ROOT / "results").glob("*/curves.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if "data/wait_frac" in lines[0]:
            seconds = [(line["step"] - before) * line["step_seconds"] for before, line in zip([0, *(one["step"] for one in lines)], lines)]
            waited = [second * line["data/wait_frac"] for second, line in zip(seconds, lines)]
            shares[path.parent.name] = sum(waited) / sum(seconds)
    assert {"aligner", "codec"} <= set(shares) and all(share < 0.01 for share in shares.values()), shares


def test_killed_at_a_random_step_it_ends_bit_for_bit_the_same(place, finished):
    workdir, chosen = place / "killed", random.SystemRandom().randint(4, 12)
    process = start(place, workdir, "--config.train.steps=14")
    wait_for_step(workdir, chosen, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = checkpoints.steps(workdir)
    code, out, err = train(place, workdir, "--config.train.steps=14")
    assert code == 0, err
    assert f"resuming from step {saved[-1]}" in out if saved else "resuming" not in out
    expected, found = whole_state(place / "straight"), whole_state(workdir)
    assert set(expected) == set(found) and len(found) > 50
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=f"{path}, killed after step {chosen}")
    for a, b in zip(metrics.read(place / "straight"), metrics.read(workdir), strict=True):
        assert (a["step"], a["loss"], a["grad_norm"]) == (b["step"], b["loss"], b["grad_norm"])


def test_sigterm_saves_and_asks_to_be_started_again(place, finished):
    workdir = place / "preempted"
    process = start(place, workdir, "--config.train.steps=4000", "--config.train.save_every=100000")
    wait_for_step(workdir, 5, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    step = checkpoints.steps(workdir)[-1]
    assert 5 <= step < 4000 and f"preempted: saved at step {step}" in out
    code, out, err = train(place, workdir, f"--config.train.steps={step + 2}")
    assert code == 0 and f"resuming from step {step}" in out, err
    assert f"config.train.steps was 4000, is {step + 2}" in out


def test_a_single_process_cluster_saves_on_sigterm_too(place, finished):
    """A TPU host alone joins as a cluster of one: JAX's own notifier then agrees with nobody."""
    workdir = place / "alone"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    process = subprocess.Popen([*command(place, workdir, *SMALL), "--config.train.steps=4000", "--config.train.save_every=100000"], cwd=ROOT,
                               env={**environment(place), **alone}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(workdir, 5, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143 and "preempted: saved at step" in out, err[-2000:]


def test_what_is_not_finite_stops_the_run_and_is_named(place):
    workdir = place / "diverged"
    code, out, err = train(place, workdir, "--config.train.steps=30", "--config.optim.peak=1e30", "--config.optim.warmup=1", "--config.train.save_every=1")
    assert code == 1, err
    assert "error: not finite at step 1; the state is as before it. Offending paths:" in err
    assert "metrics/loss" in err and "grads/gen/" in err and "batch/" not in err
    assert checkpoints.steps(workdir) == [1]  # only the sound one


def test_a_collapsed_codebook_stops_the_run(place):
    """With the alarm raised to twice the codes, any codebook has collapsed: the run ends, says so, and leaves no checkpoint of it."""
    workdir = place / "collapsed"
    words = command(place, workdir, *SMALL, "--config.train.steps=9", "--config.train.save_every=5")[3:]
    program = ("import runpy, sys; import ns2_jax.systems.codec as codec; codec.COLLAPSED, codec.WATCHED_FROM = 2.0, 7; "
               f"sys.argv = ['train'] + {words!r}; runpy.run_module('ns2_jax.train', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment(place), timeout=600)
    assert done.returncode == 1, done.stderr
    assert "error: stopped at step 7, which is not saved: the codebook of level 1 has collapsed" in done.stderr
    assert "also levels [2]" in json.loads((workdir / "halted.json").read_text())["reason"]
    assert checkpoints.steps(workdir) == [5]


@pytest.mark.slow
def test_a_run_continues_on_four_devices(place, finished):
    workdir = place / "wider"
    code, _, err = train(place, workdir, "--config.train.steps=9")
    assert code == 0, err
    process = subprocess.run([*command(place, workdir, *SMALL), "--config.train.steps=14"], cwd=ROOT, capture_output=True, text=True,
                             env={**environment(place), "JAX_NUM_CPU_DEVICES": "4"}, timeout=600)
    assert process.returncode == 0 and "'fsdp': 4" in process.stdout and "resuming from step 9" in process.stdout, process.stderr
    ours, theirs = metrics.read(workdir), metrics.read(place / "straight")
    assert ours[9]["loss"] == pytest.approx(theirs[9]["loss"], rel=1e-4)
    assert ours[13]["loss"] == pytest.approx(theirs[13]["loss"], rel=2e-2)


@pytest.mark.slow
def test_two_hosts_are_preempted_together_and_one_goes_on(place, finished):
    """SIGTERM to one of two processes: both leave with 143 from one checkpoint, which a single process continues."""
    workdir = place / "hosts"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    words = [*command(place, workdir, *SMALL), "--config.train.steps=4000", "--config.train.save_every=100000"]
    several = {**environment(place), "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    hosts = []
    for i in range(2):
        with open(place / f"host{i}.log", "w") as log:
            hosts.append(subprocess.Popen(words, cwd=ROOT, env={**several, "JAX_PROCESS_ID": str(i)}, stdout=log, stderr=log))
    read = lambda i: (place / f"host{i}.log").read_text()
    try:
        while not (lines := metrics.read(workdir)) or lines[-1]["step"] < 5:
            assert all(host.poll() is None for host in hosts), read(0) + read(1)
            time.sleep(0.05)
        hosts[1].send_signal(signal.SIGTERM)
        assert [host.wait(300) for host in hosts] == [143, 143], read(0) + read(1)
    finally:
        for host in hosts:
            host.kill()
    step = checkpoints.steps(workdir)[-1]
    assert "process 1 of 2" in read(0) and f"preempted: saved at step {step}" in read(0) and "step 5/" not in read(1)
    for two, one in zip(metrics.read(workdir)[:5], metrics.read(place / "straight")):  # the same rows with the same noise
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    code, out, err = train(place, workdir, f"--config.train.steps={step + 2}")
    assert code == 0 and f"resuming from step {step}" in out, err


def test_nothing_left_to_do(place, finished):
    code, out, _ = train(place, place / "straight", "--config.train.steps=14")
    assert code == 0 and "nothing left to train" in out


def test_another_data_set_is_refused(place, finished):
    code, _, err = train(place, place / "straight", "--config.train.steps=20", data="other")
    assert code == 2 and err.startswith("error: ") and "was trained on data set" in err


def test_new_weights_continue_a_run_and_a_changed_past_is_refused(place):
    """Two data sets: weights from step 4 on may change while the run is at step 3, and may not when it has passed."""
    workdir, both = place / "mixture", f"{place / 'data'},{place / 'other'}"
    weights = lambda *later: f"--config.data.weights={((0, (3, 1)), *later)!r}"
    words = lambda steps, *later: [f"--config.data.path={both}", f"--config.train.steps={steps}", weights(*later)]
    code, _, err = train(place, workdir, *words(3))
    assert code == 0, err
    run = json.loads((workdir / "run.json").read_text())
    assert run["dataset"].split() == [json.loads((place / name / "manifest.json").read_text())["fingerprint"] for name in ("data", "other")]
    code, out, err = train(place, workdir, *words(6, (4, (1, 1))))
    assert code == 0 and "resuming from step 3" in out, err
    code, _, err = train(place, workdir, *words(9, (5, (1, 1))))
    assert code == 2 and err.startswith("error: ") and "was trained with config.data.weights=[[0, [3.0, 1.0]], [4, [1.0, 1.0]]]" in err
    code, _, err = train(place, workdir, f"--config.data.path={place / 'data'}", "--config.train.steps=9")
    assert code == 2 and "was trained on data set" in err


def test_a_dry_run_writes_nothing(place):
    before = sorted(place.iterdir())
    code, out, err = train(place, place / "never", "--dry_run")
    assert code == 0 and "memory a device" in out, err
    assert not (place / "never").exists() and {p.name for p in place.iterdir()} <= {p.name for p in before} | {"cache"}


@pytest.mark.parametrize("words, line", [
    ([], "error: --config is missing"),
    (["--config=" + CONFIG], "error: --workdir is missing"),
    (["--lost_after=-1"], "error: flag --lost_after=-1: -1.0 is not a non-negative number"),
    (["--stuck_after=-1"], "error: flag --stuck_after=-1: -1.0 is not a non-negative number"),
    (["--config=" + CONFIG, "--workdir=/tmp/x"], "error: config.data.path is empty"),
    (["--config=" + CONFIG, "--workdir=/tmp/x", "--config.data.path=/no/data"], "error: no data set at /no/data"),
    (["--config=" + CONFIG, "--dry_run", "--config.mesh.sequence=2", "--config.mesh.tensor=2"], "error: mesh has sequence=2 and tensor=2"),
    (["--config=" + CONFIG, "--dry_run", "--config.train.micro_batches=3"], "error: a bucket has b=8 rows"),
    (["--config=" + CONFIG, "--dry_run", "--config.train.micro_batches=0"], "error: config.train.micro_batches=0, expected 1 or more"),
    (["--config=" + CONFIG, "--dry_run", "--config.train.save_every=0"], "error: config.train.save_every=0, expected 1 or more"),
    (["--config=" + CONFIG, "--dry_run", "--config.data.sample_rate=24000"], "error: config.data.sample_rate=24000, but the model works at 16000"),
    (["--config=" + CONFIG, "--dry_run", "--config.data.buckets=[{'b':8}]"], "error: config.data.buckets: {'b': 8} has no"),
    (["--config=" + CONFIG, "--dry_run", "--config.optim.schedule=stairs"], "error: config.optim.schedule='stairs' does not exist"),
    (["--config=" + CONFIG, "--dry_run", "--config.train.frozen=('params/nope',)"], "error: config.train.frozen: 'params/nope' matches no path"),
])
def test_wrong_commands_are_one_line_and_exit_two(place, words, line):
    done = subprocess.run([sys.executable, "-m", "ns2_jax.train", *words], cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1, done.stderr


def test_help_teaches(place):
    done = subprocess.run([sys.executable, "-m", "ns2_jax.train", "--help"], cwd=ROOT, env=environment(place), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    for word in ("python -m ns2_jax.train --config=configs/codec.py:small", "--workdir", "--dry_run", "Exit codes"):
        assert word in done.stdout
