"""Each discriminator against an independent implementation: scipy's STFT and correlations written out in numpy."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy.signal import correlate, get_window

from ns2_jax.layers import discriminators

RNG = np.random.default_rng(0)
AUDIO = (0.1 * RNG.normal(size=(2, 1024))).astype(np.float32)


def conv(x, params, stride=(1, 1), dilation=(1, 1)):
    """SAME convolution of `x [h, w, i]` in float64, filter by filter, its kernels normed to their gains."""
    v, g, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "gain", "bias"))
    kernel = v / np.sqrt(np.square(v).sum((0, 1, 2))) * g
    wide = np.zeros(((v.shape[0] - 1) * dilation[0] + 1, (v.shape[1] - 1) * dilation[1] + 1, *v.shape[2:]))
    wide[:: dilation[0], :: dilation[1]] = kernel
    out = []
    for o in range(v.shape[-1]):
        total = sum(correlate(x[..., i], wide[..., i, o], "full", "fft") for i in range(x.shape[-1]))
        cut = []
        for axis in (0, 1):
            size, rest = wide.shape[axis], max(wide.shape[axis] - stride[axis], 0)
            first, count = size - 1 - (rest + 1) // 2, (x.shape[axis] + rest - size) // stride[axis] + 1
            cut.append(slice(first, first + (count - 1) * stride[axis] + 1, stride[axis]))
        out.append(total[tuple(cut)])
    return np.stack(out, -1) + bias


def leaky(x, slope):
    return np.where(x > 0, x, slope * x)


def spectrum(audio, size):
    """Hann frames centred on each hop of a quarter of the size, zeros outside: complex `[t, size // 2 + 1]`."""
    hop, padded = size // 4, np.pad(audio.astype(np.float64), size)
    starts = size + np.arange(len(audio) // hop) * hop + hop // 2 - size // 2
    return np.stack([np.fft.rfft(padded[at : at + size] * get_window("hann", size)) for at in starts])


def two(x):
    return np.stack([x.real, x.imag], -1)


def by_2d(audio, size, p):
    x, features = two(spectrum(audio, size)), []
    for i, (stride, dilation) in enumerate([((1, 1), (1, 1)), *[((1, 2), (d, 1)) for d in (1, 2, 4)], ((1, 1), (1, 1))]):
        x = leaky(conv(x, p[f"Conv2D_{i}"], stride, dilation), 0.2)
        features.append(x)
    return conv(x, p["Conv2D_5"]).ravel(), features


def by_1d(audio, size, p):
    x = spectrum(audio, size)
    level = np.sqrt(np.abs(x) ** 2 + 1e-8)
    x = np.concatenate([x.real * level**-0.7, x.imag * level**-0.7, 0.3 * np.log(level)], -1)
    x = leaky(x @ np.asarray(p["Dense_0"]["kernel"], np.float64) + p["Dense_0"]["bias"], 0.2)
    features = [x]
    flat = lambda q: {**q, "kernel": np.asarray(q["kernel"])[:, None]}
    for i, dilation in enumerate((1, 2, 4)):
        x = leaky(conv(x[:, None], flat(p[f"Conv1D_{i}"]), dilation=(dilation, 1))[:, 0], 0.2)
        features.append(x)
    return conv(x[:, None], flat(p["Conv1D_3"])).ravel(), features


def by_bands(audio, size, p):
    x, features, ends = two(spectrum(audio, size)), [], []
    edges = [int(share * (size // 2 + 1)) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)]
    for band in range(5):
        h = x[:, edges[band] : edges[band + 1]]
        for i, stride in enumerate([(1, 1), (1, 2), (1, 2), (1, 2), (1, 1)]):
            h = leaky(conv(h, p[f"Conv2D_{5 * band + i}"], stride), 0.1)
            features.append(h)
        ends.append(h)
    return conv(np.concatenate(ends, 1), p["Conv2D_25"]).ravel(), features


def by_period(audio, period, p):
    x = np.pad(audio.astype(np.float64), (0, -len(audio) % period), mode="reflect").reshape(-1, period, 1)
    features = []
    for i, stride in enumerate((3, 3, 3, 3, 1)):
        x = leaky(conv(x, p[f"Conv2D_{i}"], (stride, 1)), 0.1)
        features.append(x)
    return conv(x, p["Conv2D_5"]).ravel(), features


def by_scale(audio, size, p):
    x = audio.astype(np.float64)
    for _ in range(size.bit_length() - 1):
        padded = np.pad(x, 2)
        x = np.array([padded[i : i + 4].mean() for i in range(0, len(x) + 1, 2)])
    x, features = x[:, None], []
    flat = lambda q: {**q, "kernel": np.asarray(q["kernel"])[:, None]}
    for i, stride in enumerate((1, 2, 2, 4, 4, 1, 1)):
        x = np.pad(x, ((0, -len(x) % stride), (0, 0)))
        x = leaky(conv(x[:, None], flat(p[f"Conv1D_{i}"]), (stride, 1))[:, 0], 0.1)
        features.append(x)
    return conv(x[:, None], flat(p["Conv1D_7"])).ravel(), features


def started(module):
    """Parameters with nothing left at its round starting value."""
    params = nn.meta.unbox(module.init(jax.random.key(0), AUDIO))["params"]
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.mark.parametrize("module, by_hand", [
    (discriminators.Spectral2D(64, 3, np.float32), by_2d), (discriminators.Spectral1D(64, 5, np.float32), by_1d),
    (discriminators.Bands(256, 2, np.float32), by_bands), (discriminators.Period(7, 2, np.float32), by_period),
    (discriminators.Scale(4, 2, np.float32), by_scale)],
    ids=["2d", "1d", "bands", "period", "scale"])
def test_judges_equal_numpy(module, by_hand):
    params = started(module)
    logits, features = module.apply({"params": params}, AUDIO)
    for row, audio in enumerate(AUDIO):
        want, maps = by_hand(audio, module.size, params)
        np.testing.assert_allclose(logits[row], want, atol=2e-4 * (1 + np.abs(want).max()))
        assert len(features) == len(maps)
        for got, one in zip(features, maps):
            np.testing.assert_allclose(got[row], one, atol=2e-4 * (1 + np.abs(one).max()))


def test_dacs_judges_hear_a_levelled_signal_and_are_eight():
    judges = discriminators.Discriminators("dac", (1024, 512, 256), 2)
    params = started(judges)
    a = judges.apply({"params": params}, AUDIO)
    b = judges.apply({"params": params}, 3.0 * AUDIO + 0.2)
    assert len(a) == judges.number == 8
    for (x, _), (y, _) in zip(a, b):
        np.testing.assert_allclose(x, y, atol=1e-4)
    period = discriminators.Period(2, 2, np.float32)
    own = 0.8 * (AUDIO - AUDIO.mean(-1, keepdims=True)) / np.abs(AUDIO - AUDIO.mean(-1, keepdims=True)).max(-1, keepdims=True)
    np.testing.assert_allclose(a[0][0], period.apply({"params": params["Period_0"]}, own)[0], atol=1e-4)


def test_the_periods_are_hifigans():
    """Its widest layers have 1,024 filters; a discriminator of one period has 8.2 M parameters by the layers we know it to have."""
    shapes = jax.eval_shape(discriminators.Period(2, 32, np.float32).init, jax.random.key(0), AUDIO)["params"]
    kernels = [leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(shapes)) if "kernel" in str(path)]
    assert sorted(shape[-1] for shape in kernels) == [1, 32, 128, 512, 1024, 1024]
    assert abs(sum(int(np.prod(shape)) for shape in kernels) / 8.2e6 - 1) < 0.02


def test_an_unknown_kind_and_a_window_too_short_are_named():
    with pytest.raises(ValueError, match="window 128 has a lowest band of 6 bins"):
        discriminators.Bands(128, 2, np.float32).init(jax.random.key(0), AUDIO)
    with pytest.raises(ValueError, match="discriminator kind='3d'"):
        discriminators.Discriminators("3d", (64,), 2).init(jax.random.key(0), AUDIO)


def hears(audio):
    """Judges without parameters: two that know simple things of audio `[b, s]`."""
    return [(audio[:, ::2], [audio[:, :4], audio[:, 4:]]), (audio[:, 1::2] ** 2, [audio[:, None] ** 2])]


@pytest.mark.parametrize("relative", [False, True], ids=["hifigan", "relative"])
def test_what_generators_lose_by_judges_is_the_equations_and_nothing_before_they_listen(relative):
    real, fake = AUDIO[:, :12] + 0.5, AUDIO[:, 12:24]
    reals, fakes = ([(np.asarray(logits), [np.asarray(f) for f in features]) for logits, features in hears(x)] for x in (real, fake))
    adversarial = sum(((1 - logits) ** 2).mean(1) for logits, _ in fakes)
    away = [np.abs(r - f).reshape(2, -1).mean(1) / (np.abs(r).reshape(2, -1).mean(1) + 1e-6 if relative else 1)
            for (_, rs), (_, fs) in zip(reals, fakes) for r, f in zip(rs, fs)]
    features = sum(away) / (len(away) if relative else 1)
    found = discriminators.opinion(hears, real, fake, True, relative)
    np.testing.assert_allclose(found, [adversarial, features], rtol=1e-5)
    np.testing.assert_array_equal(discriminators.opinion(hears, real, fake, False, relative), np.zeros((2, 2)))


def test_judges_learn_to_tell_and_teach_nobody():
    real, fake, weight = AUDIO[:, :12], AUDIO[:, 12:24], np.array([1.0, 0.5], np.float32)
    judge = lambda disc, audio: [(disc["gain"] * audio, []), (audio + disc["bias"], [])]
    disc = {"gain": np.float32(0.7), "bias": np.float32(0.1)}
    loss, slopes = discriminators.lesson(judge, disc, real, fake, weight, True)
    by_row = sum(((1 - made(real)) ** 2).mean(1) + (made(fake) ** 2).mean(1) for made in (lambda x: 0.7 * x, lambda x: x + 0.1))
    np.testing.assert_allclose(loss, (by_row * weight).sum(), rtol=1e-5)
    gain = ((-2 * real * (1 - 0.7 * real)).mean(1) + (2 * fake * 0.7 * fake).mean(1)) * weight
    np.testing.assert_allclose(slopes["gain"], gain.sum(), rtol=1e-4)
    quiet, still = discriminators.lesson(judge, disc, real, fake, weight, False)
    assert float(quiet) == 0 and float(still["gain"]) == float(still["bias"]) == 0
    taught = jax.grad(lambda x: discriminators.lesson(judge, disc, real, x, weight, True)[0])(fake)
    assert not np.asarray(taught).any()
