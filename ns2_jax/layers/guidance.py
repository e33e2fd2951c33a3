"""The guidance factor as an input of a network: what lets one evaluation stand for two (Meng et al. 2023, 2210.03142; ZipVoice-Distill)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.linear import Dense, sinusoid


class Strength(nn.Module):
    """Total guidance factors `[b]` -> `[b, features]`, to be added to a condition. Nothing at the start: a student that copies its teacher begins as
    the teacher without guidance, whatever the factor."""

    features: int
    hidden: int = 128
    scale: float = 100.0  # factors are 0 to 10 or so: the fastest of the sines turns once in 0.06
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, factor_b: jax.Array) -> jax.Array:
        h = nn.silu(Dense(self.hidden, (None, "mlp"), name="hidden")(sinusoid(factor_b, self.hidden, self.scale)))
        return Dense(self.features, ("mlp", "embed"), kernel_init=nn.initializers.zeros, name="output")(h).astype(self.dtype)
