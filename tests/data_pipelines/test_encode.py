"""Codes and F0 of a data set: of the right length, those of the programs, under the codec's name."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from configs import codec as codec_config
from configs.data import ljspeech
from data_pipelines import batches, encode, f0_statistics, features, run, shards, verify
from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.runtime import mesh, state, weights
from ns2_jax.systems import system as systems

RATE = 16000


@pytest.fixture(scope="module")
def model() -> inference.Model:
    config = json.loads(codec_config.get_config("smoke").to_json())
    system = systems.make("codec", config["model"])
    gen = jax.jit(system.network.init)(jax.random.key(0), np.zeros((1, 6400), np.float32))["params"]
    q, c = system.sizes["q"], system.sizes["c"]
    codebooks = jax.random.normal(jax.random.key(1), (q, 32, c))
    rest = {"codebooks": codebooks, "mean": np.zeros(c, np.float32), "deviation": np.ones(c, np.float32)}
    return inference.Model(system, {"gen": gen}, rest, config)


def tone(samples: int, hertz: float) -> np.ndarray:
    x = sum(np.sin(2 * np.pi * hertz * h * np.arange(samples) / RATE) / h for h in (1, 2, 3, 4))
    return (x * 5000).astype(np.int16)


@pytest.fixture
def data_set(tmp_path):
    """Tones of 0.3 to 2 s, 100 to 190 Hz, two shards of train and one of valid."""
    lengths = {"train": [5000, 16000, 16001, 30999, 21999, 4801, 20000], "valid": [8000, 23456]}
    for split, samples in lengths.items():
        count = 2 if split == "train" else 1
        for group in ("meta", "audio"):
            for shard in range(count):
                with shards.ShardWriter(tmp_path, group, split, shard, count) as writer:
                    for i in range(len(samples))[shard::count]:
                        meta = {"utt_id": f"{i}", "speaker": "s", "source": "tone", "voice": "v", "text": "t", "text_norm": "t"}
                        writer.write(meta if group == "meta" else {"audio": tone(samples[i], 100 + 15 * i)}, samples[i])
    shards.write_manifest(tmp_path, name="tones")
    return tmp_path


def test_codes_are_the_programs(data_set, model):
    group = encode.encode(data_set, model, batch_seconds=4)
    dataset = Dataset.open(data_set)
    assert group == f"codes-{inference.codec_hash(model)}" and group in dataset.groups
    about = dataset.manifest["groups"][group]
    assert (about["codec"], about["hop"], about["levels"]) == (group[6:], 200, 4)
    for split in dataset.splits:
        for i in range(min(2, dataset.records(split))):
            codes, audio = dataset.read(split, group, i)["codes"], dataset.read(split, "audio", i)["audio"]
            assert codes.shape == (len(audio) // 200, 4) and codes.dtype == np.uint16 and codes.max() < 32
            # One utterance at its exact length: the same codes but where the end is within reach of the padding.
            frames = len(audio) // 200
            alone = model.encode(audio[: frames * 200].astype(np.float32) / 32768)
            inside = max(1, frames - 12)
            assert (codes[:inside] == alone[:inside]).mean() > 0.99


def test_encoding_again_changes_nothing(data_set, model):
    group = encode.encode(data_set, model)
    before = {path: path.stat().st_mtime_ns for path in (data_set / group).iterdir()}
    encode.encode(data_set, model)
    assert {path: path.stat().st_mtime_ns for path in (data_set / group).iterdir()} == before


def test_batch_size_does_not_change_codes(data_set, model):
    group = encode.encode(data_set, model, batch_seconds=1)
    one = {path.name: path.read_bytes() for path in (data_set / group).glob("*.tfrecord")}
    for path in (data_set / group).iterdir():
        path.unlink()
    encode.encode(data_set, model, batch_seconds=30)
    many = {path.name: path.read_bytes() for path in (data_set / group).glob("*.tfrecord")}
    assert one == many


def test_packed_codes_are_the_codes_and_are_verified(data_set, model):
    """The group is made again when `pack` changes; `verify` reads it; the manifest says how many bits a code has."""
    group = encode.encode(data_set, model)
    plain = [Dataset.open(data_set).read("train", group, i)["codes"] for i in range(7)]
    size = Dataset.open(data_set).manifest["groups"][group]["bytes"]
    assert encode.encode(data_set, model, pack=True) == group
    dataset = Dataset.open(data_set)
    assert dataset.manifest["groups"][group]["bits"] == 10 and dataset.manifest["groups"][group]["bytes"] < 0.75 * size
    for i in range(7):
        np.testing.assert_array_equal(dataset.read("train", group, i)["codes"], plain[i])
    assert [verify.check_shard(path, group)[0] for path in (data_set / group).glob("*.tfrecord")] == [[], [], []]
    encode.encode(data_set, model)
    about = Dataset.open(data_set).manifest["groups"][group]
    assert "bits" not in about and about["bytes"] == size


def test_eight_devices_make_the_bytes_of_one(data_set, tmp_path, monkeypatch):
    """Through the stage, with an exported codec; each device has its own rows, and a killed run's other shards stay."""
    codec = tiny.write_model("codec", tmp_path / "codec")
    config = {**ljspeech.get_config().to_dict(), "root": "", "out": str(data_set), "codec": codec, "batch_seconds": 6.0}
    made, spread = [], []
    by_rows = mesh.by_rows

    def watched(over, call):
        compiled = by_rows(over, call)

        def run_it(*arguments):
            out = compiled(*arguments)
            spread.append({shard.device.id: shard.data.shape[0] for shard in out.addressable_shards})
            return out

        return run_it

    monkeypatch.setattr(mesh, "by_rows", watched)
    for devices in (1, 8):
        encode.load.cache_clear()
        monkeypatch.setattr(mesh, "local_mesh", lambda count=devices: mesh.make_mesh({"fsdp": count}, jax.devices()[:count]))
        run.run(config, ["encode"], run.local(0))
        (group,) = data_set.glob("codes-*")
        made.append({path.name: path.read_bytes() for path in group.iterdir()})
        assert len(spread[-1]) == devices and set(spread[-1].values()) == {3 if devices == 1 else 1}
        if devices == 8:
            kept = {path: path.stat().st_mtime_ns for path in group.iterdir()}
            (group / "train-00001-of-00002.json").unlink()
            calls = len(spread)
            run.run(config, ["encode"], run.local(0))
            assert len(spread) == calls + 1  # three utterances of one length: one batch
            assert {path.name for path in kept if path.stat().st_mtime_ns != kept[path]} == {"train-00001-of-00002.json"}
        else:
            shutil.rmtree(group)
    encode.load.cache_clear()
    assert made[0] == made[1] and len(made[0]) == 9


def test_a_run_is_named_as_its_unrounded_export(model, tmp_path):
    flat = state.flatten({"params": model.params, "rest": model.rest})
    names = ("rest/codebooks", "rest/mean", "rest/deviation")
    kept = {path: leaf for path, leaf in flat.items() if path.startswith("params/gen/") or path in names}
    digest = weights.write_weights(tmp_path, state.nest(kept))
    assert digest == inference.codec_hash(model)
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    assert inference.codec_hash(inference.load(tmp_path)) == digest
    rounded = tmp_path / "rounded"
    assert weights.write_weights(rounded, state.nest(kept), "bf16") != digest  # rounded weights make other codes


def test_what_is_refused(data_set, model):
    with pytest.raises(FileNotFoundError, match="no data set"):
        encode.encode(data_set / "nowhere", model)
    other = inference.Model(model.system, model.params, model.rest, {**model.config, "system": "naturalspeech2"}, "runs/ns2")
    with pytest.raises(ValueError, match="runs/ns2 is a naturalspeech2, not a codec"):
        encode.encode(data_set, other)
    config = {**model.config, "data": {**model.config["data"], "sample_rate": 24000}}
    fast = inference.Model(model.system, model.params, model.rest, config, "c")
    with pytest.raises(ValueError, match="24000 Hz.*16000 Hz"):
        encode.encode(data_set, fast)


def test_every_recording_is_in_one_batch(data_set):
    dataset = Dataset.open(data_set)
    seen, shapes = [], set()
    for ids, audio, samples in batches.audio_batches(dataset, "train", range(7), 6, 200):
        seen += ids
        shapes.add(audio.shape)
        assert audio.shape[1] % 200 == 0 and (samples[: len(ids)] <= audio.shape[1]).all() and not samples[len(ids) :].any()
        for row, i in enumerate(ids):
            expected = dataset.read("train", "audio", i)["audio"] / np.float32(32768)
            np.testing.assert_array_equal(audio[row, : len(expected)], expected)
            assert not audio[row, len(expected) :].any()
    assert sorted(seen) == list(range(7)) and shapes == {(3, 32000)}
    assert [batches.padded_seconds(s) for s in (0.1, 1.0, 1.1, 29.0, 30.0, 31.0, 61.0)] == [2, 2, 2, 30, 30, 60, 90]


def test_f0_group(data_set):
    features.add_f0(data_set, batch_seconds=4)
    dataset = Dataset.open(data_set)
    for i in range(7):
        record = dataset.read("train", "f0", i)
        f0 = record["f0"].astype(float)
        position = [0, 2, 4, 6, 1, 3, 5][i]  # shards are round robin
        assert len(f0) == record["num_samples"] // 160 and record["f0"].dtype == np.float16
        inside = f0[4:-4]
        assert (inside > 0).mean() > 0.9
        np.testing.assert_allclose(np.median(inside[inside > 0]), 100 + 15 * position, rtol=0.01)


def test_f0_of_the_speakers(tmp_path):
    """Two speakers over two shards, one without a voiced frame, against numpy over all frames; kept until the shards change."""
    rng, said = np.random.default_rng(0), {}
    for shard in range(2):
        with shards.ShardWriter(tmp_path, "meta", "train", shard, 2) as meta, shards.ShardWriter(tmp_path, "f0", "train", shard, 2) as f0:
            for i, speaker in enumerate(["ann", "bob", "ann", *(["mute"] if shard else [])]):
                hertz = np.where(rng.random(50) < 0.6, rng.uniform(80, 300, 50), 0).astype(np.float16) * np.float16(speaker != "mute")
                meta.write({"utt_id": f"{shard}{i}", "speaker": speaker, "source": "", "voice": "", "text": "", "text_norm": ""}, 8000)
                f0.write({"f0": hertz}, 8000)
                said.setdefault(speaker, []).append(hertz.astype(float))
        f0_statistics.sum_shard(str(tmp_path), None, "train", shard, 2)
    found = f0_statistics.write_speakers(tmp_path, {"train": 2})
    assert found == json.loads((tmp_path / "index" / "f0.json").read_text()) and list(found["train"]) == ["ann", "bob", "mute"]
    for speaker in ("ann", "bob"):
        frames = np.concatenate(said[speaker])
        log = np.log(frames[frames > 0])
        about = found["train"][speaker]
        assert (about["utterances"], about["frames"]) == (len(said[speaker]), len(frames))
        np.testing.assert_allclose([about["voiced"], about["mean"], about["std"]], [np.mean(frames > 0), log.mean(), log.std()], rtol=1e-9)
    assert found["train"]["mute"] == {"utterances": 1, "frames": 50, "voiced": 0.0, "mean": None, "std": None}
    path = tmp_path / "index" / "f0" / "train-00001.json"
    before = path.stat().st_mtime_ns
    f0_statistics.sum_shard(str(tmp_path), None, "train", 1, 2)
    assert path.stat().st_mtime_ns == before
    with shards.ShardWriter(tmp_path, "f0", "train", 1, 2) as writer:
        for _ in range(4):
            writer.write({"f0": np.full(50, 100, np.float16)}, 8000)
    f0_statistics.sum_shard(str(tmp_path), None, "train", 1, 2)
    about = f0_statistics.write_speakers(tmp_path, {"train": 2})["train"]["mute"]
    assert about["voiced"] == 1 and abs(np.exp(about["mean"]) - 100) < 1e-6 and about["std"] < 1e-6
