"""Layers that speak in a style: an encoder of reference mels, style-adaptive layer norm, and what is normed by it.

Meta-StyleSpeech (Min et al. 2021, section 3), whose encoders Grad-StyleSpeech takes over; sizes from its public code. Post-norm, Mish. Padding
is set to zero before every convolution and hidden from attention and means, so that what is valid does not depend on it.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.attention import MultiHeadAttention
from ns2_jax.layers.conv import Conv1D
from ns2_jax.layers.linear import Dense, Embed, LayerNorm, constrain, named, sinusoid


def mish(x: jax.Array) -> jax.Array:
    """`x tanh(softplus(x))` (Misra 2019)."""
    return x * jnp.tanh(nn.softplus(x))


class SALN(nn.Module):
    """Style-adaptive layer norm: `gamma(s) LayerNorm(h) + beta(s)` (Meta-StyleSpeech, equation 2); `[b, t, c]` and a style `[b, d]`.

    At first gamma is 1 and beta 0 for every style: plain layer norm. Statistics in float32.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc: jax.Array, style_bd: jax.Array) -> jax.Array:
        both = Dense(2 * x_btc.shape[-1], (None, "mlp"), kernel_init=nn.initializers.zeros, name="style")(style_bd.astype(jnp.float32))
        gamma, beta = jnp.split(both[:, None], 2, -1)
        x = x_btc.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return ((1 + gamma) * normed + beta).astype(self.dtype)


class StyleEncoder(nn.Module):
    """Reference mel `[b, u, c]` -> style float32 `[b, width]`: two pointwise layers, two gated convolutions of five taps, self-attention, a
    linear map, then the mean over valid frames (Meta-StyleSpeech, section 3.1). No norm anywhere.

    Rows that are `dropped` or without a frame get a learned vector, the style of nobody in particular.
    """

    width: int = 128
    heads: int = 2
    kernel: int = 5
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mel_buc: jax.Array, mask_bu: jax.Array, dropped_b: jax.Array, deterministic: bool = True) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        valid = mask_bu[..., None].astype(self.dtype)
        x = drop(mish(Dense(self.width, (None, "mlp"), dtype=self.dtype, name="spectral0")(constrain(mel_buc))))
        x = drop(mish(Dense(self.width, dtype=self.dtype, name="spectral1")(x)))
        for i in range(2):
            a, b = jnp.split(Conv1D(2 * self.width, self.kernel, dtype=self.dtype, name=f"temporal{i}")(constrain(x * valid)), 2, -1)
            x = constrain(x + drop(a * nn.sigmoid(b)))
        x = x * valid
        x = x + drop(MultiHeadAttention(self.width, self.heads, self.dtype, name="attention")(x, x, mask_bu))
        x = Dense(self.width, dtype=self.dtype, name="output")(x).astype(jnp.float32)
        frames = mask_bu.sum(-1, keepdims=True)
        mean = (x * mask_bu[..., None]).sum(1) / jnp.maximum(frames, 1)
        null = self.param("null", named(nn.initializers.normal(0.1), (None,)), (self.width,))
        return jnp.where(dropped_b[:, None] | (frames == 0), null, mean)


class StyledBlock(nn.Module):
    """Self-attention, then a convolution of `kernel` taps to `hidden`, Mish, and a pointwise one back; a norm after each, styled if there is a
    style."""

    width: int
    hidden: int
    heads: int
    kernel: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, style_bd: jax.Array | None, deterministic: bool) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        valid = mask_bt[..., None].astype(self.dtype)

        def norm(name: str, x: jax.Array) -> jax.Array:
            y = LayerNorm(dtype=self.dtype, name=name)(x) if style_bd is None else SALN(dtype=self.dtype, name=name)(x, style_bd)
            return constrain(y * valid)

        x = norm("norm1", x_btc + drop(MultiHeadAttention(self.width, self.heads, self.dtype, name="attention")(x_btc, x_btc, mask_bt)))
        h = mish(Conv1D(self.hidden, self.kernel, dtype=self.dtype, name="widen")(x))
        return norm("norm2", x + drop(Dense(self.width, ("mlp", "embed"), dtype=self.dtype, name="narrow")(h)))


class StyledTransformer(nn.Module):
    """`layers` blocks (scanned: one compiled body): `[b, t, width] -> [b, t, width]`, zero at padding. Positions are the caller's."""

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
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, style_bd: jax.Array | None = None, deterministic: bool = True) -> jax.Array:
        def body(block: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, mask_bt, style_bd, deterministic), None

        if self.remat:
            body = nn.remat(body, prevent_cse=False)
        block = StyledBlock(self.width, self.hidden, self.heads, self.kernel, self.dropout, self.dtype, name="blocks")
        x = constrain(x_btc.astype(self.dtype) * mask_bt[..., None].astype(self.dtype))
        return nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers,
            unroll=self.unroll, metadata_params={nn.PARTITION_NAME: "layers"})(block, x, None)[0]


class TextEncoder(nn.Module):
    """Phone ids `[b, p]` (0 is padding) -> `[b, p, width]`, zero at padding: two convolutions of three taps and a linear map beside the
    embedding, then `encoder`, without any style."""

    phones: int
    width: int
    encoder: Any  # the numbers of the transformer
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids_bp: jax.Array, deterministic: bool = True) -> jax.Array:
        mask = ids_bp > 0
        valid = mask[..., None].astype(self.dtype)
        x = Embed(self.phones, self.width, nn.initializers.normal(1.0), self.dtype, name="table")(ids_bp) * valid
        y = x
        for i in range(2):
            y = mish(Conv1D(self.width, 3, dtype=self.dtype, name=f"prenet{i}")(constrain(y * valid)))
            y = constrain(nn.Dropout(self.dropout)(y, deterministic=deterministic))
        x = x + Dense(self.width, dtype=self.dtype, name="prenet")(y)
        x = x + sinusoid(jnp.arange(ids_bp.shape[1]), self.width).astype(self.dtype)
        stack = StyledTransformer(width=self.width, dropout=self.dropout, dtype=self.dtype, name="transformer", **self.encoder)
        return stack(x, mask, None, deterministic)


class PriorEncoder(nn.Module):
    """Phone vectors repeated over their frames `[b, t, width]`, the frames' numbers inside their phones `[b, t]` and a style -> the average mel
    `[b, t, channels]` float32, zero at padding (Grad-StyleSpeech's style-adaptive encoder). `styled=False`: without style, its ablation."""

    channels: int
    width: int
    encoder: Any  # the numbers of the transformer
    styled: bool = True
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, place_bt: jax.Array, mask_bt: jax.Array, style_bd: jax.Array, deterministic: bool = True,
    ) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=deterministic)
        x = constrain(x_btc + sinusoid(place_bt, self.width).astype(self.dtype))
        x = drop(mish(Dense(self.width // 2, dtype=self.dtype, name="prenet0")(x)))
        x = drop(mish(Dense(self.width, ("mlp", "embed"), dtype=self.dtype, name="prenet1")(x)))
        stack = StyledTransformer(width=self.width, dropout=self.dropout, dtype=self.dtype, name="transformer", **self.encoder)
        x = stack(x, mask_bt, style_bd if self.styled else None, deterministic)
        return Dense(self.channels, ("embed", None), name="output")(x.astype(jnp.float32)) * mask_bt[..., None]


class StyledPredictor(nn.Module):
    """`[b, p, c]` and a style -> one number a phone `[b, p]` float32: two convolutions of three taps, each with ReLU, SALN and dropout, then
    a linear map (One TTS Alignment's duration predictor, with the style)."""

    width: int = 256
    kernel: int = 3
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bpc: jax.Array, mask_bp: jax.Array, style_bd: jax.Array, deterministic: bool = True) -> jax.Array:
        valid = mask_bp[..., None].astype(self.dtype)
        x = x_bpc
        for i in range(2):
            x = nn.relu(Conv1D(self.width, self.kernel, dtype=self.dtype, name=f"conv{i}")(constrain(x * valid)))
            x = nn.Dropout(self.dropout)(SALN(dtype=self.dtype, name=f"norm{i}")(x, style_bd), deterministic=deterministic)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        return Dense(1, ("embed", None), kernel_init=small, name="output")(x.astype(jnp.float32))[..., 0]
