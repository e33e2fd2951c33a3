"""The Conformer: rotary positions, a block against numpy, padding, the paper's size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from ns2_jax.layers.conformer import Conformer, TokenConformer, rotate

LENGTHS = np.array([9, 5, 7])


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_rotated_products_depend_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.normal(size=(1, 1, 2, 8)), (1, 40, 2, 8)).astype(np.float32) for _ in range(2))
    product = lambda at: np.asarray(jnp.einsum("bthd,buhd->bhtu", rotate(q, at), rotate(k, at)))[0]
    plain = product(jnp.arange(40))
    for distance in (-7, 0, 3):
        diagonal = np.diagonal(plain, distance, 1, 2)
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=2e-4)
    np.testing.assert_allclose(product(jnp.arange(40) + 1000), plain, atol=2e-3)
    assert np.abs(plain[:, 0, 1] - plain[:, 0, 2]).max() > 0.1
    np.testing.assert_allclose(np.square(rotate(q, jnp.arange(40))).sum(-1), np.square(q).sum(-1), rtol=1e-4)


@pytest.fixture(scope="module")
def stack():
    """(network, params with noise, input, mask, output)."""
    net = Conformer(layers=2, width=16, hidden=24, heads=2, kernel=5, expansion=2, dropout=0.0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 9, 16)).astype(np.float32)
    mask = np.arange(9) < LENGTHS[:, None]
    params = jax.device_get(jax.jit(net.init)(jax.random.key(0), x, mask)["params"])
    params = jax.tree.map(lambda p: (np.asarray(p) + 0.1 * rng.normal(size=p.shape)).astype(np.float32), jax.tree.map(
        lambda p: p.value if hasattr(p, "value") else p, params, is_leaf=lambda p: hasattr(p, "value")))
    run = jax.jit(lambda x, mask: net.apply({"params": params}, x, mask))
    return net, params, x, mask, run


def test_a_stack_is_the_equations_in_numpy(stack):
    """Gulati et al. 2020, equation (1) of each module in float64, a row without padding at a time."""
    _, params, x, mask, run = stack
    found = np.asarray(run(x, mask))
    norm = lambda y, p: (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]
    dense = lambda y, p: y @ p["kernel"] + p.get("bias", 0.0)
    sigmoid = lambda y: 1 / (1 + np.exp(-y))

    def heads(y, n):
        y = y.reshape(n, 2, 8)
        angle = np.arange(n)[:, None] * 10000.0 ** (-np.arange(4) / 4)
        turned = (y[..., :4] + 1j * y[..., 4:]) * np.exp(1j * angle)[:, None]
        return np.concatenate([turned.real, turned.imag], -1)

    for row, n in enumerate(LENGTHS):
        y = x[row, :n].astype(np.float64)
        for layer in range(2):
            p = jax.tree.map(lambda leaf: leaf[layer].astype(np.float64), params["blocks"])
            feed = lambda y, name: dense((lambda h: h * sigmoid(h))(dense(norm(y, p[f"{name}_norm"]), p[f"{name}_widen"])), p[f"{name}_narrow"])
            y = y + 0.5 * feed(y, "first")
            h, own = norm(y, p["attention_norm"]), p["attention"]
            q, k = heads(dense(h, own["query"]), n), heads(dense(h, own["key"]), n)
            v = dense(h, own["value"]).reshape(n, 2, 8)
            weights = softmax(np.einsum("thd,uhd->htu", q, k) / np.sqrt(8), -1)
            y = y + dense(np.einsum("htu,uhd->thd", weights, v).reshape(n, 16), own["out"])
            h = norm(y, p["conv_norm"])
            h = dense(h, p["conv_signal"]) * sigmoid(dense(h, p["conv_gate"]))
            taps = np.pad(h, ((2, 2), (0, 0)))
            h = np.stack([(taps[i : i + 5] * p["conv"]["kernel"]).sum(0) for i in range(n)]) + p["conv"]["bias"]
            h = norm(h, p["conv_inner_norm"])
            y = y + dense(h * sigmoid(h), p["conv_narrow"])
            y = norm(y + 0.5 * feed(y, "second"), p["norm"])
        np.testing.assert_allclose(found[row, :n], y, atol=2e-4)
        assert (found[row, n:] == 0).all()


def test_padding_changes_nothing_and_is_not_heard(stack):
    _, _, x, mask, run = stack
    wide = np.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=7.0)
    found = np.asarray(run(wide, np.pad(mask, ((0, 0), (0, 4)))))
    np.testing.assert_allclose(found[:, :9], run(x, mask), atol=1e-5)
    shifted = np.asarray(run(np.pad(x[:1], ((0, 0), (6, 0), (0, 0)), constant_values=7.0), np.pad(mask[:1], ((0, 0), (6, 0)))))
    np.testing.assert_allclose(shifted[:, 6:], np.asarray(run(x, mask))[:1], atol=1e-4)  # nor where a row begins: positions are relative


def tokens(**changes) -> TokenConformer:
    numbers = dict(levels=3, codes=8, width=16, layers=1, hidden=24, heads=2, dropout=0.0)
    return TokenConformer(**(numbers | changes))


def test_logits_are_of_the_level_that_is_asked_for_and_blanks_say_nothing_of_codes():
    net, rng = tokens(), np.random.default_rng(2)
    codes = rng.integers(0, 8, (3, 9, 3))
    books, c = rng.normal(size=(3, 8, 5)).astype(np.float32), rng.normal(size=(3, 9, 6)).astype(np.float32)
    known, mask = rng.random((3, 9)) < 0.5, np.arange(9) < LENGTHS[:, None]
    level = np.array([0, 2, 1])
    params = jax.jit(net.init)(jax.random.key(0), codes, books, c, known, mask, level)
    run = jax.jit(functools.partial(net.apply, params))
    plain = np.asarray(run(codes, books, c, known, mask, level))
    assert plain.shape == (3, 9, 8) and plain.dtype == np.float32
    single = [np.asarray(run(codes, books, c, known, mask, np.full(3, q))) for q in range(3)]
    for row, q in enumerate(level):
        np.testing.assert_allclose(single[q][row], plain[row], atol=1e-5)
    np.testing.assert_allclose(run(codes, books, np.where(known[..., None], c, 9.0), known, mask, level), plain, atol=1e-5)
    assert np.abs(np.asarray(run(codes, -books, c, known, mask, level)) - plain).max() > 1e-2  # tables start at the codec's vectors
    blank = np.where(np.arange(3) == 1, 8, codes)
    assert np.abs(np.asarray(run(blank, books, c, known, mask, level)) - plain).max() > 1e-2


def test_the_papers_decoder_has_350_million_parameters():
    """12 layers, 16 heads, 1024/4096, kernel 5, 12 levels of 1,024 codes; 350 M in the paper, within 1.5 %."""
    net = TokenConformer(levels=12, codes=1024, width=1024, layers=12, hidden=4096, heads=16)
    codes, yes = jnp.zeros((1, 4, 12), jnp.int32), jnp.ones((1, 4), bool)
    shape = jax.eval_shape(net.init, jax.random.key(0), codes, jnp.zeros((12, 1024, 256)), jnp.zeros((1, 4, 512)), yes, yes, jnp.zeros(1, jnp.int32))
    assert abs(count(shape) / 350e6 - 1) < 0.015
    stack = count(shape["params"]["conformer"]) / 12
    assert stack == 4 * 1024 * 4096 + 2 * (4096 + 1024) + 4 * 1024**2 + 3 * 1024 + 6 * 1024**2 + 4 * 1024 + 1024 + 6 * 2048 + 2 * 2048 + 5 * 2 * 1024
