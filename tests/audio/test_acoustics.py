"""Rooms decay as asked, and what is mixed is as loud as asked."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import scipy.signal

from ns2_jax.audio import acoustics, files
from ns2_jax.evals import room

RATE = 16000


@pytest.fixture(scope="module")
def speech():
    return files.read(pathlib.Path(__file__).parents[1] / "evals" / "sentence.flac", RATE)


@pytest.mark.parametrize("rt60, direct", [(0.2, 0.0), (0.5, 10.0), (1.2, 5.0)])
def test_a_room_decays_as_asked(rt60, direct):
    """Schroeder's backward integral of the tail falls from -5 to -25 dB at 60 dB in `rt60`; the energies have their ratio."""
    response = acoustics.impulse(RATE, rt60, direct, np.random.default_rng(0))
    tail = np.square(response[1:])
    assert response[0] == 1.0 and 10 * np.log10(1 / tail.sum()) == pytest.approx(direct, abs=1e-6)
    assert not tail[: int(acoustics.GAP * RATE) - 1].any()
    left = 10 * np.log10(np.cumsum(tail[::-1])[::-1] / tail.sum())
    first, last = np.argmax(left < -5), np.argmax(left < -25)
    assert 3 * (last - first) / RATE == pytest.approx(rt60, rel=0.12)


def test_reverberation_is_a_convolution_heard_as_one(speech):
    times = []
    for rt60 in (0.2, 0.8):
        response = acoustics.impulse(RATE, rt60, 0.0, np.random.default_rng(1))
        wet, plain = acoustics.reverberate(speech, response), scipy.signal.fftconvolve(speech, response)[: len(speech)]
        np.testing.assert_allclose(wet, plain * np.sqrt(np.square(speech).mean() / np.square(plain).mean()), atol=2e-6)
        assert acoustics.power(wet) == pytest.approx(acoustics.power(speech), rel=1e-5) and wet.dtype == np.float32
        times.append(room.reverberation(wet))
    assert room.reverberation(speech) < times[0] < times[1]


def test_noise_is_so_far_under_all_or_under_a_level(speech):
    rng = np.random.default_rng(0)
    for other in (rng.standard_normal(len(speech)), 40 * np.sin(np.arange(len(speech)))):
        for level in (None, 0.05):
            added = acoustics.mix(speech, other, 7.0, level).astype(np.float64) - speech
            against = acoustics.power(speech) if level is None else level**2
            assert 10 * np.log10(against / acoustics.power(added)) == pytest.approx(7.0, abs=0.01)
    np.testing.assert_array_equal(acoustics.mix(speech, np.zeros_like(speech), 7.0), speech)
    assert not acoustics.as_loud_as(np.zeros(9), speech).any()
