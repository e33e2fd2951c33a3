"""Opinion scores fall with noise, and what cannot be heard scores the worst."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from tiny import SPEECH

from ns2_jax.audio import files
from ns2_jax.evals import dnsmos


def test_noise_lowers_the_background_and_loud_audio_is_not_refused():
    speech = files.read(SPEECH, dnsmos.RATE)
    noise = np.random.default_rng(0).normal(size=len(speech)).astype(np.float32) * float(np.sqrt(np.mean(speech**2)))
    rows = dnsmos.measure([speech, speech + noise, 9 * speech, 0 * speech, speech * np.nan, None], progress=False)
    (clean, noisy, loud, silent, broken, missing), lines = rows, dnsmos.summarise("x", rows)
    assert missing.pop("missing")
    assert noisy["dnsmos_background"] < clean["dnsmos_background"] - 1 and noisy["dnsmos_overall"] < clean["dnsmos_overall"] - 0.5
    assert 1 < clean["dnsmos_overall"] < 5 and abs(loud["dnsmos_signal"] - clean["dnsmos_signal"]) < 1
    assert silent == broken == missing == dict.fromkeys(dnsmos.KEYS.values(), 1.0)
    assert [line["name"] for line in lines] == [f"{key}_x" for key in dnsmos.KEYS.values()]
    assert all(line["fingerprint"]["missing"] == 1 and "speechmos 0.0" in line["fingerprint"]["evaluator"] for line in lines)


def test_equals_the_networks_run_by_hand():
    """One nine-second window, onnxruntime and the published polynomial only."""
    import onnxruntime
    import speechmos

    audio = np.resize(files.read(SPEECH, dnsmos.RATE), int(9.01 * dnsmos.RATE)).astype(np.float32)
    model = f"{list(speechmos.__path__)[0]}/dnsmos_models/sig_bak_ovr.onnx"
    raw = onnxruntime.InferenceSession(model).run(None, {"input_1": audio[None]})[0][0]
    want = np.polyval([-0.06766283, 1.11546468, 0.04602535], raw[2])
    assert dnsmos.opinions(audio)["dnsmos_overall"] == pytest.approx(want, abs=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="onnxruntime.*pip install -e '.\\[eval\\]'"):
        dnsmos.check()
