"""The VP process: its table, and the maps between what a network can predict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.maths import process

VP = process.VP()

# t, B, alpha, sigma^2 computed by hand from beta = 0.05 + 19.95 t
TABLE = ((0.01, 1.50e-3, 0.99925, 1.50e-3), (0.1, 0.10475, 0.94897, 0.0995), (0.3, 0.91275, 0.63358, 0.599), (1.0, 10.025, 0.00665, 1.0))


@pytest.mark.parametrize("t, integral, alpha, variance", TABLE)
def test_levels_are_those_of_the_table(t, integral, alpha, variance):
    assert VP.integral(t) == pytest.approx(integral, rel=3e-3)
    assert float(VP.alpha(jnp.float32(t))) == pytest.approx(alpha, rel=1e-3)
    assert float(VP.sigma(jnp.float32(t))) ** 2 == pytest.approx(variance, rel=4e-3)


def test_variance_is_preserved_even_where_it_cancels():
    t = jnp.asarray([1e-5, 1e-3, 0.2, 0.7, 1.0])
    np.testing.assert_allclose(VP.alpha(t) ** 2 + VP.sigma(t) ** 2, 1.0, rtol=1e-6)
    exact = 1 - np.exp(-VP.integral(np.float64(1e-5)))
    assert float(VP.sigma(t[:1])[0] ** 2) == pytest.approx(exact, rel=1e-5)


def test_beta_is_the_derivative_of_its_integral():
    t = jnp.linspace(0.05, 0.95, 7)
    np.testing.assert_allclose(jax.vmap(jax.grad(VP.integral))(t), VP.beta(t), rtol=1e-6)


def test_every_parametrisation_leads_back_to_x0():
    t = jnp.asarray([0.02, 0.3, 0.6])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    z = VP.diffuse(x0, eps, t)
    a, s = VP.levels(t, x0)
    np.testing.assert_allclose(process.eps_from_x0(z, x0, a, s), eps, atol=2e-5)
    np.testing.assert_allclose(process.score_from_x0(z, x0, a, s), -eps / s, atol=1e-3)
    v = process.v_from_x0(z, x0, a, s)
    np.testing.assert_allclose(v, a * eps - s * x0, atol=2e-5)
    for name, predicted in (("eps", eps), ("score", -eps / s), ("v", v)):
        np.testing.assert_allclose(getattr(process, f"x0_from_{name}")(z, predicted, a, s), x0, atol=1e-4)


def test_score_losses_are_the_score_and_noise_errors_they_name():
    t = jnp.asarray([0.02, 0.2, 0.5])
    x0, eps, wrong = jax.random.normal(jax.random.key(1), (3, 3, 6, 2))
    x0_hat = x0 + 0.1 * wrong
    z = VP.diffuse(x0, eps, t)
    a, s = VP.levels(t, x0)
    score = process.score_from_x0(z, x0_hat, a, s) + eps / s
    noise = process.eps_from_x0(z, x0_hat, a, s) - eps
    error = x0_hat - x0
    np.testing.assert_allclose(process.score_loss("literal", error, a, s), score**2, rtol=2e-2)
    np.testing.assert_allclose(process.score_loss("eps_l2", error, a, s), noise**2, rtol=2e-2, atol=1e-6)
    np.testing.assert_allclose(process.score_loss("eps_l1", error, a, s), abs(noise), rtol=2e-2, atol=1e-5)
    capped = process.score_loss("min_snr", error, a, s, 5.0)
    np.testing.assert_allclose(capped, np.minimum((a / s) ** 2, 5.0) * error**2, rtol=1e-5)
    with pytest.raises(ValueError, match="min_snr"):
        process.score_loss("snr", error, a, s)


def test_stratified_times_fall_one_in_each_part():
    t = process.stratified(jax.random.key(2), 16)
    assert sorted(np.floor(np.asarray(t) * 16).astype(int)) == list(range(16))
    assert not (np.diff(np.asarray(t)) > 0).all(), "the order should be random"
    ends = np.asarray([process.stratified(jax.random.key(k), 2, 0.2) for k in range(50)])
    assert ends.min() == pytest.approx(0.2) and ends.max() == pytest.approx(0.8)
