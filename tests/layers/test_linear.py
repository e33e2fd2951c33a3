"""Norms and time embeddings against their formulas."""

from __future__ import annotations

import jax
import numpy as np

from ns2_jax.layers.linear import Dense, Embed, LayerNorm, rms_norm, sinusoid

X = np.random.default_rng(0).normal(3.0, 2.0, (2, 5, 16)).astype(np.float32)


def test_layer_norm_and_rms_norm():
    y = np.asarray(LayerNorm().init_with_output(jax.random.key(0), X)[0])
    np.testing.assert_allclose(y, (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(rms_norm(X), X / np.sqrt((X**2).mean(-1, keepdims=True)), atol=1e-5)


def test_dense_and_embed():
    y, variables = Dense(7).init_with_output(jax.random.key(0), X)
    kernel = np.asarray(variables["params"]["kernel"].unbox())
    np.testing.assert_allclose(y, X @ kernel, atol=1e-4)
    assert abs(kernel.std() - 16**-0.5) < 0.05
    ids = np.array([[3, 0], [1, 3]])
    y, variables = Embed(4, 6).init_with_output(jax.random.key(0), ids)
    np.testing.assert_array_equal(y, np.asarray(variables["params"]["table"].unbox())[ids])


def test_sinusoid_has_unit_circles_and_tells_neighbouring_times_apart():
    t = np.linspace(0, 1, 101, dtype=np.float32)
    e = np.asarray(sinusoid(t, 64, scale=1000.0))
    np.testing.assert_allclose(e[:, :32] ** 2 + e[:, 32:] ** 2, 1, atol=1e-4)
    assert np.linalg.norm(np.diff(e, axis=0), axis=1).min() > 1.0
    raw = np.asarray(sinusoid(t, 64))
    assert np.linalg.norm(np.diff(raw, axis=0), axis=1).max() < 0.05  # what the scale of 1000 is for
