"""Recordings in: one file per reason to refuse it, and phone times against a synthesiser that knew them."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from data_pipelines import align, features, ingest
from data_pipelines.corpora import Utterance
from ns2_jax.audio import files
from ns2_jax.data import frames
from ns2_jax.data.dataset import Dataset
from ns2_jax.text import front, phones

RATE = 16000
KEEP = ingest.Settings(align="none", valid=2)


def hum(seconds: float, rate: int = RATE, level: float = 0.2) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * 150 * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t)) / 1.3).astype(np.float32)


def save(path, audio, rate=RATE, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate, **kwargs)


def good(root, count=6, prefix="ok"):
    for i in range(count):
        save(root / f"{prefix}{i}.wav", hum(1 + i / 10))
    return [f"{prefix}{i}|Good morning, number {i}." for i in range(count)]


def reject_reasons(out):
    rows = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return sorted((row["reason"], row["item"].rsplit("/", 1)[-1]) for row in rows)


def test_the_zoo(tmp_path):
    """One input for every reason; the counts balance, and what is left can be read."""
    wavs, out = tmp_path / "corpus" / "wavs", tmp_path / "out"
    lines = good(wavs)
    (wavs / "text.wav").write_text("this is not audio")
    (wavs / "nothing.wav").write_bytes(b"")
    save(wavs / "empty.wav", np.zeros(0, np.float32))
    save(wavs / "silent.wav", np.zeros(RATE, np.float32))
    save(wavs / "clipped.wav", np.clip(hum(1) * 50, -1, 1))
    save(wavs / "nan.wav", np.where(np.arange(RATE) == 500, np.nan, hum(1)), subtype="FLOAT")
    save(wavs / "long.wav", hum(31))
    save(wavs / "short.wav", hum(0.2))
    save(wavs / "alone.wav", hum(1))
    save(wavs / "a" / "twice.wav", hum(1))
    save(wavs / "b" / "twice.flac", hum(1))
    for name in ("blank", "mute", "torn"):
        save(wavs / f"{name}.wav", hum(1))
    lines += [f"{name}|Some words." for name in ("text", "nothing", "empty", "silent", "clipped", "nan", "long", "short", "twice", "gone")]
    lines += ["blank|", "mute|...", "torn|One text.", "torn|Another text.", "no separator here"]
    transcripts = tmp_path / "metadata.csv"
    transcripts.write_text("\n".join(lines))
    counts = ingest.ingest(wavs, transcripts, out, settings=KEEP, workers=0, f0=False)
    assert reject_reasons(out) == sorted([
        ("unreadable", "text.wav"), ("unreadable", "nothing.wav"), ("empty", "empty.wav"), ("silent", "silent.wav"),
        ("clipped", "clipped.wav"),
        ("nan", "nan.wav"), ("long", "long.wav"), ("short", "short.wav"), ("no_transcript", "alone.wav"), ("duplicate_id", "twice.flac"),
        ("empty_text", "blank.wav"), ("unpronounceable", "mute.wav"), ("ambiguous_transcript", "torn.wav"),
        ("duplicate_id", "metadata.csv:20"),
        ("bad_line", "metadata.csv:21"), ("no_audio", "gone"),
    ])  # fmt: skip
    refused = sum(n for reason, n in counts.items() if reason not in ("in", "out"))
    assert counts["out"] == 7 and counts["in"] == 7 + 16 == counts["out"] + refused
    dataset = Dataset.open(out)
    found = {dataset.read(split, "meta", i)["utt_id"] for split in dataset.splits for i in range(dataset.records(split))}
    assert found == {"twice", *(f"ok{i}" for i in range(6))}
    assert sum(dataset.manifest["groups"]["meta"]["rejects"].values()) == 9  # those found on reading the audio and the text


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_a_recording_cut_short_is_refused(tmp_path, kind):
    """Whatever its format: else half a recording would be trained on with its whole text."""
    wavs, lines = tmp_path / "wavs", ["whole|Some words.", "half|Some words.", "loud|Some words."]
    noise = 0.1 * np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32)
    save(wavs / f"whole.{kind}", noise)
    data = (wavs / f"whole.{kind}").read_bytes()
    (wavs / f"half.{kind}").write_bytes(data[: len(data) // 2])
    save(wavs / "loud.wav", np.where(np.arange(RATE) == 500, 1e30, hum(1)), subtype="FLOAT")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    ingest.ingest(wavs, tmp_path / "list.csv", tmp_path / "out", settings=KEEP, f0=False)
    assert reject_reasons(tmp_path / "out") == [("unreadable", f"half.{kind}"), ("unreadable", "loud.wav")]


def test_recordings_in_several_parts_are_whole_or_refused(tmp_path):
    """Joined, chained, cut and changing files: never a part of the recording with the whole text."""
    wavs, noise = tmp_path / "wavs", 0.1 * np.random.default_rng(0).normal(size=4 * RATE)

    def coded(subtype: str, rate: int = RATE, **how) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, noise, rate, format={"MPEG_LAYER_III": "MP3", "PCM_16": "RF64"}.get(subtype, "OGG"), subtype=subtype, **how)
        return file.getvalue()

    mp3, vorbis, opus, rf64 = (coded(subtype) for subtype in ("MPEG_LAYER_III", "VORBIS", "OPUS", "PCM_16"))
    animals = {"joined.mp3": mp3 + mp3, "cut.opus": opus[:-20], "cut.ogg": vorbis[:-20], "chained.ogg": vorbis + vorbis, "cut.wav": rf64[:-9000],
               "changing.mp3": mp3 + coded("MPEG_LAYER_III", 44100)}  # fmt: skip
    wavs.mkdir()
    for name, data in animals.items():
        (wavs / name.replace(".", "_")).with_suffix(name[name.index(".") :]).write_bytes(data)
    (tmp_path / "list.csv").write_text("\n".join(f"{name.replace('.', '_')}|Some words." for name in animals))
    counts = ingest.ingest(wavs, tmp_path / "list.csv", tmp_path / "out", settings=KEEP, workers=0, f0=False)
    assert counts == {"in": 6, "out": 1, "unreadable": 5}
    assert "joined_mp3.mp3" not in {name for _, name in reject_reasons(tmp_path / "out")}
    assert Dataset.open(tmp_path / "out").read("train", "meta", 0)["num_samples"] == pytest.approx(8 * RATE, abs=6 * 576)


@pytest.mark.parametrize(("start", "end", "reason"), [
    (5.0, 5.04, "bad_segment"), (5.01, 5.04, "bad_segment"), (5.04, 5.05, "bad_segment"), (6.0, None, "bad_segment"), (-0.1, 3, "bad_segment"),
    (3, 2, "bad_segment"), (1, 5.06, "bad_segment"), (4.9, 5.04, "short"), (4, 5.04, "")])
def test_segments_lie_in_their_recording(tmp_path, start, end, reason):
    save(tmp_path / "a.wav", hum(5))
    item = Utterance("u", str(tmp_path / "a.wav"), "s", "Some words.", start=start, end=end)
    if reason:
        with pytest.raises((files.AudioError, ingest.Rejected)) as error:
            ingest.read(item, KEEP)
        assert error.value.reason == reason
    else:
        assert len(ingest.read(item, KEEP)[0]) == RATE


def test_what_is_trimmed_too_short_says_so(tmp_path):
    save(tmp_path / "a.wav", np.concatenate([np.zeros(2 * RATE, np.float32), hum(0.26), np.zeros(RATE * 174 // 100, np.float32)]))
    item = Utterance("u", str(tmp_path / "a.wav"), "s", "Some words.")
    with pytest.raises(files.AudioError, match=r"a.wav: 0.36 s long \(of 4.00 s, after trim=40\), at least 0.5 s are needed") as error:
        ingest.prepare(item, dataclasses.replace(KEEP, trim=40.0))
    assert error.value.reason == "short"
    for trim in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match=f"--trim={trim}: expected a finite number of dB"):
            ingest.ingest(tmp_path, tmp_path / "t.csv", tmp_path / "out", settings=dataclasses.replace(KEEP, trim=trim))


def test_what_is_written(tmp_path):
    wavs, out = tmp_path / "LJSpeech-1.1" / "wavs", tmp_path / "out"
    lines = good(wavs, 10)
    save(wavs / "stereo.flac", np.stack([hum(1.5, 22050), hum(1.5, 22050)], 1), 22050)
    lines.append("stereo.wav|Dr. Smith paid $5.|Doctor Smith paid five dollars.")
    (tmp_path / "t.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf8")
    ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0)
    dataset = Dataset.open(out)
    assert dataset.groups == ("audio", "f0", "meta") and dataset.records("valid") == 1  # a tenth of eleven
    assert dataset.manifest["phones"] == phones.inventory_hash()
    rows = {dataset.read(s, "meta", i)["utt_id"]: (s, i) for s in dataset.splits for i in range(dataset.records(s))}
    split, i = rows["stereo"]
    meta, audio = dataset.read(split, "meta", i), dataset.read(split, "audio", i)
    assert meta["speaker"] == "LJSpeech-1.1" and meta["text"] == "Doctor Smith paid five dollars."
    assert meta["text_norm"] == front.normalise(meta["text"])
    assert audio["num_samples"] == len(audio["audio"]) == 24000
    spectrum = np.abs(np.fft.rfft(audio["audio"] * np.hanning(24000)))
    assert abs(np.argmax(spectrum) * RATE / 24000 - 150) < 1  # resampled, not relabelled
    levels = [np.abs(dataset.read(s, "audio", i)["audio"]).max() for s, i in rows.values()]
    assert max(levels) / min(levels) < 1.2
    f0 = dataset.read(split, "f0", i)["f0"]
    np.testing.assert_allclose(np.median(f0[f0 > 0]), 150, rtol=0.01)


def test_level_can_be_kept(tmp_path):
    wavs = tmp_path / "c" / "wavs"
    audio = hum(1)
    save(wavs / "x.wav", audio)
    (tmp_path / "t.csv").write_text("x|Hello there.")
    ingest.ingest(wavs, tmp_path / "t.csv", tmp_path / "out", settings=ingest.Settings(align="none", level=False), workers=0, f0=False)
    np.testing.assert_allclose(Dataset.open(tmp_path / "out").read("train", "audio", 0)["audio"] / 32768, audio, atol=1.1 / 32768)


def test_speakers_are_folders_or_given(tmp_path):
    for who in ("ann", "bob"):
        save(tmp_path / "c" / "wavs" / who / "1.wav", hum(1))
    (tmp_path / "t").write_text("ann/1|Hello.\nbob/1|Goodbye.")
    items, rejects, inputs = ingest.find(tmp_path / "c" / "wavs", tmp_path / "t")
    assert [(item.utt_id, item.speaker, item.text) for item in items] == [("ann/1", "ann", "Hello."), ("bob/1", "bob", "Goodbye.")]
    assert rejects == [] and inputs == 2
    assert {item.speaker for item in ingest.find(tmp_path / "c" / "wavs", tmp_path / "t", "eve")[0]} == {"eve"}


def test_again_and_with_other_input(tmp_path):
    wavs, out = tmp_path / "c" / "wavs", tmp_path / "out"
    (tmp_path / "t.csv").write_text("\n".join(good(wavs)))
    first = ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0, f0=False)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tfrecord")}
    assert ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0, f0=False) == first
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*.tfrecord")} == before
    save(wavs / "ok9.wav", hum(1))
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text() + "\nok9|New.")
    with pytest.raises(ValueError, match="other recordings"):
        ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0, f0=False)


def test_killed_while_f0_is_tracked_it_goes_on(tmp_path):
    wavs, out = tmp_path / "c" / "wavs", tmp_path / "out"
    (tmp_path / "t.csv").write_text("\n".join(good(wavs)))
    first = ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0)
    manifest = (out / "manifest.json").read_text()
    for path in out.glob("f0/train-*"):
        path.unlink()
    assert ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0) == first
    assert (out / "manifest.json").read_text() == manifest


def test_the_rate_of_f0_is_logged(tmp_path, caplog):
    """Seconds of audio over seconds of CPU, of every shard that is tracked and of none that is finished."""
    wavs, out = tmp_path / "c" / "wavs", tmp_path / "out"
    (tmp_path / "t.csv").write_text("\n".join(good(wavs)))
    ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0, f0=False)
    begin = time.process_time()
    with caplog.at_level("INFO"):
        features.add_f0(out)
        features.add_f0(out)
    spent, seconds = time.process_time() - begin, sum(1 + i / 10 for i in range(6))
    (found,) = re.findall(r"f0 train-00000: (\d+) s of audio, (\d+) seconds of it per second of CPU", caplog.text)
    assert int(found[0]) == round(seconds) and int(found[1]) >= int(seconds / spent)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    wavs, out = tmp_path / "c" / "wavs", tmp_path / "mine"
    (tmp_path / "t.csv").write_text("\n".join(good(wavs, 2)))
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="was not made by this command"):
        ingest.ingest(wavs, tmp_path / "t.csv", out, settings=KEEP, workers=0, f0=False)
    assert [p.name for p in out.iterdir()] == ["letter.txt"]


def test_processes_write_the_same_bytes(tmp_path):
    wavs = tmp_path / "c" / "wavs"
    (tmp_path / "t.csv").write_text("\n".join(good(wavs, 4)))
    for workers in (0, 2):
        ingest.ingest(wavs, tmp_path / "t.csv", tmp_path / f"out{workers}", settings=KEEP, workers=workers, f0=False)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / f"out{w}").glob("*/*.tfrecord")} for w in (0, 2))
    assert a == b and a


@pytest.mark.parametrize(
    "change,error,words",
    [
        (lambda root: shutil.rmtree(root / "c" / "wavs"), FileNotFoundError, "is not a folder"),
        (lambda root: (root / "t.csv").unlink(), FileNotFoundError, "is not a file"),
        (lambda root: (root / "t.csv").write_text("nothing here"), ValueError, "no line of the form"),
        (lambda root: (root / "t.csv").write_bytes(b"ok0|\xff\xfe\xff"), ValueError, "not UTF-8"),
        (lambda root: [path.unlink() for path in (root / "c" / "wavs").iterdir()], ValueError, "no audio files"),
        (lambda root: (root / "t.csv").write_text("someone|Else."), ValueError, "no recording can be used"),
        (lambda root: (root / "t.csv").write_text("ok0|?!\nok1|..."), ValueError, "no recording can be used"),
    ],
)
def test_inputs_that_are_refused(tmp_path, change, error, words):
    (tmp_path / "t.csv").write_text("\n".join(good(tmp_path / "c" / "wavs", 2)))
    change(tmp_path)
    with pytest.raises(error, match=words):
        ingest.ingest(tmp_path / "c" / "wavs", tmp_path / "t.csv", tmp_path / "out", settings=KEEP, workers=0, f0=False)


@pytest.mark.parametrize(("least", "most"), [(0.5, float("nan")), (2.0, 1.0), (0.0, 30.0), (0.5, float("inf"))])
def test_lengths_that_no_recording_has(tmp_path, least, most):
    (tmp_path / "t.csv").write_text("\n".join(good(tmp_path / "c" / "wavs", 2)))
    with pytest.raises(ValueError, match=f"min_seconds={least} and max_seconds={most}; expected 0 < min_seconds < max_seconds, and finite"):
        ingest.ingest(tmp_path / "c" / "wavs", tmp_path / "t.csv", tmp_path / "out", settings=ingest.Settings(min_seconds=least, max_seconds=most))
    assert not (tmp_path / "out").exists()


# Spoken by flite 2.2, which prints the end of every phone (`flite -voice rms -t TEXT -o x.wav -psdur`).
HERE = pathlib.Path(__file__).parent
SPOKEN = json.loads((HERE / "sentences.json").read_text())
RECORDINGS = [soundfile.read(HERE / f"sentence{i}.flac", dtype="float32")[0] for i in range(len(SPOKEN))]


def test_phone_times_are_flites():
    errors = []
    for spoken, audio in zip(SPOKEN, RECORDINGS):
        ids, ends = align.align(audio, RATE, spoken["text"])
        assert ids.dtype == np.uint8 and ends.dtype == np.int32 and ends[-1] == len(audio) and (np.diff(ends, prepend=0) > 0).all()
        said = [name for name in phones.names(ids) if name != "sil"]
        assert said == [name for name in front.phonemise(spoken["text"]) if name != "sil"]
        truth = [(phone, end) for name, end in spoken["segments"] for phone in phones.from_flite(name) if phone != "sil"]
        got = [(phone, end / RATE) for phone, end in zip(phones.names(ids), ends) if phone != "sil"]
        assert len(truth) == len(got)
        errors += [abs(a - b) for (_, a), (_, b) in zip(truth, got)]
        assert frames.durations(ends, len(audio), RATE, 200).sum() == len(audio) // 200
    assert len(errors) > 90
    assert np.median(errors) < 0.0125  # a frame
    assert np.mean(np.array(errors) < 0.05) > 0.95


def test_phone_times_at_another_rate():
    audio = files.resample(RECORDINGS[1], RATE, 22050)
    ids, ends = align.align(audio, 22050, SPOKEN[1]["text"])
    truth, expected = align.align(RECORDINGS[1], RATE, SPOKEN[1]["text"])
    assert ids.tolist() == truth.tolist() and ends[-1] == len(audio)
    assert np.median(np.abs(ends / 22050 - expected / RATE)) < 0.011


def test_a_wrong_text_is_not_aligned():
    refused = 0
    for i, audio in enumerate(RECORDINGS):
        for wrong in SPOKEN[:i] + SPOKEN[i + 1 :]:
            with pytest.raises(align.AlignError):
                align.align(audio, RATE, wrong["text"])
            refused += 1
        align.align(audio, RATE, SPOKEN[i]["text"])  # and the aligner is none the worse for it
    assert refused == 6


def test_phones_that_the_aligner_lacks():
    with pytest.raises(align.AlignError, match="'/y/' is not in the English"):
        align._entry(("t", "/y/"))


def test_the_command(tmp_path):
    """From recordings to a data set with phones and F0, in the command's own process; a wrong flag is one line and code 2."""
    wavs = tmp_path / "corpus" / "wavs"
    wavs.mkdir(parents=True)
    lines = []
    for i, spoken in enumerate(SPOKEN):
        shutil.copy(HERE / f"sentence{i}.flac", wavs / f"{i}.flac")
        lines.append(f"{i}|{spoken['text']}")
    shutil.copy(wavs / "0.flac", wavs / "3.flac")
    lines.append(f"3|{SPOKEN[2]['text']}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    command = [sys.executable, "-m", "data_pipelines.ingest", f"--wavs={wavs}", f"--transcripts={tmp_path / 't.csv'}", "--workers=1"]
    done = subprocess.run([*command, f"--out={tmp_path / 'out'}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert reject_reasons(tmp_path / "out") == [("align_failed", "3.flac")]
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.groups == ("align", "audio", "f0", "meta") and dataset.records("train") == 3
    record = dataset.read("train", "align", 0)
    assert record["ends"][-1] == record["num_samples"] and dataset.phones("train")[0] == len(record["phones"])
    more = ["--align=none", "--nof0", "--trim=30", f"--out={tmp_path / 'cut'}"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cut = Dataset.open(tmp_path / "cut")
    samples = [[data.read("train", "meta", i)["num_samples"] for i in range(3)] for data in (dataset, cut)]
    assert cut.groups == ("audio", "meta") and sum(samples[1]) < sum(samples[0]) - 3 * 1600
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and wrong.stderr.strip().splitlines()[-1].startswith("error: --out is empty")
