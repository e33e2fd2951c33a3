"""Compiles the train step of a config for a topology: memory by kind, collectives, and a bound on the seconds of a step."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from ns2_jax.precompile import chips, hlo
from ns2_jax.runtime import flops
from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import state as states
from ns2_jax.runtime.program import Program
from ns2_jax.systems import system as systems

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def shard_bytes(shapes: Any, where: Any) -> int:
    """Bytes of a tree on one device."""
    return states.size_bytes(jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype), shapes, where))


def make(config: Any, topology: str, slices: int = 1) -> Program:
    """What would be compiled. Raises ValueError when the config cannot be laid out on the topology (mesh, batch)."""
    mesh = meshes.make_mesh(config.mesh, chips.devices(topology, slices))
    return Program(config, systems.make(config.system, config.model.to_dict()), mesh, lambda: systems.rules(meshes.RULES))


def wanted(text: str, arguments: int) -> tuple[int | None, int | None]:
    """(bytes of a chip that a program would need, bytes that there are) from the words in which the compiler refuses it; None where it does not
    say. `arguments` are the bytes of state and batch, which one of its messages leaves out."""
    size = r"([\d.]+)([KMGT]?)"
    whole, temporary = re.search(rf"[Uu]sed {size} of {size} hbm", text), re.search(rf"\({size}\) exceeds available HBM \({size}\)", text)
    if not (found := whole or temporary):
        return None, None
    needed, available = (int(float(found[i]) * UNITS[found[i + 1]]) for i in (1, 3))
    return needed + (0 if whole else arguments), available


def measure(config: Any, topology: str, slices: int = 1) -> dict[str, Any]:
    """Compiles the train step of `config` for `topology`, its largest bucket; what `--json` prints. Raises ValueError as `make`."""
    program = make(config, topology, slices)
    batch, chip, mesh = program.abstract_batch(), chips.chip(topology), program.mesh
    kinds = {key: shard_bytes(program.shapes[key], program.where[key]) for key in ("params", "opt", "ema", "rest")}
    kinds["batch"] = sum(states.size_bytes(x) for x in jax.tree.leaves(batch)) // meshes.batch_shards(mesh)
    limit = chip.memory if chip else None
    begin = time.perf_counter()
    traced = program.trace(batch)
    report: dict[str, Any] = {
        "config": config.system, "size": config.size, "topology": topology, "slices": slices, "devices": mesh.size,
        "device_kind": mesh.devices.flat[0].device_kind, "mesh": dict(mesh.shape), "bucket": program.bucket,
        "micro_batches": config.train.micro_batches, "parameters": states.count(program.shapes["params"]),
        "state_bytes_per_chip": sum(kinds[key] for key in ("params", "opt", "ema", "rest")), "hbm_limit_bytes": limit,
        "flops_per_step": program.flops(batch), "flops_computed_per_step": flops.count(traced.jaxpr)}
    try:
        executable = program.lower(batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        needed, available = wanted(str(error), sum(kinds.values()))
        if needed:
            kinds["temporary"] = max(needed - sum(kinds.values()), 0)
            report["hbm_limit_bytes"] = available  # the compiler keeps some of the memory for itself
        return report | {"fits": False, "hbm_bytes_per_chip": needed, "hbm_by_kind": kinds, "collectives": {}, "bound": None,
                         "compile_s": round(time.perf_counter() - begin, 2)}
    plan = executable.memory_analysis()
    seconds = time.perf_counter() - begin
    needed = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    needed += plan.generated_code_size_in_bytes
    kinds |= {"temporary": plan.temp_size_in_bytes, "code": plan.generated_code_size_in_bytes}
    kinds["padding"] = needed - sum(kinds.values())  # what tiles and the outputs that are not the arguments' add
    found = list(hlo.collectives(executable.as_text(), mesh.size, slices))
    within, between = ([one for one in found if one.between is outside] for outside in (False, True))
    report |= {"fits": limit is None or needed <= limit, "hbm_bytes_per_chip": needed, "hbm_by_kind": kinds,
               "temporary_bytes_per_chip": plan.temp_size_in_bytes, "collectives": hlo.summary(within), "compile_s": round(seconds, 2)}
    if slices > 1:
        report["collectives_between_slices"] = hlo.summary(between)
    sent = [sum(one.times * one.sent() for one in some) for some in (within, between)]
    return report | {"bound": bound(report, chip, *sent) if chip else None}


def bound(report: Mapping[str, Any], chip: chips.Chip, within: float, between: float) -> dict[str, Any]:
    """The least seconds a step can take, if everything overlapped and every part ran at its peak: a bound, never a forecast.

    compute: matrix products and convolutions, recomputed ones too, at the bfloat16 peak. memory: state and batch read once, the state
    written once, temporary memory written and read once for each micro-batch. network: `within` bytes that a device sends inside its
    slice and `between` bytes that it sends to other slices (not bounded where the rate is unknown).
    """
    kinds = report["hbm_by_kind"]
    traffic = 2 * report["state_bytes_per_chip"] + kinds["batch"] + 2 * kinds["temporary"] * report["micro_batches"]
    parts = {"compute": report["flops_computed_per_step"] / report["devices"] / chip.flops, "memory": traffic / chip.memory_rate,
             "network": within / chip.slice_rate, "between_slices": between / chip.centre_rate if chip.centre_rate else 0.0}
    longest = max(parts, key=parts.get)
    return {"is": "a lower bound, not a forecast", "seconds": parts[longest], "by": longest,
            "mfu_at_most": min(1.0, report["flops_per_step"] / report["devices"] / chip.flops / parts[longest]), "parts": parts}


def advice(report: Mapping[str, Any], config: Any, margin: float = 0.95) -> list[str]:
    """What would make a step fit that does not, in the words of the command line: estimates from its memory by kind. Never empty for one."""
    limit, needed = report["hbm_limit_bytes"], report["hbm_bytes_per_chip"]
    if report["fits"] or not limit:
        return []
    if not needed:
        return ["more --config.train.micro_batches or a larger slice: the compiler did not say how much memory it wanted; --plan tries"]
    state, shards = report["state_bytes_per_chip"], report["mesh"]["data"] * report["mesh"]["fsdp"]
    batch = report["hbm_by_kind"]["batch"]  # is there as a whole, like the state
    room = margin * limit - state - batch
    found = []
    most = min(bucket["b"] for bucket in config.data.buckets) // shards
    counts = [m for m in range(report["micro_batches"], most + 1) if all(b["b"] % (shards * m) == 0 for b in config.data.buckets)]
    whole = (needed - state - batch) * report["micro_batches"]
    if micro := next((m for m in counts[1:] if whole / m <= room), 0):
        found.append(f"--config.train.micro_batches={micro} (activations of {report['micro_batches']}/{micro} of the rows at a time)")
    elif counts and report["mesh"]["sequence"] == report["mesh"]["tensor"] == 1:
        for cut in (2, 4, 8):
            left = room - (cut - 1) * batch  # of as many more rows
            if shards % cut == 0 and whole / counts[-1] / cut <= left and all(b.get("t", 1) % cut == 0 for b in config.data.buckets):
                found.append(f"--config.mesh.sequence={cut} --config.train.micro_batches={counts[-1] * cut} (1/{cut} of the time of as many rows)")
                break
    for path, value, full in remat_fields(config.model):
        if value != full:
            found.append(f"--config.model.{path}={full!r} (computes activations again)")
    if report["mesh"]["data"] > report["slices"]:
        found.append("--config.mesh.data=%d --config.mesh.fsdp=-1 (state of %.2f GiB a chip cut over more chips)" % (
            report["slices"], state / 2**30))
    for times in (2, 4, 8, 16):
        if needed / times <= margin * limit:
            found.append(f"a slice of {times * report['devices']} chips, with mesh.fsdp over all of them")
            break
    return found or [
        f"nothing of mesh, micro-batches, recomputation and 16 times the chips by itself: {needed / limit:.3g} times the memory is wanted, "
        f"{state / limit:.3g} times for the state alone; shorten the buckets (config.data.buckets) or take a smaller config.model"]


def remat_fields(model: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(path, value, value for computing everything again) of every number called `remat` in config.model."""
    found: list[tuple[str, Any, Any]] = []
    for name, value in model.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            found += remat_fields(value, f"{prefix}{name}.")
        elif name == "remat":
            found.append((prefix + name, value, True if isinstance(value, bool) else ("nothing",)))
    return found
