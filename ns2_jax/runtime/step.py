"""The one training step: gradients of micro-batches are added, divided by the weight, clipped, applied, averaged.

    step(state, batch, halted=False) -> (state, metrics)

It is a pure function of its arguments; randomness is `fold_in(key(seed), state["step"])`. A non-finite loss, gradient
or statistic leaves the whole state as it was, `step` included, and sets `metrics["halted"]`. Feed that flag to the
next call: it stays set and later calls change nothing, so a loop that reads metrics one step late still stops
with the state and the batch that caused it, and `diagnose` names the paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import optim
from ns2_jax.runtime.state import flatten

Tree = Any


def split(batch: Mapping[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """`[b, ...]` -> `[parts, b / parts, ...]`, row i in part i % parts so that a sharded batch stays where it is."""
    cut = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    return {name: cut(x) for name, x in batch.items()}


def summed(system: Any, params: Tree, rest: Tree, batch: Mapping[str, jax.Array], rng: jax.Array, step: jax.Array, parts: int) -> tuple:
    """(grads, stats, metrics) of the whole batch: sums over micro-batches, one at a time in memory (float32 sums).

    On a mesh each micro-batch's gradients are added over devices and slices before they join the sum, the products' in the dtype they are computed in
    (bf16 at `base`): more micro-batches mean as many times the traffic between slices.
    """
    if parts == 1:
        return system.grads(params, rest, batch, rng, step)
    slices = split(batch, parts)

    def one(i: jax.Array, part: Mapping[str, jax.Array]) -> tuple:
        return system.grads(params, rest, part, jax.random.fold_in(rng, i), step)

    first = {name: x[0] for name, x in slices.items()}
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, jnp.int32(0), first))

    def add(total: tuple, piece: tuple) -> tuple:
        return jax.tree.map(jnp.add, total, one(*piece)), None

    return jax.lax.scan(add, zeros, (jnp.arange(parts), slices))[0]


def finite(tree: Tree) -> jax.Array:
    """Whether every floating number of a tree is finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in floats])) if floats else jnp.array(True)


def norm(tree: Tree) -> jax.Array:
    """Global norm, float32."""
    return jnp.sqrt(sum((jnp.square(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(tree)), jnp.float32(0)))


def average(ema: Tree, params: Tree, decay: float, step: jax.Array) -> Tree:
    """The weights average after update `step` (0-based): decay min(decay, (1 + step) / (10 + step))."""
    if not decay:
        return params
    k = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1.0 + k) / (10.0 + k))
    return jax.tree.map(lambda e, p: (e + (1.0 - d) * (p - e)).astype(e.dtype), ema, params)


def make_step(system: Any, optimiser: optim.Optimiser, config: Any) -> Callable[..., tuple[dict, dict]]:
    """The step of `config` (`seed`, `train.micro_batches`, `train.ema`); not yet jitted.

    Metrics are float32 scalars: the system's, divided by their weight, then `weight`, `grad_norm` (before clipping;
    `grad_norm/<group>` too when there are several), `param_norm`, learning rates and the bool `halted`.
    """
    parts, decay, seed = config.train.micro_batches, config.train.ema, config.seed

    def step(state: dict, batch: Mapping[str, jax.Array], halted: Any = False) -> tuple[dict, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), state["step"])
        params, rest, k = state["params"], state["rest"], state["step"]
        grads, stats, metrics = summed(system, params, rest, batch, rng, k, parts)
        weight = metrics["weight"]
        divide = jnp.where(weight > 0, weight, 1.0)  # a batch of padding only has zero sums
        labels = optimiser.labels(params)
        grads = jax.tree.map(lambda g, label: g / divide if label != optim.FROZEN else jnp.zeros_like(g), grads, labels)
        metrics = {name: m if name == "weight" else m / divide for name, m in metrics.items()}
        metrics["grad_norm"] = norm(grads)
        if len(optimiser.schedules) > 1:
            for group in optimiser.schedules:
                chosen = [g for g, label in zip(jax.tree.leaves(grads), jax.tree.leaves(labels)) if label == group]
                metrics[f"grad_norm/{group}"] = norm(chosen)

        updates, opt = optimiser.update(grads, state["opt"], params)
        new_params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        new_rest = system.update(params, rest, stats, jax.random.fold_in(rng, 0x0DD), k)
        new = {
            "step": k + 1, "params": new_params, "rest": new_rest, "opt": opt,
            "ema": average(state["ema"], new_params, decay, k)}
        halted = jnp.logical_or(halted, ~finite((metrics, grads, new_rest)))
        new = jax.tree.map(lambda old, fresh: jnp.where(halted, old, fresh), dict(state), new)
        metrics |= {"param_norm": norm(params), **optimiser.rates(k)}
        metrics = {name: jnp.asarray(m, jnp.float32) for name, m in metrics.items()}
        return new, metrics | {"halted": halted}

    return step


def jit_step(step: Callable, mesh: Any, where: dict) -> Any:
    """`step` jitted: the state is donated and keeps its shards, batches are cut, metrics are on every device."""
    whole = meshes.replicated(mesh)
    alone = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"  # where `layers.linear.constrain` is a barrier, which XLA:CPU would drop
    return jax.jit(
        step, donate_argnums=0, in_shardings=(where, meshes.batch_sharding(mesh), whole), out_shardings=(where, whole),
        compiler_options={"xla_disable_hlo_passes": "cse_barrier_expander"} if alone else None)


def diagnose(system: Any, config: Any, state: dict, batch: Mapping[str, jax.Array], limit: int = 20) -> list[str]:
    """The paths that are not finite when `state` meets `batch`: of batch, params, rest, metrics, stats, grads.

    The first group in that order is the cause, later ones its consequences; at most `limit` paths per group.
    """

    def inspect(state: dict, batch: Mapping[str, jax.Array]) -> dict:
        rng = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        grads, stats, metrics = summed(
            system, state["params"], state["rest"], batch, rng, state["step"], config.train.micro_batches)
        trees = {"batch": dict(batch), "params": state["params"], "rest": state["rest"],
                 "metrics": metrics, "stats": stats, "grads": grads}
        return {name: {path: finite(leaf) for path, leaf in flatten(tree, name + "/").items()} for name, tree in trees.items()}

    found = []
    groups = jax.device_get(jax.jit(inspect)(state, dict(batch)))
    for name in ("batch", "params", "rest", "metrics", "stats", "grads"):
        bad = [path for path, fine in groups[name].items() if not fine]
        found += bad[:limit] + ([f"... and {len(bad) - limit} more"] if len(bad) > limit else [])
    return found
