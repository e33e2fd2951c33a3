"""A Conformer over stacked spectral frames: what a tokenizer of speech learns with (BEST-RQ, Chiu et al. 2022)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.conformer import Conformer
from ns2_jax.layers.linear import Dense, LayerNorm


class SpeechEncoder(nn.Module):
    """Features `[b, t, f]` -> logits of `targets` classes, float32 `[b, t, targets]`; `hidden` stops before them.

    A copy with fewer `layers`, given the parameters of the first so many, gives what a layer in the middle says.
    """

    targets: int
    layers: int
    width: int
    inner: int  # of the feed-forward
    heads: int
    kernel: int = 5
    expansion: int = 2
    dropout: float = 0.1
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32

    def setup(self):
        self.input = Dense(self.width, (None, "embed"), dtype=self.dtype)
        self.norm = LayerNorm(dtype=self.dtype)
        self.conformer = Conformer(self.layers, self.width, self.inner, self.heads, self.kernel, self.expansion, self.dropout, self.remat,
                                   self.unroll, self.dtype)
        self.head = Dense(self.targets, ("embed", "vocab"), dtype=self.dtype)

    def hidden(self, x_btf: jax.Array, mask_bt: jax.Array, deterministic: bool = True) -> jax.Array:
        """`[b, t, width]`, zero at padding."""
        return self.conformer(self.norm(self.input(x_btf)), mask_bt, deterministic)

    def __call__(self, x_btf: jax.Array, mask_bt: jax.Array, deterministic: bool = True) -> jax.Array:
        return self.head(self.hidden(x_btf, mask_bt, deterministic)).astype(jnp.float32)
