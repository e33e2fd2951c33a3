"""What is compiled for one config on one mesh: the layout of the state and the training step.

The trainer runs it, precompile asks the compiler about it, bench times it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from ns2_jax.runtime import mesh as meshes
from ns2_jax.runtime import optim
from ns2_jax.runtime import state as states
from ns2_jax.runtime import step as steps


def check_numbers(config: Any, system: Any) -> None:
    """Raises ValueError for numbers of a config that do not go together."""
    for name in ("log_every", "save_every"):
        if config.train.get(name, 1) < 1:
            raise ValueError(f"config.train.{name}={config.train[name]}, expected 1 or more")
    for key, value in getattr(system, "audio", {}).items():
        if config.data[key] != value:
            raise ValueError(f"config.data.{key}={config.data[key]}, but the model works at {value} (config.model); they must be equal")
    wanted = {{"s": "t", "v": "u"}.get(axis, axis) for field in system.fields.values() for axis in field.axes} & set("btpu")
    for bucket in config.data.buckets:
        missing = sorted(wanted - set(bucket.keys()))
        if missing:
            raise ValueError(f"config.data.buckets: {dict(bucket)} has no {missing[0]!r}; the system needs {sorted(wanted)}")


class Program:
    """The step of `config` for `system` on `mesh`; nothing is allocated until it is called.

    Args:
      context: makes the context in which logical axis names mean mesh axes while a step is traced.
      say: is told what was compiled.

    Attributes: `system` (computing in `config.precision` if it has a `dtype` that `config.model` leaves open),
    `optimiser`, `bucket` (the largest), `shapes` and `where` (the state's ShapeDtypeStructs and shardings), `target` (both in one).
    Raises ValueError for a bucket that cannot be cut over the mesh.
    """

    def __init__(
        self, config: Any, system: Any, mesh: Any, context: Callable[[], AbstractContextManager],
        say: Callable[[str], None] | None = None,
    ):  # fmt: skip
        if "dtype" not in config.model and "dtype" in {field.name for field in dataclasses.fields(system)}:
            system = dataclasses.replace(system, dtype=config.precision)
        self.config, self.system, self.mesh, self._context = config, system, mesh, context
        self._say = say or (lambda text: None)
        check_numbers(config, system)
        self.optimiser = optim.make(config)
        meshes.check_hosts(mesh)
        meshes.check_batches(mesh, config.data.buckets, config.train.micro_batches)
        self.bucket = states.largest(config.data.buckets)
        batch = self.abstract_batch()
        self.shapes = states.abstract(system, self.optimiser, batch)
        self.where = states.shardings(mesh, system, self.shapes, batch)
        self.target = states.place(self.shapes, self.where)
        self._jitted = steps.jit_step(steps.make_step(system, self.optimiser, config), mesh, self.where)
        self._compiled: dict[tuple, Any] = {}

    def sizes(self, bucket: Mapping[str, int] | None = None) -> dict[str, int]:
        """Axis letter -> length under a bucket (default the largest)."""
        return states.bucket_sizes(bucket or self.bucket, self.system.sizes, self.config.data.hop)

    def abstract_batch(self, bucket: Mapping[str, int] | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch of all hosts."""
        sizes = self.sizes(bucket)
        return {name: jax.ShapeDtypeStruct(f.shape(sizes), np.dtype(f.dtype)) for name, f in self.system.fields.items()}

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Analytic FLOPs of one step on a batch: three times forward (forward, and twice that backward)."""
        sizes = dict(self.sizes())
        for name, field in self.system.fields.items():
            sizes.update(zip(field.axes, batch[name].shape))
        return 3.0 * float(self.system.flops(sizes))

    def trace(self, batch: Mapping[str, Any]) -> Any:
        """The step for the shapes of a batch, traced."""
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
        with jax.set_mesh(self.mesh), self._context():
            return self._jitted.trace(self.shapes, abstract, jax.ShapeDtypeStruct((), np.bool_))

    def lower(self, batch: Mapping[str, Any]) -> Any:
        """The step for the shapes of a batch, lowered."""
        traced = self.trace(batch)
        with jax.set_mesh(self.mesh), self._context():
            return traced.lower()

    def compiled(self, batch: Mapping[str, Any]) -> Any:
        """The executable for the shapes of a batch, compiled once."""
        key = tuple(sorted((name, x.shape) for name, x in batch.items()))
        if key not in self._compiled:
            begin = time.perf_counter()
            self._compiled[key] = self.lower(batch).compile()
            sizes = "  ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
            self._say(f"compiled in {time.perf_counter() - begin:.1f} s for {sizes}\n  memory a device: {memory(self._compiled[key])}")
        return self._compiled[key]

    def create(self, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """A new state from a real batch, born in its shards."""
        return states.create(self.system, self.optimiser, self.config.seed, batch, self.where)

    def __call__(self, state: Any, batch: Mapping[str, jax.Array], halted: Any) -> tuple[Any, dict]:
        """One step. The state is donated: use the returned one. `halted` is `metrics["halted"]` of the step before."""
        executable = self.compiled(batch)
        with jax.transfer_guard("disallow"):
            return executable(state, batch, halted)

    def go(self) -> jax.Array:
        """The flag of the first step: not halted."""
        return jax.device_put(np.zeros((), np.bool_), meshes.replicated(self.mesh))


def memory(executable: Any) -> str:
    """`arguments 12.3 MB, temporary ...` of one device, as the compiler plans it."""
    plan = executable.memory_analysis()
    if plan is None:
        return "unknown"
    mb = lambda n: f"{n / 2**20:.1f} MB"
    parts = {"arguments": plan.argument_size_in_bytes, "temporary": plan.temp_size_in_bytes, "code": plan.generated_code_size_in_bytes}
    return ", ".join(f"{name} {mb(size)}" for name, size in parts.items())
