"""Systems of codec tokens from end to end: their commands learn four recordings by heart, and inference says them again.

What training and synthesis must agree on is in between: the cut of the prompt, positions, the end, sums of levels, durations, pitch.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from commands import run

from data_pipelines import encode, shards
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.data.dataset import Dataset
from ns2_jax.inference import aligning
from ns2_jax.runtime import state
from ns2_jax.text import front, phones

ROOT = pathlib.Path(__file__).parent.parent
TEXTS, VOICES = ("Hello.", "Yes."), {"ann": 1.0, "bob": 1.4}
PITCH = {"ann": 157.0, "bob": 234.5}  # Hz, in the middle of SoundStorm's bins: what is predicted may be off by 4 %
FRAMES = 5  # of every phone


def hum(text: str, voice: float) -> np.ndarray:
    """Every phone is a rising chord of its own, every voice moves all of them; at the level at which prompts are heard."""
    at = np.arange(FRAMES * 200) / 16000
    at = at + 8 * at**2  # no two frames of a phone are alike
    chord = lambda i: sum(np.sin(2 * np.pi * voice * f * at) for f in (120 + 31 * (i * 7 % 23), 900 + 97 * (i * 5 % 29)))
    return files.match_loudness(np.concatenate([chord(i) for i in phones.ids(front.phonemise(text))]).astype(np.float32), 16000)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """`codec`, an export, and `data`: both texts by both voices, with times, pitch and the codec's codes."""
    folder = tmp_path_factory.mktemp("heart")
    codec, data = tiny.write_model("codec", folder / "codec"), folder / "data"
    rows = []
    for speaker, voice in VOICES.items():
        for text in TEXTS:
            audio, ids = hum(text, voice), phones.ids(front.phonemise(text))
            meta = {"utt_id": f"{speaker}-{text}", "speaker": speaker, "source": "hum", "voice": speaker, "text": text, "text_norm": text}
            rows.append((len(audio), {
                "meta": meta, "audio": {"audio": np.rint(audio * 32767).astype(np.int16)},
                "align": {"phones": ids.astype(np.uint8), "ends": (FRAMES * 200 * np.arange(1, len(ids) + 1)).astype(np.int32)},
                "f0": {"f0": np.full(len(audio) // 160, PITCH[speaker], np.float16)}}))
    for group in ("meta", "audio", "align", "f0"):
        with shards.ShardWriter(data, group, "train", 0, 1, info={"period": 160} if group == "f0" else {}) as writer:
            for samples, values in rows:
                writer.write(values[group], samples)
    shards.write_manifest(data, phones=phones.inventory_hash())
    encode.encode(data, inference.load(codec))
    return folder


def trained(place: pathlib.Path, name: str, *words: str) -> inference.Model:
    """The run of `python -m ns2_jax.train` on `data`; all rows are in every batch."""
    init = f'--config.init_from={{"rest/codec": "{place}/codec"}}'
    command = [sys.executable, "-m", "ns2_jax.train", f"--config=configs/{name}.py:smoke", f"--config.data.path={place}/data", init,
               f"--workdir={place}/{name}", "--config.data.buckets=[{'b':4,'t':64,'p':12,'u':32}]", "--config.optim.peak=4e-3",
               "--config.train.log_every=50", "--config.train.save_every=10000", *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NS2_JAX_CACHE": "off"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return inference.load(place / name)


def watched(model: inference.Model, monkeypatch) -> list[np.ndarray]:
    """The codes of everything that program `sample` makes from now on, without padding."""
    made, plain = [], model.run

    def run(name, *args, **options):
        outs = plain(name, *args, **options)
        made.extend(out["codes"][: out["frames"]] for out in outs if name == "sample")
        return outs

    monkeypatch.setattr(model, "run", run)
    return made


def codes_of(place: pathlib.Path, model: inference.Model, i: int) -> np.ndarray:
    """Of utterance `i`, the levels that are modelled."""
    dataset = Dataset.open(place / "data")
    group = next(group for group in dataset.groups if group.startswith("codes-"))
    return dataset.read("train", group, i)["codes"][:, : model.system.sizes["q"]].astype(int)


def same(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of codes that are right, level by level the worst; 0 where the length is another."""
    return float((found == wanted).mean(0).min()) if found.shape == wanted.shape else 0.0


@pytest.mark.slow
def test_valle_says_what_it_learned_in_the_voice_of_the_prompt(place, monkeypatch):
    """Each recording after the other one of its speaker, to its end and not beyond."""
    model = trained(place, "valle", "--config.model.dropout=0.0", "--config.train.steps=400")
    made = watched(model, monkeypatch)
    heard = [(hum(text, voice), 16000) for voice in VOICES.values() for text in TEXTS]
    requests = [(TEXTS[i % 2], inference.Said(heard[i ^ 1], TEXTS[1 - i % 2])) for i in range(4)]
    speeches = model.speak_batch(requests, top_p=0.0, repetition_window=0)
    scores = [same(found, codes_of(place, model, i)) for i, found in enumerate(made)]
    assert len(made) == 4 and min(scores) > 0.9, scores
    for speech in speeches:  # its guided head knows when each phone is said
        np.testing.assert_allclose(np.diff(speech.ends, prepend=0) / 200, FRAMES, atol=1)


@pytest.mark.slow
def test_soundstorm_goes_on_as_it_learned_in_the_voice_of_the_prompt(place, monkeypatch):
    """After the first phones of each recording, whose words it isn't told, with lengths and pitch of its own."""
    model = trained(place, "soundstorm", "--config.model.encoder_dropout=0.0", "--config.model.decoder.dropout=0.0",
                    "--config.model.duration.dropout=0.0", "--config.model.pitch.dropout=0.0", "--config.model.decoder.width=64",
                    "--config.optim.schedule=cosine", "--config.train.steps=400")
    made = watched(model, monkeypatch)

    def align(aligner, audio, ids):
        edges = len(audio) // 200 * np.arange(len(ids) + 1) // len(ids)
        return aligning.Aligned(np.diff(edges), edges[1:] * 200, 1.0)

    monkeypatch.setattr(aligning, "align", align)
    model.aligner = model  # any: it is asked for its rate alone
    recordings = [((hum(text, voice), 16000), text) for voice in VOICES.values() for text in TEXTS]
    seconds = (2 * FRAMES + 0.5) / 80
    inference.continue_all(model, recordings, seconds=seconds, temperature=0.0, choice=0.0)
    scores = [same(found, codes_of(place, model, i)[2 * FRAMES :]) for i, found in enumerate(made)]
    assert len(made) == 4 and min(scores) > 0.9, scores


@pytest.mark.parametrize("name", ["grad_stylespeech", pytest.param("naturalspeech2", marks=pytest.mark.slow)])
def test_one_command_shape_adapts_to_a_voice(place, tmp_path, name):
    """An export is fitted to one recording of `ann`, every second batch of the old corpus: what the pattern keeps from training is bit for
    bit what the export has."""
    code, _, err = run("data_pipelines.voice", f"--data={place}/data", "--split=train", "--speaker=ann", "--train=1", f"--out={tmp_path}/ann")
    assert code == 0, err
    codec, vocoder = f"{place}/codec", tiny.write_model("vocoder", tmp_path / "vocoder")
    part, given = ("codec", codec) if name == "naturalspeech2" else ("vocoder", vocoder)
    start = tiny.write_model(name, tmp_path / "start")
    words = [f"--config=configs/{name}.py:smoke,adapt,preserve", f"--config.data.path={tmp_path}/ann,{place}/data", f"--workdir={tmp_path}/run",
             f'--config.init_from={{"params": "{start}", "rest/{part}": "{given}"}}', "--config.train.steps=2",
             "--config.data.buckets=[{'b':4,'t':64,'p':12,'u':32}]"]
    done = subprocess.run([sys.executable, "-m", "ns2_jax.train", *words], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "JAX_PLATFORMS": "cpu", "NS2_JAX_CACHE": "off"})
    assert done.returncode == 0, done.stderr
    run_of, begun = inference.load(tmp_path / "run"), inference.load(start)
    (frozen,) = run_of.config["train"]["frozen"]
    after, before = (state.flatten(jax.device_get(model.params), "params/") for model in (run_of, begun))
    moved = {path for path in after if np.any(after[path] != before[path])}
    kept = {path for path in after if re.fullmatch(frozen, path)}
    assert kept and moved and not kept & moved and len(moved) > 0.9 * len(set(after) - kept)
    assert run_of.config["data"]["weights"] == [[0, [1, 1]]]
