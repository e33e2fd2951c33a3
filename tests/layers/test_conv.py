"""Convolutions against scipy and against their own definitions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.signal

from ns2_jax.layers.conv import Conv1D, Conv2D, ConvTranspose1D, DepthwiseConv1D, normed

RNG = np.random.default_rng(0)


def plain(tree):
    return jax.tree.map(np.asarray, jax.tree.map(lambda x: x.unbox() if hasattr(x, "unbox") else x, tree, is_leaf=lambda x: hasattr(x, "unbox")))


def made(layer, x):
    """(params with random biases, output as numpy)."""
    params = plain(layer.init(jax.random.key(0), x))["params"]
    if "bias" in params:
        params["bias"] = RNG.normal(size=params["bias"].shape).astype(np.float32)
    return params, np.asarray(layer.apply({"params": params}, x))


@pytest.mark.parametrize("kernel,stride,dilation,as_product", [
    (3, 1, 1, False), (7, 1, 3, False), (5, 1, 9, False), (4, 2, 1, False), (10, 5, 1, False), (7, 1, 3, True), (4, 1, 2, True)])
@pytest.mark.parametrize("causal", [False, True])
def test_conv1d_is_scipy_correlation(kernel, stride, dilation, as_product, causal):
    x = RNG.normal(size=(2, 40, 3)).astype(np.float32)
    params, y = made(Conv1D(4, kernel, stride=stride, dilation=dilation, as_product=as_product, causal=causal), x)
    assert y.shape == (2, 40 // stride, 4)
    taps = np.zeros(((kernel - 1) * dilation + 1, 3, 4), np.float32)
    taps[::dilation] = params["kernel"]
    total = len(taps) - stride
    left = total if causal else (total + 1) // 2
    padded = np.pad(x, ((0, 0), (left, total - left), (0, 0)))
    for b in range(2):
        for o in range(4):
            full = sum(scipy.signal.correlate(padded[b, :, i], taps[:, i, o], "valid") for i in range(3))
            np.testing.assert_allclose(y[b, :, o], full[::stride] + params["bias"][o], atol=2e-5)


def test_conv1d_as_product_refuses_a_stride():
    with pytest.raises(ValueError, match="stride 2, expected 1"):
        Conv1D(4, 4, stride=2, as_product=True).init(jax.random.key(0), RNG.normal(size=(1, 8, 3)))


@pytest.mark.parametrize("stride", [2, 4, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_transposed_conv_is_zero_stuffing_and_filtering(stride, causal):
    x = RNG.normal(size=(1, 11, 2)).astype(np.float32)
    params, y = made(ConvTranspose1D(3, stride, causal=causal), x)
    assert y.shape == (1, 11 * stride, 3)
    stuffed = np.zeros((2, 10 * stride + 1))
    stuffed[:, ::stride] = x[0].T
    right = stride if causal else stride // 2
    for o in range(3):
        # lax correlates, so the kernel runs backwards with respect to scipy's convolution
        full = sum(np.convolve(stuffed[i], params["kernel"][::-1, i, o]) for i in range(2))
        np.testing.assert_allclose(y[0, :, o], full[stride - right : len(full) - right] + params["bias"][o], atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_depthwise_is_one_filter_a_channel(causal):
    x = RNG.normal(size=(2, 30, 5)).astype(np.float32)
    params, y = made(DepthwiseConv1D(7, causal=causal), x)
    left = 6 if causal else 3
    padded = np.pad(x, ((0, 0), (left, 6 - left), (0, 0)))
    for c in range(5):
        want = np.stack([scipy.signal.correlate(padded[b, :, c], params["kernel"][:, c], "valid") for b in range(2)])
        np.testing.assert_allclose(y[..., c], want + params["bias"][c], atol=2e-5)


def test_conv2d_is_scipy_correlation():
    x = RNG.normal(size=(1, 12, 16, 2)).astype(np.float32)
    params, y = made(Conv2D(3, (3, 9), (1, 2)), x)
    assert y.shape == (1, 12, 8, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (4, 3), (0, 0)))
    for o in range(3):
        full = sum(scipy.signal.correlate(padded[0, ..., i], params["kernel"][..., i, o], "valid") for i in range(2))
        np.testing.assert_allclose(y[0, ..., o], full[:, ::2] + params["bias"][o], atol=2e-5)


def test_weight_norm_has_the_length_of_its_gain():
    v = RNG.normal(size=(3, 4, 6)).astype(np.float32)
    g = np.arange(1, 7, dtype=np.float32)
    w = np.asarray(normed(v, g))
    np.testing.assert_allclose(np.sqrt((w**2).sum((0, 1))), g, rtol=1e-5)
    np.testing.assert_allclose(w / np.linalg.norm(w.reshape(-1, 6), axis=0), v / np.linalg.norm(v.reshape(-1, 6), axis=0), rtol=1e-4)


def test_causal_layers_do_not_look_ahead():
    x = RNG.normal(size=(1, 20, 4)).astype(np.float32)
    later = x.copy()
    later[:, 10:] += 1
    for layer, ratio in [(Conv1D(4, 7, dilation=2, causal=True), 1), (DepthwiseConv1D(5, causal=True), 1), (ConvTranspose1D(4, 4, causal=True), 4)]:
        params = layer.init(jax.random.key(0), x)
        before, after = (np.asarray(layer.apply(params, a)) for a in (x, later))
        np.testing.assert_array_equal(before[:, : 10 * ratio], after[:, : 10 * ratio])
        assert np.abs(before[:, 10 * ratio :] - after[:, 10 * ratio :]).max() > 1e-3
