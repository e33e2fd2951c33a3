"""A long short-term memory layer as a function of its arrays, for networks whose weights come from elsewhere.

Gate order is input, forget, cell, output (the order of cuDNN and of PyTorch's `nn.LSTM`), and the two biases of
those implementations are added before they get here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def lstm(x: jax.Array, kernel: jax.Array, recurrent: jax.Array, bias: jax.Array) -> jax.Array:
    """Hidden states `[b, t, h]` of `x [b, t, i]` from a zero state (Hochreiter & Schmidhuber 1997, with forget gates).

    Args:
      kernel: `[i, 4h]`; recurrent: `[h, 4h]`; bias: `[4h]`; gates in the order input, forget, cell, output.
    """
    width = recurrent.shape[0]
    projected = (x @ kernel + bias).swapaxes(0, 1)  # the product over all frames at once: only the recurrence is serial

    def step(carry, gates):
        hidden, cell = carry
        i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    zero = jnp.zeros((x.shape[0], width), x.dtype)
    _, hidden = jax.lax.scan(step, (zero, zero), projected)
    return hidden.swapaxes(0, 1)
