"""Noise schedules of discrete diffusion: betas, the levels they lead to, and the ancestral sampler as a table.

With abar_0 = 1, abar_n = prod_{s <= n} (1 - beta_s) and sigma_n^2 = 1 - abar_n (Ho et al. 2020; WaveGrad 2, section 2, with the equations
of its reviews put right):

    beta_n = (sigma_n^2 - sigma_{n-1}^2) / (1 - sigma_{n-1}^2)
    y_{n-1} = (y_n - beta_n / sigma_n eps) / sqrt(1 - beta_n) + (sigma_{n-1} / sigma_n) sqrt(beta_n) z

A schedule is a sequence of log signal-to-noise ratios, `log(sqrt(abar) / sigma)`, from the cleanest to the noisiest: from them all else comes
without cancellation, in float64 tables and in float32 under a trace alike. Sampling begins with pure noise, so a schedule's last abar
must be small: the first step would otherwise tell the network of signal that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.maths.process import VP
from ns2_jax.maths.samplers import Table

PUBLISHED: dict[str, tuple[float, ...]] = {
    "linear50": tuple(np.linspace(1e-4, 0.05, 50).tolist()),
    "manual6": (7e-6, 1.4e-4, 2.1e-3, 2.8e-2, 0.35, 0.7),
}
"""Betas of WaveGrad (Chen et al. 2021) that end near enough to noise for a model that hears nothing but text. Its Fibonacci schedule of 25
steps ends at abar 0.72: it is for vocoders."""
MOST_SIGNAL = 0.3
"""The largest last abar with a precedent (0.28, WaveGrad's 50 steps)."""


def linear(first: float, last: float, steps: int) -> np.ndarray:
    """Betas `[steps]` at equal distances, float64."""
    return np.linspace(first, last, steps)


def levels(betas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(sqrt(abar), 1 - sqrt(abar)), each float64 `[n + 1]` from abar_0 = 1 on; the second without cancellation.

    Raises ValueError for betas that are not between 0 and 1."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"betas {betas.tolist()[:8]}: expected one or more numbers between 0 and 1")
    half = np.append(0.0, 0.5 * np.log1p(-betas).cumsum())
    return np.exp(half), -np.expm1(half)


def logsnr(betas: Sequence[float]) -> np.ndarray:
    """Log signal-to-noise ratios `[n]`, float64, of a schedule of betas. Raises as `levels`."""
    alpha, rest = levels(betas)
    return np.log(alpha[1:] / np.sqrt(rest[1:] * (1 + alpha[1:])))


def grid(steps: int, cleanest: float, noisiest: float, bend: float = 1.0) -> np.ndarray:
    """Log signal-to-noise ratios `[steps]` from `cleanest` to `noisiest`; at equal distances with `bend` 1, closer at the noisy end above."""
    share = (np.arange(1, steps + 1) - 1) / max(steps - 1, 1) if steps > 1 else np.ones(1)
    return noisiest + (cleanest - noisiest) * (1 - share) ** bend


def betas_of(ratios: Sequence[float]) -> np.ndarray:
    """The betas of a schedule, float64 `[n]`."""
    log_alpha = -0.5 * np.logaddexp(0.0, -2 * np.asarray(ratios, np.float64))
    return -np.expm1(2 * np.diff(log_alpha, prepend=0.0))


def last_signal(ratios: Sequence[float]) -> float:
    """The last abar: how much of the power is still signal where sampling begins."""
    return float(1 / (1 + np.exp(-2 * float(ratios[-1]))))


def check(ratios: Sequence[float], most: float = MOST_SIGNAL) -> None:
    """Raises ValueError for a schedule that does not fall, or whose last abar is above `most`."""
    if not (np.diff(ratios) < 0).all():
        raise ValueError("a schedule goes from clean to noisy: its signal-to-noise ratios must fall")
    if (found := last_signal(ratios)) > most:
        raise ValueError(f"a schedule of {len(ratios)} steps ends at abar {found:.3f}: sampling would begin with noise where the network is "
                         f"told of signal. Expected at most {most:g} (config.model.most_signal)")


def ancestral(process: VP, ratios: jax.Array | Sequence[float]) -> Table:
    """The sampler's table: the posterior of the step before given the data estimate, and its noise; none in the last row, which is the estimate.

    Of `ratios` (clean to noisy) as numpy a float32 table made in float64, under a trace an array of the trace. Times are those at which
    `process` has the ratio.
    """
    traced = isinstance(ratios, jax.Array)
    lib = jnp if traced else np
    ratios = ratios if traced else np.asarray(ratios, np.float64)
    signal, noise = -0.5 * lib.logaddexp(0.0, -2 * ratios), lib.exp(-lib.logaddexp(0.0, 2 * ratios))  # log sqrt(abar), sigma^2
    before = lib.concatenate([lib.zeros_like(signal[:1]), signal[:-1]])
    noise_before = lib.concatenate([lib.zeros_like(noise[:1]), noise[:-1]])
    beta = -lib.expm1(2 * (signal - before))
    rows = {
        "t": process.time(ratios),
        "keep": lib.sqrt(1 - beta) * noise_before / noise,
        "jump": lib.exp(before) * beta / noise,
        "stir": lib.sqrt(beta * noise_before / noise),
    }
    rows |= {name: lib.zeros_like(signal) for name in ("hold", "keep_memory", "jump_memory")}
    return {name: lib.asarray(column[::-1], lib.float32) for name, column in rows.items()}
