"""STFT and mel against librosa and scipy, and the properties the rest of the house stands on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.fft
import scipy.signal

from ns2_jax.maths import spectral

RATE = 16000


def noise(samples: int, rows: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, samples)).astype(np.float32) * 0.1


def shifted(x_bs: np.ndarray, size: int, hop: int) -> np.ndarray:
    """The signal with the zeros that make an uncentred reference start where `frame` does."""
    side = (size - hop) // 2
    return np.pad(x_bs, ((0, 0), (side, size)))


@pytest.mark.parametrize(("size", "hop"), [(800, 200), (1024, 256), (400, 200), (600, 200), (512, 128)])
def test_stft_is_librosas(size, hop):
    x = noise(5 * size + 37)
    ours = np.asarray(spectral.stft(x, size, hop))
    theirs = librosa.stft(shifted(x, size, hop), n_fft=size, hop_length=hop, window="hann", center=False)
    theirs = np.moveaxis(theirs, 1, 2)[:, : ours.shape[1]]
    assert ours.shape == (2, x.shape[1] // hop, size // 2 + 1)
    # A frame that reaches into the rest behind the last whole frame sees it as silence.
    whole = (x.shape[1] // hop * hop - size) // hop
    np.testing.assert_allclose(ours[:, :whole], theirs[:, :whole], atol=2e-5)


def test_stft_is_scipys():
    size, hop, x = 800, 200, noise(8000)
    window = scipy.signal.get_window("hann", size)
    theirs = scipy.signal.ShortTimeFFT(window, hop, RATE).stft(shifted(x, size, hop), p0=2, k_offset=0)
    theirs = np.moveaxis(theirs, 1, 2)  # slice p is centred on sample p * hop; ours are centred on the middle of the frame
    ours = np.asarray(spectral.stft(x, size, hop))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs[:, : ours.shape[1]]), atol=2e-5)


@pytest.mark.parametrize(("size", "hop"), [(800, 200), (1024, 256), (400, 200), (600, 200)])
def test_istft_inverts(size, hop):
    x = noise(20 * hop)
    back = np.asarray(spectral.istft(spectral.stft(x, size, hop), size, hop))
    assert back.shape == x.shape
    inner = slice(hop, -hop)  # the window is zero at the very first sample that only one frame sees
    np.testing.assert_allclose(back[:, inner], x[:, inner], atol=1e-5)


def test_overlap_add_is_the_adjoint_of_frame():
    x, y = noise(2000), np.random.default_rng(1).normal(size=(2, 10, 800)).astype(np.float32)
    left = float((np.asarray(spectral.frame(x, 800, 200)) * y).sum())
    right = float((x * np.asarray(spectral.overlap_add(jnp.asarray(y), 200))).sum())
    assert left == pytest.approx(right, rel=1e-4)


def test_frames_are_centred_on_their_hop():
    x = np.zeros((1, 2000), np.float32)
    x[0, 5 * 200 + 100] = 1  # the middle of frame 5
    energy = np.square(np.asarray(spectral.frame(x, 800, 200)) * spectral.hann(800)).sum(-1)[0]
    assert energy.argmax() == 5
    np.testing.assert_allclose(energy[4], energy[6], rtol=1e-5)


@pytest.mark.parametrize(("rate", "size", "bins", "fmin", "fmax"), [
    (16000, 800, 80, 0.0, None), (22050, 1024, 80, 0.0, 8000.0), (24000, 1200, 100, 20.0, None), (16000, 2048, 128, 0.0, None), (16000, 400, 40, 0, 7600)])
def test_mel_filterbank_is_librosas(rate, size, bins, fmin, fmax):
    ours = spectral.mel_filterbank(rate, size, bins, fmin, fmax)
    theirs = librosa.filters.mel(sr=rate, n_fft=size, n_mels=bins, fmin=fmin, fmax=fmax).T
    assert ours.shape == (size // 2 + 1, bins) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_mel_scale_is_librosas_and_inverts():
    hz = np.linspace(0, 8000, 101)
    np.testing.assert_allclose(spectral.hz_to_mel(hz), librosa.hz_to_mel(hz), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(spectral.mel_to_hz(spectral.hz_to_mel(hz)), hz, rtol=1e-9, atol=1e-9)


def test_log_mel_is_librosas():
    size, hop, bins = 1024, 256, 80
    t = np.arange(16000) / RATE
    x = noise(16000) + 0.3 * np.sin(2 * np.pi * 440 * t).astype(np.float32)
    ours = np.asarray(spectral.log_mel(x, RATE, size, hop, bins))
    mel = librosa.feature.melspectrogram(y=shifted(x, size, hop), sr=RATE, n_fft=size, hop_length=hop, n_mels=bins, center=False, power=1.0)
    theirs = np.moveaxis(np.log(np.maximum(mel, 1e-5)), 1, 2)
    whole = ours.shape[1] - size // hop
    np.testing.assert_allclose(ours[:, :whole], theirs[:, :whole], atol=1e-3)


def test_log_mel_of_silence_is_the_floor_with_finite_gradient():
    silence = jnp.zeros((1, 4000))
    np.testing.assert_allclose(spectral.log_mel(silence, RATE, 800, 200, 80), np.log(1e-5), rtol=1e-5)
    grad = jax.grad(lambda x: spectral.log_mel(x, RATE, 800, 200, 80).sum())(silence)
    assert np.isfinite(grad).all()


def test_padding_behind_the_end_changes_only_the_frames_that_see_it():
    x = noise(4000)
    long = np.pad(x, ((0, 0), (0, 1000)))
    short = np.asarray(spectral.log_mel(x, RATE, 800, 200, 40))
    np.testing.assert_allclose(spectral.log_mel(long, RATE, 800, 200, 40)[:, :20], short, atol=1e-4)


def test_dct_is_scipys_and_orthonormal():
    basis = spectral.dct_matrix(40)
    x = noise(40)
    np.testing.assert_allclose(x @ basis, scipy.fft.dct(x, norm="ortho"), atol=1e-5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(40), atol=1e-5)


@pytest.mark.parametrize(("size", "hop"), [(800, 300), (400, 80 + 3), (3 * 201, 201 * 2)])
def test_a_hop_that_does_not_divide_the_frame_is_refused(size, hop):
    with pytest.raises(ValueError, match="hop"):
        spectral.frame(jnp.zeros((1, 4000)), size, hop)


def test_mdct_is_the_dct_iv_of_folded_frames():
    """Scipy's DCT-IV of each sine-windowed frame (a, b, c, d) folded into (-c_r - d, a - b_r); orthonormal, inverted inside, cut to few."""
    hop = 40
    x = noise(12 * hop)
    padded = np.pad(x.astype(np.float64), ((0, 0), (hop // 2, hop)))
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))
    want = []
    for t in range(12):
        a, b, c, d = np.split(padded[:, t * hop : t * hop + 2 * hop] * window, 4, axis=1)
        want.append(scipy.fft.dct(np.concatenate([-c[:, ::-1] - d, a - b[:, ::-1]], 1), type=4, norm="ortho"))
    ours = np.asarray(spectral.mdct(x, hop))
    inverse = lambda x: spectral.overlap_add(x @ spectral.mdct_matrix(hop)[:, : x.shape[-1]].T, hop)
    np.testing.assert_allclose(ours, np.stack(want, 1), atol=1e-5)
    np.testing.assert_allclose(inverse(ours)[:, hop // 2 : -hop // 2], x[:, hop // 2 : -hop // 2], atol=1e-5)
    few = spectral.mdct(x, hop, 7)
    np.testing.assert_allclose(few, ours[..., :7], atol=1e-6)
    np.testing.assert_allclose(inverse(few), inverse(ours * (np.arange(hop) < 7)), atol=1e-5)
