"""Predictors of duration and pitch that listen to the prompt (NaturalSpeech 2, section 4.2)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.attention import MultiHeadAttention
from ns2_jax.layers.conv import Conv1D
from ns2_jax.layers.linear import Dense, LayerNorm, constrain


class PredictorGroup(nn.Module):
    """`convs` convolutions (ReLU, norm, dropout, plus the input), then attention to the prompt (plus the input)."""

    convs: int
    width: int
    kernel: int
    heads: int
    dropout: float
    attention_dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, mask_bt: jax.Array, prompt_buc: jax.Array, prompt_mask_bu: jax.Array, deterministic: bool,
    ) -> jax.Array:
        x, valid = x_btc, mask_bt[..., None].astype(self.dtype)
        for i in range(self.convs):
            y = Conv1D(self.width, self.kernel, dtype=self.dtype, name=f"conv{i}")(constrain(x * valid))
            y = LayerNorm(dtype=self.dtype, name=f"norm{i}")(nn.relu(constrain(y)))
            x = x + nn.Dropout(self.dropout)(y, deterministic=deterministic)
        y = LayerNorm(dtype=self.dtype, name="norm")(x)
        y = MultiHeadAttention(self.width, self.heads, self.dtype, name="attention")(y, prompt_buc, prompt_mask_bu)
        return constrain(x + nn.Dropout(self.attention_dropout)(y, deterministic=deterministic))


class Predictor(nn.Module):
    """`[b, t, c]` and a prompt `[b, u, c'] -> [b, t, outputs]` float32; linear at the end (a ReLU there can die).

    `layers` convolutions, attention after every `every` of them; `layers` must be a multiple. Groups are scanned. A
    pointwise map comes first where the input is not `width` wide.
    """

    layers: int = 30
    every: int = 3
    width: int = 512
    kernel: int = 3
    heads: int = 8
    dropout: float = 0.5
    attention_dropout: float = 0.2
    outputs: int = 1
    unroll: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_btc: jax.Array, mask_bt: jax.Array, prompt_buc: jax.Array, prompt_mask_bu: jax.Array, deterministic: bool = True,
    ) -> jax.Array:
        if self.layers % self.every:
            raise ValueError(f"predictor layers={self.layers} is not a multiple of every={self.every}")
        x = x_btc.astype(self.dtype)
        if x.shape[-1] != self.width:
            x = Dense(self.width, dtype=self.dtype, name="input")(x)

        def body(group: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return group(x, mask_bt, prompt_buc, prompt_mask_bu, deterministic), None

        group = PredictorGroup(
            self.every, self.width, self.kernel, self.heads, self.dropout, self.attention_dropout, self.dtype, name="groups")
        x, _ = nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.layers // self.every,
            unroll=self.unroll, metadata_params={nn.PARTITION_NAME: "layers"})(group, x, None)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
        return Dense(self.outputs, ("embed", None), kernel_init=small, name="output")(x.astype(jnp.float32))
