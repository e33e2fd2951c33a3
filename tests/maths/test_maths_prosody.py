"""Targets of length and pitch, and the way back from them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.maths import prosody


def test_frames_come_back_from_what_is_predicted_and_speed_is_before_rounding():
    frames = np.array([[1, 2, 7, 300, 0]])
    real, log = frames > 0, np.log1p(frames).astype(np.float32)
    np.testing.assert_array_equal(prosody.whole_frames(jnp.asarray(log), real, 1.0), frames)
    np.testing.assert_array_equal(prosody.whole_frames(jnp.asarray(log), real, 2.0), [[1, 1, 4, 150, 0]])  # 0.5 and 3.5 to even, at least 1
    wild = prosody.whole_frames(jnp.asarray([[-30.0, -0.5, 50.0]]), jnp.ones((1, 3), bool), 0.1)
    np.testing.assert_allclose(wild, [[1, 1, 10 * math.expm1(prosody.LONGEST)]], rtol=1e-4)


def test_errors_are_distances_and_cross_entropies_with_their_derivatives():
    frames, predicted = np.array([[3, 8]]), np.array([[1.0, 2.5]], np.float32)
    np.testing.assert_allclose(prosody.duration_error(jnp.asarray(predicted), frames), np.abs(predicted - np.log([[4, 9]])), rtol=1e-6)
    squared = jax.grad(lambda x: jnp.square(prosody.duration_error(x, frames)).sum())(jnp.asarray(predicted))
    np.testing.assert_allclose(squared, 2 * (predicted - np.log([[4, 9]])), rtol=1e-5)
    given, f0 = np.array([[[0.5, 2.0], [3.0, -1.0]]], np.float32), np.array([[200.0, 0.0]], np.float32)
    value, voicing = prosody.pitch_errors(jnp.asarray(given), jnp.asarray(f0), 5.0, 0.4)
    np.testing.assert_allclose(value, [[abs(0.5 - (math.log(200) - 5.0) / 0.4), 0.0]], rtol=1e-5)
    sure = 1 / (1 + np.exp(-given[..., 1]))
    np.testing.assert_allclose(voicing, [[-np.log(sure[0, 0]), -np.log(1 - sure[0, 1])]], rtol=1e-5)


def test_pitch_goes_into_bins_of_equal_ratio_and_comes_back_in_hertz():
    f0 = jnp.asarray([[0.0, 50.0, 49.0, 1099.9, 2000.0, math.sqrt(50 * 1100)]])
    np.testing.assert_array_equal(prosody.pitch_bins(f0, 512, 50.0, 1100.0)[0, :5], [0, 1, 1, 511, 511])
    assert abs(int(prosody.pitch_bins(f0, 512, 50.0, 1100.0)[0, 5]) - 256) <= 1
    standard = (np.log(np.maximum(f0, 1.0)) - 5.0) / 0.4
    predicted = jnp.stack([jnp.asarray(standard), jnp.where(f0 > 0, 1.0, -1.0)], -1)
    back = prosody.hertz(predicted, jnp.arange(6)[None] != 1, 5.0, 0.4, 50.0, 1100.0)
    np.testing.assert_allclose(back, [[0.0, 0.0, 50.0, 1099.9, 1100.0, math.sqrt(50 * 1100)]], rtol=1e-5)
