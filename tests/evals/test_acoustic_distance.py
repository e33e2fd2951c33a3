"""Distances with known answers: filters, shifted pitch, stretched time, silence."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from tiny import SPEECH

from ns2_jax.audio import files
from ns2_jax.evals import acoustic_distance as distance

RATE = distance.RATE


def pulses(hz: np.ndarray, seed: int = 0) -> np.ndarray:
    """A vowel-like tone with a pulse a period of `hz [s]`, through two resonances."""
    phase = np.cumsum(hz / RATE)
    x = np.diff(np.floor(phase), prepend=0.0) + 0.002 * np.random.default_rng(seed).normal(size=len(hz))
    for centre in (700, 1800):
        r = np.exp(-np.pi * 120 / RATE)
        x = scipy.signal.lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * centre / RATE), r * r], x)
    return (0.3 * x / np.abs(x).max()).astype(np.float32)


def test_distortion_is_the_rms_distance_of_log_spectra():
    """Log-mel spectra that differ by `a cos(k w)` are `20 / ln 10 * a / sqrt 2` dB apart, and a gain is no distance."""
    w = np.pi * (np.arange(80) + 0.5) / 80
    base = np.random.default_rng(0).normal(size=(5, 80))
    moved = base + 0.3 * np.cos(4 * w) + 1.7
    found = distance.distortion(distance.cepstra(base), distance.cepstra(moved))
    np.testing.assert_allclose(found, 20 / np.log(10) * 0.3 / np.sqrt(2), rtol=1e-5)


def test_path_is_the_cheapest_one():
    """Against a plain dynamic programme."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(9, 24)), rng.normal(size=(6, 24))
    cost = distance.distortion(a[:, None], b[None])
    total = np.full((10, 7), np.inf)
    total[0, 0] = 0
    for i in range(9):
        for j in range(6):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    steps = distance.path(a, b)
    assert tuple(steps[0]) == (0, 0) and tuple(steps[-1]) == (8, 5)
    assert sum(cost[i, j] for i, j in steps) == pytest.approx(total[-1, -1])


def test_the_same_speech_is_at_distance_zero_whatever_its_level_and_margins():
    speech = files.read(SPEECH, RATE)
    padded = np.concatenate([np.zeros(3000, np.float32), 0.4 * speech, np.zeros(5000, np.float32)])
    row, silent, broken = rows = distance.measure([speech] * 3, [padded, np.zeros(RATE, np.float32), None], RATE, progress=False)
    lines = distance.summarise("x", rows)
    assert row["mcd"] < 1.0 and row["f0_cents"] < 20 and row["voicing_error"] < 3 and silent is broken is None
    assert {line["name"] for line in lines} == {"mcd_x", "f0_rmse_x", "f0_cents_x", "voicing_error_x"}
    assert all(line["fingerprint"]["missing"] == 2 and line["n"] == 1 for line in lines)


def test_pitch_moved_by_a_known_interval_in_stretched_time():
    """Three semitones up and a fifth slower: 300 cents, whatever the tempo."""
    a, b = pulses(np.full(RATE, 120.0)), pulses(np.full(RATE * 6 // 5, 120 * 2 ** (3 / 12)), 1)
    (row,) = distance.measure([a], [b], RATE, progress=False)
    assert row["f0_cents"] == pytest.approx(300, abs=15)
    assert row["f0_rmse"] == pytest.approx(120 * (2**0.25 - 1), rel=0.05)
    assert row["voicing_error"] < 5


def test_noise_is_far_from_speech_and_unvoiced():
    speech = files.read(SPEECH, RATE)
    noise = (0.1 * np.random.default_rng(0).normal(size=len(speech))).astype(np.float32)
    softly = (speech + 0.01 * noise).astype(np.float32)
    far, near = distance.measure([speech, speech], [noise, softly], RATE, progress=False)
    assert far["mcd"] > 2 * near["mcd"] and far["voicing_error"] > 30 > near["voicing_error"]
