"""Discriminators of waveforms: several judges, each with its own small network.

`kind="2d"` is the multi-scale complex STFT discriminator of EnCodec (section 3.4: kernels 3 x 9, frequency halved
three times, dilated in time). `kind="dac"` are DAC's: HiFi-GAN's periods and a multi-band complex STFT. `kind="hifigan"` are HiFi-GAN's
periods and scales. `kind="1d"` sees a frame's whole spectrum as channels and convolves over time only: a tenth of the cost on a CPU, and not
equivariant to pitch.

Below them what both sides lose by them, for the codec and the vocoder alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.conv import Conv1D, Conv2D
from ns2_jax.layers.linear import Dense
from ns2_jax.maths import spectral


def parts(audio_bs: jax.Array, size: int) -> jax.Array:
    """Real and imaginary part of the STFT with a hop of a quarter: `[b, t, size // 2 + 1, 2]`."""
    spectrum = spectral.stft(audio_bs, size, size // 4)
    return jnp.stack([spectrum.real, spectrum.imag], -1)


class Spectral2D(nn.Module):
    """`audio [b, s] -> (logits [b, n], features)`."""

    size: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x = parts(audio_bs, self.size)
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


class Bands(nn.Module):
    """`audio [b, s] -> (logits [b, n], features)`: DAC's multi-band complex STFT discriminator at one resolution (its layers
    from recollection).

    Five bands of the spectrum, cut at 10, 25, 50 and 75 % of it, go through networks of their own; one last convolution
    judges them side by side.
    """

    size: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x = parts(audio_bs, self.size)
        edges = [int(share * x.shape[2]) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)]
        if edges[1] < 8:
            raise ValueError(f"a multi-band discriminator of window {self.size} has a lowest band of {edges[1]} bins; it halves three times: 256 or more")
        features, ends = [], []
        for first, last in zip(edges, edges[1:]):
            h = x[:, :, first:last]
            for kernel, stride in (((3, 9), (1, 1)), *[((3, 9), (1, 2))] * 3, ((3, 3), (1, 1))):
                h = nn.leaky_relu(Conv2D(self.filters, kernel, stride, weight_norm=True, dtype=self.dtype)(h), 0.1)
                features.append(h)
            ends.append(h)
        logits = Conv2D(1, (3, 3), weight_norm=True, axes=("embed", None), dtype=self.dtype)(jnp.concatenate(ends, 2))
        return logits.reshape(logits.shape[0], -1).astype(jnp.float32), features


class Period(nn.Module):
    """`audio [b, s] -> (logits [b, n], features)`: HiFi-GAN's discriminator of one period (its layers from recollection).

    The signal is folded into rows of `size` samples and convolved along each column alone. `filters` are the first layer's; the widest
    has 32 times as many (HiFi-GAN: 32 and 1024).
    """

    size: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x = jnp.pad(audio_bs, ((0, 0), (0, -audio_bs.shape[1] % self.size)), mode="reflect")
        x = x.reshape(x.shape[0], -1, self.size, 1)
        features = []
        for times, stride in ((1, 3), (4, 3), (16, 3), (32, 3), (32, 1)):
            conv = Conv2D(self.filters * times, (5, 1), (stride, 1), weight_norm=True, dtype=self.dtype)
            x = nn.leaky_relu(conv(x), 0.1)
            features.append(x)
        logits = Conv2D(1, (3, 1), weight_norm=True, axes=("embed", None), dtype=self.dtype)(x)
        return logits.reshape(logits.shape[0], -1).astype(jnp.float32), features


class Scale(nn.Module):
    """`audio [b, s] -> (logits [b, n], features)`: HiFi-GAN's discriminator of one scale (section 2.3), which hears the signal averaged over
    `size` samples, 1, 2 or 4.

    Its convolutions are in up to 16 groups there; ours are dense and a quarter as wide, with weight norm on every scale: `filters` 32 for
    its 128, and 5.8 M parameters for its 9.9.
    """

    size: int
    filters: int
    dtype: Any

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        for _ in range(self.size.bit_length() - 1):  # mean of four, every second
            padded, n = jnp.pad(audio_bs, ((0, 0), (2, 2))), audio_bs.shape[1] // 2 + 1
            audio_bs = sum(padded[:, i : i + 2 * n - 1 : 2] for i in range(4)) / 4
        x, features = audio_bs[..., None], []
        for times, kernel, stride in ((1, 15, 1), (1, 41, 2), (2, 41, 2), (4, 41, 4), (8, 41, 4), (8, 41, 1), (32, 5, 1)):
            x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % stride), (0, 0)))
            x = nn.leaky_relu(Conv1D(self.filters * times, kernel, stride, weight_norm=True, dtype=self.dtype)(x), 0.1)
            features.append(x)
        logits = Conv1D(1, 3, weight_norm=True, axes=("embed", None), dtype=self.dtype)(x)
        return logits.reshape(logits.shape[0], -1).astype(jnp.float32), features


PERIODS = (2, 3, 5, 7, 11)
PERIODIC = ("dac", "hifigan")


class Discriminators(nn.Module):
    """A list of (logits `[b, n]`, features): one judge per STFT size (for "hifigan" per scale), and for kinds of PERIODIC one
    per period before them.

    "dac" hears the signal without its mean and at a peak of 0.8, as DAC's discriminators do.
    """

    kind: str
    sizes: tuple[int, ...]
    filters: int
    dtype: Any = jnp.float32

    @property
    def number(self) -> int:
        """How many judges there are."""
        return len(self.sizes) + (len(PERIODS) if self.kind in PERIODIC else 0)

    @nn.compact
    def __call__(self, audio_bs: jax.Array) -> list[tuple[jax.Array, list[jax.Array]]]:
        judges = {"1d": Spectral1D, "2d": Spectral2D, "dac": Bands, "hifigan": Scale}
        if self.kind not in judges:
            raise ValueError(f"discriminator kind={self.kind!r}; expected one of {sorted(judges)}")
        ladder = [(judges[self.kind], size) for size in self.sizes]
        if self.kind in PERIODIC:
            ladder = [(Period, period) for period in PERIODS] + ladder
        if self.kind == "dac":
            audio_bs = audio_bs - audio_bs.mean(-1, keepdims=True)
            audio_bs = 0.8 * audio_bs / (jnp.abs(audio_bs).max(-1, keepdims=True) + 1e-9)
        return [judge(size, self.filters, self.dtype)(audio_bs) for judge, size in ladder]


Judged = list[tuple[jax.Array, list[jax.Array]]]
Judge = Callable[[jax.Array], Judged]  # audio `[b, s]` -> what the judges say of it


def adversarial(judged: Judged) -> jax.Array:
    """What the generator loses, least squares, summed over judges: `[b]` (HiFi-GAN, equation 2)."""
    return sum(jnp.square(1 - logits).mean(1) for logits, _ in judged)


def feature_matching(real: Judged, fake: Judged, relative: bool = False) -> jax.Array:
    """Mean absolute difference of the judges' features, summed over layers and judges: `[b]` (equation 4). No derivative by `real`.

    `relative`: each over the mean magnitude of what is real, and the mean over layers and judges (EnCodec, section 3.4).
    """

    def distance(r: jax.Array, f: jax.Array) -> jax.Array:
        r, axes = jax.lax.stop_gradient(r.astype(jnp.float32)), tuple(range(1, r.ndim))
        off = jnp.abs(r - f).mean(axes)
        return off / (jnp.abs(r).mean(axes) + 1e-6) if relative else off

    distances = [distance(r, f) for (_, rs), (_, fs) in zip(real, fake) for r, f in zip(rs, fs)]
    return sum(distances) / len(distances) if relative else sum(distances)


def discrimination(real: Judged, fake: Judged) -> jax.Array:
    """What the judges lose, least squares, summed: `[b]` (equation 1)."""
    return sum(jnp.square(1 - r).mean(1) + jnp.square(f).mean(1) for (r, _), (f, _) in zip(real, fake))


def opinion(judge: Judge, real_bs: jax.Array, fake_bs: jax.Array, judged: jax.Array | bool, relative: bool = False) -> tuple[jax.Array, jax.Array]:
    """(`adversarial`, `feature_matching`) of what a generator made, each `[b]`: zero, and no work, unless `judged`.

    XLA for CPU is slow at convolutions in a conditional, at their gradients 20 to 50 times (`layers.conv.Conv1D` has a way round it), so what is
    known beforehand, `judged` True, is not in one.
    """
    none = jnp.zeros(real_bs.shape[:1])

    def hear(fake_bs: jax.Array) -> tuple[jax.Array, jax.Array]:
        fake, real = judge(fake_bs), judge(real_bs)
        return adversarial(fake), feature_matching(real, fake, relative)

    return hear(fake_bs) if judged is True else jax.lax.cond(judged, hear, lambda _: (none, none), fake_bs)


def lesson(judge: Callable[[Any, jax.Array], Judged], disc: Any, real_bs: jax.Array, fake_bs: jax.Array, weight_b: jax.Array,
           judged: jax.Array | bool) -> tuple[jax.Array, Any]:
    """(`discrimination` as a sum over rows by their weights, its gradient by `disc`, the judges' parameters): zero, and no work, unless
    `judged`. Nothing is learned by what made `fake_bs`."""
    fake_bs = jax.lax.stop_gradient(fake_bs)
    loss = lambda disc: (discrimination(judge(disc, real_bs), judge(disc, fake_bs)) * weight_b).sum()
    if judged is True:
        return jax.value_and_grad(loss)(disc)
    return jax.lax.cond(judged, lambda: jax.value_and_grad(loss)(disc), lambda: (jnp.zeros(()), jax.tree.map(jnp.zeros_like, disc)))
