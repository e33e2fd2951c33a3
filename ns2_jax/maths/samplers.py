"""Samplers as tables: one row per network evaluation, one jitted scan over the rows.

First-order steps of a linear process are linear in the state and the data prediction, `z <- keep z + jump x0_hat`, so a
sampler is its times and two coefficients, made in float64 before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.maths.process import VP

Table = dict[str, np.ndarray]
START_DEVIATION = 1 / 1.2
"""Standard deviation of the start: variance 1 / tau with tau = 1.2^2 (NaturalSpeech 2, section 4.3)."""


def _levels(process: VP, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    integral = process.integral(np.asarray(t, np.float64))
    return np.exp(-0.5 * integral), np.sqrt(-np.expm1(-integral))


def _table(t: np.ndarray, keep: np.ndarray, jump: np.ndarray) -> Table:
    return {name: np.asarray(column, np.float32) for name, column in (("t", t), ("keep", keep), ("jump", jump))}


def euler(process: VP, steps: int, last_x0: bool = True) -> Table:
    """Euler steps of the probability-flow ODE (equation 5) from t = 1 to 0 at the centres of `steps` equal intervals.

    The last row returns x0_hat: a plain last step would multiply the distance from it by up to -1 at few steps, and
    at 50 or more it makes no difference. `last_x0=False` is the paper to the letter.
    """
    h = 1.0 / steps
    t = 1.0 - (np.arange(steps) + 0.5) * h
    alpha, sigma = _levels(process, t)
    pull = 0.5 * process.beta(t) * h
    keep, jump = 1.0 + pull * (1.0 - sigma**-2), pull * alpha / sigma**2
    if last_x0:
        keep[-1], jump[-1] = 0.0, 1.0
    return _table(t, keep, jump)


def ddim(process: VP, steps: int, last: float = 1e-3) -> Table:
    """Deterministic exponential-integrator steps (Song et al. 2021) on equal times from 1 to `last`, then x0_hat."""
    t = np.linspace(1.0, last, steps)
    alpha, sigma = _levels(process, t)
    keep = np.append(sigma[1:] / sigma[:-1], 0.0)
    jump = np.append(alpha[1:] - alpha[:-1] * keep[:-1], 1.0)
    return _table(t, keep, jump)


SAMPLERS: dict[str, Callable[[VP, int], Table]] = {
    "euler": euler,
    "euler_literal": lambda process, steps: euler(process, steps, last_x0=False),
    "ddim": ddim,
}


def table(name: str, process: VP, steps: int) -> Table:
    """The table of the sampler `name`. Raises ValueError for an unknown name or fewer than one step."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name!r}; expected one of {sorted(SAMPLERS)}")
    if steps < 1:
        raise ValueError(f"steps={steps}; a sampler needs at least one")
    return SAMPLERS[name](process, steps)


def run(denoise: Callable[[jax.Array, jax.Array], jax.Array], start: jax.Array, rows: Table) -> jax.Array:
    """Follows the table from `start` (float32). `denoise(z, t)` predicts x0 at the scalar time t."""

    def step(z: jax.Array, row: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        x0 = denoise(z, row["t"]).astype(jnp.float32)
        return row["keep"] * z + row["jump"] * x0, None

    return jax.lax.scan(step, start.astype(jnp.float32), {name: jnp.asarray(column) for name, column in rows.items()})[0]


def guide(null: jax.Array, conditional: jax.Array, factor: float) -> jax.Array:
    """Classifier-free guidance with the *total* factor: 1 is the conditional model, 0 the unconditional one."""
    return null + factor * (conditional - null)
