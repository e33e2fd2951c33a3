"""The Conformer (Gulati et al. 2020) with rotary positions, bidirectional, and the network of codec tokens that stands on it.

A block is half a feed-forward, self-attention, the convolution module, half a feed-forward and a norm; each module is pre-norm and added to
its input. Layer norm takes the place of batch norm in the convolution module, so that a row does not hear other rows or its padding. The
depthwise convolution is a sum of shifted products.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.attention import HIDDEN, MultiHeadAttention
from ns2_jax.layers.conv import DepthwiseConv1D
from ns2_jax.layers.linear import Dense, Embed, LayerNorm, constrain, default_init, named


def rotate(x_bthd: jax.Array, position_t: jax.Array, longest: float = 10000.0) -> jax.Array:
    """Rotary positions (Su et al. 2021): channel pairs (i, i + d/2) turned by `position longest^(-2i/d)`.

    The product of two rotated vectors depends on the difference of their positions alone. Computed in float32.
    """
    half = x_bthd.shape[-1] // 2
    rates = longest ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (position_t.astype(jnp.float32)[:, None] * rates)[:, None]  # [t, 1, d/2]
    one, two = jnp.split(x_bthd.astype(jnp.float32), 2, -1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([one * cos - two * sin, one * sin + two * cos], -1).astype(x_bthd.dtype)


class RotaryAttention(MultiHeadAttention):
    """Self-attention whose queries and keys are rotated by their positions; logits and softmax are float32."""

    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """`mask_bt` is true where a frame may be seen."""
        at = jnp.arange(x_btc.shape[1])
        key, value = self.project(x_btc)
        query, key = rotate(self._split(self.query(x_btc)), at), rotate(key, at)
        logits = jnp.einsum("bthd,buhd->bhtu", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask_bt[:, None, None], logits, HIDDEN), -1).astype(self.dtype)
        mixed = jnp.einsum("bhtu,buhd->bthd", weights, value)
        return self.out(mixed.reshape(*mixed.shape[:-2], self.width))


class ConformerBlock(nn.Module):
    """`[b, t, width]` -> the same; `expansion` is the width of the convolution inside its module, in widths."""

    width: int
    hidden: int
    heads: int
    kernel: int
    expansion: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, deterministic: bool) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        norm = lambda name: LayerNorm(dtype=self.dtype, name=name)
        valid = mask_bt[..., None].astype(self.dtype)

        def feed(x: jax.Array, name: str) -> jax.Array:
            h = nn.silu(Dense(self.hidden, dtype=self.dtype, name=f"{name}_widen")(norm(f"{name}_norm")(x)))
            return drop(Dense(self.width, ("mlp", "embed"), dtype=self.dtype, name=f"{name}_narrow")(drop(h)))

        x = x_btc + 0.5 * feed(x_btc, "first")
        x = constrain(x + drop(RotaryAttention(self.width, self.heads, self.dtype, name="attention")(norm("attention_norm")(x), mask_bt)))
        inner = self.expansion * self.width
        signal, gate = (Dense(inner, dtype=self.dtype, name=f"conv_{name}")(h) for h in (norm("conv_norm")(x),) for name in ("signal", "gate"))
        h = DepthwiseConv1D(self.kernel, dtype=self.dtype, name="conv")(constrain(signal * nn.sigmoid(gate) * valid))
        # Without the barrier XLA:CPU recomputes the depthwise products inside every consumer.
        h = nn.silu(norm("conv_inner_norm")(jax.lax.optimization_barrier(h)))
        x = constrain(x + drop(Dense(self.width, ("mlp", "embed"), dtype=self.dtype, name="conv_narrow")(h)))
        return constrain(norm("norm")(x + 0.5 * feed(x, "second")))


class Conformer(nn.Module):
    """`layers` blocks (scanned: one compiled body): `[b, t, width]` -> the same, zero at padding."""

    layers: int
    width: int
    hidden: int
    heads: int
    kernel: int = 5
    expansion: int = 2
    dropout: float = 0.1
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, deterministic: bool = True) -> jax.Array:
        valid = mask_bt[..., None].astype(self.dtype)

        def body(block: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, mask_bt, deterministic), None

        if self.remat:
            body = nn.remat(body, prevent_cse=False)
        block = ConformerBlock(self.width, self.hidden, self.heads, self.kernel, self.expansion, self.dropout, self.dtype, name="blocks")
        x, _ = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers, unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"})(block, constrain(x_btc.astype(self.dtype) * valid), None)
        return x * valid


class TokenConformer(nn.Module):
    """Partly known codes and a condition -> logits of one level (SoundStorm, section 3.1).

    A frame is the sum of its levels' embeddings and its condition, whatever the number of levels. Where a code is `codes` (one more than
    the last) it is not known, and the level's own vector stands for it; where the condition is not known, one learned vector does. A code's
    embedding is a row of a table plus a linear map of its vector in the codec, which is where the tables start; with `vector_head` a code's logit is
    a linear function of that vector and its square, too, as if a frame were Gaussian, so that near codes learn from each other.
    """

    levels: int
    codes: int
    width: int
    layers: int
    hidden: int
    heads: int
    kernel: int = 5
    expansion: int = 2
    dropout: float = 0.1
    level_vector: bool = True
    vector_head: bool = False
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, codes_btq: jax.Array, books_qkc: jax.Array, c_btc: jax.Array, known_bt: jax.Array, mask_bt: jax.Array, level_b: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """`books_qkc` are the codes' vectors, `known_bt` says where `c_btc` counts, `level_b` whose logits `[b, t, k]` (float32) are asked for."""
        q, k, d = self.levels, self.codes, self.width
        init = nn.initializers.normal(0.5)
        a_level = lambda name, ids: Embed(q, d, init, name=name)(ids)
        table = self.param("table", named(nn.initializers.normal(0.1), (None, "vocab", "embed")), (q, k, d))
        start = self.param("start", named(default_init, (None, "embed")), (books_qkc.shape[-1], d))
        blank, absent = a_level("blank", jnp.arange(q)), self.param("absent", named(init, ("embed",)), (d,))
        vectors = books_qkc * jax.lax.rsqrt(jnp.square(books_qkc).mean((1, 2), keepdims=True) + 1e-9)
        tables = table + jnp.einsum("qkc,cd->qkd", vectors, start)
        tables = jnp.concatenate([tables, blank[:, None]], 1).astype(self.dtype)
        c = Dense(d, (None, "embed"), dtype=self.dtype, name="condition")(c_btc)
        x = jnp.where(known_bt[..., None], c, absent.astype(self.dtype))
        for level in range(q):
            x = x + jnp.take(tables[level], codes_btq[..., level], axis=0)
        if self.level_vector:
            x = x + a_level("level", level_b)[:, None].astype(self.dtype)
        x = LayerNorm(dtype=self.dtype, name="input_norm")(constrain(x))
        x = Conformer(self.layers, d, self.hidden, self.heads, self.kernel, self.expansion, self.dropout, self.remat, self.unroll, self.dtype,
                      name="conformer")(x, mask_bt, deterministic)
        each = lambda rng, shape: jnp.moveaxis(default_init(rng, (d, q * shape[-1])).reshape(d, q, shape[-1]), 1, 0)
        kernel = self.param("head", named(each, (None, "embed", "vocab")), (q, d, k))
        bias = self.param("bias", nn.initializers.zeros, (q, k))
        of_level = lambda x: jnp.take(x, level_b, axis=0)
        logits = jnp.einsum("btd,bdk->btk", x, of_level(kernel).astype(self.dtype), preferred_element_type=jnp.float32) + of_level(bias)[:, None]
        if not self.vector_head:
            return logits
        vectors = jnp.concatenate([vectors, jnp.square(vectors).mean(-1, keepdims=True) - 1.0], -1) * vectors.shape[-1] ** -0.5
        toward = self.param("toward", named(each, (None, "embed", None)), (q, d, vectors.shape[-1]))
        mean = jnp.einsum("btd,bdc->btc", x, of_level(toward).astype(self.dtype))
        return logits + jnp.einsum("btc,bkc->btk", mean, of_level(vectors).astype(self.dtype), preferred_element_type=jnp.float32)
