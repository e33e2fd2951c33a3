"""The LSTM against its equations, written out step by step."""

from __future__ import annotations

import numpy as np

from ns2_jax.layers.recurrent import lstm


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
