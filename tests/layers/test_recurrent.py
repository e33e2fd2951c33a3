"""The LSTMs against their equations, written out step by step, and against each other."""

from __future__ import annotations

import jax
import numpy as np

from ns2_jax.layers.recurrent import BiLSTM, lstm


def test_equals_the_equations_and_sees_no_future():
    rng = np.random.default_rng(0)
    x, kernel, recurrent, bias = (rng.normal(size=s) for s in ((2, 7, 3), (3, 20), (5, 20), (20,)))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    hidden = cell = np.zeros((2, 5))
    want = []
    for t in range(7):
        i, f, g, o = np.split(x[:, t] @ kernel + hidden @ recurrent + bias, 4, -1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        want.append(hidden)
    arrays = [np.asarray(a, np.float32) for a in (x, kernel, recurrent, bias)]
    found = np.asarray(lstm(*arrays))
    np.testing.assert_allclose(found, np.stack(want, 1), atol=2e-5)
    np.testing.assert_allclose(lstm(arrays[0][:, :4], *arrays[1:]), found[:, :4], atol=1e-6)



def bilstm(zoneout: float = 0.0, **more):
    """(the layer, its params, x, mask; the second row ends after four frames)."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"kernel": normal(2, 3, 20), "recurrent": normal(2, 5, 20), "bias": normal(2, 20)}
    return BiLSTM(5, zoneout, **more), {"params": params}, normal(2, 7, 3), np.arange(7) < np.array([[7], [4]])


def test_both_directions_are_the_lstm_of_each_rows_own_length():
    net, params, x, mask = bilstm()
    found = np.asarray(jax.jit(net.apply)(params, x, mask))
    own = [(params["params"]["kernel"][i], params["params"]["recurrent"][i], params["params"]["bias"][i]) for i in (0, 1)]
    for row, length in enumerate(mask.sum(1)):
        forward, backward = lstm(x[row : row + 1, :length], *own[0]), lstm(x[row : row + 1, :length][:, ::-1], *own[1])[:, ::-1]
        np.testing.assert_allclose(found[row, :length], np.concatenate([forward, backward], -1)[0], atol=1e-5)
        assert (found[row, length:] == 0).all()


def test_zoneout_without_dropout_is_its_expectation_step_by_step():
    net, params, x, mask = bilstm(0.3)
    found = np.asarray(jax.jit(net.apply)(params, x, mask))
    kernel, recurrent, bias = (np.float64(params["params"][name][0]) for name in ("kernel", "recurrent", "bias"))
    sigmoid, hidden, cell = lambda v: 1 / (1 + np.exp(-v)), np.zeros((2, 5)), np.zeros((2, 5))
    for t in range(4):
        i, f, g, o = np.split(x[:, t] @ kernel + hidden @ recurrent + bias, 4, -1)
        new = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden, cell = 0.3 * hidden + 0.7 * sigmoid(o) * np.tanh(new), 0.3 * cell + 0.7 * new
        np.testing.assert_allclose(found[:, t, :5], hidden, atol=1e-5)


def test_zoneout_in_training_keeps_so_many_units():
    """Of hidden states that would change, the share that is the value of the frame before; another key keeps others."""
    net = BiLSTM(64, 0.25)
    x, mask = np.random.default_rng(0).normal(size=(4, 30, 8)).astype(np.float32), np.ones((4, 30), bool)
    params = jax.tree.map(lambda leaf: leaf, net.init(jax.random.key(0), x, mask))
    run = jax.jit(lambda key: net.apply(params, x, mask, False, rngs={"dropout": key}))
    forward = np.asarray(run(jax.random.key(1)))[..., :64]
    kept = forward[:, 1:] == forward[:, :-1]
    assert abs(kept.mean() - 0.25) < 0.02
    assert np.abs(forward - np.asarray(run(jax.random.key(2)))[..., :64]).max() > 1e-3
