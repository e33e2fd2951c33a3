"""The one abstraction: a System is one paper, and every method is a pure function of its arguments.

The runtime knows only what is written here: a system turns a batch into summed gradients, keeps what is
checkpointed but not optimised in `rest`, and offers jittable programs with static shapes. It never learns that
a GAN, an EMA codebook or a frozen codec happened.

Shapes use the house alphabet: b batch, t frames, s samples, p phones, u prompt frames, v prompt samples, c channels,
q codebooks, k codes, h heads, d head width.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

Tree = Any
Batch = Mapping[str, jax.Array]
Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Field:
    """What one array of a batch is: its axes in the house alphabet and its dtype.

    `Field("btq", "uint16")` is codes; `Field("b", "int32")` a count per row. An axis letter gets its length
    from a bucket (`b t s p u v`) or from the system's constants (`q c`).
    """

    axes: str
    dtype: str

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The static shape under `sizes` (axis letter -> length). Raises KeyError for a letter without a size."""
        return tuple(sizes[axis] for axis in self.axes)


KINDS = {bool: (bool, "true or false"), str: (str, "text"), int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a number")}
"""Type of an option's default -> what a value must be, what that is called; other defaults, as None, take anything."""

RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("0 or more", lambda x: x >= 0), "speed": ("a factor above 0", lambda x: x > 0),
    "top_p": ("a share from 0 to 1", lambda x: 0 <= x <= 1), "steps": ("a number from 1 on", lambda x: x >= 1),
    "best_of": ("a number from 1 on", lambda x: x >= 1), "levels": ("a number from 1 on", lambda x: x >= 1),
    "window": ("0 (the whole) or more", lambda x: x >= 0), "chunk": ("0 (the whole) or more", lambda x: x >= 0),
    "overlap": ("-1 (as far as it can hear) or more", lambda x: x >= -1)}
"""What options of these names may be in every program."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function with static shapes: `fn(params, rest, inputs, rng, sizes, **options) -> outputs`.

    `inputs` and `outputs` are dicts of arrays described by the fields; `sizes` (axis letter -> int) and the
    options are static. `bind` fixes them, and what it returns can be jitted, lowered and exported; a number among the options that is given to that
    again may be traced. With `rows`, `rng` may be a key for each row, and rows do not touch each other: a loop over a batch of them stays one loop,
    which `jax.vmap` would make carry copies.
    """

    fn: Callable[..., dict[str, jax.Array]]
    inputs: Mapping[str, Field]
    outputs: Mapping[str, Field]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: bool = False

    def check(self, options: Mapping[str, Any]) -> None:
        """Raises ValueError for an option that the program does not have, or a value that is not of its default's kind or makes no sense."""
        for name, value in options.items():
            if name not in self.options:
                raise ValueError(f"unknown option {name!r}; this program takes {sorted(self.options)}")
            kind, called = KINDS.get(type(self.options[name]), (None, ""))
            if kind is None:
                continue
            if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
                raise ValueError(f"{name}={value!r}; expected {called}")
            if kind is numbers.Real and not math.isfinite(value):
                raise ValueError(f"{name}={value!r}; expected a finite number")
            if name in RANGES and not RANGES[name][1](value):
                raise ValueError(f"{name}={value!r}; expected {RANGES[name][0]}")

    def bind(self, sizes: Sizes, **options: Any) -> Callable[..., dict[str, jax.Array]]:
        """Fixes sizes and options. Raises as `check`."""
        self.check(options)
        chosen = {**self.options, **options}

        def program(params: Tree, rest: Tree, inputs: Batch, rng: jax.Array, **traced: jax.Array) -> dict[str, jax.Array]:
            with jax.default_matmul_precision("highest"):  # float32 stays float32 on accelerators, whoever calls
                return self.fn(params, rest, inputs, rng, dict(sizes), **{**chosen, **traced})

        return program


class System(Protocol):
    """One paper. Every method is a pure function of its arguments."""

    fields: dict[str, Field]  # what the data must deliver
    sizes: dict[str, int]  # constants of the system for axis letters (q, c)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """(params, rest) from the real first batch (k-means starts here)."""

    def grads(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[Tree, Tree, dict]:
        """(grads, stats, metrics): *sums*, and one `metrics["weight"]` to divide by, so micro-batches add."""

    def update(self, params: Tree, rest: Tree, stats: Tree, rng: jax.Array, step: jax.Array) -> Tree:
        """The next `rest`, once per optimiser step. `stats` are the summed statistics of the step."""

    def alarm(self, metrics: Mapping[str, float], step: int) -> str:
        """Why training must stop, from the metrics of a log line; "" as long as it may go on."""

    def programs(self) -> dict[str, Program]:
        """Jittable functions with static shapes: durations, sample, encode, decode, align, score."""

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one batch of `sizes` (a multiply-add counts two)."""

    def axes(self, batch: Batch) -> tuple[Tree, Tree]:
        """Logical axis names, one tuple of (name | None) per array of (params, rest)."""


@dataclasses.dataclass(frozen=True)
class Denoising:
    """A training batch as a continuous system sees it, with its conditions made: all that few-step distillation needs to know of a system.

    `x0 [b, t, c]` is what comes out of the system's process, zero where `mask [b, t]` is; `weight [b, t]` what a frame counts; `prior [b, t]` the
    losses of what is learned beside it (durations, pitch). `denoise(z [b, t, c], times [b], factors [b] or None, rng or None)` is the data
    estimate, guided by the total factors where there are some, and dropping out with a key; equal keys drop the same.
    """

    x0: jax.Array
    mask: jax.Array
    weight: jax.Array
    prior: jax.Array
    denoise: Callable[..., jax.Array]


class Continuous(System, Protocol):
    """A system whose speech comes out of a noising process (`maths.process`), so that it can be distilled."""

    process: Any
    guided: bool  # whether its network is told the guidance factor

    def denoising(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array | None = None) -> Denoising:
        """The batch with the conditions that `params` make of it; with a key, in training mode."""


class Base:
    """What systems share: `build` gives boxed trees, `init` and `axes` follow from it.

    A subclass sets `fields` and `sizes` and writes `build`, `grads` (or `loss`, through SingleLoss) and
    `programs`.
    """

    fields: dict[str, Field]
    sizes: dict[str, int] = {}
    audio: dict[str, int] = {}  # what `config.data` must say: sample_rate and hop, where the model has its own

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """(params, rest) with leaves boxed by `nn.LogicallyPartitioned` where they were born with names."""
        raise NotImplementedError  # a subclass without it is not a system

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        return nn.meta.unbox(self.build(rng, batch))

    def axes(self, batch: Batch) -> tuple[Tree, Tree]:
        boxed = jax.eval_shape(self.build, jax.random.key(0), batch)
        is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
        names = lambda leaf: tuple(leaf.names) if is_box(leaf) else (None,) * len(leaf.shape)
        return jax.tree.map(names, boxed, is_leaf=is_box)

    def update(self, params: Tree, rest: Tree, stats: Tree, rng: jax.Array, step: jax.Array) -> Tree:
        del params, stats, rng, step
        return rest

    def alarm(self, metrics: Mapping[str, float], step: int) -> str:
        del metrics, step
        return ""


class SingleLoss(Base):
    """A system with one loss: `grads` is its derivative."""

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        """(summed loss, (stats, metrics)); metrics are sums with their `weight`."""
        raise NotImplementedError  # a subclass without it is not a system

    def grads(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[Tree, Tree, dict]:
        (loss, (stats, metrics)), grads = jax.value_and_grad(self.loss, has_aux=True)(params, rest, batch, rng, step)
        return grads, stats, {"loss": loss, **metrics}


def shapes(fields: Mapping[str, Field], sizes: Sizes) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract batch for `fields` under `sizes`."""
    return {name: jax.ShapeDtypeStruct(f.shape(sizes), jnp.dtype(f.dtype)) for name, f in fields.items()}


def tuples(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """`numbers` with its lists as tuples: a config read from JSON has lists, and a Linen module must be hashable."""
    return {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in numbers.items()}


def rules(pairs: tuple[tuple[str, Any], ...]):
    """Context in which logical axis names mean mesh axes (`runtime.mesh.RULES`)."""
    return nn.logical_axis_rules(pairs)


def make(name: str, model: Mapping[str, Any]) -> System:
    """The system called `name`, built from the numbers of `config.model`.

    Found by import: `ns2_jax.systems.<name>.System(**model)`. Raises ValueError when there is no such module
    or when a number is not one of its fields.
    """
    try:
        module = importlib.import_module(f"ns2_jax.systems.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"ns2_jax.systems.{name}":
            raise  # something that the system itself imports
        raise ValueError(f"config.system={name!r}: there is no ns2_jax/systems/{name}.py") from error
    known = {field.name for field in dataclasses.fields(module.System)}
    unknown = sorted(set(model) - known)
    if unknown:
        raise ValueError(f"config.model.{unknown[0]} is not a field of system {name!r}; it takes {sorted(known)}")
    return module.System(**model)
