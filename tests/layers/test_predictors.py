"""The predictors: the paper's parameter rows, padding and batch invariance, that they listen to the prompt."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.layers.predictors import Predictor

FRAMES, PROMPTS = jnp.asarray([5, 8]), jnp.asarray([6, 3])
X, PROMPT = jax.random.normal(jax.random.key(0), (2, 8, 12)), jax.random.normal(jax.random.key(1), (2, 6, 10))
NET = Predictor(layers=4, every=2, width=16, heads=2, outputs=2)


def mask(lengths: jax.Array, size: int) -> jax.Array:
    return jnp.arange(size)[None] < lengths[:, None]


@functools.cache
def run(net: Predictor):
    return jax.jit(net.apply)


@pytest.fixture(scope="module")
def variables():
    return nn.meta.unbox(jax.jit(NET.init)(jax.random.key(2), X, mask(FRAMES, 8), PROMPT, mask(PROMPTS, 6)))


@pytest.mark.parametrize("kernel, expected", [(3, 34_156_033), (5, 49_884_673)])
def test_the_papers_rows_less_inert_key_biases(kernel, expected):
    x, yes = jnp.zeros((1, 2, 512)), jnp.ones((1, 2), bool)
    shape = jax.eval_shape(Predictor(kernel=kernel).init, jax.random.key(0), x, yes, x, yes)
    assert sum(leaf.size for leaf in jax.tree.leaves(shape)) == expected - 10 * 512


def test_padding_and_batch_do_not_matter(variables):
    out = run(NET)(variables, X, mask(FRAMES, 8), PROMPT, mask(PROMPTS, 6))
    far = lambda x, extra: jnp.pad(x, ((0, 0), (0, extra), (0, 0)), constant_values=3.0)
    wide = run(NET)(variables, far(X, 4), mask(FRAMES, 12), far(PROMPT, 5), mask(PROMPTS, 11))
    for i, n in enumerate((5, 8)):
        np.testing.assert_allclose(wide[i, :n], out[i, :n], atol=1e-5)
    one = run(NET)(variables, X[:1], mask(FRAMES, 8)[:1], PROMPT[:1], mask(PROMPTS, 6)[:1])
    np.testing.assert_allclose(one[0], out[0], atol=1e-5)


def test_listens_to_the_prompt_it_may_see(variables):
    listen = lambda prompt: run(NET)(variables, X, mask(FRAMES, 8), prompt, mask(PROMPTS, 6))
    out = listen(PROMPT)
    assert jnp.abs(listen(PROMPT.at[0, 2].add(1.0))[0] - out[0]).max() > 1e-4
    np.testing.assert_array_equal(listen(PROMPT.at[1, 3:].set(9.0)), out)


def test_the_output_can_be_negative_and_is_float32(variables):
    out = run(NET.clone(dtype=jnp.bfloat16))(variables, X, mask(FRAMES, 8), PROMPT, mask(PROMPTS, 6))
    assert out.dtype == jnp.float32 and out.shape == (2, 8, 2)
    assert out.min() < 0 < out.max()


def test_layers_must_be_a_multiple_of_every():
    with pytest.raises(ValueError, match="layers=5 is not a multiple of every=2"):
        NET.clone(layers=5).init(jax.random.key(0), X, mask(FRAMES, 8), PROMPT, mask(PROMPTS, 6))
