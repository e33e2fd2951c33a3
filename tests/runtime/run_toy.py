"""What a forked trainer does: flags, faults, then `ns2_jax.train`."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import sys
import time
import types

import jax
import numpy as np
import toy_system

from ns2_jax import train
from ns2_jax.runtime import checkpoints, cluster, metrics
from ns2_jax.runtime import mesh as meshes
from ns2_jax.systems import system as systems



@dataclasses.dataclass(frozen=True)
class System(toy_system.Toy):
    outputs: int = 256

    def alarm(self, metrics, step):
        return ""


def rows(step: int, count: int, inputs: int) -> dict[str, np.ndarray]:
    """The batch of a step, as numpy makes it in a moment."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(count, inputs)).astype(np.float32)
    return {"x": x, "y": 2 * x[:, :256] + 1, "weight": np.ones(count, np.float32)}


def batches(config, program, start):
    """This host's rows."""
    parts, total = meshes.host_parts(program.mesh)
    count = config.data.buckets[0]["b"]
    for step in itertools.count(start):
        whole = rows(step, count, config.model.inputs)
        for fault in FAULTS:
            fault(whole, step)
        cut = count // total
        yield {name: np.concatenate([x[p * cut : (p + 1) * cut] for p in parts]) for name, x in whole.items()}


def slow(batch, step):
    """Time to do something to it; and once enough to be called stuck."""
    time.sleep(2.5 if step == 5 else 0.1)


def nan(batch, step):
    if step == 7:
        batch["x"][-1, 3] = np.nan


def missing(batch, step):
    if step == 6:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "data/audio-00003-of-00004.tfrecord")


def clock_jumps(batch, step):
    """An hour back, then a day ahead."""
    shift = -3600 if step % 2 else 86400
    time.time = lambda: REAL() + shift


def save_sharded(folder, devices, log):
    """The codec of size smoke as a run of so many devices leaves it: every parameter cut wherever its names and length allow."""
    from tests import tiny

    jax.config.update("jax_num_cpu_devices", devices)
    tree, about = tiny._model("codec", 0)
    mesh = meshes.make_mesh({"data": 4, "fsdp": -1})  # parameters of 32 channels over 16 devices, four copies
    meshes.SMALL = 0
    system = systems.make("codec", about["model"])
    sizes = {**system.sizes, **about["data"]["buckets"][0], "s": about["data"]["buckets"][0]["t"] * about["data"]["hop"]}
    names = system.axes(systems.shapes(system.fields, sizes))
    where = meshes.shardings(mesh, names, (tree["params"], tree["rest"]))
    params, rest = jax.device_put((tree["params"], tree["rest"]), where)
    cut = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))
    store = checkpoints.Checkpoints(folder)
    store.save({"step": np.int32(7), "params": params, "ema": params, "rest": rest, "opt": {"count": np.int32(7)}})
    store.close()
    tiny._about(about, folder)
    with open(log, "w", encoding="utf8") as f:
        f.write(f"{cut} cut over {mesh.size}")
    os._exit(0)


REAL, FAULTS = time.time, []


def run(words, devices, fault, env, log):
    """Ends the process."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(env)
    jax.config.update("jax_num_cpu_devices", devices)
    FAULTS.extend([globals()[fault]] if fault else [])
    train.batches = batches
    metrics.PEAKS["cpu"] = 1e12
    systems.make = lambda name, model: System(**model)
    train.feed = types.SimpleNamespace(order=lambda data, fields: lambda step: {}, fingerprint=lambda data: "toy")
    train.weights.codec_of = lambda config, fields: ""
    train.define_flags()
    sys.argv = ["train", "--config=tests/runtime/toy_config.py", *words]
    code = 1
    try:
        cluster.run(train.main)
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if code in (0, 143) and jax.distributed.is_initialized():
            jax.distributed.shutdown()
        os._exit(code if isinstance(code, int) else 1)
