"""Takes whose differences are known: none, a pitch, a tempo, another voice."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from tiny import SPEECH

from ns2_jax.audio import files
from ns2_jax.evals import diversity, speaker_similarity

RATE = diversity.RATE


@pytest.fixture(scope="module")
def speech():
    return files.read(SPEECH, RATE)


def faster(audio: np.ndarray, ratio: tuple[int, int]) -> np.ndarray:
    """Played at `ratio` of the speed: higher by it and shorter by it."""
    return scipy.signal.resample_poly(audio, ratio[1], ratio[0]).astype(np.float32)


def test_equal_takes_differ_by_exactly_nothing(speech):
    (row,) = diversity.measure([[speech, speech.copy(), speech]], progress=False)
    assert row == {"takes": 3, "mcd": 0.0, "f0": 0.0, "pitch": 0.0, "duration": 0.0, "voice": 0.0}


@pytest.mark.parametrize("ratio", [(9, 8), (6, 5)])
def test_speech_played_faster_is_higher_and_shorter_by_the_ratio(speech, ratio):
    (row,) = diversity.measure([[speech, faster(speech, ratio)]], progress=False)
    fold = ratio[0] / ratio[1]
    assert row["pitch"] == pytest.approx(1200 * np.log2(fold), abs=15)
    assert row["f0"] == pytest.approx(1200 * np.log2(fold), rel=0.2)
    assert row["duration"] == pytest.approx(200 * (fold - 1) / (fold + 1), abs=2)
    other = speaker_similarity.voice(speech) @ speaker_similarity.voice(faster(speech, ratio))
    assert row["voice"] == pytest.approx(1 - other) and row["voice"] > 0.05 and row["mcd"] > 1


def test_a_row_is_the_mean_over_pairs(speech):
    """Two equal takes and a third: two of three pairs differ, both as much."""
    third = faster(speech, (9, 8))
    (two, three) = diversity.measure([[speech, third], [speech, third, speech]], progress=False)
    for key in ("mcd", "f0", "pitch", "duration", "voice"):
        assert three[key] == pytest.approx(two[key] * 2 / 3, rel=1e-3), key


def test_silence_at_the_ends_and_level_are_no_diversity(speech):
    padded = np.concatenate([np.zeros(4000, np.float32), 0.5 * speech, np.zeros(9000, np.float32)])
    (row,) = diversity.measure([[speech, padded]], progress=False)
    assert row["duration"] < 1 and row["pitch"] < 5 and row["f0"] < 20 and row["mcd"] < 1 and row["voice"] < 0.01


def test_an_item_needs_two_takes_that_sound(speech):
    broken = np.full(RATE, np.nan, np.float32)
    takes = [[speech, None], [], [np.zeros(RATE, np.float32), broken], [speech, None, speech]]
    rows = diversity.measure(takes, progress=False)
    assert rows[:3] == [{"missing": True, "takes": n} for n in (1, 0, 0)] and rows[3]["takes"] == 2 and "missing" not in rows[3]
    lines = diversity.summarise("synthesis", rows, model="m")
    assert {line["name"] for line in lines} == {f"diversity_{key}_synthesis" for key in diversity.UNITS}
    assert all(line["n"] == 1 and line["value"] == 0 and line["fingerprint"]["missing"] == 3 for line in lines)
    assert lines[0]["fingerprint"]["takes"] == [2] and lines[0]["fingerprint"]["model"] == "m" and diversity.summarise("x", rows[:3]) == []


def test_noise_has_no_pitch_to_compare(speech):
    noise = [(0.1 * np.random.default_rng(k).normal(size=RATE)).astype(np.float32) for k in range(2)]
    rows = diversity.measure([noise, [speech, faster(speech, (9, 8))]], progress=False)
    assert rows[0]["f0"] is rows[0]["pitch"] is None and rows[0]["mcd"] > 0
    line = {line["name"]: line for line in diversity.summarise("x", rows)}
    assert line["diversity_pitch_x"]["n"] == 1 and line["diversity_pitch_x"]["fingerprint"]["without"] == 1
    assert line["diversity_mcd_x"]["n"] == 2 and line["diversity_mcd_x"]["value"] == pytest.approx((rows[0]["mcd"] + rows[1]["mcd"]) / 2)


def test_rate(speech):
    takes = [files.resample(take, RATE, 24000) for take in (speech, faster(speech, (9, 8)))]
    (row,) = diversity.measure([takes], 24000, progress=False)
    (same,) = diversity.measure([[speech, faster(speech, (9, 8))]], progress=False)
    assert row["duration"] == pytest.approx(same["duration"], abs=0.5) and row["pitch"] == pytest.approx(same["pitch"], abs=10)
