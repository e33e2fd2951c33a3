"""Does a config fit a machine you do not have? Compiles its train step for a TPU topology, on any computer.

    python -m ns2_jax.precompile --config=configs/naturalspeech2.py:base --topology=v5e:4x4
    python -m ns2_jax.precompile --config=configs/codec.py:base --topology=v5p:4x4x4 --num_slices=2 --json
    python -m ns2_jax.precompile --config=configs/naturalspeech2.py:base --topology=v5e:4x4 --plan --frames=400000
    python -m ns2_jax.precompile --pod --out=results/performance/precompile.jsonl

Needs `libtpu` (the `tpu` extra) and no TPU; nothing is allocated. The bucket is the largest of config.data.buckets; rows that
cannot be cut over the chips are taken the least number of times that can (`rows_times`), and the flag to train so is printed. Topologies:
v4:2x2x1 v5e:2x2 v5e:4x4 v5p:2x2x1 v5p:4x4x4 v6e:4x4 tpu7x:2x2x1 and larger ones of the same families; `cpu:8` compiles for eight
CPU devices. With several slices `data` becomes a multiple of them: only gradients cross the slow network.

Prints memory of one chip by kind, FLOPs of a step, the collectives (loops counted), compile time, and a bound: the seconds that a step
takes at least by the makers' peaks, whatever overlaps. It is no forecast. What does not fit comes with what would make it fit.
`--plan` picks micro-batches and recomputation for a global batch of `--frames` (default the config's) and says why. `--pod` measures
every config's base on v5p:4x4x4 and on two of them; beside the lines of `--out=FILE.jsonl` it makes their table, FILE.md. Stopped and called
again, it goes on with what FILE.jsonl lacks
(with --config it measures anew; the last line of a config and machine counts). `--json` prints one object: fits, hbm_bytes_per_chip,
hbm_limit_bytes, hbm_by_kind, flops_per_step (analytic), flops_computed_per_step (recomputed ones and judges too), collectives, bound, compile_s,
advice, rows_times, buckets and more.
Exit codes: 0 it fits, 1 it does not, 2 the command is wrong.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from ns2_jax.precompile import chips, fit, plan
from ns2_jax.runtime import cluster
from ns2_jax.runtime import mesh as meshes

FLAGS = flags.FLAGS
POD = (("v5p:4x4x4", 1), ("v5p:4x4x4", 2))


def define_flags() -> None:
    """When this file is the command; importing it defines none."""
    config_flags.DEFINE_config_file("config", None, "FILE[:argument], as in configs/codec.py:base.", lock_config=True)
    flags.DEFINE_string("topology", "v5e:4x4", "Family and shape of a slice, as in v5p:4x4x4; or cpu:N.")
    flags.DEFINE_integer("num_slices", 1, "Slices joined by the data-centre network.", lower_bound=1)
    flags.DEFINE_bool("plan", False, "Find micro-batches and recomputation that fit, and print why.")
    flags.DEFINE_integer("frames", 0, "With --plan: frames of a batch of all chips; 0 keeps the config's rows where they can be cut.", lower_bound=0)
    flags.DEFINE_bool("pod", False, "Every base config, or that of --config, on v5p:4x4x4 and on two of them.")
    flags.DEFINE_string("out", None, "With --pod: a file that each object is added to, one a line; their table is made beside it.")
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else (--pod: one a line).")
    for name, other in (("out", "pod"), ("frames", "plan")):
        flags.register_multi_flags_validator(
            [name, other], lambda given, name=name, other=other: given[other] or not given[name], f"--{name} goes with --{other}")
    flags.register_multi_flags_validator(["plan", "pod"], lambda given: not (given["plan"] and given["pod"]), "--plan and --pod exclude each other")
    flags.register_multi_flags_validator(
        ["pod", "topology", "num_slices"], lambda given: not (given["pod"] and (FLAGS["topology"].present or FLAGS["num_slices"].present)),
        "--pod has machines of its own; leave out --topology and --num_slices")


def over_slices(config: Any, slices: int) -> Any:
    """`config` with one copy of the parameters a slice, unless it says how many."""
    if config.mesh.data == 1 and slices > 1:
        config.mesh.data = slices
    return config


def gib(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**30:.2f} GiB"


def lines(report: dict[str, Any]) -> str:
    """The report for people."""
    text = [
        f"{report['config']} {report['size']}: {report['parameters']:,} parameters on {report['devices']} x {report['device_kind']}"
        + (f" in {report['slices']} slices" if report["slices"] > 1 else "")
        + f", mesh {report['mesh']}, bucket {report['bucket']}, {report['micro_batches']} micro-batches",
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}: {gib(report['hbm_bytes_per_chip'])} of {gib(report['hbm_limit_bytes'])} a chip",
        "  " + ", ".join(f"{kind} {gib(size)}" for kind, size in report["hbm_by_kind"].items()),
        f"{report['flops_per_step']:.3g} FLOPs a step by the model ({report['flops_computed_per_step']:.3g} are computed, recomputation and judges too); "
        f"compiled in {report['compile_s']:.1f} s"]
    if report["bound"]:
        parts = ", ".join(f"{name} {seconds:.3g}" for name, seconds in report["bound"]["parts"].items() if seconds)
        text.append(f"a step takes at least {report['bound']['seconds']:.3g} s, for {report['bound']['by']} ({parts}): a lower bound by the makers' "
                    f"peaks, no forecast; so MFU is at most {100 * report['bound']['mfu_at_most']:.0f} %")
    if report.get("rows_times", 1) > 1:
        text.append(f"  {report['rows_times']} times the config's rows, which cannot be cut over so many chips; train with "
                    f'--config.data.buckets="{tuple(report["buckets"])}"')
    for title, found in (("", report["collectives"]), ("between slices, ", report.get("collectives_between_slices", {}))):
        text += [f"  {title}{kind}: {n['count']} a step, {n['bytes'] / 2**20:.1f} MiB together" for kind, n in found.items()]
    text += [f"would make it fit (estimate; --plan compiles to be sure): {line}" for line in report.get("advice", ())]
    return "\n".join(text)


HEAD = ("", "machine", "mesh", "bucket", "micro-batches", "parameters", "memory a chip", "of it, in GiB", "PFLOP a step",
        "a step takes at least, s", "for", "collectives in a slice, MiB", "between slices", "compiled in, s")


def table(reports: Iterable[dict[str, Any]]) -> str:
    """Reports as Markdown, the last of each config and machine."""
    last = {(r["config"], r["size"], r["topology"], r["slices"]): r for r in reports}
    few = lambda number: f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
    mib = lambda found: few(sum(n["bytes"] for n in found.values()) / 2**20)
    shown = lambda sizes, least: " ".join(f"{name}={n}" for name, n in sizes.items() if n > least)
    rows = [HEAD, ("---",) * len(HEAD)]
    for r in last.values():
        bound = r["bound"] or {"seconds": float("nan"), "by": "unknown"}
        rows.append((
            f"{r['config']} {r['size']}", (f"{r['slices']} x " if r["slices"] > 1 else "") + r["topology"], shown(r["mesh"], 1),
            shown(r["bucket"], 0), str(r["micro_batches"]), f"{r['parameters'] / 1e6:.1f} M",
            f"{gib(r['hbm_bytes_per_chip'])} of {gib(r['hbm_limit_bytes'])}" + ("" if r["fits"] else ", does not fit"),
            ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in r["hbm_by_kind"].items() if size >= 2**30 / 200),
            f"{r['flops_per_step'] / 1e15:.3g}", f"{bound['seconds']:.3g}", bound["by"].replace("_", " "),
            mib(r["collectives"]), mib(r.get("collectives_between_slices", {})), f"{r['compile_s']:.0f}"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def one(config: Any, topology: str, slices: int) -> dict[str, Any]:
    """The report of one config, with more rows where its own cannot be cut over so many chips, and advice."""
    shards = meshes.batch_shards(meshes.make_mesh(over_slices(config, slices).mesh, chips.devices(topology, slices)))
    own, config.data.buckets = config.data.buckets, meshes.more_rows(config.data.buckets, shards * config.train.micro_batches)
    report = fit.measure(config, topology, slices)
    return report | {"advice": fit.advice(report, config), "rows_times": config.data.buckets[0]["b"] // own[0]["b"],
                     "buckets": list(map(dict, config.data.buckets))}


def bases() -> Iterator[Any]:
    """Every config of configs/ in its size base."""
    for name in sorted(os.listdir("configs")):
        if name.endswith(".py") and name not in ("__init__.py", "common.py"):
            yield importlib.import_module(f"configs.{name[:-3]}").get_config("base")


def kept(path: str | None) -> list[dict[str, Any]]:
    """The objects of `--out` so far."""
    if not path or not os.path.exists(path):
        return []
    with open(path, encoding="utf8") as f:
        return list(map(json.loads, f))


def pod(config: Any | None) -> int:
    """Prints and keeps the reports of POD; whether all fit."""
    fits, versions = True, {name: cluster.facts()["versions"][name] for name in ("jax", "libtpu")}
    have = {} if config is not None else {(r["config"], r["size"], r["topology"], r["slices"]): r for r in kept(FLAGS.out)}
    for base in [config] if config is not None else list(bases()):
        for topology, slices in POD:
            report = have.get((base.system, base.size, topology, slices))
            if again := report is None:
                report = one(copy.deepcopy(base), topology, slices) | {"versions": versions}
            fits &= report["fits"]
            print(json.dumps(report) if FLAGS.json else lines(report), flush=True)
            if FLAGS.out and again:
                os.makedirs(os.path.dirname(FLAGS.out) or ".", exist_ok=True)
                with open(FLAGS.out, "a", encoding="utf8") as f:
                    f.write(json.dumps(report) + "\n")
                with open(f"{os.path.splitext(FLAGS.out)[0]}.md", "w", encoding="utf8") as f:
                    f.write(table(kept(FLAGS.out)))
    return cluster.DONE if fits else cluster.FAILED


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.config is None and not FLAGS.pod:
        raise ValueError("--config is missing; for example --config=configs/codec.py:base (see --help)")
    cluster.pretend(chips.cpus(FLAGS.topology) or 1)
    if FLAGS.pod:
        return pod(FLAGS.config)
    if FLAGS.plan:
        say = (lambda line: None) if FLAGS.json else (lambda line: print(line, flush=True))
        found = plan.search(over_slices(FLAGS.config, FLAGS.num_slices), FLAGS.topology, FLAGS.num_slices, FLAGS.frames, say)
        print(json.dumps(found) if FLAGS.json else lines(found["report"]) + ("\nuse " + " ".join(found["flags"]) if found["fits"] else
              "\nnothing that was tried fits: take a larger topology, or fewer --frames"))
        return cluster.DONE if found["fits"] else cluster.FAILED
    report = one(FLAGS.config, FLAGS.topology, FLAGS.num_slices)
    print(json.dumps(report) if FLAGS.json else lines(report))
    return cluster.DONE if report["fits"] else cluster.FAILED


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
