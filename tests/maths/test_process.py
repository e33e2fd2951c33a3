"""The processes: VP's table, and the maps between them and between what a network can predict."""

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
    np.testing.assert_allclose(process.u_from_x0(z, x0, a, s), eps - x0, atol=2e-5)
    for name, predicted in (("eps", eps), ("score", -eps / s), ("v", v), ("u", eps - x0)):
        np.testing.assert_allclose(getattr(process, f"x0_from_{name}")(z, predicted, a, s), x0, atol=1e-4)


PROCESSES = {"vp": VP, "edm": process.EDM(), "flow": process.Flow()}


@pytest.mark.parametrize("name", PROCESSES)
def test_slopes_and_times_belong_to_the_levels(name):
    """Derivatives against differences, time and log SNR against each other, in float64; and the same through JAX."""
    one, t = PROCESSES[name], np.linspace(0.02, 0.98, 13)
    assert t.dtype == one.sigma(t).dtype == one.alpha(t).dtype == np.float64
    for found, level in zip(one.slopes(t), (one.alpha, one.sigma)):
        np.testing.assert_allclose(found, (level(t + 1e-6) - level(t - 1e-6)) / 2e-6, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(one.time(one.logsnr(t)), t, rtol=1e-9)
    assert (np.diff(one.logsnr(t)) < 0).all()
    for method in ("alpha", "sigma", "logsnr"):
        np.testing.assert_allclose(jax.jit(getattr(one, method))(jnp.asarray(t)), getattr(one, method)(t), rtol=3e-5, atol=3e-6)


def test_edm_has_karras_scale():
    """Equation 5 of the paper, by hand: its ends, and the middle of 3 steps."""
    edm = process.EDM()
    np.testing.assert_allclose(edm.sigma(np.array([0.0, 1.0])), [0.002, 80.0], rtol=1e-12)
    assert edm.sigma(0.5) == pytest.approx(((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, rel=1e-12)


@pytest.mark.parametrize("source", PROCESSES)
@pytest.mark.parametrize("target", PROCESSES)
def test_a_state_of_one_process_is_that_of_another(source, target):
    """Of the same x0 and eps, exactly; and what a network says of x0 there says the same here."""
    source, target = PROCESSES[source], PROCESSES[target]
    x0, eps, error = np.random.default_rng(0).standard_normal((3, 7))
    for t in (0.05, 0.4, 0.9):
        time, factor = process.converted(source, t, target)
        state = lambda one, at: one.alpha(at) * x0 + one.sigma(at) * eps
        np.testing.assert_allclose(factor * state(source, t), state(target, time), rtol=1e-9)
        x0_hat = x0 + 0.1 * error
        guess = [(state(one, at) - one.alpha(at) * x0_hat) / one.sigma(at) for one, at in ((source, t), (target, time))]
        np.testing.assert_allclose(guess[0], guess[1], atol=1e-6)  # eps


def test_the_best_velocity_of_a_gaussian_is_that_of_its_flow():
    """What flow matching's mean square is smallest for, E[eps - x0 | z], is (z - E[x0 | z]) / t, and following it carries N(0, 1) to the data."""
    flow, mean, deviation = process.Flow(), 1.5, 0.6
    x0, eps = mean + deviation * np.random.default_rng(0).standard_normal(400_000), np.random.default_rng(1).standard_normal(400_000)
    best = lambda z, t: (z - (mean + (1 - t) * deviation**2 / (((1 - t) * deviation) ** 2 + t**2) * (z - (1 - t) * mean))) / t
    for t in (0.1, 0.5, 0.9):
        z = flow.alpha(t) * x0 + flow.sigma(t) * eps
        left = (eps - x0) - best(z, t)
        assert abs(left.mean()) < 0.01 and abs((left * (z - z.mean())).mean()) < 0.01
        assert np.square(left).mean() < np.square(left + 0.1).mean() and np.square(left).mean() < np.square(eps - x0 - 0.9 * best(z, t)).mean()
    z, steps = np.linspace(-2, 2, 9), 2000
    for i in range(steps):
        t = 1 - (i + 0.5) / steps
        z = z - best(z, t) / steps
    np.testing.assert_allclose(z, mean + deviation * np.linspace(-2, 2, 9), atol=5e-3)


def test_score_losses_are_the_score_and_noise_errors_they_name():
    t = jnp.asarray([0.02, 0.2, 0.5])
    x0, eps, wrong = jax.random.normal(jax.random.key(1), (3, 3, 6, 2))
    x0_hat = x0 + 0.1 * wrong
    z = VP.diffuse(x0, eps, t)
    a, s = VP.levels(t, x0)
    score = process.score_from_x0(z, x0_hat, a, s) + eps / s
    error = x0_hat - x0
    np.testing.assert_allclose(process.score_loss("literal", error, a, s), score**2, rtol=2e-2)
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


def test_the_residual_of_a_process_with_a_mean_is_the_plain_process():
    """Grad-TTS's dY = -1/2 beta (Y - mu) dt + sqrt(beta) dW in 20,000 Euler steps of its mean and variance: those of mu + VP of Y_0 - mu."""
    y0, mu, steps = 0.7, -0.4, 20_000
    mean, variance, found = y0, 0.0, {}
    for i in range(steps):
        beta = VP.beta((i + 0.5) / steps) / steps
        mean, variance = mean - 0.5 * beta * (mean - mu), variance * (1 - 0.5 * beta) ** 2 + beta
        found[(i + 1) / steps] = mean, variance
    for t in (0.1, 0.5, 1.0):
        np.testing.assert_allclose(found[t][0], mu + VP.alpha(t) * (y0 - mu), atol=1e-4)
        np.testing.assert_allclose(found[t][1], VP.sigma(t) ** 2, atol=1e-3)
    assert VP.alpha(1.0) == pytest.approx(0.00665, abs=1e-5) and VP.sigma(1e-5) == pytest.approx(7.1e-4, abs=5e-6)
