"""Samplers against closed forms: on a Gaussian the exact predictor is linear and the flow is known; on a mixture both are, too."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.maths import process, samplers

PROCESSES = {"vp": process.VP(), "edm": process.EDM(), "flow": process.Flow()}
VP = PROCESSES["vp"]
MEAN, DEVIATION = 1.5, 0.6
ODES = ("euler", "ddim", "heun", "dpm")


def gaussian(one: process.Process, z, t):
    """E[x0 | z_t] for x0 ~ N(MEAN, DEVIATION^2)."""
    a, s2 = one.alpha(t), one.sigma(t) ** 2
    gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + s2)
    return MEAN + gain * (z - a * MEAN)


def flowed(one: process.Process, z, start: float, end: float):
    """Where the probability-flow ODE takes z from time `start` to `end`: it keeps every sample's quantile."""
    spread = lambda t: np.sqrt(one.alpha(t) ** 2 * DEVIATION**2 + one.sigma(t) ** 2)
    return one.alpha(end) * MEAN + spread(end) / spread(start) * (z - one.alpha(start) * MEAN)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name != "euler_literal"])
def test_steps_are_evaluations_and_the_last_is_returned_as_it_is(name, steps):
    for one in PROCESSES.values():
        rows = samplers.table(name, one, steps)
        assert {len(column) for column in rows.values()} == {steps} and all(np.isfinite(column).all() for column in rows.values())
        assert [rows[key][-1] for key in ("keep", "jump", "hold", "stir")] == [0.0, 1.0, 0.0, 0.0]
        assert (np.diff(rows["t"]) <= 0).all() and (0 < rows["t"]).all() and (rows["t"] <= 1).all()
        assert float(samplers.run(lambda z, t: jnp.float32(3.25) + 0 * z, jnp.float32(9.0), rows, jax.random.key(0))) == 3.25


@pytest.mark.parametrize("one", PROCESSES)
@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name != "renoise"])  # which asks for consistent estimates
def test_reaches_mean_and_deviation_of_a_gaussian(name, one):
    steep = name.startswith("euler") and one == "edm"  # most of its steps are far out
    one = PROCESSES[one]
    start = one.sigma(1.0) * jax.random.normal(jax.random.key(0), (40_000,))
    rows = samplers.table(name, one, 400)
    x0 = jax.jit(lambda z: samplers.run(functools.partial(gaussian, one), z, rows, jax.random.key(1)))(start)
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x0.std()) == pytest.approx(DEVIATION, rel=0.05 if steep else 0.03)


@pytest.mark.parametrize("one", PROCESSES)
@pytest.mark.parametrize("name, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm", 2)])
def test_error_shrinks_with_the_order_of_the_method(name, order, one):
    """In float64, of the state before the last evaluation, from the time of the first to that of the last."""
    one, errors, counts = PROCESSES[one], [], (41, 81, 161, 321)
    for steps in counts:
        rows = {key: column.astype(np.float64) for key, column in exact(name, one, steps).items()}
        z = begin = np.linspace(-2, 2, 5) * one.sigma(rows["t"][0])
        memory = 0 * z
        for i in range(steps - 1):
            x0 = gaussian(one, z, rows["t"][i])
            z, memory = (rows["keep"][i] * z + rows["jump"][i] * x0 + rows["hold"][i] * memory,
                         rows["keep_memory"][i] * z + rows["jump_memory"][i] * x0)
        errors.append(np.abs(z - flowed(one, begin, rows["t"][0], rows["t"][-1])).max())
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(rates[-1] - order) < 0.25, (rates, errors)


def exact(name: str, one: process.Process, steps: int) -> dict[str, np.ndarray]:
    """A table before it is rounded to float32."""
    kept = []
    samplers_table, samplers._table = samplers._table, lambda *columns, **more: kept.append((columns, more)) or samplers_table(*columns, **more)
    try:
        samplers.table(name, one, steps)
    finally:
        samplers._table = samplers_table
    columns, more = kept[0]
    names = dict(zip(("t", "keep", "jump"), columns)) | more
    return {key: np.asarray(names.get(key, np.zeros(steps)), np.float64) for key in COLUMNS}


COLUMNS = ("t", "keep", "jump", "hold", "stir", "keep_memory", "jump_memory")


def texture(rows: dict[str, np.ndarray], one: process.Process = VP) -> float:
    """The deviation that samples of N(0, 1/4) come out with from N(0, 1) and the exact predictor, its variance carried along in closed form."""
    gain = one.alpha(rows["t"]) * 0.25 / (one.alpha(rows["t"]) ** 2 * 0.25 + one.sigma(rows["t"]) ** 2)
    z, memory, fresh = 1.0, 0.0, 0.0  # factors of the start, and the variance of what was stirred in (only where nothing is remembered)
    assert not (rows["stir"].any() and rows["hold"].any())
    for i in range(len(gain)):
        step = rows["keep"][i] + rows["jump"][i] * gain[i]
        fresh = step**2 * fresh + rows["stir"][i] ** 2
        z, memory = step * z + rows["hold"][i] * memory, (rows["keep_memory"][i] + rows["jump_memory"][i] * gain[i]) * z
    return np.sqrt(z**2 + fresh)


def point(rows: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean and deviation of samples of the point 0.7 round an average of -0.4, of a sampler that remembers nothing."""
    mean, power = 0.0, 1.0
    for keep, jump, stir in zip(rows["keep"], rows["jump"], rows["stir"]):
        mean, power = keep * mean + jump * (0.7 + 0.4), keep**2 * power + stir**2
    return mean - 0.4, np.sqrt(power)


@pytest.mark.parametrize("name, steps, expected", [
    ("ml", 4, 0.212), ("ml", 10, 0.334), ("ml", 20, 0.392), ("ml", 50, 0.444), ("ml", 100, 0.468), ("ddim", 50, 0.472), ("ddim", 100, 0.486),
    ("dpm", 4, 0.323), ("dpm", 10, 0.517), ("dpm", 20, 0.507), ("dpm", 50, 0.501)])
def test_how_much_a_texture_shrinks(name, steps, expected):
    """The maximum-likelihood solver smooths when steps are few, the multistep solver does not."""
    assert texture(exact(name, VP, steps)) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("steps, expected", [(4, 0.340), (10, 0.463), (20, 0.484), (50, 0.494), (100, 0.497)])
def test_what_euler_to_the_letter_makes_of_a_texture(steps, expected):
    """The same deviation after Euler steps of the ODE at mid-points, the last of them plain."""
    assert texture(exact("euler_literal", VP, steps)) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("steps, mean, left", [(5, 0.900, 0.458), (10, 0.718, 0.203), (50, 0.700, 0.028), (100, 0.700, 0.012)])
def test_what_euler_to_the_letter_leaves_on_a_point(steps, mean, left):
    """Hiss, which the samplers below do not leave. (The fact sheet's mean of 5 steps is 0.0015 above what its own formula gives.)"""
    found = point(exact("euler_literal", VP, steps))
    assert found == (pytest.approx(mean, abs=2e-3 if steps == 5 else 6e-4), pytest.approx(left, abs=6e-4))


# The fact sheet's other rows are not of times that we ship: its Euler and Euler-Maruyama begin steps at 1 - i/N (ours are at mid-points), its DDIM
# ends at 1/N (ours at 1e-3: 0.164 for 0.219 at N = 4), and one of its multistep rows is at (1 - i/N)^2. The formulas are held to them all the same.


@dataclasses.dataclass(frozen=True)
class Late(process.VP):
    """`VP` by a clock that is `late`: by half a step, what is shipped at mid-points is at the left ends of the steps."""

    late: float = 0.0

    def beta(self, t):
        return super().beta(t + self.late)

    def integral(self, t):
        return super().integral(t + self.late)


@pytest.mark.parametrize("name, steps, expected", [
    ("euler_literal", 4, 0.535), ("euler_literal", 10, 0.484), ("euler_literal", 20, 0.490), ("euler_literal", 50, 0.495),
    ("euler_literal", 100, 0.498), ("euler_maruyama", 4, 1.459), ("euler_maruyama", 10, 0.568), ("euler_maruyama", 20, 0.523),
    ("euler_maruyama", 50, 0.508), ("euler_maruyama", 100, 0.504)])
def test_what_left_ends_make_of_a_texture(name, steps, expected):
    one = Late(late=0.5 / steps)
    assert texture(exact(name, one, steps), one) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("name, steps, mean, left", [
    ("euler_literal", 5, 0.827, 0.155), ("euler_literal", 10, 0.750, 0.030), ("euler_literal", 50, 0.703, 0.008),
    ("euler_literal", 100, 0.701, 0.007), ("euler_maruyama", 5, 0.859, 1.59), ("euler_maruyama", 10, 0.721, 0.757),
    ("euler_maruyama", 50, 0.700, 0.141), ("euler_maruyama", 100, 0.700, 0.067)])
def test_what_left_ends_leave_on_a_point(name, steps, mean, left):
    """(The fact sheet's means of 5 and 10 steps of Euler-Maruyama are 0.004 and 0.003 above what its own formula gives.)"""
    found = point(exact(name, Late(late=0.5 / steps), steps))
    few = name == "euler_maruyama" and steps <= 10
    assert found == (pytest.approx(mean, abs=4e-3 if few else 6e-4), pytest.approx(left, abs=5e-3 if left > 1 else 6e-4))


@pytest.mark.parametrize("name, steps, expected", [
    ("ddim", 4, 0.219), ("ddim", 10, 0.371), ("ddim", 20, 0.432), ("ddim", 50, 0.472), ("ddim", 100, 0.486),
    ("dpm", 4, 0.383), ("dpm", 10, 0.528), ("dpm", 20, 0.512), ("dpm", 50, 0.502)])
def test_what_other_times_make_of_a_texture(name, steps, expected, monkeypatch):
    t = 1 - np.arange(steps) / steps
    monkeypatch.setattr(samplers, "_even", lambda steps: t)
    monkeypatch.setattr(samplers, "_even_logsnr", lambda one, steps: t**2)
    assert texture(exact(name, VP, steps)) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("name", ["ml", "dpm", "ddim"])
@pytest.mark.parametrize("steps", [5, 10, 50, 100])
def test_a_point_comes_out_as_a_point(name, steps):
    """Of data that are one value nothing of the noise is left, at any number of steps."""
    start, rows = jax.random.normal(jax.random.key(0), (100,)), samplers.table(name, VP, steps)
    x0 = samplers.run(lambda z, t: jnp.full_like(z, 0.7), start, rows, jax.random.key(1))
    np.testing.assert_allclose(x0, 0.7, atol=1e-6)


def test_the_maximum_likelihood_step_is_that_of_the_public_code():
    """DiffVC's kappa, omega and sigma (`xt - dxt` with an estimated score, mean 0) in float64, and our coefficients of state, data and noise."""
    steps, (low, high) = 13, (0.05, 20.0)
    rows, h = exact("ml", VP, steps), 1 / steps
    integral = lambda s, t: low * (t - s) + 0.5 * (high - low) * (t * t - s * s)
    gamma = lambda s, t, p=1.0: np.exp(-0.5 * p * integral(s, t))
    for i, t in enumerate(rows["t"][:-1]):
        s, beta = t - h, low + (high - low) * t
        mu = gamma(s, t) * (1 - gamma(0, s, 2)) / (1 - gamma(0, t, 2))
        nu = gamma(0, s) * (1 - gamma(s, t, 2)) / (1 - gamma(0, t, 2))
        sigma = np.sqrt((1 - gamma(0, s, 2)) * (1 - gamma(s, t, 2)) / (1 - gamma(0, t, 2)))
        kappa = gamma(0, s) * (1 - gamma(s, t, 2)) / (gamma(0, t) * beta * h) - 1
        omega = nu / gamma(0, t) + mu - (0.5 * beta * h + 1)
        of_state, of_score = 1 + 0.5 * beta * h + omega, (1 + kappa) * beta * h
        # score = (alpha x0 - z) / sigma_t^2
        alpha, power = gamma(0, t), 1 - gamma(0, t, 2)
        np.testing.assert_allclose(rows["keep"][i], of_state - of_score / power, atol=1e-10)
        np.testing.assert_allclose(rows["jump"][i], of_score * alpha / power, atol=1e-10)
        np.testing.assert_allclose(rows["stir"][i], sigma, atol=1e-10)


def mixture(one: process.Process, z, t, places=(-1.0, 1.0), width: float = 0.05):
    """E[x0 | z_t] for equal shares at `places`, each of deviation `width`."""
    a, s2 = one.alpha(t), one.sigma(t) ** 2
    power = a**2 * width**2 + s2
    centres = jnp.asarray(places)
    share = jax.nn.softmax(-0.5 * jnp.square(z[..., None] - a * centres) / power, -1)
    return (share * (centres + a * width**2 / power * (z[..., None] - a * centres))).sum(-1)


@pytest.mark.parametrize("one", PROCESSES)
@pytest.mark.parametrize("name", [*ODES, "euler_maruyama", "ml"])
def test_both_places_of_a_mixture_get_their_share(name, one):
    one = PROCESSES[one]
    start = one.sigma(1.0) * jax.random.normal(jax.random.key(2), (20_000,))
    x0 = samplers.run(functools.partial(mixture, one), start, samplers.table(name, one, 200), jax.random.key(3))
    right = x0 > 0
    assert float(right.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(x0[right].mean()) == pytest.approx(1.0, abs=0.01)
    assert float(x0[right].std()) == pytest.approx(0.05, rel=0.25)


def test_the_second_order_needs_fewer_evaluations():
    """The distance to where the flow ends, from a mixture's predictor. At 17 evaluations or fewer Euler's is not larger than theirs."""
    start = jax.random.normal(jax.random.key(4), (2000,))
    for width in (0.05, 0.3):
        end = lambda name, steps: samplers.run(functools.partial(mixture, VP, width=width), start, samplers.table(name, VP, steps))
        fine = end("heun", 2001)
        off = {name: float(jnp.abs(end(name, 65) - fine).mean()) for name in ODES}
        assert max(off["heun"], off["dpm"]) < 0.5 * min(off["euler"], off["ddim"]), (width, off)


@pytest.mark.parametrize("trained", PROCESSES)
@pytest.mark.parametrize("name", ["heun", "dpm"])
def test_one_network_is_sampled_as_any_process(name, trained):
    """A network of one process, asked at the time and scale that say the same: the samples of all three are those of one Gaussian's flow."""
    quantiles, found, trained = np.linspace(-2, 2, 9), [], PROCESSES[trained]
    for one in PROCESSES.values():
        rows = samplers.table(name, one, 200)

        def denoise(z, t, one=one):
            time, factor = process.converted(one, t, trained)
            return gaussian(trained, factor * z, time)

        first = float(rows["t"][0])
        z = flowed(one, MEAN + DEVIATION * quantiles, 0.0, first) if one.sigma(0.0) == 0 else (
            one.alpha(first) * MEAN + np.sqrt(one.alpha(first) ** 2 * DEVIATION**2 + one.sigma(first) ** 2) * quantiles)
        found.append(np.asarray(samplers.run(denoise, jnp.asarray(z, jnp.float32), rows)))
    for x0 in found:
        np.testing.assert_allclose(x0, MEAN + DEVIATION * quantiles, atol=0.02)


def test_euler_rows_are_the_printed_equation():
    """One row against z - h dz/dt with dz/dt = -(z + score) beta / 2 (time runs down), and the centred grid."""
    rows = samplers.euler(VP, 10, last_x0=False)
    np.testing.assert_allclose(rows["t"], 1 - (np.arange(10) + 0.5) / 10, rtol=1e-6)
    i, z, x0 = 4, 0.7, -0.3
    t = jnp.float32(rows["t"][i])
    score = process.score_from_x0(z, x0, VP.alpha(t), VP.sigma(t))
    expected = z + 0.5 * (z + score) * VP.beta(t) * 0.1
    assert rows["keep"][i] * z + rows["jump"][i] * x0 == pytest.approx(float(expected), rel=1e-5)


def test_euler_maruyama_rows_are_the_printed_equation():
    """Against z + h (z/2 + score) beta + sqrt(h beta) noise (equation 4, time runs down)."""
    rows = samplers.euler_maruyama(VP, 10)
    i, z, x0 = 4, 0.7, -0.3
    t = float(rows["t"][i])
    score = process.score_from_x0(z, x0, VP.alpha(t), VP.sigma(t))
    assert rows["keep"][i] * z + rows["jump"][i] * x0 == pytest.approx(float(z + 0.1 * (0.5 * z + score) * VP.beta(t)), rel=1e-5)
    assert rows["stir"][i] == pytest.approx(np.sqrt(0.1 * VP.beta(t)), rel=1e-5)
    with pytest.raises(ValueError, match="needs a random key"):
        samplers.run(lambda z, t: z, jnp.zeros(3), rows)


def test_ddim_is_exact_for_a_point_and_few_steps_beat_the_literal_ending():
    np.testing.assert_allclose(samplers.run(lambda z, t: 0 * z + 2.0, jnp.ones(3), samplers.ddim(VP, 3)), 2.0, rtol=1e-6)
    start = jax.random.normal(jax.random.key(1), (5000,)) * samplers.START_DEVIATION
    modes = lambda z, t: jnp.tanh(VP.alpha(t) * z / (VP.sigma(t) ** 2 + VP.alpha(t) ** 2 * 0.0025))  # +-1, deviation 0.05
    distance = lambda name: float(jnp.sqrt(jnp.square(jnp.abs(samplers.run(modes, start, samplers.table(name, VP, 10))) - 1).mean()))
    assert distance("euler") < 0.5 * distance("euler_literal")


@pytest.mark.parametrize("one", PROCESSES)
def test_inverse_ddim_goes_back_where_it_came_from(one):
    """From data to noise and back by the exact predictor of a Gaussian; the noise is where the flow says."""
    one, data = PROCESSES[one], np.linspace(0.3, 2.7, 9)
    denoise = functools.partial(gaussian, one)
    there = samplers.inverse_ddim(one, 400)
    assert (np.diff(there["t"]) > 0).all() and there["t"][0] == np.float32(samplers.LAST)
    noise = samplers.run(denoise, jnp.asarray(one.alpha(samplers.LAST) * data, jnp.float32), there)
    spread = np.sqrt(one.alpha(1.0) ** 2 * DEVIATION**2 + one.sigma(1.0) ** 2)
    np.testing.assert_allclose(noise, one.alpha(1.0) * MEAN + spread * (data - MEAN) / DEVIATION, rtol=0.03, atol=0.03 * spread)
    np.testing.assert_allclose(samplers.run(denoise, noise, samplers.ddim(one, 400)), data, atol=0.02)


WAY = np.linspace(0, 1, 101)


@pytest.mark.parametrize("name", ["flow", "sway", "sway:0.8", "sway:-1", "shift", "shift:0.5", "shift:3"])
def test_warps_rise_from_noise_to_data(name):
    """F5-TTS's and ZipVoice's maps by hand, fixed at both ends; below 0 and 1 they stay longer near the noise."""
    found = (samplers.warp(name) or (lambda x: x))(WAY)
    assert (np.diff(found) > 0).all() and found[0] == pytest.approx(0, abs=1e-12) and found[-1] == pytest.approx(1)
    expected = {"sway": 1 - np.cos(np.pi * WAY / 2), "sway:-1": 1 - np.cos(np.pi * WAY / 2), "shift": 0.7 * WAY / (1 - 0.3 * WAY),
                "shift:0.5": WAY / (2 - WAY), "flow": WAY}
    for steps in (1, 3, 8):
        shares = samplers.warped(steps, samplers.warp(name))
        assert (shares[0], shares[-1]) == (0, 1) and samplers.places(VP, shares)[-1] == 0
    if name in expected:
        np.testing.assert_allclose(found, expected[name], atol=1e-12)
        assert name == "flow" or (found[1:-1] < WAY[1:-1]).all()


def test_flow_rows_are_euler_steps_along_straight_paths():
    """Of `Flow`, z - h u with u = (z - x0) / t, at the times that F5-TTS's warp says, up to t = 0; and of the others the same in its coordinates."""
    places = 1 - (1 - np.cos(np.pi * np.arange(9) / 16))
    rows = samplers.table("sway", process.Flow(), 8)
    np.testing.assert_allclose(rows["t"], places[:-1], atol=1e-6)
    z, x0 = 0.7, -0.3
    for i in range(7):
        step = z + (places[i + 1] - places[i]) * (z - x0) / places[i]
        assert rows["keep"][i] * z + rows["jump"][i] * x0 == pytest.approx(step, abs=1e-6)
    for one in PROCESSES.values():
        rows, size = samplers.table("shift:0.5", one, 5), lambda t, one=one: one.alpha(t) + one.sigma(t)
        y, by_rows, along = 0.4, 0.4 * size(np.float64(1.0)), samplers.places(one, samplers.warped(5, samplers.shift(0.5)))
        for i in range(4):
            y = y + (along[i + 1] - along[i]) * (y - x0) / along[i]
            by_rows = rows["keep"][i] * by_rows + rows["jump"][i] * x0
            assert by_rows == pytest.approx(y * size(np.float64(rows["t"][i + 1])), rel=1e-4)


def test_consistent_estimates_are_renoised_to_the_same_distribution():
    """Of a Gaussian the consistency function is its flow's end: samples have its mean and deviation whatever the number of steps."""
    for one in PROCESSES.values():
        for steps in (1, 2, 4):
            rows = samplers.table("renoise", one, steps)
            spread = lambda t, one=one: jnp.sqrt(one.alpha(t) ** 2 * DEVIATION**2 + one.sigma(t) ** 2)
            ends = lambda z, t, one=one, spread=spread: MEAN + DEVIATION / spread(t) * (z - one.alpha(t) * MEAN)
            start = one.alpha(1.0) * MEAN + spread(1.0) * jax.random.normal(jax.random.key(0), (40_000,))
            x0 = samplers.run(ends, start, rows, jax.random.key(1))
            assert float(x0.mean()) == pytest.approx(MEAN, abs=0.02) and float(x0.std()) == pytest.approx(DEVIATION, rel=0.02)


@pytest.mark.parametrize("name, message", [
    ("sway:2", "-1 to 1.75"), ("shift:0", "more than 0"), ("shift:fast", "shift:0.5"), ("flow:2", "expected one of"), ("drift", "expected one of")])
def test_wrong_warps_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        samplers.table(name, VP, 4)


def test_guidance_is_a_total_factor():
    null, conditional = jax.random.normal(jax.random.key(2), (2, 4))
    np.testing.assert_allclose(samplers.guide(null, conditional, 1.0), conditional, rtol=1e-6)
    np.testing.assert_array_equal(samplers.guide(null, conditional, 0.0), null)
    np.testing.assert_allclose(samplers.guide(null, conditional, 2.0), conditional + (conditional - null), rtol=1e-5, atol=1e-6)


def test_start_has_the_papers_variance():
    assert samplers.START_DEVIATION == pytest.approx(1 / 1.2)


@pytest.mark.parametrize("name, steps, message", [("plms", 10, "euler"), ("euler", 0, "at least one")])
def test_errors_say_what_exists(name, steps, message):
    with pytest.raises(ValueError, match=message):
        samplers.table(name, VP, steps)
