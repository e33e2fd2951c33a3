"""WaveGrad 2 as people use it: trained, asked for its schedules and windows, heard with what was found."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import tiny

from data_pipelines import shards
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.maths import schedules
from ns2_jax.text import phones as inventory

sys.path.insert(0, str(Path(__file__).parent / "data"))
from noise_corpus import write_corpus  # noqa: E402

ROOT = Path(__file__).parent.parent
BUCKETS = "[{'b':8,'t':320,'p':40,'u':32}]"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    write_corpus(folder, utterances=16, shard_count=1)
    shards.write_manifest(folder, name="noise", phones=inventory.inventory_hash())
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    code, out, err = commands.run("ns2_jax.train", f"--config={ROOT}/configs/wavegrad2.py:smoke", f"--config.data.path={corpus}",
                                  f"--config.data.buckets={BUCKETS}", "--config.train.steps=2", "--config.optim.warmup=1", f"--workdir={folder}")
    assert code == 0, err
    return folder


def test_it_trains_finds_schedules_and_speaks_with_them(corpus, trained, tmp_path):
    args = [f"--model={trained}", f"--data={corpus}", "--split=valid", "--limit=3", f"--out={tmp_path}/out"]
    code, out, err = commands.run("ns2_jax.evaluate", *args, "--evals=schedule_search,window_mismatch", "--steps=2")
    assert code == 0, err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert 0 < summary["trial_distance_searched_2"] <= summary["trial_distance_before_2"] * 1.001
    assert summary["window_loss_whole"] > 0 and summary["window_ratio_16"] == pytest.approx(summary["window_loss_16"] / summary["window_loss_whole"])
    lines = {line["name"]: line for line in map(json.loads, (tmp_path / "out" / "scores.jsonl").read_text().splitlines())}
    found = json.loads((tmp_path / "out" / inference.FOUND).read_text())["schedules"]
    assert len(found) == 1 and lines["trial_distance_searched_2"]["betas"] == found[0] and 6 <= lines["trial_distance_searched_2"]["tried"] <= 12
    assert schedules.last_signal(schedules.logsnr(found[0])) <= 0.05 + 1e-6

    before = inference.load(trained)
    shutil.copy(tmp_path / "out" / inference.FOUND, trained)
    model = inference.load(trained)
    np.testing.assert_allclose(model.system.schedule(2), schedules.logsnr(found[0]), atol=1e-6)
    assert len(before.system.schedules) == 0 and np.abs(before.system.schedule(2) - model.system.schedule(2)).max() > 1e-3
    words = [f"--model={trained}", "--text=Yes.", f"--prompt={tiny.SPEECH}", f"--out={tmp_path}/a.wav", "--steps=2"]
    code, out, err = commands.run("ns2_jax.synthesize", *words)
    assert code == 0, err
    audio = files.read(tmp_path / "a.wav", 16000)
    assert "a.wav: " in out and np.abs(audio).max() > 0 and len(audio) % 200 == 0


def test_what_cannot_be_asked_is_refused(tmp_path):
    folder = tiny.write_model("naturalspeech2", tmp_path / "ns2")
    message = commands.refused("ns2_jax.evaluate", f"--model={folder}", "--data=x", "--evals=window_mismatch")
    assert "needs a model with the program 'score'" in message
    folder = tiny.write_model("wavegrad2", tmp_path / "wg2")
    assert "needs --out=DIR" in commands.refused("ns2_jax.evaluate", f"--model={folder}", "--data=x", "--evals=schedule_search")
    assert "it does not go with" in commands.refused("ns2_jax.evaluate", f"--model={folder}", "--data=x", "--evals=score,window_mismatch".replace(
        "score", "word_error"))
    assert "has no codec" in commands.refused("ns2_jax.evaluate", f"--model={folder}", "--data=x", "--task=codec")
