"""Other codecs: the rates they are brought to, what comes back, and what is refused before anything is computed."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
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
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="needs the package torch: pip install transformers torch"):
        rivals.find(f"encodec:{tmp_path}").check()


HOP = 320  # samples a frame of the two below


class Tensor(np.ndarray):
    """As much of torch's as is asked for."""

    def new_tensor(self, data):
        return np.array(data, self.dtype).view(Tensor)

    def numpy(self):
        return np.asarray(self)


class Steps:
    """A codec in transformers' words whose mathematics are plain: each codebook of 16 codes says a sixteenth of what is left of a frame's mean."""

    def __init__(self, folder: str):
        self.config = types.SimpleNamespace(**json.loads((Path(folder) / "config.json").read_text()))

    @classmethod
    def from_pretrained(cls, folder: str, local_files_only: bool):
        assert local_files_only
        return cls(folder)

    def float(self):
        return self

    def eval(self):
        return self

    def requires_grad_(self, on: bool):
        assert on is False
        return self

    def parameters(self):
        yield np.zeros(1, np.float32).view(Tensor)

    def sizes(self) -> np.ndarray:
        return 2.0 / 16 ** np.arange(1, self.config.n_codebooks + 1)  # the mean is from -1 to 1

    def code(self, values: Tensor) -> Tensor:
        assert type(values) is Tensor and values.dtype == np.float32 and values.shape[:2] == (1, 1)
        left, codes = values[0, 0].reshape(-1, HOP).mean(1, dtype=np.float64) + 1, []
        for size in self.sizes():
            codes.append(np.clip(left // size, 0, 15))
            left = left - codes[-1] * size
        return np.stack(codes)[None].astype(np.int64).view(Tensor)

    def sound(self, codes: Tensor) -> Tensor:
        sizes = self.sizes()[: codes.shape[1]]
        level = np.einsum("q,qt->t", sizes, codes[0]) - 1 + sizes[-1] / 2
        return np.repeat(level, HOP)[None, None].astype(np.float32).view(Tensor)


class Dac(Steps):
    def encode(self, values):
        return types.SimpleNamespace(audio_codes=self.code(values))

    def decode(self, *, audio_codes):
        return types.SimpleNamespace(audio_values=self.sound(audio_codes))


class Encodec(Steps):
    def encode(self, values, *, bandwidth):
        assert bandwidth == max(self.config.target_bandwidths)
        return types.SimpleNamespace(audio_codes=self.code(values)[None], audio_scales=[None])

    def decode(self, codes, scales):
        assert scales == [None]
        return types.SimpleNamespace(audio_values=self.sound(codes[0]))


@pytest.mark.parametrize("kind", ["encodec", "dac"])
def test_what_a_local_folder_is_asked_and_what_is_made_of_its_answers(tmp_path, monkeypatch, kind):
    """Where transformers is not installed: the calls that it documents, answered by a codec that is three lines of numpy."""
    config = dict(model_type=kind, sampling_rate=24000, codebook_size=16, n_codebooks=4)
    config |= dict(hop_length=HOP) if kind == "dac" else dict(upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[0.3, 0.6, 1.2])
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(EncodecModel=Encodec, DacModel=Dac))
    monkeypatch.setattr(rivals.importlib.metadata, "version", lambda name: {"torch": "1", "transformers": "2"}[name])
    rival = rivals.Neural(kind, str(tmp_path))
    rival.check()
    known = {"encodec": (1, 2, 4), "dac": (1, 2, 3, 4)}[kind]
    assert rival.levels == pytest.approx({n: 0.3 * n for n in known})  # 75 frames/s of 4 bits
    made = rival.make(AUDIOS, 16000, (0.1, 0.65, 40.0, 50.0), progress=False)
    assert [m.condition for m in made] == [f"{kind}_{kbps}" for kbps in (0.3, 0.6, 1.2)]
    frames = [-(-len(files.resample(audio, 16000, 24000)) // HOP) for audio in AUDIOS]
    for m, n in zip(made, (1, 2, 4)):
        assert m.kbps == pytest.approx(sum(frames) * 4 * n / (sum(map(len, AUDIOS)) / 16000) / 1000)
        assert m.about["encoder"] == f"{kind} {rival.hash}, {n} codebooks, transformers 2, torch 1" and m.about["kbps"] == round(m.kbps, 3)
        for audio, got in zip(AUDIOS, m.audios):
            inside = files.resample(audio, 16000, 24000)
            means = np.pad(inside, (0, -len(inside) % HOP)).reshape(-1, HOP).mean(1)
            nearest = (np.floor((means + 1) / (2 / 16**n)) + 0.5) * 2 / 16**n - 1
            wanted = files.resample(np.repeat(nearest, HOP)[: len(inside)].astype(np.float32), 24000, 16000)
            assert got.dtype == np.float32 and got.shape == audio.shape
            np.testing.assert_allclose(got[: len(wanted)], wanted[: len(got)], atol=1e-4)
    monkeypatch.setattr(Steps, "sizes", lambda self: np.array([1 / 8, 1 / 128]))
    with pytest.raises(ValueError, match="codes with 2 codebooks, while its configuration speaks of 4"):
        rivals.Neural(kind, str(tmp_path)).check()
    (tmp_path / "config.json").write_text(json.dumps(config | {"audio_channels": 2}))
    other = rivals.Neural(kind, str(tmp_path))
    with pytest.raises(ValueError, match="with 2 channels, expected"):
        other.check()
    assert other.hash != rival.hash


def write_model(kind: str, folder: Path, **more) -> str:
    """A model of random weights at 24 kHz, 75 or 150 frames/s."""
    import torch
    import transformers

    torch.manual_seed(0)
    if kind == "encodec":
        config = transformers.EncodecConfig(
            num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=1024, upsampling_ratios=[8, 5, 4, 2], num_lstm_layers=1,
            target_bandwidths=[0.75, 1.5, 3.0], sampling_rate=24000, **more)
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
@pytest.mark.parametrize(("kind", "each", "levels"), [("encodec", 0.75, (1, 2, 4)), ("dac", 0.6, (1, 2, 3))])
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
