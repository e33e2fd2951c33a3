"""Whole corpora, stage by stage: what is written, what is left alone, what is made again, and what is refused."""

from __future__ import annotations

import importlib
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from data_pipelines import align, corpora, ingest, run, shards, transcripts, verify
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import front, phones, units

HERE = pathlib.Path(__file__).parent
RATE = 16000
SPOKEN = json.loads((HERE / "sentences.json").read_text())


def config(layout: str, root, out, **overrides) -> dict:
    made = importlib.import_module(f"configs.data.{layout}").get_config(",".join(f"{key}={value}" for key, value in overrides.items()))
    return {**made.to_dict(), "root": str(root), "out": str(out)}


def stages(settings: dict, names: str) -> None:
    run.run(settings, names.split(","), run.local(0))


def digests(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def hum(seconds: float, rate: int = RATE, pitch: float = 150.0) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * pitch * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t)) / 1.3).astype(np.float32)


@pytest.fixture
def lj(tmp_path) -> pathlib.Path:
    """LJSpeech-1.1 in little: three spoken sentences, one of them under the wrong text too, and eight hums at 22,050 Hz."""
    root = tmp_path / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    lines = []
    for i, text in enumerate([*(row["text"] for row in SPOKEN), SPOKEN[2]["text"]]):
        audio, _ = soundfile.read(HERE / f"sentence{i % 3}.flac", dtype="float32")
        soundfile.write(root / "wavs" / f"LJ001-{i:04d}.wav", audio, RATE)
        lines.append(f"LJ001-{i:04d}|{text}|{text}")
    for i in range(4, 12):
        soundfile.write(root / "wavs" / f"LJ001-{i:04d}.wav", hum(1 + i / 20, 22050), 22050)
        lines.append(f"LJ001-{i:04d}|It cost ${i}.|It cost {i} dollars.")
    lines.append("LJ001-0012|No recording.|No recording.")
    (root / "metadata.csv").write_text("\n".join(lines), encoding="utf8")
    return root


def test_ljspeech_through_all_stages(lj, tmp_path):
    out = tmp_path / "out"
    settings = config("ljspeech", lj, out, per_shard=5, valid=200, test=100, size=40)
    stages(settings, "ingest,normalise,phonemise,tokenizer,align,f0,index,verify")
    dataset = Dataset.open(out)
    assert dataset.groups == ("align", "audio", "f0", "meta", "phones", "text")
    assert sum(dataset.records(split) for split in dataset.splits) == 12 and dataset.manifest["splits"]["train"]["shards"] == 2
    for split in dataset.splits:
        for i in range(dataset.records(split)):
            meta, text, spoken, ends, audio, f0 = (dataset.read(split, g, i) for g in ("meta", "text", "phones", "align", "audio", "f0"))
            place = ingest.bucket(meta["utt_id"])
            assert split == ("valid" if place < 200 else "test" if place < 300 else "train")
            assert meta["speaker"] == "LJ" and meta["lang"] == "en" and text["text_norm"] == front.normalise(meta["text"])
            assert phones.names(spoken["phones"]) == front.phonemise(meta["text"])
            n = int(meta["utt_id"][-4:])
            if n < 3:  # the aligner found what it finds when asked directly
                direct = align.align(audio["audio"].astype(np.float32) / 32768, RATE, meta["text"])
                assert ends["phones"].tolist() == direct[0].tolist() and np.abs(ends["ends"] - direct[1]).mean() < RATE // 100
            else:
                assert len(ends["phones"]) == len(ends["ends"]) == 0
            if n > 3:
                assert abs(audio["num_samples"] - RATE * (20 + n) // 20) <= 1
                np.testing.assert_allclose(np.median(f0["f0"][f0["f0"] > 0]), 150, rtol=0.01)
    assert dataset.manifest["groups"]["align"]["rejects"] == {"align_failed": 9}
    assert len([line for path in out.glob("rejects/align/*.jsonl") for line in path.read_text().splitlines()]) == 9
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert [(row["item"], row["reason"]) for row in rejects] == [("LJ001-0012", "no_audio")]
    model = units.load(out / "tokenizer" / "unigram-40.model")
    assert model.size == 40 and model.decode(model.encode("it cost four dollars.")) == "it cost four dollars."
    assert verify.collect(str(out)) == dict.fromkeys(dataset.groups, 12)


def test_a_group_is_made_again_alone(lj, tmp_path):
    """The same command changes nothing; a lexicon remakes phones and text; a lost, cut or foreign shard is mended byte for byte."""
    out = tmp_path / "out"
    settings = config("ljspeech", lj, out, per_shard=5)
    names = "ingest,normalise,phonemise,f0,index"
    stages(settings, names)
    before, times = digests(out), {path: path.stat().st_mtime_ns for path in out.glob("*/*.tfrecord")}
    stages(settings, names)
    assert digests(out) == before and {path: path.stat().st_mtime_ns for path in out.glob("*/*.tfrecord")} == times
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("dollars  B AH1 K S\n")
    stages({**settings, "lexicon": str(lexicon)}, names)
    after = digests(out)
    changed = {name for name in before if after[name] != before[name]}
    assert {name.split("/")[0] for name in changed if name.endswith(".tfrecord")} == {"phones"}
    assert {name.split("/")[0] for name in changed} == {"phones", "text", "manifest.json"}  # the text's markers say which lexicon
    stages(settings, names)
    assert digests(out) == before
    train = records.shard_path(out, "phones", "train", 0, 3)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tfrecord") if path != train}
    for damage in (train.unlink, lambda: train.write_bytes(before["phones/" + train.name][:-1]), records.marker_path(train).unlink):
        damage()
        stages(settings, names)
        assert digests(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.tfrecord") if path != train} == times


def test_processes_make_the_same_bytes(lj, tmp_path):
    names = ["ingest", "normalise", "phonemise", "align", "index", "verify"]
    for workers in (0, 2):
        run.run(config("ljspeech", lj, tmp_path / f"{workers}" / "out", per_shard=5), names, run.local(workers))
    assert digests(tmp_path / "0") == digests(tmp_path / "2")


def test_the_command(lj, tmp_path):
    command = [sys.executable, "-m", "data_pipelines.run", "--config", "configs/data/ljspeech.py:per_shard=5", f"--config.root={lj}",
               "--workers", "1"]  # fmt: skip
    go = lambda *more: subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, cwd=HERE.parents[1])
    done = go(f"--config.out={tmp_path / 'out'}", "--stages", "ingest,phonemise,f0,index,verify")
    assert done.returncode == 0, done.stderr
    assert "13 in, 12 out; rejects: {'no_audio': 1}" in done.stderr and "f0 12" in done.stderr
    for wrong, words in (
        ([f"--config.out={tmp_path / 'out'}", "--stages", "sing"], "--stages has 'sing'"),
        (["--stages=index"], "config.out is empty"),
        ([f"--config.out={tmp_path / 'out'}", "--config.rate=8000", "--stages=ingest"], "was made from other recordings"),
        ([f"--config.out={tmp_path / 'new'}", "--stages=index"], "no finished shard"),
        ([f"--config.out={tmp_path / 'new'}", "--stages=f0", "--", "--runner=x"], "are for --runner=beam"),
    ):
        done = go(*wrong)
        assert done.returncode == 2 and words in done.stderr.strip().splitlines()[-1], done.stderr
