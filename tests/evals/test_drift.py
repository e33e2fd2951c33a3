"""One voice all along is consistent; a voice that changes drifts by as much as the two differ."""

from __future__ import annotations

import numpy as np
from tiny import SPEECH

from ns2_jax.audio import files
from ns2_jax.evals import drift, speaker_similarity

RATE = 16000


def test_a_voice_that_changes_drifts():
    speech = files.read(SPEECH, RATE)
    piece = np.resize(speech, 3 * RATE)
    lower = np.resize(np.interp(np.arange(0, len(speech), 0.8), np.arange(len(speech)), speech), 3 * RATE).astype(np.float32)
    steady, changing, short = np.concatenate([piece] * 4), np.concatenate([piece, piece, lower, lower]), piece
    a, b, c, d = rows = drift.measure([steady, changing, short, None], progress=False)
    lines = drift.summarise("x", rows)
    apart = float(speaker_similarity.voice(piece) @ speaker_similarity.voice(lower))
    assert np.allclose(a["cosines"], 1, atol=1e-4) and len(a["cosines"]) == 3 and c["cosines"] == d["cosines"] == []
    assert np.allclose(b["cosines"], [1, apart, apart], atol=1e-4) and apart < 0.9
    value = {line["name"]: line for line in lines}
    assert abs(value["drift_x"]["value"] - (0 + 1 - apart) / 2) < 1e-4 and value["drift_x"]["fingerprint"]["short"] == 2
    assert abs(value["consistency_x"]["value"] - (1 + (1 + 2 * apart) / 3) / 2) < 1e-4


def test_a_silent_piece_has_no_voice():
    piece = np.resize(files.read(SPEECH, RATE), 3 * RATE)
    assert drift.cosines(np.concatenate([piece, 0 * piece])) == [0.0]
