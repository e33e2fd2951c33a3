"""Schedules: the identities between betas and sigmas, published numbers, the ancestral table against its equations, the guard."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.maths import process, samplers, schedules

TRAINED = schedules.linear(1e-6, 0.01, 1000)
SCHEDULES = {"linear1000": TRAINED, **{name: np.asarray(betas) for name, betas in schedules.PUBLISHED.items()},
             "grid12": schedules.betas_of(schedules.grid(12, 5.0, -2.5)), "one": np.array([0.95])}
VP = process.VP(1e-3, 10.0)  # the limit of linear1000


@pytest.mark.parametrize("name, last", [("linear1000", 0.0066), ("linear50", 0.280), ("manual6", 0.189)])
def test_published_schedules_end_where_they_should(name, last):
    assert schedules.last_signal(schedules.logsnr(SCHEDULES[name])) == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_three_identities_hold(name):
    betas = np.longdouble(SCHEDULES[name])
    abar = np.cumprod(np.r_[np.longdouble(1), 1 - betas])
    sigma2 = 1 - abar
    np.testing.assert_allclose((sigma2[1:] - sigma2[:-1]) / (1 - sigma2[:-1]), betas, atol=1e-10)
    ratios = schedules.logsnr(betas)
    np.testing.assert_allclose(schedules.betas_of(ratios), np.float64(betas), rtol=1e-8)
    alpha, rest = schedules.levels(betas)
    np.testing.assert_allclose(alpha, np.sqrt(np.float64(abar)), rtol=1e-12)
    np.testing.assert_allclose(rest * (1 + alpha), np.float64(sigma2), rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_table_is_the_posterior(name, traced):
    """Mean from eps as the paper has it, and its deviation; in float32 under a trace too."""
    betas = SCHEDULES[name]
    ratios, n = schedules.logsnr(betas), len(betas)
    table = lambda x: schedules.ancestral(VP, x)
    rows = jax.jit(table)(jnp.asarray(ratios, jnp.float32)) if traced else table(ratios)
    abar = np.cumprod(np.r_[1.0, 1 - betas])
    rng = np.random.default_rng(0)
    y, eps = rng.normal(size=n), rng.normal(size=n)
    x0 = (y - np.sqrt(1 - abar[1:]) * eps) / np.sqrt(abar[1:])
    mean = (y - betas / np.sqrt(1 - abar[1:]) * eps) / np.sqrt(1 - betas)
    std = np.sqrt(betas * (1 - abar[:-1]) / (1 - abar[1:]))
    flip = lambda column: np.float64(column)[::-1]
    scale = np.abs(x0) + 1
    tolerance = 2e-3 if traced else 1e-6  # a trace has the ratios in float32: an error of 1e-6 of a step that is 1e-3 of its state
    np.testing.assert_allclose((flip(rows["keep"]) * y + flip(rows["jump"]) * x0 - mean) / scale, 0, atol=tolerance)
    np.testing.assert_allclose(flip(rows["stir"]), std, rtol=tolerance, atol=1e-7)
    np.testing.assert_allclose(VP.alpha(flip(rows["t"])), np.sqrt(abar[1:]), atol=1e-4)
    assert rows["keep"][-1] == rows["stir"][-1] == 0 and float(rows["jump"][-1]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["linear1000", "manual6", "grid12"])
def test_who_knows_the_answer_finds_it(name):
    """An oracle's eps leads to the clean waveform by any schedule, without noise and with it."""
    clean = jnp.sin(jnp.arange(50.0))
    rows = schedules.ancestral(VP, schedules.logsnr(SCHEDULES[name]))

    def denoise(z, t):
        alpha, sigma = VP.alpha(t), VP.sigma(t)
        eps = (z - alpha * clean) / sigma
        return (z - sigma * eps) / alpha

    start = jax.random.normal(jax.random.key(0), (50,))
    quiet = {**rows, "stir": np.zeros_like(rows["stir"])}
    for table in (rows, quiet, jax.tree.map(jnp.asarray, rows)):
        np.testing.assert_allclose(samplers.run(denoise, start, table, jax.random.key(1)), clean, atol=2e-4)


def test_the_sampler_makes_the_distribution_that_was_learned():
    """The exact estimate of N(0, 0.6^2) gives samples of that deviation, the nearer the more steps: 0.344 at 6 and 0.578 at 100 by the
    recursion of the variance, since the posterior of one x0 is narrower than that of its distribution."""
    gaussian = lambda z, t: VP.alpha(t) * 0.36 / (VP.alpha(t) ** 2 * 0.36 + VP.sigma(t) ** 2) * z
    start = jax.random.normal(jax.random.key(0), (20_000,))
    spread = [float(jax.jit(lambda z: samplers.run(gaussian, z, schedules.ancestral(VP, schedules.grid(n, 5.0, -2.5)), jax.random.key(1)))(
        start).std()) for n in (6, 100)]
    np.testing.assert_allclose(spread, [0.3438, 0.5779], rtol=0.02)


def test_schedules_that_begin_with_signal_are_refused():
    fibonacci = [1e-6, 2e-6]
    while len(fibonacci) < 25:
        fibonacci.append(sum(fibonacci[-2:]))
    assert schedules.last_signal(schedules.logsnr(fibonacci)) == pytest.approx(0.719, abs=1e-3)
    for betas in (fibonacci, np.linspace(1e-6, 1e-2, 50)):
        with pytest.raises(ValueError, match="ends at abar 0.7"):
            schedules.check(schedules.logsnr(betas))
        schedules.check(schedules.logsnr(betas), 1.0)
    with pytest.raises(ValueError, match="must fall"):
        schedules.check([1.0, 1.0, -3.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        schedules.levels([0.5, 1.0])


def test_grids_bend_towards_the_noise():
    even, bent = schedules.grid(5, 4.0, -2.0), schedules.grid(5, 4.0, -2.0, 2.0)
    np.testing.assert_allclose(even, [4, 2.5, 1, -0.5, -2])
    assert bent[0] == 4 and bent[-1] == -2 and (bent[1:-1] < even[1:-1]).all() and list(schedules.grid(1, 4.0, -2.0)) == [-2]
