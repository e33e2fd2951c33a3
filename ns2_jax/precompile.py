"""Does a config fit a machine you do not have? Compiles its train step for a TPU topology, on any computer.

    python -m ns2_jax.precompile --config=configs/naturalspeech2.py:base --topology=v5e:4x4
    python -m ns2_jax.precompile --config=configs/codec.py:base --topology=v5p:4x4x4 --slices=2 --config.mesh.data=2 --json

Needs `libtpu` (the `tpu` extra) and no TPU; nothing is allocated. The bucket is the largest of config.data.buckets.
Topologies: v4:2x2x1 v5e:2x2 v5e:4x4 v5p:2x2x1 v5p:4x4x4 v6e:4x4 tpu7x:2x2x1 and larger ones of the same
families; `cpu:8` compiles for eight CPU devices. Prints memory and collectives of one chip, FLOPs of one step and the
compile time; `--json` prints one object. Loop bodies (scanned layers, micro-batches) count once in `collectives`.
Exit codes: 0 it fits, 1 it does not, 2 the command is wrong.
"""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from ns2_jax.runtime import cluster, metrics
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state as states
from ns2_jax.runtime.program import Program
from ns2_jax.systems import system as systems

FLAGS = flags.FLAGS


def define_flags() -> None:
    """When this file is the command; importing it defines none."""
    config_flags.DEFINE_config_file("config", None, "FILE[:argument], as in configs/codec.py:base.", lock_config=True)
    flags.DEFINE_string("topology", "v5e:4x4", "Family and shape of a slice, as in v5p:4x4x4; or cpu:N.")
    flags.DEFINE_integer("slices", 1, "Slices joined by the data-centre network; config.mesh.data must be a multiple.")
    flags.DEFINE_bool("json", False, "Print one JSON object and nothing else.")


# High-bandwidth memory of one device that a program may use, bytes (the compiler's own limits).
HBM = {"v4": 32 << 30, "v5e": 16 << 30, "v5p": 95 << 30, "v6e": 32 << 30, "tpu7x": 96 << 30}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def topology_devices(name: str, slices: int) -> list[Any]:
    """The devices of a topology. Raises ValueError for a name that does not exist, or without libtpu."""
    family, _, shape = name.partition(":")
    if family == "cpu":
        return jax.devices("cpu")
    if family not in HBM or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(f"--topology={name} is not FAMILY:SHAPE; families are {sorted(HBM)} (and cpu), a shape looks like 4x4 or 4x4x4")
    options = {"num_slices": slices} if slices > 1 else {}
    if family == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except Exception as error:  # pylint: disable=broad-except
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--topology={name}: the TPU compiler refuses it, or libtpu is not installed (pip install 'ns2_jax[tpu]'): {reason}") from error


def array_bytes(text: str, largest: bool = False) -> int:
    """Bytes of the arrays in an HLO shape, or of the largest: `(f32[4]{0}, f32[16]{0})` -> 80, or 64."""
    arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", text)
    sizes = [math.prod(int(n) for n in dims.split(",") if n) * BYTES.get(kind, 4) for kind, dims in arrays]
    return max(sizes, default=0) if largest else sum(sizes)


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """`{"all-gather": {"count": 3, "bytes": 4096}}`: bytes are those of the results, of one device."""
    found = {kind: {"count": 0, "bytes": 0} for kind in KINDS}
    for line in hlo.splitlines():
        if match := re.search(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(", line):
            shape, kind, start = match.groups()
            found[kind]["count"] += 1
            found[kind]["bytes"] += array_bytes(shape, largest=bool(start) and kind != "all-reduce")
    return {kind: numbers for kind, numbers in found.items() if numbers["count"]}


def measure(config: Any, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the train step of `config` for `topology`; what `--json` prints.

    Raises ValueError when the config cannot be laid out on it (mesh, batch).
    """
    devices = topology_devices(topology, slices)
    mesh = meshes.make_mesh(config.mesh, devices)
    program = Program(config, systems.make(config.system, config.model.to_dict()), mesh, lambda: systems.rules(meshes.RULES))
    batch = program.abstract_batch()
    limit = HBM.get(topology.partition(":")[0])
    shard = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype), program.shapes, program.where)
    report: dict[str, Any] = {
        "config": config.system, "size": config.size, "topology": topology, "slices": slices, "devices": mesh.size,
        "device_kind": devices[0].device_kind, "mesh": dict(mesh.shape), "bucket": program.bucket,
        "parameters": states.count(program.shapes["params"]), "state_bytes_per_chip": states.size_bytes(shard),
        "flops_per_step": program.flops(batch), "hbm_limit_bytes": limit}
    begin = time.perf_counter()
    try:
        executable = program.lower(batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        used = re.search(r"[Uu]sed ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", str(error))
        unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
        needed = int(float(used[1]) * unit[used[2]]) if used else None
        return report | {"fits": False, "hbm_bytes_per_chip": needed, "collectives": {}, "compile_s": round(time.perf_counter() - begin, 2)}
    seconds = time.perf_counter() - begin
    plan = executable.memory_analysis()
    needed = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    needed += plan.generated_code_size_in_bytes
    return report | {
        "fits": limit is None or needed <= limit, "hbm_bytes_per_chip": needed, "temporary_bytes_per_chip": plan.temp_size_in_bytes,
        "collectives": collectives(executable.as_text()), "compile_s": round(seconds, 2)}


def lines(report: dict[str, Any]) -> str:
    """The report for people."""
    gib = lambda n: "unknown" if n is None else f"{n / 2**30:.2f} GiB"
    text = [
        f"{report['config']} {report['size']}: {report['parameters']:,} parameters on {report['devices']} x {report['device_kind']}, "
        f"mesh {report['mesh']}, bucket {report['bucket']}",
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}: {gib(report['hbm_bytes_per_chip'])} of {gib(report['hbm_limit_bytes'])} a chip "
        f"(state {gib(report['state_bytes_per_chip'])})",
        f"{report['flops_per_step']:.3g} FLOPs a step; compiled in {report['compile_s']:.1f} s"]
    if peak := metrics.peak(report["device_kind"]):
        text.append(f"{report['flops_per_step'] / (0.4 * peak * report['devices']):.3g} s a step if it reached 40 % of the peak")
    text += [f"  {kind}: {n['count']} of {n['bytes'] / 2**20:.1f} MiB together" for kind, n in report["collectives"].items()]
    return "\n".join(text)


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.config is None:
        raise ValueError("--config is missing; for example --config=configs/codec.py:base (see --help)")
    family, _, count = FLAGS.topology.partition(":")
    cluster.pretend(int(count) if family == "cpu" and count.isdigit() else 1)
    report = measure(FLAGS.config, FLAGS.topology, FLAGS.slices)
    print(json.dumps(report) if FLAGS.json else lines(report))
    return cluster.DONE if report["fits"] else cluster.FAILED


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
