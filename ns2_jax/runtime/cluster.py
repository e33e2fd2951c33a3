"""The machine: processes, caches, signals, exit codes. The only file that reads the environment.

    NS2_JAX_CACHE         folder of compiled programs (default ~/.cache/ns2_jax/xla; "off" for none)
    NS2_JAX_DISTRIBUTED   1 or 0 to say whether this is one process of several, when the guess is wrong
    NS2_JAX_TOGETHER      seconds that the processes of a cluster wait for each other at the start (default 300)
    NS2_JAX_TRACEBACK     1 to see the traceback behind an `error: ...` line
    WANDB_PROJECT         send metrics to Weights & Biases too, when `wandb` is installed

Exit codes: 0 done, 1 failed (a bug, or training met a non-finite number), 2 the command, its input or a disk is wrong,
75 another process of the cluster is gone, or what joins them broke (134, with JAX's stack dump: the first is gone, or one did not come in time)
and 143 stopped by SIGTERM after saving: start it again.
"""

from __future__ import annotations

import difflib
import errno
import glob
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.experimental import multihost_utils

from ns2_jax.runtime import watch as watching

DONE, FAILED, USER_ERROR, PREEMPTED, LOST = 0, 1, 2, 143, watching.LOST
WAIT = 7 * 24 * 3600  # seconds that processes wait for the last to be done with its share
TOGETHER = 300  # seconds in which all processes of a cluster must have come
PRECISION = "highest"
"""Of products of float32 arrays: accelerators would round the operands, and STFT, quantiser and losses are float32 for a
reason. Products of bfloat16 arrays, which is what the large networks compute, stay what they are."""
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_OURS = tuple(os.path.join(_ROOT, folder) + os.sep for folder in ("ns2_jax", "configs", "data_pipelines"))
_terminated = False


def environment(name: str, default: str = "") -> str:
    """An environment variable, for rooms that must not look themselves."""
    return os.environ.get(name, default)


def is_cluster() -> bool:
    """Whether this process is one of several, by what launchers set (TPU pods, multislice, SLURM, MPI, JAX's own)."""
    forced = environment("NS2_JAX_DISTRIBUTED")
    if forced:
        return forced not in ("0", "false", "no")
    several = lambda name: environment(name, "1").isdigit() and int(environment(name, "1")) > 1
    if environment("JAX_COORDINATOR_ADDRESS") or environment("MEGASCALE_COORDINATOR_ADDRESS"):
        return True
    if several("SLURM_NTASKS") and environment("SLURM_PROCID"):
        return True
    if several("OMPI_COMM_WORLD_SIZE") or "," in environment("TPU_WORKER_HOSTNAMES"):
        return True
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")  # the second from v5p on
    on_tpu_vm = bool(chips) and "cpu" not in environment("JAX_PLATFORMS")
    return on_tpu_vm and environment("TPU_SKIP_MDS_QUERY") in ("", "0")


def one_process_a_node() -> bool:
    """Whether SLURM or MPI started as many processes as there are nodes (more than one)."""
    tasks, nodes = (environment(name) or environment(other) for name, other in (
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_STEP_NUM_NODES", "SLURM_NNODES")))
    return (bool(tasks) and tasks == nodes) or environment("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def keep_compiled() -> str:
    """Keeps what is compiled for the next process; returns where."""
    cache = environment("NS2_JAX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "ns2_jax", "xla")
    if cache != "off":
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return cache


def configure() -> str:
    """Compile cache, platform and precision, without asking for devices; returns where the cache is."""
    cache = keep_compiled()
    if glob.glob("/dev/nvidia[0-9]*") and "latency_hiding" not in environment("XLA_FLAGS"):
        os.environ["XLA_FLAGS"] = (environment("XLA_FLAGS") + " --xla_gpu_enable_latency_hiding_scheduler=true").strip()
    if not environment("JAX_PLATFORMS") and not any(glob.glob(g) for g in ("/dev/accel*", "/dev/vfio/*", "/dev/nvidia[0-9]*", "/dev/kfd")):
        jax.config.update("jax_platforms", "cpu")  # an installed libtpu would look for chips, at length and aloud
    jax.config.update("jax_default_matmul_precision", PRECISION)
    return cache


def start(report: Callable[[str], None] = print, preemptible: bool = False) -> None:
    """Joins the cluster if there is one and turns on the compile cache. Before any use of devices.

    With `preemptible`, SIGTERM is noted instead of ending the process: the caller asks `terminated` and leaves by itself.
    """
    cache = configure()
    if is_cluster():
        # Not `report`: asking which process this is would start the backend before the others are met.
        wait = int(environment("NS2_JAX_TOGETHER") or TOGETHER)
        print("cluster: this is one process of several; waiting for the others (the command must run on every host, with one address of the first "
              "that all can reach, e.g. gcloud ... ssh --worker=all; NS2_JAX_DISTRIBUTED=0 if it is alone). "
              f"JAX aborts (code 134) when one has not come after NS2_JAX_TOGETHER={wait} seconds", flush=True)
        numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        given = {key: int(environment(name)) for key, name in numbers.items() if environment(name)}
        jax.distributed.initialize(**given, initialization_timeout=wait)
        if one_process_a_node():  # JAX takes a task of SLURM or MPI to own one GPU; ours own their node's
            jax.config.update("jax_cuda_visible_devices", "all")
            jax.config.update("jax_rocm_visible_devices", "all")
    devices = jax.devices()
    if preemptible and jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _on_terminate)  # of several processes, JAX's own service makes all agree on a step
    report(f"cluster: process {jax.process_index() + 1} of {jax.process_count()}, {len(devices)} x {devices[0].device_kind} "
           f"({devices[0].platform}), {len(jax.local_devices())} here; compile cache {cache}")


def pretend(devices: int = 1) -> None:
    """This machine as a compiler for machines it does not have: CPU only (so many of them), libtpu left alone by
    the metadata server and by other processes. Before any use of devices."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_default_matmul_precision", PRECISION)


def _on_terminate(number: int, frame: Any) -> None:
    del number, frame
    global _terminated
    _terminated = True


def end_tidily() -> None:
    """From here on SIGTERM ends this process (143) as an error would: what it has half written is deleted on the way out."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(PREEMPTED))


def terminated() -> bool:
    """Whether SIGTERM has arrived (one process; in a cluster ask `checkpoints`)."""
    return _terminated


def is_first() -> bool:
    """Whether this process writes the logs."""
    return jax.process_index() == 0


def share(things: Sequence[Any]) -> list[Any]:
    """What this process takes of a list that every process has: one in turn for each."""
    if not jax.distributed.is_initialized():  # asking which process this is would start the backend
        return list(things)
    return list(things[jax.process_index() :: jax.process_count()])


_gathered = itertools.count()  # every process counts alike


def gather(rows: Sequence[Any]) -> list[Any]:
    """The rows that every process made of its `share`, in the order of the list; JSON is how they travel. All must call it; who is done first waits."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return list(rows)
    watching.client().wait_at_barrier(f"ns2_jax/gather/{next(_gathered)}", 1000 * WAIT)  # collectives give up after half a minute on some backends
    mine = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(mine)))
    every = multihost_utils.process_allgather(np.pad(mine, (0, int(lengths.max()) - len(mine))))
    parts = [json.loads(bytes(text[:length])) for text, length in zip(every, lengths)]
    return [part[k] for k in range(max(map(len, parts))) for part in parts if k < len(part)]


def together(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` on every host. What is wrong on one is raised on all, or the others would wait for it in vain."""
    out, error = None, None
    try:
        out = function(*args)
    except Exception as caught:
        error = caught
    said = [text for text in gather([(str(error) or repr(error)) if error else ""]) if text]
    if error:
        raise error
    if said:
        raise ValueError(f"on another host: {said[0]}")
    return out


def watch(lost_after: float, stuck_after: float) -> watching.Watch:
    """The thread that looks after this process and the others."""
    several = jax.process_count() > 1
    return watching.Watch(jax.process_index(), jax.process_count(), lost_after, stuck_after, watching.client() if several else None,
                          lambda error: USER_ERROR if is_user_error(error) else LOST)


def say(text: str) -> None:
    """A line of progress, from the first process only."""
    if is_first():
        print(text, flush=True)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """What a run should remember about where it ran: revision, versions, argv, devices."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    devices = jax.devices()
    return {
        "revision": revision(), "versions": {**versions, "python": platform.python_version()}, "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "device": devices[0].device_kind, "devices": len(devices), "hosts": jax.process_count(),
        "machine": platform.machine(), "cores": cores()}


def revision() -> str:
    """The git commit of the code, with `+changes` when files differ from it; "unknown" outside a checkout."""
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", _ROOT, *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def is_user_error(error: BaseException) -> bool:
    """Whether an exception is about the command or its input: a file that is not there or in the way, a package that our own code says is
    missing, or a ValueError that our own code raised. One from a library or a builtin is a bug and keeps its traceback."""
    if isinstance(error, (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return True
    if isinstance(error, ImportError):
        return error.name is None  # raised with a sentence; a failing import statement has the module's name
    if not isinstance(error, ValueError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_OURS) and (frames[-1].line or "").startswith("raise ")


def one_line(error: BaseException) -> str:
    """The message; only lines indented on purpose (lists of paths) stay lines."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}{'; choose another name' if isinstance(error, FileExistsError) else ''}"
    head, *listed = str(error).split("\n  - ")
    return "\n  - ".join([" ".join(head.split()), *listed])


def _explain(error: BaseException, argv: Sequence[str]) -> BaseException:
    """What absl and ml_collections raise about a command line, in words that name the flag."""
    text = str(error)
    if "Error whilst parsing config file" in text:  # a traceback as text; its last line is the message
        return ValueError(text.strip().rsplit("Error: ", 1)[-1])
    if not isinstance(error, (KeyError, AttributeError)):
        return error
    for flag in flags.FLAGS._flags().values():
        path = next((w.split("=", 1)[1] for w in argv if w.startswith(f"--{flag.name}=") and hasattr(type(flag), "config_filename")), "")
        for word in argv if path else ():
            *parents, name = word.split("=")[0].split(".")[1:] or [""]
            if not word.startswith(f"--{flag.name}."):
                continue
            node = flag.parser.parse(path)
            for parent in parents:
                node = node.get(parent) if hasattr(node, "get") else None
            known = sorted(node) if hasattr(node, "keys") else []
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3) or known
                there = f"there {'are' if len(near) > 1 else 'is'} {near or 'none'}"
                return ValueError(f"{word.split('=')[0]}: the config has no such field; {there}")
    return error


def _fail(error: BaseException) -> None:
    if environment("NS2_JAX_TRACEBACK"):
        traceback.print_exception(error)
    print(f"error: {one_line(error)}", file=sys.stderr)
    _end(USER_ERROR)
    sys.exit(USER_ERROR)


def _end(code: int) -> None:
    """Ends one process of several at once: JAX's own way out waits minutes for the others, which may be waiting for this one."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _may_pass(error: BaseException) -> bool:
    """Whether several processes that start again may get further: a collective broke and nobody is known to be gone. Memory stays too small."""
    return watching.is_runtime(error) and "RESOURCE_EXHAUSTED" not in str(error)


def _underscored(argv: Sequence[str]) -> list[str]:
    """`--dry-run`, as the scripts of launch/ have it, for `--dry_run`; what follows `--` stays."""
    words = list(argv)
    for i in range(1, words.index("--") if "--" in words else len(words)):
        name, equals, value = words[i].partition("=")
        if name.startswith("--") and (known := name[2:].replace("-", "_")) in flags.FLAGS:
            words[i] = f"--{known}{equals}{value}"
    return words


def run(main: Callable[[list[str]], int | None]) -> None:
    """`absl.app.run` for people: what is wrong with the command is one line on stderr and exit code 2, `--help` prints
    the module's docstring and its flags and exits 0, and what `main` returns is the exit code."""
    module = sys.modules[main.__module__]
    jax.config.update("jax_traceback_filtering", "off")  # whose error it is shows in the last frame, JAX's included

    def parse(argv: Sequence[str]) -> list[str]:
        if any(word in ("--help", "-h", "-help", "--helpshort") for word in argv[1:]):
            print((module.__doc__ or "").strip() + "\n\nFlags:\n" + _help(main.__module__))
            sys.exit(DONE)
        try:
            left = flags.FLAGS(_underscored(argv))
        except (flags.Error, ValueError, KeyError, AttributeError, TypeError, OSError, ImportError, SyntaxError) as error:
            _fail(_explain(error, argv))
        for flag in flags.FLAGS._flags().values():
            path = getattr(flag, "_config_filename", "").split(":")[0]
            if path and not os.path.exists(path):
                _fail(FileNotFoundError(
                    f"--{flag.name}={path}: there is no such file; configs are in configs/, run from the repository's root"))
        if left[1:] and not getattr(module, "TAKES_WORDS", False):
            _fail(ValueError(f"{left[1]!r} is not a flag; flags look like --name=value (see --help)"))
        return left

    def wrapped(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except Exception as error:  # pylint: disable=broad-except
            if not is_user_error(error):
                if jax.distributed.is_initialized():
                    traceback.print_exception(error)
                    _end(LOST if _may_pass(error) else FAILED)
                raise
            return _fail(error)

    app.run(wrapped, flags_parser=parse)


def _help(name: str) -> str:
    """The flags that a module defines or adopts, one per line."""
    defined = flags.FLAGS.flags_by_module_dict()
    module = next((one for one in (name, sys.argv[0]) if defined.get(one)), "__main__")
    lines = []
    for flag in sorted(flags.FLAGS.get_key_flags_for_module(module), key=lambda f: f.name):
        default = "" if flag.default in (None, "", False) else f" (default {flag.default})"
        lines.append(f"  --{flag.name}: {' '.join((flag.help or '').split())}{default}")
    return "\n".join(lines)
