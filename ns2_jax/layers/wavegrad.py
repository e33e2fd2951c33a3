"""The decoder of WaveGrad (Chen et al. 2021, section 3 and appendix A): the noise in a noisy waveform, given features of its frames.

A down path reads the waveform at ever lower rates; an up path grows the features to the waveform's rate; at each scale the first steers the
second by scale and shift (FiLM), which know the noise level too:

    waveform -> Conv5 -> DBlock (/2) -> DBlock (/2) -> DBlock (/3) -> DBlock (/5)
                  |          |             |              |             |
                FiLM       FiLM          FiLM           FiLM          FiLM
                  |          |             |              |             |
      noise <- Conv3 <- UBlock (x2) <- UBlock (x2) <- UBlock (x3) <- UBlock (x5) <- UBlock (x5) <- Conv3 <- features

Upsampling repeats, downsampling is a mean; both are named choices of ours (public implementations interpolate linearly, or repeat). Padding is
zero before every convolution, so frames see what they would see if the row ended there.

Two ways to take the waveform's neighbours as channels. `patch` samples make one step of the top scale (another network: narrow layers at
the sample rate are what costs on every machine); 1 is the paper. `fold` computes the narrow layers of the top scale (first and last
convolution, FiLM) on so many steps at once: the same function of the same parameters as `fold=1`, faster where channels are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.conv import Conv1D, FoldedConv1D
from ns2_jax.layers.linear import Dense, constrain, sinusoid

leaky = lambda x: nn.leaky_relu(x, 0.2)
orthogonal = nn.initializers.orthogonal()
DOWN = (1, 2, 4)
"""Dilations of a DBlock."""


def conv(features: int, kernel: int, dilation: int = 1, fold: int = 1, dtype: Any = jnp.float32, name: str | None = None) -> nn.Module:
    """A convolution of the decoder; folded ones have the parameters of plain ones."""
    if fold > 1:
        return FoldedConv1D(features, kernel, fold, dilation, orthogonal, dtype=dtype, name=name)
    return Conv1D(features, kernel, dilation=dilation, kernel_init=orthogonal, dtype=dtype, name=name)


def refold(x_btc: jax.Array, fold: int) -> jax.Array:
    """`[b, t, c] -> [b, t / fold, fold * c]`; `unfold` leads back."""
    return x_btc.reshape(x_btc.shape[0], -1, fold * x_btc.shape[-1])


def unfold(x_btc: jax.Array, fold: int) -> jax.Array:
    """`[b, t, fold * c] -> [b, t * fold, c]`."""
    return x_btc.reshape(x_btc.shape[0], -1, x_btc.shape[-1] // fold)


def shrink(x_btc: jax.Array, factor: int) -> jax.Array:
    """Means over `factor` neighbours."""
    return x_btc.reshape(x_btc.shape[0], -1, factor, x_btc.shape[-1]).mean(2) if factor > 1 else x_btc


def grow(x_btc: jax.Array, factor: int) -> jax.Array:
    """Every step `factor` times."""
    return jnp.repeat(x_btc, factor, 1) if factor > 1 else x_btc


class Film(nn.Module):
    """What the waveform says at one scale `[b, t, c]`, and noise level and voice -> (scale, shift), each `[b, t, features]`."""

    features: int
    time_scale: float
    fold: int
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, level_b: jax.Array, voice_bc: jax.Array | None, valid_bt1: jax.Array) -> tuple[jax.Array, jax.Array]:
        width, fold = x_btc.shape[-1] // self.fold, self.fold
        valid = refold(jnp.broadcast_to(valid_bt1, (*valid_bt1.shape[:2], width)), fold)
        h = leaky(conv(width, 3, fold=fold, dtype=self.dtype, name="input")(x_btc * valid))
        said = sinusoid(level_b, width, self.time_scale)
        if voice_bc is not None:
            said = said + Dense(width, (None, "embed"), name="voice")(voice_bc)
        h = constrain((h + jnp.tile(said.astype(self.dtype), fold)[:, None]) * valid)
        scale, shift = (conv(self.features, 3, fold=fold, dtype=self.dtype, name=name)(h) for name in ("scale", "shift"))
        return unfold(scale, fold), unfold(shift, fold)


class DBlock(nn.Module):
    """Means over `factor` steps, then three dilated convolutions and a pointwise way past them (figure 4)."""

    features: int
    factor: int
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, valid_bt1: jax.Array) -> jax.Array:
        x = shrink(x_btc, self.factor)
        y = x
        for i, dilation in enumerate(DOWN):
            y = conv(self.features, 3, dilation, dtype=self.dtype, name=f"conv{i}")(constrain(leaky(y) * valid_bt1))
        return constrain(y + conv(self.features, 1, dtype=self.dtype, name="past")(x))


class UBlock(nn.Module):
    """Repeats every step `factor` times, then four dilated convolutions with FiLM before the last three (figure 3)."""

    features: int
    factor: int
    dilations: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x_btc: jax.Array, film: tuple[jax.Array, jax.Array], valid_bt1: jax.Array) -> jax.Array:
        a, b, c, d = self.dilations
        made = lambda i, dilation, x: conv(self.features, 3, dilation, dtype=self.dtype, name=f"conv{i}")(constrain(x * valid_bt1))
        steered = lambda x: leaky(x * film[0] + film[1])
        y = made(1, b, steered(made(0, a, grow(leaky(x_btc), self.factor))))
        x = y + grow(conv(self.features, 1, dtype=self.dtype, name="past")(x_btc), self.factor)
        return constrain(x + made(3, d, steered(made(2, c, steered(x)))))


class WaveGrad(nn.Module):
    """Noisy waveform `[b, s]`, features `[b, t, c]`, noise level `[b]`, voice `[b, c']` or None, mask `[b, t]` -> its noise, float32 `[b, s]`.

    `up` are the factors from frames to steps and `widths` the channels they lead to; the down path has the same factors backwards but
    for the first, `down` their channels, after `first` at the top. `patch * product(up)` is the hop. Every scale has `repeats` UBlocks (1:
    WaveGrad Base). The noise level is sqrt(alpha bar). With `remat` blocks are computed again in the backward pass.
    """

    up: tuple[int, ...] = (5, 5, 3, 2, 2)
    widths: tuple[int, ...] = (512, 512, 256, 128, 128)
    down: tuple[int, ...] = (128, 128, 256, 512)
    first: int = 32
    input: int = 768
    dilations: tuple[tuple[int, ...], ...] = ((1, 2, 4, 8),) * 3 + ((1, 2, 1, 2),) * 2
    repeats: int = 1
    patch: int = 1
    fold: int = 1
    time_scale: float = 5000.0
    remat: bool = False
    dtype: Any = jnp.float32

    def check(self) -> None:
        """Raises ValueError for numbers that do not fit each other."""
        n = len(self.up)
        if not len(self.widths) == len(self.dilations) == n == len(self.down) + 1 or any(len(d) != 4 for d in self.dilations):
            raise ValueError(f"decoder: {n} factors in `up` need {n} `widths`, {n} `dilations` of four and {n - 1} widths in `down`, "
                             f"got {self.widths}, {self.dilations}, {self.down}")
        if math.prod(self.up) % self.fold:
            raise ValueError(f"decoder: fold={self.fold} does not divide the {math.prod(self.up)} steps of a frame")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.patch * math.prod(self.up)

    @nn.compact
    def __call__(self, y_bs: jax.Array, h_btc: jax.Array, level_b: jax.Array, voice_bc: jax.Array | None, mask_bt: jax.Array) -> jax.Array:
        self.check()
        block = lambda module: nn.remat(module, prevent_cse=False) if self.remat else module
        n, fold, dtype = len(self.up), self.fold, self.dtype
        rates = [math.prod(self.up[: i + 1]) for i in range(n)]  # steps a frame after each UBlock
        valid = [grow(mask_bt[..., None].astype(dtype), rate) for rate in rates]

        x = y_bs.reshape(y_bs.shape[0], -1, self.patch).astype(dtype) * valid[-1]
        x = conv(self.first, 5, fold=fold, dtype=dtype, name="read")(refold(x, fold))
        films = [block(Film)(self.widths[-1], self.time_scale, fold, dtype, name=f"film{n - 1}")(x, level_b, voice_bc, valid[-1])]
        x = unfold(constrain(x), fold)
        for i, width in zip(reversed(range(n - 1)), self.down):
            x = block(DBlock)(width, self.up[i + 1], dtype, name=f"down{i}")(x, valid[i])
            films.append(block(Film)(self.widths[i], self.time_scale, 1, dtype, name=f"film{i}")(x, level_b, voice_bc, valid[i]))

        x = constrain(conv(self.input, 3, dtype=dtype, name="features")(constrain(h_btc.astype(dtype) * mask_bt[..., None].astype(dtype))))
        for i in range(n):
            for k in range(self.repeats):
                name = f"up{i}" + (f"_{k}" if k else "")
                x = block(UBlock)(self.widths[i], self.up[i] if k == 0 else 1, self.dilations[i], dtype, name=name)(x, films[n - 1 - i], valid[i])
        x = refold(constrain(x * valid[-1]), fold)
        return conv(self.patch, 3, fold=fold, dtype=jnp.float32, name="write")(x).reshape(y_bs.shape)

    def reach(self) -> int:
        """How many frames to either side of a frame its output can depend on: the overlap with which windows are exact."""
        n, most = len(self.up), 0

        def widen(span: tuple[int, int], steps: int) -> tuple[int, int]:
            return span[0] - steps, span[1] + steps

        def coarser(span: tuple[int, int], factor: int) -> tuple[int, int]:
            return span[0] // factor, span[1] // factor

        def finer(span: tuple[int, int], factor: int) -> tuple[int, int]:
            return span[0] * factor, span[1] * factor + factor - 1

        span = widen((0, math.prod(self.up) - 1), 1)  # what the last convolution reads for frame 0
        for i in reversed(range(n)):
            span = widen(span, self.repeats * sum(self.dilations[i]))
            read = widen(span, 2)  # by FiLM, of the down path's output at this scale
            for k in range(i, n - 1):
                read = finer(widen(read, sum(DOWN)), self.up[k + 1])
            read = coarser(widen(read, 2), math.prod(self.up))
            span = coarser(span, self.up[i])
            most = max(most, -read[0], read[1])
        span = widen(span, 1)
        return max(most, -span[0], span[1])

    def macs(self, channels: int, voice: int = 0) -> float:
        """Multiply-adds of one frame with `channels` features, zeros of `fold` not counted."""
        rates, n = [math.prod(self.up[: i + 1]) for i in range(len(self.up))], len(self.up)
        top = rates[-1]
        total = top * (5 * self.patch * self.first + 3 * self.widths[-1] * self.patch) + 3 * channels * self.input
        inputs: Sequence[int] = (self.first, *self.down)
        for k, i in enumerate(reversed(range(n))):
            width = inputs[k]
            total += rates[i] * (3 * width * width + 2 * 3 * width * self.widths[i])
            if k:
                total += rates[i] * (3 * inputs[k - 1] * width + 2 * 3 * width * width + inputs[k - 1] * width)
        before = self.input
        for i, width in enumerate(self.widths):
            for repeat in range(self.repeats):
                source = before if repeat == 0 else width
                total += rates[i] * (3 * source * width + 9 * width * width) + rates[i] // (self.up[i] if repeat == 0 else 1) * source * width
            before = width
        return float(total)
