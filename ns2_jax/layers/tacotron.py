"""From phones to frames as in Tacotron 2 and Non-Attentive Tacotron (Shen et al. 2018, 2020), and the voice of a prompt as one vector.

Padding is set to zero before every convolution, and the LSTMs pass over it, so what is valid does not depend on how far a row is padded.
Batch norms are layer norms here: their statistics would run over padding and over the other rows.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.conv import Conv1D
from ns2_jax.layers.linear import Dense, Embed, LayerNorm, constrain, named
from ns2_jax.layers.recurrent import BiLSTM

small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


class TextEncoder(nn.Module):
    """Phone ids `[b, p]`, 0 is padding -> `[b, p, width]`: a table, `convs` convolutions (norm, ReLU, dropout), a BiLSTM with zoneout."""

    phones: int
    width: int = 1024
    convs: int = 3
    kernel: int = 5
    dropout: float = 0.5
    zoneout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids_bp: jax.Array, deterministic: bool = True) -> jax.Array:
        valid = (ids_bp > 0)[..., None].astype(self.dtype)
        x = Embed(self.phones, self.width, nn.initializers.normal(1.0), self.dtype, name="table")(ids_bp)
        for i in range(self.convs):
            y = Conv1D(self.width, self.kernel, dtype=self.dtype, name=f"conv{i}")(constrain(x * valid))
            x = nn.relu(LayerNorm(dtype=self.dtype, name=f"norm{i}")(constrain(y)))
            x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return BiLSTM(self.width // 2, self.zoneout, self.dtype, name="lstm")(x, ids_bp > 0, deterministic)


class RecurrentPredictor(nn.Module):
    """`[b, p, c] -> [b, p]` float32, zero at padding: `layers` BiLSTMs of `width` a direction and a linear map."""

    layers: int = 2
    width: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bpc: jax.Array, mask_bp: jax.Array, deterministic: bool = True) -> jax.Array:
        x = x_bpc
        for i in range(self.layers):
            x = BiLSTM(self.width, dtype=self.dtype, name=f"lstm{i}")(x, mask_bp, deterministic)
        y = Dense(1, ("embed", None), kernel_init=small, name="output")(x.astype(jnp.float32))
        return y[..., 0] * mask_bp


class VoiceEncoder(nn.Module):
    """Prompt features `[b, u, c] -> [b, width]`: convolutions, then mean and deviation over the valid frames of each row.

    Rows that are `dropped`, and rows without a frame, become one learned vector: the voice of the unconditional model.
    """

    width: int
    hidden: int = 256
    blocks: int = 3
    kernel: int = 5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_buc: jax.Array, mask_bu: jax.Array, dropped_b: jax.Array, deterministic: bool = True) -> jax.Array:
        del deterministic  # nothing drops out
        null = self.param("null", named(nn.initializers.normal(1.0), ("embed",)), (self.width,))
        valid = mask_bu[..., None].astype(self.dtype)
        x = Dense(self.hidden, (None, "embed"), dtype=self.dtype, name="input")(x_buc)
        for i in range(self.blocks):
            y = Conv1D(self.hidden, self.kernel, dtype=self.dtype, name=f"conv{i}")(constrain(x * valid))
            x = x + nn.relu(LayerNorm(dtype=self.dtype, name=f"norm{i}")(constrain(y)))
        x, valid = x.astype(jnp.float32), valid.astype(jnp.float32)
        count = jnp.maximum(valid.sum(1), 1.0)
        mean = (x * valid).sum(1) / count
        deviation = jnp.sqrt((jnp.square(x - mean[:, None]) * valid).sum(1) / count + 1e-5)
        y = Dense(self.width, ("embed", None), name="output")(jnp.concatenate([mean, deviation], -1))
        return jnp.where((dropped_b | ~mask_bu.any(-1))[:, None], null, y)


class Frames(nn.Module):
    """What is done to phone vectors and to the frames they have become: the voice joins, the place in the phone, the text that is left out,
    and the auxiliary prediction of mel."""

    width: int
    position: bool = False
    mels: int = 80
    dtype: Any = jnp.float32

    def setup(self):
        self.voice_map = Dense(self.width, (None, "embed"), kernel_init=small, dtype=self.dtype)
        self.null = self.param("null", named(nn.initializers.normal(1.0), ("embed",)), (self.width,))
        if self.position:
            self.place_map = Dense(self.width, (None, "embed"), dtype=self.dtype)
        if self.mels:
            self.mel_conv = Conv1D(self.width, 5, dtype=self.dtype)
            self.mel_map = Dense(self.mels, ("embed", None))

    def voiced(self, h_bpc: jax.Array, voice_bc: jax.Array) -> jax.Array:
        """Phone vectors with the voice added."""
        return h_bpc + self.voice_map(voice_bc)[:, None]

    def place(self, features_btn: jax.Array) -> jax.Array:
        """Place in the phone `[b, t, n]` -> `[b, t, width]`."""
        return self.place_map(features_btn)

    def without(self, x_btc: jax.Array, dropped_b: jax.Array) -> jax.Array:
        """Rows that are dropped become one learned vector: the text of the unconditional model."""
        return jnp.where(dropped_b[:, None, None], self.null.astype(x_btc.dtype), x_btc)

    def mel(self, x_btc: jax.Array, mask_bt: jax.Array) -> jax.Array:
        """Frames -> `[b, t, mels]` float32."""
        y = nn.relu(constrain(self.mel_conv(constrain(x_btc * mask_bt[..., None].astype(self.dtype)))))
        return self.mel_map(y.astype(jnp.float32))

    def everything(self, h_bpc: jax.Array, voice_bc: jax.Array, features_btn: jax.Array) -> None:
        """Creates every parameter."""
        x, mask = self.voiced(h_bpc, voice_bc), jnp.ones(h_bpc.shape[:2], bool)
        if self.position:
            x = x + self.place(features_btn)
        if self.mels:
            self.mel(x, mask)
