"""Meshes of eight fake devices, and the check that a system computes on each what it computes on one device.

    from tests import meshes

    @pytest.mark.parametrize("wanted", meshes.MESHES, ids=meshes.name)
    def test_mesh(wanted): meshes.check_system(system, batch, wanted)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import jax
import numpy as np

from ns2_jax.runtime import mesh as runtime_mesh
from ns2_jax.systems import system as systems

MESHES = (
    dict(data=8, fsdp=1), dict(fsdp=8), dict(data=2, fsdp=4), dict(data=4, fsdp=1, tensor=2), dict(fsdp=2, tensor=4),
    dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, sequence=2))
"""Seven shapes of eight devices; `batch_sharding` cuts rows into data x fsdp parts, so a batch needs eight rows."""

_EXPECTED: dict[int, tuple] = {}


def name(wanted: Mapping[str, int]) -> str:
    """A readable test id: "fsdp2-tensor4"."""
    return "-".join(f"{axis}{n}" for axis, n in wanted.items() if n > 1)


def _run(system: Any, params: Any, rest: Any, batch: Any, rng: jax.Array, step: Any) -> tuple:
    grads, stats, metrics = system.grads(params, rest, batch, rng, step)
    return grads, stats, metrics, system.update(params, rest, stats, rng, step)


def differences(expected: Any, found: Any) -> dict[str, float]:
    """Per path: largest difference over the largest expected magnitude of the leaf."""
    out = {}
    for (path, e), f in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        e, f = np.asarray(e, np.float64), np.asarray(f, np.float64)
        out[jax.tree_util.keystr(path)] = float(np.abs(e - f).max() / (np.abs(e).max() + 1e-6)) if e.size else 0.0
    return out


def check_system(
    system: Any, batch: Mapping[str, Any], wanted: Mapping[str, int], *, state: tuple[Any, Any] | None = None, step: int = 0,
    tolerance: float = 2e-4,
) -> None:
    """Gradients, statistics, metrics and the next `rest` on the mesh `wanted` equal those of one device.

    Every parameter is cut wherever its names and length allow (the threshold for small arrays is off). `state` is
    (params, rest); by default `system.init` makes it. The comparison is per leaf, relative to its largest value.
    """
    batch = {key: np.asarray(value) for key, value in batch.items()}
    rng, step = jax.random.key(3), np.int32(step)
    params, rest = jax.device_get(state if state is not None else jax.jit(system.init)(jax.random.key(0), batch))
    if id(system) not in _EXPECTED:
        _EXPECTED[id(system)] = system, jax.device_get(jax.jit(lambda *a: _run(system, *a))(params, rest, batch, rng, step))
    expected = _EXPECTED[id(system)][1]
    mesh = runtime_mesh.make_mesh({"data": 1, "fsdp": 1} | dict(wanted))
    with mock.patch.object(runtime_mesh, "SMALL", 0):
        where = runtime_mesh.shardings(mesh, system.axes(batch), (params, rest))
    cut = sum(not s.is_fully_replicated for s in jax.tree.leaves(where))
    assert cut or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1, "no parameter is sharded: the mesh tests nothing"
    rows = runtime_mesh.batch_sharding(mesh)
    with jax.set_mesh(mesh), systems.rules(runtime_mesh.RULES):
        run = jax.jit(lambda *a: _run(system, *a), in_shardings=(*where, rows, None, None))
        found = jax.device_get(run(*jax.device_put((params, rest), where), jax.device_put(batch, rows), rng, step))
    off = {path: value for path, value in differences(expected, found).items() if not value < tolerance}
    assert not off, f"{name(wanted)}: {len(off)} leaves differ, worst {sorted(off.items(), key=lambda x: -x[1])[:5]}"
