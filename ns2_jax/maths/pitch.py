"""The one F0 of the house: batched YIN with a Viterbi path over candidates, in JAX, float32.

Per frame the cumulative-mean-normalised difference of YIN (de Cheveigne & Kawahara 2002, equations 6-8) is computed
by FFT. Each half octave of lags offers its deepest local minimum, and one path per row picks a candidate or
"unvoiced" in every frame, paying for aperiodicity, for jumps in log-frequency and for changes of voicing (the costs
of Boersma 1993, section 4). The lag is refined by a parabola on the difference function.

Frame i of `period` samples is centred on `i * period + period / 2`, like `maths.spectral`; the signal is zero outside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Costs of the path per frame of 10 ms. Voicing was set where the phones of flite's voices have it: of the frames inside
# vowels, glides and nasals 100, 99, 98 and 85 % (slt, rms, awb, kal16) are voiced, inside voiceless sounds 5, 0, 0 and 4 %.
UNVOICED = 0.5  # a frame is voiced when its aperiodicity stays below this
VOICING_CHANGE = 0.2  # from voiced to unvoiced or back
JUMP = 0.5  # per octave between neighbours
OCTAVE = 0.03  # per octave of lag: of two equal dips the shorter period is the pitch
NEVER = 1e3  # the cost of a band without a local minimum
QUIET = 1e-8  # mean square (-80 dBFS) added to the difference: silence has no period
CUTOFF = 2500.0  # Hz; harmonics above it sharpen the dips beyond what a parabola follows


@functools.lru_cache
def lowpass(rate: int, cutoff: float, taps: int = 31) -> np.ndarray:
    """A Hamming-windowed sinc of unit gain at 0 Hz, float32 `[taps]`."""
    i = np.arange(taps) - (taps - 1) / 2
    h = np.sinc(2 * cutoff / rate * i) * np.hamming(taps)
    return (h / h.sum()).astype(np.float32)


def lag_bands(shortest: int, longest: int) -> list[tuple[int, int]]:
    """Half-open lag ranges of about half an octave that cover `[shortest, longest]`."""
    count = max(1, math.ceil(2 * math.log2((longest + 1) / shortest)))
    edges = np.unique(np.rint(np.geomspace(shortest, longest + 1, count + 1)).astype(int))
    return [(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:])]


def sliding_sum(x_bs: jax.Array, window: int) -> jax.Array:
    """Sums of `window` neighbours, `[b, s - window + 1]`, each a tree of additions: as exact anywhere in the row."""
    count = x_bs.shape[1] - window + 1
    power, total, at = x_bs, jnp.zeros((x_bs.shape[0], count), x_bs.dtype), 0  # sums of 1, 2, 4, ... neighbours
    for bit in range(window.bit_length()):
        if window >> bit & 1:
            total, at = total + power[:, at : at + count], at + (1 << bit)
        power = power[:, : -(1 << bit)] + power[:, 1 << bit :]
    return total


def difference(x_bs: jax.Array, frames: int, period: int, window: int, longest: int) -> jax.Array:
    """YIN's difference function, forward and backward lags averaged: float32 `[b, t, longest + 2]`.

    Entry tau is the mean over a window `w` of `(x[j] - x[j + tau])^2` and `(x[j] - x[j - tau])^2`: symmetric in
    time, so that a glide has no bias that depends on its lag.
    """
    lags = longest + 2  # one more on each side of the range for the parabola
    size = window + 2 * lags
    start = (period - size) // 2  # of frame 0, counted from sample 0
    x = jnp.pad(x_bs, ((0, 0), (max(-start, 0), size + period)))[:, max(start, 0) :]
    starts = np.arange(frames)[:, None] * period + np.arange(size)[None, :]
    frame = x[:, starts]
    points = 1 << (size - 1).bit_length()
    centre = frame[..., lags : lags + window]
    whole = jnp.fft.rfft(frame, points)
    part = jnp.fft.rfft(centre, points)
    product = jnp.fft.irfft(whole * jnp.conj(part), points)  # at k: sum_j centre[j] frame[j + k]
    energy = sliding_sum(jnp.square(x), window)[:, starts[:, : 2 * lags + 1]]  # at k: of the window that starts at k
    here = energy[..., lags : lags + 1]
    tau = slice(lags, 2 * lags)
    forward = here + energy[..., tau] - 2 * product[..., tau]
    backward = here + energy[..., lags:0:-1] - 2 * product[..., lags:0:-1]
    return jnp.maximum((forward + backward) / (2 * window), 0.0)


def aperiodicity(d_btl: jax.Array) -> jax.Array:
    """YIN equation 8: the difference over its running mean from lag 1; 1 at lag 0, 0 for a perfect period."""
    d = d_btl.at[..., 0].set(0.0) + QUIET
    lag = jnp.arange(d.shape[-1], dtype=jnp.float32)
    running = jnp.cumsum(d.at[..., 0].set(0.0), -1)
    return jnp.where(lag > 0, d * lag / jnp.maximum(running, QUIET), 1.0)


def candidates(d_btl: jax.Array, bands: list[tuple[int, int]]) -> tuple[jax.Array, jax.Array]:
    """(aperiodicity, lag in samples) of the deepest local minimum of every band, `[b, t, k]` each.

    A band without one costs `NEVER`. The lag is the vertex of the parabola through three points of the difference.
    """
    ap = aperiodicity(d_btl)
    low = jnp.minimum(jnp.roll(ap, 1, -1), jnp.roll(ap, -1, -1))
    masked = jnp.where(ap <= low, ap, NEVER)
    costs, lags = [], []
    for first, last in bands:
        part = masked[..., first:last]
        at = jnp.argmin(part, -1)[..., None]
        costs.append(jnp.take_along_axis(part, at, -1))
        lags.append(at + first)
    cost, lag = jnp.concatenate(costs, -1), jnp.concatenate(lags, -1)
    left, here, right = (jnp.take_along_axis(d_btl, lag + i, -1) for i in (-1, 0, 1))
    bend = left - 2 * here + right
    shift = jnp.where(bend > 0, 0.5 * (left - right) / jnp.maximum(bend, 1e-12), 0.0)
    return cost, lag + jnp.clip(shift, -1.0, 1.0)


def best_path(cost_btk: jax.Array, octave_btk: jax.Array, scale: float) -> jax.Array:
    """The cheapest state per frame, int32 `[b, t]`: a candidate, or k for unvoiced (Viterbi, both ends unvoiced).

    `cost_btk` is what a candidate costs, `octave_btk` its log2 lag; `scale` = 10 ms over the frame's length makes
    changes cost the same per second at every frame rate.
    """
    b, t, k = cost_btk.shape
    local = jnp.concatenate([cost_btk, jnp.full((b, t, 1), UNVOICED)], -1)
    change = jnp.zeros((k + 1, k + 1)).at[:k, k].set(VOICING_CHANGE * scale).at[k, :k].set(VOICING_CHANGE * scale)

    def forward(carry, frame):
        total, before = carry  # [b, k + 1], [b, k]
        here, now = frame
        jump = jnp.pad(jnp.abs(before[:, :, None] - now[:, None, :]) * (JUMP * scale), ((0, 0), (0, 1), (0, 1)))
        arrive = total[:, :, None] + jump + change
        total = arrive.min(1) + here
        return (total - total.min(-1, keepdims=True), now), arrive.argmin(1)

    start = jnp.full((b, k + 1), NEVER * 10).at[:, k].set(0.0)
    steps = (jnp.moveaxis(local, 1, 0), jnp.moveaxis(octave_btk, 1, 0))
    (total, _), back = lax.scan(forward, (start, octave_btk[:, 0]), steps)
    last = (total + change[:, k]).argmin(-1)  # leaving the last frame for silence is a change of voicing too

    def backward(state, arrive):
        return jnp.take_along_axis(arrive, state[:, None], -1)[:, 0], state

    _, states = lax.scan(backward, last, back, reverse=True)
    return jnp.moveaxis(states, 0, 1)


@functools.partial(jax.jit, static_argnames=("rate", "period", "fmin", "fmax", "window"))
def track(
    audio_bs: jax.Array, rate: int, period: int = 160, fmin: float = 60.0, fmax: float = 600.0, window: float = 0.025,
    samples_b: jax.Array | None = None,
) -> jax.Array:
    """F0 in Hz, float32 `[b, s // period]`, 0 where unvoiced.

    Args:
      audio_bs: float32 in [-1, 1], rows padded with zeros at the end.
      rate: samples per second. period: samples a frame.
      fmin, fmax: Hz, the range of the search. window: seconds a difference is averaged over.
      samples_b: int32, the real samples of each row. Frames behind the last whole one are unvoiced, and a row's
        result then does not depend on how far it was padded.

    Raises ValueError for a range that is empty, negative or too high for the rate. Compiled once per static shape.
    """
    if not 0 < fmin < fmax <= rate / 8:
        raise ValueError(f"pitch range {fmin}-{fmax} Hz: need 0 < fmin < fmax <= {rate / 8:g} Hz (an eighth of {rate} Hz)")
    x = jnp.asarray(audio_bs, jnp.float32)
    frames = x.shape[1] // period
    if frames == 0:
        return jnp.zeros((x.shape[0], 0), jnp.float32)
    taps = lowpass(rate, min(CUTOFF, 0.4 * rate))
    side = len(taps) // 2
    padded = jnp.pad(x, ((0, 0), (side, 2 * side)))  # the filter rings on behind the end, as it does in a padded row
    x = sum(padded[:, i : i + x.shape[1] + side] * float(tap) for i, tap in enumerate(taps))
    shortest, longest = math.floor(rate / fmax), math.ceil(rate / fmin)
    d = difference(x, frames, period, round(window * rate), longest)
    cost, lag = candidates(d, lag_bands(shortest, longest))
    f0 = rate / lag
    octave = jnp.log2(lag / shortest)
    cost = jnp.where((f0 >= fmin) & (f0 <= fmax), cost + OCTAVE * octave, NEVER)
    if samples_b is not None:
        cost = jnp.where((jnp.arange(frames) < (samples_b // period)[:, None])[..., None], cost, NEVER)
    state = best_path(cost, octave, 0.01 * rate / period)[..., None]
    k = cost.shape[-1]
    return jnp.where(state < k, jnp.take_along_axis(f0, jnp.minimum(state, k - 1), -1), 0.0)[..., 0]


def track_all(audios: Sequence[np.ndarray], rate: int, period: int = 160, rows: int = 8) -> list[np.ndarray]:
    """`track` for audio `[s]` of any lengths: F0 in Hz `[s // period]` each, in order. A few shapes are compiled."""
    out: dict[int, np.ndarray] = {}
    order = sorted(range(len(audios)), key=lambda i: len(audios[i]))
    for at in range(0, len(order), rows):
        part = order[at : at + rows]
        batch = np.zeros((rows, (max(len(audios[i]) for i in part) // rate + 1) * rate), np.float32)
        for row, i in enumerate(part):
            batch[row, : len(audios[i])] = audios[i]
        samples = np.asarray([len(audios[i]) for i in part] + [0] * (rows - len(part)), np.int32)
        f0 = np.asarray(track(batch, rate, period, samples_b=samples))
        out |= {i: f0[row, : len(audios[i]) // period] for row, i in enumerate(part)}
    return [out[i] for i in range(len(audios))]


@jax.jit
def interpolate(f0_bt: jax.Array) -> jax.Array:
    """Fills unvoiced frames (0) of float32 `[b, t]` linearly in log F0; the ends hold the nearest voiced value.

    A row without a voiced frame stays 0: it has no pitch to hold.
    """
    t = f0_bt.shape[1]
    at = jnp.arange(t)
    voiced = f0_bt > 0
    before = lax.cummax(jnp.where(voiced, at, -1), axis=1)
    after = lax.cummin(jnp.where(voiced, at, t), axis=1, reverse=True)
    left, right = jnp.where(before < 0, after, before), jnp.where(after >= t, before, after)
    clip = lambda i: jnp.clip(i, 0, max(t - 1, 0))
    log = jnp.log(jnp.where(voiced, f0_bt, 1.0))
    a, b = (jnp.take_along_axis(log, clip(i), 1) for i in (left, right))
    part = (at - left) / jnp.maximum(right - left, 1)
    filled = jnp.exp(a + (b - a) * part)
    return jnp.where(voiced, f0_bt, jnp.where(voiced.any(1, keepdims=True), filled, 0.0))
