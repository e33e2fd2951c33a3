"""Quality columns: each measured against what was put into the signal; the stage is repeatable and follows its inputs."""

from __future__ import annotations

import importlib
import json
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from data_pipelines import duplicates, features, ingest, quality, run, shards, verify
from ns2_jax.data import quality as columns
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import phones

HERE = pathlib.Path(__file__).parent
RATE = 16000
SPOKEN = json.loads((HERE / "sentences.json").read_text())


def speech(i: int) -> np.ndarray:
    return soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0]


# One utterance -------------------------------------------------------------------------------------------------------


def test_the_table_of_wada_is_its_model():
    """Gamma speech in Gaussian noise, drawn: the estimate is the ratio that was put in."""
    rng = np.random.default_rng(0)
    drawn = rng.gamma(0.4, size=1_000_000) * rng.choice([-1, 1], 1_000_000)
    for db in (-5, 0, 10, 20, 35):
        noisy = drawn + rng.normal(0, np.sqrt(0.4 * 1.4 / 10 ** (db / 10)), len(drawn))
        assert quality.snr_db(noisy) == pytest.approx(db, abs=0.5)


def test_noise_is_heard():
    """Both fall with every 10 dB of noise; the range of levels by about as much, 5 dB higher than the mean of the speech over the noise."""
    rng = np.random.default_rng(0)
    for i in range(3):
        audio = speech(i)
        noisy = [audio + rng.normal(0, np.std(audio) * 10 ** (-db / 20), len(audio)) for db in (30, 20, 10, 0)]
        estimates = [quality.snr_db(x) for x in noisy]
        assert (np.diff(estimates) < -4).all() and estimates[0] < 33
        np.testing.assert_allclose([quality.range_db(x, RATE) for x in noisy], np.array([30, 20, 10, 0]) + 5.5, atol=3)
    assert quality.range_db(np.ones(100), RATE) == 0


def test_clipping():
    for i in range(3):
        audio = speech(i) / np.abs(speech(i)).max()
        assert quality.clipped(audio) < 1e-4
        for most in (0.5, 0.25):
            share = np.mean(np.abs(audio) >= most)
            cut = np.clip(audio, -most, most)
            assert 0.4 * share < quality.clipped(0.3 * cut) <= 1.05 * share  # at any gain; flat tops of under four are not seen
    assert quality.clipped(np.zeros(100)) == 0


def test_bandwidth():
    noise = np.random.default_rng(0).normal(size=3 * RATE).astype(np.float32)
    assert quality.bandwidth_hz(noise, RATE) == 8000
    for rate in (8000, 11025):
        assert quality.bandwidth_hz(soxr.resample(soxr.resample(noise, RATE, rate), rate, RATE), RATE) == pytest.approx(rate / 2, rel=0.03)


def test_silences():
    tone = 0.3 * np.sin(np.arange(RATE) * 0.3)
    audio = np.concatenate([np.zeros(3200), tone, np.zeros(4800), tone, 1e-4 * tone[:8000]])
    start, end, pauses = quality.silences(audio, RATE)
    assert (start, end) == pytest.approx((0.2, 0.5), abs=0.021) and pauses == pytest.approx(0.3 / 2.3, abs=0.01)


def test_rates_and_pitch():
    audio = np.rint(8000 * np.concatenate([np.zeros(1600), np.sin(np.arange(2 * RATE) * 0.3), np.zeros(1600)])).astype(np.int16)
    said = phones.ids(["sil", "hh", "ax", "sil", "l", "ow", "sil"]).astype(np.uint8)
    rows = {"audio": {"audio": audio}, "meta": {"text": "Hello!", "text_norm": "hello", "lang": "en"},
            "f0": {"f0": np.array([0, 100, 120, 140, 0], np.float16)}, "align": {"phones": said[:0]}, "phones": {"phones": said}}  # fmt: skip
    measured = quality.measure(rows, RATE)
    assert measured["seconds"] == pytest.approx(2.2) and measured["chars_per_s"] == 2.5 and measured["phones_per_s"] == 2
    assert (measured["voiced"], measured["f0_hz"]) == (pytest.approx(0.6), 120)
    assert measured["level_db"] == pytest.approx(20 * np.log10(8000 / 32768 / np.sqrt(2)), abs=0.05)
    assert measured["peak_db"] == pytest.approx(20 * np.log10(8000 / 32768), abs=0.05)
    alone = quality.measure({"audio": rows["audio"], "meta": {"text": "", "text_norm": "", "lang": "en"}}, RATE)
    assert {name for name, value in alone.items() if np.isnan(value)} == {"chars_per_s", "phones_per_s", "voiced", "f0_hz"}


def test_a_text_of_another_recording_stands_out():
    rng = np.random.default_rng(0)
    langs = np.repeat([0, 1], 100)
    rate = np.where(langs == 0, 12, 20) * np.exp(rng.normal(0, 0.1, 200))
    rate[7], rate[150] = 40, 5
    values = {"chars_per_s": np.full(200, np.nan), "phones_per_s": rate}
    z = quality.rate_z(values, langs)
    assert set(np.flatnonzero(np.abs(z) > 4)) == {7, 150} and z[7] > 0 > z[150] and abs(np.median(z[:100])) < 0.01
    assert np.isnan(quality.rate_z({"chars_per_s": np.full(3, 5.0), "phones_per_s": np.full(3, np.nan)}, np.zeros(3, int))).all()


# The stage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """LJSpeech's layout: three sentences by three voices, and copies of some: exact, softer, in MP3, trimmed."""
    root = tmp_path / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    lines = []

    def add(name: str, audio: np.ndarray, i: int) -> None:
        soundfile.write(root / "wavs" / f"{name}.wav", audio, RATE, subtype="PCM_16")
        lines.append(f"{name}|{SPOKEN[i]['text']}|{SPOKEN[i]['text']}")

    for i in range(3):
        for n, slower in enumerate((1, 0.85, 1.17)):
            add(f"voice{n}-{i}", soxr.resample(speech(i), RATE, round(RATE * slower)), i)
    add("x-exact", speech(0), 0)
    add("x-softer", 0.4 * speech(1), 1)
    add("x-trimmed", speech(2)[800:], 2)
    soundfile.write(tmp_path / "x.mp3", speech(1), RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.5)
    add("x-mp3", soundfile.read(tmp_path / "x.mp3", dtype="float32")[0], 1)
    (root / "metadata.csv").write_text("\n".join(lines), encoding="utf8")
    return root


def config(root, out, **overrides) -> dict:
    made = importlib.import_module("configs.data.ljspeech").get_config(",".join(f"{key}={value}" for key, value in overrides.items()))
    return {**made.to_dict(), "root": str(root), "out": str(out)}


def stages(settings: dict, names: str) -> None:
    run.run(settings, names.split(","), run.local(0))


def tree(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_copies_in_a_corpus_are_flagged_once(folder, tmp_path):
    out = tmp_path / "out"
    settings = config(folder, out, per_shard=4, valid=150, test=150)
    stages(settings, "ingest,phonemise,quality,index,verify")
    dataset = Dataset.open(out)
    assert len(dataset.splits) > 1
    names, flags = {}, {}
    for split in dataset.splits:
        found = columns.columns(dataset, split, quality.COLUMNS)
        for i in range(dataset.records(split)):
            name = dataset.read(split, "meta", i)["utt_id"]
            names[name], flags[name] = split, int(found["duplicate"][i])
            assert found["seconds"][i] == np.float32(dataset.read(split, "audio", i)["num_samples"] / RATE)
            assert found["phones_per_s"][i] > 5
            assert np.isnan(found["f0_hz"][i])
    families = [{"voice0-0", "x-exact"}, {"voice0-1", "x-softer", "x-mp3"}, {"voice0-2", "x-trimmed"}]
    for family in families:  # one of each is left, in the split that comes last
        left, at = [name for name in family if not flags[name]], {name: dataset.splits.index(names[name]) for name in family}
        assert len(left) == 1 and at[left[0]] == max(at.values())
    assert any(len({names[name] for name in family}) > 1 for family in families)
    assert sum(flag == 2 for flag in flags.values()) == 1 and sum(flag == 1 for flag in flags.values()) == 3
    listed = [json.loads(line) for line in (out / "duplicates.jsonl").read_text().splitlines()]
    assert {row["item"] for row in listed} == {name for name, flag in flags.items() if flag}
    assert all(any({row["item"], row["of"]} <= family for family in families) and row["split"] == names[row["item"]] for row in listed)
    assert verify.collect(str(out))["quality"] == 13


def test_the_stage_follows_its_inputs_and_is_mended(folder, tmp_path):
    out = tmp_path / "out"
    settings = config(folder, out, per_shard=5)
    stages(settings, "ingest,quality")
    before = tree(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    stages(settings, "ingest,quality")
    assert tree(out) == before and {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == times
    shard = next(iter(sorted((out / "quality").glob("*.tfrecord"))))
    column = out / columns.column_path("train", "snr_db")
    for damage in (shard.unlink, column.unlink, (out / columns.table_path("train")).unlink, lambda: column.write_bytes(b"x")):
        damage()
        stages(settings, "quality")
        assert tree(out) == before
    features.add_f0(out)
    stages(settings, "quality")
    pitch = columns.columns(Dataset.open(out), "train", ["f0_hz", "seconds"])
    assert (pitch["f0_hz"] > 60).all()
    np.testing.assert_array_equal(pitch["seconds"], np.load(out / columns.column_path("train", "seconds")))
    assert before["index/train-quality-seconds.npy"] == tree(out)["index/train-quality-seconds.npy"]


def test_the_command_on_any_data_set(folder, tmp_path):
    stages(config(folder, tmp_path / "out"), "ingest")
    command = [sys.executable, "-m", "data_pipelines.quality", "--workers=1"]
    done = subprocess.run([*command, f"--data={tmp_path / 'out'}"], capture_output=True, text=True, timeout=120, cwd=HERE.parents[1])
    assert done.returncode == 0 and "duplicates: 1 exact, 3 near" in done.stderr, done.stderr
    done = subprocess.run([*command, f"--data={tmp_path}"], capture_output=True, text=True, timeout=120, cwd=HERE.parents[1])
    assert done.returncode == 2 and "no data set at" in done.stderr.splitlines()[-1]


def scratch(out: pathlib.Path) -> list[pathlib.Path]:
    return list(out.glob(".likely-copies*"))


def test_pairs_are_compared_by_several_workers(folder, tmp_path, caplog):
    """One pair at a time in two processes: the same tree as at once, and nothing of what is between stays."""
    out = tmp_path / "out"
    stages(config(folder, out), "ingest,quality")
    once, calls = tree(out), []
    assert not scratch(out)
    (out / "duplicates.jsonl").write_bytes(once["duplicates.jsonl"].replace(b'"near"', b'"neer"'))
    with pytest.raises(ValueError, match="the quality columns are not those of the records; stage quality writes them again"):
        stages(config(folder, out), "verify")
    shutil.rmtree(out / "verify")

    def two(work, n, description):
        calls.append((n, description))
        shards.run_shards(work, n, 2, description)
        assert len(scratch(out)) == 1

    with caplog.at_level("INFO"):
        assert quality.collect(out, two, 1) == {"near": 3, "exact": 1}
    assert tree(out) == once and not scratch(out)
    assert len(calls) == 1 and calls[0][0] >= 3 and calls[0][1] == "likely copies"
    assert f"share 2 of {duplicates.KEYS} keys" in caplog.text
    assert {columns.table(Dataset.open(out), split)["shared_keys"] for split in Dataset.open(out).splits} == {2}


def test_commands_at_once_and_killed_ones_do_not_disturb_each_other(folder, tmp_path):
    out = tmp_path / "out"
    stages(config(folder, out), "ingest,quality")
    once = tree(out)
    (out / "duplicates.jsonl").unlink()

    def meanwhile(work, n, description):
        """Another command does the same, from beginning to end."""
        before = scratch(out)
        shards.write_manifest(out)
        quality.collect(out, lambda work, n, _: shards.run_shards(work, n, 0), 1)
        assert scratch(out) == before and tree(out).keys() - once.keys() == {f"{before[0].name}/pairs.npy"}
        shards.run_shards(work, n, 0)

    assert quality.collect(out, meanwhile, 1) == {"near": 3, "exact": 1}
    assert tree(out) == once
    (out / "duplicates.jsonl").unlink()
    with pytest.raises(ZeroDivisionError):
        quality.collect(out, lambda work, n, _: 1 / 0)
    assert not scratch(out)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = out / f".likely-copies.tmp-ff-{ended.pid}.5-{socket.gethostname()}"
    left.mkdir()
    (left / "pairs.npy").write_bytes(b"x")
    stages(config(folder, out), "quality")
    assert tree(out) == once and not left.exists()


def test_verify_counts_the_columns(tmp_path):
    with shards.ShardWriter(tmp_path, "quality", "train", 0, 1, info={"columns": list(quality.OWN)}) as writer:
        writer.write({"values": np.zeros(3, np.float32), "lang": "en", "digest": np.zeros(1, np.uint64), "keys": np.zeros(0, np.uint32)}, 400)
    problems, _ = verify.check_shard(records.shard_path(tmp_path, "quality", "train", 0, 1), "quality")
    assert len(problems) == 1 and "3 values for the columns" in problems[0]


# Rejects -------------------------------------------------------------------------------------------------------------


def test_too_many_rejects_end_ingest(folder, tmp_path):
    """By reason: the few of another are no matter; what was made is kept, and a higher limit goes on with it."""
    for n in range(30):
        soundfile.write(folder / "wavs" / f"silent{n}.wav", np.zeros(RATE), RATE)
    with open(folder / "metadata.csv", "a", encoding="utf8") as file:
        file.write("".join(f"\nsilent{n}|One.|One." for n in range(30)) + "\nlost|No recording.|No recording.")
    settings = config(folder, tmp_path / "out")
    words = r"30 of 44 utterances \(68%\) were rejected as 'silent', .*max_rejects=0.05.*silent\d+.wav: .*rejects.jsonl; mend the corpus and make "
    with pytest.raises(ValueError, match=words):
        stages(settings, "ingest")
    stages({**settings, "max_rejects": 0.7}, "ingest,index")
    assert sum(Dataset.open(tmp_path / "out").records(split) for split in Dataset.open(tmp_path / "out").splits) == 13
    with pytest.raises(ValueError, match="as 'silent'"):
        ingest.check_rejects(tmp_path / "out", 44, 0.6)
    ingest.check_rejects(tmp_path / "out", 44, 0.69)
    shutil.rmtree(tmp_path / "out")
