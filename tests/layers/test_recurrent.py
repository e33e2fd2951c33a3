"""The LSTMs against their equations, written out step by step, and against each other."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from ns2_jax.layers import recurrent
from ns2_jax.layers.recurrent import BiLSTM, lstm
from ns2_jax.precompile import hlo
from ns2_jax.runtime import mesh as meshes
from ns2_jax.systems import system as systems


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


@pytest.mark.parametrize("zoneout", [0.0, 0.3])
def test_the_gradient_of_the_recurrent_kernel_is_that_of_the_loop(monkeypatch, zoneout):
    """With padding at the end and, as nobody asks for, in between."""
    net, params, x, mask = bilstm(zoneout)
    mask = mask.copy()
    mask[0, 2] = False

    def loss(params, x):
        out = net.apply(params, x, mask, False, rngs={"dropout": jax.random.key(0)})
        return (out * np.cos(np.arange(out.size)).reshape(out.shape)).sum()

    ours = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    monkeypatch.setattr(recurrent, "apart", lambda serial: serial)
    theirs = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)
    assert np.abs(ours[1][0]["params"]["recurrent"]).max() > 0.1


def test_no_step_of_the_loop_waits_for_other_devices(monkeypatch):
    """Eight devices with rows of their own and a cut kernel: it is gathered before the loops, its gradient is summed after them."""
    monkeypatch.setattr(meshes, "SMALL", 0)
    net, mesh = BiLSTM(16), meshes.make_mesh({"fsdp": 8})
    x, mask = jax.ShapeDtypeStruct((8, 50, 24), np.float32), jax.ShapeDtypeStruct((8, 50), np.bool_)
    boxed = jax.eval_shape(net.init, jax.random.key(0), x, mask)
    shapes, names = nn.meta.unbox(boxed), jax.tree.map(lambda box: tuple(box.names) if hasattr(box, "names") else (None,) * box.ndim, boxed,
                                                       is_leaf=lambda leaf: hasattr(leaf, "names"))
    where, rows = meshes.shardings(mesh, names, shapes), meshes.batch_sharding(mesh)
    assert not where["params"]["recurrent"].is_fully_replicated
    with jax.set_mesh(mesh), systems.rules(meshes.RULES):
        loss = lambda params, x, mask: (net.apply(params, x, mask) ** 2).sum()
        done = jax.jit(jax.grad(loss), in_shardings=(where, rows, rows), out_shardings=where).lower(shapes, x, mask).compile()
    found = hlo.summary(list(hlo.collectives(done.as_text(), 8)))
    assert found and sum(kind["count"] for kind in found.values()) < 25


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
