"""Convolutions over time and over time-frequency, channels last (`NWC`/`WIO`, `NHWC`/`HWIO`).

XLA gets some sharded convolutions wrong without a word: it multiplies 1-D ones by the size of a mesh axis when time and
channels are sharded, and on meshes with data, fsdp and tensor axes values of neighbouring convolutions come out off by
more than their size. So depthwise convolutions are shifted products here, grouped ones are not offered, `runtime.mesh`
refuses sequence and tensor axes together, a kernel is gathered where time is cut (`gathered`), and every convolution's output is pinned to
where its rows and its time lie (`constrain`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ns2_jax.layers.linear import Init, constrain, default_init, gathered, named


def normed(v: jax.Array, g: jax.Array) -> jax.Array:
    """Weight norm: direction `v [..., o]` at length `g [o]` (Salimans & Kingma 2016, equation 2)."""
    return v * (g * lax.rsqrt(jnp.square(v).sum(tuple(range(v.ndim - 1))) + 1e-12))


def _kernel(module: nn.Module, init: Init, names: tuple, shape: tuple[int, ...], weight_norm: bool) -> jax.Array:
    kernel = module.param("kernel", named(init, names), shape)
    if weight_norm:
        length = lambda rng, s: jnp.ones(s, jnp.float32)  # unit gain: the init has unit fan-in variance
        kernel = normed(kernel, module.param("gain", length, shape[-1:]))
    return gathered(kernel)


def receptive(layers: Sequence[tuple[int, int, int]], first: int, last: int, causal: bool = False) -> tuple[int, int]:
    """The inputs `[first, last]` on which outputs `[first, last]` of 1-D convolutions (taps, dilation, stride) depend; a negative stride
    is transposed."""
    for taps, dilation, stride in reversed(layers):
        if stride < 0:
            left = 0 if causal else -stride - -stride // 2
            first, last = -((taps - 1 - left - first) // -stride), (last + left) // -stride
        else:
            total = (taps - 1) * dilation + 1 - stride
            left = total if causal else (total + 1) // 2
            first, last = first * stride - left, last * stride - left + (taps - 1) * dilation
    return first, last


class Conv1D(nn.Module):
    """`[b, t, i] -> [b, t', features]`. Padding SAME (or causal: all on the left); `stride` divides the length.

    With `stride` s and kernel 2s the length is exactly `t / s` for t a multiple of s. `as_product` computes a stride of 1
    as one matrix product over shifted copies: XLA:CPU runs convolutions inside `lax.cond` and `lax.scan` on one slow path
    (4x slower for a whole step of the codec's 1-D discriminators).
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    causal: bool = False
    use_bias: bool = True
    weight_norm: bool = False
    as_product: bool = False
    kernel_init: Init = default_init
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, x.shape[-1], self.features)
        kernel = _kernel(self, self.kernel_init, ("tap", *self.axes), shape, self.weight_norm)
        total = (self.kernel - 1) * self.dilation + 1 - self.stride
        left = total if self.causal else (total + 1) // 2
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.as_product:
            if self.stride != 1:
                raise ValueError(f"Conv1D(as_product=True) has stride {self.stride}, expected 1")
            padded, size = jnp.pad(x, ((0, 0), (left, total - left), (0, 0))), x.shape[1]
            taps = [padded[:, i * self.dilation : i * self.dilation + size] for i in range(self.kernel)]
            y = jnp.concatenate(taps, -1) @ kernel.reshape(-1, self.features)
        else:
            y = lax.conv_general_dilated(
                x, kernel, (self.stride,), [(left, total - left)], rhs_dilation=(self.dilation,), dimension_numbers=("NWC", "WIO", "NWC"))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return constrain(y)


class ConvTranspose1D(nn.Module):
    """`[b, t, i] -> [b, t * stride, features]` with a kernel of `2 * stride` taps (exact length for odd strides too)."""

    features: int
    stride: int
    causal: bool = False
    weight_norm: bool = False
    kernel_init: Init = default_init
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        taps = 2 * self.stride
        kernel = _kernel(self, self.kernel_init, ("tap", *self.axes), (taps, x.shape[-1], self.features), self.weight_norm)
        # The full result has (t + 1) * stride samples: cut `stride` of them, half on each side (or all on the right).
        right = self.stride if self.causal else self.stride // 2
        left = self.stride - right
        y = lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1,), [(taps - 1 - left, taps - 1 - right)],
            lhs_dilation=(self.stride,), dimension_numbers=("NWC", "WIO", "NWC"))
        return constrain(y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype))


class DepthwiseConv1D(nn.Module):
    """`[b, t, c] -> [b, t, c]`, one filter a channel, as a sum of shifted products (right on every mesh, fast on CPU)."""

    kernel: int
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.kernel**-0.5)
        kernel = self.param("kernel", named(init, ("tap", None)), (self.kernel, x.shape[-1])).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)).astype(self.dtype)
        left = self.kernel - 1 if self.causal else (self.kernel - 1) // 2
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (left, self.kernel - 1 - left), (0, 0)))
        return sum(padded[:, i : i + x.shape[1]] * kernel[i] for i in range(self.kernel)) + bias


class ConvTranspose2D(nn.Module):
    """`[b, h, w, i] -> [b, 2 h, 2 w, features]`, kernel 4 x 4 (torch's kernel 4, stride 2, padding 1)."""

    features: int
    kernel_init: Init = default_init
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, self.kernel_init, ("tap", "tap", *self.axes), (4, 4, x.shape[-1], self.features), False)
        y = lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (1, 1), [(2, 2), (2, 2)], lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return constrain(y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype))


class Conv2D(nn.Module):
    """`[b, h, w, i] -> [b, h', w', features]`, SAME padding."""

    features: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    weight_norm: bool = False
    kernel_init: Init = default_init
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = _kernel(self, self.kernel_init, ("tap", "tap", *self.axes), shape, self.weight_norm)
        pads = []
        for size, stride, dilation in zip(self.kernel, self.stride, self.dilation):
            total = max((size - 1) * dilation + 1 - stride, 0)
            pads.append(((total + 1) // 2, total // 2))
        y = lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, pads,
            rhs_dilation=self.dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return constrain(y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype))


class FoldedConv1D(nn.Module):
    """`Conv1D` of stride 1 on samples folded into channels: `[b, t / fold, fold * i] -> [b, t / fold, fold * features]`, SAME padding.

    The same function of the same parameters as `Conv1D(features, kernel, dilation=dilation)` on `[b, t, i]`, in another shape: tap j of
    the kernel leads from phase r + offset of the input to phase r of the output, and there are more products with zeros. A TPU pads channels to
    128 and is faster so where they are few; on a CPU convolutions of a few channels are slow, too.
    """

    features: int
    kernel: int
    fold: int
    dilation: int = 1
    kernel_init: Init = default_init
    axes: tuple[str | None, str | None] = ("embed", "mlp")
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        f, taps, i = self.fold, self.kernel, x.shape[-1] // self.fold
        kernel = self.param("kernel", named(self.kernel_init, ("tap", *self.axes)), (taps, i, self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        before = (taps * self.dilation - self.dilation + 1) // 2  # as Conv1D pads
        reach = -(-before // f)
        tap = np.full((2 * reach + 1, f, f), taps)  # [block, phase in, phase out] -> which tap; `taps` is none
        for out, j in itertools.product(range(f), range(taps)):
            block, phase = divmod(out + j * self.dilation - before, f)
            tap[block + reach, phase, out] = j
        blocks = jnp.concatenate([kernel, jnp.zeros_like(kernel[:1])])[tap]  # [block, phase in, phase out, i, features]
        folded = gathered(blocks.transpose(0, 1, 3, 2, 4).reshape(len(tap), f * i, f * self.features))
        y = lax.conv_general_dilated(x.astype(self.dtype), folded, (1,), [(reach, reach)], dimension_numbers=("NWC", "WIO", "NWC"))
        return constrain(y + jnp.tile(bias, f))
