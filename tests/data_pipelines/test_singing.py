"""Singing-like speech: the pitch is the melody's, phones are where they are said to be, and nothing else is changed."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile

from data_pipelines import features, remade, shards, singing, verify
from ns2_jax.data.dataset import Dataset
from ns2_jax.maths import pitch, spectral
from ns2_jax.text import front, phones

HERE = pathlib.Path(__file__).parent
RATE, PERIOD = 16000, 160


@pytest.fixture(scope="module")
def sentences() -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(audio, phones, ends, f0) of three recordings with the synthesiser's own times."""
    found = []
    for i, said in enumerate(json.loads((HERE / "sentences.json").read_text())):
        audio = soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0]
        ends = np.minimum(np.rint([end * RATE for _, end in said["segments"]]).astype(int), len(audio))
        ends[-1] = len(audio)
        found.append((audio, phones.ids(front.phonemise(said["text"])), ends, pitch.track_all([audio], RATE, PERIOD)[0].astype(float)))
    return found


def cents(audio: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Distance of what the tracker hears from `target`, where both are voiced."""
    (heard,) = pitch.track_all([audio], RATE, PERIOD)
    n = min(len(heard), len(target))
    both = (heard[:n] > 0) & (target[:n] > 0)
    assert both.sum() > 0.85 * (target[:n] > 0).sum()
    return 1200 * np.abs(np.log2(heard[:n][both] / target[:n][both]))


def sing(audio, ids, ends, f0, rng):
    return singing.Singing()(remade.Utterance({}, audio, ids, ends, f0), types.SimpleNamespace(rate=RATE, period=PERIOD), rng)


def test_a_buzz_is_moved_to_another_pitch_and_length():
    """Harmonics of 120 Hz of equal strength, at 170 Hz and twice as long: only multiples of 170 Hz sound."""
    t = np.arange(RATE) / RATE
    buzz = sum(np.cos(2 * np.pi * 120 * k * t) for k in range(1, 20)).astype(np.float32) / 20
    old, new = np.array([0.0, RATE]), np.array([0.0, 2 * RATE])
    out = singing.psola(buzz, RATE, np.full(100, 120.0), PERIOD, old, new, np.full(200, 170.0))
    assert len(out) == 2 * RATE and out.dtype == np.float32
    power = np.abs(np.fft.rfft(out[4000:-4000] * np.hanning(2 * RATE - 8000))) ** 2
    hz = np.fft.rfftfreq(2 * RATE - 8000, 1 / RATE)
    near = np.abs(hz - 170 * np.rint(hz / 170)) < 10
    assert power[near & (hz < 2000)].sum() > 0.98 * power[hz < 2000].sum()


def test_nothing_asked_for_is_hardly_a_change(sentences):
    """Pitch periods are shifted a little, so spectra are compared: log-mel within 1.5 dB on average where there is sound."""
    for audio, _, ends, f0 in sentences:
        old = np.concatenate([[0], ends]).astype(float)
        out = singing.psola(audio, RATE, f0, PERIOD, old, old, f0)
        one, two = (np.asarray(spectral.log_mel(x[None, : len(x) // 200 * 200], RATE, 800, 200, 40))[0] for x in (audio, out))
        loud = one > one.max() - np.log(10) * 2.5
        off = np.abs(one - two)[loud].mean() * 20 / np.log(10)
        assert len(out) == len(audio) and off < 1.5, off


def test_the_melody_is_heard_and_phones_are_where_they_are_said_to_be(sentences):
    close = []
    for k, (audio, ids, ends, f0) in enumerate(sentences):
        made = sing(audio, ids, ends, f0, np.random.default_rng(k))
        close.append(np.mean(cents(made.audio, made.f0) < 50))
        lengths, before = np.diff([0, *made.ends]), np.diff([0, *ends])
        vowel = np.array([phones.PHONES[i] in phones.VOWELS for i in ids])
        np.testing.assert_allclose(lengths[~vowel], before[~vowel], atol=1.5)
        assert (lengths[vowel] >= before[vowel] - 1).all() and lengths[vowel].mean() > 1.5 * before[vowel].mean()
        assert len(made.audio) == made.ends[-1] <= singing.LONGEST * RATE and len(made.f0) == len(made.audio) // PERIOD
        semitones = 69 + 12 * np.log2(made.f0[made.f0 > 0] / 440)
        assert np.abs(semitones - (69 + 12 * np.log2(np.median(f0[f0 > 0]) / 440))).max() <= singing.RANGE + 1
        again = sing(audio, ids, ends, f0, np.random.default_rng(k))
        np.testing.assert_array_equal(again.audio, made.audio)
    assert np.mean(close) >= 0.9, close


def test_what_cannot_be_sung():
    audio, ids, rng = np.zeros(RATE, np.float32), phones.ids(["sil", "s", "sil"]), np.random.default_rng(0)
    assert sing(audio, ids, np.array([100, 900, RATE]), np.zeros(100), rng) is None
    assert sing(audio, phones.ids(["aa"]), np.array([RATE]), np.zeros(100), rng) is None


def test_the_command_makes_a_corpus(sentences, tmp_path):
    groups = {"meta": lambda i, s: {"utt_id": f"u{i}", "speaker": "rms", "source": "flite", "voice": "rms", "text": "t", "text_norm": "t"},
              "audio": lambda i, s: {"audio": np.clip(np.rint(s[0] * 32768), -32768, 32767).astype(np.int16)},
              "align": lambda i, s: {"phones": s[1].astype(np.uint8), "ends": s[2].astype(np.int32)}}
    for group, make in groups.items():
        with shards.ShardWriter(tmp_path / "in", group, "train", 0, 1) as writer:
            for i, one in enumerate(sentences):
                writer.write(make(i, one), len(one[0]))
    shards.write_manifest(tmp_path / "in", phones=phones.inventory_hash())
    command = lambda *args: subprocess.run([sys.executable, "-m", "data_pipelines.singing", *args], capture_output=True, text=True, timeout=120,
                                           cwd=HERE.parents[1])
    done = command(f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and "has no group 'f0'" in done.stderr
    features.add_f0(tmp_path / "in")
    done = command(f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--workers=1")
    assert done.returncode == 0, done.stderr
    made = Dataset.open(tmp_path / "out")
    assert made.records("train") == 3 and set(made.groups) == {"meta", "audio", "align", "f0"}
    verify.verify_shard(str(tmp_path / "out"), verify.groups(str(tmp_path / "out")), "train", 0, 1)
    assert verify.collect(str(tmp_path / "out")) == dict.fromkeys(made.groups, 3)
    for i in range(3):
        audio = made.read("train", "audio", i)["audio"].astype(np.float32) / 32768
        assert np.mean(cents(audio, made.read("train", "f0", i)["f0"].astype(float)) < 50) > 0.85
        assert made.read("train", "meta", i)["source"] == "sung flite"
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert command(f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--workers=1").returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert "utterances was 2000, is 2" in command(f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--utterances=2").stderr
    assert command(f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'two'}", "--workers=1", "--utterances=2").returncode == 0
    assert Dataset.open(tmp_path / "two").records("train") == 2
    assert "--out is --data" in command(f"--data={tmp_path / 'in'}", f"--out={tmp_path / 'in'}").stderr
