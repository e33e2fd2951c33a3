"""WaveGrad's decoder: the public count, folded layers against plain ones, how far it hears, windows, what it costs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.layers.conv import Conv1D, FoldedConv1D
from ns2_jax.layers.wavegrad import WaveGrad
from tests import meshes

TINY = dict(up=(3, 2), widths=(8, 8), down=(8,), first=4, input=8, dilations=((1, 2, 4, 8), (1, 2, 1, 2)))
HOP, T = 6, 24


def given(net: WaveGrad, t: int = T, voice: int = 0, channels: int = 5) -> tuple:
    """Noisy waveform, features, level, voice, mask; the second row ends early."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    mask = np.arange(t) < np.array([[t], [t - 5]])
    return normal(2, t * net.hop), normal(2, t, channels), np.float32([0.3, 0.95]), normal(2, voice) if voice else None, mask


@functools.cache
def started(voice: int = 0) -> tuple[WaveGrad, dict]:
    net = WaveGrad(**TINY)
    params = jax.eval_shape(net.init, jax.random.key(0), *given(net, voice=voice))
    rng = np.random.default_rng(1)
    return net, jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), params)


@functools.cache
def run(net: WaveGrad):
    return jax.jit(net.apply)


def count(net: WaveGrad, channels: int) -> int:
    args = jnp.zeros((1, 2 * net.hop)), jnp.zeros((1, 2, channels)), jnp.zeros(1), None, jnp.ones((1, 2), bool)
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), *args)))


def test_base_has_the_public_count_and_large_is_about_twenty_four_million():
    """15.81 M with 80 mel bins (ivanvovk/WaveGrad's Base); "about 23 M" is remembered of the Large one."""
    assert count(WaveGrad(), 80) == 15_810_401 and WaveGrad().hop == 300
    assert count(WaveGrad(repeats=2), 80) == 23_911_777


@pytest.mark.parametrize("kernel, dilation, fold", [(5, 1, 4), (3, 1, 2), (3, 8, 3), (1, 1, 4), (4, 2, 5)])
def test_a_folded_convolution_is_the_plain_one(kernel, dilation, fold):
    """Outputs and gradients, from the same parameters, in float32's rounding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 60, 3)).astype(np.float32)
    params = {"kernel": rng.normal(size=(kernel, 3, 4)).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    plain, folded = Conv1D(4, kernel, dilation=dilation), FoldedConv1D(4, kernel, fold, dilation)

    def loss(net, shape, params, x):
        y = net.apply({"params": params}, x.reshape(shape)).reshape(2, 60, 4)
        return (y * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), y

    both = [jax.value_and_grad(functools.partial(loss, net, shape), (0, 1), has_aux=True)(params, x)
            for net, shape in ((plain, (2, 60, 3)), (folded, (2, 60 // fold, 3 * fold)))]
    assert max(meshes.differences(*both).values()) < 1e-5


def test_the_folded_decoder_is_the_plain_one():
    net, params = started()
    folded = WaveGrad(**TINY, fold=3)
    args = given(net)
    assert jax.tree.map(jnp.shape, jax.eval_shape(folded.init, jax.random.key(0), *args)) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(run(folded)(params, *args), run(net)(params, *args), atol=2e-4)


def test_it_hears_as_far_as_it_says_and_no_further():
    """By derivatives in float64, for the waveform and for the features, at several places of a frame."""
    net, params = started()
    args, reach, at = given(net), net.reach(), T // 2
    found = 0
    grads = jax.jit(jax.grad(lambda y, h, params, rest, sample: jnp.abs(net.apply(params, y, h, *rest)[0, sample]), (0, 1)))
    for sample in (0, HOP - 1):
        y, h = grads(args[0], args[1], params, (args[2], None, np.ones((2, T), bool)), at * HOP + sample)
        heard = np.flatnonzero(np.abs(np.asarray(y)[0]).reshape(T, HOP).max(1) + np.abs(np.asarray(h)[0]).max(1))
        found = max(found, at - heard[0], heard[-1] - at)
    assert found == reach < at


def test_windows_with_that_overlap_are_the_whole_and_with_less_they_are_not():
    net, params = started()
    y, h, level, _, mask = given(net)
    whole = np.asarray(run(net)(params, y, h, level, None, mask))
    first, last, reach = 8, 12, net.reach()

    def part(side: int) -> float:
        cut = lambda x, step: np.pad(x, ((0, 0), (side * step,) * 2) + ((0, 0),) * (x.ndim - 2))[:, first * step : (last + 2 * side) * step]
        found = run(net)(params, cut(y, HOP), cut(h, 1), level, None, cut(mask, 1))[:, side * HOP : (side + last - first) * HOP]
        return np.abs(found - whole[:, first * HOP : last * HOP]).max() / np.abs(whole).max()

    assert part(reach) < 1e-5 < 1e-3 < part(1)


def test_padding_is_not_heard():
    net, params = started()
    y, h, level, _, mask = given(net)
    rubbish = lambda x, step: np.where(np.repeat(mask, step, 1).reshape(x.shape[:2] + (1,) * (x.ndim - 2)), x, 7)
    args = params, rubbish(y, HOP), rubbish(h, 1), level, None, mask
    valid = np.repeat(mask, HOP, 1)
    np.testing.assert_allclose(np.where(valid, run(net)(*args), 0), np.where(valid, run(net)(params, y, h, level, None, mask), 0), atol=1e-4)


def test_it_is_told_of_the_level_and_of_the_voice():
    net, params = started(voice=3)
    y, h, level, voice, mask = given(net, voice=3)
    first = np.asarray(run(net)(params, y, h, level, voice, mask))
    assert np.abs(run(net)(params, y, h, level + 0.01, voice, mask) - first).max() > 1e-3
    assert np.abs(run(net)(params, y, h, level, voice + 1, mask) - first).max() > 1e-3


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="2 factors in `up` need 2 `widths`"):
        WaveGrad(**TINY | {"widths": (8,)}).check()
    with pytest.raises(ValueError, match="fold=4 does not divide the 6 steps"):
        WaveGrad(**TINY, fold=4).check()


def test_multiply_adds_are_those_the_compiler_counts():
    net = WaveGrad(**TINY | dict(widths=(64, 48), down=(48,), first=32, input=64, repeats=2))
    args = given(net, channels=64)
    params = jax.eval_shape(net.init, jax.random.key(0), *args)
    cost = jax.jit(net.apply).lower(params, *args).compile().cost_analysis()["flops"]
    assert 2 * 2 * T * net.macs(64) == pytest.approx(cost, rel=0.1)
