"""The command for files: recordings of any kind to code files and back, and one line and no file for what can't be used."""

from __future__ import annotations

import os
import resource
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
from commands import refused, run

from ns2_jax import inference
from ns2_jax.audio import codes, files

NAME = "ns2_jax.codec"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model("codec", tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny.write_model("codec", tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def loaded(model):
    return inference.load(model)


def speech(rate: int, channels: int, seconds: float = 1.0) -> np.ndarray:
    """`[s, channels]` of a sentence, begun at another place in each channel."""
    audio = files.resample(files.read(tiny.SPEECH, 16000), 16000, rate)
    size = int(rate * seconds)
    return np.stack([np.resize(np.roll(audio, -i * size // 3), size) for i in range(channels)], 1)


def done(*args: str) -> str:
    code, out, err = run(NAME, *args)
    assert code == 0, err
    return out


def stored(path: Path) -> tuple[codes.Header, int, np.ndarray]:
    with codes.Reader(path) as file:
        return file.header, file.samples, np.concatenate(list(file.blocks()), 1)


@pytest.mark.parametrize("name,rate,channels,options", [
    ("mono.wav", 16000, 1, {}), ("cd.wav", 44100, 2, {"subtype": "PCM_24"}), ("telephone.flac", 8000, 1, {}), ("film.flac", 48000, 6, {}),
    ("song.mp3", 44100, 2, {}), ("radio.ogg", 22050, 1, {})])
def test_there_and_back(model, loaded, tmp_path, name, rate, channels, options):
    source, coded, back = tmp_path / name, tmp_path / "a.ns2", tmp_path / "back.wav"
    soundfile.write(source, speech(rate, channels), rate, **options)
    assert "encoded 1 of 1 files, 1.0 s of audio" in done("encode", str(source), str(coded), f"--model={model}")
    header, samples, got = stored(coded)
    assert (header.rate, header.hop, header.levels, header.codes) == (16000, 200, 4, 32)
    assert (header.channels, header.source_rate) == (channels, rate)
    assert header.codec == inference.codec_hash(loaded) and abs(samples - 16000) <= (2 if name != "song.mp3" else 1600)
    # Each channel is coded as it would be alone, resampled at once.
    given, _ = soundfile.read(source, dtype="float32", always_2d=True)
    for row, channel in zip(got, given.T):
        alone = files.resample(channel, rate, 16000)
        assert abs(len(alone) - samples) <= 1
        whole = loaded.encode(np.pad(alone[:samples], (0, -samples % 200 + max(samples - len(alone), 0))))
        assert (row == whole).all(-1).mean() > 0.97
    done("decode", str(coded), str(back), f"--model={model}")
    audio, out_rate = soundfile.read(back, dtype="int16", always_2d=True)
    assert out_rate == 16000 and audio.shape == (samples, channels)
    for row, channel in zip(got, audio.T):
        expected = np.clip(np.rint(np.clip(loaded.decode(row), -1, 1)[:samples] * 32768), -32768, 32767)
        assert np.abs(expected - channel).max() <= 1
    # The same command makes the same bytes, and nothing else lies there.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "a.ns2", "back.wav"])
    done("encode", str(source), f"{tmp_path}/b.ns2", f"--model={model}")
    assert (tmp_path / "b.ns2").read_bytes() == coded.read_bytes()


def test_fewer_levels_and_info(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(44100, 2, 0.5), 44100)
    done("encode", f"{tmp_path}/a.wav", f"{tmp_path}/all.ns2", f"--model={model}")
    done("encode", f"{tmp_path}/a.wav", f"{tmp_path}/two.ns2", f"--model={model}", "--levels=2")
    np.testing.assert_array_equal(stored(tmp_path / "two.ns2")[2], stored(tmp_path / "all.ns2")[2][..., :2])
    for source, name, flag in (("all", "a", ["--levels=2"]), ("two", "b", ["--levels=2"]), ("two", "c", []), ("all", "d", [])):
        done("decode", f"{tmp_path}/{source}.ns2", f"{tmp_path}/{name}.flac", f"--model={model}", *flag)
    a, b, c, d = (soundfile.read(tmp_path / f"{name}.flac")[0] for name in "abcd")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(b, c)
    assert np.abs(a - d).max() > 1e-3
    out = done("info", f"{tmp_path}/two.ns2")  # 80 frames/s x 2 levels x 2 channels x 5 bits
    for text in ("0.50 s", "2 channels", "1.60 kbit/s", "2 levels of 32 codes", "at 16000 Hz", "hop 200", "recorded at 44100 Hz",
                 inference.codec_hash(inference.load(model)), f"{(tmp_path / 'two.ns2').stat().st_size} bytes"):
        assert text in out
    assert "holds 2 levels, not 3" in refused(NAME, "decode", f"{tmp_path}/two.ns2", f"{tmp_path}/e.wav", f"--model={model}", "--levels=3")
    assert "5 levels" in refused(NAME, "encode", f"{tmp_path}/a.wav", f"{tmp_path}/e.ns2", f"--model={model}", "--levels=5")


@pytest.fixture
def bad(tmp_path):
    """Files that can't be used, and good ones beside them."""
    good = speech(16000, 1, 0.5)
    soundfile.write(tmp_path / "good.wav", good, 16000)
    soundfile.write(tmp_path / "good.mp3", speech(16000, 1, 4.0), 16000)
    soundfile.write(tmp_path / "good.flac", speech(16000, 1, 4.0), 16000)
    for name in ("good.wav", "good.mp3", "good.flac"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name.replace("good", "cut")).write_bytes(data[: len(data) // 2])
    (tmp_path / "text.wav").write_text("this is not audio")
    soundfile.write(tmp_path / "nothing.wav", good[:0], 16000)
    soundfile.write(tmp_path / "nan.wav", np.where(np.arange(len(good))[:, None] == 5000, np.nan, good), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", good * 32768, 16000, subtype="FLOAT")
    (tmp_path / "folder.ns2").mkdir()
    (tmp_path / "sub").mkdir()
    return tmp_path


@pytest.mark.parametrize("source,out,message", [
    ("nowhere.wav", "out.ns2", "nowhere.wav: no such audio file"),
    ("text.wav", "out.ns2", "text.wav: not an audio file"),
    ("nothing.wav", "out.ns2", "no audio"),
    ("nan.wav", "out.ns2", "nan.wav: NaN"),
    ("loud.wav", "out.ns2", "expected them in [-1, 1]"),
    ("cut.wav", "out.ns2", "cut.wav: damaged or cut short: 0.25 s of 0.50 s"),
    ("cut.mp3", "out.ns2", "cut.mp3: damaged or cut short"),
    ("cut.flac", "out.ns2", "cut.flac: damaged"),
    ("good.wav", "out.wav", "must end in .ns2"),
    ("good.wav", "nowhere/out.ns2", "does not exist"),
    ("good.wav", "good.wav/out.ns2", "does not exist"),
    ("sub", "out", "no file in it ends in .wav .flac .ogg .mp3"),
    ("sub", "good.wav", "needs a folder"),
])
def test_encoding_refuses(model, bad, source, out, message):
    before = sorted(bad.rglob("*"))
    assert message in refused(NAME, "encode", f"{bad}/{source}", f"{bad}/{out}", f"--model={model}")
    assert sorted(bad.rglob("*")) == before


def test_decoding_refuses(model, other, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(16000, 9, 7.0), 16000)
    done("encode", f"{tmp_path}/a.wav", f"{tmp_path}/a.ns2", f"--model={model}")
    data = (tmp_path / "a.ns2").read_bytes()
    (tmp_path / "cut.ns2").write_bytes(data[:-100])
    (tmp_path / "late.ns2").write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])  # found after most was decoded
    header, samples, array = stored(tmp_path / "a.ns2")
    with codes.create(tmp_path / "hop.ns2", codes.Header(**header.__dict__ | {"hop": 100})) as file:
        file.write(array)
        file.finish(array.shape[1] * 100)
    before = sorted(tmp_path.iterdir())
    for source, out, chosen, message in (
            ("nowhere.ns2", "b.wav", model, "nowhere.ns2: no such"),
            ("a.wav", "b.wav", model, "a.wav: not a code file"),
            ("cut.ns2", "b.wav", model, "cut.ns2: cut short or damaged"),
            ("late.ns2", "b.wav", model, "late.ns2: damaged: the block at 6.4 s"),
            ("hop.ns2", "b.wav", model, "says hop=100"),
            ("a.ns2", "b.wav", other, f"holds codes of codec {header.codec}"),
            ("a.ns2", "b.wav", "nowhere", "nowhere does not exist"),
            ("a.ns2", "b.ogg", model, "must end in .wav or .flac"),
            ("a.ns2", "b.flac", model, "FLAC has at most 8 channels, not 9")):
        assert message in refused(NAME, "decode", f"{tmp_path}/{source}", f"{tmp_path}/{out}", f"--model={chosen}"), source
        assert sorted(tmp_path.iterdir()) == before
    assert "cut.ns2: cut short" in refused(NAME, "info", f"{tmp_path}/cut.ns2")
    assert "late.ns2: damaged" in refused(NAME, "info", f"{tmp_path}/late.ns2")
    code, out, err = run(NAME, "info", str(tmp_path))
    assert code == 2 and out.count(" kbit/s, ") == 2 and "2 of 4 files" in err and "cut.ns2" in err and "late.ns2" in err


def test_places_that_are_full_or_closed_are_named_and_nothing_is_left(model, tmp_path, monkeypatch):
    """A limit on the size of files is a full disk, as far as a program can tell; root may write anywhere, so closed is what `mkstemp` says."""
    soundfile.write(tmp_path / "a.wav", speech(16000, 3, 30.0), 16000)
    done("encode", f"{tmp_path}/a.wav", f"{tmp_path}/a.ns2", f"--model={model}")
    before, limit = sorted(tmp_path.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    commands = (("encode", "a.wav", "b.ns2"), ("decode", "a.ns2", "b.wav"), ("decode", "a.ns2", "b.flac"))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
        said = [refused(NAME, verb, f"{tmp_path}/{source}", f"{tmp_path}/{out}", f"--model={model}") for verb, source, out in commands]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    for line, (_, _, out) in zip(said, commands):
        assert f"{out}: can't be written: " in line and ("File too large" in line or "is the disk full?" in line)

    def closed(**_):
        raise PermissionError(13, "Permission denied", "a name that nobody gave")

    monkeypatch.setattr(files.tempfile, "mkstemp", closed)
    for verb, source, out in commands:
        line = refused(NAME, verb, f"{tmp_path}/{source}", f"{tmp_path}/{out}", f"--model={model}")
        assert line == f"error: {tmp_path}/{out}: can't be written: Permission denied"
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", speech(16000, 1), 16000)
    assert "a.wav/out: Not a directory" in refused(NAME, "encode", f"{tmp_path}/in", f"{tmp_path}/a.wav/out", f"--model={model}")
    assert "a.wav is a file; expected a run" in refused(NAME, "encode", f"{tmp_path}/a.wav", f"{tmp_path}/b.ns2", f"--model={tmp_path}/a.wav")


def test_a_command_that_is_ended_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", speech(16000, 1, 30.0), 16000)
    seen, handler = [], signal.getsignal(signal.SIGTERM)

    def write(self, array):
        seen.append(len(list(tmp_path.iterdir())))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(codes.Writer, "write", write)
    try:
        code, _, _ = run(NAME, "encode", f"{tmp_path}/a.wav", f"{tmp_path}/b.ns2", f"--model={model}")
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert code == 143 and seen == [2] and [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_what_exists_is_not_replaced_unless_asked(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", speech(16000, 1, 0.5), 16000)
    (tmp_path / "a.ns2").write_text("mine")
    args = ["encode", f"{tmp_path}/a.wav", f"{tmp_path}/a.ns2", f"--model={model}"]
    assert "a.ns2 exists; --overwrite replaces it" in refused(NAME, *args)
    assert (tmp_path / "a.ns2").read_text() == "mine"
    done(*args, "--overwrite")
    assert stored(tmp_path / "a.ns2")[1] == 8000
    kept = (tmp_path / "a.wav").read_bytes()
    assert "a.wav exists" in refused(NAME, "decode", f"{tmp_path}/a.ns2", str(tmp_path), f"--model={model}")  # a folder: a.wav in it
    assert (tmp_path / "a.wav").read_bytes() == kept
    (tmp_path / "out").mkdir()
    done("decode", f"{tmp_path}/a.ns2", f"{tmp_path}/out", f"--model={model}")
    assert soundfile.info(str(tmp_path / "out/a.wav")).frames == 8000


def test_a_folder_is_mirrored_and_bad_files_do_not_stop_it(model, other, tmp_path):
    source, coded, back = tmp_path / "in", tmp_path / "coded", tmp_path / "back"
    (source / "deep/er").mkdir(parents=True)
    for name in ("one.wav", "deep/two.FLAC", "deep/er/three.mp3"):
        soundfile.write(source / name, speech(16000, 1, 0.5), 16000)
    (source / "notes.txt").write_text("not to be coded")
    (source / ".hidden.wav").write_text("nor this")
    (source / "deep/bad.wav").write_text("this is not audio")
    soundfile.write(source / "one.flac", speech(16000, 1, 0.5), 16000)  # would be one.ns2 too
    code, out, err = run(NAME, "encode", str(source), str(coded), f"--model={model}")
    assert code == 2 and "encoded 3 of 5 files, 1.5 s of audio" in out
    assert err.count("error: ") == 1 and "2 of 5 files can't be used" in err and "bad.wav: not an audio file" in err
    assert "one.wav: " in err and "one.ns2 is made of" in err
    names = lambda folder: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names(coded) == ["deep/er/three.ns2", "deep/two.ns2", "one.ns2"]
    # Again: what is made stays as it is; what is another codec's is told.
    times = {path: path.stat().st_mtime_ns for path in coded.rglob("*.ns2")}
    code, out, _ = run(NAME, "encode", str(source), str(coded), f"--model={model}")
    assert code == 2 and "encoded 0 of 5 files" in out and "3 were there already" in out
    assert {path: path.stat().st_mtime_ns for path in coded.rglob("*.ns2")} == times
    code, _, err = run(NAME, "encode", str(source), str(coded), f"--model={other}")
    assert code == 2 and err.count("exists and is something else") == 3
    out = done("decode", str(coded), str(back), f"--model={model}", "--format=flac")
    assert "decoded 3 of 3 files" in out and names(back) == ["deep/er/three.flac", "deep/two.flac", "one.flac"]
    code, _, err = run(NAME, "decode", str(coded), str(coded / "../coded"), f"--model={model}")
    assert code == 2 and "recordings that lie beside their codes would be taken for decoded copies" in err
    (coded / "zero.ns2").write_bytes(b"")
    code, out, err = run(NAME, "decode", str(coded), str(back), f"--model={model}", "--format=flac")
    assert code == 2 and "3 were there already" in out and "zero.ns2: not a code file" in err
    # What is there, but is not what would be made: a longer recording by now, something else that has the name.
    soundfile.write(source / "deep/two.FLAC", speech(16000, 1, 0.7), 16000)
    code, _, err = run(NAME, "encode", str(source), str(coded), f"--model={model}")
    assert code == 2 and err.count("exists and is something else") == 1 and "two.FLAC: " in err
    (back / "one.flac").write_text("not audio")
    code, _, err = run(NAME, "decode", str(coded), str(back), f"--model={model}", "--format=flac")
    assert code == 2 and err.count("exists and is something else") == 1 and "one.ns2: " in err


def test_names_and_links_of_no_use_do_not_stop_a_folder(model, tmp_path):
    source, coded = tmp_path / "in", tmp_path / "coded"
    source.mkdir()
    for name in (b"good.wav", b"w\xffrong.wav"):
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            soundfile.write(file, speech(16000, 1, 0.5), 16000, format="WAV")
    (source / "gone.wav").symlink_to(tmp_path / "nowhere")
    code, out, err = run(NAME, "encode", str(source), str(coded), f"--model={model}")
    assert code == 2 and "encoded 1 of 3 files" in out and "gone.wav" in err and "its name is not UTF-8" in err
    deep = b"[" * 2000
    start = codes.MAGIC + struct.pack("<II", codes.VERSION, len(deep))
    (coded / "deep.ns2").write_bytes(start + deep + struct.pack("<I", zlib.crc32(deep, zlib.crc32(start))))
    code, out, err = run(NAME, "info", str(coded))
    assert code == 2 and "good.ns2: 0.50 s" in out and "deep.ns2: a header that makes no sense" in err


@pytest.mark.parametrize("args,message", [
    ([], "expected encode, decode or info"),
    (["sing", "a", "b"], "sing is not a word of this command"),
    (["encode", "a.wav"], "encode takes IN and OUT, not a.wav"),
    (["encode", "", "out"], "encode takes IN and OUT, not (an empty word) out"),
    (["decode", "a", "b", "c"], "decode takes IN and OUT"),
    (["info"], "one code file or folder"),
    (["info", "nowhere.ns2"], "nowhere.ns2: no such code file"),
    (["encode", str(tiny.SPEECH), "TMP/a.ns2", "--levels=0"], "levels"),
    (["encode", str(tiny.SPEECH), "TMP/a.ns2", "--model=SPEAKER"], "is not a codec"),
])
def test_other_words_are_refused(tmp_path, args, message):
    model = tiny.write_model("naturalspeech2", tmp_path) if "--model=SPEAKER" in args else ""
    assert message in refused(NAME, *[word.replace("TMP", str(tmp_path)).replace("SPEAKER", model) for word in args])
    assert not (tmp_path / "a.ns2").exists()


def test_the_published_codec_is_the_default(tmp_path):
    done("encode", str(tiny.SPEECH), f"{tmp_path}/a.ns2")
    assert stored(tmp_path / "a.ns2")[0].codec == inference.codec_hash(inference.load("results/codec/model"))


def test_help_teaches():
    code, out, _ = run(NAME, "--help")
    assert code == 0 and "python -m ns2_jax.codec encode" in out and "--levels: " in out and "--model: " in out


def test_mels_of_a_vocoder_there_and_back(tmp_path):
    vocoder = tiny.write_model("vocoder", tmp_path / "vocoder")
    one, bands = inference.load(vocoder), 20
    soundfile.write(tmp_path / "a.wav", speech(44100, 2, 1.003), 44100)
    assert "encoded 1 of 1 files, 1.0 s of audio" in done("encode", f"{tmp_path}/a.wav", f"{tmp_path}/a.npy", f"--model={vocoder}")
    mel = np.load(tmp_path / "a.npy")
    assert mel.dtype == np.float32 and mel.shape == (81, bands)  # the last frame is begun
    mono = files.resample(speech(44100, 2, 1.003).mean(1), 44100, 16000)
    np.testing.assert_allclose(mel[:80], one.encode(np.pad(mono, (0, 81 * 200 - len(mono))))[:80], atol=0.05)  # 16 bits a sample, in quiet bins
    done("decode", f"{tmp_path}/a.npy", f"{tmp_path}/b.wav", f"--model={vocoder}")
    audio, rate = soundfile.read(tmp_path / "b.wav", dtype="int16")
    assert rate == 16000 and len(audio) == 81 * 200
    expected = np.clip(np.rint(np.clip(one.decode(mel), -1, 1) * 32768), -32768, 32767)
    assert np.abs(expected - audio).max() <= 1
    assert "1 were there already" in done("decode", str(tmp_path), f"{tmp_path}/wavs", f"--model={vocoder}") + done(
        "decode", str(tmp_path), f"{tmp_path}/wavs", f"--model={vocoder}")
    for bad, said in ((np.zeros((4, bands - 1), np.float32), f"holds float32 [4, {bands - 1}]; expected a log-mel"),
                      (np.full((4, bands), np.nan, np.float32), "goes from nan to nan"), (np.zeros((0, bands)), "expected a log-mel"),
                      (np.full((4, bands), 1e300), "goes from inf to inf"), (np.full((4, bands), -80.0), "goes from -80 to -80"),
                      (np.array([{}]), "is damaged, empty or of Python's objects"), (b"PK\x03\x04 cut", "is no .npy file"), (b"text", "is no .npy file"),
                      (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 20), }", "is damaged")):
        (tmp_path / "bad.npy").write_bytes(bad) if isinstance(bad, bytes) else np.save(tmp_path / "bad.npy", bad, allow_pickle=True)
        assert said in refused(NAME, "decode", f"{tmp_path}/bad.npy", f"{tmp_path}/bad.wav", f"--model={vocoder}")
        assert not (tmp_path / "bad.wav").exists()
    assert "whose mels have none" in refused(NAME, "decode", f"{tmp_path}/a.npy", f"{tmp_path}/c.wav", "--levels=2", f"--model={vocoder}")
    # In a folder, those that can be used are decoded and the other is named; a file of the other kind says whose model it wants.
    done("encode", str(tmp_path / "a.wav"), str(tmp_path / "good.npy"), f"--model={vocoder}")
    assert "1 of 3 files can't be used" in run(NAME, "decode", str(tmp_path), f"{tmp_path}/more", f"--model={vocoder}")[2]
    assert (tmp_path / "more" / "good.wav").exists() and not (tmp_path / "more" / "bad.wav").exists()
    assert "which a vocoder decodes" in refused(NAME, "decode", f"{tmp_path}/a.npy", f"{tmp_path}/c.wav")
    (tmp_path / "a.ns2").write_bytes(b"x")
    assert "which its codec decodes" in refused(NAME, "decode", f"{tmp_path}/a.ns2", f"{tmp_path}/c.wav", f"--model={vocoder}")
