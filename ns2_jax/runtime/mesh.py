"""The mesh of devices, and what logical axis names mean on it.

The only file that knows `Mesh`, `PartitionSpec` and the names of mesh axes. Four axes:

    data      copies of the parameters; the only axis that crosses slices (slow network)
    fsdp      shards parameters, moments, averages and the batch: the default for everything
    sequence  cuts activations along time, where it divides their length: for a few rows too long for a chip; parameters are copied along it
    tensor    shards hidden channels, heads and vocabularies

XLA silently multiplies some 1-D convolutions by the size of an axis when time is sharded over one axis while
another one shards channels (jax 0.8.3 to 0.10.2; `tests/runtime/test_mesh.py` keeps the reproduction). Meshes with
both `sequence` and `tensor` larger than one are therefore refused, and `layers.linear.gathered` makes a kernel that fsdp cuts whole where
time is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "sequence", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical name of an axis -> mesh axes. Parameters first, then activations.
RULES: tuple[tuple[str, Any], ...] = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("vocab", "tensor"),
    ("kv", None),
    ("codebook", None),
    ("tap", None),
    ("layers", None),
    ("act_batch", BATCH_AXES),
    ("act_time", "sequence"),
    ("act_mlp", "tensor"),
    ("act_heads", "tensor"),
)

SMALL = 65536  # elements; smaller arrays are replicated, which saves a storm of tiny all-gathers


def sizes(wanted: Mapping[str, int], devices: int) -> dict[str, int]:
    """The size of every axis: `wanted` with its one -1 replaced by what is left of `devices`.

    Raises ValueError for an unknown axis, more than one -1, a product that does not fit, or sequence and tensor
    parallelism together.
    """
    unknown = sorted(set(wanted) - set(AXES))
    if unknown:
        raise ValueError(f"mesh.{unknown[0]} is not a mesh axis; axes are {list(AXES)}")
    found = {axis: int(wanted.get(axis, 1)) for axis in AXES}
    if any(n < 1 and n != -1 for n in found.values()) or list(found.values()).count(-1) > 1:
        raise ValueError(f"mesh={found}: sizes are positive, and at most one is -1 (what is left)")
    if found["sequence"] != 1 and found["tensor"] != 1:
        raise ValueError(
            f"mesh has sequence={found['sequence']} and tensor={found['tensor']}: XLA multiplies convolutions by the "
            "size of the tensor axis on such a mesh; set one of them to 1")
    fixed = math.prod(n for n in found.values() if n != -1)
    if -1 in found.values():
        if devices % fixed:
            raise ValueError(f"mesh={found}: {devices} devices do not divide by {fixed}")
        found = {axis: devices // fixed if n == -1 else n for axis, n in found.items()}
        return sizes(found, devices)
    if fixed > devices:
        raise ValueError(f"mesh={found} needs {fixed} devices, there are {devices}; use -1 for one axis")
    return found


def make_mesh(wanted: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh with axes `AXES` over `devices` (default all), `config.mesh` saying how many each axis takes.

    A mesh smaller than the machine takes the first devices (one host only). With several slices of TPUs the `data` axis
    is the one between them.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(sizes(wanted, len(devices)).values())
    used = math.prod(shape)
    if used < len(devices):
        if len({d.process_index for d in devices}) > 1:
            raise ValueError(f"mesh takes {used} of {len(devices)} devices; on several hosts it must take all (use -1)")
        devices = devices[:used]
    tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if tpu else 1  # on GPUs every host has an index of its own
    if slices > 1:
        if shape[0] % slices:
            raise ValueError(f"mesh.data={shape[0]} must be a multiple of the {slices} slices")
        within = (shape[0] // slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices)
    elif tpu:
        array = mesh_utils.create_device_mesh(shape, devices)  # follows the torus
    else:
        array = np.asarray(devices).reshape(shape)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every array of a batch, over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_mesh(wanted: Mapping[str, int] | None = None) -> Mesh:
    """This process's own devices, for what it computes by itself; or those that `wanted` takes of them, along axes that cut rows.

    Raises ValueError for an axis that does not, and as `sizes`.
    """
    wanted = {"fsdp": -1} if wanted is None else wanted
    if other := sorted(set(wanted) - set(BATCH_AXES)):
        raise ValueError(f"mesh.{other[0]}: what a process computes by itself is cut by rows only, over {' and '.join(BATCH_AXES)}")
    return make_mesh(wanted, jax.local_devices())


def by_rows(mesh: Mesh, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call(params, rest, inputs, seeds)`, jitted, the rows of inputs and seeds cut over the mesh. Every device computes its own rows:
    nothing travels between them, and an independent row is what it would be alone."""
    if mesh.size == 1:
        return jax.jit(call)
    whole, rows = PartitionSpec(), PartitionSpec(BATCH_AXES)
    return jax.jit(jax.shard_map(call, mesh=mesh, in_specs=(whole, whole, rows, rows), out_specs=rows, check_vma=False))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _owners(mesh: Mesh) -> dict[int, set[int]]:
    """Part of the batch -> the hosts that hold it."""
    owners: dict[int, set[int]] = {}
    order = [mesh.axis_names.index(axis) for axis in BATCH_AXES]
    for place, device in np.ndenumerate(mesh.devices):
        part = place[order[0]] * mesh.shape[BATCH_AXES[1]] + place[order[1]]
        owners.setdefault(part, set()).add(device.process_index)
    return owners


def host_parts(mesh: Mesh, host: int | None = None) -> tuple[tuple[int, ...], int]:
    """(the parts of a batch that `host`, default this one, holds, in order; into how many parts a batch is cut)."""
    host = jax.process_index() if host is None else host
    return tuple(sorted(part for part, hosts in _owners(mesh).items() if host in hosts)), batch_shards(mesh)


def check_hosts(mesh: Mesh) -> None:
    """Raises ValueError when two hosts hold the same part of a batch: each reads rows of its own."""
    shared = [hosts for hosts in _owners(mesh).values() if len(hosts) > 1]
    if shared:
        raise ValueError(
            f"hosts {sorted(shared[0])} would hold the same rows of a batch: mesh.sequence and mesh.tensor must stay inside a host; "
            "lower them, or raise mesh.fsdp")


def more_rows(buckets: Sequence[Mapping[str, int]], parts: int) -> tuple[dict[str, int], ...]:
    """`buckets` with the least number of times their rows that can be cut into `parts`."""
    times = math.lcm(*(parts // math.gcd(bucket["b"], parts) for bucket in buckets))
    return tuple({**bucket, "b": times * bucket["b"]} for bucket in buckets)


def check_batches(mesh: Mesh, buckets: Sequence[Mapping[str, int]], micro_batches: int = 1) -> None:
    """Raises ValueError when the rows of a bucket cannot be cut evenly over the mesh and the micro-batches."""
    if micro_batches < 1:
        raise ValueError(f"config.train.micro_batches={micro_batches}, expected 1 or more")
    parts = batch_shards(mesh) * micro_batches
    for rows in (bucket["b"] for bucket in buckets if bucket["b"] % parts):
        raise ValueError(
            f"a bucket has b={rows} rows, which do not divide by {batch_shards(mesh)} batch shards x {micro_batches} micro-batches; change "
            f'config.train.micro_batches, config.mesh or the rows: --config.data.buckets="{more_rows(buckets, parts)}" divide')


def spec(mesh: Mesh, names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """How an array of `shape` born with logical `names` lies on the mesh.

    Replicated when it is small; an axis whose length does not divide, or whose mesh axis is taken, is not cut.
    Raises ValueError for a name outside the vocabulary.
    """
    table = dict(RULES)
    unknown = [name for name in names if name is not None and name not in table]
    if unknown:
        raise ValueError(f"unknown logical axis name {unknown[0]!r}; the vocabulary is {sorted(table)}")
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    taken: set[str] = set()
    parts: list[Any] = []
    for name, length in zip(names, shape, strict=True):
        axes = table.get(name) if name else None
        axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        cut = math.prod(mesh.shape[a] for a in axes)
        free = cut > 1 and length % cut == 0 and not taken & set(axes)
        parts.append((axes if len(axes) > 1 else axes[0]) if free else None)
        taken.update(axes if free else ())
    return PartitionSpec(*parts)


def shardings(mesh: Mesh, names: Any, shapes: Any) -> Any:
    """A NamedSharding per leaf of `shapes` (arrays or ShapeDtypeStructs), from the tree of tuples `names`."""
    return jax.tree.map(lambda leaf, axes: NamedSharding(mesh, spec(mesh, axes, leaf.shape)), shapes, names)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of a batch (numpy; those of `host_parts`, in order) -> global arrays, cut over the mesh."""
    sharding, (parts, total) = batch_sharding(mesh), host_parts(mesh)

    def put(local: np.ndarray) -> jax.Array:
        rows = len(local) // len(parts)  # of a part
        begin = {part * rows: place * rows for place, part in enumerate(parts)}
        piece = lambda index: local[(at := begin[index[0].start or 0]) : at + rows]
        return jax.make_array_from_callback((rows * total, *local.shape[1:]), sharding, piece)

    return {name: put(np.asarray(array)) for name, array in batch.items()}
