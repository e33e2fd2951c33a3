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

from data_pipelines import align, ingest, plans, run, shards, transcripts, verify
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import front, phones, units
from tests.data_pipelines import test_textgrid

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
    units_of = transcripts.units_group(out / "tokenizer" / "unigram-40.model")
    assert dataset.groups == ("align", "audio", "f0", "meta", "phones", "text", units_of)
    assert sum(dataset.records(split) for split in dataset.splits) == 12 and dataset.manifest["splits"]["train"]["shards"] == 2
    for split in dataset.splits:
        for i in range(dataset.records(split)):
            meta, text, spoken, ends, audio, f0 = (dataset.read(split, g, i) for g in ("meta", "text", "phones", "align", "audio", "f0"))
            place = plans.bucket(meta["utt_id"])
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
    first = dataset.splits[0]
    assert all(model.decode(dataset.read(first, units_of, i)["units"]) == dataset.read(first, "text", i)["text_norm"]
               for i in range(dataset.records(first)))
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


def test_a_data_set_goes_on_as_it_was_begun(lj, tmp_path):
    """The corpus need not be named again, its settings cannot be others."""
    settings = config("ljspeech", lj, tmp_path / "out", per_shard=5)
    stages(settings, "ingest")
    before = digests(tmp_path / "out")
    stages({**settings, "root": ""}, "ingest")
    assert digests(tmp_path / "out") == before
    for changed, words in (({"rate": 24000}, "config.rate=24000, but .* was begun with 16000"), ({"level": False}, "config.level=False")):
        with pytest.raises(ValueError, match=words):
            stages({**settings, "root": "", **changed}, "ingest")
    with pytest.raises(ValueError, match="rate was 16000, is 24000"):
        stages({**settings, "rate": 24000}, "ingest")
    next((tmp_path / "out" / "rejects").glob("*.jsonl")).unlink()
    with pytest.raises(ValueError, match="is missing: ingest has not ended"):
        stages({**settings, "root": ""}, "index")


def test_a_data_set_goes_on_in_another_folder(lj, tmp_path, monkeypatch):
    """Begun with paths from here, it goes on from elsewhere (a worker on another machine, the next command): nothing is missing."""
    monkeypatch.chdir(lj.parent)
    pathlib.Path("lexicon.txt").write_text("dollars  B AH1 K S\n")
    settings = {**config("ljspeech", lj.name, "out", per_shard=5), "lexicon": "lexicon.txt"}
    stages(settings, "ingest,phonemise,index")
    before = digests(tmp_path / "out")
    records.shard_path(tmp_path / "out", "audio", "train", 0, 3).unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    stages({**settings, "root": str(lj), "out": "../out", "lexicon": "../lexicon.txt"}, "ingest,phonemise,index")
    assert digests(tmp_path / "out") == before
    assert {row["reason"] for row in map(json.loads, open("../out/rejects.jsonl"))} == {"no_audio"}


@pytest.mark.parametrize(("changed", "words"), [
    ({"per_shard": 0}, "config.per_shard=0; expected at least 1"), ({"rate": 0}, "config.rate=0"),
    ({"split_by": "gender"}, "expected speaker"), ({"trim": float("nan")}, "config.trim=nan; expected at least 0, and finite"),
    ({"trim": float("inf")}, "config.trim=inf; expected"), ({"batch_seconds": 0.0}, "config.batch_seconds=0.0; expected at least 1"),
    ({"max_seconds": float("nan")}, "max_seconds=nan; expected 0 < min_seconds < max_seconds"),
    ({"min_seconds": 40.0}, "min_seconds=40.0 and max_seconds=30.0; expected"),
    ({"valid": 900, "test": 900}, "config.valid=900 and config.test=900; they are thousandths, at most 1000 together")])
def test_numbers_that_cannot_be(lj, tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        stages({**config("ljspeech", lj, tmp_path / "out"), **changed}, "ingest")
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_another_command(lj, tmp_path):
    """One difference explains all others."""
    ingest.ingest(lj / "wavs", lj / "metadata.csv", tmp_path / "out", settings=ingest.Settings(align="none"), workers=0, f0=False)
    with pytest.raises(ValueError, match="or settings .command was 'ingest', is 'run'.; choose another folder or delete it"):
        stages(config("ljspeech", lj, tmp_path / "out"), "ingest")


def test_a_corpus_of_nothing(tmp_path):
    """No recording, and none that can be used: said of the corpus, and what comes into it later is found."""
    root, out = tmp_path / "recordings", tmp_path / "out"
    root.mkdir()
    with pytest.raises(ValueError, match=f"{root} has no recordings"):
        stages(config("folder", root, out), "ingest,index,verify")
    (root / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="no recording can be used; see .*rejects.jsonl ..'unreadable': 1"):
        stages(config("folder", root, out), "ingest,index,verify")
    (tmp_path / "list.csv").write_text("path,id\n,b\n")
    with pytest.raises(ValueError, match="no recording can be used; see .*rejects.jsonl"):
        stages(config("manifest", tmp_path / "list.csv", tmp_path / "other"), "ingest")


def test_a_lost_manifest_is_written_again_by_whom_knows(lj, tmp_path):
    """A rate that nobody else tells is not guessed; and one that the manifest tells alone is compared with what else there is."""
    settings = config("ljspeech", lj, tmp_path / "out")
    stages({**settings, "rate": 24000}, "ingest,f0,index,verify")
    manifest, root = tmp_path / "out" / "manifest.json", tmp_path / "out"
    whole = manifest.read_bytes()
    for damage in (b"{", b"[]", b"{}", b"\xff"):
        manifest.write_bytes(damage)
        with pytest.raises(ValueError, match="manifest.json is damaged; run the command that made"):
            shards.write_manifest(root)
        stages({**settings, "root": "", "rate": 24000}, "index,verify")
        assert manifest.read_bytes() == whole
    for was, now in ((b'"sample_rate": 24000', b'"sample_rate": 25000'), (b'"f0_period": 240', b'"f0_period": 160')):
        assert whole.count(was) == 1
        manifest.write_bytes(whole.replace(was, now))
        shards.write_manifest(root)  # seconds follow the rate
        with pytest.raises(ValueError, match="but it was made with 24000 and 240; stage index writes it again"):
            stages({**settings, "root": "", "rate": 24000}, "verify")
    stages({**settings, "root": "", "rate": 24000}, "index,verify")
    assert manifest.read_bytes() == whole


def test_a_lexicon_speaks_where_nobody_else_can(tmp_path):
    """A word of another script is no reject when the user says how it sounds; what a worker refuses is one line for the user."""
    (tmp_path / "corpus").mkdir()
    soundfile.write(tmp_path / "corpus" / "a.wav", hum(1), RATE)
    (tmp_path / "corpus" / "a.txt").write_text("猫", encoding="utf8")
    (tmp_path / "lexicon.txt").write_text("猫  N EY1 K OW0\n", encoding="utf8")
    settings = config("folder", tmp_path / "corpus", tmp_path / "out")
    with pytest.raises(ValueError, match="no recording can be used"):
        stages(settings, "ingest")
    shutil.rmtree(tmp_path / "out")
    stages({**settings, "lexicon": str(tmp_path / "lexicon.txt")}, "ingest,phonemise,verify")
    dataset = Dataset.open(tmp_path / "out")
    assert phones.names(dataset.read(dataset.splits[0], "phones", 0)["phones"]) == ["sil", "n", "ey", "k", "ow", "sil"]
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        run.run({**settings, "lexicon": str(tmp_path / "nowhere.txt")}, ["phonemise"], run.local(1))


def test_settings_half_changed_leave_the_other_groups_alone(lj, tmp_path):
    settings = config("ljspeech", lj, tmp_path / "out", per_shard=5)
    stages(settings, "ingest,phonemise")
    marker = sorted((tmp_path / "out" / "phones").glob("train*.json"))[0]
    shutil.copytree(tmp_path / "out" / "phones", tmp_path / "before")
    (tmp_path / "lexicon.txt").write_text("dollars  B AH1 K S\n")
    transcripts.phonemise_shard(str(tmp_path / "out"), str(tmp_path / "lexicon.txt"), "train", 0, 3)  # and then the machine went down
    assert marker.read_bytes() != (tmp_path / "before" / marker.name).read_bytes()
    stages(settings, "normalise,index")
    assert Dataset.open(tmp_path / "out").groups == ("audio", "meta", "text")
    stages(settings, "phonemise")
    assert Dataset.open(tmp_path / "out").groups == ("audio", "meta", "phones", "text")


def test_times_of_text_grids_and_of_an_aligner(lj, tmp_path):
    """One stage, whoever finds the times: grids where MFA writes them, times to train an aligner on, and an aligner's."""
    out, grids = tmp_path / "out", tmp_path / "aligned"
    settings = config("ljspeech", lj, out, per_shard=5)
    stages(settings, "ingest,index")
    (grids / "LJ").mkdir(parents=True)
    tiers = lambda end: {"phones": [(0.0, 0.3, ""), (0.3, 0.5, "G"), (0.5, end, "OW1")]}
    for place, n in (("LJ001-0004", 4), ("LJ/LJ001-0007", 7)):
        (grids / f"{place}.TextGrid").write_text(test_textgrid.grid(tiers(1 + n / 20), end=1 + n / 20))
    stages({**settings, "aligner": str(grids)}, "align,verify")
    dataset = Dataset.open(out)
    assert dataset.manifest["groups"]["align"]["rejects"] == {"no_alignment": 10}
    found = {dataset.read(split, "meta", i)["utt_id"]: dataset.read(split, "align", i)
             for split in dataset.splits for i in range(dataset.records(split))}  # fmt: skip
    assert [name for name, row in found.items() if len(row["ends"])] == ["LJ001-0004", "LJ001-0007"]
    for name, n in (("LJ001-0004", 4), ("LJ001-0007", 7)):
        assert phones.names(found[name]["phones"]) == ["sil", "g", "ow"]
        np.testing.assert_allclose(found[name]["ends"], [4800, 8000, RATE * (20 + n) // 20], atol=1)
    (grids / "LJ" / "LJ001-0007.TextGrid").unlink()
    with pytest.raises(ValueError, match=r"11 of 12 utterances \(92%\) got no times \(no_alignment\), more than config.max_rejects=0.05"):
        stages({**settings, "aligner": str(grids)}, "align")
    stages({**settings, "aligner": ""}, "align,index,verify")
    dataset = Dataset.open(out)
    assert dataset.manifest["groups"]["align"]["rejects"] == {} and dataset.manifest["groups"]["align"]["aligner"] == "none"
    with pytest.raises(ValueError, match="does not align"):
        stages({**settings, "aligner": "results/codec/model"}, "align")
    with pytest.raises(FileNotFoundError):
        stages({**settings, "aligner": str(tmp_path / "nowhere")}, "align")
    assert (out / "index" / "train-speakers.npz").exists()


def test_an_aligned_shard_does_not_depend_on_what_was_heard_before(lj, tmp_path):
    stages(config("ljspeech", lj, tmp_path / "out", per_shard=1), "ingest")
    (tmp_path / "out" / "align").mkdir()
    total = Dataset.open(tmp_path / "out").manifest["splits"]["train"]["shards"]
    made = []
    for order in ((0, 1, 2), (2, 1, 0)):
        shutil.rmtree(tmp_path / "out" / "align")
        for shard in order:
            align.align_shard(str(tmp_path / "out"), (RATE, ""), "train", shard, total)
        made.append(digests(tmp_path / "out" / "align"))
    assert made[0] == made[1] and len(made[0]) == 9


def small(root: pathlib.Path, **changed) -> None:
    """One record of every group, with what is `changed` (group -> values)."""
    n = 4000
    values = {
        "meta": dict(utt_id="u", speaker="s", source="x", voice="s", text="t", text_norm="t"), "text": {"text_norm": "t"},
        "audio": {"audio": np.ones(n, np.int16)}, "phones": {"phones": np.ones(3, np.uint8)},
        "align": {"phones": np.ones(2, np.uint8), "ends": np.array([100, n], np.int32)}, "f0": {"f0": np.ones(n // 160, np.float16)},
        "codes-abc": {"codes": np.zeros((n // 200, 2), np.uint16)}}  # fmt: skip
    info = {"f0": {"period": 160}, "codes-abc": {"codec": "abc", "hop": 200, "levels": 2}}
    for group, record in {**values, **changed}.items():
        with shards.ShardWriter(root, group, "train", 0, 1, info=info.get(group)) as writer:
            writer.write(record, record.pop("num_samples", n))


def flip(root: pathlib.Path) -> None:
    path = records.shard_path(root, "phones", "train", 0, 1)
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("changed", "words"), [
    ({}, ""),
    ({"audio": {"audio": np.ones(3999, np.int16)}}, "3999 samples of audio, num_samples says 4000"),
    ({"align": {"phones": np.ones(1, np.uint8), "ends": np.array([100, 4000], np.int32)}}, "1 phones and 2 ends"),
    ({"align": {"phones": np.ones(2, np.uint8), "ends": np.array([100, 3999], np.int32)}}, "must rise to num_samples=4000, not to 3999"),
    ({"align": {"phones": np.ones(2, np.uint8), "ends": np.array([4000, 4000], np.int32)}}, "must rise"),
    ({"align": {"phones": np.ones(0, np.uint8), "ends": np.array([], np.int32)}}, ""),
    ({"f0": {"f0": np.ones(24, np.float16)}}, "24 values of F0 for 4000 samples"),
    ({"f0": {"f0": np.full(25, np.nan, np.float16)}}, "is not a frequency"),
    ({"f0": {"f0": np.full(25, np.inf, np.float16)}}, "is not a frequency"),
    ({"phones": {"phones": np.full(3, 255, np.uint8)}}, "phone ids from 255 to 255"),
    ({"align": {"phones": np.zeros(2, np.uint8), "ends": np.array([100, 4000], np.int32)}}, "phone ids from 0 to 0"),
    ({"codes-abc": {"codes": np.zeros((19, 2), np.uint16)}}, r"codes \(19, 2\) for 4000 samples"),
    ({"text": {"text_norm": "t", "num_samples": 3000}}, "disagree on the lengths"),
    (flip, "its bytes are not those that were written"),
    (lambda root: records.index_path(records.shard_path(root, "f0", "train", 0, 1)).write_bytes(b"x"), "is not the index that was written"),
    (lambda root: records.marker_path(records.shard_path(root, "f0", "train", 0, 1)).unlink(), "was never finished"),
])  # fmt: skip
def test_verify_finds(tmp_path, changed, words):
    if callable(changed):
        small(tmp_path)
        changed(tmp_path)
    else:
        small(tmp_path, **{group: dict(values) for group, values in changed.items()})
    verify.verify_shard(str(tmp_path), verify.groups(str(tmp_path)), "train", 0, 1)
    if not words:
        shards.write_manifest(tmp_path)
        assert verify.collect(str(tmp_path)) == dict.fromkeys(("meta", "text", "audio", "phones", "align", "f0", "codes-abc"), 1)
        return
    with pytest.raises(ValueError, match=f"1 problems in (?s:.*){words}"):
        verify.collect(str(tmp_path))


def test_verify_misses_what_should_be_there(tmp_path):
    """A group that is gone, a manifest that says something else, a group made of recordings that have changed since."""
    small(tmp_path)
    shards.write_manifest(tmp_path)
    again = lambda: (verify.verify_shard(str(tmp_path), verify.groups(str(tmp_path)), "train", 0, 1), verify.collect(str(tmp_path)))
    again()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for changed in ({"sample_rate": 8000, "splits": {"train": {"shards": 1, "records": 2, "seconds": 0.25}}}, {"groups": {}}):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **changed}))
        with pytest.raises(ValueError, match="does not say what the shards do"):
            again()
    shards.write_manifest(tmp_path, sample_rate=16000)
    again()
    source = records.load_marker(records.marker_path(records.shard_path(tmp_path, "audio", "train", 0, 1)).read_bytes(), tmp_path)["sha256"]
    for sha, words in ((source, ""), ("0" * 64, "made from another shard of 'audio'")):
        with shards.ShardWriter(tmp_path, "f0", "train", 0, 1, info={"period": 160}, inputs={"audio": sha}) as writer:
            writer.write({"f0": np.ones(25, np.float16)}, 4000)
        if words:
            with pytest.raises(ValueError, match=words):
                again()
        else:
            again()
    for path in (tmp_path / "text").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="text/train-00000-of-00001"):
        again()
