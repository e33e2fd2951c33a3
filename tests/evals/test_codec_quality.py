"""PESQ, STOI and SI-SDR: perfect, noisy and missing copies; SI-SDR against its closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import codec_quality


@pytest.fixture(scope="module")
def speech():
    return files.read(Path(__file__).with_name("sentence.flac"), 16000)


def test_si_sdr_closed_form():
    rng = np.random.default_rng(0)
    x = rng.normal(size=16000)
    x -= x.mean()
    n = rng.normal(size=16000)
    n -= n.mean() + 0
    n -= (n @ x) / (x @ x) * x  # orthogonal noise of a tenth of the amplitude: exactly 20 dB
    n *= 0.1 * np.linalg.norm(x) / np.linalg.norm(n)
    assert codec_quality.si_sdr(x, 3 * (x + n)) == pytest.approx(20.0, abs=0.01)


def test_a_copy_is_best_and_noise_costs(speech):
    noise = np.random.default_rng(1).normal(0, 0.02, speech.size).astype(np.float32)
    same, worse, worst = (codec_quality.quality(speech, speech + k * noise) for k in (0, 1, 10))
    assert same["pesq"] > 4.6 and same["stoi"] > 0.9999 and same["si_sdr"] > 100
    for key in same:
        assert same[key] > worse[key] > worst[key]


@pytest.mark.parametrize("estimate", [None, np.zeros(20000, np.float32), np.full(20000, np.nan, np.float32)])
def test_nothing_scores_the_lowest(speech, estimate):
    assert codec_quality.quality(speech, estimate) == {"pesq": 1.0, "stoi": 0.0, "si_sdr": -30.0, "missing": True}


def test_evaluate_makes_one_line_a_measure(speech):
    rows = codec_quality.measure([speech, speech], [speech, None], progress=False)
    lines = codec_quality.summarise("codec", rows, seeds=[1])
    assert [line["name"] for line in lines] == ["pesq_codec", "stoi_codec", "si_sdr_codec"] and len(rows) == 2
    assert lines[0]["value"] == pytest.approx((rows[0]["pesq"] + 1.0) / 2)
    assert lines[0]["fingerprint"]["evaluator"].startswith("pesq ")
