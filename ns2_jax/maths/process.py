"""The variance-preserving diffusion process and the exact maps between its parametrisations.

`z_t = alpha x0 + sigma eps` with `alpha = exp(-B(t)/2)`, `sigma^2 = 1 - alpha^2`, `B(t)` the integral of beta from 0 to t
(NaturalSpeech 2, equations 2 and 3; Grad-TTS). A network that predicts any of x0, eps, score or v predicts all of them:
the maps below are linear, so that every sampler, guidance and distillation serves every continuous system.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

SCORE_LOSSES = ("literal", "eps_l2", "eps_l1", "min_snr")


@dataclasses.dataclass(frozen=True)
class VP:
    """Linear beta(t) on t in [0, 1]. The paper gives no range; 0.05 to 20 is Grad-TTS's, whose formulation it follows."""

    beta_start: float = 0.05
    beta_end: float = 20.0

    def beta(self, t):
        """beta(t), for arrays of either library."""
        return self.beta_start + (self.beta_end - self.beta_start) * t

    def integral(self, t):
        """B(t), for arrays of either library."""
        return self.beta_start * t + 0.5 * (self.beta_end - self.beta_start) * t * t

    def alpha(self, t: jax.Array) -> jax.Array:
        """How much of x0 is left at time t."""
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """Standard deviation of the noise; `expm1` because `1 - exp(-B)` cancels for small t."""
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def levels(self, t_b: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma), each `[b, 1, ...]` so that they multiply `like [b, ...]`."""
        shape = t_b.shape + (1,) * (like.ndim - t_b.ndim)
        return self.alpha(t_b).reshape(shape), self.sigma(t_b).reshape(shape)

    def diffuse(self, x0: jax.Array, eps: jax.Array, t_b: jax.Array) -> jax.Array:
        """z_t from data and standard normal noise (equation 3)."""
        alpha, sigma = self.levels(t_b, x0)
        return alpha * x0 + sigma * eps


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


def score_loss(kind: str, error: jax.Array, alpha: jax.Array, sigma: jax.Array, cap: float = 5.0) -> jax.Array:
    """The score term of equation 6, elementwise, from `error = x0_hat - x0`.

    The score's error is `(alpha / sigma^2) error`, so the term is a weight on the data loss:
    `literal` alpha^2/sigma^4 (as printed; 4e12 at t = 1e-5), `eps_l2` alpha^2/sigma^2 (the score times sigma, Grad-TTS),
    `eps_l1` the same in L1, `min_snr` min(alpha^2/sigma^2, cap) (Hang et al. 2023). Raises ValueError for another kind.
    """
    if kind not in SCORE_LOSSES:
        raise ValueError(f"score_loss={kind!r}; expected one of {SCORE_LOSSES}")
    if kind == "eps_l1":
        return alpha / sigma * jnp.abs(error)
    snr = jnp.square(alpha / sigma)
    weight = {"literal": snr / jnp.square(sigma), "eps_l2": snr, "min_snr": jnp.minimum(snr, cap)}[kind]
    return weight * jnp.square(error)


def stratified(rng: jax.Array, rows: int, lowest: float = 1e-5) -> jax.Array:
    """Times `[rows]`, one in each of `rows` equal parts of [0, 1] in random order, kept `lowest` away from both ends."""
    where, order = jax.random.split(rng)
    t = (jnp.arange(rows) + jax.random.uniform(where)) / rows
    return jnp.clip(jax.random.permutation(order, t), lowest, 1 - lowest).astype(jnp.float32)
