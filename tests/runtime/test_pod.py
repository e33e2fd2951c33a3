"""Many processes and many misfortunes, with the trainer's own story (`run_toy`): the same numbers on one, two and four processes and on from
four to two to one; hosts that are told to stop, killed, fed a NaN or a lost shard; disks and folders that refuse. Nothing saved is ever lost.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from toy_train import Trainers  # noqa: E402

from ns2_jax import export  # noqa: E402
from ns2_jax.runtime import checkpoints, metrics, state, weights  # noqa: E402
from tests import tiny  # noqa: E402


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    with Trainers(tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(scope="module")
def straight(trainers, tmp_path_factory):
    """An uninterrupted run of one process, 14 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    run = trainers.start(workdir)
    assert trainers.wait([run]) == [0], run[1].read_text()
    return workdir, run[1].read_text()


@pytest.fixture(scope="module")
def two(trainers, tmp_path_factory):
    """The same of two processes."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    hosts = trainers.cluster(2, workdir)
    assert trainers.wait(hosts) == [0, 0], texts(hosts)
    return workdir


def texts(processes) -> str:
    return "\n".join(log.read_text()[-3000:] for _, log in processes)


def until(workdir, step, trainers, processes, seconds=300.0):
    """Until the run has logged `step`."""
    end = time.monotonic() + seconds
    while not (lines := metrics.read(workdir)) or lines[-1]["step"] < step:
        assert [trainers.poll(p) for p in processes] == [None] * len(processes), texts(processes)
        assert time.monotonic() < end
        time.sleep(0.02)


def whole_state(workdir) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    step = checkpoints.steps(workdir)[-1]
    found = {"step": np.asarray(step)}
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("model", "train"):
            like = state.nest(checkpoints.shapes(str(workdir), step, item))
            numpy = ocp.args.PyTreeRestore(restore_args=tree_of_numpy(like))
            found.update(state.flatten(reader.restore(workdir / checkpoints.FOLDER / str(step) / item, args=numpy)))
    return {path: np.asarray(leaf) for path, leaf in found.items()}


def tree_of_numpy(like):
    import jax
    import orbax.checkpoint as ocp

    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)


def same(a, b, tolerance: float = 0.0):
    """Bit for bit; or per array within `tolerance` of its largest value."""
    ours, theirs = whole_state(a), whole_state(b)
    assert set(ours) == set(theirs) and len(ours) > 10
    for path, x in ours.items():
        y = theirs[path]
        if tolerance:
            assert np.abs(x.astype(float) - y).max() <= tolerance * (np.abs(y).max() + 1e-6), path
        else:
            np.testing.assert_array_equal(x, y, err_msg=path)


def losses(workdir):
    return [line["loss"] for line in metrics.read(workdir)]


# What a run says and counts ------------------------------------------------------------------------------------------


def test_the_first_lines_and_the_clock(straight):
    workdir, said = straight
    assert "1 processes, 1 x cpu, mesh {'data': 1, 'fsdp': 1" in said and "of 1.26e+07 FLOPs a step" in said
    assert "params/gen: 131,328" in said and "memory a device: arguments" in said and "goodput" in said
    run = json.loads((workdir / "run.json").read_text())
    assert set(run["seconds"]) == set(metrics.Clock.KINDS) and run["seconds"]["lost"] == run["seconds"]["eval"] == 0
    assert all(run["seconds"][name] > 0 for name in ("init", "compile", "restore", "data", "step", "save"))
    assert run["goodput"] == pytest.approx(run["seconds"]["step"] / sum(run["seconds"].values()), abs=0.01)
    assert all(0 < line["time/goodput"] < 1 for line in metrics.read(workdir))
    for line in metrics.read(workdir):  # FLOPs of the step over what the device could have done meanwhile, 1e12 a second (run_toy says)
        assert line["mfu"] == pytest.approx(3 * 2 * 16 * 512 * 256 / line["step_seconds"] / 1e12, rel=1e-5)


def test_two_processes_are_one(straight, two):
    assert losses(two) == pytest.approx(losses(straight[0]), rel=1e-5)
    same(two, straight[0], 5e-3)  # Adam divides tiny gradients by themselves
    assert json.loads((two / "run.json").read_text())["hosts"] == 2


def test_four_then_two_on_another_mesh_then_one(trainers, straight, tmp_path):
    workdir = tmp_path / "shrinking"
    legs = [(4, 1, ["--config.train.steps=5"], "'fsdp': 4"),
            (2, 2, ["--config.train.steps=10", "--config.mesh.tensor=2"], "'fsdp': 2, 'sequence': 1, 'tensor': 2"), (1, 1, [], "'fsdp': 1")]
    for count, devices, words, mesh in legs:
        hosts = trainers.cluster(count, workdir, *words, devices=devices) if count > 1 else [trainers.start(workdir, *words)]
        assert trainers.wait(hosts) == [0] * count, texts(hosts)
        said = hosts[0][1].read_text()
        assert mesh in said and (count == 4 or "resuming from step" in said)
    assert losses(workdir) == pytest.approx(losses(straight[0]), rel=1e-4)
    same(workdir, straight[0], 5e-3)
    assert [start["hosts"] for start in json.loads((workdir / "run.json").read_text())["starts"]] == [4, 2]


# Hosts that go away --------------------------------------------------------------------------------------------------


def test_sigterm_to_any_host_saves_on_all(trainers, straight, tmp_path):
    workdir, chosen = tmp_path / "told", random.SystemRandom().randrange(2)
    hosts = trainers.cluster(2, workdir, "--config.train.steps=4000", "--config.train.save_every=100000", faults=["slow", "slow"])
    until(workdir, 3, trainers, hosts)
    os.kill(hosts[chosen][0], signal.SIGTERM)
    assert trainers.wait(hosts) == [143, 143], texts(hosts)
    step = checkpoints.steps(workdir)[-1]
    assert f"preempted: saved at step {step}; the same command continues" in hosts[0][1].read_text()
    assert losses(workdir)[:14] == pytest.approx(losses(straight[0])[: min(14, step)], rel=1e-5)


@pytest.mark.parametrize("killed", [1, 0])
def test_a_killed_host_is_noticed_and_the_restart_is_bitwise(trainers, two, tmp_path, killed):
    workdir, left = tmp_path / "killed", 1 - killed
    hosts = trainers.cluster(2, workdir, "--lost_after=4", faults=["slow", "slow"])
    until(workdir, 7, trainers, hosts)  # and checkpoint 3 is whole: the save at 6 waited for it
    os.kill(hosts[killed][0], signal.SIGKILL)
    begun = time.monotonic()
    codes = trainers.wait(hosts)
    assert codes[killed] == -signal.SIGKILL and codes[left] == (75 if killed else -signal.SIGABRT), (codes, texts(hosts))
    assert time.monotonic() - begun < 60  # 4 s without a sign of life, looks 0.4 s apart, and a machine that others use
    said = hosts[left][1].read_text()
    if not killed:  # JAX's own client ends with the first host, which holds the service, before anybody can speak
        assert "the JAX distributed service detected fatal errors. This most likely indicates that another task died" in said
    else:
        assert "error: process 2 of 2 is gone: " in said and "start the same command again on all hosts, or on fewer" in said
    logged = metrics.read(workdir)[-1]["step"]
    hosts = trainers.cluster(2, workdir)
    assert trainers.wait(hosts) == [0, 0], texts(hosts)
    same(workdir, two)
    assert losses(workdir) == losses(two)
    saved = int(hosts[0][1].read_text().split("resuming from step ")[1].split()[0])
    assert (json.loads((workdir / "run.json").read_text())["seconds"]["lost"] > 0) == (logged > saved)


def test_four_hosts_told_killed_and_continued_are_four_left_alone(trainers, straight, tmp_path):
    """SIGTERM to any, SIGKILL to any but the first, and the end is bit for bit that of four that nobody touched, whose numbers are one's."""
    workdir, alone = tmp_path / "touched", tmp_path / "alone"
    slow, any_of = ["slow"] * 4, random.SystemRandom().randrange
    hosts = trainers.cluster(4, workdir, "--config.train.steps=4000", faults=slow)
    until(workdir, 3, trainers, hosts)
    os.kill(hosts[any_of(4)][0], signal.SIGTERM)
    assert trainers.wait(hosts) == [143] * 4, texts(hosts)
    saved = checkpoints.steps(workdir)[-1]
    assert f"preempted: saved at step {saved}; the same command continues" in hosts[0][1].read_text()

    end = max(saved + 10, 14)
    hosts, killed = trainers.cluster(4, workdir, f"--config.train.steps={end + 4000}", "--lost_after=4", faults=slow), 1 + any_of(3)
    until(workdir, saved + 2, trainers, hosts)
    os.kill(hosts[killed][0], signal.SIGKILL)
    begun = time.monotonic()
    codes = trainers.wait(hosts)
    assert codes == [-signal.SIGKILL if i == killed else 75 for i in range(4)], (codes, texts(hosts))
    assert time.monotonic() - begun < 60  # as above
    for i in set(range(4)) - {killed}:
        assert f"error: process {killed + 1} of 4 is gone: " in hosts[i][1].read_text(), texts(hosts)

    end = max(end, checkpoints.steps(workdir)[-1] + 2)
    for folder in (workdir, alone):
        hosts = trainers.cluster(4, folder, f"--config.train.steps={end}")
        assert trainers.wait(hosts) == [0] * 4, texts(hosts)
    same(workdir, alone)
    assert losses(workdir) == losses(alone) and losses(alone)[:14] == pytest.approx(losses(straight[0]), rel=1e-5)
    assert json.loads((alone / "run.json").read_text())["hosts"] == 4


def test_nan_on_one_host_names_it(trainers, tmp_path):
    workdir = tmp_path / "nan"
    hosts = trainers.cluster(2, workdir, faults=["nan", "nan"])  # in the last row, which the second host holds
    assert trainers.wait(hosts) == [1, 1], texts(hosts)
    for _, log in hosts:
        assert "error: not finite at step 7; the state is as before it" in log.read_text() and "batch/x: rows [7] of host 2" in log.read_text()
    assert json.loads((workdir / "halted.json").read_text())["rows"][0] == "batch/x: rows [7] of host 2"
    assert checkpoints.steps(workdir) == [3, 6]


def test_a_shard_that_is_gone_on_one_host_ends_all(trainers, tmp_path):
    workdir = tmp_path / "shard"
    hosts = trainers.cluster(2, workdir, "--lost_after=4", faults=["", "missing"])
    assert trainers.wait(hosts) == [2, 2], texts(hosts)  # 75 would make SLURM start again what can't go on
    assert "error: data/audio-00003-of-00004.tfrecord: No such file or directory" in hosts[1][1].read_text()
    assert "error: process 2 of 2 is gone: [Errno 2] No such file or directory: 'data/audio-00003-of-00004.tfrecord'" in hosts[0][1].read_text()
    assert 3 in checkpoints.steps(workdir)


# Clocks, folders and disks -------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(trainers, straight, tmp_path):
    workdir = tmp_path / "clock"
    run = trainers.start(workdir, "--profile=4:2", fault="clock_jumps")
    assert trainers.wait([run]) == [0], texts([run])
    same(workdir, straight[0])
    lines = metrics.read(workdir)
    assert max(line["time"] for line in lines) - min(line["time"] for line in lines) > 86400  # it did jump
    assert all(0 <= line["step_seconds"] < 600 for line in lines)
    seconds = json.loads((workdir / "run.json").read_text())["seconds"]
    assert all(0 <= value < 3600 for value in seconds.values())
    assert "profiling steps 4 to 5" in run[1].read_text() and list((workdir / "profile").rglob("*.xplane.pb"))


def test_a_second_trainer_is_refused_and_a_stuck_one_shows_its_stacks(trainers, tmp_path):
    workdir = tmp_path / "shared"
    first = trainers.start(workdir, "--config.train.steps=4000", "--stuck_after=1", fault="slow")
    until(workdir, 4, trainers, [first])
    second = trainers.start(workdir)
    assert trainers.wait([second]) == [2]
    assert f"error: --workdir={workdir} is in use by process {first[0]} on " in second[1].read_text()
    until(workdir, 7, trainers, [first])
    os.kill(first[0], signal.SIGTERM)
    assert trainers.wait([first]) == [143]
    said = first[1].read_text()
    assert "stuck: process 1 of 1 is in phase 'data' for" in said and "in slow" in said  # the function that sleeps
    again = trainers.start(workdir, f"--config.train.steps={checkpoints.steps(workdir)[-1] + 1}")
    assert trainers.wait([again]) == [0], texts([again])


def test_a_folder_that_cannot_be_written(trainers, tmp_path):
    (tmp_path / "file").write_text("in the way")
    run = trainers.start(tmp_path / "file" / "run")
    assert trainers.wait([run]) == [2]
    assert f"error: --workdir={tmp_path}/file/run cannot be written: Not a directory; free it, or give another folder" in run[1].read_text()


def test_another_config_lists_every_path(trainers, straight):
    before = checkpoints.steps(straight[0])
    run = trainers.start(straight[0], "--config.train.steps=20", "--config.model.inputs=500", "--config.seed=0", "--config.optim.b1=0.5")
    assert trainers.wait([run]) == [2]
    said = run[1].read_text()
    for line in ("error: checkpoint 14 of", "  - params/gen/kernel is float32[512, 256], expected float32[500, 256]",
                 "  - rest/mean is float32[512], expected float32[500]", "  - config.model.inputs was 512, is 500",
                 "  - config.optim.b1 was 0.9, is 0.5", "  - config.train.steps was 14, is 20"):
        assert line in said, said
    assert checkpoints.steps(straight[0]) == before


@pytest.mark.parametrize("what", ["a file less", "half a file"])
def test_a_torn_checkpoint_is_passed_over(trainers, straight, tmp_path, what):
    workdir = tmp_path / "torn"
    shutil.copytree(straight[0], workdir)
    newest = workdir / checkpoints.FOLDER / "14"
    if what == "a file less":
        (newest / "data" / "metadata").unlink()
    else:
        for path in (newest / "train").rglob("*"):
            if path.is_file() and path.stat().st_size > 10_000:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = trainers.start(workdir)
    assert trainers.wait([run]) == [0], texts([run])
    said = run[1].read_text()
    assert "checkpoint 14 is torn and passed over for the last whole one, 12; it is kept as checkpoints/14.torn" in said
    assert "resuming from step 12" in said and (workdir / checkpoints.FOLDER / "14.torn").is_dir()
    same(workdir, straight[0])


def test_a_checkpoint_that_one_host_cannot_read_is_passed_over_by_all(trainers, two, tmp_path):
    workdir = tmp_path / "torn_for_one"
    shutil.copytree(two, workdir)
    for path in (workdir / checkpoints.FOLDER / "14" / "train" / "ocdbt.process_1").rglob("*"):
        if path.is_file() and path.stat().st_size > 10_000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    hosts = trainers.cluster(2, workdir, "--lost_after=10")
    assert trainers.wait(hosts, 120) == [0, 0], texts(hosts)
    assert "checkpoint 14 is torn and passed over for the last whole one, 12" in hosts[0][1].read_text()
    same(workdir, two)


def test_when_no_checkpoint_can_be_read_nothing_is_touched(trainers, straight, tmp_path):
    workdir = tmp_path / "rubbish"
    shutil.copytree(straight[0], workdir)
    for path in workdir.glob(f"{checkpoints.FOLDER}/*/data/metadata"):
        path.write_text("{")
    before = checkpoints.steps(workdir)
    run = trainers.start(workdir)
    assert trainers.wait([run]) == [2]
    assert "no checkpoint can be read, and nothing was changed:\n  - 14: " in run[1].read_text()
    assert checkpoints.steps(workdir) == before


@pytest.fixture
def little_disk(tmp_path):
    """A disk of five megabytes: two checkpoints of the toy and a half."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_and_keeps_what_is_saved(trainers, straight, little_disk):
    run = trainers.start(little_disk / "run", "--config.train.keep=5")
    assert trainers.wait([run]) == [2], texts([run])
    saved = checkpoints.steps(little_disk / "run")
    said = run[1].read_text()
    assert saved and f"No space left on device while saving a checkpoint; the last whole one is {saved[-1]}, and nothing of it is lost" in said, said
    subprocess.run(["mount", "-o", "remount,size=50m", str(little_disk)], check=True)
    run = trainers.start(little_disk / "run", "--config.train.keep=5")
    assert trainers.wait([run]) == [0], texts([run])
    same(little_disk / "run", straight[0])


@pytest.mark.parametrize("devices", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_a_checkpoint_of_many_devices_is_exported_on_one(trainers, tmp_path, devices):
    said = trainers.save_sharded(tmp_path / "pod", devices)
    cut, over = (int(word) for word in said.split(" cut over "))
    assert over == devices and cut > 0
    tree, _ = tiny._model("codec", 0)
    read, _ = checkpoints.read_model(tmp_path / "pod")
    for path, x in state.flatten(tree).items():
        np.testing.assert_array_equal(state.flatten(read)[path], x, err_msg=path)
    export.export(str(tmp_path / "pod"), tmp_path / "out")
    kept = state.flatten(weights.read_weights(tmp_path / "out"))
    assert kept and all(np.array_equal(x, state.flatten(tree)[path]) for path, x in kept.items())
