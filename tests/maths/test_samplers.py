"""Samplers against closed forms on a Gaussian, where the exact predictor is linear."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.maths import process, samplers

VP = process.VP()
MEAN, DEVIATION = 1.5, 0.6


def gaussian(z, t):
    """E[x0 | z_t] for x0 ~ N(MEAN, DEVIATION^2)."""
    a, s2 = VP.alpha(t), VP.sigma(t) ** 2
    gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + s2)
    return MEAN + gain * (z - a * MEAN)


@pytest.mark.parametrize("name, steps, tolerance", [("euler", 400, 0.02), ("euler_literal", 400, 0.02), ("ddim", 200, 0.03)])
def test_reaches_mean_and_deviation_of_a_gaussian(name, steps, tolerance):
    start = jax.random.normal(jax.random.key(0), (40_000,))
    x0 = jax.jit(lambda z: samplers.run(gaussian, z, samplers.table(name, VP, steps)))(start)
    assert float(x0.mean()) == pytest.approx(MEAN, abs=tolerance)
    assert float(x0.std()) == pytest.approx(DEVIATION, rel=tolerance + 0.01)


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_follows_the_closed_form_flow_of_a_gaussian(name):
    """The ODE keeps every sample's quantile: x0 = MEAN + DEVIATION * (z1 - alpha1 MEAN) / deviation of z1."""
    z = jnp.linspace(-2, 2, 9)
    a, s = VP.alpha(jnp.float32(1.0)), VP.sigma(jnp.float32(1.0))
    expected = MEAN + DEVIATION * (z - a * MEAN) / jnp.sqrt(a**2 * DEVIATION**2 + s**2)
    errors = [float(jnp.abs(samplers.run(gaussian, z, samplers.table(name, VP, n)) - expected).max()) for n in (50, 200, 800)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_euler_rows_are_the_printed_equation():
    """One row against z - h dz/dt with dz/dt = -(z + score) beta / 2 (time runs down), and the centred grid."""
    rows = samplers.euler(VP, 10, last_x0=False)
    np.testing.assert_allclose(rows["t"], 1 - (np.arange(10) + 0.5) / 10, rtol=1e-6)
    i, z, x0 = 4, 0.7, -0.3
    t = jnp.float32(rows["t"][i])
    score = process.score_from_x0(z, x0, VP.alpha(t), VP.sigma(t))
    expected = z + 0.5 * (z + score) * VP.beta(t) * 0.1
    assert rows["keep"][i] * z + rows["jump"][i] * x0 == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_last_evaluation_is_returned_as_it_is(name):
    rows = samplers.table(name, VP, 7)
    assert len(rows["t"]) == 7
    assert (rows["keep"][-1], rows["jump"][-1]) == (0.0, 1.0)
    assert float(samplers.run(lambda z, t: jnp.float32(3.25) + 0 * z, jnp.float32(9.0), rows)) == 3.25


def test_ddim_is_exact_for_a_point_and_few_steps_beat_the_literal_ending():
    np.testing.assert_allclose(samplers.run(lambda z, t: 0 * z + 2.0, jnp.ones(3), samplers.ddim(VP, 3)), 2.0, rtol=1e-6)
    start = jax.random.normal(jax.random.key(1), (5000,)) * samplers.START_DEVIATION
    modes = lambda z, t: jnp.tanh(VP.alpha(t) * z / (VP.sigma(t) ** 2 + VP.alpha(t) ** 2 * 0.0025))  # +-1, deviation 0.05
    distance = lambda name: float(jnp.sqrt(jnp.square(jnp.abs(samplers.run(modes, start, samplers.table(name, VP, 10))) - 1).mean()))
    assert distance("euler") < 0.5 * distance("euler_literal")


def test_guidance_is_a_total_factor():
    null, conditional = jax.random.normal(jax.random.key(2), (2, 4))
    np.testing.assert_allclose(samplers.guide(null, conditional, 1.0), conditional, rtol=1e-6)
    np.testing.assert_array_equal(samplers.guide(null, conditional, 0.0), null)
    np.testing.assert_allclose(samplers.guide(null, conditional, 2.0), conditional + (conditional - null), rtol=1e-5, atol=1e-6)


def test_start_has_the_papers_variance():
    assert samplers.START_DEVIATION == pytest.approx(1 / 1.2)


@pytest.mark.parametrize("name, steps, message", [("heun", 10, "euler"), ("euler", 0, "at least one")])
def test_errors_say_what_exists(name, steps, message):
    with pytest.raises(ValueError, match=message):
        samplers.table(name, VP, steps)
