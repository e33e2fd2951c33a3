"""The optimiser of a config: one AdamW chain per group of parameters, schedules by step, masks by path.

A group is a top-level key of params that `config.optim.by_key` overrides (a discriminator, say), or `default` for all
the others. Each group clips by its own global norm. Frozen leaves have no moments and get zero updates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ns2_jax.runtime.state import flatten

Tree = Any
SCHEDULES = ("cosine", "linear", "inverse_sqrt", "constant")
FIELDS = ("peak", "warmup", "schedule", "b1", "b2", "weight_decay", "clip")
FROZEN = "frozen"
NOT_DECAYED = ("bias", "scale", "gain", "table")


def schedule(kind: str, peak: float, warmup: int, steps: int) -> Callable[[Any], jax.Array]:
    """Learning rate at update k = 0, 1, ...: rises linearly to `peak` at update `warmup - 1`, then

        cosine        peak (1 + cos(pi (k - warmup) / (steps - warmup))) / 2
        linear        peak (steps - k) / (steps - warmup)
        inverse_sqrt  peak sqrt(warmup / (k + 1))
        constant      peak

    By step and never by the clock, so that a resumed run is the same run.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"config.optim.schedule={kind!r} does not exist; schedules are {list(SCHEDULES)}")
    if peak <= 0 or warmup < 0 or (kind == "inverse_sqrt" and warmup == 0):
        raise ValueError(f"config.optim has peak={peak}, warmup={warmup}: peak is positive, warmup >= 0 (>= 1 for inverse_sqrt)")

    def rate(step: Any) -> jax.Array:
        k = jnp.asarray(step, jnp.float32)
        done = jnp.clip((k - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        if kind == "cosine":
            level = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif kind == "linear":
            level = 1.0 - done
        elif kind == "inverse_sqrt":
            level = jnp.sqrt(warmup / jnp.maximum(k + 1.0, warmup))
        else:
            level = jnp.ones_like(k)
        return peak * jnp.minimum(level, (k + 1.0) / max(warmup, 1))

    return rate


def matches(patterns: Sequence[str], path: str) -> bool:
    """Whether a whole path ("params/gen/conv/kernel") matches one of the regexes."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def mask(tree: Tree, choose: Callable[[str, Any], Any]) -> Tree:
    """A tree like `tree` with `choose(path, leaf)` at each leaf; paths start with `params/`."""
    leaves = [choose(path, leaf) for path, leaf in flatten(tree, "params/").items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def decayed(path: str, leaf: Any) -> bool:
    """Weight decay falls on matrices and kernels: not on vectors, gains, biases and embedding tables."""
    return len(leaf.shape) > 1 and path.rsplit("/", 1)[-1] not in NOT_DECAYED


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """`init(params) -> opt`, `update(grads, opt, params) -> (updates, opt)`, and what the metrics ask for."""

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    labels: Callable[[Tree], Tree]  # group name per leaf, "frozen" included
    schedules: Mapping[str, Callable[[Any], jax.Array]]  # per group
    clips: Mapping[str, float]  # per group; 0 is off

    def rates(self, step: Any) -> dict[str, jax.Array]:
        """`learning_rate` of the default group, `learning_rate/<group>` of the others."""
        return {"learning_rate" + ("" if g == "default" else f"/{g}"): s(step) for g, s in self.schedules.items()}


def chain(numbers: Mapping[str, Any], rate: Callable[[Any], jax.Array]) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled weight decay, learning rate (Loshchilov & Hutter 2019)."""
    parts = [optax.clip_by_global_norm(numbers["clip"])] if numbers["clip"] else []
    parts.append(optax.scale_by_adam(b1=numbers["b1"], b2=numbers["b2"]))
    if numbers["weight_decay"]:
        parts.append(optax.add_decayed_weights(numbers["weight_decay"], mask=lambda p: mask(p, decayed)))
    parts.append(optax.scale_by_learning_rate(rate))
    return optax.chain(*parts)


def make(config: Any) -> Optimiser:
    """The optimiser of `config.optim` for `config.train.steps` steps, with `config.train.frozen` left alone.

    Raises ValueError for an unknown schedule, an override that does not exist, or (at init) a group or a frozen
    pattern that matches nothing.
    """
    base = {name: config.optim[name] for name in FIELDS}
    groups = {"default": base}
    for key, overrides in dict(config.optim.by_key).items():
        unknown = sorted(set(overrides) - set(FIELDS))
        if unknown:
            raise ValueError(f"config.optim.by_key.{key}.{unknown[0]} does not exist; fields are {list(FIELDS)}")
        groups[key] = {**base, **dict(overrides)}
    rates = {g: schedule(n["schedule"], n["peak"], n["warmup"], config.train.steps) for g, n in groups.items()}
    chains = {g: chain(n, rates[g]) for g, n in groups.items()}
    frozen = tuple(config.train.get("frozen", ()))

    def labels(params: Tree) -> Tree:
        def label(path: str, _: Any) -> str:
            if matches(frozen, path):
                return FROZEN
            key = path.split("/")[1]
            return key if key in groups else "default"
        return mask(params, label)

    def init(params: Tree) -> Tree:
        missing = sorted(set(groups) - {"default"} - set(params))
        if missing:
            raise ValueError(f"config.optim.by_key.{missing[0]} names no top-level key of params; they are {sorted(params)}")
        for pattern in frozen:
            if not any(matches((pattern,), path) for path in flatten(params, "params/")):
                raise ValueError(f"config.train.frozen: {pattern!r} matches no path (they look like params/.../kernel)")
        return transform.init(params)

    transform = optax.partition({**chains, FROZEN: optax.set_to_zero()}, labels)
    return Optimiser(init, transform.update, labels, rates, {g: n["clip"] for g, n in groups.items()})
