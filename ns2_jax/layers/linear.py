"""Dense, embedding, norms and embeddings of time: the pointwise building blocks.

Logical axis names are attached where a parameter is born; the closed vocabulary is
`embed mlp heads kv vocab codebook tap layers`, and `runtime.mesh.RULES` says what they mean on a mesh.
Parameters are float32; `dtype` is the compute type. Norm statistics are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Any
default_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def named(init: Init, names: Sequence[str | None]) -> Init:
    """An initialiser whose parameter carries logical axis names."""
    return nn.with_logical_partitioning(init, tuple(names))


def constrain(x: jax.Array) -> jax.Array:
    """Pins an activation: rows to the batch's axes, the time of `[b, t, c]` to the sequence axis where there is one and it divides the length.

    On one CPU device it is a barrier instead: XLA:CPU otherwise adds up the residuals of all layers anew wherever one is used, which took a sixth of
    a step (`runtime.step.jit_step` keeps barriers; other programs drop them).
    """
    if jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1:
        return jax.lax.optimization_barrier(x)
    parts = parts_of_time()
    time = "act_time" if x.ndim == 3 and parts > 1 and x.shape[1] % parts == 0 else None
    return nn.with_logical_constraint(x, ("act_batch", time)[: x.ndim] + (None,) * (x.ndim - 2))


def gathered(kernel: jax.Array) -> jax.Array:
    """A convolution's kernel, whole on every device where time is cut: XLA multiplies the results of time-sharded convolutions whose
    kernels are cut over another axis (`tests/runtime/test_mesh.py` keeps the reproduction)."""
    return nn.with_logical_constraint(kernel, (None,) * kernel.ndim) if parts_of_time() > 1 else kernel


def parts_of_time() -> int:
    """Into how many parts the rules cut time on the mesh in use; 1 outside of one."""
    axes = nn.logical_to_mesh_axes(("act_time",))
    axis = axes[0] if axes else None  # None outside rules
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)


class Dense(nn.Module):
    """`[..., i] -> [..., features]`, kernel `[i, features]` born with names `axes`."""

    features: int
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    use_bias: bool = True
    kernel_init: Init = default_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", named(self.kernel_init, self.axes), (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class Embed(nn.Module):
    """Integer ids `[...]` -> `[..., features]` from a table `[num, features]`."""

    num: int
    features: int
    embedding_init: Init = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    def setup(self):
        self.table = self.param("table", named(self.embedding_init, ("vocab", "embed")), (self.num, self.features))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.table, ids, axis=0).astype(self.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """Products with every row (an output layer tied to the table): `[..., features] -> [..., num]` float32."""
        return jnp.einsum("...c,kc->...k", x, self.table.astype(self.dtype), preferred_element_type=jnp.float32)


class LayerNorm(nn.Module):
    """Layer norm over channels with scale and bias; statistics in float32."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


def rms_norm(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """RMS norm over channels without gain (half the cost of layer norm on a CPU); statistics in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


def sinusoid(position: jax.Array, channels: int, scale: float = 1.0, longest: float = 10000.0) -> jax.Array:
    """Sines and cosines `[..., channels]` of `position * scale` (float32), frequencies from 1 to 1/longest."""
    half = channels // 2
    rates = jnp.exp(-jnp.log(longest) * jnp.arange(half, dtype=jnp.float32) / max(half - 1, 1))
    angle = (position.astype(jnp.float32) * scale)[..., None] * rates
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
