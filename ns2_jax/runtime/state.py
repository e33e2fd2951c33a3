"""The state of a run: `{"step", "params", "rest", "opt", "ema"}`, plain dicts of arrays.

`params` are trained, `rest` is checkpointed but not optimised (codebooks, statistics, a frozen codec), `opt` is
optax's, `ema` the average of the params with which everything is evaluated and exported. Everything here works on
shapes first, so that no array is ever made in the wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.runtime import mesh as meshes

Tree = Any
KEYS = ("step", "params", "rest", "opt", "ema")


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """`{"params/gen/conv/kernel": leaf}`, in the order of the tree."""
    def part(key: Any) -> str:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                return str(getattr(key, attribute))
        raise TypeError(f"a tree with {key!r} in a path is not a state")

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {prefix + "/".join(part(k) for k in path): leaf for path, leaf in leaves}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def count(tree: Tree) -> int:
    """How many numbers a tree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size_bytes(tree: Tree) -> int:
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def bucket_sizes(bucket: Mapping[str, int], constants: Mapping[str, int], hop: int) -> dict[str, int]:
    """Axis letter -> length under one bucket: its own letters, the system's, and samples: `s` of t frames, `v` of u prompt frames."""
    letters = {**constants, **bucket}
    return {samples: letters[frames] * hop for samples, frames in (("s", "t"), ("v", "u")) if frames in letters} | letters


def largest(buckets: Any) -> dict[str, int]:
    """The bucket that needs most memory: frames `b * t`, each meeting `p` phones and `u` prompt frames. Raises ValueError
    when there is none."""
    if not buckets:
        raise ValueError("config.data.buckets is empty; give at least one, as in [dict(b=8, t=64)]")
    return max((dict(b) for b in buckets), key=lambda b: b["b"] * b.get("t", 1) * (1000 + b.get("p", 0) + b.get("u", 0)))


def initialise(system: Any, optimiser: Any, rng: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, Tree]:
    """A new state from the real first batch. The average starts as the params."""
    params, rest = system.init(rng, batch)
    return {
        "step": jnp.zeros((), jnp.int32), "params": params, "rest": rest,
        "opt": optimiser.init(params), "ema": jax.tree.map(jnp.copy, params)}


def abstract(system: Any, optimiser: Any, batch: Mapping[str, Any]) -> dict[str, Tree]:
    """The shapes of `initialise`, allocating nothing. `batch` may be ShapeDtypeStructs."""
    return jax.eval_shape(lambda rng, b: initialise(system, optimiser, rng, b), jax.random.key(0), dict(batch))


def shardings(mesh: Any, system: Any, shapes: dict[str, Tree], batch: Mapping[str, Any]) -> dict[str, Tree]:
    """Where every array of the state (`shapes`, from `abstract`) lies: by the names the params were born with.

    Moments lie where their parameter does (same shape, path ending in the parameter's).
    """
    params_names, rest_names = system.axes(dict(batch))
    params = meshes.shardings(mesh, params_names, shapes["params"])
    of_param = {p: (leaf.shape, s) for (p, leaf), s in zip(flatten(shapes["params"]).items(), jax.tree.leaves(params))}
    whole = meshes.replicated(mesh)

    def moment(path: str, leaf: Any) -> Any:
        parts = path.split("/")
        for i in range(len(parts)):
            shape, sharding = of_param.get("/".join(parts[i:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return whole

    leaves = [moment(path, leaf) for path, leaf in flatten(shapes["opt"]).items()]
    return {
        "step": whole, "params": params, "ema": params,
        "rest": meshes.shardings(mesh, rest_names, shapes["rest"]),
        "opt": jax.tree.unflatten(jax.tree.structure(shapes["opt"]), leaves)}


def place(shapes: Tree, where: Tree) -> Tree:
    """ShapeDtypeStructs that carry shardings: what a restore or an ahead-of-time compile takes."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, where)


def create(system: Any, optimiser: Any, seed: int, batch: Mapping[str, jax.Array], where: dict[str, Tree]) -> dict[str, Tree]:
    """The state, born in its shards. The same on every mesh (threefry is partitionable)."""
    born = jax.jit(lambda rng, b: initialise(system, optimiser, rng, b), out_shardings=where)
    return born(jax.random.fold_in(jax.random.key(seed), 0x5EED), dict(batch))
