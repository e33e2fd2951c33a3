"""Rooms and noises made here: what comes out is what was put in, within the errors that the module's docstring states."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from tiny import SPEECH

from ns2_jax.audio import files
from ns2_jax.evals import room

RATE = room.RATE
SENTENCES = [files.read(path, RATE) for path in (SPEECH, *sorted((SPEECH.parents[1] / "data_pipelines").glob("*.flac")))]
TIMES = (0.2, 0.4, 0.8)


def wet(speech: np.ndarray, seconds: float, seed: int = 0) -> np.ndarray:
    """Speech in a room of exponentially decaying noise."""
    t = np.arange(int(1.5 * seconds * RATE)) / RATE
    impulse = np.random.default_rng(seed).normal(size=len(t)) * 10 ** (-3 * t / seconds)
    out = scipy.signal.fftconvolve(speech, impulse)[: len(speech)]
    return (0.5 * out / np.abs(out).max()).astype(np.float32)


def noisy(speech: np.ndarray, noise: np.ndarray, decibels: float) -> np.ndarray:
    power = lambda x: np.square(x, dtype=np.float64).mean()
    return (speech + noise * np.sqrt(power(speech) / power(noise)) * 10 ** (-decibels / 20)).astype(np.float32)


def babble(samples: int, seed: int) -> np.ndarray:
    """Twelve talkers, each somewhere in one of the sentences."""
    rng = np.random.default_rng(seed)
    talkers = [np.roll(np.resize(one, samples), rng.integers(samples)) for one in SENTENCES * 3]
    return np.sum([one / one.std() for one in talkers], 0)


def test_reverberation_is_the_rooms():
    found = np.array([[room.reverberation(wet(speech, seconds, k)) for seconds in TIMES] for k, speech in enumerate(SENTENCES)])
    dry = [room.reverberation(speech) for speech in SENTENCES]
    assert max(dry) < 0.15 and (np.diff(found) > 0.1).all()
    np.testing.assert_allclose(found.mean(0), TIMES, atol=0.1)
    assert (np.abs(found - TIMES) < (0.1, 0.1, 0.2)).all()


@pytest.mark.parametrize("seconds", TIMES)
def test_reverberation_is_heard_through_noise_and_padding(seconds):
    speech = wet(SENTENCES[0], seconds)
    clean = room.reverberation(speech)
    assert room.reverberation(noisy(speech, np.random.default_rng(0).normal(size=len(speech)), 20)) == pytest.approx(clean, abs=0.08)
    assert room.reverberation(np.pad(speech, RATE // 2)) == pytest.approx(clean, abs=0.08)


@pytest.mark.parametrize("kind,tolerance", [("white", 1.5), ("babble", 5.0)])
def test_snr_is_that_of_the_mixture(kind, tolerance):
    levels = (0, 10, 20, 30)
    for k, speech in enumerate(SENTENCES):
        noise = np.random.default_rng(k).normal(size=len(speech)) if kind == "white" else babble(len(speech), k)
        found = np.array([room.snr(noisy(speech, noise, level)) for level in levels])
        assert (np.diff(found) > 4).all() and room.snr(speech) > found[-1]
        np.testing.assert_allclose(found, levels, atol=tolerance)


def test_level_and_rate_do_not_matter():
    speech = noisy(wet(SENTENCES[0], 0.4), np.random.default_rng(0).normal(size=len(SENTENCES[0])), 15)
    for gain in (0.01, 1.9):
        assert room.reverberation(gain * speech) == pytest.approx(room.reverberation(speech), abs=1e-3)
        assert room.snr(gain * speech) == pytest.approx(room.snr(speech), abs=1e-3)
    (row,) = room.measure([files.resample(speech, RATE, 24000)], [files.resample(speech, RATE, 24000)], 24000, progress=False)
    assert row["reverberation_error"] == row["snr_error"] == 0
    assert row["reverberation"] == pytest.approx(room.reverberation(speech), abs=0.03)


def test_digital_silence_is_neither_floor_nor_noise():
    speech = noisy(SENTENCES[0], np.random.default_rng(0).normal(size=len(SENTENCES[0])), 20)
    dither = (1e-6 * np.random.default_rng(1).normal(size=RATE)).astype(np.float32)
    gated = np.concatenate([np.zeros(RATE, np.float32), speech, dither])
    assert room.snr(gated) == pytest.approx(room.snr(speech), abs=0.5)
    assert room.reverberation(gated) == pytest.approx(room.reverberation(speech), abs=0.08)


def test_what_holds_no_room_is_missing_and_counted():
    speech = SENTENCES[0]
    broken = speech.copy()
    broken[5] = np.nan
    outputs = [speech, None, np.zeros(2 * RATE, np.float32), broken, speech[: RATE // 2], np.zeros(0, np.float32)]
    rows = room.measure([speech] * 6, outputs, progress=False)
    gone = {"missing": True}
    assert rows[1:] == [gone, gone, gone, {}, gone] and rows[0]["snr_error"] == 0  # half a second is there, but tells nothing
    lines = room.summarise("x", rows)
    assert [line["name"] for line in lines] == ["reverberation_error_x", "snr_error_x"]  # one item has no correlation
    assert all(line["fingerprint"]["missing"] == 4 and line["fingerprint"]["without"] == 1 and line["n"] == 1 for line in lines) and room.summarise("x", rows[1:]) == []
    (deaf,) = room.measure([speech[: RATE // 2]], [speech], progress=False)
    assert deaf["snr_prompt"] is deaf["snr_error"] is None and deaf["snr"] == rows[0]["snr"]
    (line, _) = room.summarise("x", [rows[0], deaf])
    assert line["fingerprint"]["without"] == 1 and line["fingerprint"]["missing"] == 0


def test_a_click_has_no_decays_to_measure_but_an_item_all_the_same():
    click = np.zeros(2 * RATE, np.float32)
    click[RATE] = 0.5
    (row,) = room.measure([SENTENCES[0]], [click], progress=False)
    assert row["reverberation"] is None and row["reverberation_error"] is None
    (line,) = room.summarise("x", [row])
    assert line["name"] == "snr_error_x"


def test_a_kept_room_correlates_and_another_does_not():
    def clip(k: int, other: int) -> np.ndarray:
        speech = wet(SENTENCES[(k + other) % 4], (0.2, 0.4, 0.8)[k % 3], k + 9 * other)
        return noisy(speech, np.random.default_rng(k).normal(size=len(speech)), 10 + 4 * k)

    prompts, outputs = ([clip(k, other) for k in range(6)] for other in (0, 1))
    value = lambda audios: {line["name"]: line for line in room.summarise("x", room.measure(prompts, audios, progress=False), model="m")}
    kept, dry = value(outputs), value(SENTENCES[:1] * 6)
    assert set(kept) == {"reverberation_error_x", "snr_error_x", "reverberation_kept_x", "snr_kept_x"}
    for name in ("reverberation_kept_x", "snr_kept_x"):
        low, high = kept[name]["interval"]
        assert kept[name]["value"] > 0.8 and low <= kept[name]["value"] <= high and kept[name]["n"] == 6
        assert name not in dry  # one answer for all has no correlation
    assert kept["snr_error_x"]["value"] < 2 < dry["snr_error_x"]["value"]
    assert kept["reverberation_error_x"]["value"] < 0.2 < dry["reverberation_error_x"]["value"]
    assert kept["snr_error_x"]["fingerprint"]["model"] == "m"


def test_correlation_is_pearsons_with_the_interval_of_resampled_pairs():
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    b = a + rng.normal(size=200)
    value, (low, high) = room.correlation(a, b, 0)
    assert value == pytest.approx(np.corrcoef(a, b)[0, 1])
    half = 1.96 * (1 - value**2) / np.sqrt(200)  # large-sample normal theory
    assert low == pytest.approx(value - half, abs=0.4 * half) and high == pytest.approx(value + half, abs=0.4 * half)
    assert room.correlation(a[:4], b[:4], 0) is None and room.correlation(a, np.ones(200), 0) is None
