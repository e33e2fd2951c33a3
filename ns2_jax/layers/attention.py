"""Multi-head attention with key masks; keys and values can be projected once and attended many times."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.linear import Dense

HIDDEN = -1e30
"""Logit of a masked key: finite, so a row without any key gives a mean and not NaN."""


class MultiHeadAttention(nn.Module):
    """Queries `[b, t, c]` attend to `[b, u, c']` (Vaswani et al. 2017); logits and softmax are float32."""

    width: int
    heads: int
    dtype: Any = jnp.float32
    inner: int = 0  # of all heads together; 0 is `width`

    def setup(self):
        inner = self.inner or self.width
        if inner % self.heads:
            raise ValueError(f"attention width={inner} is not a multiple of heads={self.heads}")
        self.query, self.value = (Dense(inner, ("embed", "heads"), dtype=self.dtype) for _ in range(2))
        # No bias: it would add the same number to every logit of a query, which the softmax takes out again.
        self.key = Dense(inner, ("embed", "heads"), use_bias=False, dtype=self.dtype)
        self.out = Dense(self.width, ("heads", "embed"), dtype=self.dtype)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def project(self, x_buc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values, each `[b, u, h, d]`."""
        return self._split(self.key(x_buc)), self._split(self.value(x_buc))

    def attend(self, x_btc: jax.Array, key_buhd: jax.Array, value_buhd: jax.Array, mask_bu: jax.Array | None = None) -> jax.Array:
        """`[b, t, width]` for projected keys and values; `mask_bu` is true where a key may be seen, `[b, t, u]` for each query its own."""
        query = self._split(self.query(x_btc))
        logits = jnp.einsum("bthd,buhd->bhtu", query, key_buhd, preferred_element_type=jnp.float32)
        logits = logits * query.shape[-1] ** -0.5
        if mask_bu is not None:
            mask = mask_bu[:, None, None, :] if mask_bu.ndim == 2 else mask_bu[:, None]
            logits = jnp.where(mask, logits, HIDDEN)
        weights = jax.nn.softmax(logits, -1).astype(self.dtype)
        mixed = jnp.einsum("bhtu,buhd->bthd", weights, value_buhd)
        return self.out(mixed.reshape(*mixed.shape[:-2], -1))

    def attend_one(self, x_bc: jax.Array, key_bhud: jax.Array, value_bhud: jax.Array, mask_bu: jax.Array) -> jax.Array:
        """`attend` of one query `[b, width]`; keys and values lie by heads, as a cache keeps them: products and sums in place, no copy."""
        query = self._split(self.query(x_bc))[:, :, None, :].astype(jnp.float32)
        logits = (query * key_bhud).sum(-1) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask_bu[:, None], logits, HIDDEN), -1).astype(self.dtype)
        mixed = (weights[..., None] * value_bhud).sum(-2)
        return self.out(mixed.reshape(*mixed.shape[:-2], -1))

    def point(self, x_btc: jax.Array, key_buhd: jax.Array, mask_bu: jax.Array) -> jax.Array:
        """Where the first head looks among keys `[b, u]` that are as good as alone: log weights, float32 `[b, t, u]`."""
        query = self._split(self.query(x_btc))[:, :, 0]
        logits = jnp.einsum("btd,bud->btu", query, key_buhd[:, :, 0], preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
        return jax.nn.log_softmax(jnp.where(mask_bu[:, None], logits, HIDDEN), -1)

    def __call__(self, x_btc: jax.Array, keys_buc: jax.Array, mask_bu: jax.Array | None = None) -> jax.Array:
        """Projects and attends in one go."""
        return self.attend(x_btc, *self.project(keys_buc), mask_bu)
