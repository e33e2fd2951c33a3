"""Turns by hand, and as the aligner of the repository hears them in two sentences one after the other."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.evals import turns
from ns2_jax.text import front, phones

HERE = pathlib.Path(__file__).parents[1] / "data_pipelines"
IDS = phones.ids(["sil", "ah", "b", "sil", "sil", "iy", "sil"])
ENDS = np.array([1600, 3200, 4800, 6400, 8000, 9600, 11200])


def test_a_turn_is_what_is_spoken_in_it():
    script = turns.script(IDS, ENDS, [0, 6400])
    assert script.turn.tolist() == [0, 0, 0, 0, 1, 1, 1] and script.spans == [(1600, 4800), (8000, 9600)]
    assert turns.edges(script.spans).tolist() == [4800, 8000]
    with pytest.raises(ValueError, match="turn 1 says nothing"):
        turns.script(IDS, ENDS, [0, 6400, 6500, 8000]).spans


def test_errors_and_shares():
    """120 ms late and 300 ms early; nothing found at all; as it should be."""
    script = turns.script(IDS, ENDS, [0, 6400])
    rows = turns.measure([[(0, 4800 + 1920), (8000 - 4800, 9600)], None, script.spans], [script] * 3, 16000)
    assert rows == [{"errors": [120, -300]}, {"errors": [np.inf, np.inf], "missing": True}, {"errors": [0, 0]}]
    lines = {line["name"]: line for line in turns.summarise("x", rows, split="test")}
    assert lines["turn_within_100_x"]["value"] == pytest.approx(2 / 6) and lines["turn_within_250_x"]["value"] == pytest.approx(3 / 6)
    assert lines["turn_within_250_x"]["fingerprint"]["missing"] == 1 and lines["turn_within_250_x"]["fingerprint"]["split"] == "test"
    with pytest.raises(ValueError, match="nobody answers"):
        turns.summarise("x", [{"errors": []}])


def test_the_aligner_hears_turns():
    """Two sentences with 0.4 s between, also at another rate; without sound or too short there are none."""
    said, audio, ids, ends = json.loads((HERE / "sentences.json").read_text())[:2], [], [], []
    for i, one in enumerate(said):
        own = np.array([end for _, end in one["segments"]]) * 16000
        ids.append(phones.ids(front.phonemise(one["text"])))
        ends.append(np.rint(own).astype(int) + sum(map(len, audio)))
        audio += [files.read(HERE / f"sentence{i}.flac", 16000), np.zeros(6400, np.float32)]
    begin = len(audio[0]) + 6400
    script = turns.script(np.concatenate(ids), np.concatenate(ends), [0, begin])
    whole, aligner = np.concatenate(audio), inference.load(inference.ALIGNER)
    found = turns.heard(aligner, [whole, None, whole[:800], np.zeros(16000, np.float32)], [script] * 4, 16000)
    assert found[1] is None and found[2] is None and found[3] is None and len(found[0]) == 2
    rows = turns.measure(found[:1], [script], 16000)
    assert np.abs(rows[0]["errors"]).max() < 100
    twice = turns.script(script.phones, 2 * script.ends, [0, 2 * begin])
    (again,) = turns.heard(aligner, [files.resample(whole, 16000, 32000)], [twice], 32000)
    np.testing.assert_allclose(again, 2 * np.array(found[0]), atol=1600)
