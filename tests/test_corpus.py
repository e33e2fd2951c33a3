"""A data set spoken again: every text, in its speaker's voice, resumable to the byte."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import tiny
from commands import refused

from data_pipelines import shards
from ns2_jax import corpus, inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import front, phones
from tests.data import noise_corpus

TEXTS = ("The river was quiet.", "Hello there.", "?!", "Good night to you all.", "Where are the boats?")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two shards of train and one of test at 800 Hz; the third text can't be spoken."""
    root, rng = tmp_path_factory.mktemp("in"), np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        rows = [{"utt_id": f"{split}{i}", "speaker": "ab"[i % 2], "source": "flite", "voice": "v", "text": text, "text_norm": ""}
                for i, text in enumerate(TEXTS)]  # fmt: skip
        sounds = [(rng.normal(size=1600 + 200 * i) * 3000).astype(np.int16) for i in range(len(rows))]
        for shard in range(count):
            with shards.ShardWriter(root, "meta", split, shard, count) as meta, shards.ShardWriter(root, "audio", split, shard, count) as audio:
                for row, sound in list(zip(rows, sounds))[shard::count]:
                    meta.write(row, len(sound))
                    audio.write({"audio": sound}, len(sound))
    shards.write_manifest(root, name="small", sample_rate=800)
    return root


def test_every_text_is_spoken_in_its_speakers_voice(source, tmp_path):
    model, said = tiny.toy(), []
    made = corpus.speak(model, str(source), str(tmp_path / "out"), 5, {"steps": 2, "speed": None}, said.append)
    assert {split: about["records"] for split, about in made["splits"].items()} == {"train": 4, "test": 4} and made["sample_rate"] == 800
    assert made["groups"]["meta"]["rejects"] == {"not_spoken": 2} and made["groups"]["meta"]["tools"]["model"] == model.hash
    assert [line for line in said if "not be spoken" in line] == [
        f"{split} 1 of {n} is made; 1 utterances could not be spoken, the first: {split}2: there is no pronounceable word in the text '?!'"
        for split, n in (("train", 2), ("test", 1))]
    old, new = Dataset.open(source), Dataset.open(tmp_path / "out")
    rows = {new.read("train", "meta", i)["utt_id"]: i for i in range(4)}
    assert set(rows) == {f"train{i}-spoken" for i in (0, 1, 3, 4)}
    meta = new.read("train", "meta", rows["train0-spoken"])
    assert meta["text"] == TEXTS[0] and meta["speaker"] == "a" and meta["source"] == (
        f"synthetic, toy {model.hash}, seed {zlib.crc32(b'5 train0')}, voice of train2: flite")
    voice = old.read("train", "audio", 1)["audio"].astype(np.float32) / 32768  # train2, the next of "a" in the first shard
    speech = model.speak(TEXTS[0], (voice, 800), zlib.crc32(b"5 train0"), steps=2)
    np.testing.assert_allclose(new.read("train", "audio", rows["train0-spoken"])["audio"] / 32768, speech.audio, atol=1 / 32768)
    times = new.read("train", "align", rows["train0-spoken"])
    assert [phones.PHONES[i] for i in times["phones"]] == list(speech.phones) and times["ends"].tolist() == speech.ends.tolist()


def test_it_goes_on_where_it_stopped_and_makes_anew_what_changed(source, tmp_path, monkeypatch):
    model, said, out = tiny.toy(), [], tmp_path / "out"
    content = lambda: {path.name: path.read_bytes() for path in sorted(out.rglob("*.tfrecord"))}
    corpus.speak(model, str(source), str(out), say=said.append)
    whole = content()
    for path in (out / "audio").glob("train-00001*"):
        path.unlink()
    killed, real = [], corpus.speak_shard

    def kill(*args):
        if killed:
            raise KeyboardInterrupt
        killed.append(1)
        return real(*args)

    corpus.speak(model, str(source), str(out), say=said.append)
    assert content() == whole and sum("is there" in line for line in said) == 2
    monkeypatch.setattr(corpus, "speak_shard", kill)
    with pytest.raises(KeyboardInterrupt):
        corpus.speak(model, str(source), str(tmp_path / "two"), say=said.append)
    monkeypatch.setattr(corpus, "speak_shard", real)
    said.clear()
    corpus.speak(model, str(source), str(tmp_path / "two"), say=said.append)
    assert sum("is there" in line for line in said) == 1 and sum("is made" in line for line in said) == 2
    assert {path.name: path.read_bytes() for path in sorted((tmp_path / "two").rglob("*.tfrecord"))} == whole
    corpus.speak(tiny.toy(gain=0.5), str(source), str(out), say=lambda line: None)
    assert content() != whole


def test_a_corpus_of_which_nothing_is_spoken_is_an_error_and_is_tried_again(source, tmp_path, monkeypatch):
    model, out, silent = tiny.toy(), str(tmp_path / "out"), lambda line: None

    def lost(*_):
        raise ValueError("no dictionary")

    with monkeypatch.context() as broken:
        broken.setattr(front, "words", lost)
        with pytest.raises(ValueError, match="none of its texts could be spoken; the first, train0: no dictionary"):
            corpus.speak(model, str(source), out, say=silent)
    assert corpus.speak(model, str(source), out, say=silent)["splits"]["train"]["records"] == 4


def test_prompts_are_of_the_same_speaker():
    assert corpus.prompts_of(["a", "b", "a", "c", "a"]) == [2, 1, 4, 3, 0] and corpus.prompts_of([]) == []


def test_hosts_share_the_shards(source, tmp_path, monkeypatch):
    took = []
    monkeypatch.setattr(corpus.cluster, "share", lambda work: took.append(work) or work[:1])
    monkeypatch.setattr(corpus.cluster, "is_first", lambda: False)
    assert corpus.speak(tiny.toy(), str(source), str(tmp_path / "out"), say=lambda line: None) == {}
    assert took == [[("train", 0), ("train", 1), ("test", 0)]]
    assert {path.name for path in (tmp_path / "out" / "meta").glob("*.tfrecord")} == {"train-00000-of-00002.tfrecord"}


def test_what_can_not_be_is_refused(source, tmp_path):
    for model, out, message in ((tiny.toy(rate=4000), tmp_path / "out", "speaks at 4000 Hz"), (tiny.toy(), source, "is the data set that is read")):
        with pytest.raises(ValueError, match=message):
            corpus.speak(model, str(source), str(out))
    for name, count, splits in (("recordings", 2, ["train"]), ("other", 3, ["valid"])):  # the first has shards of the same names
        noise_corpus.write_corpus(tmp_path / name, 4, count, splits=splits)
        content = lambda: {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        before = content()
        with pytest.raises(ValueError, match="holds another data set"):
            corpus.speak(tiny.toy(), str(source), str(tmp_path / name))
        assert content() == before
    folder = tiny.write_model("naturalspeech2", tmp_path)
    name, given = "ns2_jax.synthesize", [f"--model={folder}", f"--batch={source}", f"--out={tmp_path}/out"]
    assert "800 Hz" in refused(name, *given) and "--out=DIR is missing" in refused(name, *given[:2])
    assert "--text does not go with --batch" in refused(name, *given, "--text=Hi.") and "--times does not go" in refused(name, *given, "--times=srt")
    for flag in ("--language=de", "--takes=3", "--at_once", "--target_pitch=kept"):
        assert f"{flag.split('=')[0]} does not go with --batch" in refused(name, *given, flag)
    assert "--mesh=four: four: expected AXIS=N, as in data=4" in refused(name, *given, "--mesh=four")
    assert "--mesh=data=16: mesh=" in (said := refused(name, *given, "--mesh=data=16")) and "needs 16 devices, there are" in said
    assert "no data set at" in refused(name, given[0], f"--batch={tmp_path}", given[2])
    assert isinstance(inference.load(folder), inference.Model)
