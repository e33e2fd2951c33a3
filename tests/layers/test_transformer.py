"""The encoders: parameter counts of the paper, positions, padding and batch invariance."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from ns2_jax.layers.transformer import PhoneEncoder, PromptEncoder, Transformer

SMALL = FrozenDict(layers=2, hidden=24, heads=2, kernel=3)
LENGTHS = jnp.asarray([4, 7, 6])


def mask(size: int) -> jax.Array:
    return jnp.arange(size)[None] < LENGTHS[:, None]


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def run(net: nn.Module, method: str = "__call__"):
    return jax.jit(functools.partial(net.apply, method=method))


def pad(x: jax.Array, extra: int, value: float) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=value)


def test_the_papers_stack_has_69_246_976_parameters_less_inert_key_biases():
    net = Transformer(layers=6, width=512, hidden=2048, heads=8, kernel=9)
    shape = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 512)), jnp.ones((1, 4), bool))
    assert count(shape) == 69_246_976 - 6 * 512


@pytest.fixture(scope="module")
def stack():
    net = Transformer(width=16, **SMALL)
    x = jax.random.normal(jax.random.key(0), (3, 7, 16))
    return net, nn.meta.unbox(jax.jit(net.init)(jax.random.key(1), x, mask(7))), x


def test_padding_and_batch_do_not_matter(stack):
    net, variables, x = stack
    out = run(net)(variables, x, mask(7))
    wide = run(net)(variables, pad(x, 5, 7.0), mask(12))
    np.testing.assert_allclose(wide[:, :7], out, atol=1e-5)
    assert (wide[:, 7:] == 0).all()
    assert (np.asarray(out)[~np.asarray(mask(7))] == 0).all()
    np.testing.assert_allclose(run(net)(variables, x[1:2], mask(7)[1:2]), out[1:2], atol=1e-5)


def test_remat_and_unrolling_change_nothing(stack):
    net, variables, x = stack
    grad = lambda n: jax.jit(jax.grad(lambda v: jnp.square(n.apply(v, x, mask(7))).sum()))(variables)
    for other in (net.clone(remat=True), net.clone(unroll=2)):
        for a, b in zip(jax.tree.leaves(grad(net)), jax.tree.leaves(grad(other))):
            np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max()) + 1e-6)


def test_position_is_along_time_and_not_along_the_batch(stack):
    """One known defect elsewhere: an offset indexed by the row, so that order within a row is lost."""
    net, variables, _ = stack
    same = jnp.ones((3, 7, 16))
    out = np.asarray(run(net.clone(kernel=1))(narrow(variables), same, jnp.ones((3, 7), bool)))
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)
    assert np.abs(out[0, 1:] - out[0, :-1]).max(-1).min() > 1e-2


def narrow(variables):
    """The same weights with the middle tap only: no convolution is left to tell positions apart."""
    middle = lambda path, x: x[:, 1:2] if "widen" in jax.tree_util.keystr(path) and x.ndim == 4 else x
    return jax.tree_util.tree_map_with_path(middle, variables)


def test_dropout_needs_and_uses_its_key(stack):
    net, variables, x = stack
    net = net.clone(dropout=0.5)
    one, two = (net.apply(variables, x, mask(7), False, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert jnp.abs(one - two).max() > 0.1


def test_phone_encoder_ignores_padding_and_tells_phones_apart():
    net = PhoneEncoder(phones=20, width=16, encoder=SMALL, prenet=1, pitch_bins=8)
    ids = jnp.where(mask(7), jax.random.randint(jax.random.key(3), (3, 7), 1, 20), 0)
    frames = jnp.zeros((3, 7, 3))
    variables = nn.meta.unbox(jax.jit(functools.partial(net.init, method="everything"))(jax.random.key(4), ids, ids % 8, frames))
    out = run(net)(variables, ids)
    np.testing.assert_allclose(run(net)(variables, pad(ids, 3, 0))[:, :7], out, atol=1e-5)
    changed = run(net)(variables, ids.at[0, 2].set(ids[0, 2] % 19 + 1))
    assert jnp.abs(changed[0, 2] - out[0, 2]).max() > 0.1
    np.testing.assert_array_equal(changed[1:], out[1:])
    dropped = net.apply(variables, out, jnp.asarray([True, False, False]), method="without")
    assert (dropped[0] == variables["params"]["null"]).all() and (dropped[1:] == out[1:]).all()


def test_prompt_encoder_drops_rows_and_reads_no_padding():
    net = PromptEncoder(width=16, encoder=SMALL)
    z = jax.random.normal(jax.random.key(5), (3, 7, 4))
    no = jnp.zeros((3,), bool)
    variables = nn.meta.unbox(jax.jit(net.init)(jax.random.key(6), z, mask(7), no))
    out, seen = run(net)(variables, z, mask(7), no)
    np.testing.assert_array_equal(seen, mask(7))
    np.testing.assert_allclose(run(net)(variables, pad(z, 4, 5.0), mask(11), no)[0][:, :7], out, atol=1e-5)
    null = variables["params"]["null"]
    for dropped, valid in ((no.at[1].set(True), mask(7)), (no, mask(7).at[1].set(False))):
        found, seen = run(net)(variables, z, valid, dropped)
        np.testing.assert_array_equal(found[1], jnp.broadcast_to(null, (7, 16)))
        assert seen[1].all() and not seen[0].all()
        np.testing.assert_allclose(found[0], out[0], atol=1e-6)
