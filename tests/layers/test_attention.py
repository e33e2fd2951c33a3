"""Attention against numpy, and what its mask must hide."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.layers.attention import MultiHeadAttention

NET = MultiHeadAttention(width=12, heads=3)
QUERIES, KEYS = jax.random.normal(jax.random.key(0), (2, 5, 12)), jax.random.normal(jax.random.key(1), (2, 7, 8))
MASK = jnp.arange(7)[None] < jnp.asarray([[4], [7]])


@pytest.fixture(scope="module")
def variables():
    return nn.meta.unbox(jax.jit(NET.init)(jax.random.key(2), QUERIES, KEYS, MASK))


def test_equals_numpy(variables):
    p = jax.tree.map(np.asarray, variables["params"])
    linear = lambda name, x: x @ p[name]["kernel"] + p[name].get("bias", 0)
    split = lambda x: x.reshape(2, -1, 3, 4).transpose(0, 2, 1, 3)
    q, k, v = split(linear("query", np.asarray(QUERIES))), split(linear("key", np.asarray(KEYS))), split(linear("value", np.asarray(KEYS)))
    logits = q @ k.transpose(0, 1, 3, 2) / 2
    logits[~np.broadcast_to(np.asarray(MASK)[:, None, None], logits.shape)] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    expected = linear("out", mixed.transpose(0, 2, 1, 3).reshape(2, 5, 12))
    np.testing.assert_allclose(NET.apply(variables, QUERIES, KEYS, MASK), expected, atol=2e-5)


def test_masked_keys_and_other_rows_do_not_matter(variables):
    out = NET.apply(variables, QUERIES, KEYS, MASK)
    changed = KEYS.at[0, 4:].set(99.0)
    np.testing.assert_array_equal(NET.apply(variables, QUERIES, changed, MASK), out)
    longer = jnp.concatenate([KEYS, jnp.ones((2, 5, 8))], 1)
    wide = jnp.concatenate([MASK, jnp.zeros((2, 5), bool)], 1)
    np.testing.assert_allclose(NET.apply(variables, QUERIES, longer, wide), out, atol=1e-5)
    np.testing.assert_allclose(NET.apply(variables, QUERIES[:1], KEYS[:1], MASK[:1]), out[:1], atol=1e-5)


def test_projecting_once_is_the_same(variables):
    key, value = NET.apply(variables, KEYS, method="project")
    np.testing.assert_array_equal(
        NET.apply(variables, QUERIES, key, value, MASK, method="attend"), NET.apply(variables, QUERIES, KEYS, MASK))


def test_a_row_without_keys_is_finite_with_its_gradient(variables):
    none = jnp.zeros((2, 7), bool)
    grads = jax.jit(jax.grad(lambda v: NET.apply(v, QUERIES, KEYS, none).sum()))(variables)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width=10 is not a multiple of heads=4"):
        MultiHeadAttention(width=10, heads=4).init(jax.random.key(0), QUERIES, KEYS)
