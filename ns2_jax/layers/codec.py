"""The codec's networks: waveform -> latent frames -> waveform.

`kind="conv"` is the paper's: SoundStream's convolutional encoder and decoder. Its widths are ours, found so that with
the codebooks they meet the paper's 27 M. `kind="frame"` does everything at frame rate
(STFT in, ConvNeXt blocks, inverse STFT out), which is what trains on two CPU cores.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.layers.conv import Conv1D, ConvTranspose1D, DepthwiseConv1D
from ns2_jax.layers.linear import Dense, rms_norm
from ns2_jax.maths import spectral


def small(variance: float):
    """Fan-in initialiser of a given output variance: residual branches start quiet, heads near zero."""
    return nn.initializers.variance_scaling(variance, "fan_in", "truncated_normal")


class Snake(nn.Module):
    """`x + sin^2(a x) / a` with one `a` per channel (Ziyin et al. 2020)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("alpha", nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)
        return x + jnp.square(jnp.sin(a * x)) / (a + 1e-9)


class ResidualUnit(nn.Module):
    """Snake, dilated conv k7, Snake, conv k1, plus the input."""

    dilation: int
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = Conv1D(width, 7, dilation=self.dilation, causal=self.causal, dtype=self.dtype)(Snake()(x))
        return x + Conv1D(width, 1, kernel_init=small(0.05), dtype=self.dtype)(Snake()(y))


class ConvEncoder(nn.Module):
    """`audio [b, s] -> z [b, s / prod(strides), channels]`."""

    channels: int
    width: int
    strides: tuple[int, ...]
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> jax.Array:
        x = Conv1D(self.width, 7, causal=self.causal, dtype=self.dtype)(audio_bs[..., None])
        for i, stride in enumerate(self.strides):
            for dilation in (1, 3, 9):
                x = ResidualUnit(dilation, self.causal, self.dtype)(x)
            x = Conv1D(self.width * 2 ** (i + 1), 2 * stride, stride=stride, causal=self.causal, dtype=self.dtype)(Snake()(x))
        return Conv1D(self.channels, 3, causal=self.causal, dtype=self.dtype)(Snake()(x))


class ConvDecoder(nn.Module):
    """`z [b, t, channels] -> audio [b, t * prod(strides)]` in (-1, 1)."""

    width: int
    strides: tuple[int, ...]
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, z_btc: jax.Array) -> jax.Array:
        x = z_btc
        for dilation in (1, 3, 9):  # the latent stack
            x = ResidualUnit(dilation, self.causal, self.dtype)(x)
        x = Conv1D(self.width, 7, causal=self.causal, dtype=self.dtype)(x)
        for i, stride in enumerate(reversed(self.strides)):
            x = ConvTranspose1D(self.width // 2 ** (i + 1), stride, causal=self.causal, dtype=self.dtype)(Snake()(x))
            for dilation in (1, 3, 9):
                x = ResidualUnit(dilation, self.causal, self.dtype)(x)
        x = Conv1D(1, 7, causal=self.causal, kernel_init=small(0.01), axes=("embed", None), dtype=self.dtype)(Snake()(x))
        return jnp.tanh(x[..., 0].astype(jnp.float32))


class ConvNeXt(nn.Module):
    """Depthwise conv, RMS norm without gain, widen, GELU, narrow, plus the input (Liu et al. 2022)."""

    kernel: int
    expansion: int
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = DepthwiseConv1D(self.kernel, causal=self.causal, dtype=self.dtype)(x)
        # Without the barrier XLA:CPU recomputes the depthwise products inside every consumer.
        y = rms_norm(jax.lax.optimization_barrier(y))
        y = nn.gelu(Dense(self.expansion * width, dtype=self.dtype)(y))
        return x + Dense(width, ("mlp", "embed"), kernel_init=small(0.1), dtype=self.dtype)(y)


def mel_average(rate: int, size: int, mels: int) -> np.ndarray:
    """Filters `[size // 2 + 1, mels]` that average magnitudes (columns sum to one), none of them empty."""
    bank = spectral.mel_filterbank(rate, size, mels).astype(np.float64)
    centres = spectral.mel_to_hz(np.linspace(0, spectral.hz_to_mel(rate / 2), mels + 2))[1:-1]
    nearest = np.rint(centres / (rate / 2) * (size // 2)).astype(int)
    bank[nearest, np.arange(mels)] += np.where(bank.sum(0) == 0, 1.0, 0.0)
    return (bank / bank.sum(0)).astype(np.float32)


def mel_interpolate(rate: int, size: int, mels: int) -> np.ndarray:
    """The way back `[mels, size // 2 + 1]`: log magnitude at a bin, linear between the filters' centres in mel."""
    centres = np.linspace(0, spectral.hz_to_mel(rate / 2), mels + 2)[1:-1]
    at = spectral.hz_to_mel(np.linspace(0, rate / 2, size // 2 + 1))
    return np.stack([np.interp(at, centres, row) for row in np.eye(mels)]).astype(np.float32)


class FrameEncoder(nn.Module):
    """STFT -> ConvNeXt blocks, added to the cepstrum (DCT of the log-mel spectrum) on the first `cepstrum` channels.

    The cepstrum is what an acoustic model can predict from text and voice; the network adds what it misses.
    """

    channels: int
    cepstrum: int
    width: int
    blocks: int
    rate: int
    size: int
    hop: int
    mels: int
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> jax.Array:
        x = spectral.stft(audio_bs, self.size, self.hop)
        level = spectral.magnitude(x)
        mel = jnp.log(jnp.maximum(level @ mel_average(self.rate, self.size, self.mels), 1e-4))
        mel = (mel - LOG_MEL_MEAN) / LOG_MEL_DEVIATION
        linear = (mel @ spectral.dct_matrix(self.mels))[..., : self.cepstrum]
        bent = level**-0.7  # |x|^0.3 keeps the phase and evens out the level
        h = jnp.concatenate([x.real * bent, x.imag * bent, mel], -1)
        h = Dense(self.width, dtype=self.dtype)(h)
        for _ in range(self.blocks):
            h = ConvNeXt(7, 3, self.causal, self.dtype)(h)
        added = Dense(self.cepstrum, kernel_init=small(0.01), dtype=self.dtype, name="cepstrum")(rms_norm(h)).astype(jnp.float32)
        free = Dense(self.channels - self.cepstrum, dtype=self.dtype, name="free")(rms_norm(h)).astype(jnp.float32)
        return jnp.concatenate([linear + added, 0.5 * free], -1)


class FrameDecoder(nn.Module):
    """ConvNeXt blocks -> log magnitude and phase -> inverse STFT; the magnitude starts from the latent's cepstrum."""

    cepstrum: int
    width: int
    blocks: int
    rate: int
    size: int
    hop: int
    mels: int
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, z_btc: jax.Array) -> jax.Array:
        bins = self.size // 2 + 1
        mel = z_btc[..., : self.cepstrum] @ spectral.dct_matrix(self.mels)[:, : self.cepstrum].T
        base = (mel * LOG_MEL_DEVIATION + LOG_MEL_MEAN) @ mel_interpolate(self.rate, self.size, self.mels)
        h = Conv1D(self.width, 3, causal=self.causal, dtype=self.dtype)(z_btc)
        for _ in range(self.blocks):
            h = ConvNeXt(7, 3, self.causal, self.dtype)(h)
        h = rms_norm(h)
        level = Dense(bins, kernel_init=small(0.01), dtype=self.dtype, name="level")(h).astype(jnp.float32)
        phase = Dense(2 * bins, dtype=self.dtype, name="phase")(h).astype(jnp.float32)
        cosine, sine = jnp.split(phase, 2, -1)
        scale = jnp.exp(jnp.clip(base + level, -12.0, 6.0)) * jax.lax.rsqrt(jnp.square(cosine) + jnp.square(sine) + 1e-6)
        return spectral.istft(jax.lax.complex(scale * cosine, scale * sine), self.size, self.hop)


LOG_MEL_MEAN, LOG_MEL_DEVIATION = -2.3, 2.2
"""Round figures, not measured ones: they only set the latent's scale."""


class Codec(nn.Module):
    """Encoder and decoder; `channels` latent channels per frame of `hop` samples at `rate` Hz.

    `kind="conv"`: `width` is the encoder's first width, `decoder_width` the decoder's widest, `strides` multiply to
    the hop. `kind="frame"`: `width` everywhere, `blocks = (encoder, decoder)`, STFT of `size` samples and hop `hop`.
    `causal` pads convolutions on the left only ("conv" only: an STFT frame looks ahead half its size).
    """

    kind: str = "conv"
    rate: int = 16000
    hop: int = 200
    channels: int = 256
    width: int = 32
    decoder_width: int = 1024
    strides: tuple[int, ...] = (2, 4, 5, 5)
    blocks: tuple[int, int] = (4, 8)
    size: int = 800
    mels: int = 80
    cepstrum: int = 48
    causal: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        if self.kind == "conv":
            if math.prod(self.strides) != self.hop:
                raise ValueError(f"codec strides {self.strides} multiply to {math.prod(self.strides)}, not to hop={self.hop}")
            self.encoder = ConvEncoder(self.channels, self.width, self.strides, self.causal, self.dtype)
            self.decoder = ConvDecoder(self.decoder_width, self.strides, self.causal, self.dtype)
        elif self.kind == "frame":
            if self.causal:
                raise ValueError("codec kind='frame' cannot be causal: its STFT looks ahead; use kind='conv'")
            shape = dict(rate=self.rate, size=self.size, hop=self.hop, mels=self.mels, causal=False, dtype=self.dtype)
            self.encoder = FrameEncoder(self.channels, self.cepstrum, self.width, self.blocks[0], **shape)
            self.decoder = FrameDecoder(self.cepstrum, self.width, self.blocks[1], **shape)
        else:
            raise ValueError(f"codec kind={self.kind!r}; expected 'conv' or 'frame'")

    def encode(self, audio_bs: jax.Array) -> jax.Array:
        """Audio float32 `[b, t * hop]` in [-1, 1] -> latent float32 `[b, t, channels]`, not quantised."""
        return self.encoder(audio_bs).astype(jnp.float32)

    def decode(self, z_btc: jax.Array) -> jax.Array:
        """Latent `[b, t, channels]` -> audio float32 `[b, t * hop]`."""
        return self.decoder(z_btc).astype(jnp.float32)

    def __call__(self, audio_bs: jax.Array) -> jax.Array:
        """Both, without quantiser (this is what creates every parameter)."""
        return self.decode(self.encode(audio_bs))
