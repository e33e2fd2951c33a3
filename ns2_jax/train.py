"""Trains one system: a config and a data set in, a run folder out.

    python -m ns2_jax.train --config=configs/codec.py:small --config.data.path=data/default --workdir=runs/codec
    python -m ns2_jax.train --config=configs/naturalspeech2.py:small --config.data.path=data/default \\
        --config.init_from='{"rest/codec": "runs/codec-export"}' --workdir=runs/ns2

The config's argument is a size (smoke | small | base) and variants, `configs/codec.py:small,levels=8`; any field is
also a flag, `--config.train.steps=5000`. The same command again continues from the newest checkpoint: bit for bit on the
same devices, with the same data and within rounding on others. SIGTERM saves and exits with 143: start it again. `--dry_run` builds, compiles and
counts, and writes nothing. On a TPU pod run the same command on every host; a host that dies is noticed by the others, which end with 75.

The run folder holds config.json, run.json (with the seconds of every phase), metrics.jsonl, tensorboard/ (with tensorboardX), checkpoints/,
profile/ (with --profile) and, when it met a number that is not finite, halted.json. One trainer at a time has it.
Exit codes: 0 done, 1 training met a number that is not finite (it says where), 2 the command or a disk is wrong, 75 another host is gone
(134 the first, or one did not come in time) and 143 preempted: start it again.
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
from ns2_jax.runtime import workdir as folder
from ns2_jax.runtime.program import Program
from ns2_jax.systems import system as systems

FLAGS = flags.FLAGS


def define_flags() -> None:
    """When this file is the command; importing it defines none."""
    config_flags.DEFINE_config_file("config", None, "FILE[:argument], as in configs/codec.py:small.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder of the run; made if needed, continued if it has checkpoints.")
    flags.DEFINE_bool("dry_run", False, "Build, compile and count; write and train nothing.")
    flags.DEFINE_string("profile", "", "FIRST:COUNT: the profiler records COUNT steps from FIRST on, on the first host.")
    flags.DEFINE_float("lost_after", 30.0, "Seconds without a sign of life after which another host counts as gone; 0 never.", lower_bound=0)
    flags.DEFINE_float("stuck_after", 900.0, "Seconds in one phase (a step, a batch, a save) after which stacks are dumped; 0 never.", lower_bound=0)


def say(text: str) -> None:
    """A line of the story, from the first host only."""
    if cluster.is_first():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def describe(program: Program) -> None:
    """What will be trained: processes, devices, mesh, parameters per top-level key, FLOPs of a step."""
    shapes, number = program.shapes, lambda tree: f"{states.count(tree):,}"
    work = [f"{program.flops(program.abstract_batch(dict(b))):.3g}" for b in program.config.data.buckets]
    say(f"{jax.process_count()} processes, {program.mesh.size} x {program.mesh.devices.flat[0].device_kind}, mesh {dict(program.mesh.shape)}; "
        f"buckets {[dict(b) for b in program.config.data.buckets]} of {', '.join(work)} FLOPs a step")
    for key, tree in shapes["params"].items():
        say(f"  params/{key}: {number(tree)}")
    say(f"  params {number(shapes['params'])}, rest {number(shapes['rest'])}, state {states.size_bytes(shapes) / 2**20:.1f} MB")


def record(workdir: str, config: Any, dataset: str, codec: str, step: int) -> None:
    """config.json and run.json (this start, and under `starts` the earlier ones); says which fields changed since the last."""
    for line in folder.changes(workdir, config):
        say(f"  {line}")
    if cluster.is_first():
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(workdir, "halted.json"))
        folder.write_json(os.path.join(workdir, "config.json"), folder.plain(config))
        if config.data.get("units") and os.path.abspath(config.data.units) != os.path.abspath(copy := os.path.join(workdir, inference.UNITS)):
            shutil.copyfile(config.data.units, copy)
        path = os.path.join(workdir, "run.json")
        before = json.load(open(path, encoding="utf8")) if os.path.exists(path) else {}
        earlier = before.pop("starts", [])
        folder.write_json(path, {
            **cluster.facts(), "dataset": dataset, "codec": codec, "phones": inference.inventory.inventory_hash(), "seed": config.seed,
            "start_step": step, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "starts": earlier + ([before] if before else [])})


def account(workdir: str, clock: metrics.Clock) -> None:
    """The clock into run.json, so far."""
    path = os.path.join(workdir, "run.json")
    if cluster.is_first() and os.path.exists(path):
        with open(path, encoding="utf8") as f:
            run = json.load(f)
        seconds = {name: round(value, 3) for name, value in clock.report().items()}
        folder.write_json(path, {**run, "seconds": seconds, "goodput": round(clock.goodput(), 4)})


def not_finite(local: dict[str, np.ndarray]) -> list[str]:
    """Which rows of which host's batch are not finite; all hosts must call it."""
    bad = {name: np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1)) for name, x in local.items() if np.issubdtype(x.dtype, np.floating)}
    return cluster.gather([f"batch/{name}: rows {rows.tolist()} of host {jax.process_index() + 1}" for name, rows in bad.items() if len(rows)])


def batches(config: Any, program: Program, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This host's rows of the batches from `start` on."""
    system, parts = program.system, meshes.host_parts(program.mesh)
    return iter(feed.make_feed(
        config.data, system.fields, system.sizes, config.seed, start, parts=parts, inventory=inference.inventory.inventory_hash()))


def begin(program: Program, saved: checkpoints.Checkpoints, config: Any, workdir: str) -> dict:
    """The state to train from."""
    # 1. The run's own newest checkpoint: everything, straight into its shards, nothing initialised.
    if saved.latest() is not None:
        try:
            state = saved.restore(program.target, say=say)
        except checkpoints.Mismatch as error:
            raise checkpoints.Mismatch(f"{error}" + "".join(f"\n  - {line}" for line in folder.changes(workdir, config))) from error
        say(f"resuming from step {int(state['step'])}")
        return state
    # 2. From scratch, on the real first batch, born in its shards ...
    weights.check_borrowed(config, getattr(program.system, "borrowed", {}))
    weights.check_frozen(config, program.target["params"], getattr(program.system, "idle", ()))
    first = meshes.put_batch(program.mesh, next(batches(config, program, 0)))
    state = program.create(first)
    # 3. ... with the parts that other runs or exports give.
    if len(config.init_from):
        say(f"init_from {dict(config.init_from)}")
        state = checkpoints.fill(state, dict(config.init_from), getattr(program.system, "fresh", ()), config.train.frozen)
        differ = folder.changes(whole, config) if (whole := config.init_from.get("params")) else []
        if not any(line.startswith("config.system ") for line in differ):  # a student has its teacher's params, and numbers of its own
            for line in (line for line in differ if line.startswith("config.model.")):
                say(f"not as in {whole}: {line}")
    return state


def train(program: Program, config: Any, workdir: str, dataset: str, codec: str, clock: metrics.Clock, profile: metrics.Profile) -> int:
    """Restore, loop, save; returns the exit code."""
    order = feed.order(config.data, program.system.fields)
    saved = checkpoints.Checkpoints(workdir, config.train.keep, dataset, config.seed, codec, order, {"config.data.cut": {}})
    with clock("restore"):
        state = begin(program, saved, config, workdir)
    step, end = int(state["step"]), config.train.steps
    if step >= end:
        say(f"step {step} of {end}: nothing left to train; raise --config.train.steps to go on")
        saved.close()
        return cluster.DONE
    clock.seconds["lost"] = metrics.lost(workdir, step)
    record(workdir, config, dataset, codec, step)
    writer = metrics.Writer(workdir, step, cluster.environment("WANDB_PROJECT"), config.to_dict()) if cluster.is_first() else None
    source = batches(config, program, step)
    say(f"writing to {os.path.abspath(workdir)}: {', '.join(writer.sinks) if writer else 'nothing from this host'}, checkpoints/")
    bar = tqdm(total=end, initial=step, unit="step", disable=not (cluster.is_first() and sys.stderr.isatty()), dynamic_ncols=True)

    halted = program.go()
    window, frames, flops, since, waited, moved = [], 0, 0.0, time.perf_counter(), 0.0, 0.0
    previous: tuple | None = None  # (metrics, batch, this host's rows) of the last step, read while the next one runs
    preempted = False

    def check(last: tuple | None) -> bool:
        """Whether the last step was sound; names the paths if it was not."""
        if last is None or not bool(jax.device_get(last[0]["halted"])):
            return True
        bad, mark = int(state["step"]), os.path.join(workdir, "halted.json")
        if cluster.is_first():
            folder.write_json(mark, {"step": bad, "paths": []})  # before the search for the paths, which takes memory
        rows, paths = not_finite(last[2]), steps.diagnose(program.system, config, state, last[1])
        if cluster.is_first():
            folder.write_json(mark, {"step": bad, "paths": paths, "rows": rows})
        print(f"error: not finite at step {bad}; the state is as before it. Offending paths:\n  " + "\n  ".join(paths + rows), file=sys.stderr)
        return False

    while step < end and not preempted:
        if line := profile.at(step) if cluster.is_first() else "":
            say(line)
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
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, values = program(state, batch, halted)
        if not check(previous):
            return leave(saved, writer, bar, cluster.FAILED)
        step, halted, previous = step + 1, values["halted"], (values, batch, local)
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
            mean |= {"step_seconds": seconds, "data_seconds": moved / len(window), "data/wait_frac": waited / len(window) / seconds,
                     "time/goodput": clock.goodput()}
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
                    folder.write_json(os.path.join(workdir, "halted.json"), {"step": step, "paths": [], "reason": reason})
                print(f"error: stopped at step {step}, which is not saved: {reason}", file=sys.stderr)
                return leave(saved, writer, bar, cluster.FAILED)
        if step % config.train.save_every == 0 or ending:
            if not check(previous):
                return leave(saved, writer, bar, cluster.FAILED)
            with clock("save"):
                saved.save(state)
            account(workdir, clock)
    with clock("save"):
        saved.wait()
    account(workdir, clock)
    for line in filter(None, (profile.close(), clock.summary())):
        say(line)
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
    profile, watch = metrics.Profile(FLAGS.profile, FLAGS.workdir or ""), None
    clock = metrics.Clock(lambda name: watch and watch.phase(name))
    if not FLAGS.dry_run and not config.data.path:
        raise ValueError("config.data.path is empty; make a data set with python -m data_pipelines.synth --out=data/default "
                         "and give --config.data.path=data/default")
    with clock("init"):
        cluster.start(say, preemptible=True)
        lock = None if FLAGS.dry_run else cluster.together(folder.claim, FLAGS.workdir, cluster.is_first())
        system = systems.make(config.system, config.model.to_dict())
        program = Program(config, system, meshes.make_mesh(config.mesh), lambda: systems.rules(meshes.RULES), say)
        describe(program)
    if FLAGS.dry_run:
        program.compiled(program.abstract_batch())
        return cluster.DONE
    with lock or contextlib.nullcontext(), cluster.watch(FLAGS.lost_after, FLAGS.stuck_after) as watch:
        codec = weights.codec_of(config, program.system.fields)
        dataset = feed.fingerprint(config.data)
        say(f"data {config.data.path} {dataset}" + (f", codec {codec}" if codec else ""))
        return train(program, config, FLAGS.workdir, dataset, codec, clock, profile)


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
