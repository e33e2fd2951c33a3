"""The statistics are those of the records, the datasheet says what is known and asks for the rest, and the plots show something."""

from __future__ import annotations

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from data_pipelines import run, shards, stats
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import phones

HERE = pathlib.Path(__file__).parent
RATE = 16000
SPOKEN = json.loads((HERE / "sentences.json").read_text())
CODEC = "0123456789ab"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> pathlib.Path:
    """Two speakers' manifest: three sentences each, one of them twice, one silent, one missing and one without a word; codes of two levels."""
    root = tmp_path_factory.mktemp("corpus")
    rows = ["id\tpath\tspeaker\ttext\tlang"]
    for speaker, gain in (("ann", 1.0), ("bob", 0.5)):
        for i in range(3):
            audio = soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0]
            soundfile.write(root / f"{speaker}{i}.wav", (audio if speaker == "ann" else audio[::-1]) * gain, RATE)
            rows.append(f"{speaker}{i}\t{speaker}{i}.wav\t{speaker}\t{SPOKEN[i]['text']}\ten")
    rows.append(f"copy\tann0.wav\tann\t{SPOKEN[0]['text']}\ten")
    soundfile.write(root / "silent.wav", np.zeros(RATE), RATE)
    rows += ["silent\tsilent.wav\tann\tOne.\ten", "lost\tlost.wav\tann\tTwo.\ten", "odd\tann1.wav\tann\t...\ten"]
    (root / "list.tsv").write_text("\n".join(rows) + "\n")
    made = importlib.import_module("configs.data.manifest").get_config("per_shard=4")
    settings = {**made.to_dict(), "root": str(root / "list.tsv"), "out": str(root / "out"), "license": "CC0 | ours"}
    for stage in ("ingest", "phonemise", "f0"):
        run.run(settings, [stage], run.local(0))
    dataset, rng = Dataset.open(root / "out"), np.random.default_rng(0)
    for split in dataset.splits:
        starts = dataset.starts(split)
        for k in range(len(starts) - 1):
            info = {"codec": CODEC, "hop": 200, "levels": 2}
            with shards.ShardWriter(root / "out", f"codes-{CODEC}", split, k, len(starts) - 1, info=info) as writer:
                for i in range(starts[k], starts[k + 1]):
                    samples = dataset.read(split, "meta", i)["num_samples"]
                    codes = np.stack([rng.integers(0, 64, samples // 200), rng.integers(0, 2, samples // 200) * 7], 1)
                    writer.write({"codes": codes.astype(np.uint16)}, samples)
    shards.write_manifest(root / "out")
    run.run(settings, ["quality", "index", "stats", "verify"], run.local(0))
    return root / "out"


def test_the_numbers_are_those_of_the_records(out):
    found, dataset = json.loads((out / "stats.json").read_text()), Dataset.open(out)
    assert found["fingerprint"] == dataset.fingerprint and found["license"] == "CC0 | ours" and found["made"]["corpus"] == "manifest"
    rows = [dataset.read(split, group, i) for split in dataset.splits for i in range(dataset.records(split)) for group in ("meta", "phones")]
    metas, said = rows[::2], rows[1::2]
    assert sum(about["utterances"] for about in found["splits"].values()) == 7 == len(metas)
    for split, about in found["splits"].items():
        assert about["speakers"] == len(dataset.speakers[split]) and about["languages"] == {"en": dataset.records(split)}
        assert about["hours"] == pytest.approx(dataset.manifest["splits"][split]["seconds"] / 3600, abs=1e-4)
        assert about["minutes_per_speaker"]["least"] <= about["minutes_per_speaker"]["median"] <= about["minutes_per_speaker"]["most"]
    lengths = [row["num_samples"] / RATE for row in metas]
    assert found["columns"]["seconds"]["50"] == pytest.approx(np.median(lengths), abs=1e-3)
    assert found["columns"]["rate_z"] == {"measured": 0}  # of seven
    counts = np.bincount(np.concatenate([row["phones"] for row in said]), minlength=len(phones.PHONES))
    assert found["phones"] == {phones.PHONES[i]: int(count) for i, count in enumerate(counts) if count}
    first, second = found["codes"][f"codes-{CODEC}"]
    assert first["used"] == 64 and 5.9 < first["bits"] <= 6 and second == {"used": 2, "bits": pytest.approx(1, abs=0.01)}
    assert found["copies"] == {"near": 0, "exact": 1} and found["shared_keys"] == 2
    assert found["cuts"][0]["cut"] == {"duplicate": [None, 0]} and found["cuts"][0]["utterances"] == 6
    assert {reason: about["count"] for reason, about in found["rejects"]["ingest"].items()} == {"silent": 1, "missing": 1, "unpronounceable": 1}
    assert found["speakers_in_several_splits"] == 0


def test_the_datasheet(out):
    text = (out / "DATASHEET.md").read_text()
    parts = text.split("\n## ")
    assert [part.split("\n")[0] for part in parts[1:]] == [
        "Motivation", "Composition", "Collection process", "Preprocessing, cleaning, labelling", "Uses", "Distribution", "Maintenance"]
    assert all("*Question to the owner: " in part for name, part in zip(range(9), parts) if name not in (0, 6))
    assert "Licence of the corpus: CC0 | ours." in parts[6] and "Duplicates: 1 exact, 0 near" in parts[2]
    assert "whose fingerprints share 2 of 32 keys." in parts[2]
    assert "`silent` |" not in text and "| ingest | silent | 1 | " in parts[4] and "silent.wav" in parts[4]
    assert '"corpus": "manifest"' in parts[3] and f"| `codes-{CODEC}` | codec {CODEC}, hop 200, levels 2 |" in parts[4]
    for line in text.splitlines():  # every row of a table as wide as its head
        assert not line.startswith("|") or line.endswith("|")
    for name in ("length", "loudness", "f0", "phones", "codes"):
        assert f"![{name}](plots/{name}.png)" in text
        pixels = np.asarray(Image.open(out / "plots" / f"{name}.png").convert("RGB")).astype(int)
        assert pixels.shape[0] > 200 and ((pixels.max(-1) - pixels.min(-1)) > 60).sum() > 200  # coloured lines or bars


def test_again_is_the_same_and_keeps_the_licence(out):
    before = {path: path.read_bytes() for path in [*out.glob("plots/*.png"), out / "DATASHEET.md", out / "stats.json"]}
    command = [sys.executable, "-m", "data_pipelines.stats", f"--data={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_without_quality_columns(tmp_path):
    with shards.ShardWriter(tmp_path, "meta", "train", 0, 1) as meta, shards.ShardWriter(tmp_path, "audio", "train", 0, 1) as audio:
        words = dict(utt_id="u", speaker="s", source="x", voice="s", text="t", text_norm="t")
        meta.write(words, 400)
        audio.write({"audio": np.ones(400, np.int16)}, 400)
    shards.write_manifest(tmp_path)
    with pytest.raises(ValueError, match=f"make them with python -m data_pipelines.quality --data={tmp_path}"):
        stats.write(tmp_path)
