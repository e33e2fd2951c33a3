"""Trains one system: a config and a data set in, a run folder out.

    python -m ns2_jax.train --config=configs/codec.py:small --config.data.path=data/default --workdir=runs/codec
    python -m ns2_jax.train --config=configs/naturalspeech2.py:small --config.data.path=data/default \\
        --config.init_from='{"rest/codec": "runs/codec-export"}' --workdir=runs/ns2

The config's argument is a size (smoke | small | base) and variants, `configs/codec.py:small,levels=8`; any field is
also a flag, `--config.train.steps=5000`. The same command again continues from the newest checkpoint: bit for bit on the
same devices, with the same data and within rounding on others. SIGTERM saves and exits with 143: start it again. `--dry_run` builds, compiles and
counts, and writes nothing. On a TPU pod run the same command on every host.

The run folder holds config.json, run.json, metrics.jsonl, tensorboard/ (with tensorboardX), checkpoints/ and, when it met a number
that is not finite, halted.json.
Exit codes: 0 done, 1 training met a number that is not finite (it says where), 2 the command is wrong, 143 preempted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from ns2_jax import inference
from ns2_jax.data import feed
from ns2_jax.runtime import checkpoints, cluster, metrics, weights
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state as states
from ns2_jax.runtime import step as steps
from ns2_jax.runtime.program import Program
from ns2_jax.systems import system as systems

FLAGS = flags.FLAGS


def define_flags() -> None:
    """When this file is the command; importing it defines none."""
    config_flags.DEFINE_config_file("config", None, "FILE[:argument], as in configs/codec.py:small.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run; made if needed, continued if it has checkpoints.")
    flags.DEFINE_bool("dry_run", False, "Build, compile and count; write and train nothing.")


def say(text: str) -> None:
    """A line of the story, from the first host only."""
    if cluster.is_first():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def describe(program: Program) -> None:
    """What will be trained: parameters per top-level key, batch, mesh."""
    shapes, number = program.shapes, lambda tree: f"{states.count(tree):,}"
    say(f"mesh {dict(program.mesh.shape)}; buckets {[dict(b) for b in program.config.data.buckets]}")
    for key, tree in shapes["params"].items():
        say(f"  params/{key}: {number(tree)}")
    say(f"  params {number(shapes['params'])}, rest {number(shapes['rest'])}, state {states.size_bytes(shapes) / 2**20:.1f} MB")


def write_json(path: str, content: Any) -> None:
    """Written whole or not at all."""
    with open(path + ".part", "w", encoding="utf8") as f:
        json.dump(content, f, indent=1, default=list)
        f.write("\n")
    os.replace(path + ".part", path)


def record(workdir: str, config: Any, dataset: str, codec: str, step: int) -> None:
    """config.json and run.json (this start, and under `starts` the earlier ones); says which fields changed since the last."""
    os.makedirs(workdir, exist_ok=True)
    resolved, path = json.loads(json.dumps(config.to_dict(), default=list)), os.path.join(workdir, "config.json")
    if os.path.exists(path):
        old = states.flatten(jax.tree.map(str, json.load(open(path, encoding="utf8"))))
        new = states.flatten(jax.tree.map(str, resolved))
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                say(f"  config.{name.replace('/', '.')} was {old.get(name)}, is {new.get(name)}")
    if cluster.is_first():
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(workdir, "halted.json"))
        write_json(path, resolved)
        if config.data.get("units") and os.path.abspath(config.data.units) != os.path.abspath(copy := os.path.join(workdir, inference.UNITS)):
            shutil.copyfile(config.data.units, copy)
        path = os.path.join(workdir, "run.json")
        before = json.load(open(path, encoding="utf8")) if os.path.exists(path) else {}
        earlier = before.pop("starts", [])
        write_json(path, {
            **cluster.facts(), "dataset": dataset, "codec": codec, "phones": inference.inventory.inventory_hash(), "seed": config.seed,
            "start_step": step, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "starts": earlier + ([before] if before else [])})


def batches(config: Any, program: Program, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This host's rows of the batches from `start` on."""
    system, parts = program.system, meshes.host_parts(program.mesh)
    return iter(feed.make_feed(
        config.data, system.fields, system.sizes, config.seed, start, parts=parts, inventory=inference.inventory.inventory_hash()))


def begin(program: Program, saved: checkpoints.Checkpoints, config: Any) -> dict:
    """The state to train from."""
    # 1. The run's own newest checkpoint: everything, straight into its shards, nothing initialised.
    if saved.latest() is not None:
        say(f"resuming from step {saved.latest()}")
        return saved.restore(program.target)
    # 2. From scratch, on the real first batch, born in its shards ...
    weights.check_parts(config, getattr(program.system, "parts", {}))
    first = meshes.put_batch(program.mesh, next(batches(config, program, 0)))
    state = program.create(first)
    # 3. ... with the parts that other runs or exports give.
    if len(config.init_from):
        say(f"init_from {dict(config.init_from)}")
        state = checkpoints.fill(state, dict(config.init_from))
    return state


def train(program: Program, config: Any, workdir: str, dataset: str, codec: str) -> int:
    """Restore, loop, save; returns the exit code."""
    clock = metrics.Clock()
    order = feed.order(config.data, program.system.fields)
    saved = checkpoints.Checkpoints(workdir, config.train.keep, dataset, config.seed, codec, order, {"config.data.cut": {}})
    with clock("start"):
        state = begin(program, saved, config)
    step, end = int(state["step"]), config.train.steps
    if step >= end:
        say(f"step {step} of {end}: nothing left to train; raise --config.train.steps to go on")
        saved.close()
        return cluster.DONE
    record(workdir, config, dataset, codec, step)
    writer = metrics.Writer(workdir, step, cluster.environment("WANDB_PROJECT"), config.to_dict()) if cluster.is_first() else None
    source = batches(config, program, step)
    say(f"writing to {os.path.abspath(workdir)}: {', '.join(writer.sinks) if writer else 'nothing from this host'}, checkpoints/")
    bar = tqdm(total=end, initial=step, unit="step", disable=not (cluster.is_first() and sys.stderr.isatty()), dynamic_ncols=True)

    halted = program.go()
    window, frames, flops, since, waited, moved = [], 0, 0.0, time.perf_counter(), 0.0, 0.0
    previous: tuple | None = None  # (metrics, batch) of the last step, read while the next one runs
    preempted = False

    def check(last: tuple | None) -> bool:
        """Whether the last step was sound; names the paths if it was not."""
        if last is None or not bool(jax.device_get(last[0]["halted"])):
            return True
        bad, mark = int(state["step"]), os.path.join(workdir, "halted.json")
        if cluster.is_first():
            write_json(mark, {"step": bad, "paths": []})  # before the search for the paths, which takes memory
        paths = steps.diagnose(program.system, config, state, last[1])
        if cluster.is_first():
            write_json(mark, {"step": bad, "paths": paths})
        print(f"error: not finite at step {bad}; the state is as before it. Offending paths:\n  " + "\n  ".join(paths), file=sys.stderr)
        return False

    while step < end and not preempted:
        with clock("data"):
            begun = time.perf_counter()
            local = next(source)
            waited += time.perf_counter() - begun
            batch = meshes.put_batch(program.mesh, local)
            moved += time.perf_counter() - begun
        with clock("compile"):
            begun = time.perf_counter()
            program.compiled(batch)
            since += time.perf_counter() - begun  # not the steps' time
        state, values = program(state, batch, halted)
        if not check(previous):
            return leave(saved, writer, bar, cluster.FAILED)
        step, halted, previous = step + 1, values["halted"], (values, batch)
        window.append(values)
        frames += int(local["frames"].sum()) * jax.process_count() if "frames" in local else 0
        flops += program.flops(batch)
        bar.update()
        preempted = cluster.terminated() or saved.reached_preemption(step)
        ending = step == end or preempted
        if step % config.train.log_every == 0 or ending:
            mean = metrics.mean([{n: v for n, v in m.items() if n != "halted"} for m in jax.device_get(window)])
            if not check(previous):
                return leave(saved, writer, bar, cluster.FAILED)
            seconds = (time.perf_counter() - since) / len(window)
            mean |= {"step_seconds": seconds, "data_seconds": moved / len(window), "data/wait_frac": waited / len(window) / seconds}
            if frames:
                mean["frames_per_second"] = frames / (seconds * len(window))
            if top := metrics.peak(jax.devices()[0].device_kind):
                mean["mfu"] = flops / len(window) / seconds / (top * program.mesh.size)
            if writer:
                writer.write(step, mean)
            say(metrics.line(step, end, mean))
            window, frames, flops, since, waited, moved = [], 0, 0.0, time.perf_counter(), 0.0, 0.0
            if reason := program.system.alarm(mean, step):
                if cluster.is_first():
                    write_json(os.path.join(workdir, "halted.json"), {"step": step, "paths": [], "reason": reason})
                print(f"error: stopped at step {step}, which is not saved: {reason}", file=sys.stderr)
                return leave(saved, writer, bar, cluster.FAILED)
        if step % config.train.save_every == 0 or ending:
            if not check(previous):
                return leave(saved, writer, bar, cluster.FAILED)
            with clock("save"):
                saved.save(state)
    say(clock.summary())
    done = f"done: {step} steps in {os.path.abspath(workdir)}"
    say(f"preempted: saved at step {step}; the same command continues" if preempted else done)
    return leave(saved, writer, bar, cluster.PREEMPTED if preempted else cluster.DONE)


def leave(saved: checkpoints.Checkpoints, writer: metrics.Writer | None, bar: tqdm, code: int) -> int:
    """Finishes every save, closes the files, passes the exit code on."""
    bar.close()
    saved.close()
    if writer:
        writer.close()
    return code


def main(argv: list[str]) -> int:
    del argv
    config = FLAGS.config
    if config is None:
        raise ValueError("--config is missing; for example --config=configs/codec.py:small (see --help)")
    if not FLAGS.dry_run and not FLAGS.workdir:
        raise ValueError("--workdir is missing: the folder to write to (or --dry_run)")
    if "://" in (FLAGS.workdir or ""):
        raise ValueError(f"--workdir={FLAGS.workdir}: mount the bucket (gcsfuse) and give the mounted folder; URLs are not written yet")
    if not FLAGS.dry_run and not config.data.path:
        raise ValueError("config.data.path is empty; make a data set with python -m data_pipelines.synth --out=data/default "
                         "and give --config.data.path=data/default")
    cluster.start(say, preemptible=True)
    system = systems.make(config.system, config.model.to_dict())
    program = Program(config, system, meshes.make_mesh(config.mesh), lambda: systems.rules(meshes.RULES), say)
    describe(program)
    if FLAGS.dry_run:
        program.compiled(program.abstract_batch())
        return cluster.DONE
    codec = weights.codec_of(config, program.system.fields)
    dataset = feed.fingerprint(config.data)
    say(f"data {config.data.path} {dataset}" + (f", codec {codec}" if codec else ""))
    return train(program, config, FLAGS.workdir, dataset, codec)


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
