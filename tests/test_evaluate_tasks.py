"""Conversion, enhancement and singing scored by the command: who becomes whom, what is compared with what, and what is refused."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import soundfile
import tiny
from commands import refused, run

from data_pipelines import features, remade, rooms, shards, singing
from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import intonation, scores, voice_change
from ns2_jax.evaluate import changed, material
from ns2_jax.text import front, phones

HERE = pathlib.Path(__file__).parent / "data_pipelines"
NAME = "ns2_jax.evaluate"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """Two sentences by two speakers, of whom one is the other faster, with times and pitch."""
    root, rows = tmp_path_factory.mktemp("tasks") / "in", []
    for i, said in enumerate(json.loads((HERE / "sentences.json").read_text())[:2]):
        audio = soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0]
        ends = np.array([end * 16000 for _, end in said["segments"]])
        for speaker, faster in (("ann", 1.0), ("bob", 1.15)):
            pcm = np.interp(np.arange(0, len(audio), faster), np.arange(len(audio)), audio)
            meta = {"utt_id": f"{speaker}-{i}", "speaker": speaker, "source": "flite", "voice": speaker, "text": said["text"], "text_norm": said["text"]}
            mine = np.minimum(np.rint(ends / faster).astype(np.int32), len(pcm))
            mine[-1] = len(pcm)
            align = {"phones": phones.ids(front.phonemise(said["text"])).astype(np.uint8), "ends": mine}
            rows.append((len(pcm), {"meta": meta, "audio": {"audio": (pcm * 30000).astype(np.int16)}, "align": align}))
    for group in ("meta", "audio", "align"):
        with shards.ShardWriter(root, group, "test", 0, 1) as writer:
            for samples, values in rows:
                writer.write(values[group], samples)
    shards.write_manifest(root, phones=phones.inventory_hash())
    features.add_f0(root)
    return root


@pytest.fixture(scope="module")
def noisy(corpus):
    """The same in rooms and noise of one environment a speaker, so that each has a prompt."""
    kept, rooms.ENVIRONMENTS = rooms.ENVIRONMENTS, 1
    remade.build(corpus, corpus.parent / "noisy", rooms.Rooms((10, 10), (0.3, 0.3), 1, 1), 10)
    rooms.ENVIRONMENTS = kept
    return corpus.parent / "noisy"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Its bucket holds a sentence."""
    folder = pathlib.Path(tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("m")))
    config = json.loads((folder / "config.json").read_text())
    config["data"]["buckets"] = [{"b": 1, "t": 512, "p": 96, "u": 32}]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def scored(out) -> dict:
    return {line["name"]: line for line in scores.read(out)}


def test_conversion(model, corpus, tmp_path):
    code, out, err = run(NAME, "--task=convert", f"--model={model}", f"--data={corpus}", f"--out={tmp_path}/o", "--steps=1", "--limit=2",
                         "--evals=speaker_similarity,voice_change")
    assert code == 0, err
    lines, items = scored(tmp_path / "o"), [json.loads(line) for line in (tmp_path / "o" / "items.jsonl").read_text().splitlines()]
    assert [(item["source_speaker"], item["speaker"], item["prompt"][:3]) for item in items] == [("ann", "bob", "bob"), ("bob", "ann", "ann")]
    assert lines["secs_source_recording"]["value"] == pytest.approx(1, abs=1e-5) and lines["secs_turned_recording"]["value"] == 0
    assert lines["secs_own_recording"]["value"] == pytest.approx(lines["secs_target_recording"]["value"])
    about = lines["secs_target_synthesis"]["fingerprint"]
    assert about["task"] == "convert" and about["sampler"]["steps"] == 1 and len(about["aligner"]) == 12 and about["missing"] == 0
    item = items[0]["voice_change"]["synthesis"]
    assert -1 <= item["target"] <= 1 and item["target"] != item["source"]


def test_enhancement_is_held_to_the_clean_recording(model, corpus, noisy, tmp_path):
    code, out, err = run(NAME, "--task=enhance", f"--model={model}", f"--data={noisy}", f"--clean={corpus}", f"--out={tmp_path}/o", "--steps=1",
                         "--limit=2", "--evals=codec_quality", "--save_audio")
    assert code == 0, err
    lines = scored(tmp_path / "o")
    assert {f"pesq_{condition}" for condition in ("noisy", "codec", "synthesis")} <= set(lines) and "pesq_recording" not in lines
    assert 1.0 <= lines["pesq_noisy"]["value"] < 2.5 and 0 < lines["stoi_noisy"]["value"] < 0.95
    assert lines["pesq_noisy"]["fingerprint"]["clean"] == Dataset.open(corpus).fingerprint and "model" not in lines["pesq_noisy"]["fingerprint"]
    found = material.from_dataset(Dataset.open(noisy), "test", 0, 0)
    clean = changed.cleaned(found, str(corpus))
    for item, recording, source, prompt in zip(clean.items, clean.recordings, clean.sources, clean.prompts, strict=True):
        assert np.corrcoef(recording, source)[0, 1] > 0.5 and not np.allclose(recording, source, atol=1e-3)
        assert item["prompt"].split("-")[0] == item["id"].split("-")[0] and len(prompt) > 16000
    code, out, err = run(NAME, "--task=enhance", f"--model={model}", f"--data={noisy}", f"--clean={corpus}", f"--out={tmp_path}/w", "--steps=1",
                         "--limit=2", "--evals=codec_quality", "--wiener")
    assert code == 0, err
    filtered = scored(tmp_path / "w")
    assert filtered["stoi_synthesis"]["fingerprint"]["sampler"]["wiener"] is True and filtered["stoi_noisy"] == lines["stoi_noisy"]
    assert filtered["stoi_synthesis"]["value"] > lines["stoi_synthesis"]["value"]  # the model knows nothing yet, the source is speech
    with pytest.raises(ValueError, match="has no utterance"):
        changed.cleaned(found, str(noisy))


def test_singing_follows_the_score(model, corpus, tmp_path):
    remade.build(corpus, tmp_path / "sung", singing.Singing(), 10)
    code, out, err = run(NAME, "--task=sing", f"--model={model}", f"--data={tmp_path}/sung", f"--out={tmp_path}/o", "--steps=1", "--limit=2",
                         "--evals=intonation")
    assert code == 0, err
    lines = scored(tmp_path / "o")
    assert lines["notes_hit_recording"]["value"] > 85 and lines["notes_voiced_recording"]["value"] > 85
    assert lines["notes_voiced_synthesis"]["value"] >= 0 and lines["notes_voiced_synthesis"]["fingerprint"]["task"] == "sing"
    found = material.from_dataset(Dataset.open(tmp_path / "sung"), "test", 0, 0)
    for score, item, align in zip(changed.scores(found), found.items, found.aligned("index"), strict=True):
        assert list(score.phones) == phones.names(align["phones"]) and sum(score.seconds) == pytest.approx(align["ends"][-1] / 16000)
        f0 = Dataset.open(tmp_path / "sung").read("test", "f0", item["index"])["f0"]
        assert sum(len(hz) for hz in score.hz) == pytest.approx(len(f0), abs=len(score.hz))


def test_intonation_by_hand():
    """A tone of 200 Hz against scores of 200, 204 (34 cents) and 210 Hz (84 cents), and against a rest."""
    tone = np.sin(2 * np.pi * 200 * np.arange(32000) / 16000).astype(np.float32)
    targets = [np.full(200, hz, float) for hz in (200, 204, 210)] + [np.zeros(200), np.full(200, 200.0)]
    rows = intonation.measure(targets, [tone, tone, tone, tone, None], 16000)
    assert [row["hit"] == row["both"] for row in rows] == [True, True, False, True, True] and rows[2]["hit"] == 0 and rows[3]["both"] == 0
    assert rows[1]["cents"] == pytest.approx(1200 * np.log2(204 / 200), abs=1) and rows[4]["missing"] and rows[0]["both"] > 180
    lines = {line["name"]: line["value"] for line in intonation.summarise("x", rows)}
    assert lines["notes_hit_x"] == pytest.approx(100 * 2 / 3, abs=1) and lines["notes_voiced_x"] == pytest.approx(75, abs=5)


def test_voice_change_by_hand(corpus):
    found = material.from_dataset(Dataset.open(corpus), "test", 0, 0)
    one, two = found.recordings[0], found.recordings[1]
    rows = voice_change.measure([one, one, one], [two, two, two], [one, two, None])
    assert rows[0]["target"] > rows[0]["source"] and rows[1]["target"] < rows[1]["source"] and rows[2] == {"target": 0.0, "source": 0.0, "missing": True}
    lines = {line["name"]: line["value"] for line in voice_change.summarise("x", rows)}
    assert lines["secs_turned_x"] == pytest.approx(100 / 3) and lines["secs_target_x"] == pytest.approx((1 + rows[1]["target"]) / 3, abs=1e-5)


def test_refused(model, corpus, noisy, tmp_path):
    there = [f"--model={model}", f"--data={corpus}"]
    assert "--task=enhance needs --clean=DIR" in refused(NAME, "--task=enhance", *there)
    assert "--clean goes with --task=enhance" in refused(NAME, "--task=convert", f"--clean={corpus}", *there)
    assert "--clean goes with --task=enhance" in refused(NAME, f"--clean={corpus}", *there)
    assert "--wiener goes with --task=enhance" in refused(NAME, "--task=convert", "--wiener", *there)
    assert "--option=wiener: it is a flag of its own" in refused(NAME, "--task=convert", "--option=wiener=True", *there)
    assert "needs --task=sing" in refused(NAME, "--evals=intonation", *there)
    assert "needs --task=convert" in refused(NAME, "--evals=voice_change", *there)
    codec = tiny.write_model("codec", tmp_path / "codec")
    assert "does not speak" in refused(NAME, "--task=sing", f"--model={codec}", f"--data={corpus}")
