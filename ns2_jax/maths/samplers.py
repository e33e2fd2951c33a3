"""Samplers as tables: one row per network evaluation, one jitted scan over the rows.

Every sampler here is linear in the state, in the data prediction, in noise, and in one thing that it remembers:

    z    <- keep z + jump x0_hat + hold memory + stir noise
    memory <- keep_memory z + jump_memory x0_hat

so it is its times and six coefficients, made in float64 before anything is compiled. `steps` counts network evaluations, and the last
returns its data estimate: what is left of the noise is not carried into the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.maths.process import Process

Table = dict[str, np.ndarray]
START_DEVIATION = 1 / 1.2
"""Standard deviation of the start: variance 1 / tau with tau = 1.2^2 (NaturalSpeech 2, section 4.3)."""
LAST = 1e-3  # time of the last evaluation, but for Euler's
NOISIEST = -6.0  # log signal-to-noise ratio where a grid of them begins, for processes that begin without any signal


def _table(t: np.ndarray, keep: np.ndarray, jump: np.ndarray, last_x0: bool = True, **more: np.ndarray) -> Table:
    none = np.zeros(len(t))
    rows = {"t": t, "keep": keep, "jump": jump, "hold": none, "stir": none, "keep_memory": none, "jump_memory": none} | more
    rows = {name: np.array(column, np.float32) for name, column in rows.items()}
    if last_x0:
        for name in ("keep", "hold", "stir"):
            rows[name][-1] = 0.0
        rows["jump"][-1] = 1.0
    return rows


def _even(steps: int) -> np.ndarray:
    return np.linspace(1.0, LAST, steps)


def _even_logsnr(process: Process, steps: int) -> np.ndarray:
    """Times at equal steps of the log signal-to-noise ratio, from 1 (or near it) to LAST."""
    first = process.time(NOISIEST) if process.alpha(1.0) == 0 else 1.0
    return process.time(np.linspace(process.logsnr(first), process.logsnr(LAST), steps)) if steps > 1 else np.array([first])


def euler(process: Process, steps: int, last_x0: bool = True) -> Table:
    """Euler steps of the probability-flow ODE (equation 5) from t = 1 to 0 at the centres of `steps` equal intervals.

    The last row returns x0_hat: a plain last step multiplies the distance from it by up to -1 at few steps, and leaves
    0.028 of a point's deviation at 50, 0.012 at 100 where x0_hat leaves none. `last_x0=False` is the paper to the letter.
    """
    t = 1.0 - (np.arange(steps) + 0.5) / steps
    (alpha, sigma), (rise, spread) = (process.alpha(t), process.sigma(t)), process.slopes(t)
    keep, jump = 1.0 - spread / sigma / steps, (alpha * spread / sigma - rise) / steps
    return _table(t, keep, jump, last_x0)


def euler_maruyama(process: Process, steps: int) -> Table:
    """Steps of the reverse-time SDE (equation 4), on Euler's times: the ODE's slope, twice its share of the score, and fresh noise."""
    t = 1.0 - (np.arange(steps) + 0.5) / steps
    (alpha, sigma), (rise, spread) = (process.alpha(t), process.sigma(t)), process.slopes(t)
    drift, power = rise / alpha, 2 * sigma * (spread - rise / alpha * sigma)  # f(t) and g(t)^2
    keep, jump = 1.0 - (drift + power / sigma**2) / steps, power * alpha / sigma**2 / steps
    return _table(t, keep, jump, stir=np.sqrt(power / steps))


def _first_order(process: Process, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(keep, jump) from each time to the next: exact while x0_hat stays what it is. One for the last, which is replaced."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    keep = np.append(sigma[1:] / sigma[:-1], 0.0)
    return keep, np.append(alpha[1:] - alpha[:-1] * keep[:-1], 1.0)


def ddim(process: Process, steps: int) -> Table:
    """Deterministic exponential-integrator steps (Song et al. 2021) on equal times from 1 to LAST."""
    t = _even(steps)
    return _table(t, *_first_order(process, t))


def inverse_ddim(process: Process, steps: int) -> Table:
    """`ddim`'s steps the other way: from the data's side, where the state is `alpha(LAST)` times the data, to the noise at t = 1."""
    t = _even(steps + 1)[::-1]
    keep, jump = _first_order(process, t)
    return _table(t[:-1], keep[:-1], jump[:-1], last_x0=False)


def heun(process: Process, steps: int) -> Table:
    """Heun's second-order steps (Karras et al. 2022, algorithm 1), two evaluations each.

    Followed in the coordinates of `Flow`, `z / (alpha + sigma)` over `sigma / (alpha + sigma)`, which are finite for every process and
    in which an Euler step is DDIM's, and at equal steps there: on mixtures of Gaussians two to eight times nearer than at equal steps of
    log SNR, where DPM-Solver is better. Where the evaluations before the last are an odd number, the first step is Euler's.
    """
    number = (steps - 1) // 2 + (steps - 1) % 2 + 1
    place = np.linspace(*(process.sigma(t) / (process.alpha(t) + process.sigma(t)) for t in (1.0, LAST)), number)
    times = np.append(1.0, process.time(np.log(1 / place[1:] - 1)))
    alpha, sigma = process.alpha(times), process.sigma(times)
    size = alpha + sigma
    rows = []
    for i in range(len(times) - 1):
        h, grow = place[i + 1] - place[i], size[i + 1] / size[i]  # dy/dplace = (y - x0) / place
        first = {"t": times[i], "keep": (1 + h / place[i]) * grow, "jump": -h / place[i] * size[i + 1]}
        if i == 0 and steps % 2 == 0:
            rows.append(first)
            continue
        half, end = 0.5 * h / place[i], 0.5 * h / place[i + 1]
        rows.append(first | {"keep_memory": (1 + half) * grow, "jump_memory": -half * size[i + 1]})
        rows.append({"t": times[i + 1], "keep": end, "jump": -end * size[i + 1], "hold": 1.0})
    rows.append({"t": times[-1], "keep": 0.0, "jump": 1.0})
    return _table(**{name: np.array([row.get(name, 0.0) for row in rows]) for name in ("t", "keep", "jump", "hold", "keep_memory", "jump_memory")})


def dpm(process: Process, steps: int) -> Table:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order from one evaluation a step and the one before, at equal steps of
    log SNR; the first step is DDIM's."""
    t = _even_logsnr(process, steps)
    keep, jump = _first_order(process, t)
    logsnr = process.logsnr(t)
    h, hold = np.diff(logsnr), np.zeros(steps)
    hold[1:-1] = -jump[1:-1] * h[1:] / (2 * h[:-1])
    return _table(t, keep, jump - hold, hold=hold, jump_memory=np.ones(steps))


def ml(process: Process, steps: int) -> Table:
    """The maximum-likelihood SDE solver (Popov et al. 2022, DiffVC, 2109.13821, section 4) on equal times from 1 to 0.

    In data predictions it is ancestral sampling with the exact Gaussian posterior of the next state: no residual noise whatever the number
    of steps, but what varies shrinks when they are few (6 % of a deviation of 1/2 at 100 steps, 33 % at 10).
    """
    t = 1.0 - np.arange(steps) / steps
    s = np.append(t[1:], 0.0)
    (alpha, sigma), (less, after) = (process.alpha(t), process.sigma(t)), (process.alpha(s), process.sigma(s))
    left = alpha / less  # of the state at s in that at t, and how much noise came in between
    power = sigma**2 - (left * after) ** 2
    return _table(t, left * after**2 / sigma**2, less * power / sigma**2, stir=after * np.sqrt(np.maximum(power, 0)) / sigma)


def warped(steps: int, warp: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """Shares of the way from noise (0) to data (1) at which `steps` evaluations begin and the last ends: float64 `[steps + 1]`."""
    share = np.arange(steps + 1) / steps
    return np.append(warp(share[:-1]), 1.0) if warp else share  # exactly: a place of 1e-16 would not be the data's


def sway(bend: float = -1.0) -> Callable[[np.ndarray], np.ndarray]:
    """F5-TTS's warp (2410.06885): `x + bend (cos(pi x / 2) - 1 + x)`; below 0 closer near the noise. Raises ValueError outside [-1, 2 / (pi - 2)],
    where it would not rise."""
    if not -1 <= bend <= 2 / (np.pi - 2):
        raise ValueError(f"sampler 'sway:{bend:g}'; expected -1 to {2 / (np.pi - 2):.2f}, outside which time would turn back")
    return lambda x: x + bend * (np.cos(0.5 * np.pi * x) - 1 + x)


def shift(factor: float = 0.7) -> Callable[[np.ndarray], np.ndarray]:
    """ZipVoice's warp (2506.13053): `c x / (1 + (c - 1) x)`; below 1 closer near the noise. Raises ValueError for what is not positive."""
    if not factor > 0:
        raise ValueError(f"sampler 'shift:{factor:g}'; expected more than 0")
    return lambda x: factor * x / (1 + (factor - 1) * x)


def places(process: Process, shares: np.ndarray) -> np.ndarray:
    """Where those shares of the way are in the coordinates of `Flow`, `sigma / (alpha + sigma)`: from that of t = 1 down to 0."""
    return process.sigma(1.0) / (process.alpha(1.0) + process.sigma(1.0)) * (1 - shares)


def _straight(process: Process, shares: np.ndarray) -> np.ndarray:
    """The times of `places` but the last, which is data."""
    inside = places(process, shares)[:-1]
    with np.errstate(divide="ignore"):
        return np.append(1.0, process.time(np.log(1 / inside[1:] - 1)))


def flow(process: Process, steps: int, warp: Callable[[np.ndarray], np.ndarray] | None = None) -> Table:
    """Euler steps along the straight paths of `Flow`, at equal distances or warped ones, from t = 1 to data: the usual sampler of flow
    matching. Of another process the same steps in `Flow`'s coordinates, where Euler's are DDIM's: what distilled students are trained for."""
    t = _straight(process, warped(steps, warp))
    return _table(t, *_first_order(process, t))


def renoise(process: Process, steps: int, warp: Callable[[np.ndarray], np.ndarray] | None = None) -> Table:
    """`flow`'s times, and each data estimate made as noisy again, with fresh noise, as the next time says: sampling of consistency models (Song
    et al. 2023, algorithm 1)."""
    t = _straight(process, warped(steps, warp))
    return _table(t, np.zeros(steps), np.append(process.alpha(t[1:]), 1.0), stir=np.append(process.sigma(t[1:]), 0.0))


WARPS: dict[str, Callable[..., Callable[[np.ndarray], np.ndarray]]] = {"sway": sway, "shift": shift}
"""Samplers that are `flow` with warped time; a number may follow the name, as in "shift:0.5"."""

SAMPLERS: dict[str, Callable[[Process, int], Table]] = {
    "euler": euler,
    "euler_literal": lambda process, steps: euler(process, steps, last_x0=False),
    "euler_maruyama": euler_maruyama,
    "ddim": ddim,
    "heun": heun,
    "dpm": dpm,
    "ml": ml,
    "flow": flow,
    "renoise": renoise,
    "sway": lambda process, steps: flow(process, steps, sway()),
    "shift": lambda process, steps: flow(process, steps, shift()),
}


def warp(name: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Of the sampler "flow", "sway", "shift:0.5" and so on: how it warps time; None where it does not. Raises ValueError for another."""
    kind, colon, number = name.partition(":")
    if kind in WARPS and (not colon or re.fullmatch(r"-?\d+(\.\d*)?", number)):
        return WARPS[kind](float(number)) if colon else WARPS[kind]()
    if name in ("flow", "renoise"):
        return None
    raise ValueError(f"sampler={name!r}; expected 'flow', 'renoise', or one of {sorted(WARPS)} with or without a number, as in 'shift:0.5'")


def table(name: str, process: Process, steps: int) -> Table:
    """The table of the sampler `name` ("sway" and "shift" may have a number, as in "shift:0.5"). Raises ValueError for an unknown name or
    number, or fewer than one step."""
    if name.partition(":")[0] not in (WARPS if ":" in name else SAMPLERS):
        raise ValueError(f"sampler={name!r}; expected one of {sorted(SAMPLERS)}")
    if steps < 1:
        raise ValueError(f"steps={steps}; a sampler needs at least one")
    return flow(process, steps, warp(name)) if ":" in name else SAMPLERS[name](process, steps)


def run(denoise: Callable[[jax.Array, jax.Array], jax.Array], start: jax.Array, rows: Table, rng: jax.Array | None = None) -> jax.Array:
    """Follows the table from `start` (float32). `denoise(z, t)` predicts x0 at the scalar time t; `rng` is for tables that stir, and for
    those that are traced."""
    stirs = isinstance(rows["stir"], jax.Array) or bool(rows["stir"].any())  # what a traced table does is not known
    if stirs and rng is None:
        raise ValueError("this sampler needs a random key: it adds noise")
    keys = jax.random.split(rng, len(rows["t"])) if stirs else jnp.zeros((len(rows["t"]), 0))

    def step(carry: tuple[jax.Array, jax.Array], inputs: tuple) -> tuple[tuple[jax.Array, jax.Array], None]:
        (z, memory), (row, key) = carry, inputs
        x0 = denoise(z, row["t"]).astype(jnp.float32)
        new = row["keep"] * z + row["jump"] * x0 + row["hold"] * memory
        if stirs:
            new = new + row["stir"] * jax.random.normal(key, z.shape)
        return (new, row["keep_memory"] * z + row["jump_memory"] * x0), None

    start = start.astype(jnp.float32)
    columns = {name: jnp.asarray(column) for name, column in rows.items()}
    return jax.lax.scan(step, (start, jnp.zeros_like(start)), (columns, keys))[0][0]


def guide(null: jax.Array, conditional: jax.Array, factor: float | jax.Array) -> jax.Array:
    """Classifier-free guidance with the *total* factor: 1 is the conditional model, 0 the unconditional one. An array of factors must broadcast."""
    return null + factor * (conditional - null)
