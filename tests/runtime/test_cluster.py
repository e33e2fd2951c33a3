"""Exit codes, error lines, help, and what counts as a cluster; the command line is a real subprocess."""

from __future__ import annotations

import fnmatch
import os
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from ns2_jax.runtime import cluster

SCRIPT = '''"""Says hello.

    python -m hello --name=you
"""
import sys
from absl import flags
from ml_collections import config_flags
from ns2_jax.runtime import cluster, weights
NAME = flags.DEFINE_string("name", "you", "Whom to greet.")
ALOUD = flags.DEFINE_bool("in_capitals", False, "Aloud.")
CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.")

def main(argv):
    if NAME.value == "ours":
        weights.write_weights("x", {}, "int3")
    if NAME.value == "file":
        open("/no/such/file")
    if NAME.value == "bug":
        raise RuntimeError("a bug")
    if NAME.value == "builtin":
        max([])
    if NAME.value == "library":
        import numpy
        numpy.zeros(3).reshape(2)
    if NAME.value == "jax":
        import jax.numpy
        jax.numpy.zeros(3) + jax.numpy.zeros(2)
    print("hello", NAME.value.upper() if ALOUD.value else NAME.value)
    return {"three": 3}.get(NAME.value, 0)

if __name__ == "__main__":
    cluster.run(main)
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "hello.py").write_text(SCRIPT)
    (folder / "config.py").write_text(textwrap.dedent('''
        import ml_collections
        def get_config(arg=""):
            if arg == "wrong":
                raise ValueError("config argument 'wrong' is unknown; there is 'right'")
            config = ml_collections.ConfigDict({"train": {"steps": 3}, "seed": 0})
            return config
    '''))
    root = os.path.dirname(os.path.dirname(os.path.dirname(cluster.__file__)))

    def call(*words):
        env = {**os.environ, "PYTHONPATH": root, "NS2_JAX_TRACEBACK": ""}
        return subprocess.run([sys.executable, "hello.py", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120)

    return call


def test_exit_codes_and_error_lines(script):
    done = script("--name=three")
    assert (done.returncode, done.stdout) == (3, "hello three\n")
    assert script("--in-capitals", "--name=a-b").stdout == script("--in_capitals", "--name=a-b").stdout == "hello A-B\n"
    for words, line in {
        ("--name=ours",): "error: quantize='int3' does not exist; roundings are ['none', 'bf16', 'int8']",
        ("--name=file",): "error: /no/such/file: No such file or directory",
        ("--nope=1",): "error: Unknown command line flag 'nope'",
        ("word",): "error: 'word' is not a flag; flags look like --name=value (see --help)",
        ("--config=nothing.py",): "error: --config=nothing.py: there is no such file",
        ("--config=config.py:wrong",): "error: config argument 'wrong' is unknown; there is 'right'",
        ("--config=config.py", "--config.train.stepz=1"): "error: --config.train.stepz: the config has no such field; there is ['steps']",
        ("--config=config.py", "--config.train.steps=many"): "error: flag --config.train.steps=many: invalid literal for int()",
    }.items():
        failed = script(*words)
        assert failed.returncode == 2, (words, failed.stderr)
        assert failed.stderr.startswith(line) and failed.stderr.count("\n") == 1, failed.stderr


@pytest.mark.parametrize("name, message", [("bug", "RuntimeError: a bug"), ("builtin", "max()"), ("library", "cannot reshape"), ("jax", "incompatible shapes")])
def test_bugs_keep_their_traceback(script, name, message):
    failed = script(f"--name={name}")
    assert failed.returncode == 1 and "Traceback" in failed.stderr and message in failed.stderr


def test_help_teaches(script):
    shown = script("--help")
    assert shown.returncode == 0
    assert "python -m hello --name=you" in shown.stdout
    assert "--name: Whom to greet. (default you)" in shown.stdout and "--config: FILE." in shown.stdout


@pytest.mark.parametrize("error, code", [
    (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection reset by peer"), cluster.LOST),
    (jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Buffer Definition Event: Connection closed by peer"), cluster.LOST),
    (ValueError("UNAVAILABLE: connection closed"), cluster.LOST),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"), cluster.FAILED),
    (RuntimeError("a bug"), cluster.FAILED),
])
def test_one_of_several_ends_with_a_code_that_starts_again_what_may_pass(monkeypatch, capsys, error, code):
    """What the others are told, when nobody is known to be gone; a JobSet ends for good with 1."""
    def main(argv):
        exec("raise error", {"error": error})  # in no file of ours

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(cluster, "_end", end)
    monkeypatch.setattr(cluster.app, "run", lambda call, flags_parser: call([]))
    with pytest.raises(SystemExit) as ended:
        cluster.run(main)
    assert ended.value.code == code and str(error) in capsys.readouterr().err


@pytest.mark.parametrize("environment, expected", [
    ({}, False),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, True),
    ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "NS2_JAX_DISTRIBUTED": "0"}, False),
    ({"NS2_JAX_DISTRIBUTED": "1"}, True),
])
def test_what_counts_as_a_cluster(monkeypatch, environment, expected):
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "TPU_WORKER_HOSTNAMES", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS",
                 "OMPI_COMM_WORLD_SIZE", "NS2_JAX_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cluster.is_cluster() is expected


@pytest.mark.parametrize("device", ["/dev/accel0", "/dev/vfio/0"])
def test_a_tpu_host_is_one_of_several(monkeypatch, device):
    for name in ("SLURM_NTASKS", "TPU_WORKER_HOSTNAMES", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS",
                 "OMPI_COMM_WORLD_SIZE", "NS2_JAX_DISTRIBUTED", "JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cluster.glob, "glob", lambda pattern: [device] if fnmatch.fnmatch(device, pattern) else [])
    assert cluster.is_cluster()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not cluster.is_cluster()


@pytest.mark.parametrize("environment, expected", [
    ({"SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, True),
    ({"SLURM_NTASKS": "16", "SLURM_NNODES": "2"}, False),
    ({"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, True),
    ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
    ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, False),
    ({}, False),
])
def test_one_process_a_node_keeps_all_its_gpus(monkeypatch, environment, expected):
    """JAX gives a task of SLURM the GPU of its local number."""
    for name in ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = []
    monkeypatch.setattr(cluster, "is_cluster", lambda: True)
    monkeypatch.setattr(cluster.jax.distributed, "initialize", lambda **given: said.append(("jax_cuda_visible_devices", "0")))
    monkeypatch.setattr(cluster.jax.config, "update", lambda name, value: said.append((name, value)))
    cluster.start(lambda line: None)
    visible = [value for name, value in said if name == "jax_cuda_visible_devices"]
    assert visible[-1] == ("all" if expected else "0") and ("jax_default_matmul_precision", "highest") in said


def test_a_process_that_nobody_joins_said_before_how_long_it_waits_and_how_it_ends():
    """JAX aborts in C++: nothing can be said afterwards."""
    env = {**os.environ, "JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "NS2_JAX_TOGETHER": "1"}
    command = [sys.executable, "-c", "from ns2_jax.runtime import cluster; cluster.start()"]
    alone = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert alone.returncode == -signal.SIGABRT, alone.stderr  # 134 to a shell
    assert "JAX aborts (code 134) when one has not come after NS2_JAX_TOGETHER=1 seconds" in alone.stdout


def test_what_is_gathered_is_waited_for_however_long_the_others_take(monkeypatch):
    """A collective alone gives up after half a minute; so all meet first, each time under a name of its own."""
    said = []

    class Client:
        def wait_at_barrier(self, name, milliseconds):
            said.append((name, milliseconds))

    def allgather(x):
        said.append("gathered")
        return np.stack([x, x])

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(cluster.watching, "client", Client)
    monkeypatch.setattr(cluster.multihost_utils, "process_allgather", allgather)
    assert [cluster.gather(["a", {"b": 1}]) for _ in range(2)] == [["a", "a", {"b": 1}, {"b": 1}]] * 2
    (first, patience), second = said[0], said[3][0]
    assert first != second and patience > 1000 * 86400 and said[1:3] == said[4:] == ["gathered"] * 2


def test_facts():
    facts = cluster.facts()
    assert facts["versions"]["jax"].count(".") == 2 and facts["devices"] == 8 and facts["device"] == "cpu"
    assert facts["revision"] == "unknown" or len(facts["revision"].removesuffix("+changes")) == 40


def test_what_is_compiled_is_kept_where_it_is_said(tmp_path, monkeypatch):
    """Where the variable says, else below the home; "off" leaves all as it was."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_platforms", "jax_default_matmul_precision")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        monkeypatch.setenv("NS2_JAX_CACHE", "off")
        assert cluster.configure() == "off" and jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"]
        monkeypatch.setenv("NS2_JAX_CACHE", str(tmp_path))
        assert cluster.configure() == str(tmp_path) == jax.config.jax_compilation_cache_dir
        monkeypatch.delenv("NS2_JAX_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cluster.configure() == str(tmp_path / ".cache" / "ns2_jax" / "xla")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
