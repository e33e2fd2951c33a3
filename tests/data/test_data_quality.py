"""Cuts by quality columns: exactly what lies within the bounds is served, nothing of it is guessed, and what is missing is said."""

from __future__ import annotations

import hashlib
import json
import shutil
import time

import numpy as np
import pytest
from noise_corpus import CODEC, write_corpus
from test_data_feed import CROP, SPEECH, crop_data, same, speech_data, take

from data_pipelines import quality as measured
from data_pipelines import shards
from ns2_jax.data import feed, quality, range_server, records
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.plan import PADDING
from ns2_jax.data.speakers import Speakers
from ns2_jax.runtime.checkpoints import Checkpoints

CUT = {"seconds": (1.0, 3.0), "f0_hz": (None, 150)}


@pytest.fixture(scope="module")
def rated(corpus, tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("rated") / "corpus"
    shutil.copytree(corpus, root)
    measured.add_quality(root)
    return str(root)


def truth(root, split: str = "train") -> np.ndarray:
    """What CUT keeps, from the records."""
    rows = Dataset.open(root).read_many(split, {"f0": range(40)})["f0"]
    pitch = [np.median(row["f0"][row["f0"] > 0].astype(np.float32)) for row in rows]
    seconds = np.array([row["num_samples"] / 16000 for row in rows])
    return (seconds >= 1) & (seconds <= 3) & (np.array(pitch) <= 150)


def test_what_is_kept_is_what_the_records_say(rated):
    mask, outside = quality.keep(Dataset.open(rated), "train", CUT)
    np.testing.assert_array_equal(mask, truth(rated))
    columns = quality.columns(Dataset.open(rated), "train", CUT)
    assert 5 < mask.sum() < 35
    long = (columns["seconds"] < 1) | (columns["seconds"] > 3)
    assert outside == {"seconds": int(long.sum()), "f0_hz": int((columns["f0_hz"] > 150).sum())}


def test_an_epoch_has_all_that_is_kept_once(rated, caplog):
    data = crop_data(rated, cut=CUT)
    with caplog.at_level("INFO"):
        plan = feed.plan_of(Dataset.open(rated), data, data["buckets"], "train", 0, phones=None)
    ids = np.concatenate([plan.step(k)[1] for k in range(plan.steps_per_epoch)])
    assert sorted(ids[ids != PADDING].tolist()) == np.flatnonzero(truth(rated)).tolist()
    left = 40 - int(truth(rated).sum())
    assert f"config.data.cut leaves out {left} of 40 utterances of train" in caplog.text and "'f0_hz': " in caplog.text
    assert "fit no bucket" not in caplog.text
    plain = feed.plan_of(Dataset.open(rated), crop_data(rated), data["buckets"], "train", 0, phones=None)
    assert plain.left_out == 0 and plan.left_out == left


def test_what_fits_no_bucket_is_counted_apart_from_the_cut(rated, caplog):
    data = crop_data(rated, cut=CUT, transform="whole", buckets=[dict(b=8, t=200)])
    with caplog.at_level("INFO"):
        feed.plan_of(Dataset.open(rated), data, data["buckets"], "train", 0, phones=None)
    long = int((truth(rated) & (Dataset.open(rated).frames("train") > 200)).sum())
    assert long and f"{long} of 40 utterances of train" in caplog.text.split("config.data.cut leaves out")[1]


def test_a_cut_from_a_url_and_of_several_data_sets(rated, tmp_path):
    cut = crop_data(rated, cut=CUT, buckets=[dict(b=4, t=320)])
    here = take(feed.make_feed(cut, CROP, {}, 3, 0), 8)
    with range_server.running(rated) as url:
        remote = feed.make_feed(cut | dict(path=url), CROP, {}, 3, 0)
        same(here, take(remote, 8))
        remote.close()
    write_corpus(tmp_path / "more", seed=4)
    measured.add_quality(tmp_path / "more")
    both = list(feed.make_feed(cut | dict(path=f"{rated},{tmp_path / 'more'}"), CROP, {}, 3, 0, epochs=1))
    assert sum(float(batch["weight"].sum()) for batch in both) == truth(rated).sum() + truth(tmp_path / "more").sum()


def test_prompts_are_of_what_is_kept(rated):
    cut = {"seconds": (2.0, None)}
    dataset = Dataset.open(rated)
    keep = np.flatnonzero(quality.keep(dataset, "train", cut)[0])
    codes = {i: dataset.read("train", f"codes-{CODEC}", i)["codes"] for i in range(40)}
    for batch in feed.make_feed(speech_data(rated, cut=cut, transform="speaker_prompt"), SPEECH, {"q": 8}, 0, 0, epochs=1):
        for row, frames, weight in zip(batch["prompt_codes"], batch["prompt_frames"], batch["weight"]):
            if weight:
                owners = {i for i, whole in codes.items() for at in range(len(whole) - frames + 1)
                          if (whole[at : at + frames] == row[:frames]).all()}  # fmt: skip
                assert owners and owners <= set(keep.tolist())


def test_the_cut_belongs_to_the_order(rated, tmp_path):
    """Bounds or columns that changed are refused by name when a training goes on."""
    root = tmp_path / "corpus"
    shutil.copytree(rated, root)
    before = feed.order(crop_data(str(root), cut=CUT))(5)
    assert json.loads(json.dumps(before)) == before and feed.order(crop_data(str(root)))(5)["config.data.cut"] == {}
    assert feed.order(crop_data(str(root), cut={"seconds": [1, 3], "f0_hz": [None, 150.0]}))(5) == before
    state = {"step": np.array(5), "params": {"w": np.zeros(2)}, "rest": {}, "opt": {}, "ema": {"w": np.zeros(2)}}
    first = Checkpoints(tmp_path / "run", order=lambda step: before)
    first.save(state)
    first.manager.wait_until_finished()
    changed = feed.order(crop_data(str(root), cut={**CUT, "seconds": (1.0, 2.0)}))(5)
    with pytest.raises(ValueError, match=r"was trained with config.data.cut=\{.*3.0.*it is now \{.*2.0"):
        Checkpoints(tmp_path / "run", order=lambda step: changed).restore(state)
    about = json.loads((root / quality.table_path("train")).read_text())
    about["columns"]["snr_db"] = "0" * 64
    (root / quality.table_path("train")).write_text(json.dumps(about))
    assert feed.order(crop_data(str(root), cut=CUT))(5) == before  # a column that is not used
    about["columns"]["seconds"] = "0" * 64
    (root / quality.table_path("train")).write_text(json.dumps(about))
    assert feed.order(crop_data(str(root), cut=CUT))(5) != before


@pytest.mark.parametrize(("cut", "words"), [
    ({"noise": (1, None)}, "has no quality column 'noise'; it has .*'snr_db'"),
    ({"snr_db": 15}, "config.data.cut: snr_db=15; expected"),
    ({"snr_db": ("loud", None)}, "config.data.cut: snr_db="),
    ({"snr_db": (20, 10)}, "config.data.cut: snr_db="),
    ({"seconds": (60, None)}, "config.data.cut leaves out 40 of 40 utterances of train"),
])  # fmt: skip
def test_wrong_cuts(rated, cut, words):
    with pytest.raises(ValueError, match=words):
        feed.make_feed(crop_data(rated, cut=cut), CROP, {}, 0, 0)


def test_tables_that_are_missing_or_not_of_this_data_set(corpus, rated, tmp_path):
    with pytest.raises(ValueError, match=f"make them with python -m data_pipelines.quality --data={corpus}"):
        feed.make_feed(crop_data(corpus, cut=CUT), CROP, {}, 0, 0)
    root = tmp_path / "corpus"
    shutil.copytree(rated, root)
    damaged = root / quality.column_path("train", "seconds")
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ValueError, match="seconds.npy is not the file that was written"):
        feed.make_feed(crop_data(str(root), cut=CUT), CROP, {}, 0, 0)
    damaged.unlink()
    with pytest.raises(ValueError, match="seconds.npy is missing"):
        feed.make_feed(crop_data(str(root), cut=CUT), CROP, {}, 0, 0)
    table = root / quality.table_path("train")
    whole = table.read_bytes()
    for wrong in (b"", b"[]", whole[:-3], whole.replace(b"fingerprint", b"fingerprins"), whole.replace(b'"columns"', b'"kolumns"')):
        table.write_bytes(wrong)
        with pytest.raises(ValueError, match="train-quality.json is not the table that was written; make it again with python -m data_pip"):
            feed.make_feed(crop_data(str(root), cut=CUT), CROP, {}, 0, 0)
    table.write_bytes(whole)
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "other"}))
    with pytest.raises(ValueError, match="is of other recordings"):
        feed.make_feed(crop_data(str(root), cut=CUT), CROP, {}, 0, 0)


def test_a_column_that_was_measured_nowhere(tmp_path):
    write_corpus(tmp_path, utterances=6)
    shutil.rmtree(tmp_path / "f0")
    shards.write_manifest(tmp_path)
    measured.add_quality(tmp_path)
    with pytest.raises(ValueError, match="column 'f0_hz' of .* is empty"):
        feed.make_feed(crop_data(tmp_path, cut=CUT), CROP, {}, 0, 0)


def test_a_cut_of_ten_million_opens_no_record(tmp_path):
    """10.8 million utterances: columns are read and compared in about a second."""
    n, rng = 10_800_000, np.random.default_rng(0)
    (tmp_path / "index").mkdir()
    shas = {}
    for name in ("snr_db", "duplicate"):
        values = rng.normal(20, 10, n) if name == "snr_db" else rng.random(n) < 0.01
        data = records.index_bytes(values.astype(np.float32))
        (tmp_path / quality.column_path("train", name)).write_bytes(data)
        shas[name] = hashlib.sha256(data).hexdigest()
    (tmp_path / quality.table_path("train")).write_text(json.dumps({"fingerprint": "x", "columns": shas}))
    (tmp_path / "manifest.json").write_text(json.dumps({
        "format": 1, "fingerprint": "x", "groups": {"meta": {}}, "splits": {"train": {"shards": 1, "records": n}}, "sample_rate": 16000,
        "base_hop": 200, "f0_period": 160, "speakers": {}}))  # fmt: skip
    begin = time.process_time()
    mask, outside = quality.keep(Dataset.open(tmp_path), "train", {"snr_db": (15, None), "duplicate": (None, 0)})
    seconds = time.process_time() - begin
    assert mask.mean() == pytest.approx(0.6915 * 0.99, abs=2e-3) and outside["duplicate"] == pytest.approx(0.01 * n, rel=0.01)
    assert seconds < 3, seconds


def test_only_the_speakers_kept():
    people = Speakers.of(np.array(["b", "a", "b", "b", "a"]))
    some = people.only(np.array([True, True, False, True, False]))
    assert some.members.tolist() == [1, 0, 3] and some.starts.tolist() == [0, 1, 3] and some.speaker.tolist() == [1, 0, -1, 1, -1]
    rng = np.random.default_rng(0)
    assert some.another(1, rng) is None and {some.another(0, rng) for _ in range(20)} == {3}
