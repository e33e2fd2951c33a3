"""The recordings of the hard sentences are what the command makes of their text."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from commands import refused, run

from data_pipelines import flite
from ns2_jax.audio import files

ROOT = pathlib.Path(__file__).parents[2]
NAME = "data_pipelines.read_aloud"


@pytest.mark.skipif(not flite.available(), reason="flite is not installed")
def test_the_first_hard_sentences_are_read_again(tmp_path):
    lines = (ROOT / "ns2_jax/evals/hard_sentences.txt").read_text().splitlines()
    (tmp_path / "texts.txt").write_text("\n".join(lines[:3]))
    code, out, _ = run(NAME, f"--texts={tmp_path}/texts.txt", f"--out={tmp_path}/out", "--name=hard")
    assert code == 0 and "3 recordings of rms" in out
    for k in (1, 2, 3):
        again, kept = (files.read(folder / f"hard-{k:02d}.ogg", 16000) for folder in (tmp_path / "out", ROOT / "results/hard_sentences"))
        assert len(again) == len(kept)
        noise = np.square(again - kept).mean() / np.square(kept).mean()
        assert noise < 1e-4, (k, noise)


def test_it_says_what_is_missing(tmp_path):
    assert "--name is missing" in refused(NAME, f"--texts={tmp_path}/texts.txt", f"--out={tmp_path}/out")
