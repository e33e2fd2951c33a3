"""The scripts of launch/: they parse, refuse nonsense, size the quickstart within its minutes, and report what was measured."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import types

import matplotlib.image
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # launch/ is not installed

from launch import quickstart, sweep  # noqa: E402

SCRIPTS = sorted([*(ROOT / "launch").rglob("*.sh"), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"])
KEYS = {"seconds", "corpus_hours", "codec", "naturalspeech2", "wer_recording", "wer_codec", "wer_synthesis", "secs_own", "secs_others"}


def run(*command: str | os.PathLike, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_stop_at_errors(path):
    assert run("bash", "-n", path).returncode == 0
    if path.name != "environment.sh":  # sourced
        assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_thin(path):
    assert len(path.read_text().splitlines()) <= 80


def test_where_python_is_too_old_a_newer_one_is_installed_beside_it(tmp_path):
    """A TPU VM of Ubuntu 22.04 has Python 3.10: apt-get is asked for 3.11, and one line says so where it can't be had."""
    def program(name, text):
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (tmp_path / name).chmod(0o755)

    for name in ("bash", "cat", "cksum", "tr", "env", "ln", "rm", "touch", "mkdir"):
        (tmp_path / name).symlink_to(shutil.which(name))
    program("id", "echo 0")
    program("python3", "exit 1")  # whatever is asked of it: too old
    program("apt-get", "exit 1")
    call = [shutil.which("bash"), "-c", f". {ROOT}/launch/environment.sh && mkdir -p {tmp_path}/clone/ns2_jax && cd {tmp_path}/clone && "
            ": > setup.py && : > ns2_jax/__init__.py && environment tpu && echo ready"]
    out = run(*call, env={"PATH": str(tmp_path)})
    assert out.returncode == 2 and out.stderr.startswith("error: no Python >= 3.11 here") and out.stdout == ""
    program("newer", """case "$*" in
        *venv*) mkdir -p .venv/bin; ln -s "$(type -p newer)" .venv/bin/python; : > .venv/bin/activate;;
        *--version*) echo Python 3.11;; esac""")
    program("apt-get", f'echo "$*" >> {tmp_path}/asked; ln -s newer {tmp_path}/python3.11')
    out = run(*call, env={"PATH": str(tmp_path)})
    assert out.returncode == 0 and out.stdout.splitlines() == ["making .venv with Python 3.11", "installing .[tpu]", "ready"], out.stderr
    assert (tmp_path / "asked").read_text().split()[-2:] == ["python3.11", "python3.11-venv"]


@pytest.mark.parametrize("argument", ["--minutes=soon", "--minuts=20", "20", "--minutes="])
def test_quickstart_refuses_what_it_does_not_know(argument):
    out = run("bash", "launch/quickstart.sh", argument)
    assert out.returncode == 2 and out.stderr.startswith("error: ") and len(out.stderr.splitlines()) == 1


def test_every_module_and_flag_the_quickstart_calls_exists():
    text = (ROOT / "launch" / "quickstart.sh").read_text()
    modules = set(re.findall(r"python -m ((?:ns2_jax|data_pipelines)\.\w+)", text))
    ours = {f"ns2_jax.{name}" for name in ("train", "evaluate", "export", "synthesize")}
    assert modules == ours | {"data_pipelines.synth", "data_pipelines.encode"}
    calls = re.findall(r"python -m ((?:ns2_jax|data_pipelines)\.\w+)((?:[^\n]|\\\n)*)", text.replace("\\\n", " "))
    for module, arguments in calls:
        place = ROOT / module.replace(".", "/")
        source = (place / "__main__.py" if place.is_dir() else place.with_suffix(".py")).read_text()
        defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source))
        for flag in re.findall(r"--(\w+)", arguments):
            assert flag in defined | {"config"}, f"{module} has no --{flag}"


def test_the_pod_script_shows_what_it_would_do():
    out = run("bash", "launch/tpu_vm.sh", "--dry-run", "pod", "zone-a", "--config=configs/codec.py:base", "--config.init_from={'a': 'b c'}")
    assert out.returncode == 0, out.stderr
    last = shlex.split(out.stdout.splitlines()[-1])
    assert last[:-1] == "gcloud compute tpus tpu-vm ssh pod --zone=zone-a --worker=all".split()
    assert last[-1].startswith("--command=") and "environment tpu text log  &&" in last[-1]
    words = ["exec", "python", "-m", "ns2_jax.train", "--config=configs/codec.py:base", "--config.init_from={'a': 'b c'}"]
    assert shlex.split(last[-1].rpartition(" && ")[2]) == words  # one argument on the other side of ssh, too
    score = run("bash", "launch/tpu_vm.sh", "--dry-run", "pod", "zone-a", "--workdir=x", env={**os.environ, "JOB": "evaluate", "EXTRAS": "eval"})
    assert "exec python -m ns2_jax.evaluate --workdir=x" in score.stdout and "environment tpu text log eval &&" in score.stdout
    alone = run("bash", "launch/tpu_vm.sh")
    assert alone.returncode == 2 and "Training ends with this connection: run it where none drops, in tmux" in alone.stdout


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    found = run("shellcheck", "-x", "-s", "bash", "--severity=warning", *SCRIPTS)
    assert found.returncode == 0, found.stdout


RUN = ["--config=configs/codec.py:base", "--config.init_from={'a': 'b c'}", "--workdir=/mnt/shared/runs/codec"]
PLACE = {"CLUSTER": "c", "ZONE": "z", "PROJECT": "p", "IMAGE": "registry/ns2:tpu", "CLAIM": "shared"}


@pytest.mark.parametrize("words, expected", [
    (["launch/processes.sh", "--dry-run", "2"], ["JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python -m ns2_jax.train --config=configs/codec.py:base"]),
    (["launch/slurm.sbatch", "--dry-run"], [
        "SRUN_CPUS_PER_TASK=32 srun --kill-on-bad-exit=0 python -m ns2_jax.train --config=configs/codec.py:base"]),
    (["launch/xpk/train.sh", "--dry-run", "w", "v5p-128", "x2"], [
        "xpk workload create --cluster=c --zone=z --project=p --workload=w --tpu-type=v5p-128 --num-slices=2 --docker-image=registry/ns2:tpu",
        "--max-restarts=1000 --restart-on-exit-codes=75\\,134\\,143", "--config.mesh.data=2"]),
])
def test_every_launcher_shows_the_exact_commands(words, expected):
    out = run("bash", *words, *RUN, env={**os.environ, **PLACE})
    assert out.returncode == 0, out.stderr
    for text in expected:
        assert text in out.stdout, out.stdout
    assert re.search(r"b\\+ c", out.stdout)  # one argument on the other side, too


@pytest.mark.parametrize("words", [
    ["launch/tpu_vm.sh", "pod", "zone-a"], ["launch/xpk/train.sh", "w", "v5p-128", "x2"], ["launch/jobset.sh", "n", "v5p:4x4x4"],
    ["launch/slurm.sbatch"], ["launch/local.sh"],
], ids=lambda words: words[0].partition("/")[2])
def test_what_a_dry_run_prints_is_what_a_run_does(tmp_path, words):
    """The printed commands, given to a shell, start the same programs with the same words as the run without --dry-run."""
    for name in ("gcloud", "tar", "xpk", "kubectl", "srun", "python"):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text('#!/bin/bash\n{ printf "%q " "$(basename "$0")" "$@"; echo; } >>"$LOG"\n[ "$(basename "$0")" != kubectl ] || cat >>"$LOG"\n')
        fake.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "launch" / "environment.sh").write_text("environment() { :; }\n")
    env = {**os.environ, **PLACE, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def call(log: str, *command: str, **more) -> str:
        done = subprocess.run(["bash", *command], cwd=tmp_path, env={**env, "LOG": str(tmp_path / log)}, capture_output=True, text=True, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    script, *rest = words
    call("real", script, *rest, *RUN)
    printed = call("nothing", script, "--dry-run", *rest, *RUN)
    assert not (tmp_path / "nothing").exists()  # it only printed
    if script == "launch/jobset.sh":  # the manifest, and as a comment where it goes
        manifest, _, where = printed.rpartition("# ")
        call("printed", "-c", where, input=manifest)
    else:
        call("printed", "-c", printed)
    real, shown = (re.sub(r"ns2_jax\.\w+\.tar\.gz", "ARCHIVE", (tmp_path / name).read_text()) for name in ("real", "printed"))
    assert real == shown and ("gcloud" in real) == ("tpu_vm" in script)


@pytest.mark.parametrize("code", [0, 1, 2, 75, 126, 127, 129, 134, 135, 137, 139, 143])
def test_slurm_gives_a_task_its_cores_and_requeues_what_may_go_on(tmp_path, code):
    """srun returns the highest code: of a process that a signal ended it hides the survivors' 75."""
    for name, text in (("srun", f'echo "cores $SRUN_CPUS_PER_TASK"; exit {code}'), ("scontrol", 'echo "$*"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"}
    for restarts in ("0", "100"):
        out = run("bash", "launch/slurm.sbatch", "--config=x", env={**env, "SLURM_RESTART_COUNT": restarts})
        assert out.returncode == code and out.stdout.splitlines()[0] == "cores 12", out.stderr
        assert ("requeue 7" in out.stdout) == (restarts == "0" and (code == 75 or code >= 129))


@pytest.mark.parametrize("words, line", [
    (["launch/local.sh"], ""),
    (["launch/slurm.sbatch"], ""),
    (["launch/processes.sh", "two", "--config=x"], ""),
    (["launch/jobset.sh", "n"], ""),
    (["launch/jobset.sh", "n", "v9:2x2", "--config=x"], "error: v9 is no family of TPU"),
    (["launch/jobset.sh", "n", "v5p:four", "--config=x"], "error: four is no shape of a slice"),
    (["launch/xpk/train.sh", "n", "v5p-8", "--config=x"], "error: set CLUSTER"),
])
def test_launchers_refuse_what_they_do_not_know(words, line):
    out = run("bash", *words, env={"PATH": os.environ["PATH"], "IMAGE": "i", "CLAIM": "c"})
    assert out.returncode == 2 and out.stderr.startswith(line) and (line or "bash launch/" in out.stdout)


# What jobset.x-k8s.io/v1alpha2 and batch/v1 have of what we write: a type, a list of one kind, a dict of fields (`?` may be missing), or a
# set of words.
CONTAINER = {"name": str, "image": str, "command": [str], "args": [str], "ports": [{"containerPort": int}],
             "resources": {"limits": {"google.com/tpu": int}}, "volumeMounts": [{"name": str, "mountPath": str}]}
POD = {"restartPolicy": {"Never"}, "hostNetwork": bool, "dnsPolicy": {"ClusterFirstWithHostNet"}, "terminationGracePeriodSeconds": int,
       "nodeSelector": {"cloud.google.com/gke-tpu-accelerator": str, "cloud.google.com/gke-tpu-topology": str}, "containers": [CONTAINER],
       "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}}]}
JOB = {"parallelism": int, "completions": int, "completionMode": {"Indexed"}, "backoffLimit": int,
       "podFailurePolicy": {"rules": [{
           "action": {"FailJob", "Ignore", "Count"}, "onExitCodes": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]}}]},
       "template": {"spec": POD}}
JOBSET = {"apiVersion": {"jobset.x-k8s.io/v1alpha2"}, "kind": {"JobSet"}, "metadata": {"name": str, "annotations": dict},
          "spec": {"failurePolicy": {"maxRestarts": int, "rules": [{"name": str, "action": {
              "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                                                                  "onJobFailureReasons": [{"PodFailurePolicy", "BackoffLimitExceeded"}]}]},
                   "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}]}}


def misfits(value, schema, path="") -> list[str]:
    """Where a value is not of the schema."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{path} is no mapping"]
        found = [f"{path}/{key} is unknown" for key in value if key not in schema]
        found += [f"{path}/{key} is missing" for key in schema if key not in value]
        return found + [line for key in value if key in schema for line in misfits(value[key], schema[key], f"{path}/{key}")]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{path} is no list"]
        return [line for i, item in enumerate(value) for line in misfits(item, schema[0], f"{path}[{i}]")]
    if isinstance(schema, set):
        return [] if value in schema else [f"{path}={value!r} is none of {schema}"]
    return [] if isinstance(value, schema) and not (schema is int and isinstance(value, bool)) else [f"{path}={value!r} is no {schema.__name__}"]


def test_the_manifest_is_a_jobset():
    yaml = pytest.importorskip("yaml")
    out = run("bash", "launch/jobset.sh", "--dry-run", "ns2", "v5p:4x4x4", "x2", *RUN, '--config.x="quoted"', env={**os.environ, **PLACE})
    assert out.returncode == 0, out.stderr
    manifest = yaml.safe_load(out.stdout)
    assert misfits(manifest, JOBSET) == []
    job = manifest["spec"]["replicatedJobs"][0]
    assert job["replicas"] == 2 and job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 16
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == [*RUN, '--config.x="quoted"', "--config.mesh.data=2"] and container["resources"]["limits"] == {"google.com/tpu": 4}
    assert out.stdout.endswith("# kubectl apply -f -\n")
    manifest["spec"]["replicatedJobs"][0]["replica"] = job.pop("replicas")
    assert misfits(manifest, JOBSET) == ["/spec/replicatedJobs[0]/replica is unknown", "/spec/replicatedJobs[0]/replicas is missing"]


def test_the_image_has_what_it_copies_and_extras_that_exist():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in line.split())
    extras = set(re.findall(r'^    "(\w+)":', (ROOT / "setup.py").read_text(), re.M))
    assert set(re.search(r"^ARG MORE=(.*)$", text, re.M)[1].split(",")) | {"tpu", "cuda"} <= extras
    assert 'ENTRYPOINT ["python", "-m"]' in text  # no shell between SIGTERM and the trainer


@pytest.fixture
def place(tmp_path):
    """processes.sh where `python` is a script that waits as long and ends as its process is told."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "processes.sh", tmp_path / "launch")
    (tmp_path / "launch" / "environment.sh").write_text("environment() { :; }\n")
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\ntrap "echo $JAX_PROCESS_ID saved; exit 143" TERM\n'
                    'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*"\n'
                    'case $JAX_PROCESS_ID in 1) sleep 0.3; exit "${SECOND:-0}" ;; '
                    '*) for ((i = 0; i < ${FIRST:-3}; i++)); do sleep 0.1; done ;; esac\n')
    fake.chmod(0o755)

    def start(**env):
        return subprocess.Popen(["bash", "launch/processes.sh", "2", "--config=x"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                                env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "PORT": "1234", **env})
    return start


def test_local_processes_meet_and_end_as_the_worst_of_them(place):
    out, _ = (process := place()).communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(out.splitlines()) == [f"{i} of 2 at localhost:1234: -m ns2_jax.train --config=x" for i in range(2)]
    (process := place(SECOND="75")).communicate(timeout=60)
    assert process.returncode == 75


def test_sigterm_reaches_every_local_process(place):
    process = place(FIRST="600")
    assert process.stdout.readline()
    time.sleep(1.0)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "0 saved" in out


def test_a_sweep_is_a_training_for_every_setting(tmp_path):
    (tmp_path / "config.py").write_text(
        "def get_hyper():\n    for peak in (1e-4, 3e-4):\n        yield {'optim.peak': peak, 'data.buckets': [{'b': 2}]}\n")
    settings = sweep.hypers(f"{tmp_path}/config.py:small")
    assert [setting["optim.peak"] for setting in settings] == [1e-4, 3e-4]
    words = sweep.command(settings[0], "config.py:small", "runs", "sbatch launch/slurm.sbatch", ["--config.data.path=d"])
    assert words[:5] == ["sbatch", "launch/slurm.sbatch", "--config=config.py:small", "--config.data.path=d", "--config.optim.peak=0.0001"]
    assert words[5] == "--config.data.buckets=[{'b': 2}]" and words[6].startswith("--workdir=runs/data.buckets=")
    assert len({sweep.name(setting) for setting in settings}) == 2
    assert list(sweep.product(**{"a": (1, 2), "b": (3,)})) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    (tmp_path / "twice.py").write_text("def get_hyper():\n    return [{'seed': 1}, {'seed': 1}]\n")
    with pytest.raises(ValueError, match="yields {'seed': 1} twice"):
        sweep.hypers(str(tmp_path / "twice.py"))
    with pytest.raises(ValueError, match="has no get_hyper"):
        sweep.hypers(str(ROOT / "configs" / "common.py"))


@pytest.mark.parametrize("name", ["codec", "naturalspeech2"])
def test_what_configs_sweep_exists(name):
    from configs import common

    config = importlib.import_module(f"configs.{name}").get_config("smoke")
    known = common.paths(config)
    settings = sweep.hypers(f"configs/{name}.py")
    assert len(settings) > 2 and all(key in known for setting in settings for key in setting)


def test_a_sweep_goes_on_after_preemptions_and_passes_over_what_is_done(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.py").write_text("def get_hyper():\n    return [{'seed': 1}, {'seed': 2}]\n")
    codes, ran = iter([143, 75, 0, 1, 0, 0]), []

    def train(words, check):
        """Saves step 3 of 6, and at the end, when it is no launcher that only submits, step 6."""
        ran.append(words)
        code, folder = next(codes), pathlib.Path(words[-1].removeprefix("--workdir="))
        steps = (3, 6) if code == 0 and words[0] == "train" else (3,)
        for step in steps:
            (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"train": {"steps": 6}}')
        return types.SimpleNamespace(returncode=code)

    monkeypatch.setattr(sweep.subprocess, "run", train)

    class Flags(types.SimpleNamespace):
        def __getitem__(self, name):
            return types.SimpleNamespace(value=getattr(self, name))

    flags = Flags(config=str(tmp_path / "config.py"), workdir=str(tmp_path / "runs"), launcher="train", dry_run=True)
    monkeypatch.setattr(sweep, "FLAGS", flags)
    assert sweep.main(["sweep"]) == 0 and not ran and capsys.readouterr().out.count("--config.seed=") == 2
    flags.dry_run = False
    assert sweep.main(["sweep"]) == 1 and len(ran) == 4  # the first took three starts, the second failed
    flags.launcher = "sbatch"
    assert sweep.main(["sweep"]) == 0 and len(ran) == 5
    said = capsys.readouterr().out
    assert f"{tmp_path}/runs/seed=1 is done: passed over" in said and f"{tmp_path}/runs/seed=2 is submitted; it is done when" in said
    flags.launcher = "train"
    assert sweep.main(["sweep"]) == 0 and len(ran) == 6  # submitted is not done
    assert sweep.main(["sweep"]) == 0 and len(ran) == 6 and "seed=2 is done: passed over" in capsys.readouterr().out


@pytest.mark.parametrize(("minutes", "installed", "size"), [(20, 90, "small"), (20, 700, "smoke"), (4, 0, "smoke"), (60, 90, "small")])
def test_the_plan_follows_the_minutes(minutes, installed, size):
    plan = quickstart.begin(minutes, installed)
    assert plan["size"] == size
    assert 0.1 <= plan["hours"] <= 1
    assert quickstart.begin(40, 0)["hours"] == 1
    buckets = eval(plan["buckets"])  # what the flag parser will read
    assert isinstance(buckets, tuple) and all(set(bucket) == {"b", "t", "p", "u"} for bucket in buckets)


@pytest.mark.parametrize(("size", "minutes"), [("smoke", 4), ("small", 20), ("small", 40)])
@pytest.mark.parametrize("slow", [0.5, 1, 2])
def test_both_trainings_and_what_is_beside_them_end_in_time(size, minutes, slow):
    """Plays the whole thing with the durations the plan expects; a machine half as fast may only run over by the least steps."""
    beside = {key: seconds * max(1, slow) for key, seconds in quickstart.BESIDE[size].items()}
    step = {name: seconds * slow for name, seconds in quickstart.STEP[size].items()}
    clock = 45.0 + beside["again"]  # corpus, first steps of the codec
    codec = quickstart.train_steps(size, "codec", 60 * minutes - clock, step["codec"], 30)
    clock += beside["again"] + (codec["steps"] - 30) * step["codec"] + beside["encode"] + beside["naturalspeech2"]
    speech = quickstart.train_steps(size, "naturalspeech2", 60 * minutes - clock, step["naturalspeech2"], 30)
    clock += beside["again"] + (speech["steps"] - 30) * step["naturalspeech2"] + beside["end"]
    least = 20 * sum(step.values())
    hopeless = minutes == 4 and slow == 2  # what is beside the trainings alone takes longer
    assert clock <= 60 * minutes + least + 1 or hopeless
    assert codec["steps"] >= 50 and speech["steps"] >= 50
    if slow <= 1:
        assert clock > 0.9 * 60 * minutes  # and the time is used


def test_no_time_left_still_makes_a_few_steps():
    stage = quickstart.train_steps("smoke", "naturalspeech2", -100.0, 0.1, 30)
    assert stage["steps"] == 50 and stage["seconds"] == 0 and stage["limit"] > 20 * 0.1


def test_a_step_is_the_median_without_compilations():
    lines = [{"step": i, "step_seconds": t} for i, t in enumerate([30.0, 0.2, 0.3, 9.0, 0.25, 0.2, 0.2])]
    assert quickstart.measured_step(lines) == 0.25


@pytest.fixture
def finished(tmp_path) -> pathlib.Path:
    """The folder of a quickstart whose stages are done, with made-up numbers."""
    out = tmp_path / "quickstart"
    quickstart.start(out, 4.0, time.time() - 7)
    for name, seconds in (("corpus", 20), ("codec", 60), ("naturalspeech2", 80)):
        (out / "done" / name).write_text(f"{seconds}\n")
    (out / "starts").write_text("60\n100\n")  # an interrupted start, and one that ended before the report
    for name in ("codec", "naturalspeech2"):
        (out / name).mkdir()
        lines = [{"step": 5 * k, "loss": 8 / k, "step_seconds": 0.1} for k in range(1, 9)]
        (out / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 45, "lo')
    (out / "data").mkdir()
    (out / "data" / "manifest.json").write_text(json.dumps({"splits": {"train": {"seconds": 3000.0}, "test": {"seconds": 600.0}}}))
    (out / "scores").mkdir()
    scores = {"wer_recording": 4.0, "wer_codec": 6.5, "wer_synthesis": 90.0, "secs_own": 0.61, "secs_others": 0.55, "wer_other": 1.0}
    (out / "scores" / "summary.json").write_text(json.dumps(scores))
    return out


def test_summary_has_exactly_the_promised_keys(finished):
    summary = quickstart.summarise(finished, time.time() - 7)
    assert set(summary) == KEYS
    assert summary["seconds"] == pytest.approx(167, abs=2)
    assert summary["corpus_hours"] == 1.0
    assert summary["codec"] == summary["naturalspeech2"] == {"loss_first": 8.0, "loss_last": 1.0}
    assert summary["wer_synthesis"] == 90.0 and summary["secs_own"] == 0.61


def test_table_says_what_it_is_and_names_the_longer_recipe(finished):
    summary, plan = quickstart.summarise(finished, time.time() - 7), quickstart.read_plan(finished)
    text = quickstart.table(summary, plan, ["a.flac"])
    for part in ("4.0 %", "6.5 %", "90.0 %", "0.610", "0.550", "do not make a voice", "results/naturalspeech2/README.md", "a.flac"):
        assert part in text
    assert "a.flac" not in quickstart.table(summary, plan, [])
    assert max(map(len, text.splitlines())) <= 130


def test_a_training_is_sized_once(finished, capsys):
    deadline = time.time() + 1000
    first = quickstart.size_training(finished, "codec", deadline)
    assert first["steps"] > 40 and first == quickstart.size_training(finished, "codec", deadline + 5000)
    assert quickstart.read_plan(finished)["stages"]["codec"]["steps"] == first["steps"]
    assert "0.1 s a step" in capsys.readouterr().err


def test_a_training_that_never_began_is_named(finished):
    shutil.rmtree(finished / "codec")
    with pytest.raises(FileNotFoundError, match="codec.*did not begin.*codec.log"):
        quickstart.size_training(finished, "codec", time.time())


def test_again_goes_on_and_other_minutes_start_anew(finished):
    assert quickstart.start(finished, 4.0, 0.0)["installed"] < 60  # the old plan, not one begun in 1970
    assert (finished / "done" / "corpus").exists()
    plan = quickstart.start(finished, 20.0, time.time())
    assert plan["size"] == "small" and not list((finished / "done").iterdir())
    assert (finished.with_name("quickstart-4min") / "done" / "corpus").exists()


def test_assignments_survive_the_shell():
    values = {"buckets": quickstart.SIZES["small"]["buckets"], "steps": 12, "stages": {"left": "out"}}
    out = run("bash", "-c", f'{quickstart.assignments(values)}\nprintf "%s|%s" "$BUCKETS" "$STEPS"')
    assert out.stdout == f"{values['buckets']}|12"


def test_the_picture_shows_sound_phones_and_losses(tmp_path):
    rate = 16000
    audio = (0.2 * np.sin(2 * np.pi * 200 * np.arange(rate) / rate)).astype(np.float32)
    curves = {name: [{"step": k, "loss": 5.0 / k} for k in range(1, 20)] for name in ("codec", "naturalspeech2")}
    for name, sound in (("tone", audio), ("silence", 0 * audio)):
        quickstart.draw(tmp_path / f"{name}.png", sound, rate, ["sil", "aa", "sil"], np.array([2000, 14000, 16000]), curves, "title")
    tone, silence = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("tone", "silence"))
    assert min(tone.shape[:2]) > 800
    assert np.abs(tone - silence).mean() > 0.01  # it shows the sound
    cyan = lambda image: ((image[..., 0] < 0.1) & (image[..., 1] > 0.9) & (image[..., 2] > 0.9)).sum()
    assert cyan(tone) > cyan(silence) + 500  # and its pitch
