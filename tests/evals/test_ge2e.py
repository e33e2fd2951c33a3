"""The GE2E port: the wheel's own network in torch (stored), an independent LSTM in numpy, and a loader that runs no code."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from ns2_jax.evals import ge2e, speaker_similarity

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from make_ge2e_reference import SIGNALS, voice  # noqa: E402

REFERENCE = {name: np.array(values) for name, values in json.loads((HERE / "ge2e_reference.json").read_text()).items()}


@pytest.mark.parametrize("name", SIGNALS)
def test_embeddings_are_those_of_the_original_network(name):
    vector = ge2e.embed(voice(*SIGNALS[name]))
    assert vector.shape == (256,) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(vector, REFERENCE[name], atol=5e-6)


def test_references_tell_voices_apart():
    assert REFERENCE["low"] @ REFERENCE["high"] < 0.9  # or the test above would prove little


def test_network_against_numpy():
    state = ge2e.read_torch(ge2e.find_weights())
    x = np.random.default_rng(0).uniform(0, 2, (2, 23, 40)).astype(np.float32)
    y = x.astype(np.float64)
    for i in range(3):
        w_x, w_h, b_x, b_h = (state[f"lstm.{kind}_l{i}"].astype(np.float64) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        hidden, cell, out = np.zeros((2, 256)), np.zeros((2, 256)), []
        for t in range(23):
            gates = y[:, t] @ w_x.T + b_x + hidden @ w_h.T + b_h
            i_, f_, g_, o_ = (gates[:, k * 256 : (k + 1) * 256] for k in range(4))
            cell = expit(f_) * cell + expit(i_) * np.tanh(g_)
            hidden = expit(o_) * np.tanh(cell)
            out.append(hidden)
        y = np.stack(out, 1)
    last = np.maximum(y[:, -1] @ state["linear.weight"].T + state["linear.bias"], 0)
    expected = last / np.linalg.norm(last, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(ge2e.network(ge2e.params(), x)), expected, atol=2e-6)


def test_neither_torch_nor_resemblyzer_is_imported():
    ge2e.params()
    assert "torch" not in sys.modules and "resemblyzer" not in sys.modules


@pytest.mark.parametrize("samples,count", [(100, 1), (25600, 1), (31519, 1), (31520, 2), (43839, 2), (43840, 3), (76800, 5)])
def test_pieces(samples, count):
    # 16000 / 1.3 / 160 rounds to 77 frames; a piece at 77k counts when 19,200 samples (0.75 of it) are covered.
    assert ge2e.starts(samples) == [77 * k for k in range(count)]


def test_quiet_recordings_are_raised_and_silence_refused():
    loud = voice(*SIGNALS["low"])
    at_level = loud * np.float32(10 ** (-30 / 20) / np.sqrt(np.square(loud).mean()))
    np.testing.assert_allclose(ge2e.embed(loud * np.float32(0.01)), ge2e.embed(at_level), atol=1e-5)
    with pytest.raises(ValueError, match="silent"):
        ge2e.embed(np.zeros(16000, np.float32))


class Evil:
    def __reduce__(self):
        return (print, ("code in a weights file ran",))


def test_code_in_a_weights_file_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    path.write_bytes(b"".join(pickle.dumps(x, 2) for x in (ge2e.MAGIC, 1001, {"little_endian": True}, Evil(), [])))
    with pytest.raises(ValueError, match="print"):
        ge2e.read_torch(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", pickle.dumps(1, 2) + pickle.dumps(2, 2)])
def test_what_is_no_weights_file_is_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ValueError):
        ge2e.read_torch(tmp_path / "a.pt")


def test_similarity_rows():
    a, b = np.eye(256)[0], np.eye(256)[1]
    mixed = (a + b) / np.sqrt(2)
    no = [False] * 3
    rows = [speaker_similarity.similarity(mine, k, np.stack([a, b, b]), ["x", "y", "y"], no) for k, mine in enumerate([a, mixed, None])]
    assert rows[0] == {"own": 1.0, "others": 0.0, "nearest": True}
    assert rows[1]["own"] == pytest.approx(0.5**0.5) and rows[1]["others"] == pytest.approx(0.5**0.5)
    assert rows[2] == {"own": 0.0, "others": 0.0, "nearest": False, "missing": True}  # a missing output counts


def test_a_recording_does_not_find_itself():
    """Speaker x's recording is the prompt of x's other item: without it, the nearest voice is y's."""
    near, far, other = np.eye(256)[0], np.eye(256)[1], (2 * np.eye(256)[0] + np.eye(256)[2]) / np.sqrt(5)
    table, speakers = np.stack([far, near, other]), ["x", "x", "y"]
    nearest = lambda itself: speaker_similarity.similarity(near, 0, table, speakers, itself)["nearest"]
    assert nearest([False] * 3) and not nearest([False, True, False])
    tone = voice(*SIGNALS["low"])
    item = lambda source, prompt, speaker: {"source": source, "prompt_source": prompt, "speaker": speaker}
    items = [item("r1", "p", "x"), item("r2", "r1", "x"), item("r3", "q", "y")]
    heard = speaker_similarity.voice(tone)
    blind = (heard + np.eye(256)[0]) / np.linalg.norm(heard + np.eye(256)[0])
    row, _, _ = speaker_similarity.measure([tone] * 3, np.stack([np.eye(256)[5], heard, blind]), items, [0, 1, 2], progress=False)
    assert row["nearest"] is False  # its own recording is the prompt of the second item


def test_evaluate_ranks_voices_and_ignores_loudness():
    low, high = voice(*SIGNALS["low"]), voice(*SIGNALS["high"])
    table = np.stack(speaker_similarity.references([low, high]))
    items = [{"source": f"r{speaker}", "prompt_source": f"p{speaker}", "speaker": speaker} for speaker in "ab"]
    rows = speaker_similarity.measure([low * np.float32(0.05), high], table, items, [0, 1], progress=False)
    lines = speaker_similarity.summarise("x", rows)
    scores = {line["name"]: line["value"] for line in lines}
    assert scores["secs_own_x"] > 0.999 > scores["secs_others_x"] and scores["secs_nearest_x"] == 100.0
    assert all("GE2E" in line["fingerprint"]["evaluator"] and line["n"] == 2 for line in lines) and len(rows) == 2
