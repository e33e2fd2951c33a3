"""Noising processes `z_t = alpha x0 + sigma eps` on t in [0, 1], 1 being noise, and the exact maps between what a network can predict.

`VP` is variance-preserving (NaturalSpeech 2, equations 2 and 3; Grad-TTS), `EDM` variance-exploding on Karras's scale of sigma,
`Flow` the straight path of flow matching. They differ by a factor and a clock: at one log signal-to-noise ratio
`log(alpha / sigma)` the states of all are multiples of each other, so a network trained on one is sampled as any other
(`converted`). A network that predicts any of x0, eps, score, v or u predicts all of them: the maps below are linear, so that every
sampler, guidance and distillation serves every continuous system.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

SCORE_LOSSES = ("literal", "min_snr")


def _library(t):
    """numpy for its own arrays and numbers (tables are made in float64), jax.numpy for what is traced."""
    return jnp if isinstance(t, jax.Array) else np


class Process:
    """What all three share. One has `alpha(t)`, `sigma(t)`, their derivatives `slopes(t)`, and `time(logsnr)`."""

    def levels(self, t_b: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma), each `[b, 1, ...]` so that they multiply `like [b, ...]`."""
        shape = t_b.shape + (1,) * (like.ndim - t_b.ndim)
        return self.alpha(t_b).reshape(shape), self.sigma(t_b).reshape(shape)

    def diffuse(self, x0: jax.Array, eps: jax.Array, t_b: jax.Array) -> jax.Array:
        """z_t from data and standard normal noise (equation 3)."""
        alpha, sigma = self.levels(t_b, x0)
        return alpha * x0 + sigma * eps

    def logsnr(self, t):
        """log(alpha / sigma), half of the log of the power ratio."""
        return _library(t).log(_library(t).divide(self.alpha(t), self.sigma(t)))


@dataclasses.dataclass(frozen=True)
class VP(Process):
    """`alpha = exp(-B(t)/2)`, `sigma^2 = 1 - alpha^2`, `B(t)` the integral of a linear beta from 0 to t. The paper gives no range;
    0.05 to 20 is Grad-TTS's, whose formulation it follows."""

    beta_start: float = 0.05
    beta_end: float = 20.0

    def beta(self, t):
        """beta(t), for arrays of either library."""
        return self.beta_start + (self.beta_end - self.beta_start) * t

    def integral(self, t):
        """B(t), for arrays of either library."""
        return self.beta_start * t + 0.5 * (self.beta_end - self.beta_start) * t * t

    def alpha(self, t):
        """How much of x0 is left at time t."""
        return _library(t).exp(-0.5 * self.integral(t))

    def sigma(self, t):
        """Standard deviation of the noise; `expm1` because `1 - exp(-B)` cancels for small t."""
        return _library(t).sqrt(-_library(t).expm1(-self.integral(t)))

    def slopes(self, t):
        """Derivatives of alpha and sigma."""
        alpha, half = self.alpha(t), 0.5 * self.beta(t)
        return -half * alpha, half * alpha**2 / self.sigma(t)

    def time(self, logsnr):
        """The t of a log signal-to-noise ratio."""
        integral = _library(logsnr).log1p(_library(logsnr).exp(-2 * logsnr))
        slope = self.beta_end - self.beta_start
        return 2 * integral / (self.beta_start + _library(logsnr).sqrt(self.beta_start**2 + 2 * slope * integral))


@dataclasses.dataclass(frozen=True)
class EDM(Process):
    """`alpha = 1` and sigma from `lowest` to `highest`, evenly in sigma^(1/rho) (Karras et al. 2022, equation 5; data of deviation 1/2)."""

    lowest: float = 0.002
    highest: float = 80.0
    rho: float = 7.0

    def alpha(self, t):
        """1."""
        return _library(t).ones_like(t)

    def _root(self, t):
        low, high = self.lowest ** (1 / self.rho), self.highest ** (1 / self.rho)
        return low + t * (high - low), high - low

    def sigma(self, t):
        """Standard deviation of the noise."""
        return self._root(t)[0] ** self.rho

    def slopes(self, t):
        """Derivatives of alpha and sigma."""
        root, width = self._root(t)
        return _library(t).zeros_like(t), self.rho * width * root ** (self.rho - 1)

    def time(self, logsnr):
        """The t of a log signal-to-noise ratio."""
        low, width = self._root(0.0)
        return (_library(logsnr).exp(-logsnr / self.rho) - low) / width


@dataclasses.dataclass(frozen=True)
class Flow(Process):
    """`alpha = 1 - t`, `sigma = t` (Lipman et al. 2023; there time runs from noise to data)."""

    def alpha(self, t):
        """How much of x0 is left at time t."""
        return 1 - t

    def sigma(self, t):
        """Standard deviation of the noise."""
        return t + 0 * t

    def slopes(self, t):
        """Derivatives of alpha and sigma."""
        return -_library(t).ones_like(t), _library(t).ones_like(t)

    def time(self, logsnr):
        """The t of a log signal-to-noise ratio."""
        return 1 / (1 + _library(logsnr).exp(logsnr))


def converted(source: Process, t, target: Process):
    """(time, factor): `factor * z_t` of `source` is the state of `target` at that time, of the same x0 and eps. Where `target` has no
    such ratio (`VP` keeps a little signal at t = 1, `Flow` none), it is the nearest that it has."""
    library = _library(t)
    with np.errstate(divide="ignore"):
        logsnr = source.logsnr(t)
    time = library.clip(target.time(library.clip(logsnr, -20.0, 20.0)), 0.0, 1.0)
    size = lambda process, t: library.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
    return time, size(target, time) / size(source, t)


def eps_from_x0(z: jax.Array, x0: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The noise that makes z out of x0."""
    return (z - alpha * x0) / sigma


def x0_from_eps(z: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The data that eps leaves behind."""
    return (z - sigma * eps) / alpha


def score_from_x0(z: jax.Array, x0: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gradient of log p(z_t | x0): `(alpha x0 - z) / sigma^2`, which is `-eps / sigma` (section 3.2)."""
    return (alpha * x0 - z) / jnp.square(sigma)


def x0_from_score(z: jax.Array, score: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Inverse of `score_from_x0` (Tweedie)."""
    return (z + jnp.square(sigma) * score) / alpha


def v_from_x0(z: jax.Array, x0: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """`v = alpha eps - sigma x0` (Salimans & Ho 2022)."""
    return alpha * eps_from_x0(z, x0, alpha, sigma) - sigma * x0


def x0_from_v(z: jax.Array, v: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Inverse of `v_from_x0`."""
    return alpha * z - sigma * v


def u_from_x0(z: jax.Array, x0: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """`u = eps - x0`, the velocity of flow matching as time runs from data to noise."""
    return eps_from_x0(z, x0, alpha, sigma) - x0


def x0_from_u(z: jax.Array, u: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Inverse of `u_from_x0`."""
    return (z - sigma * u) / (alpha + sigma)


def score_loss(kind: str, error: jax.Array, alpha: jax.Array, sigma: jax.Array, cap: float = 5.0) -> jax.Array:
    """The score term of equation 6, elementwise, from `error = x0_hat - x0`.

    The score's error is `(alpha / sigma^2) error`, so the term is a weight on the data loss:
    `literal` alpha^2/sigma^4 (as printed; 4e12 at t = 1e-5), `min_snr` min(alpha^2/sigma^2, cap) (Hang et al. 2023). Raises ValueError for
    another kind.
    """
    if kind not in SCORE_LOSSES:
        raise ValueError(f"score_loss={kind!r}; expected one of {SCORE_LOSSES}")
    snr = jnp.square(alpha / sigma)
    return (snr / jnp.square(sigma) if kind == "literal" else jnp.minimum(snr, cap)) * jnp.square(error)


def stratified(rng: jax.Array, rows: int, lowest: float = 1e-5) -> jax.Array:
    """Times `[rows]`, one in each of `rows` equal parts of [0, 1] in random order, kept `lowest` away from both ends."""
    where, order = jax.random.split(rng)
    t = (jnp.arange(rows) + jax.random.uniform(where)) / rows
    return jnp.clip(jax.random.permutation(order, t), lowest, 1 - lowest).astype(jnp.float32)
