"""Spectral discriminators: complex STFTs at several resolutions, each judged by its own small network.

`kind="2d"` is the multi-scale complex STFT discriminator of EnCodec (section 3.4: kernels 3 x 9, frequency halved
three times, dilated in time). `kind="1d"` sees a frame's whole spectrum as channels and convolves over time
only: a tenth of the cost on a CPU, and not equivariant to pitch.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.conv import Conv1D, Conv2D
from ns2_jax.layers.linear import Dense
from ns2_jax.maths import spectral


class Spectral2D(nn.Module):
    """`audio [b, s] -> (logits [b, n], features)`."""

    size: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        spectrum = spectral.stft(audio_bs, self.size, self.size // 4)
        x = jnp.stack([spectrum.real, spectrum.imag], -1)
        features = []
        layers = [((3, 9), (1, 1), (1, 1)), *[((3, 9), (1, 2), (d, 1)) for d in (1, 2, 4)], ((3, 3), (1, 1), (1, 1))]
        for kernel, stride, dilation in layers:
            conv = Conv2D(self.filters, kernel, stride, dilation, weight_norm=True, dtype=self.dtype)
            x = nn.leaky_relu(conv(x), 0.2)
            features.append(x)
        logits = Conv2D(1, (3, 3), weight_norm=True, axes=("embed", None), dtype=self.dtype)(x)
        return logits.reshape(logits.shape[0], -1).astype(jnp.float32), features


class Spectral1D(nn.Module):
    """`audio [b, s] -> (logits [b, n], features)`."""

    size: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x = spectral.stft(audio_bs, self.size, self.size // 4)
        level = spectral.magnitude(x, 1e-4)
        x = jnp.concatenate([x.real * level**-0.7, x.imag * level**-0.7, 0.3 * jnp.log(level)], -1)
        x = nn.leaky_relu(Dense(self.filters, dtype=self.dtype)(x), 0.2)
        features = [x]
        for dilation in (1, 2, 4):
            conv = Conv1D(self.filters, 3, dilation=dilation, weight_norm=True, as_product=True, dtype=self.dtype)
            x = nn.leaky_relu(conv(x), 0.2)
            features.append(x)
        logits = Conv1D(1, 3, weight_norm=True, as_product=True, axes=("embed", None), dtype=self.dtype)(x)
        return logits.reshape(logits.shape[0], -1).astype(jnp.float32), features


class Discriminators(nn.Module):
    """One judge per STFT size: a list of (logits `[b, n]`, features)."""

    kind: str
    sizes: tuple[int, ...]
    filters: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> list[tuple[jax.Array, list[jax.Array]]]:
        judges = {"1d": Spectral1D, "2d": Spectral2D}
        if self.kind not in judges:
            raise ValueError(f"discriminator kind={self.kind!r}; expected one of {sorted(judges)}")
        return [judges[self.kind](size, self.filters, self.dtype)(audio_bs) for size in self.sizes]
