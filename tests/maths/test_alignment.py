"""Expansion by durations against numpy.repeat; alignments against all of them, counted; the prior against scipy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ns2_jax.maths import alignment


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=5, max_size=5), st.integers(0, 10_000))
def test_expand_is_repeat(durations, seed):
    durations = np.asarray([durations], np.int32)
    x = np.random.default_rng(seed).normal(size=(1, 5, 3)).astype(np.float32)
    total, size = int(durations.sum()), 32
    align = alignment.alignment(durations, size)
    expected = np.zeros((1, size, 3), np.float32)
    expected[0, :total] = np.repeat(x[0], durations[0], axis=0)
    np.testing.assert_allclose(alignment.expand(x, align), expected, rtol=1e-6)
    np.testing.assert_array_equal(align.any(-1), alignment.length_mask(np.asarray([total]), size))


def test_phone_position_counts_from_the_phones_start():
    durations = np.asarray([[2, 0, 4, 1, 0]], np.int32)
    place = np.asarray(alignment.phone_position(durations, alignment.alignment(durations, 9)))[0]
    np.testing.assert_allclose(place[:, 0], [0.25, 0.75, 0.125, 0.375, 0.625, 0.875, 0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(place[:7, 0] + place[:7, 1], 1.0, atol=1e-6)
    np.testing.assert_allclose(place[:, 2], np.log1p([2, 2, 4, 4, 4, 4, 1, 0, 0]), rtol=1e-6)
    assert (place[7:] == 0).all()


def test_frames_past_the_bucket_are_cut_and_expansion_has_a_gradient():
    durations = np.asarray([[3, 5]], np.int32)
    align = alignment.alignment(durations, 6)
    assert align.sum() == 6
    x = np.ones((1, 2, 1), np.float32)
    grad = jax.grad(lambda x: alignment.expand(x, align).sum())(x)
    np.testing.assert_array_equal(grad[0, :, 0], [3, 3])


T, P = 9, 6  # all cases are padded to this


def paths(frames: int, phones: int, optional: np.ndarray) -> list[list[int]]:
    """Every monotonic alignment: the phone of each frame."""

    def go(path: list[int]) -> list[list[int]]:
        at = path[-1]
        if len(path) == frames:
            return [path] if at == phones - 1 or (at == phones - 2 and optional[phones - 1]) else []
        onward = [at] + [at + 1] * (at + 1 < phones) + [at + 2] * (at + 2 < phones and bool(optional[at + 1]))
        return [whole for to in onward for whole in go(path + [to])]

    return go([0]) + (go([1]) if phones > 1 and optional[0] else [])


cases = st.tuples(st.integers(1, T), st.integers(1, P), st.lists(st.booleans(), min_size=P, max_size=P), st.integers(0, 10**6))
sums = jax.jit(alignment.forward_sum)
posteriors = jax.jit(alignment.posterior)
bests = jax.jit(alignment.viterbi)


def given_case(case) -> tuple:
    frames, phones, optional, seed = case
    scores = np.random.default_rng(seed).normal(0, 2, (1, T, P)).astype(np.float32)
    optional = np.asarray(optional) & (np.arange(P) < phones)
    return (scores, np.asarray([frames]), np.asarray([phones]), optional[None]), paths(frames, phones, optional)


@settings(max_examples=80, deadline=None)
@given(cases)
def test_alignments_equal_enumeration(case):
    args, every = given_case(case)
    scores, frames = args[0][0], case[0]
    durations, best = bests(*args)
    total, share = posteriors(*args)
    assert durations.sum() == frames, "durations sum to the frames, whatever else"
    assert sums(*args) == total
    if not every:
        assert best[0] < alignment.NEVER / 2 and total[0] < alignment.NEVER / 2 and not share.any()
        return
    weights = np.asarray([scores[np.arange(frames), path].sum(dtype=np.float64) for path in every])
    np.testing.assert_allclose(total[0], np.logaddexp.reduce(weights), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(best[0], weights.max(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(durations[0], np.bincount(every[int(weights.argmax())], minlength=P))
    want = np.zeros((T, P))
    for path, weight in zip(every, np.exp(weights - np.logaddexp.reduce(weights))):
        want[np.arange(frames), path] += weight
    np.testing.assert_allclose(share[0], want, atol=2e-5)


def test_forward_sum_s_derivative_is_that_of_finite_differences():
    rng = np.random.default_rng(3)
    scores = jnp.asarray(rng.normal(0, 2, (2, T, P)), jnp.float32)
    args = np.asarray([9, 6]), np.asarray([6, 3]), np.asarray([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]], bool)
    loss = lambda x: (jnp.asarray([1.0, -0.5]) * alignment.forward_sum(x, *args)).sum()
    gradient, h = jax.grad(loss)(scores), 1e-2
    for seed in range(5):
        way = jnp.asarray(np.random.default_rng(seed).normal(size=scores.shape), jnp.float32)
        slope = (loss(scores + h * way) - loss(scores - h * way)) / (2 * h)
        np.testing.assert_allclose((gradient * way).sum(), slope, rtol=3e-3, atol=3e-3)
    np.testing.assert_allclose(gradient.sum(-1)[0], 1.0, atol=1e-5)
    assert not gradient[1, 6:].any()


def test_padding_and_company_change_no_alignment():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 40, 12)).astype(np.float32)
    frames, phones, optional = np.asarray([40, 25, 31]), np.asarray([12, 7, 9]), rng.random((3, 12)) < 0.3
    durations, best = alignment.viterbi(scores, frames, phones, optional)
    total = alignment.forward_sum(scores, frames, phones, optional)
    for i in range(3):
        m, p = frames[i], phones[i]
        alone = scores[i : i + 1, :m, :p], frames[i : i + 1], phones[i : i + 1], optional[i : i + 1, :p]
        d, b = alignment.viterbi(*alone)
        np.testing.assert_array_equal(d[0], durations[i, :p])
        assert not durations[i, p:].any() and (durations[i, :p][~optional[i, :p]] > 0).all()
        np.testing.assert_allclose(b[0], best[i], rtol=1e-6)
        np.testing.assert_allclose(alignment.forward_sum(*alone)[0], total[i], rtol=1e-6)


def test_long_utterances_stay_exact():
    """Thirty seconds: equal scores make every alignment alike, C(M - 1, P - 1) of them."""
    m, p = 2400, 300
    args = jnp.zeros((1, m, p)), np.asarray([m]), np.asarray([p]), np.zeros((1, p), bool)
    number = scipy.special.gammaln(m) - scipy.special.gammaln(p) - scipy.special.gammaln(m - p + 1)
    total, share = posteriors(*args)
    np.testing.assert_allclose(total[0], number, rtol=1e-5)
    np.testing.assert_allclose(share.sum(-1), 1.0, atol=2e-2)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_prior_is_scipys_beta_binomial(scale):
    frames, phones = np.asarray([7, 30, 1]), np.asarray([4, 9, 1])
    found = alignment.beta_binomial(frames, phones, (32, 10), scale)
    want = np.zeros(found.shape)
    for row, (m, p) in enumerate(zip(frames, phones)):
        for i in range(m):
            want[row, i, :p] = scipy.stats.betabinom(p - 1, scale * (i + 1), scale * (m - i)).logpmf(np.arange(p))
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=2e-4)


# Gaussian upsampling.


def test_gaussian_upsampling_is_the_normalised_densities():
    rng = np.random.default_rng(0)
    durations, ranges = rng.integers(0, 7, (2, 6)), rng.uniform(0.3, 4, (2, 6)).astype(np.float32)
    real, size = np.arange(6) < np.array([[6], [4]]), 30
    durations = durations * real
    found = np.asarray(alignment.gaussian(durations, ranges, real, size))
    centres = np.cumsum(durations, -1) - durations / 2
    density = scipy.stats.norm.pdf(np.arange(size)[None, :, None] + 0.5, centres[:, None], ranges[:, None]) * real[:, None]
    near = density.sum(-1) > 1e-30
    np.testing.assert_allclose(found[near], (density / np.maximum(density.sum(-1, keepdims=True), 1e-300))[near], atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    assert (found[1, :, 4:] == 0).all()
    first = np.array([3, 11])
    later = np.asarray(alignment.gaussian(durations, ranges, real, 10, first))
    for row, at in enumerate(first):
        np.testing.assert_allclose(later[row], found[row, at : at + 10], atol=1e-6)
    spoken = np.asarray(alignment.alignment(durations, size))
    np.testing.assert_array_equal(alignment.alignment(durations, 10, first)[1], spoken[1, 11:21])
    place = alignment.phone_position(durations, alignment.alignment(durations, 10, first), first)
    np.testing.assert_allclose(place[1], np.asarray(alignment.phone_position(durations, spoken))[1, 11:21], atol=1e-6)


def test_narrow_gaussians_repeat():
    """Where ranges are in proportion to durations; of equal ones a frame between a long and a short phone may be nearer to the short one."""
    durations = np.array([[3, 1, 5, 2]])
    found = alignment.gaussian(durations, np.float32(0.05) * durations, durations > 0, 11)
    np.testing.assert_allclose(found, np.asarray(alignment.alignment(durations, 11), np.float32), atol=1e-6)


def test_gaussian_gradients_are_finite_differences():
    durations, real = np.array([[2.0, 3.5, 1.0, 0.0]], np.float32), np.array([[True, True, True, False]])
    x = np.random.default_rng(0).normal(size=(1, 4, 2))

    def loss(durations, ranges):
        weights = alignment.gaussian(durations, ranges, real, 8)
        return (jnp.sin(jnp.arange(16.0).reshape(8, 2)) * (weights @ x)[0]).sum()

    with jax.enable_x64(True):
        durations, ranges = durations.astype(np.float64), np.array([[0.7, 1.2, 0.5, 1.0]])
        grads = jax.grad(loss, (0, 1))(durations, ranges)
        for which, grad in enumerate(grads):
            for i in range(4):
                bump = 2e-3 * np.eye(4)[i]
                moved = [loss(*(v + sign * bump * (j == which) for j, v in enumerate((durations, ranges)))) for sign in (1, -1)]
                assert float(grad[0, i]) == pytest.approx(float(moved[0] - moved[1]) / 4e-3, abs=3e-3)
        assert (np.asarray(grads)[:, 0, 3] == 0).all()


@pytest.mark.parametrize("durations, ranges", [
    ([0, 0, 0], [0.3, 0.3, 0.3]), ([100_000, 1, 0], [0.3, 0.3, 0.3]), ([5, 5, 5], [1e30, 1e-6, 0.3]), ([1, 0, 1], [1e4, 1e4, 1e4])])
def test_gaussian_upsampling_is_finite_whatever_it_is_given(durations, ranges):
    real = np.ones((1, 3), bool)
    value = lambda r: alignment.gaussian(np.array([durations]), r, real, 40)
    ranges = np.array([ranges], np.float32)
    found, back = jax.vjp(value, ranges)
    assert np.isfinite(found).all() and np.isfinite(back(np.ones_like(found) * np.arange(3, dtype=np.float32))[0]).all()
    np.testing.assert_allclose(np.asarray(found).sum(-1), 1, atol=1e-5)
    nobody = alignment.gaussian(np.array([durations]), ranges, ~real, 40)
    assert np.isfinite(nobody).all()
