"""Expansion by durations against numpy.repeat."""

from __future__ import annotations

import jax
import numpy as np
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
