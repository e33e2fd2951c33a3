"""Rooms, noise and manners imposed on a corpus: what is asked for is what is there, and the words stay where they were."""

from __future__ import annotations

import json
import pathlib
import types

import numpy as np
import pytest
import scipy.signal
import soundfile
from commands import refused, run

from data_pipelines import expressive, features, remade, rooms, shards, verify
from ns2_jax.audio import acoustics
from ns2_jax.data import records
from ns2_jax.data.dataset import Dataset
from ns2_jax.maths import pitch
from ns2_jax.text import front, phones

HERE = pathlib.Path(__file__).parent
RATE, PERIOD = 16000, 160
PLACE = types.SimpleNamespace(rate=RATE, period=PERIOD)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """Three recordings of two speakers, with the synthesiser's own times and our pitch."""
    root, sentences = tmp_path_factory.mktemp("remade") / "in", []
    for i, said in enumerate(json.loads((HERE / "sentences.json").read_text())):
        audio = soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0]
        ends = np.minimum(np.rint([end * RATE for _, end in said["segments"]]).astype(int), len(audio))
        ends[-1] = len(audio)
        sentences.append((audio, phones.ids(front.phonemise(said["text"])), ends))
    speakers = ("rms", "slt", "slt")
    groups = {"meta": lambda i, s: {"utt_id": f"u{i}", "speaker": speakers[i], "source": "flite", "voice": "v", "text": "t", "text_norm": "t"},
              "audio": lambda i, s: {"audio": np.clip(np.rint(s[0] * 32768), -32768, 32767).astype(np.int16)},
              "align": lambda i, s: {"phones": s[1].astype(np.uint8), "ends": s[2].astype(np.int32)}}
    for group, make in groups.items():
        with shards.ShardWriter(root, group, "train", 0, 1) as writer:
            for i, one in enumerate(sentences):
                writer.write(make(i, one), len(one[0]))
    shards.write_manifest(root, phones=phones.inventory_hash())
    features.add_f0(root)
    return root


def utterances(root) -> list[remade.Utterance]:
    dataset = Dataset.open(root)
    return [remade.read(remade.Place(dataset, "train", i)) for i in range(dataset.records("train"))]


@pytest.mark.parametrize("kind, slope", [("white", 0.0), ("pink", -10.0), ("brown", -20.0)])
def test_colours_of_noise(kind, slope):
    """Power falls by so many decibels a decade above FLOOR (Welch's estimate, 100 to 6,000 Hz)."""
    made = rooms.noise(kind, 30 * RATE, PLACE, "x", np.random.default_rng(0))
    hz, power = scipy.signal.welch(made, RATE, nperseg=4096)
    chosen = (hz > 100) & (hz < 6000)
    fit = np.polyfit(np.log10(hz[chosen]), 10 * np.log10(power[chosen]), 1)
    assert fit[0] == pytest.approx(slope, abs=0.4)


def test_noise_is_as_loud_as_asked(corpus):
    dataset, audio = Dataset.open(corpus), utterances(corpus)[1].audio
    for kind in rooms.NOISES:
        made = rooms.noise(kind, len(audio), remade.Place(dataset, "train", 1), "slt", np.random.default_rng(3))
        mixed = acoustics.mix(audio, made, 7.0)
        assert 10 * np.log10(np.square(audio).mean() / np.square(mixed - audio).mean()) == pytest.approx(7.0, abs=0.01)
    babble = rooms.noise("babble", RATE, types.SimpleNamespace(rate=RATE, another=lambda rng, who: np.ones(100, np.float32)), "", np.random.default_rng(0))
    assert len(babble) == RATE and np.ptp(babble) < 1e-9 and 4 <= babble[0] <= 8  # so many voices of power 1


def test_places_belong_to_speakers():
    made = rooms.Rooms((5, 25), (0.2, 0.8), 0.7, 0.5)
    found = [made.environment(speaker, number) for speaker in "abcdefghij" for number in range(rooms.ENVIRONMENTS)]
    assert made.environment("c", 2) == found[10] and len(set(found)) == len(found)
    assert all(one.noise or one.rt60 for one in found)
    assert all(5 <= one.snr <= 25 and (not one.rt60 or 0.2 <= one.rt60 <= 0.8) for one in found)
    assert {one.noise for one in found} == {"", *rooms.NOISES}
    only = [rooms.Rooms((5, 25), (0.2, 0.8), *shares).environment("a", k) for shares in ((1, 0), (0, 1), (0.0, 0.0001)) for k in range(3)]
    assert all(one.noise and not one.rt60 for one in only[:3]) and all(one.rt60 and not one.noise for one in only[3:])


def test_a_manner_is_heard(corpus):
    """The tracker hears the pitch that was imposed; a range of 1 and a tempo of 1 keep it; tempo divides every phone."""
    for one, (wider, faster) in zip(utterances(corpus), [(1.0, 1.0), (1.8, 0.8), (0.5, 1.25)]):
        made = expressive.Expressive((wider, wider), (faster, faster))(one, PLACE, np.random.default_rng(0))
        np.testing.assert_allclose(np.diff([0, *made.ends]), np.diff([0, *one.ends]) / faster, atol=1.0)
        assert len(made.audio) == made.ends[-1] and len(made.f0) == len(made.audio) // PERIOD
        semitones = lambda f0: 12 * np.log2(f0[f0 > 0] / np.median(one.f0[one.f0 > 0]))
        quantiles = [np.ptp(np.quantile(semitones(f0), [0.1, 0.9])) for f0 in (one.f0, made.f0)]
        assert quantiles[1] == pytest.approx(wider * quantiles[0], rel=0.1)
        (heard,) = pitch.track_all([made.audio], RATE, PERIOD)
        n = min(len(heard), len(made.f0))
        both = (heard[:n] > 0) & (made.f0[:n] > 0)
        off = 1200 * np.abs(np.log2(heard[:n][both] / made.f0[:n][both]))
        assert both.sum() > 0.85 * (made.f0 > 0).sum() and np.mean(off < 50) > 0.85
    silent = remade.Utterance({"speaker": "x"}, np.zeros(RATE, np.float32), phones.ids(["sil"]), np.array([RATE]), np.zeros(100))
    assert expressive.Expressive((1, 1), (1, 1))(silent, PLACE, np.random.default_rng(0)) is None
    assert rooms.Rooms((5, 5), (0.2, 0.2), 1, 1)(silent, PLACE, np.random.default_rng(0)) is None


@pytest.mark.parametrize("command, mark, flags", [("rooms", "@", ["--snr=5,15", "--noisy=1"]), ("expressive", "~", ["--range=0.5,2"])])
def test_the_commands_make_corpora(corpus, tmp_path, command, mark, flags):
    words = [f"--data={corpus}", f"--out={tmp_path / 'out'}", "--workers=0", *flags]
    code, _, err = run(f"data_pipelines.{command}", *words)
    assert code == 0, err
    made, old = Dataset.open(tmp_path / "out"), utterances(corpus)
    assert made.records("train") == 3 and set(made.groups) == {"meta", "audio", "align", "f0"}
    verify.verify_shard(str(tmp_path / "out"), verify.groups(str(tmp_path / "out")), "train", 0, 1)
    assert verify.collect(str(tmp_path / "out")) == dict.fromkeys(made.groups, 3)
    for one, before in zip(utterances(tmp_path / "out"), old):
        assert one.meta["utt_id"].startswith(before.meta["utt_id"]) and one.meta["text"] == "t" and one.meta["source"].endswith("flite")
        assert one.meta["speaker"].split(mark)[0] == before.meta["speaker"] and one.meta["speaker"] != before.meta["speaker"]
        np.testing.assert_array_equal(one.phones, before.phones)
        if command == "rooms":
            np.testing.assert_array_equal(one.ends, before.ends)
            assert len(one.audio) == len(before.audio) and not np.allclose(one.audio, before.audio, atol=1e-3)
    files = lambda: {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    first = files()
    assert run(f"data_pipelines.{command}", *words)[0] == 0 and files() == first
    changed = [*words[:-1], flags[-1].replace("2", "1.5").replace("noisy=1", "noisy=0.9")]
    assert "was made from another corpus or with other flags (change was " in refused(f"data_pipelines.{command}", *changed)
    assert "(utterances was 2000, is 2)" in refused(f"data_pipelines.{command}", *words, "--utterances=2") and files() == first


def test_what_the_commands_refuse(corpus, tmp_path):
    there = [f"--data={corpus}", f"--out={tmp_path / 'out'}"]
    for module, said, *words in (
            ("rooms", "--snr=20,5: expected two numbers LOW,HIGH with -20 <=", *there, "--snr=20,5"),
            ("rooms", "leave the recordings as they are", *there, "--noisy=0", "--reverberant=0"),
            ("expressive", "--rate=fast: expected two numbers", *there, "--rate=fast"),
            ("expressive", "--out is --data", f"--data={corpus}", f"--out={corpus}"),
            ("expressive", "--out is empty", f"--data={corpus}")):
        assert said in refused(f"data_pipelines.{module}", *words)
    assert not (tmp_path / "out").exists()


def two_shards(root: pathlib.Path, count: int = 6, f0: float = 120.0, aligned: bool = True) -> pathlib.Path:
    """A data set of `count` buzzes by two speakers, in two shards; of `heldout` one more."""
    t = np.arange(RATE) / RATE
    audio = np.rint(8000 * sum(np.cos(2 * np.pi * 120 * k * t) for k in range(1, 8)) / 7).astype(np.int16)
    for split, shard, total, rows in (("train", 0, 2, range(count // 2)), ("train", 1, 2, range(count // 2, count)), ("heldout", 0, 1, range(1))):
        values = {"meta": lambda i: {"utt_id": f"{split}{i}", "speaker": f"s{i % 2}", "source": "x", "voice": "v", "text": "t", "text_norm": "t"},
                  "audio": lambda i: {"audio": np.roll(audio, i)},
                  "align": lambda i: {"phones": phones.ids(["sil", "aa", "sil"] if aligned else []).astype(np.uint8),
                                      "ends": np.array([1, 2, RATE] if aligned else [], np.int32)},
                  "f0": lambda i: {"f0": np.full(RATE // PERIOD, f0, np.float16)}}
        for group, make in values.items():
            with shards.ShardWriter(root, group, split, shard, total, info={"period": PERIOD} if group == "f0" else None) as writer:
                for i in rows:
                    writer.write(make(i), RATE)
    shards.write_manifest(root, phones=phones.inventory_hash())
    return root


def tree(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


CHANGES = (rooms.Rooms((5, 15), (0.2, 0.4), 0.7, 0.5), expressive.Expressive((0.4, 2), (0.75, 1.35)))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.word)
def test_an_utterance_is_the_same_whoever_makes_it_and_with_whomever(tmp_path, monkeypatch, change):
    """Processes, and shards of another size, change no record; a pure function of the old corpus, its place there and the change."""
    data = two_shards(tmp_path / "in")
    remade.build(data, tmp_path / "here", change, 2000)
    remade.build(data, tmp_path / "pool", change, 2000, workers=2)
    assert tree(tmp_path / "here") == tree(tmp_path / "pool")
    monkeypatch.setattr(remade, "PER_SHARD", 2)
    remade.build(data, tmp_path / "small", change, 2000)
    every = lambda out: {one.meta["utt_id"]: one for one in utterances(tmp_path / out)}
    one, other = every("here"), every("small")
    assert len(list((tmp_path / "small" / "audio").glob("train-*.tfrecord"))) == 3 and one.keys() == other.keys() and len(one) == 6
    for name in one:
        assert one[name].meta == other[name].meta
        for field in ("audio", "phones", "ends", "f0"):
            np.testing.assert_array_equal(getattr(one[name], field), getattr(other[name], field))


def test_of_what_a_corpus_was_made_is_told_and_looked_at(tmp_path):
    """Pitch made again in the second shard of the old corpus; another corpus, and a folder of somebody else's."""
    data, change = two_shards(tmp_path / "in"), CHANGES[0]
    remade.build(data, tmp_path / "out", change, 2000)
    about = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert about == {"command": "rooms", "fingerprint": Dataset.open(data).fingerprint, "utterances": "2000", "change": repr(change),
                     "data": str(data)}  # fmt: skip
    before = utterances(tmp_path / "out")
    with shards.ShardWriter(data, "f0", "train", 1, 2, info={"period": PERIOD}) as writer:
        for _ in range(3):
            writer.write({"f0": np.full(RATE // PERIOD, 140, np.float16)}, RATE)
    shards.write_manifest(data)
    remade.build(data, tmp_path / "out", change, 2000)
    assert [[set(one.f0) for one in all_of] for all_of in (before, utterances(tmp_path / "out"))] == [[{120.0}] * 6, [{120.0}] * 3 + [{140.0}] * 3]
    data.rename(tmp_path / "moved")
    remade.build(tmp_path / "moved", tmp_path / "out", change, 2000)
    other, kept = two_shards(tmp_path / "other", count=4), tree(tmp_path / "out")
    with pytest.raises(ValueError, match="was made from another corpus or with other flags .fingerprint was .*; choose another folder or delete it"):
        remade.build(other, tmp_path / "out", change, 2000)
    theirs = tree(other)
    with pytest.raises(ValueError, match="exists and was not made by this command"):  # as many shards as would be written into it
        remade.build(tmp_path / "moved", other, change, 2000)
    assert tree(other) == theirs and tree(tmp_path / "out") == kept
    for damaged in (b"", b"[1]", kept["corpus.json"][:-3]):
        (tmp_path / "out" / "corpus.json").write_bytes(damaged)
        with pytest.raises(records.Corrupt, match="out/corpus.json is damaged; choose another --out, or delete the whole of"):
            remade.build(tmp_path / "moved", tmp_path / "out", change, 2000)


def test_short_phones_and_none_at_all(tmp_path):
    """Phones of a sample keep one at twice the tempo; what was not aligned is stretched as a whole; what has no pitch is left out and said."""
    fast = expressive.Expressive((1.0, 1.0), (2.0, 2.0))
    remade.build(two_shards(tmp_path / "in"), tmp_path / "out", fast, 2000)
    (one, *_) = utterances(tmp_path / "out")
    assert one.ends.tolist() == [1, 2, RATE // 2] and len(one.audio) == RATE // 2
    verify.verify_shard(str(tmp_path / "out"), verify.groups(str(tmp_path / "out")), "train", 0, 1)
    assert verify.collect(str(tmp_path / "out"))["align"] == 6
    remade.build(two_shards(tmp_path / "untimed", aligned=False), tmp_path / "whole", fast, 2000)
    (one, *_) = utterances(tmp_path / "whole")
    assert len(one.ends) == len(one.phones) == 0 and len(one.audio) == RATE // 2 and set(one.f0) == {120.0}
    mixed = two_shards(tmp_path / "mixed", count=1, f0=0.0)  # the whole of it is one buzz that has no pitch
    with pytest.raises(ValueError, match="all of its utterances were left out, for nothing_voiced"):
        remade.build(mixed, tmp_path / "some", fast, 2000)
    listed = [json.loads(line) for line in (tmp_path / "some" / "rejects.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in listed] == ["nothing_voiced"] * 2 and {row["item"] for row in listed} == {"train0", "heldout0"}
    assert remade.rounded(np.array([0, 0.4, 0.6, 2.5, 3.5, 3.6])).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="all of its utterances were left out, for nothing_voiced"):
        remade.build(two_shards(tmp_path / "mute", f0=0.0, count=0), tmp_path / "none", fast, 2000)
