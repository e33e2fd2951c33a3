"""The codec's networks: waveform -> latent frames -> waveform.

`kind="conv"` is the paper's: SoundStream's convolutional encoder and decoder. Its widths are ours, found so that with
the codebooks they meet the paper's 27 M. `kind="frame"` does everything at frame rate
(STFT in, ConvNeXt blocks, inverse STFT out), which is what trains on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.layers.conv import Conv1D, ConvTranspose1D, DepthwiseConv1D, receptive
from ns2_jax.layers.linear import Dense, rms_norm
from ns2_jax.layers.quantize import Factorised
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


def mel_interpolate(rate: int, mels: int, hz: np.ndarray) -> np.ndarray:
    """The way back `[mels, n]`: log magnitude at `hz [n]`, linear between the filters' centres in mel."""
    centres = np.linspace(0, spectral.hz_to_mel(rate / 2), mels + 2)[1:-1]
    at = spectral.hz_to_mel(hz)
    return np.stack([np.interp(at, centres, row) for row in np.eye(mels)]).astype(np.float32)


@functools.lru_cache
def wave_spectra(hop: int, size: int, wave: int, bins: int) -> np.ndarray:
    """The STFT of what each MDCT coefficient says, as a convolution over frames: `[taps, wave, 2 * bins]` (real parts, then imaginary).

    An STFT frame hears the MDCT frames that overlap it; it is linear in them, so no waveform is made on the way.
    """
    side = (size // 2 + hop - 1) // hop  # windows of `size` and `2 hop` overlap as long as their centres are nearer than half their sum
    signal = np.zeros((wave, (2 * side + 2) * hop + size))
    start = signal.shape[1] // 2 - hop
    signal[:, start : start + 2 * hop] = spectral.mdct_matrix(hop)[:, :wave].T
    taps = []
    for tap in range(2 * side + 1):  # the coefficient's frame is `side - tap` frames after the one that hears it
        first = start + hop + (side - tap) * hop - size // 2
        spectrum = np.fft.rfft(signal[:, first : first + size] * spectral.hann(size))[:, :bins]
        taps.append(np.concatenate([spectrum.real, spectrum.imag], -1))
    return np.stack(taps).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Front:
    """What encoder and decoder of the frame-rate codec share: where a latent's channels come from, and the way back.

    The first `cepstrum` channels start as the log-mel spectrum, smoothed to as many bands by cutting its DCT off there: an acoustic
    model can predict them from text and voice. The last `wave` start as the lowest MDCT coefficients, divided by the envelope that the
    bands describe and times `WAVE_LEVEL`: they say how the waveform runs below `wave * rate / (2 hop)` Hz, at one signal-to-noise ratio
    in every band. Without `wave` the first channels are the DCT itself, not turned back into bands.
    """

    cepstrum: int
    wave: int
    rate: int
    size: int
    hop: int
    mels: int

    @property
    def followed(self) -> int:
        """How many STFT bins lie in the band whose waveform is coded."""
        return self.wave * self.size // (2 * self.hop)

    @property
    def smoother(self) -> np.ndarray:
        """`[mels, cepstrum]`, columns of length 1 at right angles: the log-mel spectrum's first DCT coefficients, as bands where `wave`."""
        first = spectral.dct_matrix(self.mels)[:, : self.cepstrum]
        return first @ spectral.dct_matrix(self.cepstrum).T if self.wave else first

    def linear(self, level_btf: jax.Array) -> tuple[jax.Array, jax.Array]:
        """STFT magnitudes -> (log-mel at unit scale `[b, t, mels]`, smoothed `[b, t, cepstrum]`)."""
        mel = jnp.log(jnp.maximum(level_btf @ mel_average(self.rate, self.size, self.mels), 1e-4))
        mel = (mel - LOG_MEL_MEAN) / LOG_MEL_DEVIATION
        return mel, mel @ self.smoother

    def envelope(self, cepstrum_btc: jax.Array, hz: np.ndarray) -> jax.Array:
        """Log STFT magnitude at `hz [n]`: `[b, t, n]`."""
        mel = cepstrum_btc @ self.smoother.T
        return (mel * LOG_MEL_DEVIATION + LOG_MEL_MEAN) @ mel_interpolate(self.rate, self.mels, hz)

    def spread(self, cepstrum_btc: jax.Array) -> jax.Array:
        """The deviation of the followed MDCT coefficients that the envelope implies, `[b, t, wave]`."""
        hz = (np.arange(self.wave) + 0.5) * self.rate / (2 * self.hop)
        power = np.sqrt(np.square(spectral.hann(self.size)).sum())  # of the STFT's window: white noise of deviation 1
        return jnp.exp(jnp.clip(self.envelope(cepstrum_btc, hz), -7.0, 6.0)) / power


class FrameEncoder(nn.Module):
    """STFT -> ConvNeXt blocks, added to what `Front` says of the signal; the remaining channels are the networks' own."""

    channels: int
    width: int
    blocks: int
    front: Front
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> jax.Array:
        front = self.front
        x = spectral.stft(audio_bs, front.size, front.hop)
        level = spectral.magnitude(x)
        mel, linear = front.linear(level)
        bent = level**-0.7  # |x|^0.3 keeps the phase and evens out the level
        h = jnp.concatenate([x.real * bent, x.imag * bent, mel], -1)
        if front.wave:
            wave = spectral.mdct(audio_bs, front.hop, front.wave) / front.spread(linear)
            h = jnp.concatenate([h, wave], -1)
        h = Dense(self.width, dtype=self.dtype)(h)
        for _ in range(self.blocks):
            h = ConvNeXt(7, 3, self.causal, self.dtype)(h)
        known = front.cepstrum + front.wave
        added = Dense(known, kernel_init=small(0.01), dtype=self.dtype, name="cepstrum")(rms_norm(h)).astype(jnp.float32)
        free = Dense(self.channels - known, dtype=self.dtype, name="free")(rms_norm(h)).astype(jnp.float32)
        added, more = added[..., : front.cepstrum], added[..., front.cepstrum :]
        if not front.wave:
            return jnp.concatenate([linear + added, 0.5 * free], -1)
        last = WAVE_LEVEL * jnp.clip(wave, -8.0, 8.0) + more
        return jnp.concatenate([linear + added, 0.1 * free, last], -1)  # `free` is random at first: few bits for what says nothing


class FrameDecoder(nn.Module):
    """ConvNeXt blocks -> STFT -> waveform. Below the followed band's edge the spectrum starts from the MDCT coefficients in the
    latent, above it from the envelope in the latent's cepstrum with a phase that the networks make up."""

    width: int
    blocks: int
    front: Front
    causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, z_btc: jax.Array) -> jax.Array:
        front, low = self.front, self.front.followed
        bins = front.size // 2 + 1
        cepstrum = z_btc[..., : front.cepstrum]
        base = front.envelope(cepstrum, np.linspace(0, front.rate / 2, bins))
        h = Conv1D(self.width, 3, causal=self.causal, dtype=self.dtype)(z_btc)
        for _ in range(self.blocks):
            h = ConvNeXt(7, 3, self.causal, self.dtype)(h)
        h = rms_norm(h)
        level = Dense(bins - low, kernel_init=small(0.01), dtype=self.dtype, name="level")(h).astype(jnp.float32)
        phase = Dense(2 * (bins - low), dtype=self.dtype, name="phase")(h).astype(jnp.float32)
        cosine, sine = jnp.split(phase, 2, -1)
        scale = jnp.exp(jnp.clip(base[..., low:] + level, -12.0, 6.0)) * jax.lax.rsqrt(jnp.square(cosine) + jnp.square(sine) + 1e-6)
        real, imaginary = scale * cosine, scale * sine
        if low:
            wave = z_btc[..., -front.wave :] / WAVE_LEVEL * front.spread(cepstrum)
            kernel = wave_spectra(front.hop, front.size, front.wave, low)
            side, frames = len(kernel) // 2, wave.shape[1]
            padded = jnp.pad(wave, ((0, 0), (side, side), (0, 0)))
            shifts = jnp.concatenate([padded[:, i : i + frames] for i in range(len(kernel))], -1)
            start = jnp.split(shifts @ kernel.reshape(-1, 2 * low), 2, -1)
            added = Dense(2 * low, kernel_init=small(0.01), dtype=self.dtype, name="added")(h).astype(jnp.float32)
            scale = jnp.exp(jnp.clip(base[..., :low], -12.0, 6.0))
            cosine, sine = jnp.split(added, 2, -1)
            real = jnp.concatenate([start[0] + scale * cosine, real], -1)
            imaginary = jnp.concatenate([start[1] + scale * sine, imaginary], -1)
        return spectral.istft(jax.lax.complex(real, imaginary), front.size, front.hop)


WAVE_LEVEL = 2.0
"""Deviation of the latent's waveform channels at the start: how many of the quantiser's bits they get beside the bands. From 0.4 they grew
past 3 within 1,000 steps, with an envelope in the bands that was too low by as much."""

LOG_MEL_MEAN, LOG_MEL_DEVIATION = -2.3, 2.2
"""Round figures, not measured ones: they only set the latent's scale."""


class Codec(nn.Module):
    """Encoder and decoder; `channels` latent channels per frame of `hop` samples at `rate` Hz.

    `kind="conv"`: `width` is the encoder's first width, `decoder_width` the decoder's widest, `strides` multiply to
    the hop. `kind="frame"`: `width` everywhere, `blocks = (encoder, decoder)`, STFT of `size` samples and hop `hop`.
    `cepstrum` and `wave` are in `Front`. `code_width` is not of the networks: the channels of a factorised code, 0 for Euclidean codes
    of all channels (`layers.quantize`); nor is `coarse`: so many levels, if any, leave the waveform's channels to the others, and say what an
    acoustic model predicts in the first `coarse_channels`. `causal` pads convolutions on the left only; what the transforms of "frame" look ahead
    remains (`reach`).
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
    wave: int = 0
    coarse: int = 0
    causal: bool = False
    code_width: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        if self.kind == "conv":
            if math.prod(self.strides) != self.hop:
                raise ValueError(f"codec strides {self.strides} multiply to {math.prod(self.strides)}, not to hop={self.hop}")
            self.encoder = ConvEncoder(self.channels, self.width, self.strides, self.causal, self.dtype)
            self.decoder = ConvDecoder(self.decoder_width, self.strides, self.causal, self.dtype)
        elif self.kind == "frame":
            front = Front(self.cepstrum, self.wave, self.rate, self.size, self.hop, self.mels)
            self.encoder = FrameEncoder(self.channels, self.width, self.blocks[0], front, self.causal, self.dtype)
            self.decoder = FrameDecoder(self.width, self.blocks[1], front, self.causal, self.dtype)
        else:
            raise ValueError(f"codec kind={self.kind!r}; expected 'conv' or 'frame'")

    @property
    def coarse_channels(self) -> int:
        """The channels that coarse levels code, the first ones."""
        return self.channels - self.wave if self.coarse else self.channels

    @property
    def axes(self) -> np.ndarray | None:
        """Axes of the coarse channels that depend less on one another than these do, `[c, c]`, orthogonal, one a column; None for the channels
        themselves. Bands rise and fall together: their cosine transform, the cepstrum, hardly does."""
        if not self.wave:
            return None
        axes = np.eye(self.coarse_channels, dtype=np.float32)
        axes[: self.cepstrum, : self.cepstrum] = spectral.dct_matrix(self.cepstrum)
        return axes

    def encode(self, audio_bs: jax.Array) -> jax.Array:
        """Audio float32 `[b, t * hop]` in [-1, 1] -> latent float32 `[b, t, channels]`, not quantised."""
        return self.encoder(audio_bs).astype(jnp.float32)

    def decode(self, z_btc: jax.Array) -> jax.Array:
        """Latent `[b, t, channels]` -> audio float32 `[b, t * hop]`."""
        return self.decoder(z_btc).astype(jnp.float32)

    def reach(self, part: str) -> tuple[int, int]:
        """Frames (to the left, to the right) on which a frame of `encode` or `decode` depends besides its own.

        So much context on either side, and a piece of a file comes out as in the whole. To the right it is 0 for a causal "conv"
        codec; a causal "frame" one has the look-ahead of its transforms left.
        """
        if part not in ("encode", "decode"):
            raise ValueError(f"reach of {part!r}; expected 'encode' or 'decode'")
        if self.kind == "frame":
            window = math.ceil((self.size / self.hop - 1) / 2)
            before, after = (6, 0) if self.causal else (3, 3)
            if part == "encode":
                return tuple(window + self.blocks[0] * side for side in (before, after))
            start = (2, 0) if self.causal else (1, 1)
            waved = window + (self.size // 2 + self.hop - 1) // self.hop if self.wave else 0  # inverse STFT, `wave_spectra`
            return tuple(max(window + first + self.blocks[1] * side, waved) for first, side in zip(start, (before, after)))
        # From the last layer back: the interval of inputs on which frame 0 depends. (taps, dilation, stride), stride < 0: transposed.
        unit = [(7, d, 1) for d in (1, 3, 9)]
        if part == "encode":
            layers = [(7, 1, 1), *(layer for s in self.strides for layer in (*unit, (2 * s, 1, s))), (3, 1, 1)]
        else:
            layers = [*unit, (7, 1, 1), *(layer for s in reversed(self.strides) for layer in ((2 * s, 1, -s), *unit)), (7, 1, 1)]
        first, last = (0, 0) if part == "encode" else (0, self.hop - 1)
        first, last = receptive(layers, first, last, self.causal)
        frame = self.hop if part == "encode" else 1
        return -(first // frame), last // frame

    def __call__(self, audio_bs: jax.Array) -> jax.Array:
        """Both, without quantiser (this is what creates every parameter)."""
        return self.decode(self.encode(audio_bs))


def frozen(net: Codec, rng: jax.Array, levels: int, codes: int) -> dict[str, Any]:
    """Random arrays of the shapes of an exported codec, `{params: {gen}, rest}`: what `config.init_from` fills at `rest/codec`."""
    keys = jax.random.split(rng, 2)
    rest = {"mean": jnp.zeros((net.channels,)), "deviation": jnp.ones((net.channels,))}
    gen = dict(net.init(keys[0], jnp.zeros((1, 8 * net.hop)))["params"])
    if net.code_width:
        gen["quantiser"] = Factorised(levels, codes, net.code_width, net.channels).init(keys[1])["params"]
    else:
        rest["codebooks"] = jax.random.normal(keys[1], (levels, codes, net.channels)) * levels**-0.5
    return {"params": {"gen": gen}, "rest": rest}
