"""Mel and STFT distances: against librosa, a copy, a known gain, silence and what is missing."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import spectral_distance


@pytest.fixture(scope="module")
def speech():
    return files.read(Path(__file__).with_name("sentence.flac"), 16000)


def by_librosa(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """DAC's two distances, with librosa's STFT and mel filters."""
    far = {"mel": 0.0, "stft": 0.0}
    spectra = lambda x, size: np.abs(librosa.stft(x, n_fft=size, hop_length=size // 4, center=True, pad_mode="reflect"))
    log = lambda x: np.log10(np.maximum(x, 1e-5))
    for bins, size in zip((5, 10, 20, 40, 80, 160, 320), (32, 64, 128, 256, 512, 1024, 2048)):
        mel = librosa.filters.mel(sr=16000, n_fft=size, n_mels=bins)
        far["mel"] += np.abs(log(mel @ spectra(a, size)) - log(mel @ spectra(b, size))).mean()
    for size in (2048, 512):
        far["stft"] += np.abs(log(spectra(a, size)) - log(spectra(b, size))).mean()
    return far


@pytest.mark.filterwarnings("ignore:Empty filters")
def test_it_is_what_librosa_says(speech):
    loud = speech[16000:24000]  # begins and ends in a word: what is beyond the ends counts
    noisy = loud + np.random.default_rng(0).normal(0, 0.01, loud.size).astype(np.float32)
    found, wanted = spectral_distance.distance(loud, noisy), by_librosa(loud, noisy)
    assert found == pytest.approx(wanted, rel=2e-4) and found["mel"] > 1 and found["stft"] > 0.5


def test_a_copy_is_at_0_and_ten_times_the_noise_is_1_a_window_away():
    noise = np.random.default_rng(1).normal(0, 0.05, 16000).astype(np.float32)  # nowhere under the floor
    assert spectral_distance.distance(noise, noise) == {"mel": 0.0, "stft": 0.0}
    tenfold = spectral_distance.distance(noise, 10 * noise)
    assert tenfold["stft"] == pytest.approx(2.0, abs=1e-3)
    assert 6.5 < tenfold["mel"] <= 7.0001  # but for bins between two lines of the spectrum, which are empty on both sides


def test_noise_costs_and_nothing_is_as_far_as_silence(speech):
    noise = np.random.default_rng(2).normal(0, 0.002, speech.size).astype(np.float32)
    near, far = (spectral_distance.distance(speech, speech + k * noise) for k in (1, 10))
    none, broken = (spectral_distance.distance(speech, x) for x in (None, np.full(9, np.nan, np.float32)))
    for name in ("mel", "stft"):
        assert 0 < near[name] < far[name] < none[name]
    quiet = {name: sum(np.abs(x + 5).mean() for x in spectra) for name, spectra in spectral_distance.logs(speech).items()}
    assert none["missing"] and none == broken and none["mel"] == pytest.approx(quiet["mel"]) and none["stft"] == pytest.approx(quiet["stft"])


def test_any_length_and_another_rate(speech):
    rows = spectral_distance.measure([speech[:n] for n in (160, 1000, 5001)], [speech[:n] for n in (90, 1100, 5001)], progress=False)
    assert [row["mel"] for row in rows] == [0, 0, 0]
    other = files.resample(speech, 16000, 24000)
    (row,) = spectral_distance.measure([other], [other[:-240]], rate=24000, progress=False)
    assert 0 <= row["mel"] < 0.02


def test_lines_say_what_they_are(speech):
    rows = spectral_distance.measure([speech, speech], [speech, None], progress=False)
    lines = spectral_distance.summarise("codec_8", rows, model="abc")
    assert [line["name"] for line in lines] == ["mel_distance_codec_8", "stft_distance_codec_8"]
    assert lines[0]["value"] == pytest.approx(rows[1]["mel"] / 2) and lines[0]["fingerprint"]["missing"] == 1
    assert "32 to 2048" in lines[0]["fingerprint"]["evaluator"] and "2048 and 512" in lines[1]["fingerprint"]["evaluator"]
