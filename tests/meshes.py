"""Meshes of eight fake devices, and the check that a system computes on each what it computes on one device.

    from tests import meshes

    meshes.check_system(system, params, rest, batch, rng)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np

from ns2_jax.runtime import mesh as runtime_mesh
from ns2_jax.systems import system as systems

MESHES = (
    dict(data=8, fsdp=1), dict(fsdp=8), dict(data=2, fsdp=4), dict(fsdp=2, tensor=4),
    dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, sequence=2))
"""Six shapes of eight devices; `batch_sharding` cuts rows into data x fsdp parts, so a batch needs eight rows."""

checked = MESHES[1], MESHES[4], MESHES[5]
"""Each axis once; `tests/conftest.py` makes it all six with --slow."""


FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""What is proved is how arrays are cut and gathered, which is settled before code is generated: half the time of compiling."""


def compiled(call: Any, *args: Any) -> Any:
    """A jitted `call` compiled for `args` in little time."""
    return call.lower(*args).compile(compiler_options=FAST)


def name(wanted: Mapping[str, int]) -> str:
    """A readable name: "fsdp2-tensor4"."""
    return "-".join(f"{axis}{n}" for axis, n in wanted.items() if n > 1)


def _run(system: Any, params: Any, rest: Any, batch: Any, rng: jax.Array, step: Any) -> tuple:
    grads, stats, metrics = system.grads(params, rest, batch, rng, step)
    return grads, stats, metrics, system.update(params, rest, stats, rng, step)


def differences(expected: Any, found: Any) -> dict[str, float]:
    """Per path: largest difference over the largest expected magnitude of the leaf; of a parameter of one number, which is one sum and may
    cancel to nearly nothing, over a hundredth of the largest among its layer's if that is more."""
    leaves = [(path, np.asarray(e, np.float64)) for path, e in jax.tree_util.tree_leaves_with_path(expected)]
    layers: dict[tuple, float] = {}
    for path, e in leaves:
        layers[path[:-1]] = max(layers.get(path[:-1], 0.0), np.abs(e).max(initial=0.0))
    out = {}
    for (path, e), f in zip(leaves, jax.tree.leaves(found), strict=True):
        scale = max(np.abs(e).max(initial=0.0), layers[path[:-1]] / 100 * (e.shape == (1,))) + 1e-6
        out[jax.tree_util.keystr(path)] = float(np.abs(e - np.asarray(f, np.float64)).max(initial=0.0) / scale)
    return out


def check_system(
    system: Any, params: Any, rest: Any, batch: Mapping[str, Any], rng: jax.Array, *, step: int = 0,
    meshes: Sequence[Mapping[str, int]] = (), tolerance: float = 2e-4,
) -> None:
    """Gradients, statistics, metrics and the next `rest` on every mesh (`checked` if none is given) equal those of one device.

    Every parameter is cut wherever its names and length allow (the threshold for small arrays is off). The
    comparison is per leaf, relative to the leaf's largest value.
    """
    batch = {key: np.asarray(value) for key, value in batch.items()}
    params, rest, step = jax.device_get(params), jax.device_get(rest), np.int32(step)
    given = (params, rest, batch, rng, step)
    expected = jax.device_get(compiled(jax.jit(lambda *a: _run(system, *a)), *given)(*given))
    names = system.axes(batch)
    for wanted in meshes or checked:
        mesh = runtime_mesh.make_mesh({"data": 1, "fsdp": 1} | dict(wanted))
        with mock.patch.object(runtime_mesh, "SMALL", 0):
            where = runtime_mesh.shardings(mesh, names, (params, rest))
        cut = sum(not s.is_fully_replicated for s in jax.tree.leaves(where))
        assert cut or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1, f"{name(wanted)}: no parameter is sharded, nothing is tested"
        rows = runtime_mesh.batch_sharding(mesh)
        with jax.set_mesh(mesh), systems.rules(runtime_mesh.RULES):
            run = jax.jit(lambda *a: _run(system, *a), in_shardings=(*where, rows, None, None))
            given = (*jax.device_put((params, rest), where), jax.device_put(batch, rows), rng, step)
            found = jax.device_get(compiled(run, *given)(*given))
        off = {path: value for path, value in differences(expected, found).items() if not value < tolerance}
        assert not off, f"{name(wanted)}: {len(off)} leaves differ, worst {sorted(off.items(), key=lambda x: -x[1])[:5]}"
