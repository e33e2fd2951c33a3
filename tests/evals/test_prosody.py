"""Prosody against scipy's moments and made-up utterances whose answers are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats

from ns2_jax.evals import prosody

RATE, HOP = 16000, 160
NAMES = ["sil", "hh", "ax", "l", "ow", "sil", "w", "er", "l", "d", "sil"]
FRAMES = [10, 4, 6, 5, 12, 8, 7, 9, 6, 3, 10]  # of 10 ms
PITCH = [0, 0, 110, 120, 130, 0, 100, 95, 90, 0, 0]


def spoken(frames=FRAMES, pitch=PITCH, names=NAMES) -> prosody.Spoken:
    return prosody.Spoken(names, np.cumsum(frames) * HOP, np.repeat(np.asarray(pitch, float), frames), RATE, HOP)


def test_sequences_leave_silence_out_and_count_in_frames():
    names, durations, pitches = prosody.sequences(spoken())
    assert names == ["hh", "ax", "l", "ow", "w", "er", "l", "d"]
    np.testing.assert_allclose(durations, np.array([4, 6, 5, 12, 7, 9, 6, 3]) * 0.8)
    np.testing.assert_allclose(pitches, [np.nan, 110, 120, 130, 100, 95, 90, np.nan])


def test_pitch_of_a_phone_is_the_mean_of_its_voiced_frames():
    one = spoken()
    f0 = one.f0.copy()
    f0[14:17], f0[17:20] = 0, 100  # half of "ax" unvoiced
    assert prosody.sequences(dataclasses.replace(one, f0=f0))[2][1] == 100


def test_moments_are_scipys():
    x = np.random.default_rng(0).gamma(2.0, size=50)
    np.testing.assert_allclose(prosody.moments(x), [x.mean(), x.std(), scipy.stats.skew(x), scipy.stats.kurtosis(x)])
    np.testing.assert_array_equal(prosody.moments(np.full(7, 3.0)), [3, 0, 0, 0])


def test_twice_as_slow_and_a_fifth_higher():
    slow = spoken([2 * n for n in FRAMES], [1.5 * hz for hz in PITCH])
    found = prosody.with_prompt(spoken(), slow)
    durations, pitches = np.array([4, 6, 5, 12, 7, 9, 6, 3]) * 0.8, np.array([110, 120, 130, 100, 95, 90.0])
    assert found["duration_mean"] == pytest.approx(durations.mean()) and found["duration_deviation"] == pytest.approx(durations.std())
    assert found["pitch_mean"] == pytest.approx(0.5 * pitches.mean()) and found["pitch_deviation"] == pytest.approx(0.5 * pitches.std())
    for name in ("duration_skewness", "duration_kurtosis", "pitch_skewness", "pitch_kurtosis"):
        assert found[name] == pytest.approx(0, abs=1e-9)
    pairs = prosody.with_recording(spoken(), slow)
    assert pairs["duration_correlation"] == pytest.approx(1) and pairs["pitch_correlation"] == pytest.approx(1)
    assert pairs["duration_rmse"] == pytest.approx(np.sqrt(np.mean(durations**2)))
    assert pairs["pitch_rmse"] == pytest.approx(np.sqrt(np.mean((0.5 * pitches) ** 2)))


def test_other_phones_are_not_paired_and_few_have_no_shape():
    assert prosody.with_recording(spoken(), spoken(names=[*NAMES[:-2], "t", "sil"])) == {}
    short = spoken([10, 4, 6, 10], [0, 0, 110, 0], ["sil", "hh", "ax", "sil"])
    assert prosody.with_prompt(spoken(), short) == {}


def test_lines_count_what_is_missing_and_what_could_not_be_paired():
    other = spoken(names=[*NAMES[:-2], "t", "sil"])
    rows = prosody.measure([spoken()] * 3, [spoken()] * 3, [spoken(), None, other])
    lines = prosody.summarise("x", rows)
    line = {line["name"]: line for line in lines}
    assert rows[1] is None and line["prosody_pitch_rmse_x"]["value"] == 0 and line["prosody_pitch_rmse_x"]["unit"] == "Hz"
    assert line["prosody_pitch_rmse_x"]["n"] == 1 and line["prosody_pitch_rmse_x"]["fingerprint"]["without"] == 1
    assert line["prosody_duration_mean_x"]["n"] == 2 and line["prosody_duration_mean_x"]["fingerprint"]["missing"] == 1
    assert len(lines) == 12
