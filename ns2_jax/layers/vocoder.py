"""Vocoders: mel spectrogram -> waveform, `hop` samples a frame exactly.

`kind="hifigan"` is HiFi-GAN's generator (Kong et al. 2020, section 2.2): transposed convolutions, after each a mean of residual stacks of several
kernels and dilations. With its defaults it is V1, 13,926,017 parameters without the gains of weight norm. `kind="istft"` does everything at
frame rate and ends in an inverse STFT (Vocos, Siuzdak 2023), which is what runs fast on a CPU: blocks add to the spectral envelope that
the mel itself describes, and make up a phase.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.layers.codec import ConvNeXt, mel_interpolate, small
from ns2_jax.layers.conv import Conv1D, ConvTranspose1D, receptive
from ns2_jax.layers.linear import Dense, rms_norm
from ns2_jax.maths import spectral


class ResidualStack(nn.Module):
    """HiFi-GAN's ResBlock1: per dilation a dilated convolution and a plain one, each after a leaky ReLU, added to the input."""

    kernel: int
    dilations: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for dilation in self.dilations:
            y = Conv1D(x.shape[-1], self.kernel, dilation=dilation, weight_norm=True, dtype=self.dtype)(nn.leaky_relu(x, 0.1))
            x = x + Conv1D(x.shape[-1], self.kernel, weight_norm=True, dtype=self.dtype)(nn.leaky_relu(y, 0.1))
        return x


class HiFiGAN(nn.Module):
    """`mel [b, t, mels] -> audio [b, t * prod(strides)]` in (-1, 1)."""

    width: int
    strides: tuple[int, ...]
    kernels: tuple[int, ...]
    dilations: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, mel_btc: jax.Array) -> jax.Array:
        x = Conv1D(self.width, 7, weight_norm=True, axes=(None, "mlp"), dtype=self.dtype, name="input")(mel_btc)
        for i, stride in enumerate(self.strides):
            x = ConvTranspose1D(self.width // 2 ** (i + 1), stride, weight_norm=True, dtype=self.dtype)(nn.leaky_relu(x, 0.1))
            x = sum(ResidualStack(kernel, self.dilations, self.dtype)(x) for kernel in self.kernels) / len(self.kernels)
        x = Conv1D(1, 7, kernel_init=small(0.01), axes=("embed", None), dtype=self.dtype, name="output")(nn.leaky_relu(x))
        return jnp.tanh(x[..., 0].astype(jnp.float32))


class InverseSTFT(nn.Module):
    """`mel [b, t, mels] -> audio [b, t * hop]`: ConvNeXt blocks, then level and phase of every bin of an STFT of `size` and `hop`."""

    width: int
    blocks: int
    rate: int
    hop: int
    size: int
    fmax: float
    dtype: Any

    @nn.compact
    def __call__(self, mel_btc: jax.Array) -> jax.Array:
        mels, bins = mel_btc.shape[-1], self.size // 2 + 1
        bank = spectral.mel_filterbank(self.rate, self.size, mels, fmax=self.fmax)
        level = mel_btc.astype(jnp.float32) - np.log(np.maximum(bank.sum(0), 1e-5))  # of the mean magnitude that a filter sees
        hz = np.linspace(0, self.rate / 2, bins)
        base = level @ mel_interpolate(2 * self.fmax, mels, hz)
        h = Conv1D(self.width, 7, axes=(None, "mlp"), dtype=self.dtype, name="input")((mel_btc - MEL_MEAN) / MEL_DEVIATION)
        for _ in range(self.blocks):
            h = ConvNeXt(7, 3, False, self.dtype)(h)
        h = rms_norm(h)
        added = Dense(bins, kernel_init=small(0.01), dtype=self.dtype, name="level")(h).astype(jnp.float32)
        phase = Dense(2 * bins, dtype=self.dtype, name="phase")(h).astype(jnp.float32)
        cosine, sine = jnp.split(phase, 2, -1)
        scale = jnp.exp(jnp.clip(base + added, -12.0, 6.0)) * jax.lax.rsqrt(jnp.square(cosine) + jnp.square(sine) + 1e-6)
        return spectral.istft(jax.lax.complex(scale * cosine, scale * sine), self.size, self.hop)


MEL_MEAN, MEL_DEVIATION = -5.0, 2.5
"""Round figures of natural log-mel magnitudes in speech; they only set the scale of the first layer's input."""


class Vocoder(nn.Module):
    """Log-mel analysis and a network back; the numbers of the mel are the acoustic model's too.

    The mel is `spectral.log_mel`: natural logarithm of magnitudes in `mels` Slaney bands from 0 to `fmax` Hz (0: half the rate), windows of `size`
    samples, floor `floor`. "hifigan": `width` channels halved at every one of `strides`, which multiply to `hop`; `kernels` and `dilations` of
    its residual stacks. "istft": `width` everywhere, `blocks` blocks.
    """

    kind: str = "hifigan"
    rate: int = 22050
    hop: int = 256
    size: int = 1024
    mels: int = 80
    fmax: float = 8000.0
    floor: float = 1e-5
    width: int = 512
    strides: tuple[int, ...] = (8, 8, 2, 2)
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    blocks: int = 8
    dtype: Any = jnp.float32

    def setup(self):
        if self.kind == "hifigan":
            if math.prod(self.strides) != self.hop:
                raise ValueError(f"vocoder strides {self.strides} multiply to {math.prod(self.strides)}, not to hop={self.hop}")
            self.generator = HiFiGAN(self.width, self.strides, self.kernels, self.dilations, self.dtype)
        elif self.kind == "istft":
            self.generator = InverseSTFT(self.width, self.blocks, self.rate, self.hop, self.size, self.highest, self.dtype)
        else:
            raise ValueError(f"vocoder kind={self.kind!r}; expected 'hifigan' or 'istft'")

    @property
    def highest(self) -> float:
        """Hz of the upper edge of the mel's last band."""
        return float(self.fmax or self.rate / 2)

    def encode(self, audio_bs: jax.Array) -> jax.Array:
        """Audio float32 `[b, t * hop]` -> log-mel float32 `[b, t, mels]`. No parameters."""
        return spectral.log_mel(audio_bs, self.rate, self.size, self.hop, self.mels, self.floor, self.highest)

    def decode(self, mel_btc: jax.Array) -> jax.Array:
        """Log-mel `[b, t, mels]` -> audio float32 `[b, t * hop]`."""
        return self.generator(mel_btc).astype(jnp.float32)

    def reach(self, part: str) -> tuple[int, int]:
        """Frames (to the left, to the right) on which a frame of `encode` or `decode` depends besides its own. Raises ValueError for
        another part."""
        if part not in ("encode", "decode"):
            raise ValueError(f"reach of {part!r}; expected 'encode' or 'decode'")
        window = math.ceil((self.size / self.hop - 1) / 2)
        if part == "encode":
            return window, window
        if self.kind == "istft":
            return (window + 3 + 3 * self.blocks,) * 2
        widest = [layer for d in self.dilations for layer in ((max(self.kernels), d, 1), (max(self.kernels), 1, 1))]
        layers = [(7, 1, 1), *(layer for s in self.strides for layer in ((2 * s, 1, -s), *widest)), (7, 1, 1)]
        first, last = receptive(layers, 0, self.hop - 1)
        return -first, last

    def __call__(self, mel_btc: jax.Array) -> jax.Array:
        """`decode`: what has parameters."""
        return self.decode(mel_btc)
