"""Long short-term memory: a layer as a function of its arrays, for networks whose weights come from elsewhere, and one of both directions.

Gate order is input, forget, cell, output (the order of cuDNN and of PyTorch's `nn.LSTM`), and the two biases of
those implementations are added before they get here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ns2_jax.layers.linear import constrain, named


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


def apart(serial: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`serial(gates [t, n, b, 4h], recurrent [n, h, 4h], valid, keys) -> hidden [t, n, b, h]` with the recurrent kernel's gradient as one product
    after the loop, of the states before each step (zero before the first) by the gradients of its gates. Left to itself it is a sum that the loop
    carries, which devices with other rows must add up in each of its steps.
    """

    def forward(gates: jax.Array, recurrent: jax.Array, *rest: jax.Array) -> tuple[jax.Array, tuple]:
        hidden, back = jax.vjp(lambda gates: serial(gates, recurrent, *rest), gates)
        return hidden, (hidden, recurrent, back)

    def backward(kept: tuple, given: jax.Array) -> tuple:
        hidden, recurrent, back = kept
        (gates,) = back(given)
        before = jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]])
        product = jnp.einsum("tnbh,tnbf->nhf", *(x.astype(recurrent.dtype) for x in (before, gates)), preferred_element_type=jnp.float32)
        return gates, product.astype(recurrent.dtype), None, None

    function = jax.custom_vjp(serial)
    function.defvjp(forward, backward)
    return function


class BiLSTM(nn.Module):
    """`[b, t, c] -> [b, t, 2 * width]`: one LSTM forwards, one backwards, both in one scan; zero at padding.

    Padding leaves hidden state and cell as they are, so the backward one begins at each row's own end. `zoneout` (Krueger et al. 2017) is the
    chance that a unit keeps its value of the frame before, of hidden state and cell apart; without dropout (`deterministic`) the
    expectation is taken. Gates as in `lstm`; cells are float32.
    """

    width: int
    zoneout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_btc: jax.Array, mask_bt: jax.Array, deterministic: bool = True) -> jax.Array:
        h, split = self.width, nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=0)
        forget = lambda rng, shape: jnp.zeros(shape).at[:, h : 2 * h].set(1.0)  # a cell that remembers to begin with
        kernel = self.param("kernel", named(split, (None, "embed", "mlp")), (2, x_btc.shape[-1], 4 * h)).astype(self.dtype)
        recurrent = self.param("recurrent", named(split, (None, "embed", "mlp")), (2, h, 4 * h)).astype(self.dtype)
        recurrent = nn.with_logical_constraint(recurrent, (None, None, "mlp"))  # whole over fsdp before the loop, not in each of its steps
        bias = self.param("bias", forget, (2, 4 * h))
        both = lambda x: jnp.stack([x, x[:, ::-1]])  # [2, b, t, ...]
        projected = jnp.einsum("nbti,nif->tnbf", both(x_btc.astype(self.dtype)), kernel).astype(jnp.float32) + bias[:, None]
        valid = jnp.moveaxis(both(mask_bt), 2, 0)[..., None]
        keys = jnp.zeros((len(valid), 0))
        if self.zoneout and not deterministic:
            keys = jax.random.split(self.make_rng("dropout"), len(valid))

        def serial(projected: jax.Array, recurrent: jax.Array, valid: jax.Array, keys: jax.Array) -> jax.Array:
            def step(carry: jax.Array, given: tuple) -> tuple[jax.Array, jax.Array]:
                (hidden, cell), (gates, real, key) = carry, given
                gates = gates + jnp.einsum("nbh,nhf->nbf", hidden.astype(self.dtype), recurrent).astype(jnp.float32)
                i, f, g, o = jnp.split(gates, 4, -1)
                new = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
                new = jnp.stack([jax.nn.sigmoid(o) * jnp.tanh(new), new])
                if self.zoneout and deterministic:
                    new = self.zoneout * carry + (1 - self.zoneout) * new
                elif self.zoneout:
                    new = jnp.where(jax.random.bernoulli(key, self.zoneout, new.shape), carry, new)
                carry = jnp.where(real, new, carry)
                return carry, carry[0]

            return jax.lax.scan(step, jnp.zeros((2, *projected.shape[1:3], h)), (projected, valid, keys))[1]

        hidden = jnp.where(valid, apart(serial)(projected, recurrent, valid, keys), 0.0)
        forward, backward = jnp.moveaxis(hidden, 0, 2)  # [b, t, h] each
        return constrain(jnp.concatenate([forward, backward[:, ::-1]], -1).astype(self.dtype))
