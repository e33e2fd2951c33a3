"""Score networks on mels: noisy mel, time, average mel and style -> one number a bin.

`UNet` is Grad-TTS's (Popov et al. 2021, section 4.2; layout of its public code): a 2-D U-Net over the mel as an image. `FrameNet` is ours: ConvNeXt
blocks over frames with the same interface, far cheaper on a CPU. Unlike the public code neither sees padding: group norm and the
linear attention leave it out of their sums.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.attention import HIDDEN
from ns2_jax.layers.conv import Conv2D, ConvTranspose2D, DepthwiseConv1D
from ns2_jax.layers.linear import Dense, constrain, rms_norm, sinusoid
from ns2_jax.layers.style import mish

near_zero = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


class GroupNorm(nn.Module):
    """Group norm of `[b, t, f, c]` over the valid frames and all bins of each group of channels; statistics in float32."""

    groups: int = 8
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btfc: jax.Array, valid_bt11: jax.Array) -> jax.Array:
        b, t, f, c = x_btfc.shape
        if c % self.groups:
            raise ValueError(f"group norm of {c} channels in {self.groups} groups: not a multiple")
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x = x_btfc.astype(jnp.float32).reshape(b, t, f, self.groups, c // self.groups)
        valid = valid_bt11.astype(jnp.float32)[..., None]
        number = jnp.maximum(valid.sum(1, keepdims=True), 1) * f * (c // self.groups)
        mean = (x * valid).sum((1, 2, 4), keepdims=True) / number
        variance = (jnp.square(x - mean) * valid).sum((1, 2, 4), keepdims=True) / number
        x = ((x - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(b, t, f, c)
        return (x * scale + bias).astype(self.dtype)


class ConvBlock(nn.Module):
    """Convolution 3 x 3, group norm, Mish; zero at padding before and after."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        x = Conv2D(self.features, (3, 3), dtype=self.dtype, name="conv")(constrain(x * valid))
        return constrain(mish(GroupNorm(dtype=self.dtype, name="norm")(x, valid)) * valid)


class ResNetBlock(nn.Module):
    """Two blocks with the time (and style) added between them, plus the input."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, time_bc: jax.Array) -> jax.Array:
        h = ConvBlock(self.features, self.dtype, name="block1")(x, valid)
        h = h + Dense(self.features, dtype=self.dtype, name="time")(mish(time_bc))[:, None, None]
        h = ConvBlock(self.features, self.dtype, name="block2")(h, valid)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="skip")(x * valid)  # a convolution of one tap
        return h + x


class LinearAttention(nn.Module):
    """`x + gate * attention(x)`, the gate 0 at first; keys are normalised over all valid places, so the cost is linear in them."""

    heads: int = 4
    size: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        b, t, f, c = x.shape
        qkv = Dense(3 * self.heads * self.size, ("embed", "heads"), use_bias=False, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(b, t * f, 3, self.heads, self.size), 2, 0)
        there = jnp.broadcast_to(valid[:, :, :, 0] > 0, (b, t, f)).reshape(b, t * f, 1, 1)
        key = jax.nn.softmax(jnp.where(there, key.astype(jnp.float32), HIDDEN), 1).astype(self.dtype)
        context = jnp.einsum("bnhd,bnhe->bhde", key, value)
        mixed = jnp.einsum("bhde,bnhd->bnhe", context, query).reshape(b, t, f, self.heads * self.size)
        gate = self.param("gate", nn.initializers.zeros, (1,)).astype(self.dtype)
        return constrain(x + gate * Dense(c, ("heads", "embed"), dtype=self.dtype, name="out")(mixed))


class UNet(nn.Module):
    """`z, mu [b, t, c]`, times `[b]`, style `[b, d]` or None, mask `[b, t]` -> float32 `[b, t, c]`, zero at padding.

    Levels are `width` times `multipliers` wide, each half as fine as the one before in time and frequency: c must be a multiple of
    2^(levels - 1), t is padded to one. The style is added to the embedding of time (FiLM's shift in every block); with `style_channel` it is
    also a third channel of the image, Grad-TTS's way of naming a speaker. At width 64 and without style it has Grad-TTS's 7,634,887 parameters.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    style_channel: bool = False
    time_scale: float = 1000.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z_btc: jax.Array, t_b: jax.Array, mu_btc: jax.Array, style_bd: jax.Array | None, mask_bt: jax.Array,
    ) -> jax.Array:
        frames, channels, coarse = *z_btc.shape[1:], 2 ** (len(self.multipliers) - 1)
        if channels % coarse:
            raise ValueError(f"a U-Net of {len(self.multipliers)} levels halves the mel {len(self.multipliers) - 1} times: "
                             f"{channels} bands are not a multiple of {coarse}")
        time = Dense(4 * self.width, name="time0")(sinusoid(t_b, self.width, self.time_scale))
        time = Dense(self.width, ("mlp", "embed"), name="time1")(mish(time))
        image = [mu_btc, z_btc]
        if style_bd is not None:
            time = time + Dense(self.width, (None, "embed"), name="style")(style_bd)
            if self.style_channel:
                said = Dense(channels, ("mlp", None), name="channel1")(mish(Dense(4 * self.width, (None, "mlp"), name="channel0")(style_bd)))
                image.append(jnp.broadcast_to(said[:, None], z_btc.shape))
        time = time.astype(self.dtype)
        padding = ((0, 0), (0, -frames % coarse))
        x = constrain(jnp.pad(jnp.stack(image, -1), (*padding, (0, 0), (0, 0))).astype(self.dtype))
        masks = [jnp.pad(mask_bt, padding)[..., None, None].astype(self.dtype)]
        widths, skips = [self.width * times for times in self.multipliers], []
        attend = lambda name: LinearAttention(dtype=self.dtype, name=name)
        for i, width in enumerate(widths):
            for j in range(2):
                x = ResNetBlock(width, self.dtype, name=f"down{i}_{j}")(x, masks[-1], time)
            x = attend(f"down{i}_attention")(x, masks[-1])
            skips.append(x)
            if i < len(widths) - 1:
                x = Conv2D(width, (3, 3), (2, 2), dtype=self.dtype, name=f"down{i}")(constrain(x * masks[-1]))
                masks.append(masks[-1][:, ::2])
        x = ResNetBlock(widths[-1], self.dtype, name="middle0")(x, masks[-1], time)
        x = attend("middle_attention")(x, masks[-1])
        x = ResNetBlock(widths[-1], self.dtype, name="middle1")(x, masks[-1], time)
        for i in range(len(widths) - 1, 0, -1):  # the finest level's skip is not used, as in the public code
            x, mask = jnp.concatenate([x, skips[i]], -1), masks.pop()
            for j in range(2):
                x = ResNetBlock(widths[i - 1], self.dtype, name=f"up{i}_{j}")(x, mask, time)
            x = attend(f"up{i}_attention")(x, mask)
            x = ConvTranspose2D(widths[i - 1], dtype=self.dtype, name=f"up{i}")(constrain(x * mask))
        x = ConvBlock(self.width, self.dtype, name="final")(x, masks[0])
        x = Dense(1, ("embed", None), name="output")(x.astype(jnp.float32) * masks[0].astype(jnp.float32))
        return x[:, :frames, :, 0] * mask_bt[..., None]


class FrameNet(nn.Module):
    """`UNet`'s interface, one vector a frame: ConvNeXt blocks whose normed input time and style scale and shift."""

    width: int = 256
    blocks: int = 6
    kernel: int = 7
    expansion: int = 3
    time_scale: float = 1000.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z_btc: jax.Array, t_b: jax.Array, mu_btc: jax.Array, style_bd: jax.Array | None, mask_bt: jax.Array,
    ) -> jax.Array:
        valid = mask_bt[..., None].astype(self.dtype)
        said = Dense(2 * self.width, name="time0")(sinusoid(t_b, self.width, self.time_scale))
        said = Dense(self.width, ("mlp", "embed"), name="time1")(mish(said))
        if style_bd is not None:
            said = said + Dense(self.width, (None, "embed"), name="style")(style_bd)
        films = Dense(2 * self.blocks * self.width, kernel_init=near_zero, name="film")(mish(said)).astype(self.dtype)
        films = jnp.split(films[:, None], self.blocks, -1)
        x = constrain(Dense(self.width, (None, "embed"), dtype=self.dtype, name="input")(jnp.concatenate([z_btc, mu_btc], -1)))
        for i in range(self.blocks):
            scale, shift = jnp.split(films[i], 2, -1)
            y = DepthwiseConv1D(self.kernel, dtype=self.dtype, name=f"depthwise{i}")(x * valid)
            # Without the barrier XLA:CPU recomputes the depthwise products inside every consumer.
            y = rms_norm(jax.lax.optimization_barrier(y)) * (1 + scale) + shift
            y = nn.gelu(Dense(self.expansion * self.width, dtype=self.dtype, name=f"widen{i}")(y))
            x = constrain(x + Dense(self.width, ("mlp", "embed"), kernel_init=near_zero, dtype=self.dtype, name=f"narrow{i}")(y))
        x = Dense(z_btc.shape[-1], ("embed", None), kernel_init=near_zero, name="output")(rms_norm(x).astype(jnp.float32))
        return x * mask_bt[..., None]


NETWORKS = {"unet": UNet, "frames": FrameNet}
