"""STFT and the one mel of the house, in JAX, float32.

Frames are centred on their hop: frame i looks at the samples around `i * hop + hop / 2`, so `s` samples give
exactly `s // hop` frames, and frame i covers what a phone that ends at `(i + 1) * hop` has said. The signal is
zero outside. `tests/maths/test_spectral.py` holds all of this against librosa and scipy.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

LOUDEST = 3.0
"""Log-mel in nats that no recording reaches: a sine at full scale has at most 2.1 at 16 kHz and 2.3 at 22.05 kHz, a square wave 2.3 and 2.6."""


@functools.lru_cache
def hann(size: int) -> np.ndarray:
    """The periodic Hann window, float32 `[size]`."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def frame(x_bs: jax.Array, size: int, hop: int) -> jax.Array:
    """Windows `[b, s // hop, size]` of the zero-padded signal. Raises ValueError unless hop divides size.

    Written as shifted blocks of one hop each: its gradient is a sum of shifts, not a scatter.
    """
    if size % hop or (size - hop) % 2:
        raise ValueError(f"frames of {size} samples need a hop that divides them into an even rest, got {hop}")
    frames = x_bs.shape[-1] // hop
    side = (size - hop) // 2
    x = jnp.pad(x_bs[:, : frames * hop], ((0, 0), (side, size - side)))[:, : (frames + size // hop - 1) * hop]
    blocks = x.reshape(x.shape[0], -1, hop)
    return jnp.concatenate([blocks[:, i : i + frames] for i in range(size // hop)], -1)


def overlap_add(frames_btn: jax.Array, hop: int) -> jax.Array:
    """The adjoint of `frame`: `[b, t, size] -> [b, t * hop]`."""
    b, t, size = frames_btn.shape
    parts = frames_btn.reshape(b, t, size // hop, hop)
    total = t + size // hop - 1
    x = sum(jnp.pad(parts[:, :, i], ((0, 0), (i, total - t - i), (0, 0))) for i in range(size // hop))
    side = (size - hop) // 2
    return x.reshape(b, -1)[:, side : side + t * hop]


def stft(x_bs: jax.Array, size: int, hop: int) -> jax.Array:
    """Complex `[b, s // hop, size // 2 + 1]` with a Hann window."""
    return jnp.fft.rfft(frame(x_bs.astype(jnp.float32), size, hop) * hann(size))


def istft(x_btf: jax.Array, size: int, hop: int) -> jax.Array:
    """The least-squares inverse of `stft` (Griffin & Lim 1984, equation 6): `[b, t * hop]`."""
    frames = jnp.fft.irfft(x_btf, size) * hann(size)
    weight = overlap_add(jnp.broadcast_to(jnp.square(jnp.asarray(hann(size))), (1, x_btf.shape[1], size)), hop)
    return overlap_add(frames, hop) / jnp.maximum(weight, 1e-3)


@functools.lru_cache
def mdct_matrix(hop: int) -> np.ndarray:
    """Windowed cosines of the MDCT (Princen & Bradley 1987, sine window), float32 `[2 hop, hop]`; bin k is at `(k + 1/2) rate / (2 hop)` Hz."""
    n, k = np.arange(2 * hop)[:, None] + 0.5, np.arange(hop)[None] + 0.5
    return (np.sin(np.pi * n / (2 * hop)) * np.cos(np.pi / hop * (n + hop / 2) * k) * np.sqrt(2 / hop)).astype(np.float32)


def mdct(x_bs: jax.Array, hop: int, bins: int | None = None) -> jax.Array:
    """Critically sampled, orthonormal lapped transform, its lowest `bins` coefficients: `[b, t * hop] -> [b, t, bins or hop]`. A frame
    sees half a hop to either side."""
    return frame(x_bs.astype(jnp.float32), 2 * hop, hop) @ mdct_matrix(hop)[:, :bins]


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    hz = np.asarray(hz, np.float64)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))


@functools.lru_cache
def mel_filterbank(rate: int, size: int, bins: int, fmin: float = 0.0, fmax: float | None = None) -> np.ndarray:
    """Triangles of unit area (Slaney), float32 `[size // 2 + 1, bins]`; equal to `librosa.filters.mel` transposed."""
    edges = mel_to_hz(np.linspace(hz_to_mel(fmin), hz_to_mel(fmax or rate / 2), bins + 2))
    hz = np.linspace(0, rate / 2, size // 2 + 1)
    rise = (hz[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    fall = (edges[None, 2:] - hz[:, None]) / np.diff(edges)[1:]
    return (np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def magnitude(x_btf: jax.Array, floor: float = 1e-9) -> jax.Array:
    """|x| with a finite gradient at zero."""
    return jnp.sqrt(jnp.square(x_btf.real) + jnp.square(x_btf.imag) + floor**2)


def log_mel(x_bs: jax.Array, rate: int, size: int, hop: int, bins: int, floor: float = 1e-5, fmax: float | None = None) -> jax.Array:
    """Natural logarithm of mel-filtered magnitudes up to `fmax` Hz (half the rate), floored: float32 `[b, s // hop, bins]`."""
    mel = magnitude(stft(x_bs, size, hop)) @ jnp.asarray(mel_filterbank(rate, size, bins, fmax=fmax))
    return jnp.log(jnp.maximum(mel, floor))


def dct_matrix(n: int) -> np.ndarray:
    """The orthonormal DCT-II, float32 `[n, n]`, one basis vector a column."""
    k, i = np.meshgrid(np.arange(n), np.arange(n))
    basis = np.cos(np.pi * (i + 0.5) * k / n) * np.sqrt(2 / n)
    basis[:, 0] /= np.sqrt(2)
    return basis.astype(np.float32)
