"""Other codecs: the rates they are brought to, what comes back, and what is refused before anything is computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ns2_jax.audio import files, opus
from ns2_jax.evals import rivals

SPEECH = files.read(Path(__file__).with_name("sentence.flac"), 16000)
AUDIOS = [SPEECH, SPEECH[8000:50000], SPEECH[30000:]]
torch = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("torch", "transformers"))), reason="needs transformers and torch")


def test_opus_is_brought_to_the_rates_over_all_items():
    made = rivals.find("opus").make(AUDIOS, 16000, (0.8, 3.2, 12.8, 9.6), progress=False)
    assert [m.condition for m in made] == ["opus_9.6", "opus_12.8"]  # it does not go under 6
    for m in made:
        aim = float(m.about["encoder"].split("aiming at ")[1].split()[0])
        coded = [opus.encode(audio, 16000, aim) for audio in AUDIOS]
        seconds = sum(map(len, AUDIOS)) / 16000
        assert m.kbps == pytest.approx(float(m.condition.split("_")[1]), rel=rivals.ENOUGH)
        assert m.kbps == pytest.approx(8 * sum(map(opus.payload, coded)) / seconds / 1000, rel=2e-3)  # the aim is told to the bit
        assert m.about["kbps_with_ogg"] == pytest.approx(8 * sum(map(len, coded)) / seconds / 1000, rel=2e-3)
        assert [len(a) for a in m.audios] == [len(a) for a in AUDIOS] and m.about["encoder"].startswith("libopus ")
        assert all(np.square(a - b).sum() < 0.2 * np.square(a).sum() for a, b in zip(AUDIOS, m.audios))


def test_opus_at_its_lowest_and_far_over_it():
    lowest = 8 * sum(opus.payload(opus.encode(a, 16000, opus.LOWEST)) for a in AUDIOS) / sum(map(len, AUDIOS)) * 16
    assert [m.condition for m in rivals.find("opus").make(AUDIOS, 16000, (lowest * 0.9, lowest * 0.98), progress=False)] == [
        rivals._label("opus", lowest * 0.98)]
    assert not rivals.find("opus").make(AUDIOS[:1], 16000, (900.0,), progress=False)


def test_hosts_agree_on_the_rate_of_all_items():
    """The search sees all hosts' rows: twice the same items are the same search, noise elsewhere is another."""
    opus_ = rivals.find("opus")
    one, twice = (opus_.make(AUDIOS, 16000, (12.8,), gather, progress=False)[0] for gather in (list, lambda rows: rows + rows))
    assert one.kbps == pytest.approx(twice.kbps) and one.about["encoder"] == twice.about["encoder"]
    other = opus_.make(AUDIOS, 16000, (12.8,), lambda rows: rows + [[2 * bits, seconds] for bits, seconds in rows], progress=False)[0]
    assert other.about["encoder"] != one.about["encoder"] and other.kbps == pytest.approx(12.8, rel=rivals.ENOUGH)


@pytest.mark.parametrize("spec", ["", "mp3", "opus:", "opus:x", "encodec", "encodec: ", "DAC:x"])
def test_what_is_no_rival_is_refused(spec):
    with pytest.raises(ValueError, match="is not opus, encodec:DIR or dac:DIR"):
        rivals.find(spec)


def test_missing_folders_and_packages_are_said(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="--rivals=dac:nowhere: there is no nowhere/config.json"):
        rivals.find("dac:nowhere").check()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "encodec"}))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match="needs the package torch: pip install transformers torch"):
        rivals.find(f"encodec:{tmp_path}").check()


def write_model(kind: str, folder: Path, **more) -> str:
    """A model of random weights at 24 kHz, 75 or 150 frames/s."""
    import torch
    import transformers

    torch.manual_seed(0)
    if kind == "encodec":
        config = transformers.EncodecConfig(
            num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=16, upsampling_ratios=[8, 5, 4, 2], num_lstm_layers=1,
            target_bandwidths=[0.3, 0.6, 1.2], sampling_rate=24000, **more)
        model = transformers.EncodecModel(config)
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(torch.randn_like(layer.codebook.embed))
    else:
        model = transformers.DacModel(transformers.DacConfig(
            encoder_hidden_size=4, decoder_hidden_size=64, downsampling_ratios=[2, 4, 5, 4], n_codebooks=3, codebook_size=16, codebook_dim=4,
            sampling_rate=24000, **more))
    model.save_pretrained(folder)
    return f"{kind}:{folder}"


@torch
@pytest.mark.parametrize(("kind", "each", "levels"), [("encodec", 0.3, (1, 2, 4)), ("dac", 0.6, (1, 2, 3))])
def test_neural_codecs_at_the_nearest_of_their_rates(tmp_path, kind, each, levels):
    rival = rivals.find(write_model(kind, tmp_path))
    rival.check()
    assert rival.levels == pytest.approx({n: n * each for n in levels})
    made = rival.make(AUDIOS, 16000, (0.1, levels[1] * each * 1.1, 40.0, 50.0), progress=False)
    assert [m.condition for m in made] == [f"{kind}_{n * each:g}" for n in levels]
    for m, n in zip(made, levels):
        assert [len(a) for a in m.audios] == [len(a) for a in AUDIOS] and all(np.isfinite(a).all() for a in m.audios)
        assert n * each <= m.kbps < 1.02 * n * each and m.about["kbps"] == pytest.approx(m.kbps, abs=1e-3)  # the last frame is whole
        assert f"{n} codebooks, transformers" in m.about["encoder"]
    assert not np.allclose(made[0].audios[0], made[2].audios[0])


@torch
def test_a_model_that_does_not_fit_is_refused(tmp_path):
    write_model("encodec", tmp_path / "two", audio_channels=2)
    with pytest.raises(ValueError, match="with 2 channels, expected 'encodec' with one"):
        rivals.find(f"encodec:{tmp_path}/two").check()
    (tmp_path / "two" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't read it"):
        rivals.Neural("encodec", str(tmp_path / "two")).check()
