"""The aligner's networks: how well each frame of a recording fits each phone of its text.

Badlani et al. 2021 ("One TTS Alignment To Rule Them All", section 2.1): a phone and a frame become points, and their score falls with
the squared distance. The frames' points come from ConvNeXt blocks that see few frames to either side: what sees far can say where a phone
is from where its neighbours are, and boundaries wander.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.codec import ConvNeXt
from ns2_jax.layers.conv import Conv1D
from ns2_jax.layers.linear import Dense, Embed, constrain, rms_norm


class Aligner(nn.Module):
    """Features `[b, t, c]`, their mask and phone ids `[b, p]` (0 is padding) -> scores `[b, t, p]` float32, at most 0.

    `score = -temperature |q_t - k_p|^2` with points of `channels` numbers. The text encoder sees `text_kernel` phones, the mel
    encoder `input_kernel` frames and `kernel - 1` more a block. Padding changes nothing.
    """

    phones: int
    width: int = 256
    blocks: int = 2
    kernel: int = 3
    input_kernel: int = 3
    expansion: int = 2
    text_width: int = 128
    text_kernel: int = 1
    channels: int = 64
    temperature: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features_btc: jax.Array, mask_bt: jax.Array, ids_bp: jax.Array) -> jax.Array:
        valid = mask_bt[..., None].astype(self.dtype)
        x = Conv1D(self.width, self.input_kernel, dtype=self.dtype, name="input")(constrain(features_btc.astype(self.dtype) * valid))
        for i in range(self.blocks):
            x = ConvNeXt(self.kernel, self.expansion, False, self.dtype, name=f"block{i}")(constrain(x * valid))
        q = Dense(self.channels, ("mlp", "embed"), dtype=self.dtype, name="output")(nn.gelu(rms_norm(x)))

        there = (ids_bp > 0)[..., None].astype(self.dtype)
        y = Embed(self.phones, self.text_width, nn.initializers.normal(1.0), dtype=self.dtype, name="table")(ids_bp) * there
        y = nn.gelu(Conv1D(2 * self.text_width, self.text_kernel, dtype=self.dtype, name="text")(constrain(y)))
        k = Dense(self.channels, ("mlp", "embed"), dtype=self.dtype, name="text_output")(y)

        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        product = jnp.einsum("btc,bpc->btp", q, k)
        distance = jnp.square(q).sum(-1)[:, :, None] + jnp.square(k).sum(-1)[:, None, :] - 2 * product
        return -self.temperature * jnp.maximum(distance, 0.0)
