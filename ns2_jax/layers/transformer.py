"""Transformer with a convolutional feed-forward (FastSpeech), and the two encoders made of it.

Pre-norm; positions are sinusoids added once at the input. Padding is set to zero before every convolution, so what is
valid does not depend on how far a row is padded.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.attention import MultiHeadAttention
from ns2_jax.layers.conv import Conv1D
from ns2_jax.layers.linear import Dense, Embed, LayerNorm, constrain, named, sinusoid


class TransformerBlock(nn.Module):
    """Self-attention, then convolution of `kernel` taps to `hidden`, ReLU, and a pointwise one back."""

    width: int
    hidden: int
    heads: int
    kernel: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, deterministic: bool) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        valid = mask_bt[..., None].astype(self.dtype)
        h = LayerNorm(dtype=self.dtype, name="norm1")(x_btc)
        x = x_btc + drop(MultiHeadAttention(self.width, self.heads, self.dtype, name="attention")(h, h, mask_bt))
        h = LayerNorm(dtype=self.dtype, name="norm2")(x) * valid
        h = nn.relu(Conv1D(self.hidden, self.kernel, dtype=self.dtype, name="widen")(h))
        return constrain(x + drop(Dense(self.width, ("mlp", "embed"), dtype=self.dtype, name="narrow")(drop(h))))


class Transformer(nn.Module):
    """`layers` blocks (scanned: one compiled body) and a final norm: `[b, t, width] -> [b, t, width]`, zero at padding."""

    layers: int
    width: int
    hidden: int
    heads: int
    kernel: int = 9
    dropout: float = 0.1
    remat: bool = False
    unroll: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, deterministic: bool = True) -> jax.Array:
        valid = mask_bt[..., None].astype(self.dtype)
        x = (x_btc + sinusoid(jnp.arange(x_btc.shape[1]), self.width)).astype(self.dtype) * valid
        x = constrain(x)

        def body(block: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, mask_bt, deterministic), None

        if self.remat:
            body = nn.remat(body, prevent_cse=False)
        block = TransformerBlock(self.width, self.hidden, self.heads, self.kernel, self.dropout, self.dtype, name="blocks")
        x, _ = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers,
            unroll=self.unroll, metadata_params={nn.PARTITION_NAME: "layers"})(block, x, None)
        return LayerNorm(dtype=self.dtype, name="norm")(x) * valid


class PhoneEncoder(nn.Module):
    """Phone ids to phone vectors, and what is added to them once they are expanded to frames.

    `prenet` convolutions of five taps with norms stand before the Transformer. `pitch` and `place` are its methods for
    frames: a table of F0 bins (where there are `pitch_bins`), and (where `position`) a linear map of the place inside the phone; `without` is
    there where `null`.
    """

    phones: int
    width: int
    encoder: Any  # the numbers of the Transformer
    prenet: int = 2
    pitch_bins: int = 512
    position: bool = True
    null: bool = True
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def setup(self):
        init = nn.initializers.normal(self.width**-0.5)
        self.table = Embed(self.phones, self.width, init, self.dtype)
        self.pitch_table = Embed(self.pitch_bins, self.width, init, self.dtype)
        if self.position:
            self.place_map = Dense(self.width, (None, "embed"), dtype=self.dtype)
        self.convs = [Conv1D(self.width, 5, dtype=self.dtype) for _ in range(self.prenet)]
        self.norms = [LayerNorm(dtype=self.dtype) for _ in range(self.prenet)]
        self.transformer = Transformer(width=self.width, dropout=self.dropout, dtype=self.dtype, **self.encoder)
        self.drop = nn.Dropout(self.dropout)
        if self.null:
            self.null_vector = self.param("null", named(nn.initializers.normal(1.0), ("embed",)), (self.width,))

    def __call__(self, ids_bp: jax.Array, deterministic: bool = True) -> jax.Array:
        """Ids `[b, p]`, 0 is padding -> `[b, p, width]`, zero at padding."""
        mask = ids_bp > 0
        valid = mask[..., None].astype(self.dtype)
        x = self.table(ids_bp) * self.width**0.5
        for conv, norm in zip(self.convs, self.norms):
            # Pinned: on a data x fsdp x tensor mesh XLA otherwise computes convolution and attention after it wrongly.
            y = constrain(conv(constrain(x * valid)))
            x = constrain(x + self.drop(norm(nn.relu(y)), deterministic=deterministic))
        return self.transformer(x, mask, deterministic)

    def pitch(self, bins_bt: jax.Array) -> jax.Array:
        """F0 bins `[b, t]` -> `[b, t, width]`."""
        return self.pitch_table(bins_bt) * self.width**0.5

    def place(self, features_btn: jax.Array) -> jax.Array:
        """Place in the phone `[b, t, n]` -> `[b, t, width]`."""
        return self.place_map(features_btn)

    def without(self, x_btc: jax.Array, dropped_b: jax.Array) -> jax.Array:
        """Rows that are dropped become one learned vector: the text of the unconditional model."""
        return jnp.where(dropped_b[:, None, None], self.null_vector.astype(self.dtype), x_btc)

    def everything(self, ids_bp: jax.Array, bins_bt: jax.Array, features_btn: jax.Array) -> tuple[jax.Array, ...]:
        """All three, to create every parameter."""
        placed = self.place(features_btn) if self.position else 0.0
        return self(ids_bp), self.pitch(bins_bt) if self.pitch_bins else 0.0, placed


class PromptEncoder(nn.Module):
    """Normalised prompt latents `[b, u, c] -> [b, u, width]`, zero at padding.

    Rows that are `dropped` (and rows without a single frame) become one learned vector at every position, which is the
    prompt of the unconditional model; their mask is then true everywhere.
    """

    width: int
    encoder: Any  # the numbers of the Transformer
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z_buc: jax.Array, mask_bu: jax.Array, dropped_b: jax.Array, deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (`[b, u, width]`, the mask `[b, u]` to attend with)."""
        null = self.param("null", named(nn.initializers.normal(1.0), ("embed",)), (self.width,)).astype(self.dtype)
        x = Dense(self.width, (None, "embed"), dtype=self.dtype, name="input")(z_buc)
        stack = Transformer(width=self.width, dropout=self.dropout, dtype=self.dtype, name="transformer", **self.encoder)
        x = stack(x, mask_bu, deterministic)
        dropped_b = dropped_b | ~mask_bu.any(-1)
        return jnp.where(dropped_b[:, None, None], null, x), mask_bu | dropped_b[:, None]
