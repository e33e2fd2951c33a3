"""Which micro-batches and which recomputation a config needs on a topology for a global batch of so many frames: compiles until it knows.

Recomputation comes in levels: none, the config's own, everything (each only where the model has numbers called `remat`). For every level
the fewest micro-batches that fit are found; of those the one with the lowest bound on its step wins, the one with less recomputation when
they are equal. A level whose products alone take longer than the best bound is not compiled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from ns2_jax.precompile import chips, fit
from ns2_jax.runtime import flops
from ns2_jax.runtime import mesh as meshes

MOST = 4  # compilations of a level
OFF = 0.125  # of the frames wanted: how far a batch may be from them


def levels(config: Any) -> dict[str, dict[str, Any]]:
    """Name of a level -> its settings of config.model, from least to most computed again; levels that are the same come once."""
    fields = fit.remat_fields(config.model)
    none = {path: False if isinstance(value, bool) else () for path, value, _ in fields}
    found: dict[str, dict[str, Any]] = {}
    for name, settings in (("none", none), ("the config's", {path: value for path, value, _ in fields}),
                           ("all", {path: full for path, _, full in fields})):
        if settings not in found.values():
            found[name] = settings
    return found if fields else {"the config's": {}}


def changed(config: Any, settings: dict[str, Any], buckets: list[dict[str, int]], micro: int) -> Any:
    """A copy of `config` with settings of config.model, buckets and micro-batches."""
    new = copy.deepcopy(config)
    with new.unlocked():
        for path, value in settings.items():
            *parents, name = path.split(".")
            node = new.model
            for parent in parents:
                node = node[parent]
            node[name] = value
        new.data.buckets = tuple(buckets)
        new.train.micro_batches = micro
    return new


def rows(config: Any, shards: int, frames: int, micro: int) -> list[dict[str, int]] | None:
    """The buckets with as many rows as make `frames` frames a batch; None where some batch would be more than OFF from them, or where
    without `frames` the config's rows (more of them where those cannot be cut over the chips) do not divide."""
    if not frames:
        own = meshes.more_rows(config.data.buckets, shards * config.train.micro_batches)  # as without a plan
        return None if any(bucket["b"] % (shards * micro) for bucket in own) else list(own)
    found = []
    for bucket in map(dict, config.data.buckets):
        b = shards * micro * max(1, round(frames / (bucket.get("t", 1) * shards * micro)))
        if abs(b * bucket.get("t", 1) / frames - 1) > OFF:
            return None
        found.append({**bucket, "b": b})
    return found


def search(config: Any, topology: str, slices: int = 1, frames: int = 0, say: Callable[[str], None] = lambda line: None,
           measure: Callable[..., dict[str, Any]] = fit.measure) -> dict[str, Any]:
    """`{"fits", "choice", "flags", "why", "report"}`; every attempt is told to `say`. Raises ValueError when no batch of so many frames
    can be cut over the mesh."""
    mesh = meshes.make_mesh(config.mesh, chips.devices(topology, slices))
    shards, chip = meshes.batch_shards(mesh), chips.chip(topology)
    if chip is None:
        raise ValueError(f"--topology={topology}: a plan needs a chip whose memory is known, as in v5e:4x4")
    counts = [m for m in (2**i for i in range(12)) if rows(config, shards, frames, m)]
    if not counts:
        t = max(bucket.get("t", 1) for bucket in config.data.buckets)
        raise ValueError(f"--frames={frames}: no number of rows is within {OFF:.1%} of it: {shards} batch shards hold at least one row each, "
                         f"{shards * t} frames in the longest bucket; give more frames, or another mesh or topology")
    why: list[str] = []
    best: dict[str, Any] | None = None

    def tell(line: str) -> None:
        why.append(line)
        say(line)

    for level, settings in levels(config).items():
        new = changed(config, settings, rows(config, shards, frames, counts[0]), counts[0])
        program = fit.make(new, topology, slices)
        compute = flops.count(program.trace(program.abstract_batch()).jaxpr) / mesh.size / chip.flops
        if best and compute >= best["report"]["bound"]["seconds"]:
            tell(f"recomputing {level}: its products alone take {compute:.3g} s, more than the bound {best['report']['bound']['seconds']:.3g} s "
                 "found: not compiled")
            continue
        micro, tried = counts[0], 0
        while micro is not None and tried < MOST:
            report = measure(changed(config, settings, rows(config, shards, frames, micro), micro), topology, slices)
            tried += 1
            needed = report["hbm_bytes_per_chip"]
            about = f"recomputing {level}, {micro} micro-batch{'es' if micro > 1 else ''}: " + (
                f"{needed / 2**30:.2f} of {chip.memory / 2**30:.0f} GiB a chip" if needed else "more memory than the compiler could count")
            if report["fits"]:
                tell(f"{about}, fits; a step takes at least {report['bound']['seconds']:.3g} s, for {report['bound']['by']}")
                if best is None or report["bound"]["seconds"] < 0.995 * best["report"]["bound"]["seconds"]:
                    best = {"level": level, "settings": settings, "micro": micro, "report": report}
                break
            micro = following(report, counts, micro)
            tell(f"{about}, does not fit" + (f"; trying {micro}" if micro and tried < MOST else ""))
    if best is None:
        return {"fits": False, "choice": None, "flags": [], "why": why, "report": report}
    buckets = rows(config, shards, frames, best["micro"])
    choice = {"micro_batches": best["micro"], "remat": {path: list(v) if isinstance(v, tuple) else v for path, v in best["settings"].items()},
              "recompute": best["level"], "buckets": buckets, "frames": [b["b"] * b.get("t", 1) for b in buckets]}
    words = [f"--config.train.micro_batches={best['micro']}"]
    words += [f"--config.model.{path}={best['settings'][path]!r}" for path, value, _ in fit.remat_fields(config.model)
              if best["settings"][path] != value]
    if buckets != list(map(dict, config.data.buckets)):
        words.append(f"--config.data.buckets={tuple(buckets)!r}")
    tell(f"chosen: recomputing {best['level']}, {best['micro']} micro-batch{'es' if best['micro'] > 1 else ''}: the lowest bound of what fits")
    return {"fits": True, "choice": choice, "flags": words, "why": why, "report": best["report"]}


def following(report: dict[str, Any], counts: list[int], micro: int) -> int | None:
    """The next number of micro-batches to try: what the memory beside the state suggests, at least one more; None when there is none."""
    needed, limit, state = report["hbm_bytes_per_chip"], report["hbm_limit_bytes"], report["state_bytes_per_chip"]
    later = [m for m in counts if m > micro]
    if not later or state >= limit:
        return None
    if not needed:
        return later[0]
    enough = micro * math.ceil((needed - state) / (limit - state))
    return next((m for m in later if m >= enough), later[-1])
