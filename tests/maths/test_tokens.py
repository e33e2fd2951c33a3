"""Drawing of codes: what the nucleus keeps. Its laws of drawing are in tests/systems/test_valle_programs.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ns2_jax.maths import tokens


def test_the_nucleus_is_the_smallest_set_that_holds_the_probability():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 16)).astype(np.float32) * 2
    found = np.asarray(tokens.nucleus(jnp.asarray(logits), 0.8)) > tokens.IMPOSSIBLE
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, kept in zip(p, found):
        order = np.argsort(-row)
        wanted = order[: np.searchsorted(np.cumsum(row[order]), 0.8) + 1]
        assert set(np.flatnonzero(kept)) == set(wanted)
    assert tokens.nucleus(logits, 1.0) is logits
    assert ((np.asarray(tokens.nucleus(jnp.asarray(logits), 0.0)) > tokens.IMPOSSIBLE).sum(-1) == 1).all()  # greedy
