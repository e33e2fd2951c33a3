"""The codec's networks: lengths, reach, causality, and where a latent of the frame-rate codec starts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.layers.codec import Codec, wave_spectra
from ns2_jax.maths import spectral
from tests import meshes
from tests.tiny import SPEECH

CONV = dict(kind="conv", channels=8, width=4, decoder_width=16, strides=(2, 5), hop=10)
PAPER = dict(kind="conv", channels=8, width=4, decoder_width=32)
FRAME = dict(kind="frame", channels=24, cepstrum=6, width=16, blocks=(1, 2), mels=20)

fast = functools.partial(jax.jit, compiler_options=meshes.FAST)


def started(numbers: dict, frames: int):
    """(network, audio `[2, s]`, parameters with nothing left at zero)."""
    net = Codec(**numbers)
    x = 0.1 * jax.random.normal(jax.random.key(0), (2, frames * net.hop))
    params = fast(net.init)(jax.random.key(1), x)
    leaves, tree = jax.tree.flatten(params)
    return net, x, jax.tree.unflatten(tree, [p + 0.05 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)])


@pytest.mark.parametrize("numbers", [CONV, PAPER, FRAME, FRAME | dict(wave=10)], ids=["conv", "paper", "frame", "wave"])
def test_lengths_are_exact_and_rows_independent(numbers):
    net, x, params = started(numbers, 7)
    z = fast(lambda x: net.apply(params, x, method="encode"))(x)
    assert z.shape == (2, 7, net.channels)
    y = fast(lambda x: net.apply(params, x))
    assert y(x).shape == x.shape
    np.testing.assert_allclose(y(x.at[0].multiply(-2.0))[1:], y(x)[1:], atol=1e-5)
    short = jax.eval_shape(y, x[:, : net.hop])
    assert short.shape == (2, net.hop), "one frame"


@pytest.mark.parametrize("numbers", [CONV, FRAME, FRAME | dict(wave=10)], ids=["conv", "frame", "wave"])
@pytest.mark.parametrize("causal", [False, True])
def test_reach_is_what_a_change_moves(numbers, causal):
    """One frame of the input is changed: the outputs that move are those within reach, the outermost of them included."""
    frames = 260
    net, x, params = started(numbers | dict(causal=causal), frames)
    encode, decode = (fast(lambda given, part=part: net.apply(params, given, method=part)) for part in ("encode", "decode"))
    z, at = encode(x), 130
    for part, before, after in (
            ("encode", z, encode(x.at[:, at * net.hop : (at + 1) * net.hop].add(0.3))),
            ("decode", decode(z), decode(z.at[:, at].add(100.0)))):  # enough for the outermost to move by more than float32 rounds away
        moved = np.flatnonzero(np.abs(np.asarray(after - before)).reshape(2, frames, -1).max((0, 2)))
        left, right = net.reach(part)
        assert moved.min() >= at - right and moved.max() <= at + left
        assert moved.max() == at + left and (moved.min() == at - right or causal)
    if causal and net.kind == "conv":
        assert net.reach("encode")[1] == net.reach("decode")[1] == 0
    with pytest.raises(ValueError, match="reach of 'both'"):
        net.reach("both")


def test_the_papers_reach():
    """Of its encoder by hand, in samples at 16 kHz; of its decoder by what the gradient of one frame's samples finds in the latents."""
    net = Codec(kind="conv")
    # A residual unit of dilation d at a stride product m reaches 3 d m to either side, a strided convolution of 2 s about s m / 2.
    units = lambda m: 3 * (1 + 3 + 9) * m
    encoder = 3 + units(1) + 1 + units(2) + 2 * 2 + units(8) + 8 * 3 + units(40) + 40 * 3 + 200
    assert net.reach("encode") == (-(-encoder // 200),) * 2
    for causal, (left, right) in ((False, (53, 53)), (True, (106, 0))):
        net = Codec(**PAPER, causal=causal)
        assert net.reach("decode") == Codec(kind="conv", causal=causal).reach("decode") == (left, right)
        frames, at = left + right + 5, left + 2
        z = jax.random.normal(jax.random.key(0), (1, frames, net.channels))
        params = jax.eval_shape(lambda z: net.init(jax.random.key(1), z, method="decode"), z)
        params = jax.tree.map(lambda p: 0.2 * jax.random.normal(jax.random.key(p.size), p.shape), params)
        heard = fast(jax.grad(lambda z: net.apply(params, z, method="decode").reshape(frames, net.hop)[at].sum()))(z)
        assert np.flatnonzero(np.abs(heard).max((0, 2))).tolist() == list(range(at - left, at + right + 1))


def test_an_untrained_frame_codec_already_follows_the_waveform():
    """Before any training the latent carries the MDCT below 1.6 kHz: what comes back there is the signal."""
    net = Codec(kind="frame", channels=64, cepstrum=16, wave=40, width=32, blocks=(1, 1))
    audio = files.read(SPEECH, 16000)
    x = jnp.asarray(audio[: len(audio) // 200 * 200])[None]
    y = net.apply(net.init(jax.random.key(0), x), x)
    low = lambda a: np.fft.irfft(np.fft.rfft(np.asarray(a)[0])[: a.shape[1] // 10], a.shape[1])[200:-200]
    a, b = low(x), low(y)
    assert 10 * np.log10(np.square(a).sum() / np.square(a - b).sum()) > 12


@pytest.mark.parametrize("hop, size, wave", [(200, 800, 32), (40, 160, 7)])
def test_wave_spectra_are_the_stft_of_the_inverse_mdct(hop, size, wave):
    low = wave * size // (2 * hop)
    x = np.random.default_rng(0).normal(size=(1, 20, wave)).astype(np.float32)
    want = np.asarray(spectral.stft(spectral.overlap_add(x @ spectral.mdct_matrix(hop)[:, :wave].T, hop), size, hop))[0, 3:-3, :low]
    kernel = wave_spectra(hop, size, wave, low)
    side = len(kernel) // 2
    padded = np.pad(x[0], ((side, side), (0, 0)))
    got = sum(padded[i : i + 20] @ tap for i, tap in enumerate(kernel))[3:-3]
    np.testing.assert_allclose(got[:, :low] + 1j * got[:, low:], want, atol=1e-4)


def test_unknown_kinds_and_wrong_strides_are_named():
    with pytest.raises(ValueError, match="kind='lstm'"):
        Codec(kind="lstm").init(jax.random.key(0), jnp.zeros((1, 400)))
    with pytest.raises(ValueError, match="multiply to 200, not to hop=320"):
        Codec(hop=320).init(jax.random.key(0), jnp.zeros((1, 640)))
