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
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import room
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


@pytest.mark.parametrize("rt60, direct", [(0.2, 0.0), (0.5, 10.0), (1.2, 5.0)])
def test_a_room_decays_as_asked(rt60, direct):
    """Schroeder's backward integral of the tail falls from -5 to -25 dB at 60 dB in `rt60`; the energies have their ratio."""
    response = rooms.impulse(RATE, rt60, direct, np.random.default_rng(0))
    tail = np.square(response[1:])
    assert response[0] == 1.0 and 10 * np.log10(1 / tail.sum()) == pytest.approx(direct, abs=1e-6)
    left = 10 * np.log10(np.cumsum(tail[::-1])[::-1] / tail.sum())
    first, last = np.argmax(left < -5), np.argmax(left < -25)
    assert 3 * (last - first) / RATE == pytest.approx(rt60, rel=0.12)


def test_reverberation_is_a_convolution_heard_as_one(corpus):
    audio = utterances(corpus)[0].audio
    times = []
    for rt60 in (0.2, 0.8):
        response = rooms.impulse(RATE, rt60, 0.0, np.random.default_rng(1))
        wet, plain = rooms.reverberate(audio, response), scipy.signal.fftconvolve(audio, response)[: len(audio)]
        np.testing.assert_allclose(wet, plain * np.sqrt(np.square(audio).mean() / np.square(plain).mean()), atol=2e-6)
        assert np.square(wet).mean() == pytest.approx(np.square(audio).mean(), rel=1e-5)
        times.append(room.reverberation(wet))
    assert room.reverberation(audio) < times[0] < times[1]


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
        mixed = rooms.mix(audio, made, 7.0)
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
    assert run(f"data_pipelines.{command}", *changed)[0] == 0 and files() != first


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
