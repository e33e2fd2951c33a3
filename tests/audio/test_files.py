"""Audio files: what comes back is the signal at the asked rate, and every broken file is refused by name and reason."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from ns2_jax.audio import files


def tone(seconds: float = 1.0, rate: int = 16000, hertz: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix,error", [(".wav", 2e-4), (".flac", 2e-4), (".ogg", 0.05)])
def test_round_trip(tmp_path, suffix, error):
    files.write(tmp_path / f"a{suffix}", tone(), 16000)
    audio = files.read(tmp_path / f"a{suffix}", 16000)
    assert audio.dtype == np.float32 and audio.shape == (16000,)
    assert np.abs(audio - tone())[400:-400].max() < error
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]  # no temporary file is left


def test_wav_and_flac_hold_the_same_rounded_samples(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 4000).astype(np.float32)
    for suffix in (".wav", ".flac"):
        files.write(tmp_path / f"a{suffix}", noise, 16000)
    wav, flac = (files.read(tmp_path / f"a{suffix}") for suffix in (".wav", ".flac"))
    np.testing.assert_array_equal(wav, flac)
    assert np.abs(wav - noise).max() <= 1.0001 / 32768 and np.abs(wav - noise).mean() < 0.27 / 32768  # half a step at most, but at +1
    files.write(tmp_path / "b.wav", wav, 16000)
    np.testing.assert_array_equal(files.read(tmp_path / "b.wav"), wav)  # reading and writing again changes nothing


def test_mp3_is_read(tmp_path):
    soundfile.write(tmp_path / "a.mp3", tone(2.0, 22050), 22050)
    audio = files.read(tmp_path / "a.mp3", 16000)
    spectrum = np.abs(np.fft.rfft(audio[8000:24000]))
    assert abs(spectrum.argmax() - 440) <= 1  # one-second window: one bin per Hz


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_pitch_level_and_length(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(1.0, rate), tone(1.0, rate)], -1), rate)
    audio = files.read(tmp_path / "a.wav", 16000)
    assert abs(audio.size - 16000) <= 1
    assert np.abs(audio - tone()[: audio.size])[800:-800].max() < 3e-3


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 0 * tone()], -1), 16000)
    np.testing.assert_allclose(files.read(tmp_path / "a.wav"), tone() / 2, atol=2e-4)


def write_bytes(path, data: bytes):
    path.write_bytes(data)
    return path


CASES = {
    "missing": lambda p: p / "none.wav",
    "folder": lambda p: p,
    "text": lambda p: write_bytes(p / "a.wav", b"this is a text file\n" * 40),
    "zero bytes": lambda p: write_bytes(p / "a.flac", b""),
    "truncated header": lambda p: write_bytes(p / "a.wav", b"RIFF\x24\x00\x00\x00WAVEfm"),
}


@pytest.mark.parametrize("case,reason", [("missing", "missing"), ("folder", "missing"), ("text", "unreadable"),
                                         ("zero bytes", "unreadable"), ("truncated header", "unreadable")])
def test_what_is_not_audio_is_refused(tmp_path, case, reason):
    path = CASES[case](tmp_path)
    with pytest.raises(files.AudioError, match=str(path)) as info:
        files.read(path)
    assert info.value.reason == reason
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("audio,reason", [
    (np.zeros(0, np.float32), "empty"),
    (np.zeros(16000, np.float32), "silent"),
    (np.full(16000, 5e-5, np.float32), "silent"),
    (np.where(np.arange(16000) == 77, np.nan, 0.1).astype(np.float32), "nan"),
    (np.where(np.arange(16000) == 77, np.inf, 0.1).astype(np.float32), "nan"),
])
def test_what_holds_no_signal_is_refused(tmp_path, audio, reason):
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    with pytest.raises(files.AudioError) as info:
        files.read(tmp_path / "a.wav")
    assert info.value.reason == reason


def test_length_limits(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5), 16000)
    assert files.read(tmp_path / "a.wav", 16000).size == 8000  # short is fine unless a minimum is asked
    with pytest.raises(files.AudioError) as info:
        files.read(tmp_path / "a.wav", min_seconds=1.0)
    assert info.value.reason == "short" and "0.50 s" in str(info.value)
    with pytest.raises(files.AudioError) as info:
        files.read(tmp_path / "a.wav", max_seconds=0.25)
    assert info.value.reason == "long"


def test_integers_are_scaled():
    audio = files.check(np.array([0, 16384, -32768], np.int16), 16000)
    np.testing.assert_allclose(audio, [0.0, 0.5, -1.0])


@pytest.mark.parametrize("name,error", [("a.xyz", ValueError), ("a", ValueError), ("nowhere/a.wav", FileNotFoundError)])
def test_write_refuses_bad_names(tmp_path, name, error):
    with pytest.raises(error):
        files.write(tmp_path / name, tone(), 16000)
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_nan_and_keeps_the_old_file(tmp_path):
    files.write(tmp_path / "a.wav", tone(), 16000)
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(ValueError, match="non-finite"):
        files.write(tmp_path / "a.wav", tone() * np.nan, 16000)
    assert (tmp_path / "a.wav").read_bytes() == before


def test_write_clips_instead_of_wrapping(tmp_path):
    files.write(tmp_path / "a.wav", 3 * tone(level=1.0), 16000)
    audio = files.read(tmp_path / "a.wav")
    assert np.abs(audio).max() <= 1.0 and (np.sign(audio) * np.sign(tone()) >= 0).all()


def test_loudness_ignores_pauses():
    speech = np.concatenate([np.zeros(16000, np.float32), tone(1.0, level=0.01), np.zeros(32000, np.float32)])
    matched = files.match_loudness(speech, 16000, level=0.08)
    assert abs(np.sqrt(np.square(matched[16000:32000]).mean()) - 0.08) < 1e-4
    loud = np.concatenate([tone(1.0, level=0.01), [np.float32(0.9)]])  # one click sets the limit
    assert np.abs(files.match_loudness(loud, 16000)).max() <= files.PEAK + 1e-6


def test_trim_keeps_speech_and_a_margin():
    speech = np.concatenate([np.zeros(16000, np.float32), tone(1.0), np.zeros(8000, np.float32)])
    trimmed = files.trim_silence(speech, 16000, margin=0.05)
    assert trimmed.size == 16000 + 2 * 800
    np.testing.assert_array_equal(trimmed[800:-800], tone(1.0))
    assert files.trim_silence(np.zeros(16000, np.float32), 16000).size == 0


def blocks(path, rate: int = 16000) -> np.ndarray:
    with files.Recording(path) as recording:
        return np.concatenate(list(recording.blocks(rate)), 1)


@pytest.mark.parametrize("rate", [16000, 8000, 44100])
def test_block_by_block_is_the_whole_resampled_at_once(tmp_path, rate):
    audio = np.random.default_rng(0).normal(0, 0.1, (int(9.3 * rate), 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    got = blocks(tmp_path / "a.wav")
    expected = np.stack([files.resample(channel, rate, 16000) for channel in audio.T])
    assert got.dtype == np.float32 and got.shape[0] == 3 and abs(got.shape[1] - expected.shape[1]) <= 1
    size = min(got.shape[1], expected.shape[1])
    np.testing.assert_allclose(got[:, :size], expected[:, :size], atol=1e-6)
    with files.Recording(tmp_path / "a.wav") as recording:
        assert (recording.rate, recording.channels, recording.frames) == (rate, 3, len(audio))
        assert max(block.shape[1] for block in recording.blocks(16000)) <= files.BLOCK * 16000 + 1000


def test_lengths_that_a_header_does_not_know_are_no_damage(tmp_path):
    """As programs write that do not know the length beforehand: WAV with 2^32 - 1 bytes, MP3 without Xing's header. FLAC with 0
    samples can't be read by libsndfile, and that is said."""
    audio = np.random.default_rng(0).normal(0, 0.1, 160000)
    soundfile.write(tmp_path / "a.wav", audio, 16000)
    wav = bytearray((tmp_path / "a.wav").read_bytes())
    wav[40:44] = wav[4:8] = b"\xff" * 4
    (tmp_path / "b.wav").write_bytes(wav)
    soundfile.write(tmp_path / "a.flac", audio, 16000)
    flac = bytearray((tmp_path / "a.flac").read_bytes())
    flac[21] &= 0xF0  # STREAMINFO's 36 bits
    flac[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(flac)
    soundfile.write(tmp_path / "a.mp3", np.concatenate([0 * audio, audio]), 16000, bitrate_mode="VARIABLE")
    mp3 = (tmp_path / "a.mp3").read_bytes()
    second = mp3.index(mp3[:2], mp3.index(b"Xing"))
    (tmp_path / "b.mp3").write_bytes(mp3[second:])
    for read in (blocks, files.read):
        with pytest.raises(files.AudioError, match="does not say how long"):
            read(tmp_path / "b.flac")
    for name, size in {"b.wav": 160000, "b.mp3": 320000}.items():
        assert abs(blocks(tmp_path / name).shape[1] - size) <= (0 if name != "b.mp3" else 3000)


def test_cut_files_are_refused(tmp_path):
    audio = np.random.default_rng(0).normal(0, 0.1, 160000)
    for suffix in ("wav", "mp3", "flac"):
        soundfile.write(tmp_path / f"a.{suffix}", audio, 16000)
        data = (tmp_path / f"a.{suffix}").read_bytes()
        for prefix in (b"", b"ID3\x04\x00\x00\x00\x00\x27\x10" + bytes(5008))[: 1 + (suffix == "mp3")]:  # a picture before Xing's header
            (tmp_path / f"b.{suffix}").write_bytes(prefix + data[: len(data) * 3 // 4])
            with pytest.raises(files.AudioError, match=rf"b\.{suffix}: damaged"):
                blocks(tmp_path / f"b.{suffix}")
            (tmp_path / f"b.{suffix}").write_bytes(prefix + data)
            assert abs(blocks(tmp_path / f"b.{suffix}").shape[1] - 160000) < 3000


def test_writing_block_by_block_is_writing_at_once(tmp_path, monkeypatch):
    audio = np.random.default_rng(0).normal(0, 0.6, 30000).astype(np.float32)  # some of it is clipped
    for suffix in files.STREAMS:
        files.write(tmp_path / f"a{suffix}", audio, 16000)
        with files.create(tmp_path / f"b{suffix}", 16000, 2) as add:
            for block in np.array_split(np.stack([audio, -audio]), 7, 1):
                add(block)
            assert not (tmp_path / f"b{suffix}").exists()
        one, two = (soundfile.read(tmp_path / f"{name}{suffix}", dtype="int16", always_2d=True)[0] for name in "ab")
        np.testing.assert_array_equal(one[:, 0], two[:, 0])
        assert two.shape == (30000, 2)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(files, "LONGEST_WAV", 1000)
    for name, channels, block, message in (
            ("c.wav", 1, np.full((1, 9), np.nan, np.float32), "9 non-finite"), ("c.ogg", 1, None, "can't write '.ogg'"),
            ("c.flac", 9, None, "FLAC has at most 8"), ("c.wav", 1, np.zeros((1, 600), np.float32), "more than 4 GB")):
        with pytest.raises(ValueError, match=message), files.create(tmp_path / name, 16000, channels) as add:
            add(block)
        assert sorted(tmp_path.iterdir()) == before
