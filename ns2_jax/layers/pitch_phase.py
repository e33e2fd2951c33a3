"""Where in its period a voice is at every frame: pitch's phase as a condition (ours; no paper of the five has it).

A codec whose frames are not much longer than a period of the voice keeps where the glottal pulses lie in a frame. F0 says how far they move from
one frame to the next, not where they are, and a network that is told F0 alone can only guess the channels that hold it. Sources of sines tell waveform
networks the same (neural source-filter models, Wang et al. 2019, 1904.12088); here it is told to what predicts latents or codes.

    phase_t = sum over s <= t of 2 pi hop / rate (F0_s-1 + F0_s) / 2     [+ offset_t]

The offset cannot be known from F0. In training it is read from the latents, around each frame, by a linear map that learns on its own (`coherence`),
as it is from what there is of a recording that is converted or edited; in synthesis any constant is as good as another, and 0 it is.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.linear import Dense, named

DEVIATION, REACH, NEAR = 4.0, 8, 3
"""The offset is read with Gaussian weights of this deviation, in frames, up to so many away (from further where none is known so near); and the
frames either way whose mean is to agree."""


def phase(f0_bt: jax.Array, period: float) -> jax.Array:
    """F0 in Hz, 0 unvoiced -> radians, float32 `[b, t]`, 0 at the first frame; `period` is that of frames in seconds."""
    before = jnp.pad(f0_bt, ((0, 0), (1, 0)))[:, :-1]
    turns = jnp.where(jnp.arange(f0_bt.shape[1]) > 0, f0_bt + before, 0.0) * (0.5 * period)
    whole = jnp.cumsum((jnp.mod(turns, 1.0) * 2.0**32).astype(jnp.uint32), 1)  # wraps: exact, however long and in whatever order
    return (whole >> 8).astype(jnp.float32) * (2 * math.pi / 2**24)


def held(offset_bt2: jax.Array, f0_bt: jax.Array) -> jax.Array:
    """The offset of the nearest voiced frame, everywhere: of another voicing than `f0` is to be told."""
    at = jnp.arange(f0_bt.shape[1])
    apart = jnp.where(f0_bt[:, None] > 0, jnp.abs(at[:, None] - at), f0_bt.shape[1])
    return jnp.take_along_axis(offset_bt2, apart.argmin(-1)[..., None], 1)


def turned(x: jax.Array, y: jax.Array) -> jax.Array:
    """The product of complex numbers `[..., 2]`."""
    (a, b), (c, d) = (x[..., 0], x[..., 1]), (y[..., 0], y[..., 1])
    return jnp.stack([a * c - b * d, a * d + b * c], -1)


def unit(angle: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)


class PitchPhase(nn.Module):
    """`harmonics` of the pitch's phase -> a condition of `features`, nothing at the start.

    `channels` are those of the latents that it is read from, `period` that of frames in seconds."""

    features: int
    harmonics: int
    channels: int
    period: float
    dtype: Any = jnp.float32

    def setup(self):
        self.reader = self.param("reader", named(nn.initializers.normal(0.1), ("embed", None)), (self.channels, 2), jnp.float32)
        self.output = Dense(self.features, (None, "embed"), use_bias=False, kernel_init=nn.initializers.zeros, dtype=self.dtype)

    def __call__(self, f0_bt: jax.Array, offset_bt2: jax.Array | None = None) -> jax.Array:
        """F0 in Hz `[b, t]` and unit vectors of the offset (none: 0) -> `[b, t, features]`, 0 where unvoiced."""
        once = unit(phase(f0_bt, self.period))
        once = (once if offset_bt2 is None else turned(once, offset_bt2)) * (f0_bt > 0)[..., None]
        several = [once]
        for _ in range(self.harmonics - 1):
            several.append(turned(several[-1], once))
        return self.output(jnp.concatenate(several, -1))

    def everything(self, z_btc: jax.Array, f0_bt: jax.Array) -> jax.Array:
        """Both, for `init`."""
        return self(f0_bt, self.read(z_btc, f0_bt)[0])

    def read(self, z_btc: jax.Array, f0_bt: jax.Array, known_bt: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Latents (none counts outside of `known`) and F0, 0 at padding -> (unit vectors of the offset, float32 `[b, t, 2]`, coherence `[b]`).

        The offset is 0, `(1, 0)`, where nothing of a voiced stretch is known. Coherence is what of the reader's power is left when each frame is the
        mean of its neighbours: 0 without a voiced frame, about 1 (at the ends of a stretch a few hundredths more) of a reader that turns with the phase
        and does nothing else, or of one that does not turn where F0 is near a multiple of the frames' rate. Its gradient trains the reader; the
        offset has none.
        """
        voiced = f0_bt > 0
        m = jnp.einsum("btc,cd->btd", jax.lax.stop_gradient(z_btc).astype(jnp.float32), self.reader, precision="highest")
        m = turned(m, unit(-phase(f0_bt, self.period)))
        stretch = jnp.cumsum(voiced != jnp.pad(voiced, ((0, 0), (1, 0)))[:, :-1], 1)
        here = voiced if known_bt is None else voiced & known_bt
        same = (stretch[:, :, None] == stretch[:, None]) & voiced[:, :, None] & here[:, None]
        apart = jnp.abs(jnp.arange(voiced.shape[1])[:, None] - jnp.arange(voiced.shape[1]))
        weights = jnp.where(apart <= REACH, jnp.exp(-0.5 * jnp.square(apart / DEVIATION)), 1e-6 / jnp.square(apart + 1.0))
        total = jnp.einsum("bts,bsd->btd", same * weights, jax.lax.stop_gradient(m), precision="highest")
        size = jnp.square(total).sum(-1, keepdims=True)
        offset = jnp.where(size > 1e-30, total * jax.lax.rsqrt(jnp.maximum(size, 1e-30)), jnp.array([1.0, 0.0]))
        near = (same & (apart <= NEAR)).astype(jnp.float32)
        mean = jnp.einsum("bts,bsd->btd", near, m, precision="highest") / jnp.maximum(near.sum(-1), 1)[..., None]
        power = lambda x: (jnp.square(x) * here[..., None]).sum((1, 2))
        return offset, power(mean) / jnp.maximum(power(m), 1e-6)
